"""The Carlini and Wagner attack: the smallest L2 change that a true binary search can find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from keras import ops

from kerasdef import checks, losses, norms
from kerasdef.attacks.engine import StepAttack, select
from kerasdef.attacks.parts.hinge import hinge, hits
from kerasdef.attacks.parts.tanh_space import adam, free, image

_WITHOUT_END = 1e10  # upper end of the search before c has been too large once (authors' code)
_STALL = 0.9999  # a loss above this share of the last look's has stalled (authors' code)
_LOOK = 10  # fewest steps between two looks: a few steps of Adam may rise before they fall


@dataclass(frozen=True, repr=False)
class CarliniWagner(StepAttack):
    """Minimal-norm attack in L2: minimizes |delta|^2 + c * max(confidence - margin, 0) by Adam in tanh space.

    Here delta is measured in spans of the bounds, so that c means the same in any range of inputs. Each sample has its
    own binary search over c and its own early abort: when its loss has not fallen by 0.01 % in a tenth of the steps,
    the next c begins. Samples on which it fails are returned unchanged.

    Args:
        confidence: Margin that the adversarial class must reach, in logits; at least 0.
        steps: Adam steps for each c, at most (paper: 10,000; 1,000 is usual).
        binary_search_steps: Values of c that are tried (authors' code: 9).
        initial_c: First c (authors' code: 0.001).
        learning_rate: Learning rate of Adam, above 0 (authors' code: 0.01).
        abort_early: Whether to go on to the next c when the loss stalls.
        goal: What the attacker wants.
        bounds: Valid range of an input value, `(low, high)`.
        samples: Draws of a random model over which every gradient is averaged, at least 1.

    References: Carlini and Wagner, 2017, https://arxiv.org/abs/1608.04644 (section V.B and VI.A).
    The range of tanh is 5 % wider than the bounds, and its images are clipped: in the authors' code features at a bound
    do not move in the first hundreds of steps.
    """

    norm: ClassVar[norms.Norm] = norms.L2()
    kind: ClassVar[str] = "minimal"
    arguments: ClassVar[tuple[str, ...]] = ("confidence", "initial_c", "learning_rate")

    confidence: float = 0.0
    steps: int = 1000
    binary_search_steps: int = 9
    initial_c: float = 1e-3
    learning_rate: float = 1e-2
    abort_early: bool = True

    def __post_init__(self):
        super().__post_init__()
        checks.real("confidence", self.confidence, low=0.0)
        checks.positive_int("steps", self.steps)
        checks.positive_int("binary_search_steps", self.binary_search_steps)
        checks.real("initial_c", self.initial_c, low=0.0, open_low=True)
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return self.steps * self.binary_search_steps

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
            "search": ops.cast(none, "int32"),
            "c": parameters["initial_c"],
            "low": none,
            "high": none + _WITHOUT_END,
            "found": none > 0,
            "last": none + np.inf,
            "size": none + np.inf,
            "adv": x,
            "done": none > 0,
        }

    def step(self, model, x, y, state: dict) -> dict:
        """One Adam step of every sample, and the next c where this one is through."""
        c = state["c"]

        def objective(call, w):
            z = image(w, self.bounds)
            logits = call(z)
            gain = self.goal.value(losses.margin, logits, y)
            size = ops.sum(ops.square(norms.flatten(z - x) / self.span), axis=1)
            reached = self.goal.reached(logits, y)
            return size + c * hinge(reached, gain, state["confidence"]), (z, size, gain, ops.cast(reached, gain.dtype))

        value, (z, size, gain, reached), grad = self.gradient(model, objective, state["w"], state)
        hit = hits(reached, gain, state["confidence"])
        better = ops.logical_and(hit, size < state["size"])
        found = ops.logical_or(state["found"], hit)

        t = state["t"] + 1
        w, m, v = adam(state["w"], grad, state["m"], state["v"], t, state["learning_rate"])

        looks = t % max(_LOOK, self.steps // 10) == 0
        stalled = ops.logical_and(looks, value > _STALL * state["last"])
        over = t >= self.steps
        if self.abort_early:
            over = ops.logical_or(over, stalled)

        high = ops.where(ops.logical_and(over, found), ops.minimum(state["high"], c), state["high"])
        low = ops.where(ops.logical_and(over, ops.logical_not(found)), ops.maximum(state["low"], c), state["low"])
        following = ops.where(high < _WITHOUT_END, (low + high) / 2, c * 10)
        search = state["search"] + ops.cast(over, "int32")
        return {
            "w": select(over, free(x, self.bounds), w),
            "m": select(over, ops.zeros_like(m), m),
            "v": select(over, ops.zeros_like(v), v),
            "t": ops.where(over, 0, t),
            "search": search,
            "c": ops.where(over, following, c),
            "low": low,
            "high": high,
            "found": ops.logical_and(found, ops.logical_not(over)),
            "last": ops.where(over, np.inf, ops.where(looks, value, state["last"])),
            "size": ops.where(better, size, state["size"]),
            "adv": select(better, z, state["adv"]),
            "done": search >= self.binary_search_steps,
        }
