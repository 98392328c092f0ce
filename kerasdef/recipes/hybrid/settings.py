"""The numbers of the hybrid recipe: what the paper says, what was chosen, and the settings of a run.

The source of every number is Wen, Danso and Danso, 2025 (short name "hybrid"). Where the paper is silent, the comment
or the field says what was chosen. Imports no Keras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from kerasdef import annotations, checks
from kerasdef.recipes import settings as common
from kerasdef.recipes.robust.settings import MultistageSettings, RobustSettings
from kerasdef.recipes.settings import RunSettings, enough_epochs, usual_batch
from kerasdef.settings import names, setting

EPOCHS = 5  # section 4.1
STEPS = 600  # at least this many optimizer steps of a member on small sets
AUTOENCODER_STEPS = 200  # at least this many of the autoencoder
DETECTORS = {  # by their names on the command line: the class and its settings
    "logit_deviation": ("LogitDeviation", {}),  # equation 6
    "class_deviation": ("LogitDeviation", {"by_class": True}),
    "mahalanobis": ("Mahalanobis", {}),  # named in section 3.2.2
    "kernel_density": ("KernelDensity", {}),
    "feature_squeezing": ("FeatureSqueezing", {}),
    "conv_filter_statistics": ("ConvFilterStatistics", {}),
    "disagreement": ("Disagreement", {}),
}
NONE = "none"  # stands for no detector
ATTACKS = ("fgsm", "pgd", "cw", "autoattack")  # section 4.1
JUDGING = (
    "n_test",
    "adaptive_limit",
    "adaptive_steps",
    "autoattack",
    "compare",
)  # settings that nothing trained depends on


def _members(name: str, value) -> tuple:
    """Return one or more networks."""
    value = (value,) if isinstance(value, str) or callable(value) else common.sequence(name, value)
    if not value or not all(isinstance(member, str) or callable(member) for member in value):
        raise ValueError(f"`{name}` must be one or more networks. Received: {name}={annotations.shown(value)}")
    return value


def _detectors(name: str, value) -> tuple[str, ...]:
    """Return the names of detectors, or `NONE` alone."""
    value = (value,) if isinstance(value, str) else common.sequence(name, value)
    if not value or (NONE in value and len(value) > 1):
        raise ValueError(
            f"`{name}` must name one or more detectors, or be {NONE!r}. Received: {name}={annotations.shown(value)}"
        )
    return tuple(checks.one_of(name, detector, (*DETECTORS, NONE)) for detector in value)


def _integers(name: str, text: str) -> tuple[int, ...]:
    """Return integers separated by commas."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"`{name}` must be integers separated by commas. Received: {text!r}") from None


def _stage(name: str) -> Any:
    """A field of the multi-stage training."""
    found = next(f for f in dataclasses.fields(MultistageSettings) if f.name == name)
    about = found.metadata["setting"]
    read = common.numbers if isinstance(found.default, tuple) else None
    read = _integers if name == "steps" else read
    return setting(found.default, check=about.check, help=about.help, source=about.source, read=read)


