"""The numbers of robust training: radii by data set, what all methods share, and the settings of each method.

`kerasdef.recipes.robust.methods` says what the methods do with them. Imports no Keras.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from kerasdef import annotations, checks
from kerasdef.annotations import finite
from kerasdef.catalog import NORMS
from kerasdef.recipes import settings as common
from kerasdef.recipes.robust.own import MethodSettings as MethodSettings
from kerasdef.recipes.robust.own import WithRadius, steps
from kerasdef.recipes.settings import RunSettings, enough_epochs, usual_batch
from kerasdef.settings import setting

EPS = {  # Linf radii that the field reports on; digits: half of MNIST's, its images have a tenth of the pixels
    "digits": 0.15,
    "mnist": 0.3,  # Madry et al., 2018
    "fashion_mnist": 0.1,
    "cifar10": 8 / 255,  # Madry et al., 2018; hybrid paper
    "gtsrb": 8 / 255,  # hybrid paper
}
STEPS = 2_000  # at least this many optimizer steps on small sets, where the method's epochs are fewer
SHIFT = 4  # pixels, the usual augmentation of color images of 32x32
VALIDATION = 500  # images that robust validation attacks after each epoch
PRECISIONS = ("float32", "bfloat16")
JUDGING = ("n_test", "autoattack")  # settings that nothing trained depends on


@dataclass(frozen=True, kw_only=True)
class RobustSettings(RunSettings):
    """What all methods of robust training take."""

    model: Path | str | Any | None = setting(
        None,
        record=False,
        help="Your own classifier to train, a .keras file. By default a network is built. A run that goes on does so "
        "with the weights that it has in its folder.",
        python="Also a built Sequential or functional model, which is trained in place from the weights that it has.",
    )
    network: str | Callable | None = setting(
        None,
        record=False,
        help="The name of a network. By default it is the method's own, for gray or for color images.",
        python="Also a function (input_shape, outputs, seed=...) that returns a Keras model.",
    )
    eps: float | None = setting(
        None,
        check=common.positive,
        read=common.fraction,
        help="The radius in units of the data, such as 8/255 or 0.3. By default the one that the field reports for a "
        "known data set.",
    )
    norm: str = setting(
        "linf", check=partial(checks.one_of, choices=NORMS), help='The norm of the radius: "linf", "l2" or "l1".'
    )
    bounds: tuple[float, float] | None = setting(
        None,
        check=common.pair,
        read=common.numbers,
        help="The range LOW,HIGH of the values that your own model takes, such as 0,255. By default it is read off the "
        "model's first layers, or else is that of the data.",
    )
    epochs: int | None = setting(
        None,
        check=checks.positive_int,
        help="The number of passes over the training images. By default the method's own, and more on small sets.",
    )
    batch_size: int | None = setting(
        None,
        check=checks.positive_int,
        help="The number of images in a batch. By default 128, or 32 below 10,000 training images.",
    )
    learning_rate: float = common.learning_rate()
    weight_decay: float = setting(
        0.0, check=common.at_least_0, help="The decoupled weight decay, as in the optimizer AdamW."
    )
    average: bool | None = setting(
        None,
        check=common.switch,
        help="Whether the weights are averaged over about the last epoch, where the method allows it. By default they "
        "are unless the model has BatchNormalization, whose statistics would be those of other weights "
        "(docs/reproduction.md).",
    )
    augment: bool | None = setting(
        None,
        check=common.switch,
        help="Whether images are shifted by up to 4 pixels and half of them are flipped. By default only those of "
        "CIFAR-10.",
    )
    precision: str = setting(
        "float32",
        check=partial(checks.one_of, choices=PRECISIONS),
        help='The precision of a network that is built here: "float32", or "bfloat16" for mixed precision.',
    )
    callbacks: Sequence[Any] = common.callbacks()
    valid_size: float = setting(
        0.05,
        check=checks.share,
        help="The share of the training images that is held out, above 0 and below 1; up to 500 of them are attacked "
        "after each epoch.",
    )
    n_train: int | None = setting(
        None,
        check=checks.positive_int,
        record=False,
        help="The number of training images to use. By default all are used.",
    )
    n_test: int = common.judged()
    autoattack: bool = common.autoattack()

    @property
    def shift(self) -> int:
        """Pixels that images are shifted by."""
        return SHIFT if self.augment else 0

    def check_together(self):
        """A model of the user's own is not built."""
        if self.model is not None and self.network is not None:
            raise ValueError(
                f"`model` and `network` exclude each other. Received: network={self.network!r} beside a model"
            )

    def on(self, dataset: str, n: int, span: float, usual: int) -> RobustSettings:
        """The settings for a data set: what was left open follows from it and from the method.

        Args:
            dataset: The name of the data set.
            n: The number of training images.
            span: The range of the values of the data; the known radii are for a range of 1.
            usual: The usual number of passes of the method over a large data set.
        """
        size = usual_batch(n) if self.batch_size is None else self.batch_size
        if n < size:
            raise ValueError(
                f"`batch_size` must be at most the number of training images, {n}. Received: batch_size={size}"
            )
        if self.eps is None and (dataset not in EPS or self.norm != "linf"):
            raise ValueError(
                f"`eps` must be given for data other than {', '.join(EPS)} and for norms other than linf, such as "
                f"8/255 (0.0314). Received: eps=None with norm={self.norm!r}"
            )
        return dataclasses.replace(
            self,
            batch_size=size,
            eps=EPS[dataset] * span if self.eps is None else self.eps,
            epochs=enough_epochs(usual, STEPS, n, size) if self.epochs is None else self.epochs,
            augment=dataset == "cifar10" if self.augment is None else self.augment,
        )


