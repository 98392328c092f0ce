"""The attacks of the MIA recipe, and the adversarial images that they make."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kerasdef import checks, models
from kerasdef.attacks import FGSM, GMA, PGD, CarliniWagner, Cycled, GradientAttack
from kerasdef.recipes.mia.settings import ATTACKS, RADII, RADII_SIZE
from kerasdef.runs.pieces import Piece
from kerasdef.training import adversarial_count


def l2_radii(size: int) -> tuple[float, ...]:
    """The paper's L2 radii for inputs of `size` values."""
    return tuple(r * math.sqrt(size / RADII_SIZE) for r in RADII)


def default_attack(name: str, size: int):
    """The paper's attack of this name, for inputs of `size` values.

    "gma": thirty radii in Linf. "pgd" (10 steps) and "fgsm": L2 radii 1, 2 and 3 in turn, scaled by
    sqrt(size / 784). "cw": L2, 100 steps for each of 3 values of c (paper: up to 1,000 steps, which would take hours
    for a training set on two cores; pass your own `CarliniWagner` for them).
    """
    checks.one_of("attacks", name, ATTACKS)
    if name == "gma":
        return GMA()
    if name == "cw":
        return CarliniWagner(steps=100, binary_search_steps=3, initial_c=1.0, learning_rate=0.1)
    if name == "pgd":
        return Cycled(PGD(norm="l2", steps=10, early_stop=False), l2_radii(size))  # table 2: 10 iterations
    return Cycled(FGSM(norm="l2"), l2_radii(size))


@dataclass
class AdversarialSet:
    """Adversarial images of one attack.

    Args:
        x: Images of shape (n, ...).
        y: True labels of shape (n,).
        index: Which image of its split each row is, shape (n,).
        radius: Radius of each row, shape (n,), or None.
        asked: Images that were to be attacked.
        wrong: How many of these were left out because the target gets them wrong anyway.
        unmoved: How many of these were left out because the attack changed nothing.
    """

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    asked: int
    wrong: int
    unmoved: int
    radius: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def by_index(self) -> dict[int, float]:
        """The radius of each image, by its place in the split; empty without radii."""
        return {} if self.radius is None else dict(zip(self.index.tolist(), self.radius.tolist(), strict=True))

    @classmethod
    def of(cls, piece: Piece) -> AdversarialSet:
        """Read what `attacked` made."""
        arrays, meta = piece
        return cls(**arrays, **{k: meta[k] for k in ("asked", "wrong", "unmoved")})


def attacked(name: str, attack: Callable, target: keras.Model, x, y, rows, *, seed: int, show: bool | None) -> Piece:
    """The images that an attack makes of those `rows` of (x, y) that the target gets right; rows may repeat."""
    right = models.predict_logits(target, x).argmax(axis=1) == y
    chosen = rows[right[rows]]
    if not len(chosen):
        raise ValueError(
            f"The target must get some of the images right that {name!r} attacks. "
            f"Received: accuracy=0 on {len(rows)} images"
        )
    x_adv = attack(target, x[chosen], y[chosen], seed=seed, progress=show)
    if x_adv.shape != x[chosen].shape:
        raise ValueError(
            f"Attack {name!r} must return one image for each. Received: {x_adv.shape} for {x[chosen].shape}"
        )
    moved = np.any((x_adv != x[chosen]).reshape(len(chosen), -1), axis=1)
    arrays = {
        "x": x_adv[moved],
        "y": y[chosen][moved],
        "index": chosen[moved],
    }
    radius = radius_of_each(attack, len(chosen))
    if radius is not None:
        arrays["radius"] = radius[moved].astype("float32")
    return arrays, {
        "asked": len(rows),
        "wrong": int(len(rows) - len(chosen)),
        "unmoved": int(np.sum(~moved)),
    }


def radius_of_each(attack, n: int) -> np.ndarray | None:
    """Radius of each of n images, where the attack has one."""
    if isinstance(attack, GMA | Cycled):
        return attack.radii_of(n)
    if isinstance(attack, GradientAttack):
        return np.broadcast_to(np.asarray(attack.eps, dtype="float32"), (n,))
    return None


def portion(n: int, share: float, names: Sequence[str], name: str) -> int:
    """Number of images of one attack in a share of adversarial images, beside n clean ones."""
    count = adversarial_count(n, share)
    return count // len(names) + (names.index(name) < count % len(names))
