"""Attacks made of steps, and the loop that runs them over arrays of any length.

A step attack has three pure functions: `init` makes the state of a batch, `step` moves it once, `judge` looks at where
it stands. The state is a dict of tensors whose first axis is the sample. On top of these, `perturb` runs inside a
training step, and calling the attack runs a pool of fixed size over arrays: samples that are done leave it and fresh
ones take their places, so nothing is retraced and memory does not grow with n.
"""

from __future__ import annotations

import copy
import weakref
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, losses, models
from kerasdef import random as draws
from kerasdef.annotations import check_fields
from kerasdef.attacks.base import Attack
from kerasdef.goals import Goal, Misclassify, answered
from kerasdef.models import Victim, WhiteBox
from kerasdef.models.victim import mean_logits
from kerasdef.random import sample_seeds
from kerasdef.runs import progress
from kerasdef.runs.keeping import Keeper

State = dict
JUDGED = 2**31  # counters of draws that judge a point begin here; those of gradients count up from 0
_DRAWS = 9  # draws of a random model that are averaged to judge a point; odd, so that no vote ties
_KEPT = 16  # programs of one model that are kept: a few MiB each
_PROGRAMS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class _Passed:
    """Stands in a program's attack for a setting that is an argument: any use of it as a number is an error."""

    def __repr__(self) -> str:
        return "<argument of the program>"


PASSED = _Passed()


def joined(*states: dict) -> dict:
    """Several states as one. The loop, the attack and its direction share it, and a name has one meaning.

    Raises:
        ValueError: Two of them have a name in common.
    """
    names = [name for state in states for name in state]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"The names in a state must differ. Received: {', '.join(twice)} more than once")
    return {name: value for state in states for name, value in state.items()}


def select(mask, yes, no):
    """`where` for a mask of shape (n,) over tensors of shape (n, ...)."""
    return ops.where(ops.reshape(mask, (-1,) + (1,) * (len(yes.shape) - 1)), yes, no)


def logits_at(victim: WhiteBox, z, seeds, counter):
    """Logits of points, averaged over some draws of a random model.

    Args:
        victim: The classifier.
        z: Tensor of shape (n, ...).
        seeds: One seed per sample, of shape (n,).
        counter: Number of the look, an integer or a tensor of shape (n,): each has draws of its own.
    """
    if not victim.random:
        return victim.logits(z)
    late = ops.cast(counter, "uint32") + ops.convert_to_tensor(np.uint32(JUDGED))
    return mean_logits(victim, z, draws.fold(seeds, late), _DRAWS)


