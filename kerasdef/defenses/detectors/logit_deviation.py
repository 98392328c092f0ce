"""Deviation of logits from those of clean data."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.annotations import checked
from kerasdef.defenses.detectors import features
from kerasdef.defenses.detectors.base import Detector
from kerasdef.models.guard import argmax

REDUCE = ("max", "mean")


@keras.saving.register_keras_serializable(package="kerasdef")
class LogitDeviation(Detector):
    """How many standard deviations the logits are away from their mean over clean data: |L(x) - mu| / sigma.

    There is such a number for each logit of each classifier; the score is the largest of them or their mean. The paper
    does not say over what the mean is taken, so there are two readings: over all clean data ("pooled"), and over the
    clean data of the class that the classifiers' mean probability gives x.

    Args:
        by_class: Whether mean and standard deviation are those of the class that x is given.
        reduce: "max" or "mean": how the deviations of the logits become one score.
        rate: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = LogitDeviation(rate=0.05).fit(model, x_train, y_train, valid=x_valid)
    >>> detector.flags(x_test)

    References: Wen, Danso and Danso, 2025 (equation 6).
    """

    @checked
    def __init__(
        self,
        *,
        by_class: bool = False,
        reduce: str = "max",
        rate: float = 0.05,
        bounds: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(rate=rate, bounds=bounds, **kwargs)
        self.by_class = by_class
        self.reduce = checks.one_of("reduce", reduce, REDUCE)

    def _attach(self, members, shape, classes):
        size = (classes if self.by_class else 1, len(members), classes)
        self.mean = self.add_weight(shape=size, initializer="zeros", trainable=False, name="mean")
        self.deviation = self.add_weight(shape=size, initializer="ones", trainable=False, name="deviation")

    def _fit(self, x, y, logits, x_adv, seed):
        groups = [logits[y == k] for k in range(logits.shape[-1])] if self.by_class else [logits]
        for k, group in enumerate(groups):
            if len(group) < 2:
                raise ValueError(f"`x` must have at least two images of class {k}. Received: {len(group)}")
        good = np.stack([features.varies(group) for group in groups])
        if not good.all():
            where = tuple(int(i) for i in np.argwhere(~good)[0])
            raise ValueError(
                f"The logits must vary over `x`. Received: logit {where[2]} of model {where[1]} is the same for all"
                + (f" images of class {where[0]}" if self.by_class else "")
            )
        self.mean.assign(np.stack([group.mean(axis=0, dtype="float64") for group in groups]))
        self.deviation.assign(np.stack([group.std(axis=0, dtype="float64") for group in groups]))

    def call(self, x, logits):
        """Scores of shape (n,)."""
        if self.by_class:
            given = argmax(ops.mean(ops.softmax(logits, axis=-1), axis=1))
            mean, deviation = ops.take(self.mean, given, axis=0), ops.take(self.deviation, given, axis=0)
        else:
            mean, deviation = self.mean, self.deviation
        away = ops.abs(logits - mean) / deviation
        return (ops.max if self.reduce == "max" else ops.mean)(away, axis=(1, 2))

    def get_config(self):
        """Settings of the detector."""
        return {**super().get_config(), "by_class": self.by_class, "reduce": self.reduce}
