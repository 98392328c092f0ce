"""What an adaptive attack is made of besides attacks on the defense itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import keras
import numpy as np
from keras import ops

from kerasdef import checks, models, norms
from kerasdef import random as draws
from kerasdef.attacks.base import Attack
from kerasdef.attacks.engine import spread
from kerasdef.attacks.queries import QueryAttack, on_rows
from kerasdef.attacks.wrappers.base import Wrapper
from kerasdef.goals import Goal, Misclassify, mean_of_probabilities
from kerasdef.models import Victim
from kerasdef.norms import Linf, Norm


@dataclass(frozen=True, eq=False, repr=False)
class Elsewhere(Wrapper):
    """An attack made on another model than the one under attack, whose goal alone decides.

    Args:
        attack: The attack, with its goal on the other model.
        wanted: The goal on the model under attack.
    """

    wanted: Goal = field(default_factory=Misclassify)

    def of_data(self, x: np.ndarray, y: np.ndarray) -> Elsewhere:
        """This attack for some data, of which it may learn."""
        return self

    @property
    def goal(self) -> Goal:
        """The goal on the model under attack."""
        return self.wanted

    @property
    def kind(self) -> str:
        """It stays in a ball."""
        return "budget"

    @property
    def access(self) -> str:
        """No gradients are needed of the model under attack itself."""
        return "black box"

    def _climbs(self):
        return (None,)

    def _view(self, model):
        return Victim.of(model).facing(self.bounds)

    def _accept(self, victim, y):
        """Whatever the model under attack gives is enough."""

    def _success(self, victim, x_adv, y):
        return Attack._success(self, victim, x_adv, y)


@dataclass(frozen=True, eq=False, repr=False)
class Shown(Elsewhere):
    """An attack made on a model that is there, and shown to the one under attack.

    Unlike with `Transfer`, the two may have other classes and outputs of another shape. What a minimal attack changes
    by more than `eps` is taken back.

    Args:
        source: The model that it is made on; an attribute `bounds` says its range.
        norm: Norm of the radius of a minimal attack.
        eps: Its radius, a number or one for each sample.
    """

    source: keras.Model | None = None
    norm: Norm | str = field(default_factory=Linf)
    eps: float | tuple[float, ...] | None = None

    def _run(self, model, x, y, batch_size, seed, show):
        found, spent = self.attack._run(self.attack._view(self.source), x, y, batch_size, seed, show)
        if self.attack.kind == "minimal" and self.eps is not None:
            size = ops.convert_to_numpy(norms.get(self.norm).size(ops.convert_to_tensor(found - x)))
            far = size > np.asarray(self.eps) * (1 + 1e-6)  # rounding of float32
            found = np.where(far.reshape((-1,) + (1,) * (x.ndim - 1)), x, found)
        return found, spent


@dataclass(frozen=True, eq=False, repr=False)
class Refined(Shown):
    """An attack on a model with other gradients, and then one on the model itself, around what the first found.

    The gradient that stands in for a wiggling one tells which way to go, and the wiggling one itself what is best near
    there. The radii of the two add up to that of the ball.

    Args:
        fine: The second attack, with a radius of its own.
        own: The model that it is made on.
    """

    fine: Attack | None = None
    own: keras.Model | None = None

    def _run(self, model, x, y, batch_size, seed, show):
        found, spent = super()._run(model, x, y, batch_size, seed, show)
        found, more = self.fine._run(self.fine._view(self.own), found, y, batch_size, seed, show)
        return found, spent + more


@dataclass(frozen=True, repr=False)
class Noise(QueryAttack):
    """Random points of the ball, until one reaches the goal: the control that every attack must beat.

    Args:
        eps: Radius in input units, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or a `Norm`.
        queries: Points for each sample, and one for the clean input.
        samples: Passes that are averaged for one answer.
        goal: What the attacker wants.
        bounds: Valid range of an input value.
    """

    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        object.__setattr__(self, "norm", norms.get(self.norm))

    def init(self, x, seeds, value) -> dict:
        """State before the first round."""
        eps = spread("eps", self.eps, len(x))
        return {"done": eps == 0, "eps": eps}

    def round(self, ask, part) -> None:
        """Show one point of each sample."""
        seeds, x = draws.branch(part["seed"], part["moves"]), part["x"]
        delta = on_rows(lambda s, e: self.norm.sample(s, x.shape[1:], e), seeds, part["eps"])
        z = np.clip(x + delta, *np.float32(self.bounds)).astype("float32")
        _, reached = ask(part["row"], z)
        part["adv"][reached] = z[reached]
        part["reached"] |= reached
        part["done"] |= reached


# -- models ------------------------------------------------------------------------------------------------------


def _finished(images, logits, bounds) -> keras.Model:
    model = keras.Model(images, logits)
    model.bounds = bounds
    return models.as_logits(model)


def member_view(member: keras.Model, bounds: tuple[float, float]) -> keras.Model:
    """All logits of a classifier, of shape (n, outputs)."""
    view = models.logits_view(member)
    images = keras.Input(view.input_shape[1:])
    return _finished(images, view(images), bounds)


def undefended(members: list[keras.Model], classes: int, bounds: tuple[float, float]) -> keras.Model:
    """The logarithms of the mean probabilities that classifiers give to the real classes, of shape (n, classes)."""
    views = models.named_views(members)
    images = keras.Input(views[0].input_shape[1:])
    logits = [view(images)[:, :classes] for view in views]
    joined = logits[0] if len(logits) == 1 else mean_of_probabilities(ops.stack(logits, axis=1))
    return _finished(images, joined, bounds)


def mean_of_draws(surface: keras.Model, goal: Goal, count: int, bounds: tuple[float, float]) -> keras.Model:
    """A random model whose outputs stand for the mean probabilities over several draws of it."""
    view = models.logits_view(surface)
    images = keras.Input(view.input_shape[1:])
    many = view(ops.repeat(images, count, axis=0))
    return _finished(images, goal.averaged(ops.reshape(many, (-1, count, *many.shape[1:]))), bounds)


def same_outputs(a: keras.Model, b: keras.Model, bounds: tuple[float, float]) -> bool:
    """Whether two models give the same logits for some random inputs."""
    if a.output_shape != b.output_shape:
        return False
    shape = a.input_shape[1:]
    x = np.random.default_rng(0).uniform(*bounds, (8, *shape)).astype("float32")
    return np.allclose(*(models.predict_logits(m, x) for m in (a, b)), atol=1e-5)