@dataclass(frozen=True, kw_only=True, repr=False)
class StepAttack(Attack):
    """Settings and pure functions of an attack that follows the gradients of a Keras classifier.

    Args:
        goal: What the attacker wants; `Misclassify()` unless a wrapper says otherwise.
        bounds: Valid range of an input value, `(low, high)`.
        samples: Draws of the model's own randomness over which every gradient is averaged (EOT). One is right for a
            model without randomness.

    Attributes:
        arguments: Names of the settings that are arguments of the compiled program; see `parameters`.
    """

    arguments: ClassVar[tuple[str, ...]] = ()
    goal: Goal = field(default_factory=Misclassify)
    bounds: tuple[float, float] = (0.0, 1.0)
    samples: int = 1

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        checks.positive_int("samples", self.samples)

    # -- what an attack is made of ------------------------------------------------------------------------------

    @property
    def span(self) -> float:
        """Width of the bounds: what lengths are measured by, so that an attack is the same in any range."""
        return self.bounds[1] - self.bounds[0]

    @property
    @abstractmethod
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""

    @property
    def look_every(self) -> int:
        """Steps between two looks at which samples are done."""
        return self.steps_in_all

    @property
    def parameters(self) -> dict[str, float | tuple[float, ...]]:
        """Settings that are arguments of the compiled program rather than constants in it, by their names.

        `init` gets them, and `step` and `judge` find them in the state, as tensors of shape (n,). Attacks that differ
        in these settings alone share one program, in which the settings themselves cannot be read.
        """
        return {name: getattr(self, name) for name in self.arguments if getattr(self, name) is not None}

    @abstractmethod
    def init(self, model, x, y, seeds, parameters: dict) -> State:
        """State before the first step. It holds "adv" (n, ...), the best input so far, and "done" (n,)."""

    @abstractmethod
    def step(self, model, x, y, state: State) -> State:
        """One step of every sample of the batch."""

    def judge(self, model, x, y, state: State) -> State:
        """Look at the newest iterates: update "adv" and "done"."""
        return state

    def gradient(self, model: WhiteBox, objective: Callable, z, state: State):
        """Value and gradient of an objective, averaged over `samples` draws of the model's randomness.

        What is not finite of a gradient is 0, so that an attack goes on with the rest; a value that is not finite is
        minus infinity.

        Args:
            model: The classifier.
            objective: Maps (call, z) to (value, aux): `call` gives the model's logits for a batch, value has the
                shape (n,), aux is a tuple of floating-point tensors.
            z: Tensor of shape (n, ...) to differentiate by.
            state: The state: its "seed" and "moves" give every sample, step and draw noise of its own.

        Returns:
            `(value, aux, grad)`.
        """
        total = None
        for i in range(self.samples):
            draw = draws.fold(state["seed"], state["moves"] * self.samples + i) if model.random else None

            def call(inputs, draw=draw):
                return model.logits(inputs, draw)

            found = backend.gradient(lambda v, call=call: objective(call, v))(z)
            total = found if total is None else keras.tree.map_structure(ops.add, total, found)
        value, aux, grad = keras.tree.map_structure(lambda t: t / self.samples, total) if self.samples > 1 else total
        return losses.finite(value), aux, ops.where(ops.isfinite(grad), grad, 0.0)

    # -- inside a training step ---------------------------------------------------------------------------------

    def perturb(self, model: keras.Model | WhiteBox, x, y, seeds, parameters: dict | None = None):
        """Adversarial images for a batch: pure and traceable, for use inside training steps.

        Unlike a call, it takes all its steps for every sample, also for those that are misclassified from the start.

        Args:
            model: A built Keras classifier; it is read only, in inference mode.
            x: Tensor of shape (n, ...), float32, within `bounds`.
            y: Tensor of shape (n,), integers.
            seeds: Tensor of shape (n,), integers: one seed per sample.
            parameters: Tensors of shape (n,) in the place of some of `parameters`, such as a radius that grows.

        Returns:
            Tensor of the shape of x.
        """
        n = ops.shape(x)[0]
        parameters = {
            name: ops.broadcast_to(ops.convert_to_tensor(np.float32(value)), (n,))
            for name, value in self.parameters.items()
        } | (parameters or {})
        victim = Victim.of(model).facing(self.bounds)
        self.goal.check(victim.classes)
        state = _begin(self, victim, x, y, seeds, parameters)
        state = backend.loop(self.steps_in_all, lambda s: _move(self, victim, x, y, s), state)
        return ops.stop_gradient(self.judge(victim, x, y, state)["adv"])

    # -- on arrays ----------------------------------------------------------------------------------------------

    def _run(self, model, x, y, batch_size, seed, show) -> tuple[np.ndarray, np.ndarray]:
        start, move, look = self._programs(model)
        keep = Keeper(type(self).__name__, x, y, seed, batch_size)
        if keep.over:
            return keep.found[0]["out"], keep.found[0]["spent"]
        sizes = backend.sizes(batch_size, len(x))  # as samples leave, the tail of a run goes on in a smaller pool
        parameters = {name: spread(name, value, len(x)) for name, value in self.parameters.items()}
        pool = _Pool(x, y, parameters, seed, start, sizes)
        out, spent = np.array(x), np.zeros(len(x), dtype="int64")
        taken = 0  # steps since the last look
        if keep.found is not None:
            out, spent, taken = pool.take_up(*keep.found)
        with progress.bar(type(self).__name__, len(x), show=show, unit="samples") as tick:
            tick(pool.done)
            while pool.refill(out, tick):
                for count in keep.chunks(self.look_every - taken) if keep.active else (self.look_every,):
                    pool.state = move(pool.x, pool.y, pool.state, count)
                    taken += count
                    if keep.active and pool.settled() and keep.due:
                        keep.write(*pool.kept(out, spent, taken))
                taken = 0
                pool.state = look(pool.x, pool.y, pool.state)
                pool.collect(out, spent, tick)
        spent = np.minimum(spent, self.steps_in_all) * self.samples
        keep.finish(out=out, spent=spent)
        return out, spent

    def _general(self) -> StepAttack:
        """This attack with `PASSED` in the place of its parameters: what one compiled program serves."""
        other = copy.copy(self)
        for name in self.parameters:
            object.__setattr__(other, name, PASSED)
        return other

    def _programs(self, model):
        """Compiled start, steps and look for this attack and model; kept as long as the model lives."""
        attack, view = self._general(), model.view
        kept = _PROGRAMS.setdefault(view, OrderedDict())
        key = attack, self.look_every, model.map
        if key not in kept:
            victim, model_is_random = model.weak(), model.random

            def start(x, y, seeds, parameters):
                wrong = ops.zeros_like(y, dtype="bool")
                if not model_is_random:  # one lucky draw would spare the sample
                    logits = victim().logits(x)  # without an answer there is none to turn
                    wrong = ops.logical_or(attack.goal.reached(logits, y), ops.logical_not(answered(logits)))
                state = _begin(attack, victim(), x, y, seeds, parameters)
                state["adv"] = select(wrong, x, state["adv"])  # not a random start
                return joined(state, {"wrong": wrong}) | {"done": ops.logical_or(state["done"], wrong)}

            def step(x, y, state):
                return _move(attack, victim(), x, y, state)

            def judge(x, y, state, wrong):
                state = attack.judge(victim(), x, y, state)
                return {**state, "done": ops.logical_or(state["done"], wrong)}

            steps, judged = backend.repeated(step, view), backend.compiled(judge, view)

            def move(x, y, state, count):
                moved = steps(x, y, {k: v for k, v in state.items() if k != "wrong"}, count)
                return {**moved, "wrong": state["wrong"]}

            def look(x, y, state):
                wrong = state["wrong"]
                return {**judged(x, y, {k: v for k, v in state.items() if k != "wrong"}, wrong), "wrong": wrong}

            kept[key] = (backend.compiled(start, view), move, look)
            if len(kept) > _KEPT:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key]


