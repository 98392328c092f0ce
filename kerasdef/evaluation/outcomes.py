"""What one model said of one set of images, kept per image so that everything else can be recomputed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kerasdef import checks
from kerasdef.annotations import check_fields

COLUMNS = ("paper", "adaptive")
CLEAN = "clean"
POOLED = "pooled"
ACCESS = ("gradients", "scores", "labels", "none")
ARRAYS = ("y", "predicted", "score", "radius", "index", "distance")
WORDS = ("model", "column", "attack", "norm", "access")
_FLOATS = ("score", "radius", "distance")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one model said of one set of images.

    Integers are kept as int64 and floats as float32, the precision the models compute in, so an outcome is
    the same after it was saved and loaded.

    Args:
        model: Name of the model that was asked.
        column: "paper" (attacks made on an undefended model, then shown to this one) or "adaptive" (the
            attacker works on this very model). The two never mix.
        attack: "clean", or the name of the attack.
        y: True classes, int, shape (n,).
        predicted: Labels given, int in 0..K, shape (n,); K stands for adversarial, and
            -1 for an answer that is not finite, which is none.
        score: Detector scores, shape (n,), higher is more adversarial; None if the model has no detector.
        radius: Radius that the attack had for each sample, in input units, shape (n,); None for clean images and
            attacks without a radius.
        index: Which test image each row is, int, shape (n,). None gives 0..n-1. Outcomes are paired by it.
        distance: Distances of the adversarial images from the clean ones, shape (n,), in `norm`; or None.
        norm: Norm of `radius` and `distance`, such as "Linf"; None where neither is known.
        access: What the attacker had of this model: "gradients", "scores", "labels", or "none" for images that were
            made on another one.

    Raises:
        ValueError: if a name is empty, the set is empty, lengths differ or a float is not finite.
    """

    model: str
    column: str
    attack: str
    y: np.ndarray
    predicted: np.ndarray
    score: np.ndarray | None = None
    radius: np.ndarray | None = None
    index: np.ndarray | None = None
    distance: np.ndarray | None = None
    norm: str | None = None
    access: str = "gradients"

    def __post_init__(self):
        check_fields(self)
        for name in ("model", "attack"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"`{name}` must be a non-empty string. Received: {name}={value!r}")
        checks.one_of("column", self.column, COLUMNS)
        checks.one_of("access", self.access, ACCESS)
        if self.norm is not None and (not isinstance(self.norm, str) or not self.norm):
            raise ValueError(f"`norm` must be None or a non-empty string. Received: norm={self.norm!r}")
        y = checks.labels("y", self.y)
        if len(y) == 0:
            raise ValueError(f"`y` must be a non-empty array of shape (n,). Received: shape={y.shape}")
        index = np.arange(len(y)) if self.index is None else self.index
        values = {"y": y, "predicted": checks.labels("predicted", self.predicted, n=len(y), least=checks.NOBODY)}
        values["index"] = checks.labels("index", index, n=len(y), classes=None)
        values.update({name: _floats(name, getattr(self, name), len(y)) for name in _FLOATS})
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.y)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Outcome):
            return NotImplemented
        same = all(getattr(self, name) == getattr(other, name) for name in WORDS)
        return same and all(_same(getattr(self, name), getattr(other, name)) for name in ARRAYS)

    __hash__ = None  # arrays


def pool(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome with the rows of all of `outcomes`, which are of the same model and column.

    A float that one of them lacks is None in the result, and so are distances and radii where the norms differ.
    """
    first = outcomes[0]
    one_norm = all(o.norm == first.norm for o in outcomes)

    def joined(name: str) -> np.ndarray | None:
        parts = [getattr(o, name) for o in outcomes]
        lost = any(p is None for p in parts) or (name in ("radius", "distance") and not one_norm)
        return None if lost else np.concatenate(parts)

    values = {name: joined(name) for name in ARRAYS}
    most = min((o.access for o in outcomes), key=ACCESS.index)
    return Outcome(first.model, first.column, POOLED, norm=first.norm if one_norm else None, access=most, **values)


def take(outcome: Outcome, rows: np.ndarray) -> Outcome:
    """Some rows of an outcome; `rows` are booleans or indices."""
    values = {name: getattr(outcome, name) for name in ARRAYS}
    values = {name: None if v is None else v[rows] for name, v in values.items()}
    return Outcome(**{name: getattr(outcome, name) for name in WORDS}, **values)


def fooled(outcome: Outcome, reject: int | None) -> np.ndarray:
    """Whether the attacker won on each row: its label is neither the true class nor the one that says adversarial.

    An answer that is none is no success of the attacker.

    Args:
        outcome: n attacked images.
        reject: The label that stands for adversarial, or None if the model has no such label.

    Returns:
        Boolean array of shape (n,).
    """
    wrong = (outcome.predicted != outcome.y) & (outcome.predicted != checks.NOBODY)
    return wrong if reject is None else wrong & (outcome.predicted != reject)


def _floats(name: str, values, n: int) -> np.ndarray | None:
    if values is None:
        return None
    values = np.asarray(values, dtype="float32")
    if values.shape != (n,):
        raise ValueError(f"`{name}` must have one value for each of the {n} samples. Received: shape={values.shape}")
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"`{name}` must be finite. Received: {int(np.sum(~np.isfinite(values)))} values NaN or infinite"
        )
    return values


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)
