"""The output for "adversarial" of classifiers that have one, with a threshold."""

from __future__ import annotations

import keras
from keras import ops

from kerasdef.defenses.detectors.base import Detector


@keras.saving.register_keras_serializable(package="kerasdef")
class RejectLogit(Detector):
    """The log odds that the last output of the classifiers, the one for "adversarial", has by their mean probability.

    `RejectClass` rejects where that output is the largest. With a threshold it rejects at a false positive rate that is
    chosen, and the two can be compared at the same rate. The classifiers have one output more than there are classes.

    Args:
        rate: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = RejectLogit(rate=0.05).fit(model_of_eleven, x_train, y_train)

    References: Grosse et al., 2017, https://arxiv.org/abs/1702.06280 (the additional class).
    """

    def _attach(self, members, shape, classes):
        if classes < 3:
            raise ValueError(f"`members` must have two classes and one more output. Received: {classes} outputs")

    def _fit(self, x, y, logits, x_adv, seed):
        """Nothing is learned."""

    def call(self, x, logits):
        """Scores of shape (n,)."""
        each = logits - ops.logsumexp(logits, axis=-1, keepdims=True)
        others = ops.logsumexp(each[..., :-1], axis=(1, 2))
        return ops.logsumexp(each[..., -1], axis=1) - others
