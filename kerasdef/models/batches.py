"""Arrays in batches of few different sizes, since every size is compiled anew."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from kerasdef import checks
from kerasdef.annotations import checked


@checked
def padded_batches(n: int, batch_size: int) -> Iterator[slice]:
    """Yield slices of at most `batch_size` over n samples."""
    for start in range(0, n, batch_size):
        yield slice(start, min(start + batch_size, n))


@checked
def pad(array: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last row until the array has `size` rows."""
    if checks.positive_int("size", size) < len(array) or not len(array):
        raise ValueError(
            f"`size` must be at least the number of rows, {len(array)}, and above 0. Received: size={size}"
        )
    if len(array) == size:
        return array
    return np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])
