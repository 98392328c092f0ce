"""The methods of robust training: what each one trains, as data and a few lines."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import keras

from kerasdef import checks
from kerasdef.attacks import APGD, FGSM, PGD, StepAttack
from kerasdef.recipes.robust.settings import Settings
from kerasdef.training import (
    AdversarialTraining,
    AttackStages,
    Bilateral,
    Distillation,
    FreeTraining,
    Madry,
    Mart,
    Mixed,
    OverfittingGuard,
    Radius,
    Stage,
    Trades,
    most_confusing,
)
from kerasdef.training.schedules import radii_of
from kerasdef.training.trainer import check_classifier


@dataclass(frozen=True)
class Job:
    """What a method gets to work with.

    Args:
        model: The classifier to train.
        settings: Shared by all methods.
        batches: In an epoch.
        seed: Seed of the method's own randomness.
        other: Trains another classifier by a title and a network's name (None: the same network); found again when a
            run goes on. `wrap` makes a trainer of it.
    """

    model: keras.Model
    settings: Settings
    batches: int
    seed: int
    other: Callable


@dataclass(frozen=True)
class Method(ABC):
    """A way to train a robust classifier; its fields are its settings.

    Attributes:
        epochs: Usual passes over a large data set.
        network: Name of the network for images without color and for color ones.
        averages: Whether weights can be averaged while the method trains.
    """

    epochs: ClassVar[int] = 10
    network: ClassVar[tuple[str, str]] = ("cnn11", "preact_resnet18")
    averages: ClassVar[bool] = True

    @property
    def repeats(self) -> int:
        """Times that every batch is shown before the next."""
        return 1

    @abstractmethod
    def trainer(self, job: Job) -> keras.Model:
        """What is compiled and fitted."""

    def callbacks(self, job: Job) -> list[keras.callbacks.Callback]:
        """Callbacks of the method, after those that measure the robust accuracy."""
        return []

    def full(self, job: Job) -> int | None:
        """First epoch, from 0, that trains at the full radius; None for methods without attacks."""
        return 0


@dataclass(frozen=True)
class Standard(Method):
    """Cross-entropy on clean images: nothing against attacks."""

    epochs: ClassVar[int] = 5

    def trainer(self, job):
        """The classifier itself, once it is clear that it can be attacked."""
        check_classifier(job.model)
        return job.model

    def full(self, job):
        """No epoch trains against attacks."""
        return None


@dataclass(frozen=True)
class _WithRadius(Method):
    """Methods whose radius grows at first.

    Args:
        ramp: Share of the epochs over which the radius grows from 0, in [0, 1].
        awp: Size of adversarial weight perturbations; 0 for none.
    """

    ramp: float = 0.2
    awp: float = 0.0

    def __post_init__(self):
        checks.real("ramp", self.ramp, low=0.0, high=1.0)
        checks.real("awp", self.awp, low=0.0)

    def radius(self, job: Job) -> Radius:
        """The radius as a function of the batches trained on."""
        return Radius.ramp(job.settings.eps, round(self.ramp * job.settings.epochs * job.batches))

    def full(self, job):
        """The first epoch after the radius has grown, or the last one."""
        return min(math.ceil(self.ramp * job.settings.epochs), job.settings.epochs - 1)

    def adversarial(self, job: Job, attack: StepAttack, objective, **options) -> AdversarialTraining:
        """The trainer with these."""
        return AdversarialTraining(
            job.model, attack, objective, radius=self.radius(job), awp=self.awp, seed=job.seed, **options
        )


@dataclass(frozen=True)
class Pgd(_WithRadius):
    """PGD adversarial training (Madry et al., 2018)."""

    steps: int = 7  # Madry et al.: 7 on CIFAR-10; 40 on MNIST, where 7 with a growing radius do as well

    def trainer(self, job):
        """Training on the images of PGD alone."""
        attack = PGD(eps=job.settings.eps, norm=job.settings.norm, steps=self.steps)
        return self.adversarial(job, attack, Madry())


@dataclass(frozen=True)
class TradesMethod(_WithRadius):
    """TRADES (Zhang et al., 2019)."""

    steps: int = 10  # paper: 10 on CIFAR-10
    beta: float = 6.0  # paper, table 5
    epochs: ClassVar[int] = 24  # authors' code: 100; after 12 the loss on MNIST was still falling

    def trainer(self, job):
        """Training with the divergence between clean images and those of PGD."""
        attack = PGD(eps=job.settings.eps, norm=job.settings.norm, steps=self.steps)
        return self.adversarial(job, attack, Trades(self.beta))


@dataclass(frozen=True)
class MartMethod(_WithRadius):
    """MART (Wang et al., 2020)."""

    steps: int = 10  # paper
    weight: float = 5.0  # paper: lambda

    def trainer(self, job):
        """Training with boosted cross-entropy on the images of PGD."""
        attack = PGD(eps=job.settings.eps, norm=job.settings.norm, steps=self.steps)
        return self.adversarial(job, attack, Mart(self.weight))


@dataclass(frozen=True)
class Fast(_WithRadius):
    """One step from a random start (Wong et al., 2020); a guard takes more where training overfits to that step."""

    length: float = 1.25  # of the step as a multiple of eps; paper: 1.25
    guard: bool = True
    most: int = 3  # steps that the guard may raise to
    epochs: ClassVar[int] = 15

    def trainer(self, job):
        """Training on the images of a single step."""
        attack = PGD(eps=job.settings.eps, norm=job.settings.norm, steps=1, relative_step=self.length)
        return self.adversarial(job, attack, Madry())

    def callbacks(self, job):
        """The guard, where it is wanted."""
        return [OverfittingGuard(most=self.most, start=self.full(job))] if self.guard else []


@dataclass(frozen=True)
class Free(Method):
    """Free adversarial training (Shafahi et al., 2019): the weights' backward pass moves the images too."""

    replays: int = 4  # of every batch; paper: 8 on CIFAR-10, 4 on ImageNet
    epochs: ClassVar[int] = 8
    averages: ClassVar[bool] = False  # Keras would average the perturbation as well

    def __post_init__(self):
        checks.positive_int("replays", self.replays)

    @property
    def repeats(self) -> int:
        """Every batch is shown `replays` times."""
        return self.replays

    def trainer(self, job):
        """Training on images that move with every backward pass."""
        if job.settings.norm != "linf":
            raise ValueError(f"`norm` must be 'linf' for free training. Received: norm={job.settings.norm!r}")
        return FreeTraining(job.model, job.settings.eps, batch_size=job.settings.batch_size)


