"""Backward pass differentiable approximation: gradients through layers that have none, or useless ones."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

import keras
from keras import ops

from kerasdef.annotations import checked


@keras.saving.register_keras_serializable("kerasdef")
class BPDA(keras.layers.Layer):
    """A layer with another layer's gradient.

    The output is exactly that of `layer`; the gradient is that of `backward`. No gradient reaches the weights of
    `layer`: this is for attacks, not for training.

    Args:
        layer: A Keras layer (or a model), differentiable or not.
        backward: A Keras layer or a function that is differentiable and near `layer`; None is the identity. A function
            must be registered with Keras for the model to be saved.

    Raises:
        ValueError: When called: the two outputs differ in shape.

    Example:
    >>> model = keras.Sequential([BPDA(Quantize()), classifier])
    >>> x_adv = PGD(eps=0.1)(model, x, y)

    References: Athalye et al., 2018, https://arxiv.org/abs/1802.00420 (section 4.1).
    """

    @checked
    def __init__(self, layer: keras.layers.Layer, backward: Callable | None = None, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(layer, keras.layers.Layer):
            raise ValueError(f"`layer` must be a Keras layer. Received: layer={layer!r}")
        if backward is not None and not callable(backward):
            raise ValueError(f"`backward` must be a layer, a function or None. Received: backward={backward!r}")
        self.layer = layer
        self.backward = backward

    @property
    def rule(self) -> str:
        """How gradients pass it, in words."""
        return f"{self.layer.name}: " + ("the identity" if self.backward is None else "another function's gradient")

    def build(self, input_shape):
        """Build both layers."""
        for part in (self.layer, self.backward):
            if isinstance(part, keras.layers.Layer) and not part.built:
                part.build(input_shape)

    def call(self, x):
        """Output of `layer`, with the gradient of `backward`."""
        shown = ops.stop_gradient(self.layer(x))
        near = x if self.backward is None else self.backward(x)
        if tuple(shown.shape) != tuple(near.shape):
            raise ValueError(
                f"`backward` must give the shape that `layer` gives, {tuple(shown.shape)}. "
                f"Received: {tuple(near.shape)}" + (" from the identity" if self.backward is None else "")
            )
        near = ops.cast(near, shown.dtype)
        return shown + (near - ops.stop_gradient(near))  # the bracket is exactly 0

    def get_config(self):
        """Settings for saving."""
        parts = {"layer": self.layer, "backward": self.backward}
        return super().get_config() | {k: keras.saving.serialize_keras_object(v) for k, v in parts.items()}

    @classmethod
    def from_config(cls, config):
        """Layer from its settings."""
        parts = {k: keras.saving.deserialize_keras_object(config[k]) for k in ("layer", "backward")}
        return cls(**(config | parts))


@checked
def bpda(model: keras.Model, backward: Mapping[str, Callable | None]) -> keras.Model:
    """Return a model that shares all weights with `model` and has other gradients through the named layers.

    Args:
        model: A Sequential or functional model; layers inside nested models cannot be named.
        backward: What stands for a layer in the backward pass, by the layer's name; None is the identity.

    Raises:
        ValueError: The model has no layer of that name, or is of another kind.

    Example:
    >>> x_adv = PGD(eps=0.1)(bpda(model, {"quantize": None}), x, y)

    References: Athalye et al., 2018, https://arxiv.org/abs/1802.00420 (section 4.1).
    """
    if not isinstance(model, keras.Model) or not getattr(model, "outputs", None):
        raise ValueError(f"`model` must be a Sequential or functional model. Received: {type(model).__name__}")
    names = [layer.name for layer in model.layers]
    for name in backward:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"`backward` must name layers of the model. Received: {name!r}.{hint}")

    def wrapped(layer):
        if layer.name not in backward:
            return layer
        return BPDA(layer, backward[layer.name], name=f"{layer.name}_bpda")

    return keras.models.clone_model(model, clone_function=wrapped)
