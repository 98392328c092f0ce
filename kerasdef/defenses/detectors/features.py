"""Outputs of the inner layers of a classifier, by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef import checks

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.ELU,
    keras.layers.PReLU,
)
_KERNELS = (
    keras.layers.Dense,
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.SeparableConv2D,
    keras.layers.DepthwiseConv2D,
)
ROUNDING = 1e-6  # relative, of float32 in sums over features: what varies by less is the same number
_FUNCTIONS = {"Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Gelu", "Silu", "Softplus", "Tanh", "Sigmoid"}  # keras.ops


@dataclass(frozen=True)
class Feature:
    """The output of a layer.

    Args:
        name: Name of the layer, behind those of the models that it is in: "backbone/conv1".
        tensor: The symbolic output, in the graph of the outermost model.
        bends: Whether the layer is an activation, or has one that is not linear.
        kernel: Whether it is a convolution or a dense layer.
    """

    name: str
    tensor: keras.KerasTensor
    bends: bool
    kernel: bool

    @property
    def size(self) -> tuple[int | None, ...]:
        """Height and width of a map, () of a vector."""
        return tuple(self.tensor.shape[1:-1])


def view(model: keras.Model, names: Sequence[str] | None, *, maps: bool = False) -> tuple[keras.Model, list[str]]:
    """A model from images to a list of features, which shares the weights of `model`.

    Args:
        model: A view of a classifier that gives logits.
        names: Names of layers. None is, for each size of the feature maps, the last nonlinear output of that size, and
            the last nonlinear vector: of a residual network the ends of its stages and the pooled features.
        maps: Whether only feature maps are wanted, of shape (n, ..., channels).

    Returns:
        `(view, names)`.

    Raises:
        ValueError: There is no layer of such a name, or it gives no features.
    """
    found = {f.name: f for f in _features(model) if len(f.tensor.shape) > 1 + maps}
    if names is None:
        chosen = _default(list(found.values()))
        if not chosen:
            kind = "feature maps" if maps else "features"
            raise ValueError(
                f"The model must have layers before its logits that give {kind}. Received: model={model.name!r}"
            )
    else:
        chosen = [found[checks.one_of("layers", name, found)] for name in names]
        if not chosen:
            raise ValueError("`layers` must name one or more layers. Received: layers=[]")
    if any(f.tensor.shape[-1] is None for f in chosen):
        raise ValueError(f"The features must have a known number of channels. Received: {[f.name for f in chosen]}")
    return keras.Model(model.inputs[0], [f.tensor for f in chosen]), [f.name for f in chosen]


def _default(found: list[Feature]) -> list[Feature]:
    candidates = [f for f in found if f.bends] or [f for f in found if f.kernel]
    return list({f.size: f for f in candidates}.values())  # the last of each size, in the order of the first


def _features(model: keras.Model) -> Iterator[Feature]:
    """The features of a functional model, from the first to the last; the logits are none."""
    graph = getattr(model, "_functional", None) or model
    reached, waiting = {}, list(graph.outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in reached:
            reached[id(tensor)] = tensor
            op, index, _ = tensor._keras_history
            waiting += op._inbound_nodes[index].input_tensors
    last = {id(t) for t in graph.outputs}
    for op in graph.operations:
        for node in op._inbound_nodes:
            for tensor in node.output_tensors:
                if id(tensor) not in reached or not node.input_tensors:
                    continue
                if isinstance(op, keras.Model) and len(op.inputs) == len(node.input_tensors) == 1:
                    yield from _inside(op, node.input_tensors[0])
                if id(tensor) not in last:
                    yield Feature(op.name, tensor, _bends(op), isinstance(op, _KERNELS))


def _inside(model: keras.Model, given) -> list[Feature]:
    """The features of a model inside another one, whose input there is `given`."""
    inner = list(_features(model))
    if not inner:
        return []
    tensors = keras.Model(model.inputs[0], [f.tensor for f in inner])(given)
    return [Feature(f"{model.name}/{f.name}", t, f.bends, f.kernel) for f, t in zip(inner, tensors, strict=True)]


def _bends(op) -> bool:
    if isinstance(op, _KERNELS):
        return op.activation is not keras.activations.linear
    return isinstance(op, _ACTIVATIONS) or type(op).__name__ in _FUNCTIONS


def evaluated(model: keras.Model, x) -> list:
    """The features as a list of tensors, float32, also where there is one only."""
    found = model(x, training=False)
    return [ops.cast(f, "float32") for f in (found if isinstance(found, list | tuple) else [found])]


def computed(model: keras.Model, x: np.ndarray, *, batch_size: int = 512) -> list[np.ndarray]:
    """The features of an array as arrays, float32."""
    parts = [evaluated(model, ops.convert_to_tensor(x[i : i + batch_size])) for i in range(0, len(x), batch_size)]
    return [np.concatenate([ops.convert_to_numpy(f) for f in column]) for column in zip(*parts, strict=True)]


def pooled(feature):
    """A feature map of shape (n, ..., channels), its mean over all places: (n, channels)."""
    axes = tuple(range(1, len(feature.shape) - 1))
    return ops.mean(feature, axis=axes) if axes else feature


def varies(values: np.ndarray, around: np.ndarray | None = None) -> np.ndarray:
    """Which columns of an array vary over the first axis by more than rounding does; booleans.

    Args:
        values: Array of shape (n, ...).
        around: What they vary around, of the shape of values; None is their mean.
    """
    values = np.asarray(values, "float64")
    away = values - (values.mean(axis=0) if around is None else around)
    return np.sqrt(np.mean(away**2, axis=0)) > ROUNDING * np.abs(values).max()
