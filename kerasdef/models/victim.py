"""Views of a user's model: its logits, whatever its last layer makes of them, and predictions on arrays.

Attacks need logits: behind a softmax in float32 the gradient of the cross-entropy is exactly zero from a logit gap
of about 17.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef import backend

_VIEWS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_FORWARD: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Untracked:
    """Models that belong to another one but are not trained with it: in here Keras does not find their weights."""

    models: tuple[keras.Model, ...]


class _WithoutActivation(keras.layers.Layer):
    """A Dense layer's product and bias, without its activation; shares the weights."""

    def __init__(self, dense: keras.layers.Dense):
        super().__init__()
        self.dense = dense

    def call(self, x):
        z = ops.matmul(x, self.dense.kernel)
        return z if self.dense.bias is None else z + self.dense.bias


class _BinaryLogits(keras.layers.Layer):
    """One logit z becomes two, (0, z)."""

    def call(self, z):
        return ops.concatenate([ops.zeros_like(z), z], axis=-1)


def _activation_name(layer) -> str:
    activation = getattr(layer, "activation", None)
    return getattr(activation, "__name__", "linear") if activation is not None else "linear"


def _logits_tensor(output):
    """Symbolic logits behind the output of a Sequential or Functional model, or None where it is not recognized."""
    last, node, _ = output._keras_history
    before = last._inbound_nodes[node].input_tensors[0] if last._inbound_nodes[node].input_tensors else None
    name = _activation_name(last)
    if isinstance(last, keras.layers.Softmax):
        return before
    if isinstance(last, keras.layers.Activation) and name in ("softmax", "sigmoid"):
        return before
    if isinstance(last, keras.layers.Dense) and name in ("softmax", "sigmoid"):
        return _WithoutActivation(last)(before)
    if name == "linear" and isinstance(last, keras.layers.Dense | keras.layers.Activation):
        return output
    return None


def _view(model: keras.Model) -> keras.Model | None:
    """The logits model, or None where the model is one itself."""
    if not model.built:
        raise ValueError(
            "The model must be built before it is attacked: call it once, or give it an Input. "
            f"Received: model={model.name!r}, which has no weights yet"
        )
    output = getattr(model, "outputs", None)
    if output and (len(output) != 1 or len(output[0].shape) != 2):
        shapes = [tuple(o.shape) for o in output]
        raise ValueError(f"The model must have one output of shape (n, classes). Received: outputs={shapes}")
    z = _logits_tensor(output[0]) if output else None
    if z is None:
        warnings.warn(
            f"The last layer of model {model.name!r} is not a Dense, Activation or Softmax layer, so its outputs "
            "are taken as logits. If they are probabilities, gradients vanish and attacks look weaker than they are.",
            UserWarning,
            stacklevel=4,
        )
        return None
    if z.shape[-1] == 1:
        z = _BinaryLogits()(z)
    elif z is output[0]:
        return None
    return as_logits(keras.Model(model.inputs, z, name=f"{model.name}_logits"))


def logits_view(model: keras.Model) -> keras.Model:
    """Return a model that shares the weights of `model` and gives logits of shape (n, classes), classes >= 2.

    A last softmax or sigmoid (a layer of its own, or the activation of a Dense layer) is left off; a single logit z
    becomes the pair (0, z). A model whose last layer is not recognized is returned as it is, with a `UserWarning`.

    Raises:
        ValueError: The model is not a built keras.Model or has several outputs.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    if model not in _VIEWS:
        _VIEWS[model] = _view(model)
    return _VIEWS[model] or model


def logits_of(model: keras.Model) -> Callable:
    """Return a function from the outputs of `model` to logits of shape (n, classes), float32.

    It undoes a last softmax or sigmoid by a logarithm, so it is for losses, not for attacks: where a probability is
    below 1e-30 the gradient is lost. Attacks go through `logits_view`.

    Raises:
        ValueError: The model is a subclassed one, whose outputs have no known shape.
    """
    if model.built and not getattr(model, "outputs", None):
        raise ValueError(
            f"`model` must be a Sequential or functional model. Received: {type(model).__name__}; wrap it: "
            "keras.Model(inputs, model(inputs)) with inputs = keras.Input(shape)"
        )
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


def gives_logits(model: keras.Model) -> bool:
    """Whether the outputs of a classifier are logits (or one logit) rather than probabilities."""
    if logits_view(model) is model:
        return True
    last = model.outputs[0]._keras_history[0]
    return not isinstance(last, keras.layers.Softmax) and _activation_name(last) == "linear"


def named_views(models: list[keras.Model]) -> list[keras.Model]:
    """Return logits views with names of their own, member1 and so on: models may be joined that share a name."""
    views = [logits_view(m) for m in models]
    return [keras.Model(view.inputs, view.outputs[0], name=f"member{i}") for i, view in enumerate(views, 1)]


def stack_logits(models: list[keras.Model]) -> keras.Model:
    """Return one model from images to the logits of all `models`, of shape (n, members, classes)."""
    views = named_views(models)
    inputs = keras.Input(views[0].input_shape[1:])
    return as_logits(keras.Model(inputs, ops.stack([view(inputs) for view in views], axis=1)))


def as_logits(model: keras.Model) -> keras.Model:
    """Return the model and take its outputs for logits, whatever its last layer is."""
    _VIEWS[model] = None
    return model


def padded_batches(n: int, batch_size: int):
    """Yield slices of at most `batch_size` over n samples, with the number to pad to."""
    for start in range(0, n, batch_size):
        yield slice(start, min(start + batch_size, n))


def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last row until the array has `size` rows."""
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


def outputs(model: keras.Model, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
    """Outputs of `model` on an array, in inference mode and in fixed-size compiled batches.

    Args:
        model: A model with one output.
        x: Array of shape (n, ...), float32.
        batch_size: Samples at a time.

    Returns:
        Array of shape (n, ...), float32.
    """
    if model not in _FORWARD:
        reference = weakref.ref(model)
        _FORWARD[model] = backend.compiled(lambda z: reference()(z, training=False), model)
    forward = _FORWARD[model]
    size = min(batch_size, max(8, 1 << (len(x) - 1).bit_length()))  # few sizes: few traces
    found = None
    for part in padded_batches(len(x), size):
        out = ops.convert_to_numpy(forward(pad(x[part], size)))[: part.stop - part.start]
        if found is None:
            found = np.empty((len(x), *out.shape[1:]), dtype="float32")
        found[part] = out
    return found


def predict_logits(model: keras.Model, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
    """Logits of shape (n, classes) of a classifier on an array; see `logits_view`."""
    return outputs(logits_view(model), x, batch_size=batch_size)


def architecture(model: keras.Model) -> list:
    """Kinds, plain settings and weight shapes of all layers, without names and seeds, which Keras may choose."""
    found = []
    for layer in model.layers:
        try:
            config = layer.get_config()
        except NotImplementedError:  # a layer of the user's that does not say how it was made
            config = {}
        config = {k: v for k, v in config.items() if k not in ("name", "seed")}
        plain = {k: v for k, v in config.items() if isinstance(v, str | int | float | tuple)}
        inner = architecture(layer) if isinstance(layer, keras.Model) else []
        found.append((type(layer).__name__, plain, [tuple(w.shape) for w in layer.weights], inner))
    return found


def has_batch_norm(model: keras.Model) -> bool:
    """Whether a layer of the model, or of a model inside it, is a BatchNormalization."""
    inner = (layer for layer in model.layers if isinstance(layer, keras.Model))
    own = any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers)
    return own or any(map(has_batch_norm, inner))
