"""Classifiers that do not agree."""

from __future__ import annotations

import keras
from keras import ops

from kerasdef.defenses.detectors.base import Detector


@keras.saving.register_keras_serializable(package="kerasdef")
class Disagreement(Detector):
    """How improbable the other classifiers find what the first one says: the cross-entropy of the two answers.

    Attacks on one network mostly leave another one with the true class, above all where that was trained to withstand
    them. So the first classifier is best one that nothing defends, which `Watching` puts in front of the others.

    Args:
        rate: As in `Detector`.
        reach: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = Watching(undefended, Disagreement()).fit(robust_members, x_train, y_train, valid=x_valid)

    References: none; compare the prediction inconsistency of Xu et al., 2018, https://arxiv.org/abs/1704.01155
    (section 5), between a classifier and itself on a squeezed input.
    """

    def _attach(self, members, shape, classes):
        if len(members) < 2:
            raise ValueError("`members` must be two or more models, which may disagree. Received: one")

    def _fit(self, x, y, logits, x_adv, seed):
        """Nothing is learned."""

    def call(self, x, logits):
        """Scores of shape (n,)."""
        log_p = ops.log_softmax(logits, axis=-1)
        count = logits.shape[1] - 1
        others = ops.logsumexp(log_p[:, 1:], axis=1) - ops.log(float(count))
        return -ops.sum(ops.exp(log_p[:, 0]) * others, axis=-1)
