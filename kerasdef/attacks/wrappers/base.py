"""Attacks made of an attack: another goal, several radii."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kerasdef import checks
from kerasdef.annotations import check_fields
from kerasdef.attacks.base import Attack
from kerasdef.attacks.white.gradient import GradientAttack
from kerasdef.goals import Goal, Hit
from kerasdef.threat import ThreatModel

_STRATEGIES = ("second_best", "least_likely", "random")


@dataclass(frozen=True, eq=False, repr=False)
class Wrapper(Attack):
    """An attack that hands its work to another one; goal and bounds are those of the inner attack."""

    attack: Attack

    def __post_init__(self):
        check_fields(self)
        if not isinstance(self.attack, Attack):
            raise ValueError(f"`attack` must be an Attack. Received: attack={self.attack!r}")

    @property
    def goal(self) -> Goal:
        """Goal of the inner attack."""
        return self.attack.goal

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of the inner attack."""
        return self.attack.bounds

    @property
    def access(self) -> str:
        """What the inner attack needs of the model."""
        return self.attack.access

    @property
    def kind(self) -> str:
        """Whether the inner attack fills a ball ("budget") or looks for the smallest change ("minimal")."""
        return self.attack.kind

    @property
    def threat(self) -> ThreatModel:
        """Threat model of the inner attack."""
        return self.attack.threat

    def with_goal(self, goal: Goal) -> Attack:
        """This attack with another goal."""
        return dataclasses.replace(self, attack=self.attack.with_goal(goal))

    def _view(self, model):
        return self.attack._view(model)

    def _climbs(self):
        return self.attack._climbs()

    def _accept(self, victim, y):
        self.attack._accept(victim, y)

    def _success(self, model, x_adv, y):
        return self.attack._success(model, x_adv, y)


@dataclass(frozen=True, eq=False, repr=False)
class Targeted(Wrapper):
    """Move every sample to a chosen class instead of away from its own.

    Args:
        attack: Any attack.
        targets: Target classes of shape (n,), or how to choose them: "second_best" (the most likely other class),
            "least_likely", "random". Targets are never taken from `y`.

    Raises:
        ValueError: When called: a target equals the true label.

    Example:
    >>> x_adv = Targeted(PGD(eps=0.3), "least_likely")(model, x, y)
    """

    per_sample: ClassVar[tuple[str, ...]] = ("targets",)

    targets: np.ndarray | str = "second_best"

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.targets, str):
            checks.one_of("targets", self.targets, _STRATEGIES)

    def _result(self, victim, x, y, batch_size, seed, show):
        """What was found; success is to be taken for the target."""
        targets = self._choose(victim.predict(x), y, seed)
        return self._aimed()._result(victim, x, targets.astype("int32"), batch_size, seed, show)

    def _aimed(self) -> Attack:
        return self.attack.with_goal(Hit())

    def _run(self, model, x, y, batch_size, seed, show):
        targets = self._choose(model.predict(x), y, seed)
        return self._aimed()._run(model, x, targets.astype("int32"), batch_size, seed, show)

    def _choose(self, logits, y, seed):
        n, k = logits.shape
        if not isinstance(self.targets, str):
            targets = checks.labels("targets", self.targets, n=n, classes=k)
            equal = np.flatnonzero(targets == y)
            if len(equal):
                raise ValueError(f"`targets` must differ from the true labels. Received: {len(equal)} equal to `y`")
            return targets
        if self.targets == "random":
            return (y + np.random.default_rng(seed).integers(1, k, size=n)) % k
        others = logits.copy()
        others[np.arange(n), y] = -np.inf if self.targets == "second_best" else np.inf
        return others.argmax(axis=1) if self.targets == "second_best" else others.argmin(axis=1)


@dataclass(frozen=True, repr=False)
class Cycled(Wrapper):
    """A gradient attack whose samples take several radii in turn, one each.

    Args:
        attack: A `GradientAttack`; its `eps` is not used.
        radii: The radii, each at least 0.

    Example:
    >>> x_adv = Cycled(PGD(norm="l2", steps=10), (1.0, 2.0, 3.0))(model, x, y)
    """

    radii: tuple[float, ...] = ()

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.attack, GradientAttack):
            raise ValueError(f"`attack` must be a GradientAttack. Received: attack={self.attack!r}")
        object.__setattr__(self, "radii", checks.radius("radii", np.atleast_1d(self.radii)))

    def radii_of(self, n: int) -> np.ndarray:
        """Radius of each of n samples: shape (n,)."""
        return np.resize(np.asarray(self.radii), n)

    @property
    def threat(self) -> ThreatModel:
        """Threat model: the radii in turn."""
        return dataclasses.replace(self.attack.threat, eps=self.radii)

    def _run(self, model, x, y, batch_size, seed, show):
        attack = dataclasses.replace(self.attack, eps=self.radii_of(len(x)))
        return attack._run(model, x, y, batch_size, seed, show)


def targets_outside(name: str, attack: Attack) -> None:
    """Raise where a `Targeted` stands inside: a wrapper that judges what was found must know the targets as well."""
    inner = attack
    while isinstance(inner, Wrapper):
        if isinstance(inner, Targeted):
            raise ValueError(f"`Targeted` must stand outside: Targeted({name}(...)). Received: attack={attack!r}")
        inner = inner.attack
