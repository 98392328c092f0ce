"""The numbers of the MIA recipe: what the paper says, what was chosen, and the settings of a run.

Source of every number: Sanapala and Gondi, 2025 (short name "mia"); where the paper is silent or cannot be met on
small machines, the comment says what was chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kerasdef import checks
from kerasdef.recipes.base import enough_epochs, plain_numbers

RADII = (1.0, 2.0, 3.0)  # table 2, rows on training: read as L2 at 28x28
RADII_SIZE = 784  # the radii are for 28x28 images; others scale them by sqrt(d / 784)
THRESHOLD = 0.80  # section 4.1.2: "an accuracy greater than 80 %"
MEMBERS = ("eat1", "eat2", "eat3")  # table 1
ATTACKS = ("gma", "pgd", "fgsm", "cw")  # section 5.2
ADAPTIVE_STEP = {"l2": 30.0, "linf": 10.0}  # of eps / steps: the strongest of 100 steps, see docs/reproduction.md
JUDGING = ("adaptive_limit", "adaptive_steps")  # settings that nothing trained depends on
EPOCHS = {"target": 5, "eat": 2, "mia": 4}  # the paper: 10 for EAT, 50 for MIA, on a GPU
STEPS = {"target": 1500, "eat": 250, "mia": 700}  # at least this many optimizer steps on small sets


@dataclass(frozen=True)
class Settings:
    """Every number of a run, checked; see `train` for what they mean."""

    shares: tuple[float, ...]
    share: float | None
    threshold: float
    stop: bool
    bootstraps: int
    epochs: dict[str, int]
    batch_size: int
    learning_rate: float
    test_size: float
    valid_size: float
    limit: int
    adaptive_limit: int
    adaptive_steps: int
    seed: int

    def __post_init__(self):
        checks.growing_shares("shares", self.shares)
        if self.share is not None and self.share not in self.shares:
            raise ValueError(f"`share` must be None or one of shares={self.shares}. Received: share={self.share!r}")
        checks.real("threshold", self.threshold, low=0.0, high=1.0)
        checks.positive_int("bootstraps", self.bootstraps)
        for name, value in self.epochs.items():
            checks.positive_int(f"epochs[{name!r}]", value)
        checks.positive_int("batch_size", self.batch_size)
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)
        checks.share("test_size", self.test_size)
        checks.share("valid_size", self.valid_size)
        checks.positive_int("limit", self.limit)
        checks.positive_int("adaptive_limit", self.adaptive_limit)
        checks.positive_int("adaptive_steps", self.adaptive_steps)
        checks.non_negative_int("seed", self.seed)
        plain_numbers(self)


def epochs_of(given: Mapping[str, int] | None, n: int, batch_size: int) -> dict[str, int]:
    """Passes by role: those given, and the defaults for the others on n training images."""
    epochs = {role: enough_epochs(EPOCHS[role], STEPS[role], n, batch_size) for role in EPOCHS}
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"`epochs` must be a dict of {', '.join(EPOCHS)}. Received: epochs={given!r}")
    for name, value in (given or {}).items():
        name = checks.one_of("epochs", name, EPOCHS)
        epochs[name] = checks.positive_int(f"epochs[{name!r}]", value)
    return epochs