@dataclass(frozen=True)
class BilateralMethod(_WithRadius):
    """Bilateral adversarial training (Wang and Zhang, 2019): one step on images and on labels."""

    eps_y: float = 0.5  # probability moved off the true class; 0.5 is the authors' rule for ten equal classes

    def trainer(self, job):
        """Training on images and labels that are both moved against the model."""
        attack = PGD(eps=job.settings.eps, norm=job.settings.norm, steps=1, relative_step=1.0, loss=most_confusing)
        return self.adversarial(job, attack, Bilateral(self.eps_y))


@dataclass(frozen=True)
class Parseval(Standard):
    """A Parseval network (Cisse et al., 2017), trained on clean images."""

    network: ClassVar[tuple[str, str]] = ("parseval_cnn", "parseval_cnn")
    epochs: ClassVar[int] = 5


@dataclass(frozen=True)
class DenoisingMethod(Pgd):
    """Feature denoising (Xie et al., 2019): a network with denoising blocks, trained as `pgd`."""

    network: ClassVar[tuple[str, str]] = ("denoising_cnn", "denoising_cnn")


@dataclass(frozen=True)
class Ensemble(_WithRadius):
    """Ensemble adversarial training (Tramer et al., 2018): one step on other networks and on the model in turn."""

    sources: tuple[str, ...] = ("target_dnn", "vgg7")
    weight: float = 0.5  # of the clean images; paper: half of each batch

    def __post_init__(self):
        super().__post_init__()
        names = (self.sources,) if isinstance(self.sources, str) else tuple(self.sources)
        object.__setattr__(self, "sources", names)

    def trainer(self, job):
        """Training on clean images and on those made on the sources and on the model in turn."""
        others = [job.other(f"source{i}", name) for i, name in enumerate(self.sources, 1)]
        attack = FGSM(eps=job.settings.eps, norm=job.settings.norm)
        return self.adversarial(job, attack, Mixed(self.weight), source=(*others, job.model))


