"""Norms of a perturbation: its size, the projection on a ball, the steepest step, a random start.

A norm works on `delta` of shape (n, ...): every sample is measured over all its features, and radii have the
shape (n,).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef import random as draws
from kerasdef.annotations import check_fields, checked

_TINY = 1e-12  # keeps a division by the size of a zero gradient finite


@checked
def per_sample(value, x):
    """Reshape `value` of shape (n,) so that it broadcasts over x of shape (n, ...)."""
    return ops.reshape(value, (-1,) + (1,) * (len(x.shape) - 1))


@checked
def flatten(x):
    """Reshape x of shape (n, ...) to (n, d)."""
    return ops.reshape(x, (-1, math.prod(x.shape[1:])))


@dataclass(frozen=True)
class Norm(ABC):
    """A norm on perturbations.

    Attributes:
        title: What it is called in reports.
    """

    title: ClassVar[str]

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

    title: ClassVar[str] = "Linf"

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

    title: ClassVar[str] = "L2"

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

    title: ClassVar[str] = "L1"

    density: float = 0.01  # SLIDE: 99th percentile

    def __post_init__(self):
        check_fields(self)
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


@dataclass(frozen=True, eq=False, repr=False)
class Masked(Norm):
    """A norm of the features that may move; the others keep their values (patches, fixed columns).

    Everything is done by the inner norm on the vector of these features alone. A change of any other feature has an
    infinite size.

    Args:
        norm: "linf", "l2", "l1" or a `Norm` without a shape of its own.
        mask: Booleans or 0 and 1 of the shape of one sample, or of one that broadcasts to it; 1 may move.

    Example:
    >>> patch = np.zeros((28, 28, 1)); patch[:7, :7] = 1
    >>> x_adv = PGD(eps=1.0, norm=Masked("linf", patch))(model, x, y)
    """

    norm: Norm | str
    mask: np.ndarray | float

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "norm", get(self.norm))
        if isinstance(self.norm, Masked | Box):
            raise ValueError(f"`norm` must have no shape of its own: linf, l2 or l1. Received: norm={self.norm!r}")
        mask = np.asarray(self.mask)
        if not np.isin(mask, (0, 1)).all() or not np.any(mask):
            raise ValueError(
                "`mask` must hold 0 and 1, and at least one 1. "
                f"Received: {mask.dtype} of shape {mask.shape} with sum {mask.sum()}"
            )
        object.__setattr__(self, "mask", mask.astype("bool"))

    @property
    def title(self) -> str:
        """The inner norm, on some features."""
        return f"{self.norm.title} of {int(self.mask.sum())} features"

    def _moving(self, delta):
        """The features that may move: (n, ...) to (n, m)."""
        return ops.take(flatten(delta), np.flatnonzero(_shaped("mask", self.mask, delta.shape[1:])), axis=1)

    def _back(self, moving, shape):
        """Put the features that may move in their places, and 0 in the others: (n, m) to (n, *shape)."""
        mask = _shaped("mask", self.mask, shape)
        source = np.maximum(np.cumsum(mask) - 1, 0)  # fixed features read anything
        spread = ops.where(mask, ops.take(moving, source, axis=1), 0.0)
        return ops.reshape(spread, (-1, *shape))

    def size(self, delta):
        """Norm of every sample: (n, ...) to (n,)."""
        fixed = np.logical_not(_shaped("mask", self.mask, delta.shape[1:]))
        broken = ops.any(ops.logical_and(fixed, flatten(delta) != 0.0), axis=1)
        return ops.where(broken, np.inf, self.norm.size(self._moving(delta)))

    def project(self, delta, eps):
        """Nearest point of the ball: the inner norm's, with 0 where nothing may move."""
        return self._back(self.norm.project(self._moving(delta), eps), delta.shape[1:])

    def steepest(self, grad):
        """Steepest step of the inner norm, with 0 where nothing may move."""
        return self._back(self.norm.steepest(self._moving(grad)), grad.shape[1:])

    def sample(self, seeds, shape, eps):
        """Points drawn uniformly from the ball."""
        count = int(_shaped("mask", self.mask, shape).sum())
        return self._back(self.norm.sample(seeds, (count,), eps), tuple(shape))

    def __eq__(self, other) -> bool:
        return isinstance(other, Masked) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self):
        return self.norm, self.mask.shape, self.mask.tobytes()

    def __repr__(self) -> str:
        return f"Masked(norm={self.norm!r}, mask=<{int(self.mask.sum())} of {self.mask.size}>)"


