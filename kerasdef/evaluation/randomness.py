"""A defense that draws random numbers has no one accuracy: four numbers under attack, and the same on clean images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import Attack
from kerasdef.defenses.base import Defense, as_defense
from kerasdef.models import Victim
from kerasdef.models.fixed import fixed_draw

_JUDGED = 3 * 2**20  # seed of the first draw: far from those of attacks and of how they judge themselves


@dataclass(frozen=True)
class FourNumbers:
    """Shares of n images on which a random defense is not fooled: it answers the true label or rejects.

    Args:
        one_shot: Of a single answer, on average over the draws.
        worst: In every one of the draws. With enough draws it falls to 0 for clean images too, so it says something
            only beside what it is for these.
        majority: In at least half of the draws.
        fixed: Where one draw is held still, for the attacker and for the answer: what is left without randomness. None
            where no attack was given.
    """

    one_shot: float
    worst: float
    majority: float
    fixed: float | None

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class Randomness:
    """What a random defense withstands, and the control.

    Args:
        attacked: The four numbers of the attacked images.
        clean: Those of the clean images, with the same draws.
        draws: Number of draws, N.
        images: Number of images, n.
    """

    attacked: FourNumbers
    clean: FourNumbers
    draws: int
    images: int

    def __post_init__(self):
        check_fields(self)

    def rows(self) -> list[dict]:
        """Rows of a table, as JSON values: the clean images first."""
        common = {"draws": self.draws, "images": self.images}
        return [{"on": name, **dataclasses.asdict(getattr(self, name)), **common} for name in ("clean", "attacked")]


@checked
def four_numbers(
    defense: Defense | keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    x_adv: np.ndarray,
    *,
    attack: Attack | None = None,
    draws: int = 20,
    seed: int = 0,
    bounds: tuple[float, float] | None = None,
) -> Randomness:
    """Judge attacked images of a random defense over several draws of its random numbers.

    Args:
        defense: A `Defense` or a Keras classifier that draws random numbers when it answers.
        x: Clean images of shape (n, ...), within the bounds.
        y: Their true labels of shape (n,).
        x_adv: What an attack on the random defense made of them, of the shape of x.
        attack: The attack that is made anew on the defense with its draw held still, for the fourth number. None leaves
            that out. It is given the goal of the defense.
        draws: Number of draws, N.
        seed: All randomness comes from it.
        bounds: `(low, high)`: range of the images. None is that of the defense.

    Raises:
        ValueError: The defense draws no random numbers, or the images do not fit it.

    References: Lucas et al., 2023, https://arxiv.org/abs/2302.13464 (majority votes and repeated draws);
    Croce et al., 2022, https://arxiv.org/abs/2202.13711 (defenses with random parts).
    """
    defense = as_defense(defense)
    surface, goal = defense.surface()
    if not isinstance(surface, keras.Model):
        raise ValueError(f"`defense` must be a Defense or a Keras model. Received: defense={defense!r}")
    bounds = defense.bounds if bounds is None else checks.bounds(bounds)
    checks.positive_int("draws", draws)
    checks.non_negative_int("seed", seed)
    victim = Victim.of(surface).facing(bounds)
    if not victim.random:
        raise ValueError(
            f"`defense` must draw random numbers when it answers. Received: {surface.name!r}, which does not"
        )
    x, x_adv = (checks.images(k, v, limits=bounds, shape=victim.input_shape) for k, v in (("x", x), ("x_adv", x_adv)))
    y = checks.labels("y", y, n=len(x), classes=defense.classes).astype("int32")
    if len(x_adv) != len(x):
        raise ValueError(f"`x_adv` must have one image for each of the {len(x)} in `x`. Received: {len(x_adv)}")

    fixed = fixed_clean = None
    if attack is not None:
        model = fixed_draw(surface, seed)
        still = Victim.of(model).facing(bounds)
        made = attack.with_goal(goal)(model, x, y, seed=seed, progress=False)
        fixed, fixed_clean = (1.0 - _fooled(still, goal, v, y, 0).mean() for v in (made, x))

    def found(z, of_fixed):
        fooled = np.stack([_fooled(victim, goal, z, y, _JUDGED + seed * draws + i) for i in range(draws)])
        return FourNumbers(
            one_shot=float(1.0 - fooled.mean()),
            worst=float(np.mean(~fooled.any(axis=0))),
            majority=float(np.mean(fooled.mean(axis=0) <= 0.5)),
            fixed=None if of_fixed is None else float(of_fixed),
        )

    return Randomness(found(x_adv, fixed), found(x, fixed_clean), draws, len(x))


def _fooled(victim: Victim, goal, x, y, seed: int) -> np.ndarray:
    """Booleans of shape (n,): the goal is reached in one draw."""
    return ops.convert_to_numpy(goal.reached(victim.predict(x, seed=seed), y))
