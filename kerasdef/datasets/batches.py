"""Augmented data: clean and adversarial arrays as one shuffled stream of batches, without a copy of them."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from kerasdef import checks
from kerasdef.annotations import checked


@checked
def adversarial_count(clean: int, share: float) -> int:
    """Number of adversarial samples that make up `share` of the data beside `clean` clean ones.

    Args:
        clean: Number of clean samples.
        share: Share of the adversarial samples in all samples, in [0, 1).
    """
    checks.non_negative_int("clean", clean)
    checks.real("share", share, low=0.0, high=1.0)
    if share == 1:
        raise ValueError(f"`share` must be below 1. Received: share={share!r}")
    return round(clean * share / (1 - share))


class Mixture(keras.utils.PyDataset):
    """Batches drawn from several arrays, in an order that depends on the seed and the epoch alone.

    Call `model.fit(mixture, shuffle=False)`: Keras would draw another order of the batches, without a seed.

    Args:
        parts: Pairs (x, y) of arrays of shapes (n_i, ...) and (n_i,).
        batch_size: Samples in a batch.
        seed: Seed of the order; None keeps the order of the arrays.
        rows: Which samples to use, counted through all parts, repetitions allowed (a bootstrap). None: each once.
        repeats: Times that every batch is shown before the next.
        whole: Leave out what does not fill a last batch; which samples these are changes with the epoch.
        shift: Pixels by which images are shifted at random, up to this many to every side, and flipped left to right
            with a chance of a half. 0: neither. The draws depend on the seed, the epoch and the batch.

    Raises:
        ValueError: Fewer samples than a batch.
    """

    @checked
    def __init__(
        self,
        parts: Sequence[tuple[np.ndarray, np.ndarray]],
        *,
        batch_size: int = 128,
        seed: int | None = None,
        rows: np.ndarray | None = None,
        repeats: int = 1,
        whole: bool = False,
        shift: int = 0,
    ):
        super().__init__()
        self.parts = [(x, checks.labels("parts", y, n=len(x)).astype("int32")) for x, y in parts if len(x)]
        if len({x.shape[1:] for x, _ in self.parts}) > 1:
            shapes = [x.shape for x, _ in self.parts]
            raise ValueError(f"`parts` must hold samples of one shape. Received: shapes={shapes}")
        self.starts = np.cumsum([0] + [len(x) for x, _ in self.parts])
        self.rows = np.arange(self.starts[-1]) if rows is None else np.asarray(rows)
        self.batch_size = checks.positive_int("batch_size", batch_size)
        if seed is not None and len(self.rows) < batch_size:
            raise ValueError(
                f"`batch_size` must be at most the number of samples, {len(self.rows)}. "
                f"Received: batch_size={batch_size}"
            )
        self.seed, self.epoch = seed, 0
        self.repeats, self.whole = checks.positive_int("repeats", repeats), bool(whole)
        self.shift = checks.non_negative_int("shift", shift)
        self._order()

    def _order(self) -> None:
        if self.seed is None:
            self.order = self.rows
        else:
            self.order = np.random.default_rng([self.seed, self.epoch]).permutation(self.rows)

    def __len__(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(len(self.rows), self.batch_size)
        return (full + bool(rest and not self.whole)) * self.repeats

    def __getitem__(self, i: int):
        i //= self.repeats
        rows = self.order[i * self.batch_size : (i + 1) * self.batch_size]
        x = np.empty((len(rows), *self.parts[0][0].shape[1:]), dtype="float32")
        y = np.empty(len(rows), dtype="int32")
        for (part_x, part_y), start, stop in zip(self.parts, self.starts, self.starts[1:], strict=False):
            here = (rows >= start) & (rows < stop)
            x[here], y[here] = part_x[rows[here] - start], part_y[rows[here] - start]
        if self.shift:
            x = _moved(x, self.shift, np.random.default_rng([self.seed or 0, self.epoch, i]))
        return x, y

    def on_epoch_end(self) -> None:
        """Draw the order of the next epoch."""
        self.begin(self.epoch + 1)

    def begin(self, epoch: int) -> None:
        """Draw the order of an epoch, counted from 0."""
        self.epoch = epoch
        self._order()


def _moved(x: np.ndarray, shift: int, rng: np.random.Generator) -> np.ndarray:
    """Images shifted over a black edge and half of them flipped, each by draws of its own."""
    n, height, width = x.shape[:3]
    wide = np.pad(x, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    top, left = rng.integers(0, 2 * shift + 1, (2, n))
    rows = top[:, None, None] + np.arange(height)[:, None]
    columns = left[:, None, None] + np.arange(width)
    columns = np.where(rng.random(n)[:, None, None] < 0.5, columns[..., ::-1], columns)
    return wide[np.arange(n)[:, None, None], rows, columns]
