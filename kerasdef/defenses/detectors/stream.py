"""A threshold that follows the traffic, within a bound that traffic cannot move.

After each batch of scores the threshold t moves by stochastic approximation of a quantile (Robbins and Monro, 1951):

    t + step * (share of the batch that is flagged - rate) * spread

so on traffic whose scores have drifted the share that is flagged comes back to the wanted rate. Who sends the traffic
could walk such a threshold to wherever it suits an attack. Therefore it never leaves the span between the thresholds
that the calibration data give for `rate / reach` and `rate * reach`: whatever comes in, of data like those of the
calibration at most about `rate * reach` is flagged, and the detector is never laxer than one that was set to
`rate / reach`. A threshold that the traffic holds at the edge of its span says that the data are other ones than
before, or that somebody pulls.
"""

from __future__ import annotations

from keras import ops


def followed(threshold, scores, rate: float, spread, span, step: float, counts=None):
    """The threshold after a batch of scores.

    Args:
        threshold: The threshold before, of shape ().
        scores: Scores of shape (n,). One that is not finite counts as flagged; no scores leave the threshold.
        rate: The share that is to be flagged.
        spread: Standard deviation of clean scores, of shape ().
        span: Lowest and highest threshold that are allowed, the first and the last of shape (3,).
        step: Size of a move, in standard deviations of clean scores.
        counts: How much each score counts, of shape (n,), from 0 to 1; None counts all.

    Returns:
        Tensor of shape (), float32.
    """
    scores = ops.cast(ops.convert_to_tensor(scores), "float32")
    threshold, spread, span = (ops.convert_to_tensor(v) for v in (threshold, spread, span))
    passed = ops.logical_and(ops.isfinite(scores), scores <= threshold)
    flagged = ops.cast(ops.logical_not(passed), "float32")
    counts = ops.ones_like(scores) if counts is None else ops.cast(counts, "float32")
    moved = threshold + step * spread * ops.sum(counts * (flagged - rate)) / ops.maximum(ops.sum(counts), 1.0)
    return ops.clip(moved, span[0], span[2])