# -- the settings of each method ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StandardSettings(MethodSettings):
    """Trains with cross-entropy on clean images: the baseline, which does nothing against attacks."""

    usual_epochs: ClassVar[int] = 5


@dataclass(frozen=True, kw_only=True)
class PgdSettings(WithRadius):
    """Trains on the images that PGD makes of each batch."""

    paper: ClassVar[str] = "Madry et al., 2018"
    steps: int = steps(7, "the paper's 7 on CIFAR-10; on MNIST it takes 40, where 7 with a growing radius do as well")


@dataclass(frozen=True, kw_only=True)
class TradesSettings(WithRadius):
    """Trains on the clean loss and the divergence of the outputs around each image."""

    paper: ClassVar[str] = "Zhang et al., 2019"
    usual_epochs: ClassVar[int] = 24  # authors' code: 100; after 12 the loss on MNIST was still falling
    steps: int = steps(10, "the paper's 10 on CIFAR-10")
    beta: float = setting(
        6.0,
        check=common.at_least_0,
        source="the paper, table 5",
        help="The weight of the divergence beside the clean loss.",
    )


@dataclass(frozen=True, kw_only=True)
class MartSettings(WithRadius):
    """Trains on adversarial images, with more weight on those that the model is unsure of."""

    paper: ClassVar[str] = "Wang et al., 2020"
    steps: int = steps(10, "the paper's 10")
    weight: float = setting(
        5.0,
        check=common.at_least_0,
        source="the paper's lambda",
        help="The weight of the divergence of images that the model is unsure of.",
    )


@dataclass(frozen=True, kw_only=True)
class FastSettings(WithRadius):
    """Trains on one step from a random start; a guard takes more steps where training overfits to that step."""

    paper: ClassVar[str] = "Wong et al., 2020"
    usual_epochs: ClassVar[int] = 15
    length: float = setting(
        1.25, check=common.positive, source="the paper's 1.25", help="The length of the step as a multiple of eps."
    )
    guard: bool = setting(
        True,
        check=common.switch,
        help="Whether training goes back, and takes one more step, where it overfits to a single step.",
    )
    most: int = setting(3, check=checks.positive_int, help="The largest number of steps that the guard raises to.")


