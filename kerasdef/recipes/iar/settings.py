"""The numbers of iterative adversarial retraining: what the paper says, what was chosen, and the settings of a run.

The source of every number is Afzal and Huzaifa, 2025 (short name "iar"); where the paper is silent, the comment or the
field says so. Imports no Keras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from kerasdef import checks
from kerasdef.recipes import settings as common
from kerasdef.recipes.settings import RunSettings, enough_epochs, usual_batch
from kerasdef.settings import setting

EPS = (0.1, 0.05)  # gray and color images in [0, 1]; the paper names no radius, its review of FGSM quotes 0.1
SPLIT = 0.20  # section on data: 80:20
RHO = 0.1  # section on training: rho >= 0.1
LABELS = ("true", "reject")
ADAPTIVE_STEP = 10.0  # of eps / steps, started at the image: the strongest on models that reject (docs/reproduction.md)
JUDGING = ("n_test", "autoattack")  # settings that nothing trained depends on
EPOCHS = 5  # on clean images before retraining; the paper shows 20 epochs in all
STEPS = 1500  # at least this many optimizer steps on small sets
NOT_NAMES = ("clean", "pooled")  # columns of the report have these names
GRAY = "gray_"  # begins the name of an attack that is made on the surrogate


def _attacks(name: str, value) -> dict[str, Callable]:
    """Return attacks by names of the user's own."""
    if not isinstance(value, Mapping):
        raise ValueError(f"`{name}` must map names to callables. Received: {value!r}")
    for key, attack in value.items():
        if not str(key).isidentifier() or not callable(attack):
            raise ValueError(f"`{name}` must map names to callables. Received: {key!r}: {attack!r}")
        if key in NOT_NAMES or str(key).startswith(GRAY):
            raise ValueError(
                f"Names of `{name}` must not be {NOT_NAMES[0]!r} or {NOT_NAMES[1]!r} or begin with {GRAY!r}. "
                f"Received: {key!r}"
            )
    if not value:
        raise ValueError(f"`{name}` must name at least one attack. Received: {name}={{}}")
    return dict(value)


def _stop(name: str, value) -> str:
    if not isinstance(value, str) or value != "rho":
        raise ValueError(f'`{name}` must be None or "rho". Received: {name}={value!r}')
    return value


@dataclass(frozen=True, kw_only=True)
class IARSettings(RunSettings):
    """Every setting of a run of iterative adversarial retraining."""

    eps: float | None = setting(
        None,
        check=common.positive,
        read=common.fraction,
        help="The Linf radius of FGSM, PGD and BIM, and of the attacks of the adaptive column, in units of the data. "
        "By default a tenth of the range of the values, or a twentieth for color images.",
    )
    attacks: Mapping[str, Callable] | None = setting(
        None,
        option=None,
        check=_attacks,
        record=False,
        help="Attacks by name instead of the paper's four: anything called as `attack(model, x, y, seed=..., "
        "progress=...)` that returns one image for each.",
    )
    adversarial_label: str = setting(
        "true",
        check=partial(checks.one_of, choices=LABELS),
        help='What adversarial images are labeled: "true" keeps their class; "reject" gives them the eleventh, unless '
        "the attack changed nothing, and attacks with a `with_goal` then want a label that is neither the true one nor "
        "the eleventh.",
    )
    weight: float = setting(
        0.5, check=common.unit, help="The weight of the clean and noisy images in the loss, from 0 to 1."
    )
    smoothing: float = setting(
        0.1,
        check=partial(checks.real, low=0.0, high=0.99),
        help="How much the labels are smoothed while retraining, from 0 to below 1.",
    )
    noise: float = setting(
        0.1,
        check=common.at_least_0,
        help="The standard deviation of the Gaussian noise of the noisy images, as a share of the range of the values.",
    )
    iterations: int = setting(
        3000, check=checks.positive_int, source="the paper's kmax", help="The largest number of batches of retraining."
    )
    round_size: int = setting(
        2048, check=checks.positive_int, help="The number of training images that are attacked in each round."
    )
    stop: str | None = setting(
        None, check=_stop, help='"rho" ends the retraining where the paper\'s rule fires; by default it goes on.'
    )
    network: str | Callable = setting(
        "cnn11",
        record=False,
        help="The name of the network.",
        python="Also a function (input_shape, outputs, seed=...) that returns a Keras model.",
    )
    surrogate: str | Callable = setting(
        "target_dnn", record=False, help="The network of the gray-box attacker, given like `network`."
    )
    epochs: int | None = setting(
        None,
        check=checks.positive_int,
        help="The number of passes over the clean images before retraining. By default 5, and more on small sets.",
    )
    batch_size: int = setting(
        126,
        check=checks.positive_int,
        help="The number of images in a batch of retraining: a multiple of the number of kinds of images, which is six "
        "with the paper's attacks.",
    )
    learning_rate: float = common.learning_rate()
    n_test: int = common.judged()
    autoattack: bool = common.autoattack()

    def on(self, n: int, kinds: int) -> IARSettings:
        """The settings for n training images in this many kinds: what was left open follows from their number."""
        if self.batch_size % kinds:
            raise ValueError(
                f"`batch_size` must be a multiple of {kinds}, the kinds of images. "
                f"Received: batch_size={self.batch_size}"
            )
        each = self.batch_size // kinds
        size = min(self.round_size, n)
        if size < each:
            raise ValueError(f"`round_size` must be at least {each}. Received: round_size={self.round_size}")
        if self.iterations < size // each:
            raise ValueError(
                f"`iterations` must be at least {size // each}, the batches of a round. "
                f"Received: iterations={self.iterations}"
            )
        epochs = enough_epochs(EPOCHS, STEPS, n, usual_batch(n)) if self.epochs is None else self.epochs
        return dataclasses.replace(self, round_size=size, epochs=epochs)
