"""Counter-based random numbers: sample i draws the same numbers in any batch, on any backend.

A 32-bit mix (the finalizer of MurmurHash3, Appleby 2011) of (seed of the sample, salt, position). Written in
`keras.ops`, so it can be traced, and TensorFlow and JAX give the same bits.
"""

from __future__ import annotations

import math

import numpy as np
from keras import ops

_GOLDEN = 0x9E3779B9  # 2**32 / golden ratio: spreads neighboring counters


def _u32(value):
    return ops.convert_to_tensor(np.uint32(value & 0xFFFFFFFF))


def _mix(h, xp=ops, number=_u32):
    """Mix the bits of tensors, or of NumPy arrays where `xp` is numpy."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3 fmix32
        h = xp.bitwise_xor(h, xp.right_shift(h, number(shift)))
        h = xp.multiply(h, number(factor))
    return xp.bitwise_xor(h, xp.right_shift(h, number(16)))


def sample_seeds(seed: int, index: np.ndarray) -> np.ndarray:
    """Seeds of shape (n,), uint32, for the samples with these indices."""
    counters = np.asarray(index, dtype="uint64") * np.uint64(_GOLDEN) + np.uint64(seed % 2**32)
    mixed = counters ^ (counters >> np.uint64(32))
    return (mixed & np.uint64(0xFFFFFFFF)).astype("uint32")


def branch(seeds: np.ndarray, *counters: np.ndarray | int) -> np.ndarray:
    """Seeds of their own, uint32, for counters of each seed: shapes broadcast, and the bits are uniform themselves.

    Plain NumPy, as the other functions of arrays here: a draw on tensors costs a millisecond at least, which is what a
    query costs, and compiles anew for every shape with JAX.
    """
    h = np.asarray(seeds, dtype="uint32")
    for counter in counters:
        step = np.asarray(counter, dtype="uint64") * np.uint64(_GOLDEN) + np.uint64(1)
        h = _mix(_mix(h, np, np.uint32) + (step & np.uint64(0xFFFFFFFF)).astype("uint32"), np, np.uint32)
    return h


def unit(drawn: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1), float32, from uniform bits."""
    return ((drawn >> np.uint32(9)).astype("float32") + np.float32(0.5)) * np.float32(2.0**-23)


def uniform_array(seeds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of `uniform`, as an array."""
    position = np.arange(1, math.prod(shape) + 1, dtype="uint64") * np.uint64(_GOLDEN) & np.uint64(0xFFFFFFFF)
    start = _mix(_mix(np.asarray(seeds, dtype="uint32"), np, np.uint32) + np.uint32(1), np, np.uint32)
    h = start[:, None] + position.astype("uint32")[None, :]
    return unit(_mix(_mix(h, np, np.uint32), np, np.uint32)).reshape(-1, *shape)


def normal_array(seeds: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal numbers, float32, as an array of shape (n, *shape), by pairs (Box and Muller, 1958)."""
    size = math.prod(shape)
    half = (size + 1) // 2
    drawn = uniform_array(seeds, (2, half))
    length, angle = np.sqrt(-2.0 * np.log(drawn[:, 0])), np.float32(2 * math.pi) * drawn[:, 1]
    pair = np.concatenate([length * np.cos(angle), length * np.sin(angle)], axis=1)
    return pair[:, :size].reshape(-1, *shape)


def fold(seeds, counter):
    """Seeds of their own, uint32 tensors of shape (n,), for a counter: an integer, or a tensor of shape (n,)."""
    step = ops.multiply(ops.cast(counter, "uint32"), _u32(_GOLDEN))
    return _mix(_mix(ops.cast(seeds, "uint32")) + step + _u32(1))


def bits(seeds, shape: tuple[int, ...], salt: int = 0):
    """Uniform 32-bit integers of shape (n, *shape) from seeds of shape (n,)."""
    size = math.prod(shape)
    position = np.arange(1, size + 1, dtype="uint64") * _GOLDEN & 0xFFFFFFFF
    start = _mix(_mix(ops.cast(seeds, "uint32")) + _u32(salt * 0x632BE5AB + 1))
    h = ops.expand_dims(start, 1) + ops.convert_to_tensor(position.astype("uint32"))
    return ops.reshape(_mix(_mix(h)), (-1, *shape))


def uniform(seeds, shape: tuple[int, ...], salt: int = 0):
    """Uniform numbers in (0, 1), float32, of shape (n, *shape)."""
    high = ops.bitwise_right_shift(bits(seeds, shape, salt), _u32(9))  # 23 bits: exact in float32
    return (ops.cast(ops.cast(high, "int32"), "float32") + 0.5) / 2.0**23


def normal(seeds, shape: tuple[int, ...], salt: int = 0):
    """Standard normal numbers, float32, of shape (n, *shape)."""
    return math.sqrt(2.0) * ops.erfinv(2.0 * uniform(seeds, shape, salt) - 1.0)
