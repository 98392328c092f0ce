"""The attacks of iterative adversarial retraining (iar paper)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from kerasdef import norms
from kerasdef.attacks import BIM, FGSM, PGD, Attack, CarliniWagner, Goal

CW_RADIUS = 1.5  # L2 at 28x28; the paper names none. A change cut to it often no longer fools: docs/reproduction.md
CW_SIZE = 784  # the radius is for 28x28 images; others scale it by sqrt(d / 784)


@dataclass(frozen=True)
class Within:
    """A minimal attack whose images are brought back into a ball.

    Args:
        attack: Called as `attack(model, x, y, ...)`.
        eps: Radius of the ball.
        norm: Its norm.
    """

    attack: Attack
    eps: float
    norm: str = "l2"

    def with_goal(self, goal: Goal) -> Within:
        """The same with another goal of the attack."""
        return dataclasses.replace(self, attack=self.attack.with_goal(goal))

    def __call__(self, model: keras.Model | Callable, x: np.ndarray, y: np.ndarray, **options) -> np.ndarray:
        """Attack every image; changes beyond `eps` are shortened to it."""
        delta = keras.ops.convert_to_tensor(self.attack(model, x, y, **options) - x)
        eps = keras.ops.full((len(x),), self.eps, dtype="float32")
        return np.clip(x + keras.ops.convert_to_numpy(norms.get(self.norm).project(delta, eps)), *self.attack.bounds)


def default_attacks(eps: float, size: int) -> dict[str, Callable]:
    """The paper's four attacks for inputs of `size` values, with ten steps where it names no number."""
    cw = CarliniWagner(steps=20, binary_search_steps=2, initial_c=1.0, learning_rate=0.1)
    return {
        "fgsm": FGSM(eps=eps),
        "pgd": PGD(eps=eps, steps=10),
        "bim": BIM(eps=eps, steps=10),
        "cw": Within(cw, CW_RADIUS * math.sqrt(size / CW_SIZE)),
    }