def _begin(attack, victim, x, y, seeds, parameters) -> State:
    """The state before the first step, with what the loop itself keeps."""
    seeds = ops.cast(seeds, "uint32")
    state = attack.init(victim, x, y, seeds, parameters)
    return joined(state, parameters, {"seed": seeds, "moves": ops.zeros_like(state["done"], dtype="int32")})


def _move(attack, victim, x, y, state: State) -> State:
    """One step, counted."""
    kept = {name: state[name] for name in ("seed", *attack.parameters)}
    return attack.step(victim, x, y, state) | kept | {"moves": state["moves"] + 1}


def spread(name: str, value, n: int) -> np.ndarray:
    """One float32 per sample from a number or from n numbers."""
    values = np.asarray(value, dtype="float32")
    if values.ndim and len(values) != n:
        raise ValueError(
            f"`{name}` must be a number or one for each of the {n} samples. Received: {len(values)} values"
        )
    return np.full(n, values, dtype="float32")


def _under(prefix: str, arrays: dict) -> dict:
    """Those arrays whose names begin so, without it."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


class _Pool:
    """A fixed number of slots; a sample takes one until it is done.

    `sizes` are the numbers of slots that may be in use, largest first: each is one trace of the programs.
    """

    def __init__(self, x, y, parameters, seed, start, sizes):
        self.source = (x, y, parameters, seed)
        self.start, self.sizes = start, sizes
        self.next = 0  # first sample that has not been started
        self.index = np.empty(0, dtype="int64")  # sample in each used slot
        self.reserve: tuple[np.ndarray, dict] | None = None  # started samples without a slot
        self.x = self.y = self.state = None
        self.full = False  # nothing has left since the slots were filled
        self.done = self.fell = 0

    def kept(self, out: np.ndarray, spent: np.ndarray, taken: int) -> tuple[dict, dict]:
        """The whole state as arrays and JSON values, from which `take_up` goes on."""
        arrays = {"out": out, "spent": spent, "index": self.index}
        arrays |= {f"state/{k}": ops.convert_to_numpy(v)[: len(self.index)] for k, v in self.state.items()}
        if self.reserve is not None:
            arrays |= {"reserve": self.reserve[0]} | {f"reserve/{k}": v for k, v in self.reserve[1].items()}
        counts = {"next": self.next, "full": self.full, "done": self.done, "fell": self.fell, "taken": taken}
        return arrays, counts

    def take_up(self, arrays: dict, counts: dict) -> tuple[np.ndarray, np.ndarray, int]:
        """Go on from `kept`; returns the answer so far, the steps spent, and those since the last look."""
        self.next, self.full, self.done, self.fell = (counts[name] for name in ("next", "full", "done", "fell"))
        self.index = arrays["index"]
        if "reserve" in arrays:
            self.reserve = arrays["reserve"], _under("reserve/", arrays)
        self._place(_under("state/", arrays))
        return arrays["out"], arrays["spent"], counts["taken"]

    def settled(self) -> bool:
        """Wait for the steps to be taken: some backends only promise them."""
        return ops.convert_to_numpy(self.state["done"]) is not None

    def _place(self, state: dict) -> None:
        """Put the samples in use and their state into slots, as few as hold them."""
        size = next(s for s in reversed(self.sizes) if s >= len(self.index))
        x, y, _, _ = self.source
        rows = models.pad(self.index, size)
        self.x, self.y = ops.convert_to_tensor(x[rows]), ops.convert_to_tensor(y[rows])
        self.state = {k: models.pad(v, size) for k, v in state.items()}

    def _note(self, left: int, fell: int) -> str | None:
        """Count samples that leave; what a bar says where the state tells which samples fell."""
        self.done, self.fell = self.done + left, self.fell + fell
        return progress.standing(self.done, self.fell) if self.state is not None and "reached" in self.state else None

    def _load(self) -> tuple[np.ndarray, dict] | None:
        """Start the next samples, a whole batch at a time."""
        x, y, parameters, seed = self.source
        left = len(x) - self.next
        if left == 0:
            return None
        size = next((s for s in reversed(self.sizes) if s >= left), self.sizes[0])
        index = np.arange(self.next, min(self.next + size, len(x)))
        self.next += len(index)
        rows = models.pad(index, size)
        state = self.start(x[rows], y[rows], sample_seeds(seed, rows), {k: v[rows] for k, v in parameters.items()})
        state = {k: ops.convert_to_numpy(v)[: len(index)] for k, v in state.items()}
        return index, state

    def refill(self, out, tick) -> bool:
        """Put started samples into free slots; False when there is nothing left to do."""
        if self.full:
            return True
        kept = [(self.index, self.state)] if len(self.index) else []
        room = self.sizes[0] - len(self.index)
        while room > 0:
            if self.reserve is None:
                self.reserve = self._load()
            if self.reserve is None:
                break
            index, state = self.reserve
            going = ~state["done"]
            if not going.all():  # wrong from the start: returned unchanged
                out[index[~going]] = state["adv"][~going]
                wrong = int(np.sum(~going))
                tick(wrong, self._note(wrong, wrong))
                index, state = index[going], {k: v[going] for k, v in state.items()}
            taken = min(room, len(index))
            kept.append((index[:taken], {k: v[:taken] for k, v in state.items()}))
            self.reserve = (index[taken:], {k: v[taken:] for k, v in state.items()}) if taken < len(index) else None
            room -= taken
        self.index = np.concatenate([i for i, _ in kept]) if kept else self.index
        if not len(self.index):
            return False
        self._place({k: np.concatenate([s[k] for _, s in kept]) for k in kept[0][1]})
        self.full = True
        return True

    def collect(self, out, spent, tick) -> None:
        """Write the samples that are done to `out`, their steps to `spent`, and free their slots."""
        used = len(self.index)
        done = ops.convert_to_numpy(self.state["done"])[:used]
        if not done.any():
            return
        out[self.index[done]] = ops.convert_to_numpy(self.state["adv"])[:used][done]
        spent[self.index[done]] = ops.convert_to_numpy(self.state["moves"])[:used][done]
        fell = ops.convert_to_numpy(self.state.get("reached", self.state["wrong"]))[:used][done]
        tick(int(done.sum()), self._note(len(fell), int(fell.sum())))
        self.index = self.index[~done]
        self.state = {k: ops.convert_to_numpy(v)[:used][~done] for k, v in self.state.items()}
        self.full = False