@dataclass(frozen=True, kw_only=True)
class FreeSettings(MethodSettings):
    """Moves the images with the backward pass that moves the weights, so the attack is free."""

    paper: ClassVar[str] = "Shafahi et al., 2019"
    usual_epochs: ClassVar[int] = 8
    averages: ClassVar[bool] = False  # Keras would average the perturbation as well
    replays: int = setting(
        4,
        check=checks.positive_int,
        source="the paper's 4 on ImageNet; on CIFAR-10 it takes 8",
        help="The number of times that each batch is shown in a row.",
    )


def _sources(name: str, value) -> tuple[str, ...]:
    """Return the names of one or more networks."""
    value = common.sequence(name, (value,) if isinstance(value, str) else value)
    annotations.check(name, value, tuple[str, ...])
    return value


@dataclass(frozen=True, kw_only=True)
class EnsembleSettings(WithRadius):
    """Trains on one step taken on other trained networks and on the model in turn."""

    paper: ClassVar[str] = "Tramer et al., 2018"
    sources: tuple[str, ...] | str = setting(
        ("target_dnn", "vgg7"),
        check=_sources,
        help="The names of the other networks.",
    )
    weight: float = setting(
        0.5,
        check=common.unit,
        source="the paper's half of each batch",
        help="The weight of the clean images in the loss, from 0 to 1.",
    )


@dataclass(frozen=True, kw_only=True)
class BilateralSettings(WithRadius):
    """Trains on one step on the images and one on the labels."""

    paper: ClassVar[str] = "Wang and Zhang, 2019"
    eps_y: float | None = setting(
        0.5,
        check=lambda name, value: None if value is None else common.unit(name, value),
        source="the authors' rule for ten equal classes",
        help="The probability, from 0 to 1, that is moved off the true class; None moves as much as leaves it nine "
        "times that of the next class.",
    )


@dataclass(frozen=True, kw_only=True)
class ParsevalSettings(StandardSettings):
    """Trains on clean images a network whose kernels are kept near orthonormal."""

    paper: ClassVar[str] = "Cisse et al., 2017"
    networks: ClassVar[tuple[str, str]] = ("parseval_cnn", "parseval_cnn")


@dataclass(frozen=True, kw_only=True)
class DenoisingSettings(PgdSettings):
    """Trains a network with blocks that denoise its features, on PGD images."""

    paper: ClassVar[str] = "Xie et al., 2019"
    networks: ClassVar[tuple[str, str]] = ("denoising_cnn", "denoising_cnn")


@dataclass(frozen=True, kw_only=True)
class DistillationSettings(MethodSettings):
    """Trains on the softened outputs of a teacher: defensive distillation, which does not withstand attacks."""

    paper: ClassVar[str] = "Papernot et al., 2016"
    usual_epochs: ClassVar[int] = 5
    temperature: float = setting(
        20.0,
        check=common.positive,
        source="the paper's 20 on MNIST",
        help="The temperature of the softmax of teacher and student while they train.",
    )


def _stages(name: str, value) -> tuple:
    """Return numbers, one for each stage."""
    if not isinstance(value, tuple | list) or not all(map(finite, value)):
        raise ValueError(f"`{name}` must be numbers, one for each stage. Received: {name}={value!r}")
    return tuple(value)


def _above_0(name: str, value) -> tuple:
    """Return numbers above 0, one for each stage."""
    if any(v <= 0 for v in _stages(name, value)):
        raise ValueError(f"`{name}` must be above 0. Received: {name}={value!r}")
    return tuple(value)


