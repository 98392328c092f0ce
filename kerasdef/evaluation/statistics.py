"""Intervals, paired tests and detector curves: small functions of numpy arrays."""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from kerasdef import checks
from kerasdef.annotations import checked

_DRAWS = 10_000  # of the bootstrap: ends that are good to about a hundredth of the width
_SEED = 0


@checked
def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share.

    Args:
        successes: How many of the `n` trials succeeded, in `[0, n]`.
        n: Number of independent trials; 0 gives `(nan, nan)`.
        level: Confidence level, in `(0, 1)`.

    Returns:
        `(low, high)`, both in `[0, 1]`.

    Raises:
        ValueError: for counts below 0, more successes than trials, or a level outside `(0, 1)`.

    Example:
    >>> [round(v, 4) for v in wilson(8, 10)]
    [0.4902, 0.9433]

    References: Wilson, 1927, "Probable inference, the law of succession, and statistical inference".
    """
    n = checks.non_negative_int("n", n)
    successes = checks.non_negative_int("successes", successes)
    if successes > n:
        raise ValueError(f"`successes` must be at most n={n}. Received: successes={successes}")
    if not 0 < level < 1:
        raise ValueError(f"`level` must be above 0 and below 1. Received: level={level!r}")
    if n == 0:
        return math.nan, math.nan
    return _wilson(successes, n, level)


@functools.lru_cache(maxsize=4096)  # a report asks for the same few counts thousands of times
def _wilson(successes: int, n: int, level: float) -> tuple[float, float]:
    found = binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    return float(found.low), float(found.high)


@checked
def share_interval(good: np.ndarray, image: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share for chance in the choice of images, some of which may count more than once.

    Where each image counts once it is Wilson's. Otherwise images, not rows, are drawn again with all their rows: the
    percentile bootstrap over clusters. Where every row is the same, which a bootstrap cannot tell from certainty, it
    is Wilson's with one trial for each image. The draws are seeded: the same rows give the same interval.

    Args:
        good: Boolean array of shape (n,), n at least 1.
        image: Which image each row is, int, shape (n,).
        level: Confidence level, in `(0, 1)`.

    Returns:
        `(low, high)`, both in `[0, 1]`.

    References: Davison and Hinkley, 1997, "Bootstrap methods and their application" (section 3.8, resampling of
    clusters).
    """
    good = np.asarray(good, dtype=bool)
    image = np.asarray(image)
    if good.ndim != 1 or good.shape != image.shape or len(good) == 0:
        raise ValueError(
            f"`good` and `image` must be non-empty, both of shape (n,). Received: {good.shape} and {image.shape}"
        )
    _, place, rows = np.unique(image, return_inverse=True, return_counts=True)
    images = len(rows)
    if images == len(good) or good.all() or not good.any():
        return wilson(images if good.all() else int(np.sum(good)), images, level)
    right = np.bincount(place, weights=good, minlength=images)
    # images with as many rows and as many right ones are alike: a draw is how many there are of each kind
    kinds, count = np.unique(np.stack([rows, right], axis=1), axis=0, return_counts=True)
    drawn = np.random.default_rng(_SEED).multinomial(images, count / images, size=_DRAWS)
    shares = (drawn @ kinds[:, 1]) / (drawn @ kinds[:, 0])
    low, high = np.quantile(shares, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@checked
def mcnemar(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """Exact McNemar test: are two models right equally often on the same images?

    Under the hypothesis of no difference, each image on which exactly one model is right is a fair coin toss,
    so the two-sided binomial test of these discordant images is exact.

    Args:
        a: Boolean array of shape (n,), whether the first model was right.
        b: Boolean array of shape (n,), the same for the second model on the same images.

    Returns:
        `n`, `a_only` and `b_only` (images on which only one was right), `p_value` (1 without discordant
        images) and `difference`, the share right of `a` minus that of `b`.

    References: McNemar, 1947, "Note on the sampling error of the difference between correlated proportions".
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise ValueError(f"`a` and `b` must be non-empty, both of shape (n,). Received: {a.shape} and {b.shape}")
    a_only, b_only = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    p_value = float(binomtest(a_only, a_only + b_only).pvalue) if a_only + b_only else 1.0
    difference = (a_only - b_only) / len(a)
    return {"n": len(a), "a_only": a_only, "b_only": b_only, "p_value": p_value, "difference": difference}


@checked
def threshold_at_fpr(clean_scores: np.ndarray, fpr: float) -> float:
    """Lowest threshold that at most a share `fpr` of the clean scores exceeds (`-inf` if all may).

    Args:
        clean_scores: Finite scores of clean images, shape (n,), higher means more adversarial.
        fpr: Wanted false positive rate, in `[0, 1]`.
    """
    clean = _scores("clean_scores", clean_scores)
    fpr = checks.real("fpr", fpr, low=0.0, high=1.0)
    allowed = math.floor(fpr * len(clean) + 1e-9)  # 0.29 * 100 is 28.999999999999996
    return -math.inf if allowed >= len(clean) else float(np.sort(clean)[::-1][allowed])


@checked
def tpr_at_fpr(clean_scores: np.ndarray, adv_scores: np.ndarray, fpr: float) -> float:
    """Share of adversarial images found while at most a share `fpr` of the clean ones is flagged.

    An image is flagged when its score is strictly above `threshold_at_fpr`, so ties never exceed `fpr`.

    Args:
        clean_scores: Finite scores of clean images, shape (n,), higher means more adversarial.
        adv_scores: Finite scores of adversarial images, shape (m,).
        fpr: Wanted false positive rate, in `[0, 1]`.
    """
    return float(np.mean(_scores("adv_scores", adv_scores) > threshold_at_fpr(clean_scores, fpr)))


@checked
def auroc(clean_scores: np.ndarray, adv_scores: np.ndarray) -> float:
    """Probability that an adversarial image scores above a clean one, ties counted half.

    Args:
        clean_scores: Finite scores of clean images, shape (n,).
        adv_scores: Finite scores of adversarial images, shape (m,).
    """
    clean, adv = _scores("clean_scores", clean_scores), _scores("adv_scores", adv_scores)
    return float(roc_auc_score(np.repeat([0, 1], [len(clean), len(adv)]), np.concatenate([clean, adv])))


def _scores(name: str, values) -> np.ndarray:
    values = np.asarray(values, dtype="float64")
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"`{name}` must be a non-empty array of shape (n,). Received: shape={values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"`{name}` must be finite. Received: {int(np.sum(~np.isfinite(values)))} values NaN or infinite"
        )
    return values
