"""Fast minimum-norm attack: gradient steps in a ball that shrinks around adversarial points and grows otherwise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from keras import ops

from kerasdef import checks, losses
from kerasdef.attacks.engine import StepAttack, logits_at, select
from kerasdef.attacks.parts import boundaries
from kerasdef.norms import L1, L2, Linf, Norm, per_sample

# Euclidean length of the first step by default, as a share of the span of the bounds; in Linf times the root of the
# number of features. The authors' code has 1 in every norm: in Linf many steps then cross no ball of a large input.
_STEP = {Linf: 0.5, L2: 1.0, L1: 1.0}
_ACROSS = L2()  # steps have this length in every norm (paper, Algorithm 1)


@dataclass(frozen=True, repr=False)
class FMN(StepAttack):
    """Minimal-norm attack: raises the margin by normalized steps while the radius follows the boundary.

    Until a sample has an adversarial point its radius is at least the distance to the linearized boundary; from then
    on it shrinks by a factor at adversarial points and grows by it at others. Step and factor fall along a cosine.
    Samples on which it fails are returned unchanged.

    Args:
        norm: "linf", "l2" or "l1".
        steps: Gradient evaluations, at least 1.
        step_size: Euclidean length of the first step in input units, above 0. None: in L2 and L1 the span of the
            bounds (paper: 1 for inputs in [0, 1]); in Linf half the diagonal of the box that the bounds make.
        last_step_size: Euclidean length that the steps fall to, in input units, at least 0 and at most `step_size`.
            None: a hundredth of the first (as in the authors' code).
        gamma: First factor of the radius, in (0, 1) (paper: 0.05).
        last_gamma: Factor that it falls to, at least 0 (authors' code: 0.001).
        goal: What the attacker wants.
        bounds: Valid range of an input value.
        samples: Draws of a random model that a gradient averages.

    Example:
    >>> x_adv = FMN(norm="l1", steps=200)(model, x, y)

    References: Pintor et al., 2021, https://arxiv.org/abs/2102.12827 (Algorithm 1). There the
    radius of a sample without an adversarial point is the linearized distance alone, which falls short where the
    bounds stop features: iterates may then creep up to a boundary that they never cross. Here it grows as well.
    """

    kind: ClassVar[str] = "minimal"
    arguments: ClassVar[tuple[str, ...]] = ("step_size", "last_step_size", "gamma", "last_gamma")

    norm: Norm | str = field(default_factory=Linf)
    steps: int = 100
    step_size: float | None = None
    last_step_size: float | None = None
    gamma: float = 0.05
    last_gamma: float = 0.001

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "norm", boundaries.supported(self.norm))
        checks.positive_int("steps", self.steps)
        if self.step_size is not None:
            checks.real("step_size", self.step_size, low=0.0, open_low=True)
        if self.last_step_size is not None:
            checks.real("last_step_size", self.last_step_size, low=0.0, high=self.step_size or math.inf)
        checks.share("gamma", self.gamma)
        checks.real("last_gamma", self.last_gamma, low=0.0, high=self.gamma)

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return self.steps

    def init(self, model, x, y, seeds, parameters: dict) -> dict:
        """State before the first step."""
        low, high = self.bounds
        widest = self.norm.size(ops.maximum(x - low, high - x))
        return {
            "now": x,
            "eps": ops.zeros_like(widest),
            "widest": widest,  # no point of the box is further away
            "size": ops.full_like(widest, np.inf),
            "adv": x,
            "done": ops.zeros_like(widest, dtype="bool"),
        }

    def _lengths(self, x, state: dict):
        """Euclidean lengths of the first and of the last step, of shape (n,)."""
        across = math.sqrt(math.prod(x.shape[1:])) if isinstance(self.norm, Linf) else 1.0
        default = ops.full_like(state["eps"], _STEP[type(self.norm)] * across * self.span)
        first = default if self.step_size is None else state["step_size"]
        return first, first / 100 if self.last_step_size is None else ops.minimum(state["last_step_size"], first)

    def _remember(self, x, y, state: dict, logits):
        """Keep the current point where it is adversarial and nearer than the best so far."""
        reached = boundaries.crossed(self.goal, logits, y)
        size = self.norm.size(state["now"] - x)
        better = ops.logical_and(reached, size < state["size"])
        kept = {
            "adv": select(better, state["now"], state["adv"]),
            "size": ops.where(better, size, state["size"]),
        }
        return reached, size, kept

    def step(self, model, x, y, state: dict) -> dict:
        """Update the radius, raise the margin by one step, and return to the ball and the bounds."""

        def objective(call, z):
            logits = call(z)
            return self.goal.value(losses.margin, logits, y), (logits,)

        now = state["now"]
        value, (logits,), grad = self.gradient(model, objective, now, state)
        reached, size, kept = self._remember(x, y, state, logits)

        time = ops.cast(state["moves"], "float32") / self.steps
        share = 0.5 * (1.0 + ops.cos(math.pi * time))
        gamma = state["last_gamma"] + (state["gamma"] - state["last_gamma"]) * share
        first, last = self._lengths(x, state)
        length = last + (first - last) * share

        nearer = ops.minimum(state["eps"] * (1.0 - gamma), kept["size"])
        boundary = size + ops.abs(value) / boundaries.dual_size(self.norm, grad)
        further = state["eps"] * (1.0 + gamma)
        further = ops.where(kept["size"] < np.inf, further, ops.maximum(further, boundary))
        eps = ops.minimum(ops.where(reached, nearer, further), state["widest"])

        moved = now + per_sample(length, x) * _ACROSS.steepest(grad)
        moved = ops.clip(x + self.norm.project(moved - x, eps), *self.bounds)
        return state | kept | {"now": moved, "eps": eps}

    def judge(self, model, x, y, state: dict) -> dict:
        """Look at the newest point."""
        _, _, kept = self._remember(x, y, state, logits_at(model, state["now"], state["seed"], state["moves"]))
        return state | kept | {"done": state["moves"] >= self.steps}
