"""Validators with one wording: what is wanted, and the value received.

Every public entry point calls these before work starts. They raise `ValueError` in Keras' wording:
"`steps` must be a positive integer. Received: steps=0."
"""

from __future__ import annotations

import difflib
import itertools
import math
import numbers
from collections.abc import Iterable, Sequence

import numpy as np

LARGEST = float(np.finfo("float32").max)  # models compute in float32: what is above is infinite to them
MOST = 2**31 - 1  # of counts: backends count in int32
MOST_CLASSES = 10**6  # the largest labeled sets have some ten thousand; every class costs memory
NOBODY = -1  # the label of an answer that is none; no class has it
LARGEST_SEED = 2**63 - 1  # what 64 bits hold; generators that take less get the lower 32 bits
TOLERANCE = 1e-6  # of the span of the bounds; float32 noise of a min-max scaling: accepted and clipped


def positive_int(name: str, value) -> int:
    """Return `value` as an int of at least 1."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 1 <= value <= MOST:
        raise ValueError(f"`{name}` must be a positive integer{_below(value)}. Received: {name}={value!r}")
    return int(value)


def _below(value) -> str:
    """The largest count, where the value is above it."""
    return f" of at most {MOST}" if isinstance(value, numbers.Integral) and value > MOST else ""


def non_negative_int(name: str, value) -> int:
    """Return `value` as an int of at least 0."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not 0 <= value <= LARGEST_SEED:
        below = f" and at most {LARGEST_SEED}" if isinstance(value, numbers.Integral) and value > 0 else ""
        raise ValueError(f"`{name}` must be an integer of at least 0{below}. Received: {name}={value!r}")
    return int(value)


def real(name: str, value, *, low: float = -math.inf, high: float = math.inf, open_low: bool = False) -> float:
    """Return `value` as a finite float in `[low, high]` (`(low, high]` with `open_low`)."""
    good = isinstance(value, numbers.Real) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST
    if not good or not low <= value <= high or (open_low and value == low):
        above = f"above {low:g}" if open_low else f"of at least {low:g}"
        span = above if high == math.inf else f"{above} and at most {high:g}"
        span = "a finite number" if low == -math.inf and high == math.inf else f"a finite number {span}"
        raise ValueError(f"`{name}` must be {span}. Received: {name}={value!r}")
    return float(value)


def radius(name: str, value) -> float | tuple[float, ...]:
    """Return a radius: a float of at least 0, or a tuple of them (one per sample)."""
    if isinstance(value, numbers.Real):
        return real(name, value, low=0.0)
    try:
        values = np.asarray(value)
    except ValueError:  # lists of several lengths
        values = np.asarray(None)
    good = values.dtype.kind in "iuf" and values.ndim == 1 and values.size > 0
    if not good or not np.all((values >= 0) & (values <= LARGEST)):
        raise ValueError(
            f"`{name}` must be a number of at least 0 or an array of them of shape (n,). Received: {name}={value!r}"
        )
    return tuple(values.astype("float64").tolist())


def bounds(value) -> tuple[float, float]:
    """Return `(low, high)` with low below high, both finite."""
    good = isinstance(value, Sequence) and len(value) == 2
    if not good or not all(isinstance(v, numbers.Real) and abs(v) <= LARGEST for v in value) or value[0] >= value[1]:
        raise ValueError(f"`bounds` must be a pair (low, high) with low < high. Received: bounds={value!r}")
    return float(value[0]), float(value[1])


