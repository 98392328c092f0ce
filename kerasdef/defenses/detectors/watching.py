"""A detector that looks at a network which does not answer, such as one that nothing defends."""

from __future__ import annotations

import keras
from keras import ops

from kerasdef import models
from kerasdef.annotations import checked
from kerasdef.defenses.base import check_member
from kerasdef.defenses.detectors.base import Detector


@keras.saving.register_keras_serializable(package="kerasdef")
class Watching(Detector):
    """Shows inputs to one network more, which does not answer, and lets a detector look at it and at the classifiers.

    Attacks that are made on an undefended network show there, and little in classifiers that were trained to withstand
    them. The network is the first of those that the detector watches. An attacker who knows the defense sees it too.

    Args:
        network: A built classifier with the inputs and outputs of those that answer. It is saved with the detector.
        detector: A detector, not fitted.
        rate: As in `Detector`.
        reach: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = Watching(undefended, Mahalanobis()).fit(members, x_train, y_train, valid=x_valid)

    References: none.
    """

    @checked
    def __init__(
        self,
        network: keras.Model,
        detector: Detector,
        *,
        rate: float = 0.05,
        reach: float = 2.0,
        bounds: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(rate=rate, reach=reach, bounds=bounds, **kwargs)
        check_member(network)
        self.network, self.detector = network, detector
        self.rule = detector.rule

    def _attach(self, members, shape, classes):
        own = models.stack_logits([self.network])
        found = tuple(own.input_shape[1:]), own.output_shape[-1]
        if found != (tuple(shape), classes):
            raise ValueError(
                f"`network` must take inputs of shape {tuple(shape)} and have {classes} outputs. "
                f"Received: {found[0]} and {found[1]}"
            )
        self._own = models.Untracked((own,))
        self.detector.bounds = self.detector.bounds or self.bounds
        self.detector.attach([self.network, *self._members.models])

    def _fit(self, x, y, logits, x_adv, seed):
        self.detector.fit([self.network, *self._members.models], x, y, x_adv=x_adv, seed=seed)

    def call(self, x, logits):
        """Scores of shape (n,)."""
        own = ops.cast(self._own.models[0](x, training=False), "float32")
        return self.detector(x, ops.concatenate([own, logits], axis=1))

    def get_config(self):
        """Settings of the detector, network and detector among them."""
        parts = {"network": self.network, "detector": self.detector}
        parts = {name: keras.saving.serialize_keras_object(part) for name, part in parts.items()}
        parts["network"].pop("compile_config", None)  # how it was trained says nothing of what it shows
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config):
        """The detector of a configuration."""
        config = dict(config)
        network, detector = (keras.saving.deserialize_keras_object(config.pop(k)) for k in ("network", "detector"))
        return cls(network, detector, **config)
