"""What a defense is: it decides, it says how it is attacked by one who knows it, and its file says all of that."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef import checks, models
from kerasdef.annotations import check_fields, checked
from kerasdef.goals import Evade, Goal, Misclassify
from kerasdef.models.bounds import UNIT, input_bounds, onto
from kerasdef.models.guard import NOBODY, Flag, Guard, argmax


@dataclass(frozen=True, eq=False)
class Decision:
    """What a defense says of n samples; the first axis of every array is the sample.

    Args:
        label: Integers of shape (n,). A rejected sample has the label that stands for "adversarial"; where there is
            none, one whose outputs are not finite has -1.
        rejected: Booleans of shape (n,).
        score: How adversarial a sample looks, of shape (n,); the larger, the more. None for a defense that rejects
            nothing.
        probabilities: Probabilities of shape (n, outputs), or None where only labels are known. A class that stands for
            "adversarial" is one of the columns.
    """

    label: np.ndarray
    rejected: np.ndarray
    score: np.ndarray | None
    probabilities: np.ndarray | None

    def __post_init__(self):
        check_fields(self)


@keras.saving.register_keras_serializable(package="kerasdef")
class Defense(keras.Model):
    """A model from images to a decision, which knows how it is attacked.

    Called on a tensor it gives a dict: `label` (n,) int32 and `probabilities` (n, outputs) float32; where it has a
    class for "adversarial" also `is_adversarial` (n,) bool, else `is_valid` (n,) bool. It looks at every image first:
    one with values that are not finite or not in the bounds is no image of its data, and its answer says so
    (`kerasdef.models.guard.Flag`): rejected where there is such a label, else label -1 and equal probabilities. No
    answer is NaN, and no image changes the answer to another. Its configuration is in the .keras file and, as facts, in
    the SavedModel, so a file that is moved keeps its classes, its reject class, its bounds and its goal.

    Subclasses are functional models: they call `super().__init__` with inputs and outputs, and have `surface` and a
    `get_config` from which `from_config` makes them again. They are registered with Keras.

    Args:
        inputs: `keras.Input` of the images.
        outputs: Dict of symbolic outputs, as above, without `is_valid`.
        classes: Number of real classes K: true labels are below it.
        reject: The label that stands for "adversarial", or None.
        bounds: `(low, high)`: range of the values that it takes.
        name: Name of the model.
    """

    @checked
    def __init__(self, inputs, outputs, *, classes: int, reject: int | None, bounds: tuple[float, float], name=None):
        bounds = checks.bounds(bounds)
        images, valid = Guard(bounds, name="guard")(inputs)
        answer = keras.Function(inputs, outputs).call(images)  # the same layers, behind the guard
        super().__init__(inputs=inputs, outputs=Flag(reject, name="flag")(answer, valid), name=name)
        self.classes = checks.positive_int("classes", classes)
        self.reject = None if reject is None else checks.non_negative_int("reject", reject)
        self.bounds = bounds

    @checked
    def decide(self, x: np.ndarray, *, bounds: tuple[float, float] | None = None, batch_size: int = 512) -> Decision:
        """Decide on an array, in inference mode.

        Args:
            x: Array of shape (n, ...): floats, or uint8 images, which stand for the range from 0 to 255.
            bounds: `(low, high)`: range of the values of x, which is mapped linearly onto that of the defense. None is
                that of the defense.
            batch_size: Samples at a time.

        Raises:
            ValueError: x is of another shape or type, or beyond the bounds.
        """
        x = checks.images("x", onto(x, self.bounds, bounds), limits=self.bounds, shape=self.input_shape[1:])
        answer = self.answer(models.predict_logits(self.surface()[0], x, batch_size=batch_size))
        answer = self.get_layer("flag")(answer, ops.ones((len(x),), dtype="bool"))
        label, probabilities = (ops.convert_to_numpy(answer[k]) for k in ("label", "probabilities"))
        rejected = np.zeros(len(label), dtype=bool) if self.reject is None else label == self.reject
        score = None
        if self.reject is not None:
            score = ops.convert_to_numpy(answer["score"]) if "score" in answer else probabilities[:, self.reject]
        return Decision(label.astype("int64"), rejected, score, probabilities)

    @abstractmethod
    def surface(self) -> tuple[keras.Model, Goal]:
        """What an attacker who knows all of the defense sees and wants.

        Returns:
            `(model, goal)`: a model of logits through which gradients flow, for an attack with that goal.
        """

    @abstractmethod
    def answer(self, logits) -> dict:
        """The outputs of the defense from logits as the model of its surface gives them."""

    @property
    def members(self) -> list[keras.Model]:
        """The classifiers that it is made of, as far as it is made of any."""
        return []

    @property
    def learns(self) -> bool:
        """Whether it has a method `learn`, which moves its state when true labels arrive."""
        return False

    @property
    def facts(self) -> dict:
        """What a file of the defense says of it, as JSON values: kind, classes, reject, bounds."""
        kind = type(self).__name__
        return {"kind": kind, "classes": self.classes, "reject": self.reject, "bounds": list(self.bounds)}


class Members(keras.layers.Layer):
    """Classifiers side by side: images to a list of their logits, each of shape (n, outputs), float32.

    What stands behind the logits of a member, such as a softmax, is left off, and a member whose Input is of uint8
    takes floats.
    """

    def __init__(self, members: Sequence[keras.Model], **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.members = list(members)
        views = tuple(models.logits_view(m) for m in members)
        self.views = models.Untracked(views)  # the weights are those of the members
        self.built = True

    def call(self, x, training=None):
        """Logits of each member."""
        return self.of(x, slice(None), training=training)

    def of(self, x, which: slice, training=None) -> list:
        """Logits of some members."""
        return [ops.cast(view(x, training=training), "float32") for view in self.views.models[which]]

    def compute_output_spec(self, x, training=None):
        """Shapes and types of the outputs."""
        return [keras.KerasTensor((x.shape[0], v.output_shape[-1]), dtype="float32") for v in self.views.models]


class Verdict(keras.layers.Layer):
    """Decision of one classifier.

    Args:
        reject: As in `Defense`.
        flags: Whether the outputs have `is_adversarial`.

    Call arguments:
        logits: A list of one tensor of shape (n, outputs), as `Members` gives it.
    """

    def __init__(self, reject: int | None = None, *, flags: bool = False, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.reject, self.flags = reject, flags
        self.built = True

    def call(self, logits):
        """The outputs of a defense."""
        (logits,) = logits
        label = argmax(logits)
        answer = {"label": label, "probabilities": ops.softmax(logits, axis=-1)}
        if self.flags:
            answer["is_adversarial"] = ops.equal(label, NOBODY if self.reject is None else self.reject)
        return answer


class OfMembers(Defense):
    """A defense that decides on the logits of one or more classifiers; the base of those that are registered.

    Args:
        members: Built classifiers with the same input and output shapes.
        decision: Layer from the list of their logits to the outputs of the defense.
        classes: As in `Defense`.
        reject: As in `Defense`.
        stacked: Whether the logits of its surface have an axis of the members, of which there may be several.
        bounds: None takes those that the members say, and (0, 1) where they say none.
        name: Name of the model.
    """

    def __init__(self, members, decision: keras.layers.Layer, *, classes, reject, stacked, bounds=None, name=None):
        side = Members(members, name="members")
        inputs = keras.Input(members[0].input_shape[1:], name="images")
        bounds = bounds_of(members) if bounds is None else checks.bounds(bounds)
        super().__init__(inputs, decision(side(inputs)), classes=classes, reject=reject, bounds=bounds, name=name)
        self._attacked = models.Untracked((self._attackable(list(members), stacked),))

    @property
    def members(self) -> list[keras.Model]:
        """The classifiers, as they were given."""
        return list(self.get_layer("members").members)

    def _attackable(self, members: list[keras.Model], stacked: bool) -> keras.Model:
        """The logits of all members: stacked of shape (n, members, outputs), else those of the one, (n, outputs)."""
        if stacked:
            view = models.stack_logits(members)
        elif self.bounds == (input_bounds(members[0]) or UNIT):
            return members[0]
        else:
            images = keras.Input(self.input_shape[1:])
            view = keras.Model(images, models.logits_view(members[0])(images))
        view.bounds = self.bounds
        return models.as_logits(view)

    def answer(self, logits) -> dict:
        """The outputs of the defense from the logits of its members."""
        logits = ops.convert_to_tensor(logits)
        logits = [logits] if len(logits.shape) == 2 else [logits[:, i] for i in range(logits.shape[1])]
        return self.get_layer("decision")(logits)

    def get_config(self):
        """Settings of the defense, its members among them."""
        members = [keras.saving.serialize_keras_object(m) for m in self.members]
        for member in members:
            member.pop("compile_config", None)  # how a member was trained says nothing of how it decides
        return {"members": members, "bounds": list(self.bounds), "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The defense of a configuration."""
        config = dict(config)
        members = [keras.saving.deserialize_keras_object(m, custom_objects) for m in config.pop("members")]
        return cls._made(members, config)

    @classmethod
    def _made(cls, members: list[keras.Model], config: dict) -> OfMembers:
        return cls(members, **config)