@dataclass(frozen=True)
class DistillationMethod(Method):
    """Defensive distillation (Papernot et al., 2016)."""

    temperature: float = 20.0  # paper, MNIST
    epochs: ClassVar[int] = 5

    def trainer(self, job):
        """Training on the probabilities of a teacher that is trained first."""
        teacher = job.other("teacher", None, wrap=lambda model: Distillation(model, self.temperature))
        return Distillation(job.model, self.temperature, teacher)

    def full(self, job):
        """No epoch trains against attacks."""
        return None


@dataclass(frozen=True)
class Multistage(Method):
    """TRADES with AutoPGD in stages of growing radius and effort (hybrid paper, Algorithm 1).

    With `objective="madry"` the stages train on the loss of the adversarial images alone; `beta` is then not used.
    """

    radii: tuple[float, ...] = (1 / 3, 2 / 3, 1.0)  # of eps; the paper names three and gives no values
    steps: tuple[int, ...] = (2, 3, 5)  # of the attack; more with each stage is where the saving comes from
    shares: tuple[float, ...] = (0.2, 0.2, 0.6)  # of the epochs
    beta: float = 6.0
    attack: str = "apgd"
    objective: str = "trades"
    awp: float = 0.0
    epochs: ClassVar[int] = 10

    def __post_init__(self):
        for name in ("radii", "steps", "shares"):
            value = getattr(self, name)
            if not isinstance(value, tuple | list) or not all(isinstance(v, int | float) for v in value):
                raise ValueError(f"`{name}` must be numbers, one for each stage. Received: {name}={value!r}")
            object.__setattr__(self, name, tuple(value))
        if not len(self.radii) == len(self.steps) == len(self.shares) or not self.radii:
            raise ValueError(
                "`radii`, `steps` and `shares` must have one value for each stage. "
                f"Received: radii={self.radii!r}, steps={self.steps!r}, shares={self.shares!r}"
            )
        if self.radii[-1] != 1.0 or any(b < a for a, b in itertools.pairwise((0.0, *self.radii))):
            raise ValueError(f"`radii` must be shares of eps that grow to 1. Received: radii={self.radii!r}")
        for name in ("steps", "shares"):
            if any(v <= 0 for v in getattr(self, name)):
                raise ValueError(f"`{name}` must be above 0. Received: {name}={getattr(self, name)!r}")
        checks.one_of("attack", self.attack, ("apgd", "pgd"))
        checks.one_of("objective", self.objective, ("trades", "madry"))

    def stages(self, settings: Settings) -> tuple[Stage, ...]:
        """The schedule; every stage has at least one epoch, what is left over goes to the last."""
        if settings.epochs < len(self.radii):
            raise ValueError(f"`epochs` must be at least {len(self.radii)}. Received: epochs={settings.epochs}")
        cls = {"apgd": APGD, "pgd": PGD}[self.attack]
        epochs = [max(1, round(s / sum(self.shares) * settings.epochs)) for s in self.shares[:-1]]
        while sum(epochs) >= settings.epochs:
            epochs[epochs.index(max(epochs))] -= 1
        epochs.append(settings.epochs - sum(epochs))
        rows = zip(epochs, self.radii, self.steps, strict=True)
        return tuple(Stage(e, cls(eps=r * settings.eps, norm=settings.norm, steps=n)) for e, r, n in rows)

    def trainer(self, job):
        """Training with the attack of the first stage; the callback changes it."""
        stages = self.stages(job.settings)
        objective = Trades(self.beta) if self.objective == "trades" else Madry()
        options = {"radius": radii_of(stages, job.batches), "awp": self.awp, "seed": job.seed}
        return AdversarialTraining(job.model, stages[0].attack, objective, **options)

    def callbacks(self, job):
        """What changes the attack as the stages begin."""
        return [AttackStages(self.stages(job.settings))]

    def full(self, job):
        """The first epoch of the last stage."""
        return sum(stage.epochs for stage in self.stages(job.settings)[:-1])


METHODS: dict[str, type[Method]] = {
    "standard": Standard,
    "pgd": Pgd,
    "trades": TradesMethod,
    "mart": MartMethod,
    "fast": Fast,
    "free": Free,
    "ensemble": Ensemble,
    "bilateral": BilateralMethod,
    "parseval": Parseval,
    "denoising": DenoisingMethod,
    "distillation": DistillationMethod,
    "multistage": Multistage,
}
