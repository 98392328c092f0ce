"""Views of a user's model: its logits, whatever its last layers make of them."""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import keras
from keras import ops

from kerasdef.annotations import check, check_fields, checked
from kerasdef.models import graph
from kerasdef.models.bounds import float_input

_VIEWS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Untracked:
    """Models that another one uses but does not train.

    Keras collects the weights of all models that are attributes of a model. It does not look into this class, so the
    weights of these are not counted, saved or trained a second time.
    """

    models: tuple[keras.Model | None, ...]

    def __post_init__(self):
        check_fields(self)


@keras.saving.register_keras_serializable(package="kerasdef")
class BinaryLogits(keras.layers.Layer):
    """One logit z becomes two, (0, z)."""

    def call(self, z):
        """Return (0, z)."""
        return ops.concatenate([ops.zeros_like(z), z], axis=-1)


@dataclass(frozen=True)
class _View:
    """What is kept of a model: its view, or None where it is one itself, and what its head gives."""

    model: keras.Model | None
    kind: str | None


def _look(model: keras.Model, shape: tuple[int, ...] | None) -> _View:
    """Find the logits of a model."""
    if not model.built:
        raise ValueError(
            "The model must be built before it is attacked: call it once, or give it an Input. "
            f"Received: model={model.name!r}, which has no weights yet"
        )
    whole = model
    if not getattr(model, "outputs", None):  # a subclassed model: its graph is what it does to an Input
        whole = _traced(model, shape)
    outputs, given = whole.outputs, (getattr(whole, "_functional", None) or whole).output
    if isinstance(given, dict):
        raise ValueError(
            "The model must have one input and one output of shape (n, classes). "
            f"Received: model={model.name!r}, which gives a dict of {', '.join(map(repr, given))}"
        )
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or len(whole.inputs) != 1:
        shapes = [tuple(o.shape) for o in outputs]
        raise ValueError(
            f"The model must have one input and one output of shape (n, classes). Received: outputs={shapes}, "
            f"{len(whole.inputs)} input(s)"
        )
    if graph.reads_tokens(whole):
        raise ValueError(
            "The model must take numbers that can be changed by a little. "
            f"Received: model={model.name!r}, which begins with an Embedding of integer tokens"
        )
    found = graph.head(outputs[0])
    _check_head(model, found, outputs[0].shape[-1])
    if found.kind is None:
        warnings.warn(
            f"The last layer of model {model.name!r} is not a Dense, Activation or Softmax layer, so its outputs "
            "are taken as logits. If they are probabilities, gradients vanish and attacks look weaker than they are.",
            UserWarning,
            stacklevel=5,
        )
    z = BinaryLogits()(found.logits) if found.logits.shape[-1] == 1 else found.logits
    view = whole if z is outputs[0] else keras.Model(whole.inputs, z, name=f"{model.name}_logits")
    view = float_input(view)
    return _View(None if view is model else as_logits(view), found.kind)


def check_symbolic(model: keras.Model) -> None:
    """Raise unless a model is built and tells the shapes of its inputs and outputs."""
    if not getattr(model, "outputs", None):
        raise ValueError(
            f"`model` must be a Sequential or functional model that is built. Received: {type(model).__name__}; wrap "
            "it: keras.Model(inputs, model(inputs)) with inputs = keras.Input(shape)"
        )


def _traced(model: keras.Model, shape: tuple[int, ...] | None) -> keras.Model:
    """A functional model around a subclassed one."""
    if shape is None:
        raise ValueError(
            "`model` must be a Sequential or functional model where no images tell the shape of its input. "
            f"Received: {type(model).__name__}; wrap it: "
            "keras.Model(inputs, model(inputs)) with inputs = keras.Input(shape)"
        )
    images = keras.Input(shape)
    try:
        outputs = model(images, training=False)
    except Exception as error:  # whatever the user's own `call` does with a symbolic tensor
        raise ValueError(
            f"The model must be traceable: its `call` gets a symbolic tensor of shape {images.shape}, which NumPy "
            f"cannot take. Received: model={model.name!r}, which raises {type(error).__name__}: {_reason(error)}"
        ) from error
    return keras.Model(images, outputs, name=model.name)


