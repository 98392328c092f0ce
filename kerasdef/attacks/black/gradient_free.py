"""Projected ascent on gradients that are estimated from pairs of queries: NES and SPSA."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from kerasdef import checks, losses, norms
from kerasdef import random as draws
from kerasdef.attacks.engine import spread
from kerasdef.attacks.parts.inherited import arguments_of_base
from kerasdef.attacks.queries import QueryAttack, add_up, on_rows, pieces, tall
from kerasdef.norms import Linf, Norm

_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam's defaults (Kingma and Ba, 2015)


@dataclass(frozen=True, repr=False)
class GradientFreeAttack(QueryAttack):
    """Projected ascent along gradients estimated from differences of outputs at x + u and x - u.

    Each step costs 2 * pairs + 1 queries: the last is a look at the new point. The best point met is returned.

    Args:
        eps: Radius in input units (write `8 / 255`), at least 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or a `Norm`.
        pairs: Directions u that an estimate averages over; each is asked for in both directions.
        radius: Length of u in each feature, as a share of the range of the bounds.
        step_size: Length of a step in input units, above 0. None: `relative_step * eps`.
        relative_step: Length of a step as a multiple of `eps`, used where `step_size` is None.
        loss: "margin", "cross_entropy", or a function of (logits, y) that gives values of shape (n,).
        queries: Most queries for each sample, at least 1.
        samples: Passes of a random model that are averaged for one answer, at least 1; each is a query.
        goal: What the attacker wants.
        bounds: Valid range of an input value.
    """

    least: ClassVar[int] = 3  # a pair, and a look at the new point

    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)
    pairs: int = 25
    radius: float = 1e-3
    step_size: float | None = None
    relative_step: float = 0.2
    loss: Callable | str = "margin"
    queries: int = field(default=5000, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        object.__setattr__(self, "norm", norms.get(self.norm))
        checks.positive_int("pairs", self.pairs)
        checks.real("radius", self.radius, low=0.0, high=1.0, open_low=True)
        if self.step_size is not None:
            checks.real("step_size", self.step_size, low=0.0, open_low=True)
        checks.real("relative_step", self.relative_step, low=0.0, open_low=True)
        if isinstance(self.loss, str):
            checks.one_of("loss", self.loss, losses.LOSSES)

    @property
    def climbed(self) -> Callable:
        """Loss whose value the answers are given in."""
        return losses.get(self.loss)

    @abstractmethod
    def draw(self, seeds, shape: tuple[int, ...]) -> np.ndarray:
        """Directions of shape (m, *shape), one for each seed."""

    @abstractmethod
    def ascent(self, grad, part: dict) -> np.ndarray:
        """Direction of a step, of size 1 or less in the norm, from an estimate; writes the memory to the state."""

    def init(self, x, seeds, value) -> dict:
        """State before the first round."""
        eps = spread("eps", self.eps, len(x))
        return {"done": eps == 0, "eps": eps, "now": np.array(x), "best": value, "m": np.zeros_like(x)}

    def estimate(self, ask, part, pairs) -> np.ndarray:
        """Gradients of the value at the current points.

        Args:
            ask: A `Queries`.
            part: The state of the samples.
            pairs: Pairs of queries for each sample, of shape (n,).
        """
        now, shape = part["now"], part["x"].shape[1:]
        radius = self.radius * self.span
        total = np.zeros_like(now)
        for owner, number in pieces(pairs, 2 * now[0].size):
            seeds = draws.branch(part["seed"][owner], part["moves"][owner], number)
            u = self.draw(seeds, shape)
            ends = np.concatenate([now[owner] + radius * u, now[owner] - radius * u])
            rows = part["row"][owner]
            value, _ = ask(np.concatenate([rows, rows]), np.clip(ends, *self.bounds).astype("float32", copy=False))
            ahead, behind = value[: len(u)], value[len(u) :]
            known = np.isfinite(ahead) & np.isfinite(behind)
            change = (np.where(known, ahead, 0) - np.where(known, behind, 0)) / (2 * radius)
            add_up(total, owner, u * tall(change, u))
        return total / tall(pairs, total).astype("float32")

    def round(self, ask, part) -> None:
        """One step of each sample."""
        x, eps = part["x"], part["eps"]
        pairs = np.minimum(self.pairs, (ask.left(part["row"]) - 1) // 2)
        direction = self.ascent(self.estimate(ask, part, pairs) * np.float32(self.span), part)
        length = self.relative_step * eps if self.step_size is None else np.full_like(eps, self.step_size)
        moved = np.clip(part["now"] + tall(length, x) * direction, *self.bounds)
        new = np.clip(x + on_rows(self.norm.project, moved - x, eps), *self.bounds)  # again: float noise
        value, reached = ask(part["row"], new)
        better = reached | (value > part["best"])
        part["adv"][better], part["best"][better] = new[better], value[better]
        part["now"], part["reached"] = new, reached
        part["done"] |= reached


@arguments_of_base
@dataclass(frozen=True, repr=False)
class NES(GradientFreeAttack):
    """Natural evolution strategies: signs of gradients estimated along normal directions, with momentum.

    Args: see `GradientFreeAttack`.
        momentum: Share of the last direction that is kept, at least 0 and at most 1.

    References: Ilyas et al., 2018, https://arxiv.org/abs/1804.08598 (Algorithm 1 and section 4: 50 queries for an
    estimate, sigma 0.001, steps of 0.01 for a radius of 0.05, momentum 0.9). The paper climbs the cross-entropy and
    shortens its steps on a plateau; here it is the margin, and the steps stay.
    """

    momentum: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        checks.real("momentum", self.momentum, low=0.0, high=1.0)

    def draw(self, seeds, shape):
        """Standard normal directions."""
        return draws.normal_array(seeds, shape)

    def ascent(self, grad, part):
        """Steepest step along the mean of the estimates so far."""
        part["m"] = np.float32(self.momentum) * part["m"] + np.float32(1 - self.momentum) * grad
        return on_rows(self.norm.steepest, part["m"])


@arguments_of_base
@dataclass(frozen=True, repr=False)
class SPSA(GradientFreeAttack):
    """Simultaneous perturbation stochastic approximation: Adam on gradients estimated along random signs.

    Args: see `GradientFreeAttack`.

    References: Uesato et al., 2018, https://arxiv.org/abs/1802.05666 (Algorithm 1 and appendix: 128 queries or more for
    an estimate, perturbations of 0.01, Adam steps of 0.01, about a third of their radius of 8/255).
    """

    pairs: int = 64
    radius: float = 1e-2
    relative_step: float = 0.3

    def init(self, x, seeds, value) -> dict:
        """State before the first round."""
        return super().init(x, seeds, value) | {"v": np.zeros_like(x)}

    def draw(self, seeds, shape):
        """Directions of 1 and -1."""
        return np.sign(draws.uniform_array(seeds, shape) - np.float32(0.5))

    def ascent(self, grad, part):
        """A step of Adam: each feature moves by about 1, and all by 1 together in the norm."""
        t = tall(part["moves"] + 1, grad).astype("float32")
        part["m"] = np.float32(_BETA1) * part["m"] + np.float32(1 - _BETA1) * grad
        part["v"] = np.float32(_BETA2) * part["v"] + np.float32(1 - _BETA2) * np.square(grad)
        step = part["m"] / (1 - _BETA1**t) / (np.sqrt(part["v"] / (1 - _BETA2**t)) + np.float32(_TINY))
        one = on_rows(self.norm.size, np.ones((1, *grad.shape[1:]), dtype="float32"))[0]
        return (step / one).astype("float32", copy=False)
