"""What a detector is: a layer that scores how adversarial an input looks, with a threshold for the score."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasdef import checks, models
from kerasdef.annotations import checked
from kerasdef.defenses.detectors import threshold as thresholds
from kerasdef.models.bounds import UNIT, input_bounds

_FAR = 1e6  # the excess of a score that is not finite: flagged by more than any other


class Detector(thresholds.Thresholded, keras.layers.Layer):
    """Scores inputs: the larger the score, the more adversarial an input looks; above the threshold it is flagged.

    A detector is attached to the classifiers whose inputs it watches, and called with the images and the logits of
    these. It is fitted to clean data, which also sets the threshold, by split conformal prediction: of new clean data
    like those of the calibration at most a share of `rate` is flagged, on average over calibrations. While serving, the
    threshold may follow the traffic (`follow`), within a bound. An input whose score is not finite is flagged.

    Everything that a detector has learned is in its variables, so a defense that holds it saves it. Gradients flow
    through the score, by the rule that `rule` names, so that an attacker who knows the detector can lower it.

    Subclasses are registered with Keras. They have `_attach`, which makes their variables, `_fit`, which gives these
    their values, and `call`.

    Args:
        rate: False positive rate that is wanted on clean data, between 0 and 1.
        reach: How far traffic may move the threshold: to those that the calibration data give for `rate / reach` and
            `rate * reach`; 1 holds it still. Where there are too few of these data for `rate / reach`, the largest of
            their scores stands for it.
        bounds: `(low, high)`: range of the values of the images. None takes what the classifiers say, else (0, 1).

    Attributes:
        threshold: Variable: the score above which an input is flagged.
        spread: Variable: standard deviation of the scores of the calibration data, by which an excess is measured.
        span: Variable of shape (3,): the lowest threshold that is allowed, that of the calibration, and the highest.
        rule: How gradients reach the score: "exact", or what stands in for them, in words.

    Call arguments:
        x: Images of shape (n, ...), in the range that the classifiers take.
        logits: Logits of the classifiers, of shape (n, members, classes).

    Returns:
        Scores of shape (n,), float32.
    """

    rule: ClassVar[str] = "exact"

    @checked
    def __init__(self, *, rate: float = 0.05, reach: float = 2.0, bounds: tuple[float, float] | None = None, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.rate = thresholds.checked_rate(rate)
        self.reach = thresholds.checked_reach(reach)
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

    @checked
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
        views = models.named_views(members)  # members may share a name
        shapes = {(tuple(v.input_shape[1:]), v.output_shape[-1]) for v in views}
        if len(shapes) > 1:
            raise ValueError(f"`members` must have the same input and output shapes. Received: {sorted(shapes)}")
        ((shape, classes),) = shapes
        self.bounds = self.bounds or input_bounds(members[0]) or UNIT
        self._members = models.Untracked(tuple(members))
        self.threshold = self.add_weight(shape=(), initializer="zeros", trainable=False, name="threshold")
        self.spread = self.add_weight(shape=(), initializer="ones", trainable=False, name="spread")
        self.span = self.add_weight(shape=(3,), initializer="zeros", trainable=False, name="span")
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
        y = checks.labels("y", y, n=len(x), classes=self._scorer.models[1].output_shape[-1])
        seed = checks.non_negative_int("seed", seed)
        if valid is None:
            x, y, valid = thresholds.held_out(x, y)
        valid = self._images("valid", valid)
        thresholds.enough(len(valid), self.rate)
        if x_adv is not None:
            x_adv = self._images("x_adv", x_adv)
        logits = models.predict_logits(self._scorer.models[1], x)
        kept = [ops.convert_to_numpy(v).copy() for v in self.variables]
        try:
            self._fit(x, y, logits, x_adv, seed)
            self.fitted.assign(1.0)
            return self.calibrate(valid)
        except Exception:  # as it was before
            for variable, value in zip(self.variables, kept, strict=True):
                variable.assign(value)
            raise

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
        checks.positive_int("batch_size", batch_size)
        scorer = self._scorer.models[0]
        x = self._images("x", x)
        parts = [
            scorer(ops.convert_to_tensor(x[i : i + batch_size]), training=False) for i in range(0, len(x), batch_size)
        ]
        return np.concatenate([ops.convert_to_numpy(part) for part in parts])

    def excess(self, x, logits):
        """How far the score is above the threshold, in standard deviations of clean scores; tensor of shape (n,).

        It is finite: where the score is not, the excess is a million.
        """
        away = (self(x, logits) - ops.stop_gradient(self.threshold)) / ops.stop_gradient(self.spread)
        return ops.where(ops.isfinite(away), away, _FAR)

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
        return {**super().get_config(), "rate": self.rate, "reach": self.reach, "bounds": bounds}

    def _images(self, name: str, x) -> np.ndarray:
        return checks.images(name, x, limits=self.bounds, shape=self._scorer.models[0].input_shape[1:])
