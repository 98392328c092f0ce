"""Attacks that see outputs only: what they may ask of a model, and the loop that asks round after round.

The state of all samples is a dict of NumPy arrays whose first axis is the sample. A round moves the samples that are
being worked on, each by its own counters and seeds; those that are done make room for others.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from keras import ops

from kerasdef import backend, checks, losses, models
from kerasdef import random as draws
from kerasdef.annotations import check_fields
from kerasdef.attacks.base import Attack
from kerasdef.goals import Evade, Goal, Misclassify
from kerasdef.models.victim import Victim, WhiteBox, mean_logits
from kerasdef.random import sample_seeds
from kerasdef.runs import progress
from kerasdef.runs.keeping import Keeper

# A Keras model sees batches of one size only, so that float noise is the same for any batch size of the caller. Small
# ones waste little where few samples are left; GPUs need large ones.
_ROWS, _ROWS_GPU = 64, 512
_NUMBERS = 1 << 22  # most numbers in one array of points to ask: 16 MiB

_KEPT = 16  # programs of one model that are kept
_PROGRAMS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class Queries:
    """Questions to a classifier: answered in batches, counted and capped for each sample.

    Args:
        model: Logits model or `BlackBox`.
        goal: What the attacker wants.
        y: Labels of all samples, of shape (n,).
        budget: Most queries for each sample.
        loss: What the goal makes its value of.
        samples: Passes of a random model that are averaged for an answer; each counts as a query.
    """

    def __init__(
        self, model: Victim, goal: Goal, y: np.ndarray, budget: int, loss: Callable = losses.margin, samples: int = 1
    ):
        self.samples = samples
        self.model, self.goal, self.loss = model, goal, loss
        self.y, self.budget = y, budget
        self.spent = np.zeros(len(y), dtype="int64")
        self.program = _program(model, goal, loss, samples) if model.access == "gradients" else None
        self.draws = draws.sample_seeds(1, np.arange(len(y)))  # of a random model: each question draws anew

    def clean(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ask once for all samples as they are; a callable has been asked for them when the labels were checked."""
        if self.program is not None:
            return self(np.arange(len(x)), x)
        self.spent += 1
        return self._judge(self.model.predict(x), self.y)

    def left(self, rows) -> np.ndarray:
        """Answers that are left to these samples."""
        return (self.budget - self.spent[rows]) // self.samples

    def __call__(self, rows: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ask for points of samples.

        Args:
            rows: Sample of each point, of shape (m,); a sample may have several.
            z: Points of shape (m, ...), float32.

        Returns:
            `(value, reached)` of shape (m,). What the budget of a sample does not cover is not asked: its value is
            -inf, and it has not reached the goal. So it is where the model gives no answer, but something that is
            not finite.
        """
        value, reached = np.full(len(rows), -np.inf, dtype="float32"), np.zeros(len(rows), dtype=bool)
        asked = self._covered(rows)
        if asked is None:
            asked = slice(None)
        elif not len(asked):
            return value, reached
        value[asked], reached[asked] = self._answer(z[asked], rows[asked])
        np.add.at(self.spent, rows[asked], self.samples)
        return value, reached

    def _covered(self, rows) -> np.ndarray | None:
        """Positions of the questions that the budgets cover; None where they cover all.

        The work is that of the questions, whatever the number of samples.
        """
        if not len(rows):
            return np.empty(0, dtype="int64")
        own, count = np.unique(rows, return_counts=True)
        if (count <= self.left(own)).all():
            return None
        order = np.argsort(rows, kind="stable")
        first = np.searchsorted(rows[order], rows[order])
        rank = np.arange(len(rows)) - first  # of a question among those of its sample
        return np.sort(order[rank < self.left(rows[order])])

    def _judge(self, logits, y):
        value = on_rows(lambda z, y: losses.finite(self.goal.value(self.loss, z, y)), logits, y)
        return value, on_rows(self.goal.reached, logits, y)

    def _answer(self, z, rows):
        y = self.y[rows]
        if self.program is None:
            answers = [self.model(z) for _ in range(self.samples)]
            return self._judge(answers[0] if self.samples == 1 else np.mean(answers, axis=0), y)
        size = _ROWS_GPU if backend.has_gpu() else _ROWS
        drawn = draws.branch(self.draws[rows], self.spent[rows], _rank(rows)) if self.model.random else self.draws[rows]
        value, reached = np.empty(len(z), dtype="float32"), np.empty(len(z), dtype=bool)
        for part in models.padded_batches(len(z), size):
            used = part.stop - part.start
            found = self.program(*(models.pad(a[part], size) for a in (z, y, drawn)))
            value[part], reached[part] = (ops.convert_to_numpy(f)[:used] for f in found)
        return value, reached


def _rank(rows: np.ndarray) -> np.ndarray:
    """Number of each question among those of its sample in this round."""
    order = np.argsort(rows, kind="stable")
    rank = np.empty(len(rows), dtype="int64")
    rank[order] = np.arange(len(rows)) - np.searchsorted(rows[order], rows[order])
    return rank


def _program(victim: WhiteBox, goal, loss, samples: int):
    """Compiled answers of a Keras model to points with labels; kept as long as the model lives."""
    kept = _PROGRAMS.setdefault(victim.view, OrderedDict())
    key = goal, loss, victim.map, samples
    if key not in kept:
        back = victim.weak()

        def judge(z, y, draw):
            logits = mean_logits(back(), z, draw, samples)
            return losses.finite(goal.value(loss, logits, y)), goal.reached(logits, y)

        kept[key] = backend.compiled(judge, victim.view)
        if len(kept) > _KEPT:
            kept.popitem(last=False)
    kept.move_to_end(key)
    return kept[key]


@dataclass(frozen=True, kw_only=True, repr=False)
class QueryAttack(Attack):
    """Settings and rounds of an attack that asks a classifier for its outputs and knows nothing else of it.

    When called, the model is a built Keras classifier, or any function from float32 arrays of shape (n, ...) to
    logits or probabilities of shape (n, classes) or to labels of shape (n,); see `BlackBox`. Every point it is asked
    for lies within the bounds. `run` tells the queries spent on each sample; the look at the clean input is the first.

    Args:
        goal: What the attacker wants.
        bounds: Valid range of an input value, `(low, high)`.
        queries: Most queries for each sample, at least 1.
        samples: Passes that are averaged for one answer; each is a query. More than one is for random models.
    """

    access: ClassVar[str] = "black box"
    scores: ClassVar[bool] = True  # needs more than labels
    least: ClassVar[int] = 1  # queries without which a round makes no sense
    goal: Goal = field(default_factory=Misclassify)
    bounds: tuple[float, float] = (0.0, 1.0)
    queries: int = 5000
    samples: int = 1

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        checks.positive_int("queries", self.queries)
        checks.positive_int("samples", self.samples)

    # -- what an attack is made of ------------------------------------------------------------------------------

    @property
    def span(self) -> float:
        """Width of the bounds: what lengths are measured by, so that an attack is the same in any range."""
        return self.bounds[1] - self.bounds[0]

    @property
    def climbed(self) -> Callable:
        """Loss whose value the answers are given in."""
        return losses.margin

    @abstractmethod
    def init(self, x: np.ndarray, seeds: np.ndarray, value: np.ndarray) -> dict[str, np.ndarray]:
        """State of all samples before the first round; "done" is true for those that need none.

        The loop adds "row", "x", "seed", "adv", "reached" and "moves".

        Args:
            x: Array of shape (n, ...).
            seeds: One seed per sample.
            value: Value of the goal on the clean inputs, of shape (n,).
        """

    @abstractmethod
    def round(self, ask: Callable, part: dict[str, np.ndarray]) -> None:
        """Move some samples on, by at least one query each: writes to their state.

        Args:
            ask: A `Queries`.
            part: Their state: "row" says which samples they are, "moves" how many rounds they have had, "adv" and
                "reached" are the answer so far.
        """

    # -- on arrays ----------------------------------------------------------------------------------------------

    def _accept(self, model, y) -> None:
        """Raise where a callable gives less than this attack needs; labels it has not given yet are no error."""
        if model.kind != "labels":
            return
        if self.scores:
            raise ValueError(
                f"{type(self).__name__} needs logits or probabilities of shape (n, classes); use HopSkipJump where "
                "labels are all there is. Received: a model that returns labels of shape (n,)"
            )
        highest = max(int(y.max()), self.goal.reject if isinstance(self.goal, Evade) else 0)
        model.widen(highest + 1)

    def _success(self, victim, x_adv, y) -> np.ndarray:
        if victim.access == "gradients":
            return super()._success(victim, x_adv, y)
        if victim.result is not None and victim.result[0] is x_adv:
            return victim.result[1]  # known: nothing is asked again
        return on_rows(self.goal.reached, victim.predict(x_adv), y)

    def _run(self, model, x, y, batch_size, seed, show) -> tuple[np.ndarray, np.ndarray]:
        n, y = len(x), np.asarray(y, dtype="int32")
        ask = Queries(model, self.goal, y, self.queries, self.climbed, self.samples)
        keep = Keeper(type(self).__name__, x, y, seed)
        state = self._begin(ask, x, seed) if keep.found is None else self._take_up(ask, x, seed, keep.found[0])
        waiting = np.flatnonzero(~state["done"])
        rows, waiting = waiting[:batch_size], waiting[batch_size:]
        with progress.bar(type(self).__name__, n, show=show, unit="samples") as tick:
            done, fell = n - len(rows) - len(waiting), int(state["reached"][state["done"]].sum())
            tick(done, progress.standing(done, fell))
            while len(rows):
                part = {k: v[rows] for k, v in state.items()}
                while not part["done"].any():  # the same samples as long as none is done
                    self.round(ask, part)
                    part["moves"] += 1
                    part["done"] |= ask.left(rows) < self.least
                    if keep.due:
                        _put_back(part, state, rows)
                        keep.write(_told(state) | {"asked": ask.spent}, {})
                _put_back(part, state, rows)
                over = part["done"]
                done, fell = done + int(over.sum()), fell + int(part["reached"][over].sum())
                tick(int(over.sum()), progress.standing(done, fell))
                free = batch_size - int((~over).sum())
                rows, waiting = np.concatenate([rows[~over], waiting[:free]]), waiting[free:]
        if not keep.over:
            keep.write(_told(state) | {"asked": ask.spent}, {}, over=True)
        if model.access != "gradients":
            model.result = state["adv"], state["reached"]
        return state["adv"], ask.spent

    def _begin(self, ask: Queries, x, seed: int) -> dict[str, np.ndarray]:
        """The state of all samples before the first round."""
        n = len(x)
        everyone, (value, wrong) = np.arange(n), ask.clean(x)
        seeds = sample_seeds(seed, everyone)
        state = {"row": everyone, "x": x, "seed": seeds, "adv": np.array(x), "moves": np.zeros(n, dtype="int64")}
        state |= self.init(x, seeds, value) | {"reached": wrong}
        silent = np.isneginf(value) & ~wrong  # without an answer there is none to turn
        state["done"] = state["done"] | wrong | silent | (ask.left(everyone) < self.least)
        return state

    def _take_up(self, ask: Queries, x, seed: int, found: dict) -> dict[str, np.ndarray]:
        """The state of all samples as it was kept."""
        everyone = np.arange(len(x))
        ask.spent[:] = found["asked"]
        state = {name: value for name, value in found.items() if name != "asked"}
        return {"row": everyone, "x": x, "seed": sample_seeds(seed, everyone)} | state


_GIVEN = ("row", "x", "seed")  # parts of the state that no round changes


def _put_back(part: dict[str, np.ndarray], state: dict[str, np.ndarray], rows: np.ndarray) -> None:
    """Write what was done to some samples into the state of all."""
    for name, value in part.items():
        if name not in _GIVEN:
            state[name][rows] = value


def _told(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a state has to say to go on from it."""
    return {name: value for name, value in state.items() if name not in _GIVEN}


# -- many numbers for one sample ---------------------------------------------------------------------------------


def on_rows(function: Callable, *arrays: np.ndarray) -> np.ndarray:
    """Apply a function of tensors (n, ...) to arrays, at few different n: JAX compiles every one anew."""
    n = len(arrays[0])
    size = 1 << (n - 1).bit_length()
    found = function(*(ops.convert_to_tensor(models.pad(a, size)) for a in arrays))
    return ops.convert_to_numpy(found)[:n]


def pieces(counts: np.ndarray, width: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (sample, number) of `counts` points for each sample, in parts whose points fit into memory.

    Args:
        counts: Points of each sample, of shape (n,).
        width: Numbers in a point.
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    size = max(1, _NUMBERS // width)
    for part in models.padded_batches(len(owner), size):
        yield owner[part], number[part]


def add_up(total: np.ndarray, owner: np.ndarray, values: np.ndarray) -> None:
    """Add values of shape (m, ...) to the totals of the samples that own them; `owner` is sorted."""
    first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    total[owner[first]] += np.add.reduceat(values, first, axis=0)


def tall(values: np.ndarray, like: np.ndarray) -> np.ndarray:
    """Reshape values of shape (n,) so that they broadcast over an array of shape (n, ...)."""
    return np.reshape(values, (-1,) + (1,) * (like.ndim - 1))
