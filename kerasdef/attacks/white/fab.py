"""FAB: projections on the linearized boundary that stay in the box and near the clean input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from keras import ops

from kerasdef import checks, losses, norms
from kerasdef.attacks.engine import StepAttack, logits_at, select
from kerasdef.attacks.parts import boundaries
from kerasdef.attacks.parts.box_projections import project
from kerasdef.goals import Hit
from kerasdef.norms import Linf, Norm, per_sample

_SEARCH = 3  # paper: steps of the final search
_AIM = 1e-3  # of the clean margin: so far behind the boundary the final search aims, beyond the noise of float32
_LEAST = 1e-8  # keeps the share of the clean input finite (authors' code)
_RESTART = 0x85EBCA6B  # odd: every run has a seed of its own


def _or_zero(value):
    """Values with 0 in the place of those that are not finite."""
    return ops.where(ops.isfinite(value), value, 0.0)


@dataclass(frozen=True, repr=False)
class FAB(StepAttack):
    """Fast adaptive boundary attack: minimal-norm, or with `eps` the part of AutoAttack that it is.

    Every step projects the current point and the clean one on a linearized boundary, within the bounds, and goes
    between the two, a little further than the boundary; an adversarial point is pulled back towards the clean one.
    Where `eps` is given, only points within it count, and a sample is done with its first. Samples on which it fails
    are returned unchanged.

    Args:
        norm: "linf", "l2" or "l1".
        eps: Radius in input units, or one for each sample of shape (n,); None looks for the smallest change.
        steps: Linearizations in a run, at least 1.
        restarts: Runs, at least 1 (for each target): the first from x, others from points around it.
        targets: Classes that are gone for in turn, the most likely of the clean input first; at most all but the
            label. A step then has one backward pass. None looks at the boundaries of all classes in every step, one
            backward pass for each. AutoAttack takes 9. With a target of its own (`Targeted`) there is one boundary.
        alpha_max: Largest share of the clean input's projection in a step, in [0, 1] (paper: 0.1).
        eta: Factor by which moves to the boundary are lengthened, at least 1 (paper: 1.05).
        beta: Share of the way that an adversarial point keeps, in (0, 1) (paper: 0.9).
        goal: What the attacker wants.
        bounds: Valid range of an input value.
        samples: Draws of a random model that a gradient averages.

    Example:
    >>> x_adv = FAB(norm="l2", targets=9)(model, x, y)
    >>> x_adv = FAB(norm="linf", eps=8 / 255, targets=9)(model, x, y)

    References: Croce and Hein, 2020, https://arxiv.org/abs/1907.02044 (Algorithm 1); targets and the use with `eps`:
    Croce and Hein, 2020, https://arxiv.org/abs/2003.01690 (section 5).
    """

    arguments: ClassVar[tuple[str, ...]] = ("eps", "alpha_max", "eta", "beta")

    norm: Norm | str = field(default_factory=Linf)
    eps: float | tuple[float, ...] | None = None
    steps: int = 100
    restarts: int = 1
    targets: int | None = None
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "norm", boundaries.supported(self.norm))
        if self.eps is not None:
            object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        checks.positive_int("steps", self.steps)
        checks.positive_int("restarts", self.restarts)
        if self.targets is not None:
            checks.positive_int("targets", self.targets)
        checks.real("alpha_max", self.alpha_max, low=0.0, high=1.0)
        checks.real("eta", self.eta, low=1.0)
        checks.share("beta", self.beta)

    @property
    def kind(self) -> str:
        """ "minimal", or "budget" where `eps` is given."""
        return "minimal" if self.eps is None else "budget"

    def _runs(self, classes: int | None = None) -> int:
        """Runs of a sample; `classes` is how many there are to go for."""
        if self.targets is None or isinstance(self.goal, Hit):
            return self.restarts
        return self.restarts * (self.targets if classes is None else classes)

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return self.steps * self._runs() + (_SEARCH if self.eps is None else 0)

    @property
    def look_every(self) -> int:
        """Steps between two looks: about ten where samples leave early, else as they end together."""
        parts = max(1, self.steps_in_all // 10) if self.eps is not None else self._runs()
        return -(-self.steps_in_all // parts)

    def init(self, model, x, y, seeds, parameters: dict) -> dict:
        """State before the first step."""
        logits = logits_at(model, x, seeds, 0)
        others = max(1, logits.shape[-1] - self.goal.unwanted)
        low, high = self.bounds
        zero = ops.cast(ops.zeros_like(y), logits.dtype)
        state = {
            "classes": boundaries.rivals(self.goal, logits, y, min(self.targets or others, others)),
            "now": x,
            "limit": parameters.get("eps", self.norm.size(ops.maximum(x - low, high - x))),
            "size": zero + np.inf,
            "run": ops.zeros_like(y),
            "t": ops.zeros_like(y),
            "adv": x,
            "done": zero > 0,
        }
        if self.eps is None:
            clean = _or_zero(self.goal.value(losses.margin, logits, y))
            # of the final search: clean margin; share of the way to "adv" known not to do, margin there and at "adv"
            none = ops.zeros_like(clean)
            state |= {"clean": clean, "short": none, "before": clean, "behind": none}
        return state

    def _facing(self, state: dict):
        """The classes whose boundaries count in this step: (n, c)."""
        classes = state["classes"]
        if self.targets is None:
            return classes
        at = ops.minimum(state["run"] // self.restarts, classes.shape[1] - 1)
        return ops.take_along_axis(classes, ops.expand_dims(at, 1), axis=1)

    def step(self, model, x, y, state: dict) -> dict:
        """Project and judge the point moved to; at the end of a run begin the next, or the final search."""
        now, runs = state["now"], self._runs(state["classes"].shape[1])
        values, slopes, _ = boundaries.linearize(self, model, y, self._facing(state), now, state)
        moved = self._move(x, state, *boundaries.nearest(self.norm, values, slopes))
        searching = state["run"] >= runs
        if self.eps is None:
            share = self._share(state)
            moved = select(searching, x + per_sample(share, x) * (state["adv"] - x), moved)
        moved = ops.clip(moved, *self.bounds)

        logits = logits_at(model, moved, state["seed"], state["moves"])
        reached = boundaries.crossed(self.goal, logits, y)
        way = moved - x
        size = self.norm.size(way)
        better = ops.logical_and(reached, ops.logical_and(size < state["size"], size <= state["limit"]))
        best = ops.where(better, size, state["size"])
        found = best < np.inf

        t, run = state["t"] + 1, state["run"]
        over = t >= ops.where(searching, _SEARCH, self.steps)
        run = run + ops.cast(over, "int32")
        state = state | {
            "now": x + per_sample(ops.where(reached, state["beta"], 1.0), x) * way,
            "adv": select(better, moved, state["adv"]),
            "size": best,
            "t": ops.where(over, 0, t),
            "run": run,
        }
        if runs > 1:
            state["now"] = self._restart(x, state, over)
        if self.eps is not None:
            return state | {"done": ops.logical_or(state["done"], ops.logical_or(found, run >= runs))}

        margin = _or_zero(self.goal.value(losses.margin, logits, y))
        missed = ops.logical_and(searching, ops.logical_not(reached))
        scaled = ops.where(searching, state["short"] / share, 0.0)  # its share of the way to the new "adv"
        last = runs + ops.cast(found, "int32")  # without a point there is nothing to search
        return state | {
            "short": ops.where(missed, share, ops.where(better, scaled, state["short"])),
            "before": ops.where(missed, margin, state["before"]),
            "behind": ops.where(better, margin, state["behind"]),
            "done": ops.logical_or(state["done"], run >= last),
        }

    def _move(self, x, state: dict, gap, slope):
        """Between the projections of the current and of the clean point on the plane gap + slope * (z - now) = 0."""
        now, eta = state["now"], per_sample(state["eta"], x)
        delta = now - x
        along = ops.sum(norms.flatten(slope * delta), axis=1)
        both = project(
            self.norm,
            ops.concatenate([now, x]),
            ops.concatenate([slope, slope]),
            ops.concatenate([-gap, along - gap]),
            self.bounds,
        )
        here, clean = ops.split(both, 2)
        length, clean_length = ops.split(ops.maximum(self.norm.size(both), _LEAST * self.span), 2)
        alpha = per_sample(ops.minimum(length / (length + clean_length), state["alpha_max"]), x)
        return x + (1.0 - alpha) * (delta + eta * here) + alpha * eta * clean

    def _share(self, state: dict):
        """Share of the way from x to "adv" at which a line through the margins of two points meets the boundary."""
        aim = _AIM * ops.abs(state["clean"])
        part = (aim - state["before"]) / ops.maximum(state["behind"] - state["before"], 1e-12)
        return state["short"] + (1.0 - state["short"]) * ops.clip(part, 0.0, 1.0)

    def _restart(self, x, state: dict, over):
        """Starts of the next runs: x for a new target, else a point of half the best size; drawn where needed only."""

        def fresh():
            start = x
            if self.restarts > 1:
                number = ops.cast(state["run"], "uint32") * ops.convert_to_tensor(np.uint32(_RESTART))
                radius = ops.minimum(state["size"], state["limit"]) / 2
                drawn = self.norm.sample(ops.bitwise_xor(state["seed"], number), x.shape[1:], radius)
                again = state["run"] % self.restarts > 0
                start = select(again, ops.clip(x + drawn, *self.bounds), x)
            return select(over, start, state["now"])

        return ops.cond(ops.any(over), fresh, lambda: state["now"])
