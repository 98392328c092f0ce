"""Batches with equal shares of several kinds of images, each kind with a weight of its own."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from kerasdef import checks
from kerasdef.annotations import Count, checked


class Shares(keras.utils.PyDataset):
    """Batches that hold equally many samples of every kind, with one-hot labels and sample weights.

    Call `model.fit(shares, shuffle=False)`: Keras would draw another order of the batches, without a seed.

    Args:
        parts: Pairs (x, y) of arrays of shapes (n, ...) and (n,), one for each kind, all of one n.
        weights: Weight of each kind: the loss of a batch is the sum over the kinds of weight times mean loss.
        batch_size: Samples in a batch, a multiple of the number of kinds.
        classes: Number of classes.
        seed: Each kind has an order of its own that comes from it.

    Raises:
        ValueError: The kinds differ in n, or the batch cannot be divided.

    References: iar paper, section on model training (equal representation of all data types).
    """

    @checked
    def __init__(
        self,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        weights: Sequence[float],
        *,
        batch_size: Count,
        classes: int,
        seed: int = 0,
    ):
        super().__init__()
        sizes = [len(x) for x, _ in parts]
        if len(set(sizes)) != 1 or len(weights) != len(parts):
            raise ValueError(f"`parts` must be of one length, with a weight each. Received: {sizes}, {list(weights)}")
        if checks.positive_int("batch_size", batch_size) % len(parts):
            raise ValueError(f"`batch_size` must be a multiple of {len(parts)}. Received: batch_size={batch_size}")
        self.parts, self.classes = list(parts), checks.positive_int("classes", classes)
        self.each = batch_size // len(parts)
        if self.each > sizes[0]:
            raise ValueError(f"`batch_size` must be at most {sizes[0] * len(parts)}. Received: batch_size={batch_size}")
        self.weights = np.repeat(np.asarray(weights, dtype="float32") * len(parts), self.each)
        rng = np.random.default_rng(checks.non_negative_int("seed", seed))
        self.orders = [rng.permutation(n) for n in sizes]

    def __len__(self) -> int:
        """Whole batches."""
        return len(self.orders[0]) // self.each

    def __getitem__(self, i: int):
        """Samples, one-hot labels and weights of a batch, one kind after the other."""
        rows = slice(i * self.each, (i + 1) * self.each)
        picked = [(x[order[rows]], y[order[rows]]) for (x, y), order in zip(self.parts, self.orders, strict=True)]
        y = np.concatenate([y for _, y in picked])
        return np.concatenate([x for x, _ in picked]), np.eye(self.classes, dtype="float32")[y], self.weights
