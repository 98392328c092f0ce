"""Functions with useful gradients that stand in for one without, in the backward pass alone.

All of them are near the local average of the function, which is what an attacker who moves by more than the width of
its steps and wiggles sees of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import keras
import numpy as np
from keras import ops
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import r2_score
from sklearn.neural_network import MLPRegressor

_DRAWS = 8  # noises of a local average, each of them added and taken away
_FEW = 4  # channels up to which a local average is taken over all of a position: two evaluations for each are enough
_HIDDEN = 32  # units of a learned stand-in
_ROWS = 12_000  # that it is learned from
_LARGEST = 1024  # inputs or outputs beyond which none is learned for a whole sample
REACHES = ("value", "position", "patch", "sample")


class LocalAverage(keras.layers.Layer):
    """The gradient of a function's mean over Gaussian noise of its input, from differences of its values.

    The noise is drawn once, so the gradient is the same whenever it is asked for. The slopes are regressions of the
    changes of the outputs on the noise. What an output depends on is told by `reach`: the more it is, the more noise
    there is in the slopes.

    Args:
        call: Maps a tensor of shape (n, ...) to a tensor of shape (n, ...); it needs no gradient.
        shape: Shape of one input.
        size: Standard deviation of the noise.
        reach: "value": an output depends on the input in its own place alone, and the output's shape begins with that
            of the input.
            "position": it depends on the channels of its own position. "sample": on all.
        rng: Draws the noise.

    References: Nesterov and Spokoiny, 2017 (Gaussian smoothing by differences of values).
    """

    def __init__(self, call: Callable, shape: tuple[int, ...], size: float, reach: str, rng: np.random.Generator):
        super().__init__(dtype="float32")
        self._call, self.size, self.reach = call, size, reach
        # the channels of all positions move alike, and orthogonally: so few draws tell them apart exactly
        drawn = (shape[-1], *(1,) * (len(shape) - 1), shape[-1]) if reach == "position" else (_DRAWS, *shape)
        noise = rng.standard_normal(drawn)
        if reach == "position":
            noise = np.linalg.qr(noise.reshape(shape[-1], shape[-1]))[0].reshape(drawn)
        self.noise = noise.astype("float32")
        self.built = True

    def call(self, x):
        """A linear function of x around where it is, with these slopes."""
        here = ops.stop_gradient(x)
        near, square = 0.0, np.sum(self.noise**2, axis=0)
        for z in self.noise:
            up, down = self._call(here + self.size * z), self._call(here - self.size * z)
            slope = ops.stop_gradient(up - down) / (2 * self.size)
            if self.reach == "value":
                more = (1,) * (len(slope.shape) - len(x.shape))  # several outputs of each value
                near = near + slope * ops.reshape(x * (z / square), (-1, *z.shape, *more))
            elif self.reach == "position":
                near = near + slope * ops.sum(x * z, axis=-1, keepdims=True)
            else:
                along = ops.sum(ops.reshape(x * z, (-1, z.size)), axis=-1)
                near = near + slope * ops.reshape(along / _DRAWS, (-1, *(1,) * (len(slope.shape) - 1)))
        return near

    def get_config(self):
        """What tells it from others; it is not meant to be saved."""
        return {"name": self.name, "size": self.size, "reach": self.reach, "noise": self.noise.tolist()}


class Learned(keras.layers.Layer):
    """A net of one hidden layer that gives about what another function gives.

    Args:
        layers: Pairs (kernel, bias) of its two layers; tanh stands between them.
        reach: What an output depends on: "value", "position", "patch" (3x3 positions) or "sample".
        shape: Shape of one output.
    """

    def __init__(self, layers: list[tuple[np.ndarray, np.ndarray]], reach: str, shape: tuple[int, ...]):
        super().__init__(dtype="float32")
        self._pairs, self.reach, self.shape = layers, reach, shape
        self.built = True

    def call(self, x):
        """Outputs of the net."""
        (kernel, bias), (kernel2, bias2) = self._pairs
        z = ops.tanh(ops.matmul(rows(x, self.reach), kernel) + bias)
        return ops.reshape(ops.matmul(z, kernel2) + bias2, (-1, *self.shape))

    def get_config(self):
        """What tells it from others; it is not meant to be saved."""
        weights = [[a.tolist() for a in pair] for pair in self._pairs]
        return {"name": self.name, "reach": self.reach, "shape": list(self.shape), "weights": weights}


def rows(h, reach: str):
    """The inputs of a function as rows, one for each of its outputs' places."""
    if reach == "value":
        return ops.reshape(h, (-1, 1))
    if reach == "patch":
        h = ops.image.extract_patches(h, 3, strides=1, padding="same", data_format="channels_last")
    if reach == "sample":
        return ops.reshape(h, (-1, math.prod(h.shape[1:])))
    return ops.reshape(h, (-1, h.shape[-1]))