@dataclass(frozen=True, eq=False, repr=False)
class Box(Norm):
    """Largest change of any feature, each measured by a radius of its own (tables with columns of different units).

    `eps` scales all radii. A feature of radius 0 is fixed: a change of it has an infinite size.

    Args:
        radii: Numbers of at least 0, not all 0, of the shape of one sample or of one that broadcasts to it.

    Example:
    >>> x_adv = PGD(eps=1.0, norm=Box([0.1, 0.0, 0.3]))(model, x, y)  # the second column never moves
    """

    title: ClassVar[str] = "Linf in units of the radii"
    radii: np.ndarray | float

    def __post_init__(self):
        check_fields(self)
        radii = np.asarray(self.radii, dtype="float32")
        if not np.all(np.isfinite(radii)) or np.any(radii < 0) or not np.any(radii > 0):
            raise ValueError(
                f"`radii` must be finite numbers of at least 0, not all of them 0. Received: radii={self.radii!r}"
            )
        object.__setattr__(self, "radii", radii)

    def size(self, delta):
        """Norm of every sample: (n, ...) to (n,)."""
        radii, change = _shaped("radii", self.radii, delta.shape[1:]), ops.abs(flatten(delta))
        share = change / np.where(radii > 0, radii, np.float32(1.0))
        return ops.max(ops.where(radii == 0, ops.where(change > 0, np.inf, 0.0), share), axis=1)

    def project(self, delta, eps):
        """Clip every feature to eps times its radius."""
        radius = self._radii(delta.shape[1:]) * per_sample(eps, delta)
        return ops.minimum(ops.maximum(delta, -radius), radius)

    def steepest(self, grad):
        """Sign of the gradient times the radius."""
        return ops.sign(grad) * self._radii(grad.shape[1:])

    def sample(self, seeds, shape, eps):
        """Points drawn uniformly from the ball."""
        unit = 2.0 * draws.uniform(seeds, tuple(shape)) - 1.0
        return unit * self._radii(shape) * per_sample(eps, unit)

    def _radii(self, shape):
        return np.reshape(_shaped("radii", self.radii, shape), (1, *shape))

    def __eq__(self, other) -> bool:
        return isinstance(other, Box) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self):
        return self.radii.shape, self.radii.tobytes()

    def __repr__(self) -> str:
        shown = self.radii.tolist() if self.radii.size <= 4 else f"<{self.radii.size} values>"
        return f"Box(radii={shown})"


def _shaped(name: str, value: np.ndarray, shape) -> np.ndarray:
    """One value for each feature of a sample of this shape, flat."""
    shape = tuple(shape)
    if value.size == math.prod(shape):
        return value.reshape(-1)
    try:
        return np.broadcast_to(value, shape).reshape(-1)
    except ValueError:
        raise ValueError(f"`{name}` must fit samples of shape {shape}. Received: shape={value.shape}") from None


NORMS = {"linf": Linf, "l2": L2, "l1": L1}


@checked
def get(norm: Norm | str) -> Norm:
    """Return a norm object from its name ("linf", "l2", "l1") or itself."""
    if isinstance(norm, Norm):
        return norm
    return NORMS[checks.one_of("norm", norm.lower() if isinstance(norm, str) else norm, NORMS)]()
