"""The numbers of robust training: radii by data set, and the settings that all methods share."""

from __future__ import annotations

from dataclasses import dataclass

from kerasdef import checks, norms
from kerasdef.recipes.base import enough_epochs, plain_numbers

EPS = {  # Linf radii that the field reports on; digits: half of MNIST's, its images have a tenth of the pixels
    "digits": 0.15,
    "mnist": 0.3,  # Madry et al., 2018
    "fashion_mnist": 0.1,
    "cifar10": 8 / 255,  # Madry et al., 2018; hybrid paper
    "gtsrb": 8 / 255,  # hybrid paper
}
STEPS = 2_000  # at least this many optimizer steps on small sets, where the method's epochs are fewer
VALIDATION = 500  # images that robust validation attacks after each epoch
PRECISIONS = ("float32", "bfloat16")
JUDGING = ("n_test", "autoattack")  # settings that nothing trained depends on


@dataclass(frozen=True)
class Settings:
    """What all methods of robust training share, checked; see `robust.train` for what they mean."""

    eps: float
    norm: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    average: bool
    shift: int
    precision: str
    valid_size: float
    n_test: int
    autoattack: bool
    seed: int

    def __post_init__(self):
        checks.real("eps", self.eps, low=0.0, open_low=True)
        checks.one_of("norm", self.norm, norms.NORMS)
        checks.positive_int("epochs", self.epochs)
        checks.positive_int("batch_size", self.batch_size)
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)
        checks.real("weight_decay", self.weight_decay, low=0.0)
        checks.non_negative_int("shift", self.shift)
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.share("valid_size", self.valid_size)
        checks.positive_int("n_test", self.n_test)
        checks.non_negative_int("seed", self.seed)
        plain_numbers(self)


def eps_of(eps: float | None, dataset: str) -> float:
    """The radius given, or that of a known data set."""
    if eps is None and dataset not in EPS:
        raise ValueError(
            f"`eps` must be given for data other than {', '.join(EPS)}, such as 8/255 (0.0314). Received: eps=None"
        )
    return checks.real("eps", EPS[dataset] if eps is None else eps, low=0.0, open_low=True)


def epochs_of(epochs: int | None, usual: int, n: int, batch_size: int) -> int:
    """The epochs given; else those usual for the method, on small sets as many as make `STEPS` steps."""
    if epochs is not None:
        return checks.positive_int("epochs", epochs)
    return enough_epochs(usual, STEPS, n, batch_size)
