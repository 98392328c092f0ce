"""Points of a ball and of its surface, within the bounds, in any norm."""

from __future__ import annotations

import numpy as np
from keras import ops

from kerasdef import random as draws
from kerasdef.norms import Norm

_HALVINGS = 30  # of the interval in which a factor is looked for: to a billionth of it
_FARTHEST = 1024.0  # factor by which a point may be pushed out where the bounds cut most of its change off


def inside(norm: Norm, x: np.ndarray, eps: np.ndarray, bounds: tuple[float, float], count: int, seeds) -> np.ndarray:
    """Points drawn uniformly from the ball of each sample, and clipped to the bounds.

    Args:
        norm: The norm of the balls.
        x: Centers of shape (n, ...).
        eps: Radii of shape (n,).
        bounds: `(low, high)` of the values.
        count: Points of each sample.
        seeds: One seed for each sample, of shape (n,).

    Returns:
        Array of shape (n, count, ...), float32.
    """
    centers, delta, _ = _drawn(norm, x, eps, count, seeds)
    return _clipped(centers, delta, bounds).reshape(len(x), count, *x.shape[1:])


def on_surface(norm: Norm, x: np.ndarray, eps: np.ndarray, bounds: tuple[float, float], count: int, seeds):
    """Points at the radius of each sample: those of `inside` along whose direction the size is, after clipping, eps.

    Where the bounds are nearer than the radius in such a direction, the point is the farthest that they allow.
    Arguments and result as in `inside`.
    """
    centers, delta, radius = _drawn(norm, x, eps, count, seeds)
    near, far = np.zeros(len(delta), dtype="float32"), np.full(len(delta), _FARTHEST, dtype="float32")
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        found = _clipped(centers, delta * _wide(middle, delta), bounds) - centers
        beyond = sizes(norm, found) > radius
        near, far = np.where(beyond, near, middle), np.where(beyond, middle, far)
    return _clipped(centers, delta * _wide(near, delta), bounds).reshape(len(x), count, *x.shape[1:])


def sizes(norm: Norm, delta: np.ndarray) -> np.ndarray:
    """Size of changes of shape (n, ...), of shape (n,)."""
    return ops.convert_to_numpy(norm.size(ops.convert_to_tensor(np.asarray(delta, dtype="float32"))))


def _drawn(norm, x, eps, count, seeds):
    own = draws.branch(np.asarray(seeds)[:, None], np.arange(count)[None, :]).reshape(-1)
    radius = np.repeat(np.asarray(eps, dtype="float32"), count)
    found = norm.sample(ops.convert_to_tensor(own), x.shape[1:], ops.convert_to_tensor(radius))
    return np.repeat(x, count, axis=0), ops.convert_to_numpy(found), radius


def _clipped(centers, delta, bounds):
    return np.clip(centers + delta, *np.float32(bounds))


def _wide(value, x):
    return value.reshape((-1,) + (1,) * (x.ndim - 1))