def one_of(name: str, value, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; the error names the nearest right one."""
    choices = list(choices)
    if isinstance(value, str) and value in choices:
        return value
    near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6) if isinstance(value, str) else []
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"`{name}` must be one of {', '.join(choices)}. Received: {name}={value!r}.{hint}")


def images(name: str, x, *, limits: tuple[float, float] = (0.0, 1.0), shape: tuple | None = None) -> np.ndarray:
    """Return `x` as float32 inside `limits`.

    uint8 images are mapped linearly from 0..255, the range of their type, onto the limits. Values outside the limits
    by no more than a millionth of their span are clipped; anything further out, NaN, an empty array or another dtype
    is an error.

    Args:
        name: What to call the array in an error.
        x: Array of shape (n, ...).
        limits: `(low, high)` of a valid input.
        shape: Shape of one sample that is expected, with None where any size is right; or None.
    """
    try:
        x = np.asarray(x)
    except ValueError:
        raise ValueError(f"`{name}` must be an array of shape (n, ...). Received: lists of several lengths") from None
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"`{name}` must be a non-empty array of shape (n, ...). Received: shape={x.shape}")
    if shape is not None and not _fits(x.shape[1:], shape):
        raise ValueError(f"`{name}` must hold samples of shape {tuple(shape)}. Received: shape={x.shape}")
    if x.dtype == np.uint8:
        levels = limits[0] + np.arange(256) * (limits[1] - limits[0]) / 255
        return levels.astype("float32")[x]
    if not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"`{name}` must be floating point in [{limits[0]:g}, {limits[1]:g}], or uint8 images. "
            f"Received: dtype={x.dtype}"
        )
    low, high = float(x.min()), float(x.max())  # NaN survives min and max
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"`{name}` must be finite. Received: {int(np.sum(~np.isfinite(x)))} values NaN or infinite")
    tolerance = TOLERANCE * (limits[1] - limits[0])
    if low < limits[0] - tolerance or high > limits[1] + tolerance:
        raise ValueError(
            f"`{name}` must lie in the bounds [{limits[0]:g}, {limits[1]:g}]. "
            f"Received: minimum={low:.6g}, maximum={high:.6g}"
        )
    if low < limits[0] or high > limits[1]:
        x = np.clip(x, *limits)
    return x.astype("float32", copy=False)


def _fits(found: tuple, wanted: tuple) -> bool:
    return len(found) == len(wanted) and all(b is None or a == b for a, b in zip(found, wanted, strict=True))


def labels(name: str, y, *, n: int | None = None, classes: int | None = MOST_CLASSES, least: int = 0) -> np.ndarray:
    """Return `y` as int64 class indices of shape (n,).

    Args:
        name: What to call the array in an error.
        y: Class indices of shape (n,) or (n, 1), or one-hot rows of shape (n, classes).
        n: Number of labels that is expected, or None.
        classes: Labels must be below this. None: at most `MOST`, for numbers of samples.
        least: The lowest label: 0, or `NOBODY` where an answer may be none.
    """
    try:
        y = np.asarray(y)
    except ValueError:
        raise ValueError(f"`{name}` must be class indices of shape (n,). Received: a list of several lengths") from None
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    elif y.ndim == 2 and y.shape[1] > 1 and y.dtype.kind in "biuf":
        if not (np.isin(y, (0, 1)).all() and (y.sum(axis=1) == 1).all()):
            raise ValueError(
                f"`{name}` must be class indices of shape (n,) or one-hot rows, with one 1 in each. "
                f"Received: shape={y.shape}, whose rows have other values or several labels"
            )
        y = y.argmax(axis=1)
    if y.ndim != 1:
        raise ValueError(f"`{name}` must be class indices of shape (n,). Received: shape={y.shape}")
    floats = np.issubdtype(y.dtype, np.floating)
    if floats and not np.all(np.isfinite(y)):
        raise ValueError(f"`{name}` must be finite. Received: {int(np.sum(~np.isfinite(y)))} values NaN or infinite")
    if not np.issubdtype(y.dtype, np.integer) and not (floats and np.all(y == np.floor(y))):
        raise ValueError(f"`{name}` must be integers (class indices). Received: dtype={y.dtype}")
    if n is not None and len(y) != n:
        raise ValueError(f"`{name}` must have one label for each of the {n} samples. Received: {len(y)} labels")
    classes = MOST if classes is None else classes
    if len(y) and (y.min() < least or y.max() >= classes):
        raise ValueError(
            f"`{name}` must be at least {least} and below {classes}. "
            f"Received: minimum={int(y.min())}, maximum={int(y.max())}"
        )
    return y.astype("int64")


def several_classes(name: str, y: np.ndarray) -> None:
    """Raise unless `y` holds at least two classes."""
    found = np.unique(y)
    if len(found) < 2:
        raise ValueError(f"`{name}` must hold at least two classes. Received: only class {found.tolist()}")


def share(name: str, value) -> float:
    """Return `value` as a float above 0 and below 1."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not 0 < value < 1:
        raise ValueError(f"`{name}` must be a share above 0 and below 1. Received: {name}={value!r}")
    return float(value)


def growing_shares(name: str, value) -> tuple[float, ...]:
    """Return shares of adversarial samples: each in (0, 1), each above the one before."""
    try:
        shares = tuple(float(v) for v in value)
    except (TypeError, ValueError):
        shares = ()
    if not shares or not all(0 < s < 1 for s in shares) or any(b <= a for a, b in itertools.pairwise(shares)):
        raise ValueError(f"`{name}` must be shares that grow, each above 0 and below 1. Received: {name}={value!r}")
    return shares