@dataclass(frozen=True, kw_only=True)
class HybridSettings(RunSettings):
    """Every setting of a run of the hybrid recipe."""

    members: Sequence[str | Callable] | str | Callable = setting(
        ("cnn11", "eat1", "target_dnn"),
        check=_members,
        read=common.several,
        record=False,
        help="The names of the networks of the ensemble, on the command line separated by commas. Each has weights of "
        "its own, also where a name comes twice. The paper names none.",
        python="Also functions (input_shape, outputs, seed=...) that return a Keras model.",
    )
    undefended: str | Callable = setting(
        "cnn11",
        record=False,
        help="The name of the network that is trained on clean images, on which the attacks of the paper's protocol "
        "are made.",
        python="Also a function as for `members`.",
    )
    eps: float | None = setting(
        None,
        check=common.positive,
        read=common.fraction,
        help="The Linf radius in units of the data, such as 8/255 or 0.3, in training and of the attacks. By default "
        "the one that the field reports for a known data set.",
    )
    epochs: int | None = setting(
        None,
        check=checks.positive_int,
        help="The number of passes over the training images for each network. By default the paper's 5, and on fewer "
        "than 10,000 training images as many as make 600 optimizer steps.",
    )
    radii: tuple[float, ...] = _stage("radii")
    steps: tuple[int, ...] = _stage("steps")
    shares: tuple[float, ...] = _stage("shares")
    beta: float = _stage("beta")
    batch_size: int | None = setting(
        None,
        check=checks.positive_int,
        help="The number of images in a training batch. By default 128, or 32 below 10,000 training images.",
    )
    learning_rate: float = common.learning_rate()
    detectors: Sequence[str] | str = setting(
        ("conv_filter_statistics", "disagreement"),
        check=_detectors,
        read=common.several,
        help=f"The names of the detectors ({', '.join(DETECTORS)}), on the command line separated by commas; an image "
        f"is flagged by any of them. {NONE!r} makes a defense without one, which repairs every image.",
    )
    watch: bool = setting(
        True,
        check=common.switch,
        help="Whether the detectors watch the undefended network too, in front of the members. It does not answer, but "
        "attacks that are made on it show there.",
    )
    rate: float = setting(
        0.05,
        check=checks.share,
        help="The false positive rate on clean images, above 0 and below 1, that the threshold is set for.",
    )
    autoencoder_epochs: int | None = setting(
        None,
        check=checks.non_negative_int,
        help="The number of passes over the training images for the autoencoder; 0 leaves it out. By default as many "
        "as the members have, and on small sets as many as make 200 optimizer steps.",
    )
    sigma: float = setting(
        0.0,
        check=common.at_least_0,
        help="The standard deviation of the noise of randomized smoothing, in units of the data; 0 leaves it out.",
    )
    draws: int = setting(8, check=checks.positive_int, help="The number of noisy copies that smoothing averages over.")
    flagged: str = setting(
        "rejected",
        check=partial(checks.one_of, choices=("rejected", "answered")),
        help='What becomes of an image that the detector flags: "rejected" gives it the label that stands for '
        'adversarial, "answered" the label after repair, as in Algorithm 1.',
    )
    valid_size: float = setting(
        0.2,
        check=checks.share,
        help="The share of the training images that is held out, above 0 and below 1. One half of these chooses the "
        "epoch of each network and the weights of the ensemble, the other one sets the threshold of the detector.",
    )
    n_train: int | None = setting(
        None,
        check=checks.positive_int,
        record=False,
        help="The number of training images to use. By default all are used.",
    )
    n_test: int = common.judged(300)
    adaptive_limit: int = setting(
        100, check=checks.positive_int, help="The largest number of test images for the adaptive attacks."
    )
    adaptive_steps: int = setting(50, check=checks.positive_int, help="The number of steps of the adaptive attacks.")
    autoattack: bool = setting(
        True,
        check=common.switch,
        help="Whether the standard AutoAttack is one of the attacks that are made on the undefended network.",
    )
    compare: bool = setting(
        True,
        check=common.switch,
        help="Whether the report says what every other detector would find of the same attacks.",
    )

    def check_together(self):
        """The stages fit each other, and classifiers that may disagree are two or more."""
        MultistageSettings(**self.stages)
        if "disagreement" in self.detectors and not self.watch and len(self.members) < 2:
            raise ValueError(
                '`detectors` must not have "disagreement" where one network is watched alone. '
                f"Received: detectors={self.detectors!r}"
            )
        if self.epochs is not None and self.epochs < len(self.radii):
            raise ValueError(f"`epochs` must be at least {len(self.radii)}. Received: epochs={self.epochs}")

    @property
    def detects(self) -> bool:
        """Whether there is a detector."""
        return self.detectors != (NONE,)

    @property
    def stages(self) -> dict[str, Any]:
        """The settings of the multi-stage training."""
        return {name: getattr(self, name) for name in names(MultistageSettings) if name in names(HybridSettings)}

    def robust(self, dataset: str, n: int, seed: int) -> RobustSettings:
        """The settings of one network, complete.

        Args:
            dataset: The name of the data set.
            n: The number of training images.
            seed: The seed of the network.
        """
        given = {name: getattr(self, name) for name in ("eps", "epochs", "batch_size", "learning_rate", "valid_size")}
        return RobustSettings(data=self.data, seed=seed, average=True, **given).on(dataset, n, 1.0, EPOCHS)

    def on(self, dataset: str, n: int) -> HybridSettings:
        """The settings for a data set: what was left open follows from it.

        Args:
            dataset: The name of the data set.
            n: The number of training images.
        """
        size = usual_batch(n) if self.batch_size is None else self.batch_size
        epochs = enough_epochs(EPOCHS, STEPS, n, size) if self.epochs is None else self.epochs
        eps = self.robust(dataset, n, self.seed).eps
        autoencoder = self.autoencoder_epochs
        if autoencoder is None:
            autoencoder = enough_epochs(epochs, AUTOENCODER_STEPS, n, size)
        return dataclasses.replace(self, batch_size=size, epochs=epochs, eps=eps, autoencoder_epochs=autoencoder)
