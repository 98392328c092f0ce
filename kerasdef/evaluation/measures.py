"""Every number about one model, each with one name that code, terminal, page, CSV and JSON share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from sklearn.metrics import f1_score

from kerasdef.annotations import checked
from kerasdef.evaluation.outcomes import Outcome, fooled, pool
from kerasdef.evaluation.statistics import auroc, share_interval, tpr_at_fpr

SHARES = ("clean_accuracy", "robust_accuracy", "not_fooled", "accuracy", "detection_accuracy")  # have an interval


@checked
def measure(
    clean: Outcome | None, attacked: Sequence[Outcome], reject: int | None, column: str
) -> dict[str, float | str | None]:
    """Every number about one model, from its clean images and one or several sets of attacked ones.

    A number that cannot be known (no clean images, no attacked ones, no reject class, no score) is NaN. `X_low` and
    `X_high` are the ends of the 95 % interval of the share X, for chance in the choice of the images: Wilson's, or a
    bootstrap over images where an image counts more than once.

    Args:
        clean: The model's outcome on clean images, or None.
        attacked: Its outcomes on attacked images, one for each attack; may be empty.
        reject: The label that stands for adversarial, or None if this model has no such label. Then the right label
            of an attacked image is its true class.
        column: "paper" or "adaptive". Only in the latter is there a robust accuracy, and there all numbers are about
            the images that the attacks met, which may be fewer than the clean ones.

    Returns:
        - `n`, `n_clean`: attacked images (an image under two attacks is two) and clean ones.
        - `n_images`: images that every one of the attacks met, each counted once.
        - `clean_accuracy`: clean images labeled with their true class; a rejected one is wrong.
        - `false_alarms`: clean images labeled adversarial.
        - `adversarial_accuracy`: attacked images labeled with their true class.
        - `detected`: attacked images labeled adversarial.
        - `fooled`: attacked images labeled neither.
        - `not_fooled`: of the `n_images`, those that none of the attacks fooled, whatever the clean answer was.
        - `robust_accuracy`: of the `n_images`, those that are labeled with their true class when clean and that none
          of the attacks fooled; in the adaptive column only. It is never above `clean_accuracy`.
        - `accuracy`, `macro_f1`: over all classes and the reject class, on clean and attacked images together.
        - `detection_accuracy`: adversarial or not, on the same images.
        - `tpr_at_1_fpr`, `tpr_at_5_fpr`, `auroc`: of the detector's scores, in the paper column only: adaptive
          attackers here go for the label and stop there, so their scores say nothing of one who goes for the score.
        - `norm`: norm of the radii and distances; None where there is none, or the attacks have several.
        - `radius_min`, `radius_max`: smallest and largest radius that the attack had.
        - `median_distance`: median distance of the images that were broken: fooled, and not before the attack.
    """
    rows = pool(attacked) if attacked else None
    images = reduce(np.intersect1d, [np.unique(o.index) for o in attacked]) if attacked else np.array([], dtype="int64")
    if column == "adaptive" and attacked and clean is not None:
        images = np.intersect1d(images, clean.index)
    met = None  # the clean images that the numbers are about
    if clean is not None:
        met = np.isin(clean.index, images) if column == "adaptive" and attacked else np.full(len(clean), True)
    row: dict = {
        "n": len(rows) if rows else 0,
        "n_clean": int(np.sum(met)) if clean else 0,
        "n_images": len(images),
    }
    right = clean.predicted == clean.y if clean else None
    flagged_clean = clean.predicted == reject if clean and reject is not None else None
    flagged = rows.predicted == reject if rows and reject is not None else None
    lost = fooled(rows, reject) if rows else None

    row |= _share("clean_accuracy", right[met] if clean else None, clean.index[met] if clean else None)
    row["false_alarms"] = _mean(flagged_clean[met] if flagged_clean is not None else None)
    row["adversarial_accuracy"] = _mean(rows.predicted == rows.y if rows else None)
    row["detected"] = _mean(flagged)
    row["fooled"] = _mean(lost)
    stands = ~np.isin(images, rows.index[lost]) if rows else None
    row |= _share("not_fooled", stands, images)
    robust = None
    if rows and clean and column == "adaptive":
        robust = stands & ~np.isin(images, clean.index[~right])
    row |= _share("robust_accuracy", robust, images)

    both = clean is not None and rows is not None
    if both:
        wanted = np.concatenate([clean.y[met], rows.y if reject is None else np.full(len(rows), reject)])
        given = np.concatenate([clean.predicted[met], rows.predicted])
        index = np.concatenate([clean.index[met], rows.index])
    row |= _share("accuracy", wanted == given if both else None, index if both else None)
    row["macro_f1"] = float(f1_score(wanted, given, average="macro", zero_division=0)) if both else math.nan
    known = both and reject is not None
    told = np.concatenate([~flagged_clean[met], flagged]) if known else None
    row |= _share("detection_accuracy", told, index if known else None)

    scored = both and column == "paper" and clean.score is not None and rows.score is not None
    for percent in (1, 5):
        found = tpr_at_fpr(clean.score, rows.score, percent / 100) if scored else math.nan
        row[f"tpr_at_{percent}_fpr"] = found
    row["auroc"] = auroc(clean.score, rows.score) if scored else math.nan
    row["norm"] = rows.norm if rows else None
    radii = rows.radius if rows and rows.radius is not None else [math.nan]
    row |= {"radius_min": float(np.min(radii)), "radius_max": float(np.max(radii)), "median_distance": math.nan}
    if rows and rows.distance is not None:
        before = clean.index[fooled(clean, reject)] if clean else []
        broken = lost & (rows.distance > 0) & ~np.isin(rows.index, before)
        row["median_distance"] = float(np.median(rows.distance[broken])) if broken.any() else math.nan
    return row


def _share(name: str, good: np.ndarray | None, index: np.ndarray | None) -> dict[str, float]:
    known = good is not None and len(good)
    low, high = share_interval(good, index) if known else (math.nan, math.nan)
    return {name: _mean(good), f"{name}_low": low, f"{name}_high": high}


def _mean(values: np.ndarray | None) -> float:
    return math.nan if values is None or not len(values) else float(np.mean(values, dtype="float64"))