class _OfOne(OfMembers):
    """A defense of one classifier."""

    def __init__(self, model: keras.Model, *, reject: bool | None, bounds, name):
        """`reject`: None where no output stands for "adversarial"; else whether the last one rejects."""
        check_member(model)
        outputs = max(2, model.output_shape[-1])
        classes = outputs if reject is None else outputs - 1
        label = classes if reject else None
        decision = Verdict(label, flags=reject is not None, name="decision")
        super().__init__(
            [model],
            decision,
            classes=classes,
            reject=label,
            stacked=False,
            bounds=bounds,
            name=name or f"{model.name}_defense",
        )

    @classmethod
    def _made(cls, members: list[keras.Model], config: dict) -> _OfOne:
        return cls(*members, **config)

    def surface(self) -> tuple[keras.Model, Goal]:
        """The classifier, and a label that is neither the true one nor that of rejected inputs."""
        return self._attacked.models[0], Misclassify() if self.reject is None else Evade(self.reject)


@keras.saving.register_keras_serializable(package="kerasdef")
class Plain(_OfOne):
    """A classifier as it is, which rejects nothing.

    Args:
        model: A built Keras classifier: logits, probabilities, or one sigmoid output.
        bounds: `(low, high)`: range of the values that it takes. None takes what the model says, else (0, 1).
        name: Name of the defense.
    """

    @checked
    def __init__(self, model: keras.Model, *, bounds: tuple[float, float] | None = None, name: str | None = None):
        super().__init__(model, reject=None, bounds=bounds, name=name)


