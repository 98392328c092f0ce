"""The detectors of the hybrid recipe: made by name, and all of them side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np

from kerasdef.datasets import Dataset
from kerasdef.defenses import detectors
from kerasdef.evaluation import tpr_at_fpr
from kerasdef.recipes.hybrid.settings import DETECTORS
from kerasdef.reporting.words import share

RATE = 0.05  # false positive rate of the comparison


def made(names: Sequence[str], watched: keras.Model | None, **options) -> detectors.Detector:
    """A detector that is not fitted.

    Args:
        names: One or more names of `DETECTORS`.
        watched: A network that it looks at in front of the members, or None.
        options: Rate and bounds.
    """
    found = [getattr(detectors, DETECTORS[name][0])(**options, **DETECTORS[name][1]) for name in names]
    joined = found[0] if len(found) == 1 else detectors.AnyOf(found, **options)
    return joined if watched is None else detectors.Watching(watched, joined, **options)


def compared(
    data: Dataset,
    calibrating: np.ndarray,
    x_adv: np.ndarray,
    undefended: keras.Model,
    members: Sequence[keras.Model],
    clean: np.ndarray,
    attacked: Mapping[str, np.ndarray],
    chosen: Sequence[str],
) -> list[dict]:
    """What each detector finds of attacked images at 5 % false positives, on the members alone and watching.

    Args:
        data: The data set, whose training images the detectors are fitted to.
        calibrating: Images for their thresholds.
        x_adv: Attacked training images, for those that learn from these.
        undefended: The network that is watched.
        members: The members of the ensemble.
        clean: Clean test images.
        attacked: Attacked test images that fooled the model that they were made on, by attack.
        chosen: Names of the detectors of the defense, which stand together in the last row.
    """
    rows, groups = [], [(name,) for name in DETECTORS] + [tuple(chosen)] * (len(chosen) > 1)
    for names in groups:
        for watched in (None, undefended):
            if watched is None and "disagreement" in names and len(members) < 2:
                continue
            row = {"detector": " + ".join(names), "watching": "no" if watched is None else "yes"}
            found = made(names, watched, rate=RATE, bounds=data.bounds)
            try:
                found.fit(members, data.x_train, data.y_train, valid=calibrating, x_adv=x_adv)
            except ValueError:  # features that do not vary, or too few images of a class: a row without numbers
                rows.append(row | dict.fromkeys(["clean flagged", *attacked], "-"))
                continue
            scores = found.scores(clean)
            row["clean flagged"] = share(float(found.flags(clean).mean()))
            for name, x in attacked.items():
                row[name] = share(tpr_at_fpr(scores, found.scores(x), RATE)) if len(x) else "-"
            rows.append(row)
    return rows
