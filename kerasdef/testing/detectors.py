"""The contract of a detector."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kerasdef import backend, models
from kerasdef.annotations import checked
from kerasdef.defenses.detectors import Detector
from kerasdef.defenses.detectors.threshold import Thresholded
from kerasdef.testing.attacks import claim


@checked
def check_detector(
    detector: Thresholded,
    members: list[keras.Model],
    x: np.ndarray,
    y: np.ndarray,
    *,
    valid: np.ndarray,
    fresh: np.ndarray,
    x_adv: np.ndarray,
) -> None:
    """Check that a detector keeps the contract of all detectors; it fits the detector, and takes some seconds.

    Clauses: before `fit` there are no scores, and a failed `fit` leaves the detector as it was; scores are finite, one
    for each image, and the same in any batch; what is flagged is above the threshold; of fresh clean images the wanted
    share is flagged, within four standard deviations; bad images are refused; the threshold follows scores within its
    bound, goes back, and is not moved beyond the bound by hand. Of a `Detector` also: a call and the excess agree with
    the scores, gradients are finite and, where they are exact, flow; a copy from its configuration and variables gives
    the same scores.

    Args:
        detector: A detector that was not fitted.
        members: The classifiers that it is to watch.
        x: Clean images of shape (n, ...).
        y: Their classes of shape (n,).
        valid: Clean images for the threshold.
        fresh: Clean images of the same kind that are in neither.
        x_adv: Attacked images.

    Raises:
        AssertionError: A clause does not hold; the message names it.
    """
    claim(detector, "no scores before `fit`", _refuses(lambda: detector.scores(fresh), "must be fitted"))
    short = valid[: int(1 / detector.rate) - 2]
    refused = _refuses(lambda: detector.fit(members, x, y, valid=short, x_adv=x_adv), "needs at least")
    claim(detector, "too few images for the rate are told", refused)
    claim(detector, "a failed `fit` fits nothing", _refuses(lambda: detector.scores(fresh), "must be fitted"))
    claim(detector, "`fit` gives the detector", detector.fit(members, x, y, valid=valid, x_adv=x_adv) is detector)
    _check_scores(detector, fresh)
    _check_threshold(detector, valid, fresh)
    _check_stream(detector, fresh)
    if isinstance(detector, Detector):
        _check_layer(detector, members, fresh)


def _refuses(call: Callable, words: str) -> bool:
    try:
        call()
    except ValueError as error:
        return words in str(error)
    return False


def _noise(detector: Thresholded) -> float:
    """What rounding may change of a score."""
    return 1e-3 * float(detector.spread.value)  # float32 sums in another order, in features and in distances


def _check_scores(detector: Thresholded, x: np.ndarray) -> None:
    found = detector.scores(x)
    claim(detector, "scores: one for each image", found.shape == (len(x),), f"Received: {found.shape}.")
    claim(detector, "scores: float32", found.dtype == np.float32, f"Received: {found.dtype}.")
    claim(detector, "scores: finite", np.isfinite(found).all())
    few = x[:12]
    for size in (1, 5, 256):
        gap = np.abs(detector.scores(few, batch_size=size) - found[:12]).max()
        claim(detector, f"scores: the same for batch_size={size}", gap <= _noise(detector), f"Received: {gap}.")
    for clause, bad in {
        "another shape": few[:, None],
        "NaN": np.full_like(few, np.nan),
        "beyond the bounds": few + 1e3,
        "integers": few.astype("int64"),
        "no images": few[:0],
    }.items():
        claim(detector, f"images refused: {clause}", _refuses(lambda bad=bad: detector.scores(bad), "`x`"))


def _check_threshold(detector: Thresholded, valid: np.ndarray, fresh: np.ndarray) -> None:
    threshold, rate = float(detector.threshold.value), detector.rate
    flags, scores = detector.flags(fresh), detector.scores(fresh)
    claim(detector, "flags: above the threshold", np.array_equal(flags, scores > threshold))
    most = (len(valid) + 1) * rate + 1e-9
    # the scores were computed in one batch when the threshold was set, as here: the same bits
    above = np.sum(detector.scores(valid) > threshold + _noise(detector))
    claim(detector, "threshold: conformal on the calibration data", above <= most, f"Received: {above} flagged.")
    deviation = np.sqrt(rate * (1 - rate) * (1 / len(fresh) + 1 / (len(valid) + 2)))  # of the images and the threshold
    gap = abs(flags.mean() - rate)
    claim(detector, "threshold: the rate holds on fresh images", gap <= 4 * deviation, f"Received: {flags.mean()}.")
    claim(
        detector,
        "threshold: too few images for another rate",
        _refuses(lambda: detector.calibrate(valid, rate=1e-6), "needs at least 999999"),
    )
    claim(detector, "threshold: stays after an error", float(detector.threshold.value) == threshold)
    claim(detector, "rate: stays after an error", detector.rate == rate)


def _check_stream(detector: Thresholded, fresh: np.ndarray) -> None:
    low, middle, high = (float(v) for v in ops.convert_to_numpy(detector.span.value))
    claim(detector, "stream: the threshold is in its span", low <= middle <= high)
    for scores, edge in ((np.full(64, np.nan, "float32"), high), (np.full(64, -1e30, "float32"), low)):
        for _ in range(3):
            detector.follow(scores, step=1e4)
        claim(detector, "stream: held at the edge of its span", float(detector.threshold.value) == np.float32(edge))
    detector.reset()
    claim(detector, "stream: `reset` goes back", float(detector.threshold.value) == middle)
    moved = _refuses(lambda: detector.move(high + 1 + abs(high)), "must be in its bound")
    claim(detector, "stream: beyond the bound is an error", moved)
    claim(detector, "stream: the threshold stays after an error", float(detector.threshold.value) == middle)


def _check_layer(detector: Detector, members: list[keras.Model], fresh: np.ndarray) -> None:
    few = fresh[:24]
    x, scores = ops.convert_to_tensor(few), detector.scores(few)
    stack = models.stack_logits(members)

    def excess(z):
        return detector.excess(z, stack(z, training=False)), z

    _, _, gradient = backend.gradient(excess)(x)
    found = ops.convert_to_numpy(excess(x)[0])
    called = ops.convert_to_numpy(detector(x, stack(x, training=False)))
    claim(detector, "a call gives the scores", np.abs(called - scores).max() <= _noise(detector))
    wanted = (scores - float(detector.threshold.value)) / float(detector.spread.value)
    claim(detector, "excess: in standard deviations", np.abs(found - wanted).max() <= 1e-2)
    gradient = ops.convert_to_numpy(gradient)
    claim(detector, "gradients are finite", np.isfinite(gradient).all())
    flow = np.any(gradient != 0, axis=tuple(range(1, gradient.ndim)))
    claim(detector, "gradients flow where the rule is exact", detector.rule != "exact" or flow.mean() > 0.9)

    claim(detector, "its variables are all that it keeps", not detector.trainable_variables)
    own = {id(v) for v in detector.variables}
    claim(detector, "no weight of a member is its own", not any(id(v) in own for m in members for v in m.variables))
    copy = type(detector).from_config(detector.get_config()).attach(members)
    claim(detector, "a copy is not fitted", _refuses(lambda: copy.scores(few), "must be fitted"))
    for a, b in zip(copy.variables, detector.variables, strict=True):
        a.assign(b)
    claim(detector, "a copy scores alike", np.abs(copy.scores(few) - scores).max() <= _noise(detector))
