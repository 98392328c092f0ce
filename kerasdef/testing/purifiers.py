"""The contract of a purifier."""

from __future__ import annotations

import tempfile
from pathlib import Path

import keras
import numpy as np
from keras import layers, ops

from kerasdef import backend
from kerasdef.annotations import checked
from kerasdef.defenses.purifiers import Purifier
from kerasdef.testing.attacks import claim

_N = 6
_STEP = 1e-3  # half a way along which slopes add up, in units of the range: far above the rounding of float32
_POINTS = 16  # on the way; a network of ReLUs bends so often that the slope in its middle alone is 0.1 off
_EXACT = 0.02  # largest relative error of their mean; at 16 points it was below 0.01 for every purifier here
_NEAR = 0.3  # of the range: what stands in for a purifier is on average nearer than this on smooth images


@checked
def check_purifier(purifier: Purifier, *, shape: tuple[int, ...] = (10, 9, 1)) -> None:
    """Check that a purifier keeps the contract of all purifiers; it takes a few seconds.

    Clauses: images keep their shape and stay finite and within the bounds; the answer for an image is the same in any
    batch, alone and compiled, and an empty batch, unless weights are learned, stays empty; gradients are finite and
    flow; those of an exact purifier add up, along a short way through a smooth image, to what it changes by there,
    those of any other are the gradients of `near`, which is near the purifier there; settings make the purifier again;
    and a classifier behind it, saved as .keras, answers alike.

    Args:
        purifier: A `Purifier`, fitted where it learns.
        shape: Shape of one image that it takes.

    Raises:
        AssertionError: A clause does not hold; the message names it.
        ValueError: It is not a `Purifier`.
    """
    if not isinstance(purifier, Purifier):
        raise ValueError(f"`purifier` must be a Purifier. Received: purifier={purifier!r}")
    rng = np.random.default_rng(0)
    low, high = purifier.bounds
    x = (low + (high - low) * rng.random((_N, *shape))).astype("float32")
    x[1], x[2] = low, high  # plain images at the bounds
    smooth = (low + (high - low) * _smooth(shape, rng)).astype("float32")
    images = keras.Input(shape)
    model = keras.Sequential([images, purifier, layers.Flatten(), layers.Dense(3)])
    _check_answers(purifier, model, x)
    _check_gradients(purifier, smooth, rng)
    _check_config(purifier, x)
    _check_file(purifier, model, x)


def _array(tensor) -> np.ndarray:
    return ops.convert_to_numpy(tensor)


def _smooth(shape, rng) -> np.ndarray:
    """Images of shape (_N, *shape) in 0.2 to 0.8: slopes with gentle waves, on which no two near pixels are alike."""
    rows, columns = (np.linspace(0, 1, side) for side in shape[:2])
    flips = rng.choice([-1.0, 1.0], (2, _N, 1, 1, shape[2]))
    # so steep that pixels two apart along a row still differ less than pixels one apart along a column
    slopes = flips[0] * 0.4 * (rows[:, None, None] - 0.5) + flips[1] * 0.1 * (columns[:, None] - 0.5)
    phases = rng.uniform(0.0, 6.0, (_N, 1, 1, shape[2]))
    return 0.5 + slopes + 0.01 * np.sin(2.0 * rows[:, None, None] + columns[:, None] + phases)


def _check_answers(purifier: Purifier, model, x) -> None:
    low, high = purifier.bounds
    found = _array(purifier(ops.convert_to_tensor(x)))
    claim(purifier, "images keep their shape", found.shape == x.shape, f"Received: {found.shape}.")
    claim(purifier, "images are float32", found.dtype == np.float32, f"Received: {found.dtype}.")
    claim(purifier, "images are finite", np.isfinite(found).all())
    # float32: the last digit of a bound that is no float32 itself
    slack = 1e-6 * (high - low)
    claim(purifier, "images are within the bounds", found.min() >= low - slack and found.max() <= high + slack)
    close = 1e-5 * (high - low)  # float32 sums in another order; a gray level is 400 times as much
    # TensorFlow's convolutions give an empty batch the wrong shape on CPUs where oneDNN is on (seen in 2.21)
    none = () if purifier.weights else (0,)
    for size in (*none, 1, 4):
        part = _array(purifier(ops.convert_to_tensor(x[:size])))
        same = part.shape == x[:size].shape and np.all(np.abs(part - found[:size]) <= close)
        claim(purifier, f"the same in a batch of {size}", same)
    whole = _array(model(ops.convert_to_tensor(x)))
    program = backend.compiled(lambda z: model(z, training=False), model)
    for size in (*none, 1, len(x)):
        part = _array(program(ops.convert_to_tensor(x[:size])))
        claim(purifier, f"compiled, the same in a batch of {size}", np.allclose(part, whole[:size], rtol=1e-3))
    trained = _array(model(ops.convert_to_tensor(x), training=True))
    claim(purifier, "the same while the classifier is trained", np.allclose(trained, whole, rtol=1e-3))


