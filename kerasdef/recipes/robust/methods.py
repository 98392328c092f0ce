"""The methods of robust training: what each one trains, as a few lines; their settings are in `settings`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from kerasdef.attacks import APGD, FGSM, PGD, StepAttack
from kerasdef.recipes.robust import settings
from kerasdef.recipes.robust.settings import MethodSettings, RobustSettings
from kerasdef.settings import names
from kerasdef.training import (
    AdversarialTraining,
    AttackStages,
    Bilateral,
    Distillation,
    FreeTraining,
    Madry,
    Mart,
    Mixed,
    NoiseTraining,
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
        settings: The settings that all methods share.
        batches: The number of batches in an epoch.
        seed: The seed of the method's own randomness.
        other: Trains another classifier, given a title and the name of a network (None: the same network). It is found
            again when a run goes on. `wrap` makes a trainer of it.
        bounds: The range of the values of the data.
    """

    model: keras.Model
    settings: RobustSettings
    batches: int
    seed: int
    other: Callable
    bounds: tuple[float, float] = (0.0, 1.0)

    @property
    def ball(self) -> dict[str, Any]:
        """What every attack of the training is given: radius, norm and bounds."""
        return {"eps": self.settings.eps, "norm": self.settings.norm, "bounds": self.bounds}

    @property
    def span(self) -> float:
        """The range of the values of the data, in which noise is measured."""
        return self.bounds[1] - self.bounds[0]


@dataclass(frozen=True)
class Method(ABC):
    """What a method of robust training does.

    Args:
        own: The settings of the method.
    """

    own: MethodSettings

    @property
    def repeats(self) -> int:
        """How often every batch is shown before the next."""
        return 1

    @abstractmethod
    def trainer(self, job: Job) -> keras.Model:
        """The model that is compiled and fitted."""

    def callbacks(self, job: Job) -> list[keras.callbacks.Callback]:
        """Callbacks of the method; they come after those that measure the robust accuracy."""
        return []

    def full(self, job: Job) -> int | None:
        """The first epoch, from 0, that trains at the full radius; None for methods without attacks."""
        return 0


class Clean(Method):
    """Trains the model itself on clean images."""

    def trainer(self, job: Job) -> keras.Model:
        """The model itself, once it is clear that it can be attacked."""
        check_classifier(job.model)
        return job.model

    def full(self, job: Job) -> None:
        """There is no attack."""
        return None


class _WithRadius(Method):
    """Methods whose radius grows at first."""

    def radius(self, job: Job) -> Radius:
        """The radius as a function of the batches trained on."""
        return Radius.ramp(job.settings.eps, round(self.own.ramp * job.settings.epochs * job.batches))

    def full(self, job: Job) -> int:
        """The first epoch after the radius has grown, or else the last one."""
        return min(math.ceil(self.own.ramp * job.settings.epochs), job.settings.epochs - 1)

    def adversarial(self, job: Job, attack: StepAttack, objective, **options) -> AdversarialTraining:
        """Adversarial training with an attack and an objective."""
        return AdversarialTraining(
            job.model, attack, objective, radius=self.radius(job), awp=self.own.awp, seed=job.seed, **options
        )


class Pgd(_WithRadius):
    """Trains on PGD images."""

    def trainer(self, job: Job) -> keras.Model:
        """Adversarial training on the loss of PGD images."""
        return self.adversarial(job, PGD(steps=self.own.steps, **job.ball), Madry())


class TradesMethod(_WithRadius):
    """Trains on the objective of TRADES."""

    def trainer(self, job: Job) -> keras.Model:
        """Adversarial training on the clean loss and the divergence."""
        return self.adversarial(job, PGD(steps=self.own.steps, **job.ball), Trades(self.own.beta))


class MartMethod(_WithRadius):
    """Trains on the objective of MART."""

    def trainer(self, job: Job) -> keras.Model:
        """Adversarial training with more weight on images that the model is unsure of."""
        return self.adversarial(job, PGD(steps=self.own.steps, **job.ball), Mart(self.own.weight))


class Fast(_WithRadius):
    """Trains on one step from a random start; a guard takes more where training overfits to that step."""

    def trainer(self, job: Job) -> keras.Model:
        """Adversarial training on the images of a single step."""
        return self.adversarial(job, PGD(steps=1, relative_step=self.own.length, **job.ball), Madry())

    def callbacks(self, job: Job) -> list[keras.callbacks.Callback]:
        """The guard against overfitting to a single step."""
        return [OverfittingGuard(most=self.own.most, start=self.full(job))] if self.own.guard else []


class Free(Method):
    """Moves the images with the backward pass of the weights."""

    @property
    def repeats(self) -> int:
        """Every batch is shown `replays` times."""
        return self.own.replays

    def trainer(self, job: Job) -> keras.Model:
        """Free adversarial training."""
        if job.settings.norm != "linf":
            raise ValueError(f"`norm` must be 'linf' for free training. Received: norm={job.settings.norm!r}")
        options = {"batch_size": job.settings.batch_size, "bounds": job.bounds}
        return FreeTraining(job.model, job.settings.eps, **options)


