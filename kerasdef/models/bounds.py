"""The range of the numbers that a model takes, and models of integers made to take floats."""

from __future__ import annotations

import numbers

import keras
import numpy as np

from kerasdef import checks
from kerasdef.annotations import checked

PIXELS = (0.0, 255.0)  # what a model takes that divides by 255, or whose Input is of uint8
UNIT = (0.0, 1.0)
_SCALES = (1 / 255, 2 / 255, 1 / 256, 2 / 256)  # to [0, 1] and to [-1, 1]
_KEEP = (  # layers that move values and do not change their range
    keras.layers.CenterCrop,
    keras.layers.Cropping2D,
    keras.layers.Flatten,
    keras.layers.Identity,
    keras.layers.Permute,
    keras.layers.RandomCrop,
    keras.layers.RandomFlip,
    keras.layers.RandomRotation,
    keras.layers.RandomTranslation,
    keras.layers.RandomZoom,
    keras.layers.Reshape,
    keras.layers.Resizing,
    keras.layers.ZeroPadding2D,
)
_KEEP_OPS = {"Cast", "Identity", "Reshape", "Transpose", "ExpandDims", "Flip"}  # of `keras.ops`


@checked
def input_bounds(model) -> tuple[float, float] | None:
    """The range of the values that a model takes, as far as the model itself says it.

    A model with an Input of uint8, or whose first layer divides by 255 or 127.5 (a `Rescaling`, or `x / 255` in a
    functional model), takes (0, 255). Models inside the model are looked through, and so are layers that only move
    values. A model with an attribute `bounds` says its range itself, as a `kerasdef.defenses.Defense` does.

    Args:
        model: A Keras model.

    Returns:
        `(low, high)`, or None where the model does not say.
    """
    own = getattr(model, "bounds", None)
    if own is not None:
        return float(own[0]), float(own[1])
    graph = _graph(model)
    if graph is None or len(graph.inputs) != 1:
        return None
    return PIXELS if _takes_pixels(graph) else None


@checked
def float_input(model: keras.Model) -> keras.Model:
    """Return the model as it is on floats; one with an Input of uint8 is joined anew behind a float Input.

    Keras casts what is given to an Input of integers: decimals are cut off, and there is no gradient. The model that is
    returned shares all layers, gives the same outputs on whole numbers and has gradients. Models inside the model are
    treated alike.

    Raises:
        ValueError: An Input is of another type that is not floating point, such as bool: what lies between its values
            is nothing that the model can be shown.
    """
    graph = _graph(model)
    if graph is None or not _casts(graph):
        return model
    inputs = [keras.Input(batch_shape=t.shape, dtype=_float(t.dtype), name=t.name) for t in graph.inputs]
    outputs = graph._run_through_graph(inputs, lambda op: float_input(op) if isinstance(op, keras.Model) else op)
    return keras.Model(inputs[0] if len(inputs) == 1 else inputs, outputs, name=model.name)


def from_pixels(x: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Map uint8 images linearly, 0 onto the lower bound and 255 onto the upper; other arrays come back as they are."""
    x = np.asarray(x)
    if x.dtype != np.uint8:
        return x
    low, high = bounds
    return x.astype("float32") / np.float32(255 / (high - low)) + np.float32(low)


def onto(x: np.ndarray, bounds: tuple[float, float], given: tuple[float, float] | None = None) -> np.ndarray:
    """Map samples linearly onto the range that a model takes, and check them.

    Args:
        x: Array of shape (n, ...): uint8 images, or floats within `given`.
        bounds: `(low, high)` that they are mapped onto.
        given: `(low, high)` of the floats; None is `bounds`.

    Returns:
        Array of the shape of x, float32, within `bounds`.

    Raises:
        ValueError: x is neither of floats nor of uint8, or beyond the range.
    """
    x = np.asarray(x)
    if x.dtype == np.uint8:
        return checks.images("x", from_pixels(x, bounds), limits=bounds)
    given = bounds if given is None else checks.bounds(given)
    x = checks.images("x", x, limits=given)
    if given == bounds:
        return x
    factor = (bounds[1] - bounds[0]) / (given[1] - given[0])
    return np.clip(x * np.float32(factor) + np.float32(bounds[0] - factor * given[0]), *np.float32(bounds))


def _graph(model):
    """The functional graph of a Sequential or functional model, or None."""
    graph = getattr(model, "_functional", None) or model
    return graph if getattr(graph, "inputs", None) else None


def _float(dtype: str) -> str:
    return dtype if "float" in dtype else "float32"


def _casts(graph) -> bool:
    """Whether an Input of the model, or of a model inside it, is of uint8."""
    inner = [_graph(op) for op in graph.operations if isinstance(op, keras.Model)]
    found = {t.dtype for t in graph.inputs if "float" not in t.dtype}
    if found - {"uint8"}:
        raise ValueError(
            "The model must take floating-point numbers, or images of uint8. "
            f"Received: model={graph.name!r}, which has an Input of {', '.join(sorted(found))}"
        )
    return any([_casts(g) for g in inner if g is not None]) or bool(found)


def _takes_pixels(graph) -> bool:
    tensors = list(graph.inputs)
    if tensors[0].dtype == "uint8":
        return True
    nodes = [(op, node) for op in graph.operations for node in op._inbound_nodes]
    while tensors:
        tensor = tensors.pop()
        for op, node in nodes:
            if not any(t is tensor for t in node.input_tensors):
                continue
            if isinstance(op, keras.Model) or hasattr(op, "bounds"):
                if input_bounds(op) == PIXELS:
                    return True
            elif np.isclose(_scale(op, node), _SCALES, rtol=1e-3).any():
                return True
            elif isinstance(op, _KEEP) or type(op).__name__ in _KEEP_OPS:
                tensors += node.output_tensors
    return False


def _scale(op, node) -> float:
    """Number that an operation multiplies with, 1 for others."""
    if isinstance(op, keras.layers.Rescaling):
        scale = np.asarray(op.scale, dtype="float64")
        return float(scale.flat[0])
    given = [v for v in node.arguments.args if isinstance(v, numbers.Real)]
    given += [float(v) for v in node.arguments.args if isinstance(v, np.ndarray) and v.ndim == 0]
    if len(given) != 1 or not given[0]:
        return 1.0
    kind = type(op).__name__
    return {"Multiply": given[0], "Divide": 1 / given[0], "TrueDivide": 1 / given[0]}.get(kind, 1.0)
