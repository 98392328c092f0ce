"""The numbers of iterative adversarial retraining: what the paper says, what was chosen, and the settings of a run.

Source of every number: Afzal and Huzaifa, 2025 (short name "iar"); where the paper is silent, the comment says so.
"""

from __future__ import annotations

from dataclasses import dataclass

from kerasdef import checks
from kerasdef.recipes.base import enough_epochs, plain_numbers

EPS = (0.1, 0.05)  # gray and color images; the paper names no radius, its review of FGSM quotes 0.1
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
        plain_numbers(self)


def epochs_of(epochs: int | None, n: int, batch_size: int) -> int:
    """The epochs given; else the usual ones, on small sets as many as make `STEPS` steps."""
    if epochs is not None:
        return checks.positive_int("epochs", epochs)
    return enough_epochs(EPOCHS, STEPS, n, batch_size)
