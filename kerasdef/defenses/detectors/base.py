"""What a detector is: a layer that scores how adversarial an input looks, with a threshold for the score."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasdef import checks, models
from kerasdef.annotations import checked
from kerasdef.models.bounds import UNIT, input_bounds


class Detector(keras.layers.Layer):
    """Scores inputs: the larger the score, the more adversarial an input looks; above the threshold it is flagged.

    A detector is attached to the classifiers whose inputs it watches, and called with the images and the logits of
    these. It is fitted to clean data, which also sets the threshold, by split conformal prediction: of new clean data
    like those of the calibration at most a share of `rate` is flagged, on average over calibrations.

    Everything that a detector has learned is in its variables, so a defense that holds it saves it. Gradients flow
    through the score, by the rule that `rule` names, so that an attacker who knows the detector can lower it.

    Subclasses are registered with Keras. They have `_attach`, which makes their variables, `_fit`, which gives these
    their values, and `call`.

    Args:
        rate: False positive rate that is wanted on clean data, between 0 and 1.
        bounds: `(low, high)`: range of the values of the images. None takes what the classifiers say, else (0, 1).

    Attributes:
        threshold: Variable: the score above which an input is flagged.
        spread: Variable: standard deviation of the scores of the calibration data, by which an excess is measured.
        rule: How gradients reach the score: "exact", or what stands in for them, in words.

    Call arguments:
        x: Images of shape (n, ...), in the range that the classifiers take.
        logits: Logits of the classifiers, of shape (n, members, classes).

    Returns:
        Scores of shape (n,), float32.
    """

    rule: ClassVar[str] = "exact"

    @checked
    def __init__(self, *, rate: float = 0.05, bounds: tuple[float, float] | None = None, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.rate = _rate(rate)
        self.bounds = None if bounds is None else checks.bounds(bounds)
        self.trainable = False
        self._members = models.Untracked(())

    # -- what subclasses fill in --------------------------------------------------------------------------------

    @abstractmethod
    def _attach(self, members: list[keras.Model], shape: tuple[int, ...], classes: int) -> None:
        """Make the variables and, where they are needed, views of the members' features (as `models.Untracked`).

        Args:
            members: The classifiers, as views that give logits.
            shape: Shape of one image.
            classes: Number of outputs of each.
        """

    @abstractmethod
    def _fit(self, x: np.ndarray, y: np.ndarray, logits: np.ndarray, x_adv: np.ndarray | None, seed: int) -> None:
        """Give the variables their values.

        Args:
            x: Clean images of shape (n, ...).
            y: Their classes of shape (n,).
            logits: Logits of shape (n, members, classes).
            x_adv: Attacked images of shape (m, ...), or None.
            seed: All randomness comes from it.
        """

    # -- what users call ----------------------------------------------------------------------------------------

    def attach(self, members: keras.Model | Sequence[keras.Model]) -> Detector:
        """Tell the detector which classifiers it watches; a second time it must be the same ones.

        Args:
            members: One built classifier or several, with the same inputs and outputs.
        """
        members = [members] if isinstance(members, keras.Model) else list(members)
        if self.built:
            same = len(members) == len(self._members.models)
            if not (same and all(a is b for a, b in zip(members, self._members.models, strict=True))):
                raise ValueError(
                    f"`members` must be the models that the detector was fitted for, "
                    f"{[m.name for m in self._members.models]}. Received: {[m.name for m in members]}"
                )
            return self
        if not members:
            raise ValueError("`members` must be one or more models. Received: members=[]")
        views = [models.logits_view(m) for m in members]
        shapes = {(tuple(v.input_shape[1:]), v.output_shape[-1]) for v in views}
        if len(shapes) > 1:
            raise ValueError(f"`members` must have the same input and output shapes. Received: {sorted(shapes)}")
        ((shape, classes),) = shapes
        self.bounds = self.bounds or input_bounds(members[0]) or UNIT
        self._members = models.Untracked(tuple(members))
        self.threshold = self.add_weight(shape=(), initializer="zeros", trainable=False, name="threshold")
        self.spread = self.add_weight(shape=(), initializer="ones", trainable=False, name="spread")
        self.fitted = self.add_weight(shape=(), initializer="zeros", trainable=False, name="fitted")
        self._attach(views, shape, classes)
        self.built = True
        images = keras.Input(shape, name="images")
        stacked = ops.stack([ops.cast(view(images), "float32") for view in views], axis=1)
        self._scorer = models.Untracked((keras.Model(images, self(images, stacked)), models.stack_logits(members)))
        return self

    @checked
    def fit(
        self,
        members: keras.Model | Sequence[keras.Model],
        x: np.ndarray,
        y: np.ndarray,
        *,
        valid: np.ndarray | None = None,
        x_adv: np.ndarray | None = None,
        seed: int = 0,
    ) -> Detector:
        """Learn what clean data look like, and set the threshold.

        Args:
            members: The classifiers that are watched, as in `attach`.
            x: Clean images of shape (n, ...), float, in the range that the classifiers take.
            y: Their classes of shape (n,).
            valid: Clean images of shape (m, ...) that were not in x, for the threshold. None keeps every fifth of x for
                it, which the statistics then do not see.
            x_adv: Attacked images, for detectors that learn from these; others do not look at them.
            seed: All randomness comes from it.

        Returns:
            The detector.

        Raises:
            ValueError: Too few images for the rate, images of the wrong shape, or values that do not vary.
        """
        self.attach(members)
        x = self._images("x", x)
        y = checks.labels("y", y, n=len(x))
        if valid is None:
            held = np.arange(len(x)) % 5 == 4
            x, y, valid = x[~held], y[~held], x[held]
        valid = self._images("valid", valid)
        self._enough(len(valid), self.rate)
        if x_adv is not None:
            x_adv = self._images("x_adv", x_adv)
        self._fit(x, y, models.predict_logits(self._scorer.models[1], x), x_adv, checks.non_negative_int("seed", seed))
        self.fitted.assign(1.0)
        return self.calibrate(valid)

    @checked
    def calibrate(self, x: np.ndarray, *, rate: float | None = None) -> Detector:
        """Set the threshold so that at most a share of `rate` of clean data like x is flagged.

        The threshold is the k-th smallest score of the n images, k = ceil((n + 1) (1 - rate)): split conformal
        prediction (Vovk et al., 2005).

        Args:
            x: Clean images of shape (n, ...) that the detector was not fitted to.
            rate: The wanted false positive rate; None takes that of the detector.

        Raises:
            ValueError: The detector was not fitted, or x has too few images for the rate.
        """
        rate = self.rate if rate is None else _rate(rate)
        self._enough(len(x), rate)
        scores = np.sort(self.scores(x))
        spread = float(np.std(scores))
        if not spread > 0:
            raise ValueError(f"`x` must give scores that vary. Received: {len(x)} images with the score {scores[0]:g}")
        self.rate = rate
        self.spread.assign(spread)
        self.threshold.assign(scores[math.ceil((len(scores) + 1) * (1 - rate)) - 1])
        return self

    @checked
    def scores(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Scores of images, of shape (n,), float32.

        Args:
            x: Images of shape (n, ...), float, in the range that the classifiers take.
            batch_size: Images at a time.

        Raises:
            ValueError: The detector was not fitted, or images are of the wrong shape.
        """
        self.check_fitted()
        scorer = self._scorer.models[0]
        x = self._images("x", x)
        parts = [scorer(ops.convert_to_tensor(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
        return np.concatenate([ops.convert_to_numpy(part) for part in parts])

    @checked
    def flags(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Booleans of shape (n,): the score is above the threshold."""
        return self.scores(x, batch_size=batch_size) > float(self.threshold.value)

    def excess(self, x, logits):
        """How far the score is above the threshold, in standard deviations of clean scores; tensor of shape (n,)."""
        return (self(x, logits) - ops.stop_gradient(self.threshold)) / ops.stop_gradient(self.spread)

    def check_fitted(self) -> None:
        """Raise unless the detector was fitted."""
        if not (self.built and float(self.fitted.value) > 0):
            raise ValueError(f"The detector must be fitted before it is used. Received: {self.name!r}; call `fit`")

    def compute_output_spec(self, x, logits):
        """Shape and type of the scores."""
        return keras.KerasTensor((x.shape[0],), dtype="float32")

    def get_config(self):
        """Settings of the detector."""
        bounds = None if self.bounds is None else list(self.bounds)
        return {**super().get_config(), "rate": self.rate, "bounds": bounds}

    def _images(self, name: str, x) -> np.ndarray:
        return checks.images(name, x, limits=self.bounds, shape=self._scorer.models[0].input_shape[1:])

    @staticmethod
    def _enough(n: int, rate: float) -> None:
        needed = math.ceil(1 / rate) - 1  # the largest of so many scores is exceeded by a new one at the rate
        if n < needed:
            raise ValueError(
                f"A false positive rate of {rate:g} needs at least {needed} clean images for the threshold. "
                f"Received: {n}"
            )


def _rate(rate) -> float:
    if not 0 < rate < 1:
        raise ValueError(f"`rate` must be above 0 and below 1. Received: rate={rate}")
    return float(rate)
