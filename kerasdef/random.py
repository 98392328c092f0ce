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


def _mix(h):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3 fmix32
        h = ops.bitwise_xor(h, ops.bitwise_right_shift(h, _u32(shift)))
        h = ops.multiply(h, _u32(factor))
    return ops.bitwise_xor(h, ops.bitwise_right_shift(h, _u32(16)))


def sample_seeds(seed: int, index: np.ndarray) -> np.ndarray:
    """Seeds of shape (n,), uint32, for the samples with these indices."""
    counters = np.asarray(index, dtype="uint64") * np.uint64(_GOLDEN) + np.uint64(seed % 2**32)
    mixed = counters ^ (counters >> np.uint64(32))
    return (mixed & np.uint64(0xFFFFFFFF)).astype("uint32")


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
