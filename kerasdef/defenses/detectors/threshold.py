"""The threshold of a detector: split conformal prediction on clean data, moved by traffic within a bound."""

from __future__ import annotations

import math
from abc import abstractmethod

import keras
import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.annotations import Tensor, checked
from kerasdef.defenses.detectors.features import varies
from kerasdef.defenses.detectors.stream import followed


class Thresholded:
    """What has scores, and flags those above a threshold; the base of everything that detects.

    Attributes:
        rate: False positive rate that is wanted on clean data.
        reach: How far traffic may move the threshold: between those for `rate / reach` and `rate * reach` of the
            calibration data.
        threshold: Variable: the score above which an input is flagged.
        spread: Variable: standard deviation of the scores of the calibration data, by which an excess is measured.
        span: Variable of shape (3,): the lowest threshold that is allowed, that of the calibration, and the highest.
        fitted: Variable: above 0 where the detector was fitted.
    """

    name: str
    rate: float
    reach: float
    threshold: keras.Variable
    spread: keras.Variable
    span: keras.Variable
    fitted: keras.Variable

    @abstractmethod
    def scores(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Scores of images, of shape (n,), float32."""

    @checked
    def calibrate(self, x: np.ndarray, *, rate: float | None = None):
        """Set the threshold so that at most a share of `rate` of clean data like x is flagged.

        The threshold is the k-th smallest score of the n images, k = ceil((n + 1) (1 - rate)): split conformal
        prediction (Vovk et al., 2005).

        Args:
            x: Clean images of shape (n, ...) that the detector was not fitted to.
            rate: The wanted false positive rate; None takes that of the detector.

        Returns:
            The detector.

        Raises:
            ValueError: The detector was not fitted, x has too few images for the rate, or its scores do not vary.
        """
        rate = self.rate if rate is None else checked_rate(rate)
        enough(len(x), rate)
        scores = self.scores(x)
        if not np.isfinite(scores).all():
            raise ValueError(
                f"`x` must give scores that are finite. Received: {int(np.sum(~np.isfinite(scores)))} scores NaN or "
                "infinite"
            )
        spread = float(np.std(scores, dtype="float64"))
        if not varies(scores).all():
            raise ValueError(f"`x` must give scores that vary. Received: {len(x)} images with the score {scores[0]:g}")
        span = [conformal(scores, r) for r in (rate * self.reach, rate, rate / self.reach)]
        self.rate = rate
        self.spread.assign(spread)
        self.span.assign(span)
        self.threshold.assign(span[1])
        return self

    @checked
    def flags(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Booleans of shape (n,): the score is above the threshold, or is not finite."""
        scores = self.scores(x, batch_size=batch_size)
        return ~(np.isfinite(scores) & (scores <= float(self.threshold.value)))

    @checked
    def follow(self, scores: Tensor, *, step: float = 0.05, counts: Tensor | None = None) -> None:
        """Move the threshold with the scores of traffic, within its bound; see `kerasdef.defenses.detectors.stream`.

        It can be called with arrays, and inside a program that is being traced. Before `fit` there is nothing that it
        could move.

        Args:
            scores: Scores of inputs that came in, of shape (n,), in the order of the calls.
            step: How far one call moves the threshold, in standard deviations of clean scores, if all are flagged.
            counts: How much each score counts, of shape (n,): 1, or 0 for one that is no image of the data. None
                counts all.
        """
        checks.real("step", step, low=0.0)
        scores = ops.convert_to_tensor(scores)
        if len(scores.shape) != 1:
            raise ValueError(f"`scores` must be of shape (n,). Received: shape={tuple(scores.shape)}")
        self.threshold.assign(followed(self.threshold, scores, self.rate, self.spread, self.span, step, counts))

    def reset(self) -> None:
        """Put the threshold back to that of the calibration."""
        self.check_fitted()
        self.threshold.assign(self.span[1])

    @checked
    def move(self, threshold: float) -> None:
        """Set the threshold by hand, within the bound that holds for traffic too.

        Raises:
            ValueError: It is beyond the bound; the threshold stays as it is.
        """
        self.check_fitted()
        low, _, high = (float(v) for v in ops.convert_to_numpy(self.span.value))
        if not low <= np.float32(threshold) <= high:
            raise ValueError(
                f"`threshold` must be in its bound, from {low:g} to {high:g}; `calibrate` sets another bound. "
                f"Received: threshold={threshold:g}"
            )
        self.threshold.assign(threshold)

    @abstractmethod
    def check_fitted(self) -> None:
        """Raise unless the detector was fitted."""


def checked_rate(rate) -> float:
    """A false positive rate, or an error."""
    return checks.share("rate", rate)


def checked_reach(reach) -> float:
    """How far a threshold may move, or an error."""
    return checks.real("reach", reach, low=1.0)


def enough(n: int, rate: float) -> None:
    """Raise unless n scores are enough for the rate."""
    needed = math.ceil(1 / rate - 1e-9) - 1  # the largest of so many scores is exceeded by a new one at the rate
    if n < needed:
        raise ValueError(
            f"A false positive rate of {rate:g} needs at least {needed} clean images for the threshold. Received: {n}"
        )


def conformal(scores: np.ndarray, rate: float) -> float:
    """The k-th smallest of n scores, k = ceil((n + 1) (1 - rate)), at least the first and at most the last."""
    k = math.ceil((len(scores) + 1) * (1 - rate) - 1e-9)  # 1e-9: (n + 1) (1 - rate) may be whole but for rounding
    return float(np.sort(scores)[min(max(k, 1), len(scores)) - 1])


def held_out(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, y, valid): every fifth image is kept for the threshold."""
    held = np.arange(len(x)) % 5 == 4
    return x[~held], y[~held], x[held]