def _reason(error: Exception) -> str:
    """The first line of an error that says why, without what Keras puts before it, and without its bold letters."""
    lines = re.sub(r"\x1b\[\d+m", "", str(error)).rpartition("Error encountered:")[2].splitlines()
    return next((line for line in lines if line and not line.startswith("Exception encountered when calling")), "")


def _check_head(model: keras.Model, found: graph.Head, outputs: int) -> None:
    """Raise where the outputs do not stand for one class out of several."""
    if found.kind == "sigmoid" and outputs > 1:
        raise ValueError(
            "The model must choose one of its classes: logits, a softmax, or a single sigmoid. "
            f"Received: model={model.name!r}, a multi-label head of {outputs} sigmoids"
        )
    if found.kind == "softmax" and outputs == 1:
        raise ValueError(
            "The model must have at least two classes, or a single output that is a logit or a sigmoid. "
            f"Received: model={model.name!r}, a softmax of one output, which is always 1"
        )


def _found(model: keras.Model, shape: tuple[int, ...] | None = None) -> _View:
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    if model not in _VIEWS:
        _VIEWS[model] = _look(model, shape)
    return _VIEWS[model]


def logits_view(model: keras.Model, shape: tuple[int, ...] | None = None) -> keras.Model:
    """Return a model that shares the weights of `model`, takes float32 and gives logits of shape (n, classes).

    A last softmax or sigmoid is left off, also where it is deep inside models that are layers of others; a single logit
    z becomes the pair (0, z). Inputs of uint8 become floating point, so that gradients reach them. A model whose last
    layer is not recognized is returned as it is, with a `UserWarning`.

    Args:
        model: A built Keras classifier.
        shape: Shape of one input, for a subclassed model, which does not tell it.

    Raises:
        ValueError: The model is not a built keras.Model, cannot be traced, has several inputs or outputs or a dict of
            outputs, has a multi-label head, or takes integer tokens, other integers than uint8, or booleans.
    """
    check("shape", shape, tuple[int, ...] | None)
    return _found(model, shape).model or model


@checked
def logits_of(model: keras.Model) -> Callable:
    """Return a function from the outputs of `model` to logits of shape (n, classes), float32.

    It undoes a last softmax or sigmoid by a logarithm, so it is for losses, not for attacks: where a probability is
    below 1e-30 the gradient is lost. Attacks go through `logits_view`.

    Raises:
        ValueError: The model is a subclassed one, whose outputs have no known shape.
    """
    check_symbolic(model)
    single = model.output_shape[-1] == 1
    squashed = not gives_logits(model)

    def to_logits(outputs):
        z = ops.cast(outputs, "float32")
        if squashed and single:
            z = ops.log(ops.maximum(z, 1e-30)) - ops.log(ops.maximum(1.0 - z, 1e-30))
        elif squashed:
            return ops.log(ops.maximum(z, 1e-30))
        return ops.concatenate([ops.zeros_like(z), z], axis=-1) if single else z

    return to_logits


@checked
def gives_logits(model: keras.Model) -> bool:
    """Whether the outputs of a classifier are logits (or one logit) rather than probabilities."""
    return _found(model).kind not in ("softmax", "sigmoid")


@checked
def named_views(models: list[keras.Model]) -> list[keras.Model]:
    """Return logits views with names of their own, member1 and so on: models may be joined that share a name."""
    views = [logits_view(m) for m in models]
    return [keras.Model(view.inputs, view.outputs[0], name=f"member{i}") for i, view in enumerate(views, 1)]


@checked
def stack_logits(models: list[keras.Model]) -> keras.Model:
    """Return one model from images to the logits of all `models`, of shape (n, members, classes)."""
    if not models:
        raise ValueError(f"`models` must be one or more models. Received: models={models!r}")
    views = named_views(models)
    inputs = keras.Input(views[0].input_shape[1:])
    return as_logits(keras.Model(inputs, ops.stack([view(inputs) for view in views], axis=1)))


@checked
def as_logits(model: keras.Model) -> keras.Model:
    """Return the model and take its outputs for logits, whatever its last layer is."""
    check_symbolic(model)
    _VIEWS[model] = _View(None, "logits")
    return model


@checked
def has_batch_norm(model: keras.Model) -> bool:
    """Whether a layer of the model, or of a model inside it, is a BatchNormalization."""
    inner = (layer for layer in model.layers if isinstance(layer, keras.Model))
    own = any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    return own or any(map(has_batch_norm, inner))
