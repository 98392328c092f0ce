"""How far the gradient of a function can be trusted: vector-Jacobian products against secants.

A small move v of the input changes the output, by half of f(h + v) - f(h - v) to either side. Seen along a random
cotangent u, that is a number, and a useful gradient predicts it: <v, J^T u>. Both are cheap for any layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from kerasdef import backend

_AWAY = 0.2  # of the spread: several times as far as the smallest moves reach


@dataclass(frozen=True, eq=False)
class Secants:
    """Moves of the inputs of a function, and what they change in its outputs.

    Args:
        at: Arrays that are the inputs, each of shape (n, ...).
        moves: For each draw, an array for each input, of its shape.
        cotangents: For each draw, an array for each output, of its shape.
        found: Array of shape (draws, n): the change of the outputs along the cotangent.
        whole: Whether the first axis of an output is not that of the samples: then all have the one sum.
    """

    at: list[np.ndarray]
    moves: list[list[np.ndarray]]
    cotangents: list[list[np.ndarray]]
    found: np.ndarray
    whole: bool


def draw(call: Callable, at: Sequence, size: float, draws: int, rng: np.random.Generator) -> Secants:
    """Draw secants of a function.

    Args:
        call: Maps a list of tensors to a list of tensors of floating point.
        at: The inputs, arrays of shape (n, ...). They are moved at random before anything is looked at, because values
            that tie, such as zeros behind a ReLU, are kinks of a maximum that an attack leaves with its first step.
        size: Standard deviation of a move, as a share of the spread of the input that is moved.
        draws: Number of moves.
        rng: All randomness comes from it.
    """
    spreads = [spread(np.asarray(h)) for h in at]

    def noise(share):
        return [
            (share * scale * rng.standard_normal(np.shape(h))).astype(np.asarray(h).dtype)
            for scale, h in zip(spreads, at, strict=True)
        ]

    def values(sign, move):
        moved = [h + sign * v for h, v in zip(at, move, strict=True)]
        return [ops.convert_to_numpy(z) for z in call(_tensors(moved))]

    at = [np.asarray(h) + v for h, v in zip(at, noise(_AWAY), strict=True)]
    moves, cotangents, found = [], [], []
    for _ in range(draws):
        move = noise(size)
        change = [(a - b) / 2 for a, b in zip(values(1, move), values(-1, move), strict=True)]
        whole = not all(z.ndim and z.shape[0] == len(at[0]) for z in (*change, *at))
        moves.append(move)
        cotangents.append([rng.standard_normal(z.shape).astype(z.dtype) for z in change])
        found.append(_along(cotangents[-1], change, whole))
    return Secants(at, moves, cotangents, np.asarray(found), whole)


def predicted(call: Callable, secants: Secants) -> np.ndarray:
    """What the gradient of a function predicts of the changes, of the shape of `secants.found`."""

    def value(tensors, cotangent):
        return sum(ops.sum(ops.convert_to_tensor(u) * z) for u, z in zip(cotangent, call(tensors), strict=True))

    rows = []
    for move, cotangent in zip(secants.moves, secants.cotangents, strict=True):
        _, grads = backend.value_and_grad(lambda tensors, u=cotangent: value(tensors, u))(_tensors(secants.at))
        rows.append(_along(move, [ops.convert_to_numpy(g) for g in grads], secants.whole))
    return np.asarray(rows)


def cosine(found: np.ndarray, told: np.ndarray) -> float:
    """Correlation about zero of changes and predictions, in [-1, 1]; 0 where either never differs from zero.

    Changes that are not finite are left out, and predictions that are not finite predict nothing.
    """
    whole = np.isfinite(found)
    found, told = found[whole].astype("float64"), np.nan_to_num(told[whole].astype("float64"), posinf=0.0, neginf=0.0)
    size = np.sqrt(np.sum(found**2) * np.sum(told**2))
    return float(np.sum(found * told) / size) if size > 0 else 0.0


def spread(h: np.ndarray) -> float:
    """Standard deviation of the values of an array about their mean over the samples, 1 where they do not vary."""
    found = float(np.std(h))
    return found if np.isfinite(found) and found > 0 else 1.0


def _tensors(arrays) -> list:
    return [ops.convert_to_tensor(a) for a in arrays]


def _along(a: list[np.ndarray], b: list[np.ndarray], whole: bool) -> np.ndarray:
    """Inner products of shape (n,), or of shape (1,) the sum of all."""
    if whole:
        return np.asarray([sum(float((u * z).sum()) for u, z in zip(a, b, strict=True))])
    return sum((u * z).reshape(len(u), -1).sum(axis=1) for u, z in zip(a, b, strict=True))
