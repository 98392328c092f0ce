"""Certified accuracy: the share of images whose true label is certain within a radius."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kerasdef.annotations import checked
from kerasdef.evaluation.statistics import wilson


@checked
def certified_accuracy(
    correct: np.ndarray, radius: np.ndarray, radii: Sequence[float] | np.ndarray = (0.0, 0.25, 0.5, 0.75, 1.0)
) -> pd.DataFrame:
    """Share of images that a smoothed classifier labels right with a certificate that reaches a radius.

    Args:
        correct: Booleans of shape (n,): the label is given, and it is the true one.
        radius: Certified radii of shape (n,), at least 0; they count only where the label is right.
        radii: The radii that are asked about, at least 0.

    Returns:
        A table with a row for each of `radii`: radius, certified_accuracy, low and high (its 95 % interval for the
        choice of images) and n. The interval does not hold the small chance that a certificate is wrong.

    Raises:
        ValueError: The arrays differ in length, or a radius is negative or not finite.

    References: Cohen et al., 2019, https://arxiv.org/abs/1902.02918 (section 4, approximate certified accuracy).
    """
    correct, radius = np.asarray(correct), np.asarray(radius, dtype="float64")
    if correct.ndim != 1 or len(correct) == 0 or correct.dtype.kind not in "bui" or not np.isin(correct, (0, 1)).all():
        raise ValueError(f"`correct` must be booleans of shape (n,). Received: correct={correct!r}")
    if radius.shape != correct.shape or not np.all(np.isfinite(radius) & (radius >= 0)):
        raise ValueError(
            f"`radius` must be numbers of at least 0, one for each of the {len(correct)} images. "
            f"Received: radius={radius!r}"
        )
    asked = np.asarray(radii, dtype="float64").reshape(-1)
    if not np.all(np.isfinite(asked) & (asked >= 0)):
        raise ValueError(f"`radii` must be numbers of at least 0. Received: radii={radii!r}")
    rows = []
    for r in asked:
        hits, n = int(np.sum((correct == 1) & (radius >= r))), len(correct)
        low, high = wilson(hits, n)
        rows.append({"radius": float(r), "certified_accuracy": hits / n, "low": low, "high": high, "n": n})
    return pd.DataFrame(rows, columns=["radius", "certified_accuracy", "low", "high", "n"])
