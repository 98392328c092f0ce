"""Norms of a perturbation: its size, the projection on a ball, the steepest step, a random start.

A norm works on `delta` of shape (n, ...): every sample is measured over all its features, and radii have the
shape (n,).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from keras import ops

from kerasdef import checks
from kerasdef import random as draws

_TINY = 1e-12  # keeps a division by the size of a zero gradient finite


def per_sample(value, x):
    """Reshape `value` of shape (n,) so that it broadcasts over x of shape (n, ...)."""
    return ops.reshape(value, (-1,) + (1,) * (len(x.shape) - 1))


def flatten(x):
    """Reshape x of shape (n, ...) to (n, d)."""
    return ops.reshape(x, (-1, math.prod(x.shape[1:])))


@dataclass(frozen=True)
class Norm(ABC):
    """A norm on perturbations."""

    @abstractmethod
    def size(self, delta):
        """Norm of every sample: (n, ...) to (n,)."""

    @abstractmethod
    def project(self, delta, eps):
        """Nearest point (in L2) of the ball of radius `eps` of shape (n,) around 0."""

    @abstractmethod
    def steepest(self, grad):
        """Direction of size 1 along which a linear function with this gradient grows most."""

    @abstractmethod
    def sample(self, seeds, shape, eps):
        """Points drawn uniformly from the ball: seeds and eps of shape (n,), `shape` of one sample."""


@dataclass(frozen=True)
class Linf(Norm):
    """Largest absolute change of any feature."""

    def size(self, delta):
        """Norm of every sample: (n, ...) to (n,)."""
        return ops.max(ops.abs(flatten(delta)), axis=1)

    def project(self, delta, eps):
        """Clip every feature to [-eps, eps]."""
        eps = per_sample(eps, delta)
        return ops.minimum(ops.maximum(delta, -eps), eps)

    def steepest(self, grad):
        """Sign of the gradient."""
        return ops.sign(grad)

    def sample(self, seeds, shape, eps):
        """Points drawn uniformly from the ball."""
        unit = 2.0 * draws.uniform(seeds, tuple(shape)) - 1.0
        return unit * per_sample(eps, unit)


@dataclass(frozen=True)
class L2(Norm):
    """Euclidean norm."""

    def size(self, delta):
        """Norm of every sample: (n, ...) to (n,)."""
        return ops.sqrt(ops.sum(ops.square(flatten(delta)), axis=1))

    def project(self, delta, eps):
        """Scale what lies outside the ball back to the sphere; leave the inside alone."""
        factor = ops.minimum(1.0, eps / ops.maximum(self.size(delta), _TINY))
        return delta * per_sample(factor, delta)

    def steepest(self, grad):
        """Gradient divided by its Euclidean norm (0 where it is 0)."""
        flat = flatten(grad)
        top = ops.maximum(ops.max(ops.abs(flat), axis=1), 1e-30)  # scale first: squares of 1e-25 underflow
        scaled = grad / per_sample(top, grad)
        return scaled / per_sample(ops.maximum(self.size(scaled), _TINY), grad)

    def sample(self, seeds, shape, eps):
        """Points drawn uniformly from the ball: a normal direction, radius eps * u**(1/d)."""
        direction = draws.normal(seeds, tuple(shape), salt=1)
        d = math.prod(shape)
        radius = eps * ops.power(draws.uniform(seeds, (1,), salt=2)[:, 0], 1.0 / d)
        return direction * per_sample(radius / ops.maximum(self.size(direction), _TINY), direction)


@dataclass(frozen=True)
class L1(Norm):
    """Sum of absolute changes.

    Args:
        density: Share of the features that a steepest step moves, in (0, 1]. The exact steepest step moves one
            feature only, which is slow; SLIDE (Tramèr and Boneh, 2019) moves the top 1 %.
    """

    density: float = 0.01  # SLIDE: 99th percentile

    def __post_init__(self):
        checks.real("density", self.density, low=0.0, high=1.0, open_low=True)

    def size(self, delta):
        """Norm of every sample: (n, ...) to (n,)."""
        return ops.sum(ops.abs(flatten(delta)), axis=1)

    def project(self, delta, eps):
        """Exact projection by sorting (Duchi et al., 2008, figure 1)."""
        flat = flatten(delta)
        size = ops.abs(flat)
        d = flat.shape[1]
        ordered = ops.flip(ops.sort(size, axis=1), axis=1)
        total = ops.cumsum(ordered, axis=1)
        count = ops.arange(1, d + 1, dtype="float32")
        excess = (total - ops.expand_dims(eps, 1)) / count
        kept = ops.cast(ordered > excess, "float32")
        rho = ops.maximum(ops.sum(kept, axis=1), 1.0)
        last = ops.cast(ops.expand_dims(rho, 1) == count, "float32")
        theta = ops.maximum(ops.sum(excess * last, axis=1), 0.0)
        shrunk = ops.sign(flat) * ops.maximum(size - ops.expand_dims(theta, 1), 0.0)
        inside = ops.sum(size, axis=1, keepdims=True) <= ops.expand_dims(eps, 1)
        return ops.reshape(ops.where(inside, flat, shrunk), ops.shape(delta))

    def steepest(self, grad):
        """Equal steps on the features with the largest gradients, of L1 norm 1 together."""
        flat = flatten(grad)
        size = ops.abs(flat)
        k = max(1, round(self.density * flat.shape[1]))
        threshold = ops.top_k(size, k)[0][:, -1:]
        chosen = ops.sign(flat) * ops.cast(size >= threshold, "float32")
        count = ops.maximum(ops.sum(ops.abs(chosen), axis=1, keepdims=True), 1.0)
        return ops.reshape(chosen / count, ops.shape(grad))

    def sample(self, seeds, shape, eps):
        """Points drawn uniformly from the ball, by exponential spacings."""
        d = math.prod(shape)
        spacing = -ops.log(draws.uniform(seeds, (d + 1,), salt=3))
        weight = spacing[:, :d] / ops.sum(spacing, axis=1, keepdims=True)
        sign = 2.0 * ops.cast(draws.uniform(seeds, (d,), salt=4) > 0.5, "float32") - 1.0
        unit = ops.reshape(sign * weight, (-1, *shape))
        return unit * per_sample(eps, unit)


NORMS = {"linf": Linf, "l2": L2, "l1": L1}


def get(norm: Norm | str) -> Norm:
    """Return a norm object from its name ("linf", "l2", "l1") or itself."""
    if isinstance(norm, Norm):
        return norm
    return NORMS[checks.one_of("norm", norm.lower() if isinstance(norm, str) else norm, NORMS)]()