def reaches(source: tuple[int, ...], target: tuple[int, ...]) -> list[str]:
    """What the outputs of a function may depend on, from the shapes of one input and one output; the least first."""
    found = ["value"] if source == target[: len(source)] else []
    if len(source) > 1 and source[:-1] == target[:-1]:
        found.append("position")
        if len(source) == 3:
            found.append("patch")
    if max(math.prod(source), math.prod(target)) <= _LARGEST:
        found.append("sample")
    return found


def averages(call: Callable, source, target, size: float, rng) -> dict[str, LocalAverage]:
    """Local averages of a function by their reach."""
    possible = [r for r in reaches(source, target) if r in ("value", "sample")]
    if "position" in reaches(source, target) and source[-1] <= _FEW:
        possible.append("position")
    return {reach: LocalAverage(call, source, size, reach, rng) for reach in possible}


def learn(
    call: Callable, h: np.ndarray, target: tuple[int, ...], size: float, reach: str, rng
) -> tuple[Learned, float]:
    """Fit a net to a function's local average: its inputs are points, and what it is told is the value beside them.

    Args:
        call: Maps a tensor of shape (n, ...) to a tensor of shape (n, ...).
        h: Inputs of shape (n, ...), which are moved as well.
        target: Shape of one output.
        size: Standard deviation of the moves.
        reach: What an output depends on.
        rng: All randomness comes from it.

    Returns:
        The net, and its R^2 on a fifth of the points, which it was not fitted to: how much of the outputs themselves
        it explains.
    """
    copies = 4

    def moved(z):
        return (z + size * rng.standard_normal(z.shape)).astype("float32")

    points = np.concatenate([h.astype("float32"), *(moved(h) for _ in range(copies - 1))])
    beside = np.concatenate(
        [ops.convert_to_numpy(call(ops.convert_to_tensor(p))) for p in np.split(moved(points), copies)]
    )
    exact = np.concatenate([ops.convert_to_numpy(call(ops.convert_to_tensor(p))) for p in np.split(points, copies)])
    x = ops.convert_to_numpy(rows(ops.convert_to_tensor(points), reach))
    beside, exact = beside.reshape(len(x), -1), exact.reshape(len(x), -1)
    chosen = rng.permutation(len(x))[:_ROWS]
    held, fitted = chosen[: len(chosen) // 5], chosen[len(chosen) // 5 :]
    (x_mean, x_scale), (y_mean, y_scale) = _scale(x), _scale(exact)
    net = MLPRegressor(
        hidden_layer_sizes=(_HIDDEN,),
        activation="tanh",
        learning_rate_init=1e-2,
        batch_size=min(256, len(fitted)),
        max_iter=40,
        random_state=int(rng.integers(2**31)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is judged by R^2
        y = (beside - y_mean) / y_scale
        net.fit((x[fitted] - x_mean) / x_scale, y[fitted, 0] if y.shape[1] == 1 else y[fitted])
    (kernel, kernel2), (bias, bias2) = net.coefs_, net.intercepts_
    layers = [
        (kernel / x_scale[:, None], bias - (x_mean / x_scale) @ kernel),
        (kernel2 * y_scale, bias2 * y_scale + y_mean),
    ]
    layers = [(a.astype("float32"), b.astype("float32")) for a, b in layers]
    told = np.tanh(x[held] @ layers[0][0] + layers[0][1]) @ layers[1][0] + layers[1][1]
    return Learned(layers, reach, target), float(r2_score(exact[held], told, multioutput="variance_weighted"))


def _scale(rows_: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the columns, 1 for a column that does not vary."""
    mean, scale = rows_.mean(axis=0), rows_.std(axis=0)
    return mean, np.where(scale > 0, scale, 1.0)
