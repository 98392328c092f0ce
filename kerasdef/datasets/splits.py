"""How samples are divided: stratified by class, never through a group, determined by a seed."""

from __future__ import annotations

import math

import numpy as np

from kerasdef import checks

CHUNK = 4096  # samples copied at a time when splits are joined: bounds the temporary memory


def hold_out(
    y: np.ndarray, size: float, seed: int = 0, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return `(kept, held)`: shuffled indices of a division of the samples, stratified by class.

    Args:
        y: Class indices of shape (n,).
        size: Share of the samples to hold out, above 0 and below 1.
        seed: Seed of the division.
        groups: Group of each sample, shape (n,), or None. Groups are not divided; a group counts as of the
            class of its first sample. scikit-learn's group splitters either ignore classes or only know
            shares 1 / k.

    Raises:
        ValueError: A class has fewer than two samples, or `groups` leaves nothing to hold out.
    """
    checks.non_negative_int("seed", seed)
    if groups is not None:
        return _hold_out_groups(y, size, seed, groups)
    from sklearn.model_selection import train_test_split  # a second to import, not needed to load

    found, counts = np.unique(y, return_counts=True)
    if counts.min() < 2:
        raise ValueError(
            "A stratified split needs at least two samples of every class. "
            f"Received: one sample of class {found[counts < 2].tolist()}"
        )
    least = min(math.ceil(size * len(y)), len(y) - math.ceil(size * len(y)))  # as scikit-learn rounds
    if least < len(found):
        raise ValueError(
            f"A stratified split needs a sample of each of the {len(found)} classes in both parts: more samples, or "
            f"another share. Received: {len(y)} samples with a share of {size:g} held out"
        )
    kept, held = train_test_split(np.arange(len(y)), test_size=size, stratify=y, random_state=seed % 2**32)
    return kept, held


def _hold_out_groups(y, size, seed, groups):
    rng = np.random.default_rng(seed)
    _, first, member, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
    held = np.zeros(len(first), bool)
    for label in np.unique(y[first]):
        own = rng.permutation(np.flatnonzero(y[first] == label))
        reached = np.cumsum(counts[own])
        nearest = 1 + int(np.argmin(np.abs(reached - size * reached[-1])))
        held[own[: min(nearest, len(own) - 1)]] = True  # at least one group of each class is kept
    if not held.any():
        raise ValueError("A split by group needs a class with at least two groups. Received: one group in every class")
    return rng.permutation(np.flatnonzero(~held[member])), rng.permutation(np.flatnonzero(held[member]))


def stratified_choice(y: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return `n` shuffled indices with the class shares of `y`, by largest remainders."""
    rng = np.random.default_rng(seed)
    found, counts = np.unique(y, return_counts=True)
    exact = n * counts / len(y)
    quota = np.floor(exact).astype(int)
    order = np.argsort(quota - exact, kind="stable")  # largest remainder first
    quota[order[: n - quota.sum()]] += 1
    chosen = [rng.permutation(np.flatnonzero(y == label))[:k] for label, k in zip(found, quota, strict=True)]
    return rng.permutation(np.concatenate(chosen))


def rows(parts: list[np.ndarray], index: np.ndarray) -> np.ndarray:
    """Return the rows `index` of the joined parts, without joining them."""
    out = np.empty((len(index), *parts[0].shape[1:]), parts[0].dtype)
    starts = np.cumsum([0] + [len(p) for p in parts])
    for at in range(0, len(index), CHUNK):
        wanted = index[at : at + CHUNK]
        for part, start, stop in zip(parts, starts, starts[1:], strict=False):
            here = (start <= wanted) & (wanted < stop)
            out[at : at + CHUNK][here] = part[wanted[here] - start]
    return out