class BilateralMethod(_WithRadius):
    """Trains on one step on the images and one on the labels."""

    def trainer(self, job: Job) -> keras.Model:
        """Adversarial training towards the most confusing class, with adversarial labels."""
        attack = PGD(steps=1, relative_step=1.0, loss=most_confusing, **job.ball)
        return self.adversarial(job, attack, Bilateral(self.own.eps_y))


class Ensemble(_WithRadius):
    """Trains on one step on other networks and on the model in turn."""

    def trainer(self, job: Job) -> keras.Model:
        """Adversarial training whose attack moves from one network to the next."""
        others = [job.other(f"source{i}", name) for i, name in enumerate(self.own.sources, 1)]
        return self.adversarial(job, FGSM(**job.ball), Mixed(self.own.weight), source=(*others, job.model))


class DistillationMethod(Clean):
    """Trains on the softened outputs of a teacher."""

    def trainer(self, job: Job) -> keras.Model:
        """Distillation from a teacher that was trained at the same temperature."""
        teacher = job.other("teacher", None, wrap=lambda model: Distillation(model, self.own.temperature))
        return Distillation(job.model, self.own.temperature, teacher)


class Multistage(Method):
    """Trains on AutoPGD images in stages of growing radius and effort (hybrid paper, Algorithm 1)."""

    def stages(self, common: RobustSettings, bounds: tuple[float, float] = (0.0, 1.0)) -> tuple[Stage, ...]:
        """The schedule; every stage has at least one epoch, and what is left over goes to the last."""
        own, epochs = self.own, common.epochs
        if epochs < len(own.radii):
            raise ValueError(f"`epochs` must be at least {len(own.radii)}. Received: epochs={epochs}")
        cls = {"apgd": APGD, "pgd": PGD}[own.attack]
        each = [max(1, round(share / sum(own.shares) * epochs)) for share in own.shares[:-1]]
        while sum(each) >= epochs:
            each[each.index(max(each))] -= 1
        each.append(epochs - sum(each))
        rows = zip(each, own.radii, own.steps, strict=True)
        same = {"norm": common.norm, "bounds": bounds}
        return tuple(Stage(e, cls(eps=r * common.eps, steps=n, **same)) for e, r, n in rows)

    def trainer(self, job: Job) -> keras.Model:
        """Adversarial training with the radius and the attack of each stage."""
        stages = self.stages(job.settings, job.bounds)
        objective = Trades(self.own.beta) if self.own.objective == "trades" else Madry()
        options = {"radius": radii_of(stages, job.batches), "awp": self.own.awp, "seed": job.seed}
        return AdversarialTraining(job.model, stages[0].attack, objective, **options)

    def callbacks(self, job: Job) -> list[keras.callbacks.Callback]:
        """What changes the attack from stage to stage."""
        return [AttackStages(self.stages(job.settings, job.bounds))]

    def full(self, job: Job) -> int:
        """The first epoch of the last stage."""
        return sum(stage.epochs for stage in self.stages(job.settings, job.bounds)[:-1])


class Gaussian(Clean):
    """Trains on noisy images; no attack says which epoch is best, so the weights are those of the last one."""

    def trainer(self, job: Job) -> keras.Model:
        """Training on one noisy copy of each image."""
        return NoiseTraining(job.model, self.own.sigma * job.span, seed=job.seed)


class SmoothAdv(Clean):
    """Trains on noisy copies that were attacked together; the weights are those of the last epoch."""

    def trainer(self, job: Job) -> keras.Model:
        """Training against steps of the authors' length, from the images themselves."""
        own, eps = self.own, self.own.radius * job.span
        attack = PGD(eps=eps, norm="l2", steps=own.steps, relative_step=2.0, random_start=False, bounds=job.bounds)
        radius = Radius.ramp(eps, round(own.ramp * job.settings.epochs * job.batches))
        options = {"attack": attack, "copies": own.copies, "radius": radius, "seed": job.seed}
        return NoiseTraining(job.model, own.sigma * job.span, **options)


METHODS: dict[type[MethodSettings], type[Method]] = {
    settings.StandardSettings: Clean,
    settings.PgdSettings: Pgd,
    settings.TradesSettings: TradesMethod,
    settings.MartSettings: MartMethod,
    settings.FastSettings: Fast,
    settings.FreeSettings: Free,
    settings.EnsembleSettings: Ensemble,
    settings.BilateralSettings: BilateralMethod,
    settings.ParsevalSettings: Clean,
    settings.DenoisingSettings: Pgd,
    settings.DistillationSettings: DistillationMethod,
    settings.MultistageSettings: Multistage,
    settings.GaussianSettings: Gaussian,
    settings.SmoothAdvSettings: SmoothAdv,
}


def method_of(name: str, given: Mapping[str, Any]) -> Method:
    """The method of this name with its settings: those given, and the defaults of the others."""
    own = settings.METHODS[name].of(given, also=names(RobustSettings))
    return METHODS[type(own)](own)
