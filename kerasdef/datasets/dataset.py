"""`Dataset`: three splits of checked arrays, and the ways to split them again."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.datasets import splits
from kerasdef.identity import digest

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Training, validation and test samples of one classification task.

    Arrays are checked and brought to one form at construction. `x` becomes float32; uint8 images are mapped
    linearly from 0..255, the range of their type and never that of the sample, onto `bounds`. `y` becomes int64
    class indices. Instances are immutable; every method returns a new one and is determined by its seed.

    Args:
        name: Name of the data set.
        x_train: Training inputs of shape (n, ...): floats inside `bounds`, or uint8. A float32 array is kept, not
            copied.
        y_train: Class indices of shape (n,), or one-hot rows of shape (n, classes); at least two classes.
        x_valid: Validation inputs; may be empty, of shape (0, ...).
        y_valid: Class indices of the validation inputs.
        x_test: Test inputs.
        y_test: Class indices of the test inputs.
        class_names: One name for each class; every label is below their number. None: "0", "1", ...
        bounds: `(low, high)` of a valid input, in the units of `x`. Radii of attacks are in these units too.
        source: Where the arrays came from.
        groups_train: Group of each training sample, shape (n,), non-negative ints, or None. Samples of one
            group (the frames of one track in GTSRB) show the same object, so no split separates them.
        groups_valid: Groups of the validation samples. None: each sample is a group of its own.
        groups_test: Groups of the test samples. None: each sample is a group of its own.

    Raises:
        ValueError: Arrays are empty, of different lengths or sample shapes, not finite, out of bounds; labels
            are out of range, or the training labels hold one class only.
    """

    name: str
    x_train: np.ndarray
    y_train: np.ndarray
    x_valid: np.ndarray
    y_valid: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    source: str = "arrays"
    groups_train: np.ndarray | None = None
    groups_valid: np.ndarray | None = None
    groups_test: np.ndarray | None = None

    def __post_init__(self):
        check_fields(self)
        limits = checks.bounds(self.bounds)
        names = None if self.class_names is None else tuple(str(n) for n in self.class_names)
        fields = {"bounds": limits}
        shape, count = None, None if names is None else len(names)
        for split in SPLITS:
            x = _inputs(f"x_{split}", getattr(self, f"x_{split}"), limits, shape, may_be_empty=split == "valid")
            shape = x.shape[1:]
            y = checks.labels(
                f"y_{split}",
                getattr(self, f"y_{split}"),
                n=len(x),
                classes=checks.MOST_CLASSES if count is None else count,
            )
            groups = getattr(self, f"groups_{split}")
            if groups is not None:
                groups = checks.labels(f"groups_{split}", groups, n=len(x), classes=None)
            fields |= {f"x_{split}": x, f"y_{split}": y, f"groups_{split}": groups}
        checks.several_classes("y_train", fields["y_train"])
        if names is None:
            top = max(int(fields[f"y_{s}"].max(initial=0)) for s in SPLITS)
            wide = np.shape(self.y_train)[1] if np.ndim(self.y_train) == 2 else 0  # one-hot: classes without a sample
            names = tuple(str(i) for i in range(max(top + 1, wide)))
        for field, value in (fields | {"class_names": names}).items():
            object.__setattr__(self, field, value)

    def __repr__(self):
        low, high = self.bounds
        return (
            f"Dataset({self.name}: {self.n_train} train, {self.n_valid} valid, {self.n_test} test, "
            f"shape {self.input_shape}, {self.classes} classes, bounds [{low:g}, {high:g}], "
            f"from {self.source})"
        )

    @classmethod
    @checked
    def from_arrays(
        cls,
        x_train: np.ndarray,
        y_train: np.ndarray,
        x_test: np.ndarray,
        y_test: np.ndarray,
        *,
        name: str = "arrays",
        class_names: Sequence[str] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> Dataset:
        """Return a data set without a validation split. Arguments and errors are those of `Dataset`.

        Arrays of shape (n, h, w) are taken for gray images and get a channel axis; `reshaped` takes it away again.
        """
        x_train, x_test = with_channels(x_train), with_channels(x_test)
        empty = np.empty((0, *np.shape(x_train)[1:]), "float32")
        return cls(name, x_train, y_train, empty, np.empty(0, "int64"), x_test, y_test, class_names, bounds, "arrays")

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.x_train.shape[1:]

    @property
    def n_train(self) -> int:
        """Number of training samples."""
        return len(self.x_train)

    @property
    def n_valid(self) -> int:
        """Number of validation samples."""
        return len(self.x_valid)

    @property
    def n_test(self) -> int:
        """Number of test samples."""
        return len(self.x_test)

    def rescaled(self, bounds: tuple[float, float]) -> Dataset:
        """Return the same samples in other bounds: `low` becomes the new low, `high` the new high, linearly.

        Args:
            bounds: The new `(low, high)`.

        Raises:
            ValueError: `bounds` is not a pair of finite numbers, low below high.
        """
        low, high = checks.bounds(bounds)
        if (low, high) == self.bounds:
            return self
        old, span = self.bounds[0], self.bounds[1] - self.bounds[0]

        def mapped(x):
            new = np.empty_like(x)
            for at in range(0, len(x), splits.CHUNK):  # in double precision, but not all at once
                part = (x[at : at + splits.CHUNK].astype("float64") - old) / span
                new[at : at + splits.CHUNK] = low + part * (high - low)
            return np.clip(new, low, high, out=new)

        inputs = {f"x_{split}": mapped(getattr(self, f"x_{split}")) for split in SPLITS}
        return replace(self, bounds=(low, high), **inputs)

    def reshaped(self, shape: Sequence[int]) -> Dataset:
        """Return the same samples in another shape: rows for a dense model, images without a channel axis.

        Args:
            shape: The new shape of one sample, with as many values as the old.

        Raises:
            ValueError: The numbers of values differ.
        """
        shape = tuple(checks.positive_int("shape", int(side)) for side in shape)
        if math.prod(shape) != math.prod(self.input_shape):
            raise ValueError(
                f"`shape` must hold as many values as a sample, which has the shape {self.input_shape}. "
                f"Received: shape={shape}"
            )
        inputs = {f"x_{split}": getattr(self, f"x_{split}") for split in SPLITS}
        return replace(self, **{name: x.reshape(len(x), *shape) for name, x in inputs.items()})

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of all samples, labels, groups and bounds: data sets of one name may differ."""
        arrays = [[getattr(self, f"{part}_{split}") for part in ("x", "y", "groups")] for split in SPLITS]
        return digest(arrays, self.bounds)

    def resplit(self, test_size: float = 0.30, seed: int = 0) -> Dataset:
        """Join all splits and divide them anew into train and test, stratified by class; valid gets empty.

        A set with groups is divided by group: no group is on both sides. The shares are then met to within
        half a group per class, and a class with a single group stays in training.

        Args:
            test_size: Share of the samples that goes to test, above 0 and below 1. Default 0.30 (70:30).
            seed: Seed of the division and of the order inside the splits.

        Raises:
            ValueError: A share or a seed is invalid, or a class has fewer than two samples.
        """
        y = np.concatenate([self.y_train, self.y_valid, self.y_test])
        groups = self._joined_groups()
        kept, held = splits.hold_out(y, checks.share("test_size", test_size), seed, groups)
        parts = [self.x_train, self.x_valid, self.x_test]
        return replace(
            self,
            x_train=splits.rows(parts, kept),
            y_train=y[kept],
            groups_train=None if groups is None else groups[kept],
            x_test=splits.rows(parts, held),
            y_test=y[held],
            groups_test=None if groups is None else groups[held],
            x_valid=self.x_valid[:0],
            y_valid=self.y_valid[:0],
            groups_valid=None,
        )

    def with_validation(self, size: float = 0.1, seed: int = 0) -> Dataset:
        """Move a share of the training samples, stratified by class, to the empty validation split.

        A set with groups is divided by group, as in `resplit`.

        Args:
            size: Share of the training samples, above 0 and below 1.
            seed: Seed of the division and of the order inside the splits.

        Raises:
            ValueError: There are validation samples already, an argument is invalid, or a class has fewer
                than two training samples.
        """
        if self.n_valid:
            raise ValueError(f"The validation split must be empty. Received: {self.n_valid} validation samples")
        groups = self.groups_train
        kept, held = splits.hold_out(self.y_train, checks.share("size", size), seed, groups)
        return replace(
            self,
            x_train=self.x_train[kept],
            y_train=self.y_train[kept],
            groups_train=None if groups is None else groups[kept],
            x_valid=self.x_train[held],
            y_valid=self.y_train[held],
            groups_valid=None if groups is None else groups[held],
        )

    def subset(self, n_train: int | None = None, n_test: int | None = None, seed: int = 0) -> Dataset:
        """Keep a random part of train and test with the class shares of the whole, to within one sample.

        Args:
            n_train: Training samples to keep; None keeps all.
            n_test: Test samples to keep; None keeps all.
            seed: Seed of the choice.

        Raises:
            ValueError: A number is not positive or above what there is, or one class only is left to train
                on.
        """
        checks.non_negative_int("seed", seed)
        fields = {}
        for split, n in (("train", n_train), ("test", n_test)):
            y = getattr(self, f"y_{split}")
            if n is None:
                continue
            if checks.positive_int(f"n_{split}", n) > len(y):
                raise ValueError(f"`n_{split}` must be at most the {len(y)} samples there are. Received: n_{split}={n}")
            index = splits.stratified_choice(y, n, seed)
            if split == "train" and len(np.unique(y[index])) < 2:
                raise ValueError(f"`n_train` must leave at least two classes to train on. Received: n_train={n}")
            groups = getattr(self, f"groups_{split}")
            fields |= {
                f"x_{split}": getattr(self, f"x_{split}")[index],
                f"y_{split}": y[index],
                f"groups_{split}": None if groups is None else groups[index],
            }
        return replace(self, **fields)

    def _joined_groups(self) -> np.ndarray | None:
        """Return the groups of train, valid and test in a row; samples without one get a new number each."""
        parts = [
            (self.groups_train, self.n_train),
            (self.groups_valid, self.n_valid),
            (self.groups_test, self.n_test),
        ]
        known = [g for g, _ in parts if g is not None and len(g)]
        if not known:
            return None
        free = 1 + max(int(g.max()) for g in known)
        joined = []
        for groups, n in parts:
            if groups is None:
                groups = np.arange(free, free + n)
                free += n
            joined.append(groups)
        return np.concatenate(joined)


def with_channels(x: np.ndarray) -> np.ndarray:
    """Return gray images of shape (n, h, w) with a channel axis, and anything else as it is."""
    x = np.asarray(x)
    return x[..., np.newaxis] if x.ndim == 3 else x


def _inputs(name, x, limits, shape, *, may_be_empty) -> np.ndarray:
    """Return `x` as checked float32 inputs (n, ...), see `Dataset`."""
    x = np.asarray(x)
    if may_be_empty and x.ndim and len(x) == 0:
        return np.empty((0, *shape), "float32")
    return checks.images(name, x, limits=limits, shape=shape)