@dataclass(frozen=True, kw_only=True)
class MultistageSettings(MethodSettings):
    """Trains as TRADES on AutoPGD images in stages of growing radius and effort (Algorithm 1 of the paper)."""

    paper: ClassVar[str] = "Wen et al., 2025"
    radii: tuple[float, ...] = setting(
        (1 / 3, 2 / 3, 1.0),
        check=_stages,
        help="The radius of each stage as a share of eps, growing to 1. The paper names three stages and no values.",
    )
    steps: tuple[int, ...] = setting(
        (2, 3, 5),
        check=_above_0,
        help="The number of steps of the attack in each stage; fewer in the first ones is where the saving comes from.",
    )
    shares: tuple[float, ...] = setting(
        (0.2, 0.2, 0.6), check=_above_0, help="The share of the epochs that each stage has."
    )
    beta: float = setting(
        6.0,
        check=common.at_least_0,
        help='The weight of the divergence beside the clean loss; with the objective "madry" it is not used.',
    )
    attack: str = setting(
        "apgd", check=partial(checks.one_of, choices=("apgd", "pgd")), help='The attack: "apgd" or "pgd".'
    )
    objective: str = setting(
        "trades",
        check=partial(checks.one_of, choices=("trades", "madry")),
        help='The loss: "trades", or "madry" for that of the adversarial images alone.',
    )
    awp: float = setting(
        0.0, check=common.at_least_0, help="The relative size of adversarial weight perturbations; 0 for none."
    )

    def check_together(self):
        """Every stage has a radius, a number of steps and a share, and the radii grow to eps."""
        if not len(self.radii) == len(self.steps) == len(self.shares) or not self.radii:
            raise ValueError(
                "`radii`, `steps` and `shares` must have one value for each stage. "
                f"Received: radii={self.radii!r}, steps={self.steps!r}, shares={self.shares!r}"
            )
        if self.radii[-1] != 1.0 or any(b < a for a, b in itertools.pairwise((0.0, *self.radii))):
            raise ValueError(f"`radii` must be shares of eps that grow to 1. Received: radii={self.radii!r}")


def _sigma():
    return setting(
        0.25,
        check=common.positive,
        source="Cohen et al., 2019, who take 0.12 to 1.0",
        help="The standard deviation of the noise for data of the range [0, 1], and in proportion for others.",
    )


@dataclass(frozen=True, kw_only=True)
class GaussianSettings(MethodSettings):
    """Trains on images under Gaussian noise, so that the classifier can be smoothed with that noise."""

    paper: ClassVar[str] = "Cohen et al., 2019"
    sigma: float = _sigma()


@dataclass(frozen=True, kw_only=True)
class SmoothAdvSettings(MethodSettings):
    """Trains on noisy copies of images that PGD has moved against their mean probabilities: SmoothAdv."""

    paper: ClassVar[str] = "Salman et al., 2019"
    sigma: float = _sigma()
    radius: float = setting(
        0.5,
        check=common.positive,
        source="the paper's 127/255",
        help="The L2 radius of the attack in training, for data of the range [0, 1]; `eps` is that of the attacks that "
        "judge.",
    )
    steps: int = steps(2, "the least of the paper's 2 to 10")
    copies: int = setting(
        2,
        check=checks.positive_int,
        source="the paper's 1 to 8",
        help="The number of noisy copies of each image, whose mean probabilities are attacked.",
    )
    ramp: float = setting(
        0.2, check=common.unit, help="The share of the epochs, from 0 to 1, over which that radius grows from 0."
    )


METHODS: dict[str, type[MethodSettings]] = {
    "standard": StandardSettings,
    "pgd": PgdSettings,
    "trades": TradesSettings,
    "mart": MartSettings,
    "fast": FastSettings,
    "free": FreeSettings,
    "ensemble": EnsembleSettings,
    "bilateral": BilateralSettings,
    "parseval": ParsevalSettings,
    "denoising": DenoisingSettings,
    "distillation": DistillationSettings,
    "multistage": MultistageSettings,
    "gaussian": GaussianSettings,
    "smoothadv": SmoothAdvSettings,
}
