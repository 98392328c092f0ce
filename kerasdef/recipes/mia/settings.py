"""The numbers of the MIA recipe: what the paper says, what was chosen, and the settings of a run.

The source of every number is Sanapala and Gondi, 2025 (short name "mia"). Where the paper is silent, or cannot be met
on small machines, the comment or the field says what was chosen. Imports no Keras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kerasdef import checks
from kerasdef.recipes import settings as common
from kerasdef.recipes.settings import RunSettings, enough_epochs, usual_batch
from kerasdef.settings import setting

RADII = (1.0, 2.0, 3.0)  # table 2, rows on training: read as L2 at 28x28
RADII_SIZE = 784  # the radii are for 28x28 images; others scale them by sqrt(d / 784)
ATTACKS = ("gma", "pgd", "fgsm", "cw")  # section 5.2
ADAPTIVE_STEP = {"l2": 30.0, "linf": 10.0}  # of eps / steps: the strongest of 100 steps, see docs/reproduction.md
JUDGING = ("adaptive_limit", "adaptive_steps")  # settings that nothing trained depends on
EPOCHS = {"target": 5, "eat": 2, "mia": 4}  # the paper: 10 for EAT, 50 for MIA, on a GPU
STEPS = {"target": 1500, "eat": 250, "mia": 700}  # at least this many optimizer steps on small sets


def _attacks(name: str, value) -> tuple[str, ...] | dict[str, Callable]:
    """Return attacks: names that are known, or callables by names of the user's own."""
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, Mapping | Sequence):
        raise ValueError(f"`{name}` must be names of attacks or a dict of attacks. Received: {name}={value!r}")
    if not value:
        raise ValueError(f"`{name}` must name at least one attack. Received: {name}=()")
    if not isinstance(value, Mapping):
        return tuple(checks.one_of(name, attack, ATTACKS) for attack in value)
    for key, attack in value.items():
        if not isinstance(key, str) or key in ("clean", "pooled") or not key.isidentifier():
            raise ValueError(f"`{name}` must have names that are identifiers. Received: {key!r}")
        if not callable(attack):
            raise ValueError(f"`{name}` must hold callables. Received: {key}={attack!r}")
    return dict(value)


def _members(name: str, value) -> tuple:
    """Return one or more networks."""
    value = (value,) if isinstance(value, str) or callable(value) else value
    good = isinstance(value, Sequence) and not isinstance(value, bytes) and len(value) > 0
    if not good or not all(isinstance(member, str) or callable(member) for member in value):
        raise ValueError(f"`{name}` must be one or more networks. Received: {name}={value!r}")
    return tuple(value)


def _epochs(name: str, value) -> dict[str, int]:
    """Return passes by role, each positive."""
    if not isinstance(value, Mapping):
        raise ValueError(f"`{name}` must be a dict of {', '.join(EPOCHS)}. Received: {name}={value!r}")
    return {checks.one_of(name, k, EPOCHS): checks.positive_int(f"{name}[{k!r}]", v) for k, v in value.items()}


@dataclass(frozen=True, kw_only=True)
class MIASettings(RunSettings):
    """Every setting of a run of MIA."""

    per_attack: bool = setting(
        False,
        check=common.switch,
        help="Whether one defense is trained for each attack, as in the paper's tables, instead of one for all.",
    )
    attacks: Sequence[str] | Mapping[str, Callable] = setting(
        ATTACKS,
        check=_attacks,
        read=common.several,
        record=False,
        source="section 5.2",
        help="The names of the attacks to train against, on the command line separated by commas.",
        python="Also a dict from names to attacks: anything called as `attack(model, x, y, seed=..., progress=...)` "
        "that returns one image for each.",
    )
    shares: Sequence[float] = setting(
        (0.15, 0.25, 0.40, 0.50),
        check=checks.growing_shares,
        read=common.numbers,
        help="The growing shares of adversarial images in the training images, one for each cycle of EAT, each above "
        "0 and below 1.",
    )
    share: float | None = setting(
        None,
        help="The one of `shares` that the voters are trained at (the paper took 0.40). By default the stop rule "
        "chooses it.",
    )
    threshold: float = setting(
        0.80,
        check=common.unit,
        source='section 4.1.2, "an accuracy greater than 80 %"',
        help="The accuracy, from 0 to 1, that the stop rule asks for.",
    )
    stop: bool = setting(
        False,
        check=common.switch,
        help="Whether the cycles end where the stop rule fires. Otherwise all are trained, as in tables 5 and 6; the "
        "rule chooses the same share.",
    )
    bootstraps: int = setting(
        3,
        check=checks.positive_int,
        help="The number of voters; voter i starts from the EAT model i modulo their number.",
    )
    target: str | Callable = setting(
        "target_dnn",
        record=False,
        help="The name of the network of the undefended target.",
        python="Also a function (input_shape, outputs, seed=...) that returns a Keras model.",
    )
    members: Sequence[str | Callable] | str | Callable = setting(
        ("eat1", "eat2", "eat3"),
        check=_members,
        read=common.several,
        record=False,
        source="table 1",
        help="The names of the networks of the EAT models, on the command line separated by commas.",
        python="Also functions as for `target`.",
    )
    epochs: Mapping[str, int] | None = setting(
        None,
        check=_epochs,
        parts={
            "target": "The number of passes over the training images for the target.",
            "eat": "The number of passes in each cycle of the EAT models.",
            "mia": "The number of passes for each voter.",
        },
        help='The number of passes over the training images for the "target", for each cycle of "eat" and for each '
        'voter of "mia". Those that are missing are 5, 2 and 4, and on fewer than 10,000 training images as many as '
        "make 1,500, 250 and 700 optimizer steps.",
    )
    batch_size: int | None = setting(
        None,
        check=checks.positive_int,
        help="The number of images in a training batch. By default 128, or 32 below 10,000 training images.",
    )
    learning_rate: float = common.learning_rate(falls=False)
    callbacks: Sequence[Any] = common.callbacks()
    test_size: float = setting(
        0.30,
        check=checks.share,
        source="the paper's 70:30",
        help="The share of the whole data set that is held out for testing, the classes in proportion.",
    )
    valid_size: float = setting(
        0.10, check=checks.share, help="The share of the remaining images that is held out for the stop rule."
    )
    limit: int = setting(
        4000,
        check=checks.positive_int,
        help="The largest number of test images to judge on; the clean and the attacked images are the same ones.",
    )
    adaptive_limit: int = setting(
        500, check=checks.positive_int, help="The largest number of test images for the adaptive attacks."
    )
    adaptive_steps: int = setting(100, check=checks.positive_int, help="The number of steps of the adaptive attacks.")

    def check_together(self):
        """The share of the voters is one of the shares."""
        if self.share is not None and self.share not in self.shares:
            raise ValueError(f"`share` must be None or one of shares={self.shares}. Received: share={self.share!r}")

    def on(self, n: int) -> MIASettings:
        """The settings for n training images: what was left open follows from their number."""
        size = usual_batch(n) if self.batch_size is None else self.batch_size
        if n < size:
            raise ValueError(
                f"`batch_size` must be at most the number of training images, {n}. Received: batch_size={size}"
            )
        usual = {role: enough_epochs(EPOCHS[role], STEPS[role], n, size) for role in EPOCHS}
        return dataclasses.replace(self, batch_size=size, epochs=usual | (self.epochs or {}))