def _check_gradients(purifier: Purifier, x, rng) -> None:
    low, high = purifier.bounds
    weights = rng.normal(size=x.shape).astype("float32")

    def slopes(function, at=x, weights=weights):
        def value(z):
            return ops.sum(function(z) * weights, axis=(1, 2, 3)), z

        return _array(backend.gradient(value)(ops.convert_to_tensor(at))[2])

    gradient = slopes(purifier)
    claim(purifier, "gradients are finite", np.isfinite(gradient).all())
    claim(purifier, "gradients flow in every image", np.any(gradient != 0, axis=(1, 2, 3)).all())
    if purifier.exact:
        claim(purifier, "rule: exact", purifier.rule == "exact", f"Received: {purifier.rule!r}.")
        step = _STEP * (high - low)
        direction = rng.choice([-1.0, 1.0], size=x.shape).astype("float32")
        ends = [_array(purifier(ops.convert_to_tensor(x + side * step * direction))) for side in (1, -1)]
        wanted = (weights * (ends[0].astype("float64") - ends[1])).sum(axis=(1, 2, 3)) / (2 * step)
        places = ((2 * np.arange(_POINTS) + 1) / _POINTS - 1) * step  # midpoints of equal parts of the way
        way = np.concatenate([x + place * direction for place in places]).astype("float32")
        along = slopes(purifier, way, np.tile(weights, (_POINTS, 1, 1, 1))).reshape(_POINTS, *x.shape).mean(axis=0)
        error = np.abs((along * direction).sum(axis=(1, 2, 3)) - wanted)
        error /= np.sqrt(np.square(gradient).sum(axis=(1, 2, 3)))
        claim(purifier, "exact gradients are the slopes", error.max() <= _EXACT, f"Received: error {error.max():.3g}.")
        return
    claim(purifier, "rule: says what stands in", purifier.rule != "exact")
    wanted = slopes(purifier.near)
    claim(purifier, "gradients are those of `near`", np.allclose(gradient, wanted, rtol=1e-4, atol=1e-5))
    z = ops.convert_to_tensor(x)
    apart = np.abs(_array(purifier.near(z)) - _array(purifier(z))).mean() / (high - low)
    claim(purifier, "`near` is near", apart <= _NEAR, f"Received: {apart:.3g} of the range on average.")


def _check_config(purifier: Purifier, x) -> None:
    config = purifier.get_config()
    again = type(purifier).from_config(config)
    claim(purifier, "settings make the same class", type(again) is type(purifier))
    claim(purifier, "settings are kept", again.get_config() == config, f"Received: {again.get_config()}.")
    if not purifier.weights:
        z = ops.convert_to_tensor(x)
        claim(purifier, "settings make it again", np.array_equal(_array(again(z)), _array(purifier(z))))


def _check_file(purifier: Purifier, model, x) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.keras")
        model.save(path)
        again = keras.models.load_model(path)
    loaded = again.layers[0]
    claim(purifier, "keras: the same class", type(loaded) is type(purifier), f"Received: {type(loaded).__name__}.")
    claim(purifier, "keras: the same bounds", loaded.bounds == purifier.bounds, f"Received: {loaded.bounds}.")
    z = ops.convert_to_tensor(x)
    claim(purifier, "keras: purifies alike", np.array_equal(_array(loaded(z)), _array(purifier(z))))
    claim(purifier, "keras: the classifier answers alike", np.allclose(_array(again(z)), _array(model(z)), rtol=1e-5))
