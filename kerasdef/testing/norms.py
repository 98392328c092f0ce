"""The contract of a norm."""

from __future__ import annotations

import dataclasses

import numpy as np
from keras import ops

from kerasdef.annotations import checked
from kerasdef.norms import L1, Norm
from kerasdef.random import sample_seeds
from kerasdef.testing.attacks import claim

_SIGMAS = 5.0  # a sound sampler fails a check of five standard errors once in two million


@checked
def check_norm(norm: Norm) -> None:
    """Check that a norm's size, projection, steepest step and sample belong together; it takes a second.

    Clauses: size is a norm (homogeneous, triangle inequality); the projection leaves points inside and on
    the sphere alone, brings those outside to the sphere, to the nearest point, and is idempotent; every
    sample has its own radius; the steepest step has size 1, is the best among sampled ones (an `L1` is
    checked with one feature per step, its default density is an approximation), and is finite for a zero
    gradient; samples are uniform in the ball.

    Args:
        norm: A `Norm`.

    Raises:
        AssertionError: A clause does not hold; the message names it.
        ValueError: `norm` is not a `Norm`.
    """
    if not isinstance(norm, Norm):
        raise ValueError(f"`norm` must be a Norm. Received: norm={norm!r}")
    for shape in ((3, 4, 1), (7,), (1,)):
        _check_projection(norm, shape)
        _check_steepest(norm, shape)
        _check_sample(norm, shape)


def _array(value) -> np.ndarray:
    return ops.convert_to_numpy(value).astype("float64")


def _tensor(value):
    return ops.convert_to_tensor(np.asarray(value, dtype="float32"))


def _check_projection(norm, shape) -> None:
    n = 24
    rng = np.random.default_rng(5)
    eps = np.linspace(0.0, 2.0, n)
    z = rng.normal(size=(n, *shape))
    axes = (n,) + (1,) * len(shape)

    def size(value):
        return _array(norm.size(_tensor(value)))

    def project(value, radius=eps):
        return _array(norm.project(_tensor(value), _tensor(radius)))

    unit = z / size(z).reshape(axes)
    other = rng.normal(size=z.shape)
    claim(norm, "size: homogeneous", np.allclose(size(-3.0 * z), 3.0 * size(z), rtol=1e-5))
    claim(norm, "size: triangle inequality", (size(z + other) <= (size(z) + size(other)) * (1 + 1e-5)).all())

    inside = unit * (0.9 * eps).reshape(axes)
    # float32 rounding, here and below
    claim(norm, "project: points inside stay", np.allclose(project(inside), inside, atol=1e-6))
    on = unit * eps.reshape(axes)
    claim(norm, "project: points on the sphere stay", np.allclose(project(on), on, atol=1e-6))

    outside = unit * (eps + rng.uniform(0.1, 3.0, n)).reshape(axes)
    landed = project(outside)
    claim(norm, "project: points outside land on the sphere", np.allclose(size(landed), eps, atol=1e-5))
    claim(norm, "project: idempotent", np.allclose(project(landed), landed, atol=1e-5))

    # a point p of a convex set is the nearest to z exactly when (z - p) @ (q - p) <= 0 for all q of the set
    left = (outside - landed).reshape(n, -1)
    feasible = [
        np.zeros_like(z),
        inside,
        on,
        _array(norm.steepest(_tensor(outside - landed))) * eps.reshape(axes),
    ]
    seeds = sample_seeds(1, np.arange(n))
    for i in range(20):
        feasible.append(_array(norm.sample(ops.convert_to_tensor(seeds + np.uint32(i)), shape, _tensor(eps))))
    for q in feasible:
        product = np.sum(left * (q - landed).reshape(n, -1), axis=1)
        claim(norm, "project: the nearest point", (product <= 1e-4).all(), f"Received: {product.max()}.")

    huge = project(1e15 * z)
    claim(norm, "project: finite", np.isfinite(huge).all() and (size(huge) <= eps * (1 + 1e-4) + 1e-5).all())
    alone = np.concatenate([project(outside[i : i + 1], eps[i : i + 1]) for i in range(0, n, 8)])
    claim(norm, "project: every sample has its own radius", np.allclose(alone, landed[::8], atol=1e-6))


def _check_steepest(norm, shape) -> None:
    n, d = 16, int(np.prod(shape))
    rng = np.random.default_rng(6)
    if isinstance(norm, L1):
        norm = dataclasses.replace(norm, density=1 / d)
    grad = rng.normal(size=(n, *shape)) * np.logspace(-12, 3, n).reshape((n,) + (1,) * len(shape))
    step = _array(norm.steepest(_tensor(grad)))
    size = _array(norm.size(_tensor(step)))
    claim(norm, "steepest: size 1", np.allclose(size, 1.0, rtol=1e-5), f"Received: {size}.")

    flat = grad.reshape(n, d) / np.abs(grad).reshape(n, d).max(axis=1, keepdims=True)
    gain = np.sum(flat * step.reshape(n, d), axis=1)
    rivals = np.concatenate([np.eye(d), -np.eye(d), np.sign(flat), flat, rng.normal(size=(200, d))])
    rivals /= _array(norm.size(_tensor(rivals)))[:, None]
    best = (flat @ rivals.T).max(axis=1)
    claim(norm, "steepest: the largest growth", (gain >= best - 1e-5 * np.abs(best)).all(), f"{gain} < {best}.")

    still = _array(norm.steepest(_tensor(np.zeros((2, *shape)))))
    claim(norm, "steepest: finite without a gradient", np.isfinite(still).all())


def _check_sample(norm, shape) -> None:
    n, d = 4000, int(np.prod(shape))
    seeds = ops.convert_to_tensor(sample_seeds(3, np.arange(n)))
    eps = np.linspace(0.5, 2.0, n)
    points = _array(norm.sample(seeds, shape, _tensor(eps)))
    claim(norm, "sample: shape", points.shape == (n, *shape))
    size = _array(norm.size(_tensor(points)))
    claim(norm, "sample: inside its own ball", (size <= eps * (1 + 1e-5)).all())
    unit = points.reshape(n, d) / eps[:, None]
    error = unit.std(axis=0) / np.sqrt(n)
    claim(norm, "sample: mean 0", (np.abs(unit.mean(axis=0)) <= _SIGMAS * error).all())
    # volume: P(size <= r * eps) = r**d in any norm, so (size / eps)**d is uniform in (0, 1)
    share = (size / eps) ** d
    mean, variance = share.mean(), share.var()
    claim(norm, "sample: uniform", abs(mean - 1 / 2) <= _SIGMAS * np.sqrt(1 / 12 / n), f"Received: mean={mean}.")
    spread = np.sqrt((1 / 80 - 1 / 144) / n)  # standard error of the variance of a uniform number
    claim(norm, "sample: uniform", abs(variance - 1 / 12) <= _SIGMAS * spread, f"Received: variance={variance}.")
    power = np.mean(unit**2, axis=0)
    error = (unit**2).std(axis=0) / np.sqrt(n)
    even = np.abs(power - power.mean()) <= _SIGMAS * error
    claim(norm, "sample: the same in every coordinate", even.all())
    again = _array(norm.sample(seeds[:5], shape, _tensor(eps[:5])))
    claim(norm, "sample: from its own seed only", np.allclose(again, points[:5], atol=1e-6))
