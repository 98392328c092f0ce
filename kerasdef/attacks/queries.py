"""Attacks that see outputs only: what they may ask of a model, and the loop that asks round after round.

The state of all samples is a dict of NumPy arrays whose first axis is the sample. A round moves the samples that are
being worked on, each by its own counters and seeds; those that are done make room for others.
"""

from __future__ import annotations

import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, losses, models
from kerasdef.attacks.base import Attack
from kerasdef.goals import Evade, Goal, Misclassify
from kerasdef.random import sample_seeds
from kerasdef.runs import progress

# A Keras model sees batches of one size only, so that float noise is the same for any batch size of the caller. Small
# ones waste little where few samples are left; GPUs need large ones. A callable is never given more than is counted.
_ROWS, _ROWS_GPU, _ROWS_CALLABLE = 64, 512, 256
_NUMBERS = 1 << 22  # most numbers in one array of points to ask: 16 MiB
_SMALLEST = 1e-30  # a probability below this counts as this: its logarithm stays finite

_PROGRAMS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class BlackBox:
    """A callable as the attacks see it: logits of shape (n, classes), whatever it answers with.

    Its first answer tells what it gives: probabilities (no row has a negative number, each sums to 1) become
    log-probabilities, labels of shape (n,) become a 1 in the column of the label.

    Args:
        function: Maps float32 arrays of shape (n, ...) to logits or probabilities of shape (n, classes), or to labels
            of shape (n,).
    """

    def __init__(self, function: Callable):
        self.function = function
        self.kind: str | None = None
        self.classes = 2
        self.asked: tuple[np.ndarray, np.ndarray] | None = None  # clean inputs and their logits
        self.result: tuple[np.ndarray, np.ndarray] | None = None  # what an attack returned, and where it succeeded

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Logits of some inputs."""
        found = [self._logits(x[part]) for part in models.padded_batches(len(x), _ROWS_CALLABLE)]
        classes = max(f.shape[1] for f in found)  # a later batch may know of more labels
        return np.concatenate([np.pad(f, ((0, 0), (0, classes - f.shape[1]))) for f in found])

    def widen(self, classes: int) -> None:
        """Make room for labels that it may give later."""
        self.classes = max(self.classes, classes)
        if self.asked is not None:
            x, logits = self.asked
            self.asked = x, np.pad(logits, ((0, 0), (0, max(0, self.classes - logits.shape[1]))))

    def _logits(self, x):
        answer = np.asarray(self.function(x))
        first = self.kind is None
        labels = answer.ndim == 1
        good = answer.ndim in (1, 2) and len(answer) == len(x) and np.issubdtype(answer.dtype, np.number)
        if good and not first:
            good = labels == (self.kind == "labels") and (labels or answer.shape[1] == self.classes)
        if not good or (not labels and answer.shape[1] < 2):
            raise ValueError(
                "`model` must return logits (n, classes) or labels (n,), the same for every batch. "
                f"Received: shape={answer.shape} and dtype={answer.dtype} for {len(x)} samples"
            )
        if np.isnan(answer).any():
            raise ValueError(f"`model` must not return NaN. Received: {int(np.isnan(answer).sum())} of them")
        if labels:
            self.kind = "labels"
            found = checks.labels("model(x)", answer)
            self.classes = max(self.classes, int(found.max()) + 1)
            return np.eye(self.classes, dtype="float32")[found]
        answer = answer.astype("float32", copy=False)
        if first:
            shares = (answer >= 0).all() and np.allclose(answer.sum(axis=1), 1.0, atol=1e-3)  # 1e-3: float16
            self.kind, self.classes = "probabilities" if shares else "logits", answer.shape[1]
        return np.log(np.maximum(answer, _SMALLEST)) if self.kind == "probabilities" else answer


def predict(model: keras.Model | BlackBox, x: np.ndarray) -> np.ndarray:
    """Logits of shape (n, classes) of a classifier on an array; a callable is asked only once for clean inputs."""
    if not isinstance(model, BlackBox):
        return models.predict_logits(model, x)
    if model.asked is None or model.asked[0] is not x:
        model.asked = x, model(x)
    return model.asked[1]


class Queries:
    """Questions to a classifier: answered in batches, counted and capped for each sample.

    Args:
        model: Logits model or `BlackBox`.
        goal: What the attacker wants.
        y: Labels of all samples, of shape (n,).
        budget: Most queries for each sample.
        loss: What the goal makes its value of.
    """

    def __init__(self, model, goal: Goal, y: np.ndarray, budget: int, loss: Callable = losses.margin):
        self.model, self.goal, self.loss = model, goal, loss
        self.y, self.budget = y, budget
        self.spent = np.zeros(len(y), dtype="int64")
        self.asked = 0  # the sum of `spent`
        self.program = None if isinstance(model, BlackBox) else _program(model, goal, loss)

    def clean(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ask once for all samples as they are; a callable has been asked for them when the labels were checked."""
        if self.program is not None:
            return self(np.arange(len(x)), x)
        self.spent += 1
        self.asked += len(x)
        return self._judge(predict(self.model, x), self.y)

    def left(self, rows) -> np.ndarray:
        """Queries that are left to these samples."""
        return self.budget - self.spent[rows]

    def __call__(self, rows: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ask for points of samples.

        Args:
            rows: Sample of each point, of shape (m,); a sample may have several.
            z: Points of shape (m, ...), float32.

        Returns:
            `(value, reached)` of shape (m,). What the budget of a sample does not cover is not asked: its value is
            -inf, and it has not reached the goal.
        """
        value, reached = np.full(len(rows), -np.inf, dtype="float32"), np.zeros(len(rows), dtype=bool)
        asked = self._covered(rows)
        if asked is None:
            asked = slice(None)
        elif not len(asked):
            return value, reached
        value[asked], reached[asked] = self._answer(z[asked], self.y[rows[asked]])
        np.add.at(self.spent, rows[asked], 1)
        self.asked += len(rows[asked])
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
        return on_rows(lambda z, y: self.goal.value(self.loss, z, y), logits, y), on_rows(self.goal.reached, logits, y)

    def _answer(self, z, y):
        if self.program is None:
            return self._judge(self.model(z), y)
        size = _ROWS_GPU if backend.has_gpu() else _ROWS
        value, reached = np.empty(len(z), dtype="float32"), np.empty(len(z), dtype=bool)
        for part in models.padded_batches(len(z), size):
            used = part.stop - part.start
            salt = np.asarray((self.asked + part.start) % 2**31, dtype="int32")  # a random model draws anew
            found = self.program(models.pad(z[part], size), models.pad(y[part], size), salt)
            value[part], reached[part] = (ops.convert_to_numpy(f)[:used] for f in found)
        return value, reached


def _program(model, goal, loss):
    """Compiled answers of a Keras model to points with labels; kept as long as the model lives."""
    kept = _PROGRAMS.setdefault(model, {})
    if (goal, loss) not in kept:
        reference = weakref.ref(model)

        def judge(z, y, salt):
            logits = backend.evaluate(reference(), z, salt)
            return goal.value(loss, logits, y), goal.reached(logits, y)

        kept[goal, loss] = backend.compiled(judge, model)
    return kept[goal, loss]


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
    """

    access: ClassVar[str] = "black box"
    scores: ClassVar[bool] = True  # needs more than labels
    least: ClassVar[int] = 1  # queries without which a round makes no sense
    goal: Goal = field(default_factory=Misclassify)
    bounds: tuple[float, float] = (0.0, 1.0)
    queries: int = 5000

    def __post_init__(self):
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        checks.positive_int("queries", self.queries)

    # -- what an attack is made of ------------------------------------------------------------------------------

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

    def _view(self, model):
        if isinstance(model, keras.Model):
            return models.logits_view(model)
        if isinstance(model, BlackBox):
            return model
        if not callable(model):
            raise ValueError(f"`model` must be a keras.Model or a callable. Received: {type(model).__name__}")
        return BlackBox(model)

    def _prepare(self, model, x, y):
        model = self._view(model)
        callable_only = isinstance(model, BlackBox)
        x = checks.images("x", x, limits=self.bounds, shape=None if callable_only else model.input_shape[1:])
        given = None if y is None else checks.labels("y", y, n=len(x))
        if y is None:
            warnings.warn(
                "`y` was not given: the attack moves away from the model's own predictions, not from true labels.",
                UserWarning,
                stacklevel=3,
            )
        if callable_only or y is None:
            logits = predict(model, x)
            given = logits.argmax(axis=1) if y is None else given
        if callable_only:
            self._accept(model, given)
        classes = model.classes if callable_only else model.output_shape[-1]
        return model, x, checks.labels("y", given, n=len(x), classes=classes).astype("int32")

    def _accept(self, model: BlackBox, y) -> None:
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

    def _success(self, model, x_adv, y) -> np.ndarray:
        if not isinstance(model, BlackBox):
            return super()._success(model, x_adv, y)
        if model.result is not None and model.result[0] is x_adv:
            return model.result[1]  # known: nothing is asked again
        return on_rows(self.goal.reached, predict(model, x_adv), y)

    def _run(self, model, x, y, batch_size, seed, show) -> tuple[np.ndarray, np.ndarray]:
        n, y = len(x), np.asarray(y, dtype="int32")
        ask = Queries(model, self.goal, y, self.queries, self.climbed)
        everyone = np.arange(n)
        value, wrong = ask.clean(x)
        seeds = sample_seeds(seed, everyone)
        state = {"row": everyone, "x": x, "seed": seeds, "adv": np.array(x), "moves": np.zeros(n, dtype="int64")}
        state |= self.init(x, seeds, value) | {"reached": wrong}
        state["done"] = state["done"] | wrong | (ask.left(everyone) < self.least)
        waiting = np.flatnonzero(~state["done"])
        rows, waiting = waiting[:batch_size], waiting[batch_size:]
        with progress.bar(type(self).__name__, n, show=show, unit="samples") as tick:
            done, fell = n - len(rows) - len(waiting), int(wrong.sum())
            tick(done, progress.standing(done, fell))
            while len(rows):
                part = {k: v[rows] for k, v in state.items()}
                while not part["done"].any():  # the same samples as long as none is done
                    self.round(ask, part)
                    part["moves"] += 1
                    part["done"] |= ask.left(rows) < self.least
                for k, v in part.items():
                    if k not in ("row", "x", "seed"):
                        state[k][rows] = v
                over = part["done"]
                done, fell = done + int(over.sum()), fell + int(part["reached"][over].sum())
                tick(int(over.sum()), progress.standing(done, fell))
                free = batch_size - int((~over).sum())
                rows, waiting = np.concatenate([rows[~over], waiting[:free]]), waiting[free:]
        if isinstance(model, BlackBox):
            model.result = state["adv"], state["reached"]
        return state["adv"], ask.spent


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
