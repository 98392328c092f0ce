"""What one model said of one set of images, kept per image so that everything else can be recomputed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import f1_score

from kerasdef import checks
from kerasdef.evaluation.statistics import auroc, tpr_at_fpr, wilson

COLUMNS = ("paper", "adaptive")
CLEAN = "clean"
POOLED = "pooled"
ARRAYS = ("y", "predicted", "score", "radius", "index", "distance")
_FLOATS = ("score", "radius", "distance")


@dataclass(frozen=True, eq=False)
class Outcome:
    """What one model said of one set of images.

    Integers are kept as int64 and floats as float32, the precision the models compute in, so an outcome is
    the same after it was saved and loaded.

    Args:
        model: Name of the model that was asked.
        column: "paper" (attacks made on an undefended model, then shown to this one) or "adaptive" (the
            attacker knows this model whole). The two never mix.
        attack: "clean", or the name of the attack.
        y: True classes, int, shape (n,).
        predicted: Labels given, int in 0..K, shape (n,); K stands for adversarial.
        score: Detector scores, shape (n,), higher is more adversarial; None if the model has no detector.
        radius: Radius of each sample, shape (n,), where the attack has several; or None.
        index: Which test image each row is, int, shape (n,). None gives 0..n-1. Outcomes are paired by it.
        distance: Distances of the adversarial images, shape (n,), in L2 or in the norm of the attack's ball; or None.

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

    def __post_init__(self):
        for name in ("model", "attack"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise ValueError(f"`{name}` must be a non-empty string. Received: {name}={value!r}")
        checks.one_of("column", self.column, COLUMNS)
        y = checks.labels("y", self.y)
        if len(y) == 0:
            raise ValueError(f"`y` must be a non-empty array of shape (n,). Received: shape={y.shape}")
        index = np.arange(len(y)) if self.index is None else self.index
        values = {"y": y, "predicted": checks.labels("predicted", self.predicted, n=len(y))}
        values["index"] = checks.labels("index", index, n=len(y))
        values.update({name: _floats(name, getattr(self, name), len(y)) for name in _FLOATS})
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.y)

    def __eq__(self, other) -> bool:
        if not isinstance(other, Outcome):
            return NotImplemented
        same = (self.model, self.column, self.attack) == (other.model, other.column, other.attack)
        return same and all(_same(getattr(self, name), getattr(other, name)) for name in ARRAYS)

    __hash__ = None  # arrays


def pool(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome with the rows of all of `outcomes`, which are of the same model and column.

    A float that one of them lacks is None in the result.
    """

    def joined(name: str) -> np.ndarray | None:
        parts = [getattr(o, name) for o in outcomes]
        return None if any(p is None for p in parts) else np.concatenate(parts)

    first = outcomes[0]
    return Outcome(first.model, first.column, POOLED, **{name: joined(name) for name in ARRAYS})


def withstood(outcome: Outcome, reject: int | None) -> np.ndarray:
    """Whether the attacker failed on each row: it was labeled with its true class, or as adversarial.

    Args:
        outcome: n attacked images.
        reject: The label that stands for adversarial, or None if the model has no such label.

    Returns:
        Boolean array of shape (n,).
    """
    right = outcome.predicted == outcome.y
    return right if reject is None else right | (outcome.predicted == reject)


def measure(clean: Outcome | None, attacked: Outcome | None, reject: int | None, column: str) -> dict[str, float]:
    """Every number about one model, from its clean images and one set of attacked ones.

    A number that cannot be known (no clean images, no attacked ones, no reject class, no score) is NaN. A
    `_low` and a `_high` are the ends of the 95 % Wilson interval, which takes rows to be independent.

    Args:
        clean: The model's outcome on clean images, or None.
        attacked: Its outcome on attacked images, or None.
        reject: The label that stands for adversarial, or None if this model has no such label. Then the right
            label of an attacked image is its true class.
        column: "paper" or "adaptive"; only in the latter is a number called robust accuracy.

    Returns:
        - `n`, `n_clean`: attacked and clean images, all that there are.
        - `clean_accuracy`: clean images labeled with their true class; a rejected one is wrong.
        - `false_alarms`: clean images labeled adversarial.
        - `adversarial_accuracy`: attacked images labeled with their true class.
        - `detected`: attacked images labeled adversarial.
        - `attack_success`: attacked images labeled neither.
        - `withstood`: 1 - `attack_success`. `robust_accuracy`: the same, in the adaptive column only.
        - `accuracy`, `macro_f1`: over all classes and the reject class, on clean and attacked images
          together; in the adaptive column, which attacks fewer images, on those and their clean versions alone.
        - `detection_accuracy`: adversarial or not, on the same images.
        - `tpr_at_1_fpr`, `tpr_at_5_fpr`, `auroc`: of the detector's scores, in the paper column only: adaptive
          attackers here go for the label and stop there, so their scores say nothing of one who goes for the score.
        - `mean_distance`: mean of the outcome's distances.
    """
    row = {"n": len(attacked) if attacked else 0, "n_clean": len(clean) if clean else 0}
    right = clean.predicted == clean.y if clean else None
    flagged_clean = clean.predicted == reject if clean and reject is not None else None
    flagged = attacked.predicted == reject if attacked and reject is not None else None
    held = withstood(attacked, reject) if attacked else None

    row |= _share("clean_accuracy", right)
    row["false_alarms"] = _mean(flagged_clean)
    row["adversarial_accuracy"] = _mean(attacked.predicted == attacked.y if attacked else None)
    row["detected"] = _mean(flagged)
    row["attack_success"] = _mean(~held if attacked else None)
    row |= _share("withstood", held)
    row |= _share("robust_accuracy", held if column == "adaptive" else None)

    both = clean is not None and attacked is not None
    if both:
        used = np.isin(clean.index, attacked.index) if column == "adaptive" else np.full(len(clean), True)
        wanted = np.concatenate([clean.y[used], attacked.y if reject is None else np.full(len(attacked), reject)])
        given = np.concatenate([clean.predicted[used], attacked.predicted])
    row |= _share("accuracy", wanted == given if both else None)
    row["macro_f1"] = float(f1_score(wanted, given, average="macro", zero_division=0)) if both else math.nan
    known = both and reject is not None
    row |= _share("detection_accuracy", np.concatenate([~flagged_clean[used], flagged]) if known else None)

    scored = both and column == "paper" and clean.score is not None and attacked.score is not None
    for percent in (1, 5):
        found = tpr_at_fpr(clean.score, attacked.score, percent / 100) if scored else math.nan
        row[f"tpr_at_{percent}_fpr"] = found
    row["auroc"] = auroc(clean.score, attacked.score) if scored else math.nan
    row["mean_distance"] = _mean(attacked.distance if attacked else None)
    return row


def _share(name: str, good: np.ndarray | None) -> dict[str, float]:
    short = name.removesuffix("_accuracy") if name != "accuracy" else name
    low, high = wilson(int(np.sum(good)), len(good)) if good is not None else (math.nan, math.nan)
    return {name: _mean(good), f"{short}_low": low, f"{short}_high": high}


def _mean(values: np.ndarray | None) -> float:
    return math.nan if values is None else float(np.mean(values, dtype="float64"))


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
