"""A defense whose last layers are replaced: binary heads, one for each image, behind everything else as it is."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import singledispatch

import keras
import numpy as np
from keras import ops

from kerasdef import models
from kerasdef.defenses.base import Defense, OfMembers
from kerasdef.defenses.hybrid import HybridDefense
from kerasdef.defenses.stages import Stages
from kerasdef.goals import Goal
from kerasdef.models.features import features_of
from kerasdef.norms import Norm, flatten

_FAR = 1e30  # distance of a ball that is not asked for


class Pairs(keras.layers.Layer):
    """Binary logistic heads side by side, on the features of one classifier.

    Args:
        width: Number of features.
        count: Number of heads.

    Call arguments:
        features: Tensor of shape (n, width).

    Returns:
        Tensor of shape (n, 2 * count): logarithms of the probabilities of class 0 of every head, then of class 1. All
        of these probabilities together sum to 1, so a softmax, a weight or a mean over copies of an image keeps the
        proportion within every head.
    """

    def __init__(self, width: int, count: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.count = count
        self.kernel = self.add_weight(shape=(width, count), initializer="zeros", trainable=False, name="kernel")
        self.bias = self.add_weight(shape=(count,), initializer="zeros", trainable=False, name="bias")
        self.built = True

    def call(self, features):
        """Answers of all heads."""
        score = ops.matmul(ops.cast(features, "float32"), self.kernel) + self.bias
        return ops.concatenate([ops.log_sigmoid(-score), ops.log_sigmoid(score)], axis=-1) - math.log(self.count)


class Own(keras.layers.Layer):
    """Chooses for every input the head of the image in whose ball it lies.

    Args:
        norm: Norm of the balls.
        shape: Shape of one image.
        count: Number of images.

    Call arguments:
        x: Tensor of shape (n, ...).
        answers: Tensor of shape (n, members, 2 * count) or one column more: what `Pairs` gives.

    Returns:
        Tensor of shape (n, members, 2) or with the column more.
    """

    def __init__(self, norm: Norm, shape: tuple[int, ...], count: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.norm, self.count = norm, count
        fixed = {"initializer": "zeros", "trainable": False}
        self.centers = self.add_weight(shape=(count, *shape), name="centers", **fixed)
        self.radii = self.add_weight(shape=(count,), name="radii", **fixed)
        self.asleep = self.add_weight(shape=(count,), name="asleep", **fixed)
        self.built = True

    def call(self, x, answers):
        """The answers of one head for each input."""
        delta = ops.expand_dims(x, 1) - ops.expand_dims(self.centers, 0)
        delta = ops.reshape(delta, (-1, *x.shape[1:]))
        radii = ops.reshape(ops.zeros_like(flatten(x)[:, :1]) + self.radii, (-1,))  # of every image, for each input
        away = flatten(delta - self.norm.project(delta, radii))
        away = ops.reshape(ops.sum(ops.square(away), axis=-1), (-1, self.count)) + _FAR * self.asleep
        own = ops.stop_gradient(ops.one_hot(ops.argmin(away, axis=-1), self.count, dtype="float32"))
        own = ops.expand_dims(own, 1)
        zero, one = (
            ops.sum(answers[..., part * self.count : (part + 1) * self.count] * own, axis=-1, keepdims=True)
            for part in (0, 1)
        )
        return ops.concatenate([zero, one, answers[..., 2 * self.count :]], axis=-1)

    def compute_output_spec(self, x, answers):
        """Shape and type of the output."""
        shape = (*answers.shape[:-1], answers.shape[-1] - 2 * self.count + 2)
        return keras.KerasTensor(shape, dtype="float32")


class Binary(Defense):
    """A defense with two classes, of the model of its surface and the goal against it.

    Args:
        model: From images to what the goal reads.
        goal: The goal.
        rejects: Whether it rejects, with the label 2.
    """

    def __init__(self, model: keras.Model, goal: Goal, *, rejects: bool):
        bounds, images = model.bounds, keras.Input(model.input_shape[1:], name="images")
        labels = Labels(goal, 2 + rejects, name="decision")
        super().__init__(
            images, labels(model(images)), classes=2, reject=2 if rejects else None, bounds=bounds, name="binary"
        )
        self._attacked = models.Untracked((models.as_logits(model),))
        self._goal = goal

    def surface(self):
        """The model and the goal."""
        return self._attacked.models[0], self._goal

    def answer(self, logits):
        """The outputs of the defense from those of its surface."""
        return self.get_layer("decision")(ops.convert_to_tensor(logits))


class Labels(keras.layers.Layer):
    """What a goal says of the outputs of a surface: class 1 where it is reached for the label 0, and so on.

    Args:
        goal: The goal.
        outputs: Number of labels, 2 or, with one for "rejected", 3.
    """

    def __init__(self, goal: Goal, outputs: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.goal, self.outputs = goal, outputs
        self.built = True

    def call(self, logits):
        """The outputs of a defense."""
        zeros = ops.cast(ops.zeros_like(ops.reshape(logits, (-1, math.prod(logits.shape[1:])))[:, 0]), "int32")
        one, zero = self.goal.reached(logits, zeros), self.goal.reached(logits, zeros + 1)
        label = ops.where(one, 1, ops.where(zero, 0, self.outputs - 1))
        return {"label": ops.cast(label, "int32"), "probabilities": ops.one_hot(label, self.outputs, dtype="float32")}


@dataclass(frozen=True, eq=False)
class Problem:
    """Binary problems on the features of a defense, one for each of several images.

    Args:
        defense: The defense with binary heads in the place of its last layers.
        features: From images to the features and logits of every member, one after the other, of shape (n, ...), behind
            what the defense does to the images.
        widths: Number of features and of logits of each member.
        heads: The heads of each member.
        own: Chooses the heads.
    """

    defense: Binary
    features: keras.Model
    widths: list[tuple[int, int]]
    heads: list[Pairs]
    own: Own

    @property
    def model(self) -> keras.Model:
        """From images to what the goal reads."""
        return self.defense.surface()[0]

    @property
    def goal(self) -> Goal:
        """The goal against it: class 1 of the head of the image, and not rejected."""
        return self.defense.surface()[1]

    def only(self, rows: np.ndarray) -> None:
        """Ask for some of the images alone, whose balls are apart."""
        asleep = np.ones(self.own.count, dtype="float32")
        asleep[rows] = 0.0
        self.own.asleep.assign(asleep)


def problem(defense: Defense, norm: Norm, x: np.ndarray, radii: np.ndarray) -> Problem:
    """Replace the last layers of a defense by binary heads, which say nothing yet.

    Args:
        defense: The defense.
        norm: Norm of the balls.
        x: Images of shape (n, ...), in the range of the defense.
        radii: Their radii of shape (n,), in its units.

    Raises:
        ValueError: It is no defense whose parts are known, or a member does not end in a layer with weights.
    """
    views = [models.logits_view(member) for member in defense.members]
    features = [features_of(member) for member in defense.members]
    heads = [Pairs(f.shape[-1], len(x), name=f"pairs{i}") for i, f in enumerate(features)]
    members = []
    for i, (view, f, pairs) in enumerate(zip(views, features, heads, strict=True)):
        answers, logits = pairs(f), view.outputs[0]
        if defense.reject is not None and defense.reject < logits.shape[-1]:
            answers = ops.concatenate([answers, _excess(logits, defense.reject)], axis=-1)
        members.append(models.as_logits(keras.Model(view.inputs, answers, name=f"binary{i}")))
    own = Own(norm, x.shape[1:], len(x), name="own")
    own.centers.assign(x)
    own.radii.assign(radii)
    images = keras.Input(x.shape[1:], name="images")
    model = keras.Model(images, rebuilt(defense, members, own, images))
    goal = defense.surface()[1]
    if defense.reject is not None:
        goal = dataclasses.replace(goal, reject=2)
    both = [
        keras.Model(view.inputs, ops.concatenate([ops.cast(f, "float32"), view.outputs[0]], axis=-1), name=f"seen{i}")
        for i, (view, f) in enumerate(zip(views, features, strict=True))
    ]
    shown = seen(defense, images)
    found = [one(shown) for one in both]
    looked_at = keras.Model(images, found[0] if len(found) == 1 else ops.concatenate(found, axis=-1))
    for made in (model, looked_at):
        made.bounds = defense.bounds
    widths = [(f.shape[-1], view.output_shape[-1]) for view, f in zip(views, features, strict=True)]
    binary = Binary(model, goal, rejects=defense.reject is not None)
    return Problem(binary, models.as_logits(looked_at), widths, heads, own)


def _excess(logits, reject: int):
    """How far the logit of the rejecting class is above all others, of shape (n, 1)."""
    others = [logits[:, k : k + 1] for k in range(logits.shape[-1]) if k != reject]
    return logits[:, reject : reject + 1] - ops.max(ops.concatenate(others, axis=-1), axis=-1, keepdims=True)


@singledispatch
def rebuilt(defense, members: list[keras.Model], own: Own, images):
    """What the surface of a defense gives with other members: a symbolic tensor for symbolic images.

    Args:
        defense: The defense.
        members: Models that give what `Pairs` gives and, where a class of the defense's own members rejects, how far
            it is above the others.
        own: Chooses the head.
        images: Symbolic images.
    """
    raise ValueError(
        f"`defense` must be made of members: Plain, RejectClass, Voting, HybridDefense. Received: {defense!r}"
    )


@rebuilt.register(OfMembers)
def _(defense, members, own, images):
    found = own(images, ops.stack([member(images) for member in members], axis=1))
    if defense.reject is not None:
        pair = found[..., :2]
        found = ops.concatenate([pair, ops.max(pair, axis=-1, keepdims=True) + found[..., 2:]], axis=-1)
    return found if len(defense.surface()[0].output_shape) == 3 else found[:, 0]


@singledispatch
def seen(defense, images):
    """What the members of a defense are shown of images."""
    return images


class Watching(keras.layers.Layer):
    """A detector that goes on watching the members for which it was fitted, whoever stands in their place.

    Args:
        stages: The stages of the defense, with its detector and members.
    """

    def __init__(self, stages: Stages, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.detector, self.members = stages.detector, stages.members
        self.watched = slice(None) if stages.sure is None else slice(1)
        self.built = True

    def excess(self, x, logits):
        """The excess of the detector, whatever the logits are."""
        return self.detector.excess(x, ops.stack(self.members.of(x, self.watched), axis=1))


class Seen(keras.layers.Layer):
    """What the members of a `HybridDefense` are shown: images, repaired where it repairs them, with one draw of noise.

    Args:
        stages: The stages of the defense.
    """

    def __init__(self, stages: Stages, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.stages = stages
        self.seeds = keras.random.SeedGenerator(0) if stages.sigma > 0 else None
        self.built = True

    def call(self, x):
        """Repair the images."""
        repaired = x if self.stages.purifier is None else self.stages.purifier(x)
        if self.seeds is not None:
            repaired = repaired + self.stages.sigma * keras.random.normal(ops.shape(x), seed=self.seeds)
        if self.stages.always:
            return repaired
        excess = self.stages.watched(x)[1]
        if excess is None:
            return x
        return ops.where(ops.reshape(excess > 0, (-1,) + (1,) * (len(x.shape) - 1)), repaired, x)

    def compute_output_spec(self, x):
        """Shape and type of the images."""
        return keras.KerasTensor(x.shape, dtype="float32")


@rebuilt.register(HybridDefense)
def _(defense, members, own, images):
    stages = defense.stages
    again = Stages(
        members,
        None if stages.detector is None else Watching(stages, name="watching"),
        stages.purifier,
        sigma=stages.sigma,
        draws=stages.draws,
        weights=stages.weighted,
        always=stages.always,
        rejects=stages.rejects,
        sure=None,  # a new head is not sure of anything: all members are asked
        seed=0,
        name="stages",
    )
    return own(images, again(images))


@seen.register(HybridDefense)
def _(defense, images):
    return Seen(defense.stages, name="seen")(images) if defense.stages.repairs else images
