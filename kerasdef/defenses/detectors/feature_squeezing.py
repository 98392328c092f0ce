"""How much the answer changes when details of the image are squeezed out."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from kerasdef import models
from kerasdef.annotations import checked
from kerasdef.defenses.detectors.base import Detector
from kerasdef.defenses.purifiers import BitDepth, Median, Purifier


@keras.saving.register_keras_serializable(package="kerasdef")
class FeatureSqueezing(Detector):
    """The largest L1 distance between the probabilities of an image and those of its squeezed versions.

    The probabilities are the mean of the classifiers'. Nothing is learned but the threshold. Non-local means, one of
    the paper's squeezers for color images, is left out.

    Args:
        squeezers: Purifiers, each of which makes a squeezed version. None takes those of the paper's best combinations
            that are here: a median of 2 x 2, and a bit depth of 1 for images of one channel, of 5 for others.
        rate: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = FeatureSqueezing([BitDepth(4), Median(3)]).fit(model, x_train, y_train)
    >>> detector.flags(x_test)

    References: Xu et al., 2018, https://arxiv.org/abs/1704.01155 (section 5, joint detection).
    """

    @checked
    def __init__(
        self,
        squeezers: Sequence[Purifier] | None = None,
        *,
        rate: float = 0.05,
        bounds: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(rate=rate, bounds=bounds, **kwargs)
        if squeezers is not None and not squeezers:
            raise ValueError("`squeezers` must be one or more purifiers. Received: squeezers=[]")
        self.squeezers = None if squeezers is None else list(squeezers)

    @property
    def rule(self) -> str:
        """The rules of the squeezers by which gradients pass."""
        return "; ".join(dict.fromkeys(s.rule for s in self.squeezers or ()))

    def _attach(self, members, shape, classes):
        if self.squeezers is None:
            bits = 1 if shape[-1] == 1 else 5  # the paper, table of the best joint detectors: MNIST, CIFAR-10
            self.squeezers = [BitDepth(bits, bounds=self.bounds), Median(2, bounds=self.bounds)]
        for squeezer in self.squeezers:
            if tuple(squeezer.bounds) != tuple(self.bounds):
                raise ValueError(
                    f"`squeezers` must have the bounds of the images, {self.bounds}. "
                    f"Received: {squeezer.name!r} with bounds={squeezer.bounds}"
                )
        self._views = models.Untracked(tuple(members))

    def _fit(self, x, y, logits, x_adv, seed):
        """Nothing is learned."""

    def call(self, x, logits):
        """Scores of shape (n,)."""
        plain = ops.mean(ops.softmax(logits, axis=-1), axis=1)
        away = [ops.sum(ops.abs(plain - self._probabilities(squeezer(x))), axis=-1) for squeezer in self.squeezers]
        return ops.max(ops.stack(away, axis=1), axis=1)

    def _probabilities(self, x):
        found = [ops.softmax(ops.cast(view(x, training=False), "float32"), axis=-1) for view in self._views.models]
        return sum(found) / len(found)

    def get_config(self):
        """Settings of the detector."""
        squeezers = self.squeezers and [keras.saving.serialize_keras_object(s) for s in self.squeezers]
        return {**super().get_config(), "squeezers": squeezers}

    @classmethod
    def from_config(cls, config):
        """The detector of a configuration."""
        config = dict(config)
        squeezers = config.pop("squeezers")
        return cls(squeezers and [keras.saving.deserialize_keras_object(s) for s in squeezers], **config)
