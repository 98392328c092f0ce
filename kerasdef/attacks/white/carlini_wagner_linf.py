"""The Carlini and Wagner attack in Linf: a bound on every change that shrinks as long as the attack succeeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from keras import ops

from kerasdef import checks, losses, norms
from kerasdef.attacks.engine import StepAttack, select
from kerasdef.attacks.parts.hinge import hinge, hits
from kerasdef.attacks.parts.tanh_space import adam, free, image

_SMALLEST = 1 / 256  # of the range: no smaller tau is tried (authors' code)
_NEAR = 1e-4  # a loss below this share of c has nothing left of either term (authors' code)
_STALL = 0.9999  # a loss above this share of the last look's has stalled (authors' L2 code)
_LOOK = 10  # fewest steps between two looks: a few steps of Adam may rise before they fall


@dataclass(frozen=True, repr=False)
class CarliniWagnerLinf(StepAttack):
    """Minimal-norm attack in Linf: minimizes c * max(confidence - margin, 0) + sum of max(|delta| - tau, 0) by Adam.

    Here delta and tau are measured in spans of the bounds. Every sample has its own tau and c. A success makes tau
    `shrink` times the largest change, and Adam begins anew at the best point; a failure multiplies c by `growth`, until
    c exceeds `largest_c`. What is returned is the smallest adversarial change of all steps, also of failed ones;
    samples without any are returned unchanged.

    Args:
        confidence: Margin that the adversarial class must reach, in logits; at least 0.
        steps: Adam steps for each pair of tau and c, at most (authors' code: 1,000).
        initial_c: First c (authors' code: 0.00001).
        largest_c: Last c, about (authors' code: 20).
        growth: Factor on c after a failure, above 1 (paper: 2).
        shrink: Factor on tau after a success, in (0, 1) (paper: 0.9).
        learning_rate: Learning rate of Adam, above 0, in tanh space (authors' code: 0.005).
        abort_early: Whether a loss that has not fallen by 0.01 % in a tenth of the steps is a failure at once.
        goal: What the attacker wants.
        bounds: Valid range of an input value, `(low, high)`.
        samples: Draws of a random model over which every gradient is averaged, at least 1.

    References: Carlini and Wagner, 2017, https://arxiv.org/abs/1608.04644 (section VI.C).
    """

    norm: ClassVar[norms.Norm] = norms.Linf()
    kind: ClassVar[str] = "minimal"
    arguments: ClassVar[tuple[str, ...]] = (
        "confidence",
        "initial_c",
        "largest_c",
        "growth",
        "shrink",
        "learning_rate",
    )

    confidence: float = 0.0
    steps: int = 1000
    initial_c: float = 1e-5
    largest_c: float = 20.0
    growth: float = 2.0
    shrink: float = 0.9
    learning_rate: float = 5e-3
    abort_early: bool = True

    def __post_init__(self):
        super().__post_init__()
        checks.real("confidence", self.confidence, low=0.0)
        checks.positive_int("steps", self.steps)
        checks.real("initial_c", self.initial_c, low=0.0, open_low=True)
        checks.real("largest_c", self.largest_c, low=self.initial_c)
        checks.real("growth", self.growth, low=1.0, open_low=True)
        checks.share("shrink", self.shrink)
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take: c only grows and tau only shrinks."""
        failures = math.floor(math.log(self.largest_c / self.initial_c, self.growth)) + 2
        successes = math.ceil(math.log(_SMALLEST, self.shrink)) + 1
        return self.steps * (failures + successes)

    @property
    def look_every(self) -> int:
        """Steps between two looks at which samples are done."""
        return min(50, self.steps)

    def init(self, model, x, y, seeds, parameters: dict) -> dict:
        """State before the first step."""
        w = free(x, self.bounds)
        none = ops.zeros_like(ops.cast(y, "float32"))
        return {
            "w": w,
            "m": ops.zeros_like(w),
            "v": ops.zeros_like(w),
            "t": ops.cast(none, "int32"),
            "c": parameters["initial_c"],
            "tau": none + 1.0,
            "last": none + np.inf,
            "size": none + np.inf,
            "adv": x,
            "done": none > 0,
        }

    def step(self, model, x, y, state: dict) -> dict:
        """One Adam step of every sample, and the next tau or c where this one is through."""
        c, tau = state["c"], state["tau"]

        def objective(call, w):
            z = image(w, self.bounds)
            logits = call(z)
            gain = self.goal.value(losses.margin, logits, y)
            change = ops.abs(norms.flatten(z - x)) / self.span
            beyond = ops.sum(ops.maximum(change - ops.expand_dims(tau, 1), 0.0), axis=1)
            reached = self.goal.reached(logits, y)
            value = c * hinge(reached, gain, state["confidence"]) + beyond
            return value, (z, ops.max(change, axis=1), gain, ops.cast(reached, gain.dtype))

        value, (z, size, gain, reached), grad = self.gradient(model, objective, state["w"], state)
        hit = hits(reached, gain, state["confidence"])
        better = ops.logical_and(hit, size < state["size"])
        smallest = ops.where(better, size, state["size"])
        adv = select(better, z, state["adv"])

        t = state["t"] + 1
        w, m, v = adam(state["w"], grad, state["m"], state["v"], t, state["learning_rate"])

        won = ops.logical_and(hit, ops.logical_or(value < _NEAR * c, size <= tau))
        looks = t % max(_LOOK, self.steps // 10) == 0
        lost = t >= self.steps
        if self.abort_early:
            lost = ops.logical_or(lost, ops.logical_and(looks, value > _STALL * state["last"]))
        lost = ops.logical_and(lost, ops.logical_not(won))
        over = ops.logical_or(won, lost)

        c = ops.where(lost, c * state["growth"], c)
        tau = ops.where(won, state["shrink"] * ops.minimum(tau, smallest), tau)
        through = ops.logical_or(c > state["largest_c"], tau < _SMALLEST)
        return {
            "w": select(over, free(adv, self.bounds), w),  # adv is x until there is something better
            "m": select(over, ops.zeros_like(m), m),
            "v": select(over, ops.zeros_like(v), v),
            "t": ops.where(over, 0, t),
            "c": c,
            "tau": tau,
            "last": ops.where(over, np.inf, ops.where(looks, value, state["last"])),
            "size": smallest,
            "adv": adv,
            "done": through,
        }
