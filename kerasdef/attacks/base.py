"""What every attack is: settings in a frozen dataclass, called on a model and arrays."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasdef import checks, losses
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import signs
from kerasdef.goals import Goal, answered
from kerasdef.models import Victim
from kerasdef.norms import Norm
from kerasdef.threat import ThreatModel

KNOWS = {"white box": "the whole model", "black box": "the outputs of the model"}

_FRESH = 21  # draws of a random model by which success is judged: odd, so that no vote ties
_JUDGED = 2**20  # seed of the first of them, far from those of attacks


@dataclass(frozen=True, eq=False)
class Result:
    """What an attack found.

    Args:
        x_adv: Array of the shape of x.
        success: Booleans of shape (n,): the attack has reached its goal, or the goal was reached from the start.
        evaluations: Integers of shape (n,): gradients (white box) or queries (black box) spent on each sample.
    """

    x_adv: np.ndarray
    success: np.ndarray
    evaluations: np.ndarray

    def __post_init__(self):
        check_fields(self)


class Attack(ABC):
    """An attack on a classifier: a frozen dataclass of settings that is called on a model and arrays.

    Attributes:
        goal: What the attacker wants.
        bounds: Valid range of an input value, `(low, high)`.
        access: What it needs of the model: "white box" (gradients) or "black box" (outputs).
        kind: "budget" (the strongest input in a ball) or "minimal" (the smallest change that is enough).
        norm: Norm in which changes are measured, or None.
        per_sample: Names of the settings that may have a value for each sample, of shape (n, ...).
    """

    access: ClassVar[str] = "white box"
    kind: ClassVar[str] = "budget"
    per_sample: ClassVar[tuple[str, ...]] = ("eps",)
    goal: Goal
    bounds: tuple[float, float]
    norm: Norm | str | None = None

    @checked
    def __call__(
        self,
        model: keras.Model | Callable | Victim,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool | None = None,
    ) -> np.ndarray:
        """Attack every sample of an array.

        The answer depends on `seed` and on the position of a sample in `x`, not on the batch size. Samples that the
        model gets wrong from the start are returned unchanged.

        Args:
            model: A built Keras classifier; a last softmax or sigmoid is looked through. For black-box attacks also any
                callable from images to logits, probabilities or labels.
            x: Array of shape (n, ...), floating point within `bounds` (or uint8, scaled to [0, 1]).
            y: True labels of shape (n,). None attacks the model's own predictions, and says so.
            batch_size: Samples that are worked on at a time.
            seed: All randomness comes from it.
            progress: Show a bar; None shows it on a terminal and in notebooks.

        Returns:
            x_adv of the shape of x, float32, within `bounds`.

        Raises:
            ValueError: x outside the bounds, of the wrong shape or type, or with NaN; labels out of range.
        """
        victim, x, y = self._prepare(model, x, y)
        checks.positive_int("batch_size", batch_size)
        checks.non_negative_int("seed", seed)
        self._warn(victim, x, y)
        return self._run(victim, x, y, batch_size, seed, progress)[0]

    @checked
    def run(
        self,
        model: keras.Model | Callable | Victim,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Result:
        """Attack every sample of an array, and tell which fell and what it cost; arguments as in a call."""
        victim, x, y = self._prepare(model, x, y)
        checks.positive_int("batch_size", batch_size)
        checks.non_negative_int("seed", seed)
        self._warn(victim, x, y)
        return self._result(victim, x, y, batch_size, seed, progress)

    @checked
    def look(self, model: keras.Model | Callable | Victim, x: np.ndarray, y: np.ndarray) -> dict[str, str]:
        """What hides weaknesses of the model from the attack, as sentences by name: the warnings of a call."""
        return self._signs(*self._prepare(model, x, y))

    @property
    def threat(self) -> ThreatModel:
        """The threat model: norm, radius, bounds, goal, access and queries."""
        known = {"goal": self.goal, "bounds": self.bounds, "access": self.access}
        names = {f.name for f in dataclasses.fields(self)} | {"norm"}
        known |= {name: getattr(self, name) for name in ("norm", "eps", "queries") if name in names}
        return ThreatModel(**known, knows=KNOWS[self.access])

    @checked
    def with_goal(self, goal: Goal) -> Attack:
        """This attack with another goal."""
        return dataclasses.replace(self, goal=goal)

    def rows(self, index: np.ndarray, n: int) -> Attack:
        """This attack for the samples `index` of n: settings with a value for each sample are cut to them."""
        changes = {}
        for name in (f.name for f in dataclasses.fields(self)):
            value = getattr(self, name)
            if isinstance(value, Attack):
                changes[name] = value.rows(index, n)
            elif name in self.per_sample and isinstance(value, tuple | np.ndarray) and len(value) == n:
                changes[name] = np.asarray(value)[index]
        return dataclasses.replace(self, **changes) if changes else self

    def _check_rows(self, n: int) -> None:
        """Raise where a setting with a value for each sample is one for another number of samples."""
        for name in (f.name for f in dataclasses.fields(self)):
            value = getattr(self, name)
            for attack in value if isinstance(value, tuple) else (value,):
                if isinstance(attack, Attack):
                    attack._check_rows(n)
            if (
                name in self.per_sample
                and isinstance(value, tuple | np.ndarray)
                and np.ndim(value) == 1
                and len(value) != n
            ):
                raise ValueError(
                    f"`{name}` must be a number or one for each of the {n} samples. Received: {len(value)} values"
                )

    # -- what subclasses fill in --------------------------------------------------------------------------------

    def _result(self, victim: Victim, x, y, batch_size: int, seed: int, show: bool | None) -> Result:
        """Attack checked arrays and judge what was found."""
        x_adv, evaluations = self._run(victim, x, y, batch_size, seed, show)
        truth = np.repeat(y, len(x_adv) // len(y))  # one attack returns several images for one
        return Result(x_adv, self._success(victim, x_adv, truth), evaluations)

    def _warn(self, victim: Victim, x, y) -> None:
        """Say what hides weaknesses of the model from the attack."""
        for text in self._signs(victim, x, y).values():
            signs.warn(text)

    def _signs(self, victim: Victim, x, y) -> dict[str, str]:
        """What hides weaknesses of the model from the attack: all of it from one that follows gradients."""
        climbed = dict.fromkeys(self._climbs())
        if self.access == "white box":
            found = [signs.blind_spots(victim, x, y, self.goal, loss) for loss in climbed]
            return {name: text for spots in reversed(found) for name, text in spots.items()}
        if victim.access == "gradients":  # a callable has been asked for all of x, and for nothing less
            x, y = x[: signs.LOOKED_AT], y[: signs.LOOKED_AT]
        own = [losses.get(loss) for loss in climbed if loss is not None]
        logits = victim.predict(x)
        values = [self.goal.value(loss, *map(ops.convert_to_tensor, (logits, y))) for loss in own]
        broken = [np.mean(~np.isfinite(ops.convert_to_numpy(value))) for value in values]
        return signs.non_finite(float(np.mean(~self._answered(victim, x))), float(max(broken, default=0.0)))

    def _climbs(self) -> tuple[Callable | None, ...]:
        """The functions of one's own that the attack climbs; None stands for the losses that have names."""
        loss = getattr(self, "loss", None)
        return (loss if callable(loss) else None,)

    def _answered(self, victim: Victim, x) -> np.ndarray:
        """Booleans of shape (n,): the outputs of the model are an answer."""
        return ops.convert_to_numpy(answered(victim.predict(x)))

    @abstractmethod
    def _run(self, model, x, y, batch_size: int, seed: int, show: bool | None) -> tuple[np.ndarray, np.ndarray]:
        """Attack checked arrays; returns (x_adv, evaluations of each row of it)."""

    def _view(self, model) -> Victim:
        """The model as the attack sees it."""
        victim = Victim.of(model).facing(self.bounds)
        if self.access == "white box" and victim.access != "gradients":
            raise ValueError(f"`model` must be a keras.Model for {type(self).__name__}. Received: a callable")
        return victim

    def _success(self, victim: Victim, x_adv, y) -> np.ndarray:
        """Booleans of shape (n,): the goal is reached; for a random model in most of several fresh draws."""
        if not victim.random:
            return np.asarray(self.goal.reached(victim.predict(x_adv), y))
        found = [np.asarray(self.goal.reached(victim.predict(x_adv, seed=_JUDGED + i), y)) for i in range(_FRESH)]
        return np.mean(found, axis=0) > 0.5

    def _prepare(self, model, x, y):
        if isinstance(model, keras.Model):
            model = Victim.of(model, shape=np.shape(x)[1:])
        victim = self._view(model)
        x = checks.images("x", x, limits=self.bounds, shape=victim.input_shape)
        self._check_rows(len(x))
        if y is None:
            warnings.warn(
                "`y` was not given: the attack moves away from the model's own predictions, not from true labels.",
                UserWarning,
                stacklevel=3,
            )
        black = victim.access != "gradients"
        logits = victim.predict(x) if black or y is None else None
        y = logits.argmax(axis=-1) if y is None else checks.labels("y", y, n=len(x))
        if black:
            self._accept(victim, y)
        self.goal.check(victim.classes)
        return victim, x, checks.labels("y", y, n=len(x), classes=victim.classes).astype("int32")

    def _accept(self, victim: Victim, y) -> None:  # noqa: B027 - most attacks take what they get
        """Raise where a callable gives less than this attack needs."""

    def __repr__(self) -> str:
        shown = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            text = f"<{len(value)} values>" if isinstance(value, tuple) and len(value) > 4 else repr(value)
            shown.append(f"{f.name}={text}")
        return f"{type(self).__name__}({', '.join(shown)})"
