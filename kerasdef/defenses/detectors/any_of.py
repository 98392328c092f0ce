"""Several detectors as one."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from kerasdef.annotations import checked
from kerasdef.defenses.detectors.base import Detector


@keras.saving.register_keras_serializable(package="kerasdef")
class AnyOf(Detector):
    """Flags what looks adversarial to at least one of several detectors.

    The score is the largest of theirs, each as its distance from the detector's own threshold in standard deviations of
    its clean scores, so that none is heard for its scale. The threshold for that score is set for the rate of the
    whole. Each detector is fitted to four fifths of the clean data, and the last fifth sets its own threshold.

    Args:
        detectors: One or more detectors, not fitted.
        rate: As in `Detector`.
        reach: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = AnyOf([LogitDeviation(by_class=True), Mahalanobis()], rate=0.05)
    >>> detector.fit(members, x_train, y_train, valid=x_valid).flags(x_test)

    References: Xu et al., 2018, https://arxiv.org/abs/1704.01155 (section 5: the largest of several scores).
    """

    @checked
    def __init__(
        self,
        detectors: Sequence[Detector],
        *,
        rate: float = 0.05,
        reach: float = 2.0,
        bounds: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(rate=rate, reach=reach, bounds=bounds, **kwargs)
        if not detectors or not all(isinstance(detector, Detector) for detector in detectors):
            raise ValueError(f"`detectors` must be one or more detectors. Received: detectors={detectors!r}")
        self.detectors = list(detectors)
        self.rule = "; ".join(dict.fromkeys(detector.rule for detector in self.detectors))

    def _attach(self, members, shape, classes):
        for detector in self.detectors:
            detector.bounds = detector.bounds or self.bounds
            detector.attach(self._members.models)

    def _fit(self, x, y, logits, x_adv, seed):
        for detector in self.detectors:
            detector.fit(self._members.models, x, y, x_adv=x_adv, seed=seed)

    def call(self, x, logits):
        """Scores of shape (n,)."""
        return ops.max(ops.stack([detector.excess(x, logits) for detector in self.detectors], axis=1), axis=1)

    def get_config(self):
        """Settings of the detector, the others among them."""
        detectors = [keras.saving.serialize_keras_object(detector) for detector in self.detectors]
        return {**super().get_config(), "detectors": detectors}

    @classmethod
    def from_config(cls, config):
        """The detector of a configuration."""
        config = dict(config)
        detectors = [keras.saving.deserialize_keras_object(detector) for detector in config.pop("detectors")]
        return cls(detectors, **config)
