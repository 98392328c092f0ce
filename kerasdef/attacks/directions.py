"""How an iterative attack turns the gradients of its steps into a direction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from keras import ops

from kerasdef import checks
from kerasdef.norms import L1, per_sample


@dataclass(frozen=True)
class Direction(ABC):
    """A rule from gradients to a direction; its memory goes in and comes out."""

    def init(self, x) -> dict:
        """Memory before the first step: a dict of tensors of shape (n, ...)."""
        return {}

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
        checks.real("decay", self.decay, low=0.0)

    def init(self, x) -> dict:
        """A velocity of zeros."""
        return {"velocity": ops.zeros_like(x)}

    def update(self, grad, memory: dict):
        """Return `(direction, memory)` for a gradient of shape (n, ...)."""
        size = ops.maximum(L1().size(grad), 1e-30)
        velocity = self.decay * memory["velocity"] + grad / per_sample(size, grad)
        return velocity, {"velocity": velocity}