@keras.saving.register_keras_serializable(package="kerasdef")
class RejectClass(_OfOne):
    """A classifier with one output more than there are classes; the last stands for "adversarial".

    Args:
        model: A built Keras classifier of K + 1 outputs.
        rejects: Whether the last label rejects a sample. False: the output is there, but a sample that gets the label
            counts as any that gets a wrong one, and the attacker may go for it.
        bounds: `(low, high)`: range of the values that it takes. None takes what the model says, else (0, 1).
        name: Name of the defense.
    """

    @checked
    def __init__(
        self,
        model: keras.Model,
        *,
        rejects: bool = True,
        bounds: tuple[float, float] | None = None,
        name: str | None = None,
    ):
        super().__init__(model, reject=bool(rejects), bounds=bounds, name=name)

    def get_config(self):
        """Settings of the defense."""
        return {**super().get_config(), "rejects": self.reject is not None}


class Outputs:
    """A defense of which there are outputs only: a callable, or a SavedModel. It is attacked as a black box.

    Args:
        function: Maps float32 arrays of shape (n, ...) to logits or probabilities of shape (n, outputs), or to labels
            of shape (n,). One with a method `answer` from arrays to a dict with `label` and `probabilities` is asked by
            it for decisions.
        classes: Number of real classes, None where it cannot be known.
        reject: The label that stands for "adversarial", or None.
        bounds: `(low, high)`: range of the values that it takes.
        name: Name in words, for reports.
    """

    @checked
    def __init__(self, function: Callable, *, classes=None, reject=None, bounds=UNIT, name: str | None = None):
        self.function, self.classes, self.reject = function, classes, reject
        self.bounds = checks.bounds(bounds)
        self.name = name or getattr(function, "__name__", "model")
        self._attacked = models.BlackBox(function, bounds=self.bounds)
        self.members: list[keras.Model] = []

    @checked
    def decide(self, x: np.ndarray, *, bounds: tuple[float, float] | None = None, batch_size: int = 512) -> Decision:
        """Decide on an array, as a `Defense` does; every sample is one query."""
        x = onto(x, self.bounds, bounds)
        parts = [self._decide(x[part]) for part in models.padded_batches(len(x), batch_size)]
        label, probabilities = (None if v[0] is None else np.concatenate(v) for v in zip(*parts, strict=True))
        rejected = np.zeros(len(label), dtype=bool) if self.reject is None else label == self.reject
        score = None if self.reject is None or probabilities is None else probabilities[:, self.reject]
        return Decision(label.astype("int64"), rejected, score, probabilities)

    def _decide(self, x):
        if hasattr(self.function, "answer"):
            found = self.function.answer(x)
            return found["label"], found["probabilities"]
        found = np.asarray(self.function(np.array(x)))  # a copy: it may write into it
        if found.ndim == 1 and len(found) == len(x):
            return checks.labels("model(x)", found, n=len(x)), None
        if found.ndim != 2 or len(found) != len(x) or found.dtype.kind not in "biuf":
            raise ValueError(
                f"`model` must return logits (n, classes) or labels (n,) of {len(x)} images. "
                f"Received: shape={found.shape}, dtype={found.dtype}"
            )
        whole = np.isfinite(found).all(axis=1, keepdims=True)
        if not whole.all():  # no answer: no label, and equal probabilities
            label, shares = self._answered(np.where(whole, found, 0))
            return np.where(whole[:, 0], label, checks.NOBODY), np.where(whole, shares, 1 / found.shape[1])
        return self._answered(found)

    @staticmethod
    def _answered(found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels and probabilities of logits or probabilities."""
        shares = (found >= 0).all() and np.allclose(found.sum(axis=1), 1.0, atol=1e-3)  # 1e-3: float16
        tensor = ops.convert_to_tensor(found.astype("float32"))
        return found.argmax(axis=1), found if shares else ops.convert_to_numpy(ops.softmax(tensor, axis=-1))

    def surface(self) -> tuple[models.BlackBox, Goal]:
        """The callable as attacks see it, and a label that is neither the true one nor that of rejected inputs."""
        return self._attacked, Misclassify() if self.reject is None else Evade(self.reject)

    @property
    def facts(self) -> dict:
        """What is known of the defense, as JSON values: kind, classes, reject, bounds."""
        kind = type(self).__name__
        return {"kind": kind, "classes": self.classes, "reject": self.reject, "bounds": list(self.bounds)}


def as_defense(model: keras.Model | Callable, *, bounds: tuple[float, float] | None = None) -> Defense | Outputs:
    """Make a defense without a reject class of any classifier; a defense comes back as it is.

    Args:
        model: A defense, a built Keras classifier, or a callable from images to logits, probabilities or labels.
        bounds: `(low, high)`: range of the values that the classifier takes. None takes what it says, else (0, 1).

    Raises:
        ValueError: It is none of these, or a defense takes another range.
    """
    if isinstance(model, Defense | Outputs):
        if bounds is not None and checks.bounds(bounds) != model.bounds:
            raise ValueError(f"`bounds` must be those of the defense, {model.bounds}. Received: bounds={bounds!r}")
        return model
    if isinstance(model, keras.Model):
        return Plain(model, bounds=bounds)
    if not callable(model):
        raise ValueError(f"`model` must be a Keras model or a callable. Received: model={model!r}")
    return Outputs(model, bounds=UNIT if bounds is None else bounds)


def check_member(model) -> None:
    """Raise unless a model is a built Keras classifier of one input and one output."""
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    models.check_symbolic(model)
    if len(inputs) != 1 or len(outputs) != 1 or len(outputs[0].shape) != 2:
        raise ValueError(
            "`model` must have one input and one output of shape (n, classes). "
            f"Received: model={model.name!r}, with outputs={[tuple(o.shape) for o in outputs]}"
        )


def check_members(members) -> list[keras.Model]:
    """Return a list of built classifiers; raise unless there are some, and their shapes are the same."""
    members = list(members)
    if not members:
        raise ValueError("`members` must be one or more models. Received: members=[]")
    for member in members:
        check_member(member)
    shapes = {(tuple(m.input_shape), tuple(m.output_shape)) for m in members}
    if len(shapes) > 1:
        raise ValueError(f"`members` must have the same input and output shapes. Received: {sorted(shapes)}")
    return members


def bounds_of(members: Sequence[keras.Model]) -> tuple[float, float]:
    """Range of the values that all members take: what they say, else (0, 1)."""
    found = {input_bounds(m) or UNIT for m in members}
    if len(found) > 1:
        raise ValueError(f"`members` must take values of the same range. Received: {sorted(found)}")
    return found.pop()
