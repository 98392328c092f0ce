"""How an iterative attack turns the gradients of its steps into a direction."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from keras import ops

from kerasdef import checks
from kerasdef.annotations import check_fields
from kerasdef.norms import L1, per_sample


@dataclass(frozen=True)
class Direction(ABC):
    """A rule from gradients to a direction; its memory goes in and comes out."""

    def init(self, x) -> dict:
        """Memory before the first step: a dict of tensors of shape (n, ...)."""
        return {}

    def look_ahead(self, now, memory: dict, length):
        """Point whose gradient is taken: `now` itself unless a rule says otherwise.

        Args:
            now: Tensor of shape (n, ...), the current point.
            memory: What `update` returned last.
            length: Length of a step, of shape (n,).
        """
        return now

    @abstractmethod
    def update(self, grad, memory: dict):
        """Return `(direction, memory)` for a gradient of shape (n, ...)."""


@dataclass(frozen=True)
class Plain(Direction):
    """The gradient itself."""

    def update(self, grad, memory: dict):
        """Return `(direction, memory)` for a gradient of shape (n, ...)."""
        return grad, memory


@dataclass(frozen=True)
class Momentum(Direction):
    """Sum of the gradients, each divided by its L1 norm, with decay.

    References: Dong et al., 2018 (Algorithm 1, equation 6).
    """

    decay: float = 1.0  # paper: mu = 1.0

    def __post_init__(self):
        check_fields(self)
        checks.real("decay", self.decay, low=0.0)

    def init(self, x) -> dict:
        """A velocity of zeros."""
        return {"velocity": ops.zeros_like(x)}

    def update(self, grad, memory: dict):
        """Return `(direction, memory)` for a gradient of shape (n, ...)."""
        size = ops.maximum(L1().size(grad), 1e-30)
        velocity = self.decay * memory["velocity"] + grad / per_sample(size, grad)
        return velocity, {"velocity": velocity}


@dataclass(frozen=True)
class Nesterov(Momentum):
    """Momentum whose gradients are taken where the momentum alone would lead.

    The momentum of the look-ahead is divided by the mean, not by the sum of |gradient| as in equation 6: so the
    authors' code does, and in images the look-ahead would otherwise be nothing. Look-ahead points are not clipped.

    References: Lin et al., 2020, https://arxiv.org/abs/1908.06281 (section 3.2, equations 6 and 7).
    """

    def look_ahead(self, now, memory: dict, length):
        """Point whose gradient is taken: a step along the decayed velocity."""
        d = math.prod(now.shape[1:])
        return now + per_sample(length * (self.decay * d), now) * memory["velocity"]
