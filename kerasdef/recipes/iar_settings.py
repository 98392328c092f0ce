"""The numbers of iterative adversarial retraining: what the paper says, what was chosen, and the settings of a run.

Source of every number: Afzal and Huzaifa, 2025 (short name "iar"); where the paper is silent, the comment says so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np

from kerasdef import checks, norms
from kerasdef.attacks import BIM, FGSM, PGD, Attack, CarliniWagner

EPS = (0.1, 0.05)  # gray and color images; the paper names no radius, its review of FGSM quotes 0.1
CW_RADIUS = 1.5  # L2 at 28x28, about what C&W needs at the median on an undefended network; the paper names none
CW_SIZE = 784  # the radius is for 28x28 images; others scale it by sqrt(d / 784)
SPLIT = 0.20  # section on data: 80:20
RHO = 0.1  # section on training: rho >= 0.1
LABELS = ("true", "reject")
ADAPTIVE_STEP = 10.0  # of eps / steps, started at the image: the strongest on models that reject (docs/reproduction.md)
JUDGING = ("n_test", "autoattack")  # settings that nothing trained depends on
EPOCHS = 5  # on clean images before retraining; the paper shows 20 epochs in all
STEPS = 1500  # at least this many optimizer steps on small sets


@dataclass(frozen=True)
class Settings:
    """Every number of a run, checked; see `iar.train` for what they mean."""

    eps: float
    adversarial_label: str
    weight: float
    smoothing: float
    noise: float
    iterations: int
    round_size: int
    stop: str | None
    epochs: int
    batch_size: int
    learning_rate: float
    n_test: int
    autoattack: bool
    seed: int

    def __post_init__(self):
        checks.one_of("adversarial_label", self.adversarial_label, LABELS)
        checks.real("weight", self.weight, low=0.0, high=1.0)
        checks.real("smoothing", self.smoothing, low=0.0, high=0.99)
        checks.real("noise", self.noise, low=0.0)
        checks.positive_int("iterations", self.iterations)
        if self.stop not in (None, "rho"):
            raise ValueError(f'`stop` must be None or "rho". Received: stop={self.stop!r}')
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)
        checks.positive_int("n_test", self.n_test)
        for f in dataclasses.fields(self):
            if isinstance(getattr(self, f.name), np.generic):  # numbers of NumPy are no JSON values
                object.__setattr__(self, f.name, getattr(self, f.name).item())


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


def epochs_of(epochs: int | None, n: int, batch_size: int) -> int:
    """The epochs given; else the usual ones, on small sets as many as make `STEPS` steps."""
    if epochs is not None:
        return checks.positive_int("epochs", epochs)
    return max(EPOCHS, math.ceil(STEPS / max(1, n // batch_size)))
