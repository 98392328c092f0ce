"""Attacks made of attacks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from kerasdef import checks, models
from kerasdef.attacks.base import Attack
from kerasdef.attacks.goals import Hit
from kerasdef.attacks.gradient import GradientAttack

_STRATEGIES = ("second_best", "least_likely", "random")


@dataclass(frozen=True)
class Targeted:
    """Move every sample to a chosen class instead of away from its own.

    Args:
        attack: Any attack.
        targets: Target classes of shape (n,), or how to choose them: "second_best" (the most likely other class),
            "least_likely", "random". Targets are never taken from `y`.

    Example:
    >>> x_adv = Targeted(PGD(eps=0.3), "least_likely")(model, x, y)
    """

    attack: Attack
    targets: np.ndarray | str = "second_best"

    def __post_init__(self):
        if not isinstance(self.attack, Attack):
            raise ValueError(f"`attack` must be an Attack. Received: attack={self.attack!r}")
        if isinstance(self.targets, str):
            checks.one_of("targets", self.targets, _STRATEGIES)

    def __call__(self, model, x, y, *, batch_size: int = 256, seed: int = 0, progress: bool | None = None):
        """Attack every sample of an array; arguments and errors as in `Attack.__call__`, but `y` is required.

        Raises:
            ValueError: A target equals the true label.
        """
        logits = models.predict_logits(model, checks.images("x", x, limits=self.attack.bounds))
        y = checks.labels("y", y, n=len(x), classes=logits.shape[1])
        targets = self._choose(logits, y, seed)
        attack = dataclasses.replace(self.attack, goal=Hit())
        return attack(model, x, targets, batch_size=batch_size, seed=seed, progress=progress)

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


@dataclass(frozen=True)
class Cycled:
    """A gradient attack whose samples take several radii in turn, one each.

    Args:
        attack: A `GradientAttack`; its `eps` is not used.
        radii: The radii, each at least 0.

    Example:
    >>> x_adv = Cycled(PGD(norm="l2", steps=10), (1.0, 2.0, 3.0))(model, x, y)
    """

    attack: GradientAttack
    radii: tuple[float, ...]

    def __post_init__(self):
        if not isinstance(self.attack, GradientAttack):
            raise ValueError(f"`attack` must be a GradientAttack. Received: attack={self.attack!r}")
        object.__setattr__(self, "radii", checks.radius("radii", self.radii))

    def radii_of(self, n: int) -> np.ndarray:
        """Radius of each of n samples: shape (n,)."""
        return np.resize(np.asarray(self.radii), n)

    def __call__(self, model, x, y, *, batch_size: int = 256, seed: int = 0, progress: bool | None = None):
        """Attack every sample of an array; arguments and errors as in `Attack.__call__`."""
        attack = dataclasses.replace(self.attack, eps=self.radii_of(len(x)))
        return attack(model, x, y, batch_size=batch_size, seed=seed, progress=progress)
