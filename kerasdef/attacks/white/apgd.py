"""Auto-PGD: projected gradient ascent that chooses its own step sizes, from several starts or to several classes.

Every run is a fixed table of positions: where a phase opens, where a checkpoint stands, where it ends. Samples enter
the pool at different times, so each reads its own row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from keras import ops

from kerasdef import checks, losses, norms
from kerasdef import random as draws
from kerasdef.attacks.engine import StepAttack, joined, logits_at, select
from kerasdef.goals import Hit
from kerasdef.norms import L1, Linf, Norm

_MOMENTUM = 0.75  # paper: alpha, the share of the gradient step
_RESTART = 0x85EBCA6B  # odd: every run has a seed of its own
_HALVINGS = 24  # of an interval: what is left is the rounding of float32
TARGETED = "targeted_dlr"


def project_l1(x, delta, eps, bounds: tuple[float, float]):
    """Nearest perturbation in the L1 ball that also keeps x + delta within the bounds.

    The answer is sign(delta) * clip(|delta| - shift, 0, room), where room is the way to the bound. The sum of its
    sizes falls piecewise linearly with the shift: bisection brackets it, and the last piece is solved exactly.

    Args:
        x: Tensor of shape (n, ...), within `bounds`.
        delta: Tensor of the shape of x.
        eps: Radii of shape (n,).
        bounds: Valid range of an input value.

    References: Croce and Hein, 2021, https://arxiv.org/abs/2103.01208 (proposition 2.1; it sorts the break points).
    """
    flat, eps = norms.flatten(delta), ops.expand_dims(eps, 1)
    size = ops.abs(flat)
    room = norms.flatten(ops.where(delta > 0, bounds[1] - x, x - bounds[0]))

    def shrunk(shift):
        return ops.minimum(ops.maximum(size - shift, 0.0), room)

    def total(shift):
        return ops.sum(shrunk(shift), axis=1, keepdims=True)

    def halve(i, bracket):
        low, high, most, least = bracket
        middle = (low + high) / 2
        found = total(middle)
        above = found > eps
        low, high = ops.where(above, middle, low), ops.where(above, high, middle)
        return low, high, ops.where(above, found, most), ops.where(above, least, found)

    high = ops.max(size, axis=1, keepdims=True)
    low = ops.zeros_like(high)
    inside = total(low) <= eps
    low, high, most, least = ops.fori_loop(0, _HALVINGS, halve, (low, high, total(low), low))
    share = (most - eps) / ops.maximum(most - least, 1e-30)
    shift = ops.where(inside, 0.0, low + ops.clip(share, 0.0, 1.0) * (high - low))
    return ops.reshape(ops.sign(flat) * shrunk(shift), ops.shape(delta))


@dataclass(frozen=True)
class _Rule(ABC):
    """How a run raises the loss: its phases and checkpoints, its start, its steps. Memory is of one value a sample."""

    norm: Norm
    bounds: tuple[float, float]

    @abstractmethod
    def phases(self, steps: int) -> list[tuple[float, int]]:
        """Pairs (factor of the radius, steps); the last factor is 1."""

    @abstractmethod
    def windows(self, steps: int) -> list[int]:
        """Steps from each checkpoint of a phase to the next."""

    @abstractmethod
    def start(self, x, seeds, eps):
        """Random first point."""

    @abstractmethod
    def init(self, x, eps) -> dict:
        """Memory of the right shapes."""

    @abstractmethod
    def adapt(self, memory, x, eps, opens, window, value, best, top):
        """Return `(memory, back)` after a gradient: new step sizes, and which samples go back to the best point.

        Args:
            memory: Dict, as `init` made it; "size" is the length of a step.
            x: Clean inputs.
            eps: Radii of the phase.
            opens: Booleans: first point of a phase.
            window: Steps since the last checkpoint where this is one, else 0.
            value: Losses of the current points.
            best: Points of highest loss in the phase.
            top: Their losses.
        """

    @abstractmethod
    def move(self, memory, x, base, grad, opens, eps):
        """Return `(memory, moved)`: one step from `base`, into the ball of radius `eps` and the bounds."""


@dataclass(frozen=True)
class _Halving(_Rule):
    """Linf and L2: momentum, and steps that are halved at checkpoints ever closer to each other (2020, Algorithm 1)."""

    rho: float

    def phases(self, steps: int) -> list[tuple[float, int]]:
        return [(1.0, steps)]

    def windows(self, steps: int) -> list[int]:
        # paper: p_1 = 0.22, shorter by 0.03 each, at least 0.06; rounded as in the authors' code
        window, least, less = (max(1, share * steps // 100) for share in (22, 6, 3))
        found = []
        while sum(found) + window <= steps:
            found.append(window)
            window = max(window - less, least)
        return found

    def start(self, x, seeds, eps):
        drawn = self.norm.sample(seeds, x.shape[1:], ops.ones_like(eps))
        reach = eps / ops.maximum(self.norm.size(drawn), 1e-12)  # onto the sphere
        return ops.clip(x + norms.per_sample(reach, x) * drawn, *self.bounds)

    def init(self, x, eps) -> dict:
        none = ops.zeros_like(eps)
        return {
            "previous": x,
            "size": none,
            "last": none,  # loss of the point before
            "rises": none,  # steps since the last checkpoint that raised the loss
            "mark": none,  # highest loss at the last checkpoint
            "halved": none > 0,  # whether the last checkpoint halved the step
        }

    def adapt(self, memory, x, eps, opens, window, value, best, top):
        size = ops.where(opens, 2.0 * eps, memory["size"])  # paper: the first step is the diameter
        rose = ops.cast(value > memory["last"], "float32")
        rises = ops.where(opens, 0.0, memory["rises"] + rose)
        mark = ops.where(opens, top, memory["mark"])
        halved = ops.logical_or(opens, memory["halved"])  # authors' code: condition 2 needs two checkpoints
        here = window > 0
        stuck = ops.logical_and(ops.logical_not(halved), mark >= top)
        back = ops.logical_and(here, ops.logical_or(rises < self.rho * window, stuck))
        return memory | {
            "size": ops.where(back, size / 2, size),
            "last": ops.where(back, top, value),
            "rises": ops.where(here, 0.0, rises),
            "mark": ops.where(here, top, mark),
            "halved": ops.where(here, back, halved),
        }, back

    def _project(self, x, z, eps):
        return ops.clip(x + self.norm.project(z - x, eps), *self.bounds)

    def move(self, memory, x, base, grad, opens, eps):
        step = norms.per_sample(memory["size"], x) * self.norm.steepest(grad)
        z = self._project(x, base + step, eps)
        share = norms.per_sample(ops.where(opens, 1.0, _MOMENTUM), x)  # nothing to go on with at first
        # base + share * (z - base) + (1 - share) * (base - previous), with fewer operations
        z = share * z + (1.0 - share) * (2.0 * base - memory["previous"])
        return memory | {"previous": base}, self._project(x, z, eps)


@dataclass(frozen=True)
class _Sparse(_Rule):
    """L1: steps on the largest gradients, as many as the best point suggests (2021, Algorithm 1)."""

    large_reps: bool

    def phases(self, steps: int) -> list[tuple[float, int]]:
        early = -(-3 * steps // 10)
        if not self.large_reps or steps <= 2 * early:
            return [(1.0, steps)]
        return [(3.0, early), (2.0, early), (1.0, steps - 2 * early)]  # authors' code: shares 0.3, 0.3, 0.4

    def windows(self, steps: int) -> list[int]:
        window = max(1, steps // 25)  # authors' code: 0.04
        return [window] * (steps // window)

    def start(self, x, seeds, eps):
        return self._project(x, draws.normal(seeds, x.shape[1:]) * (self.bounds[1] - self.bounds[0]), eps)

    def init(self, x, eps) -> dict:
        none = ops.zeros_like(eps)
        return {"size": none, "rank": none, "support": none}

    def adapt(self, memory, x, eps, opens, window, value, best, top):
        d = norms.flatten(x).shape[1]
        support = ops.sum(norms.flatten(ops.cast(best != x, "float32")), axis=1)
        here = window > 0
        sparser = ops.logical_and(here, support < 0.95 * memory["support"])  # authors' code, as all numbers here
        slower = ops.where(here, ops.maximum(memory["size"] / 1.5, eps / 10.0), memory["size"])
        rank = ops.ceil(2.0 * support / 3.0)  # features of the next steps: the support over 1.5
        first = (rank, support) if self.large_reps else (ops.full_like(rank, -(-d // 5)), ops.full_like(rank, d))
        return memory | {
            "size": ops.where(ops.logical_or(opens, sparser), eps, slower),
            "rank": ops.where(opens, first[0], ops.where(here, rank, memory["rank"])),
            "support": ops.where(opens, first[1], ops.where(here, support, memory["support"])),
        }, sparser

    def _project(self, x, delta, eps):
        return ops.clip(x + project_l1(x, delta, eps, self.bounds), *self.bounds)

    def move(self, memory, x, base, grad, opens, eps):
        flat = norms.flatten(grad)
        d = flat.shape[1]
        rank = ops.clip(ops.cast(memory["rank"], "int32"), 1, d)
        ordered = ops.sort(ops.abs(flat), axis=1)
        threshold = ops.take_along_axis(ordered, ops.expand_dims(d - rank, 1), axis=1)
        sign = ops.sign(flat) * ops.cast(ops.abs(flat) >= threshold, "float32")
        count = ops.maximum(ops.sum(ops.abs(sign), axis=1), 1.0)
        step = norms.per_sample(memory["size"] / count, x) * ops.reshape(sign, ops.shape(x))
        return memory, self._project(x, base + step - x, eps)


@dataclass(frozen=True, repr=False)
class APGD(StepAttack):
    """Auto-PGD: gradient ascent without a step size to choose; with "targeted_dlr" the attack APGD-T.

    In Linf and L2 steps have momentum, start at 2 * eps and are halved where the loss stops rising. In L1 they move
    the largest gradients only, as many as the best point so far suggests. Where the paper and the authors' code
    differ (whether a rise of exactly rho of the steps is enough; with which loss the first step from the best point is
    compared), this class follows the paper.

    Args:
        eps: Radius in input units (write `8 / 255`), at least 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or a `Norm`.
        steps: Steps of one run, at least 1; a run takes one gradient more for its start (one for each radius in L1).
        restarts: Random starts (with "targeted_dlr": for each class).
        loss: "cross_entropy", "dlr", "margin", "targeted_dlr", or a function of (logits, y) that gives values of
            shape (n,).
        targets: With "targeted_dlr", classes that are tried in turn, the most likely of the clean input first; at
            most all but the label. Authors' code: 9.
        rho: Share of the steps between two checkpoints that must raise the loss, in (0, 1]. Paper: 0.75.
        large_reps: In L1, first run in balls of three and two times the radius.
        early_stop: When called on arrays, a sample leaves as soon as the goal is reached.
        goal: What the attacker wants; "targeted_dlr" chooses classes itself and cannot be wrapped in `Targeted`.
        bounds: Valid range of an input value.
        samples: Draws of a random model that a gradient averages.

    Example:
    >>> x_adv = APGD(eps=8 / 255, loss="targeted_dlr")(model, x, y)

    References: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690 (Algorithm 1); for L1 Croce and Hein, 2021,
    https://arxiv.org/abs/2103.01208 (Algorithm 1).
    """

    arguments: ClassVar[tuple[str, ...]] = ("eps",)

    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)
    steps: int = 100
    restarts: int = 1
    loss: Callable | str = "cross_entropy"
    targets: int = 9
    rho: float = 0.75
    large_reps: bool = True
    early_stop: bool = True

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        object.__setattr__(self, "norm", norms.get(self.norm))
        for name in ("steps", "restarts", "targets"):
            checks.positive_int(name, getattr(self, name))
        checks.real("rho", self.rho, low=0.0, high=1.0, open_low=True)
        if isinstance(self.loss, str):
            checks.one_of("loss", self.loss, (*losses.LOSSES, TARGETED))
        if self.loss == TARGETED and isinstance(self.goal, Hit):
            raise ValueError(f'`loss="{TARGETED}"` chooses its own classes. Received: goal={self.goal!r}')
        sparse = isinstance(self.norm, L1)
        rule = (
            _Sparse(self.norm, self.bounds, self.large_reps) if sparse else _Halving(self.norm, self.bounds, self.rho)
        )
        object.__setattr__(self, "_rule", rule)

    def _table(self) -> np.ndarray:
        """One row for each gradient of a run: opens a phase, window of a checkpoint, ends the phase, factor."""
        rows = []
        for factor, steps in self._rule.phases(self.steps):
            windows = self._rule.windows(steps)
            at = dict(zip(np.cumsum(windows).tolist(), windows, strict=True))
            rows += [(i == 0, at.get(i, 0), i == steps, factor) for i in range(steps + 1)]
        return np.asarray(rows, dtype="float32")

    def _rivals(self, classes: int) -> int:
        """Number of classes that a targeted run may go for."""
        return max(1, classes - self.goal.unwanted)

    def _runs(self, classes: int | None = None) -> int:
        if self.loss != TARGETED:
            return self.restarts
        return self.restarts * (self.targets if classes is None else min(self.targets, self._rivals(classes)))

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return len(self._table()) * self._runs()

    @property
    def look_every(self) -> int:
        """Steps between two looks: about ten, with the least left over at the end."""
        if not self.early_stop or self.steps_in_all <= 12:
            return self.steps_in_all
        return min(range(6, 13), key=lambda c: (-self.steps_in_all % c, -c))

    def init(self, model, x, y, seeds, parameters: dict) -> dict:
        """State before the first step."""
        eps = parameters["eps"]
        false = ops.zeros_like(eps, dtype="bool")
        state = {
            "now": self._rule.start(x, seeds, eps * self._table()[0, 3]),
            "best": x,  # highest loss of the phase, with its gradient and value
            "slope": ops.zeros_like(x),
            "top": ops.full_like(eps, -np.inf),
            "adv": x,
            "value": ops.full_like(eps, -np.inf),
            "reached": false,
            "done": false,
        }
        if self.loss == TARGETED:
            seen = self.goal.merged(logits_at(model, x, seeds, 0), y)
            far = losses.FAR * ops.one_hot(ops.cast(y, "int32"), seen.shape[-1], dtype=seen.dtype)
            order = ops.top_k(seen - 2.0 * far, min(self.targets, self._rivals(seen.shape[-1])))[1]
            state["targets"] = ops.cast(order, "int32")
        return joined(state, self._rule.init(x, eps))

    def _evaluate(self, call, y, z, state, run):
        logits = call(z)
        if self.loss != TARGETED:
            loss = losses.get(self.loss)
            return self.goal.value(loss, logits, y), (logits,)
        at = ops.minimum(run // self.restarts, state["targets"].shape[1] - 1)
        target = ops.take_along_axis(state["targets"], ops.expand_dims(at, 1), axis=1)[:, 0]
        return self.goal.value(lambda z, y: losses.dlr_targeted(z, y, target), logits, y), (logits,)

    def _remember(self, state, value, logits, y, counts) -> dict:
        """Keep the current point where it is better than the best so far: adversarial before not, then the loss."""
        reached = ops.logical_and(counts, self.goal.reached(logits, y))
        first = ops.logical_and(reached, ops.logical_not(state["reached"]))
        higher = ops.logical_and(reached == state["reached"], value > state["value"])
        better = ops.logical_and(counts, ops.logical_or(first, higher))
        return {
            "adv": select(better, state["now"], state["adv"]),
            "value": ops.where(better, value, state["value"]),
            "reached": ops.logical_or(reached, state["reached"]),
        }

    def _over(self, state) -> int:
        """The number of gradients that all runs of a sample take."""
        return len(self._table()) * self._runs(state["targets"].shape[1] + 1 if self.loss == TARGETED else None)

    def step(self, model, x, y, state: dict) -> dict:
        """Raise the loss by one step; a new phase goes on from the best point, a new run has a start of its own."""
        table, moves, now = self._table(), state["moves"], state["now"]
        run = moves // len(table)
        row = ops.take(ops.convert_to_tensor(table), moves % len(table), axis=0)
        opens, window, ends, factor = row[:, 0] > 0, row[:, 1], row[:, 2] > 0, row[:, 3]
        following = ops.take(ops.convert_to_tensor(np.roll(table[:, 3], -1)), moves % len(table))

        value, (logits,), grad = self.gradient(
            model, lambda call, z: self._evaluate(call, y, z, state, run), now, state
        )
        counts = ops.logical_and(factor == 1.0, moves < self._over(state))  # the last part runs past the end
        state = state | self._remember(state, value, logits, y, counts)

        higher = ops.logical_or(opens, value > state["top"])
        best, slope = select(higher, now, state["best"]), select(higher, grad, state["slope"])
        top = ops.where(higher, value, state["top"])

        memory = {k: state[k] for k in self._rule.init(x, state["eps"])}
        memory, back = self._rule.adapt(memory, x, factor * state["eps"], opens, window, value, best, top)
        back = ops.logical_or(back, ends)
        memory["size"] = ops.where(ends, 0.0, memory["size"])  # only into the next ball
        base, grad = select(back, best, now), select(back, slope, grad)
        memory, moved = self._rule.move(memory, x, base, grad, opens, following * state["eps"])
        if self._runs() > 1:
            moved = self._restart(x, state, moved, run, moves % len(table) == len(table) - 1, table[0, 3])
        return state | memory | {"now": moved, "best": best, "slope": slope, "top": top}

    def _restart(self, x, state, moved, run, over, factor):
        """A start of its own for every next run; drawn only in steps that need one."""

        def fresh():
            number = ops.cast(run + 1, "uint32") * ops.convert_to_tensor(np.uint32(_RESTART))
            seeds = ops.bitwise_xor(state["seed"], number)
            return select(over, self._rule.start(x, seeds, state["eps"] * factor), moved)

        return ops.cond(ops.any(over), fresh, lambda: moved)

    def judge(self, model, x, y, state: dict) -> dict:
        """Done are samples out of runs and, with `early_stop`, those that succeeded."""
        done = state["moves"] >= self._over(state)
        leaves = self.early_stop and not model.random  # one lucky draw is no reason to leave
        return state | {"done": ops.logical_or(done, state["reached"]) if leaves else done}
