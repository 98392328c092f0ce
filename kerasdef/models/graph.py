"""The graph of a user's model: the logits behind its head, and what reads its input.

Attacks need logits: behind a softmax in float32 the gradient of the cross-entropy is exactly zero from a logit gap
of about 17.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import ops

_PASSING = (  # layers that only hand on what they get, in inference
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Reshape,
)


@dataclass(frozen=True)
class Head:
    """What the last layer of a classifier gives.

    Args:
        logits: Symbolic logits of shape (n, classes), or (n, 1) for a single one.
        kind: "logits", "softmax", "sigmoid", or None where the last layer is not one that is known.
    """

    logits: keras.KerasTensor
    kind: str | None


@keras.saving.register_keras_serializable(package="kerasdef")
class WithoutActivation(keras.layers.Layer):
    """A Dense layer's product and bias, without its activation; shares the weights."""

    def __init__(self, dense: keras.layers.Dense, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense

    def call(self, x):
        """Return the logits."""
        z = ops.matmul(x, self.dense.kernel)
        return z if self.dense.bias is None else z + self.dense.bias

    def get_config(self):
        """Settings of the layer."""
        return {**super().get_config(), "dense": keras.saving.serialize_keras_object(self.dense)}

    @classmethod
    def from_config(cls, config):
        """The layer with these settings."""
        dense = keras.saving.deserialize_keras_object(config.pop("dense"))
        return cls(dense, **config)

    def build(self, input_shape):
        """Build the layer whose weights these are."""
        if not self.dense.built:
            self.dense.build(input_shape)


def head(tensor: keras.KerasTensor) -> Head:
    """Look behind the output of a functional or Sequential model, through models inside it at any depth."""
    op, index, _ = tensor._keras_history
    given = op._inbound_nodes[index].input_tensors
    before = given[0] if len(given) == 1 else None
    activation = _activation_of(op)
    if before is None:
        return Head(tensor, None)
    if isinstance(op, keras.Model):
        return _nested(op, before, tensor)
    if activation in ("softmax", "sigmoid"):
        return Head(WithoutActivation(op)(before) if isinstance(op, keras.layers.Dense) else before, activation)
    if isinstance(op, keras.layers.Dense):
        return Head(tensor, "logits" if activation == "linear" else None)
    if isinstance(op, _PASSING) or (isinstance(op, keras.layers.Activation) and activation == "linear"):
        found = head(before)
        if found.logits is not before:
            return Head(op(found.logits), found.kind)
        said = isinstance(op, keras.layers.Activation) and found.kind is None  # "linear" is what a model of logits says
        return Head(tensor, "logits" if said else found.kind)
    return Head(tensor, None)


def _nested(model: keras.Model, before, tensor) -> Head:
    """The head of a model that is the last layer of another one."""
    outputs = getattr(model, "outputs", None) or ()
    if len(outputs) != 1 or len(model.inputs) != 1:
        return Head(tensor, None)
    found = head(outputs[0])
    if found.logits is outputs[0]:
        return Head(tensor, found.kind)
    return Head(keras.Model(model.inputs, found.logits)(before), found.kind)


def _activation_of(op) -> str:
    """The name of what an operation or a layer does to its product at last, "linear" where it does nothing."""
    if isinstance(op, keras.layers.Softmax):
        return "softmax"
    if not isinstance(op, keras.layers.Layer):  # a function of `keras.ops` in a functional model
        return type(op).__name__.lower()
    if not isinstance(op, keras.layers.Dense | keras.layers.Activation):
        return "unknown"
    activation = getattr(op, "activation", None)
    return "linear" if activation is None else getattr(activation, "__name__", type(activation).__name__.lower())


def first_layers(model: keras.Model) -> list:
    """The layers and operations that read the input of a functional or Sequential model."""
    given = {id(t) for t in getattr(model, "inputs", None) or ()}
    found, seen, waiting = [], set(), list(getattr(model, "outputs", None) or ())
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen or id(tensor) in given:
            continue
        seen.add(id(tensor))
        op, index, _ = tensor._keras_history
        before = op._inbound_nodes[index].input_tensors
        if op not in found and any(id(t) in given for t in before):
            found.append(op)
        waiting += before
    return found


def reads_tokens(model: keras.Model) -> bool:
    """Whether the input of a model goes into an Embedding: it counts things, and has no values in between."""
    return any(
        isinstance(op, keras.layers.Embedding) or (isinstance(op, keras.Model) and reads_tokens(op))
        for op in first_layers(model)
    )
