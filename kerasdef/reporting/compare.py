"""Paired tests of two models of a report on the images they have in common."""

from __future__ import annotations

import pandas as pd

from kerasdef import checks
from kerasdef.evaluation.outcomes import CLEAN, POOLED, fooled
from kerasdef.evaluation.statistics import mcnemar


def compare(results, model: str, other: str, attack: str = POOLED, column: str = "paper") -> dict[str, float]:
    """Exact McNemar test of two models on the images they have in common.

    A model is right on a clean image it labels with the true class, and on an attacked one that did not fool it.
    Images are paired by attack, index and radius. Several attacks or radii of one image are not independent, so a
    p-value over them is too small: name one attack.

    Args:
        results: The `Results` that hold both.
        model: Name of a model.
        other: Name of another.
        attack: Name of an attack; "pooled" takes all of the column.
        column: "paper" or "adaptive".

    Returns:
        `n`, `a_only` (only `model` right), `b_only` (only `other` right), `p_value` and `difference`, the share right
        of `model` minus that of `other`.
    """
    a, b = (_right(results, name, attack, column) for name in (model, other))
    keys = ["attack", "index"] + ["radius"] * ("radius" in a and "radius" in b)
    for name, rows in ((model, a), (other, b)):
        if rows.duplicated(keys).any():
            raise ValueError(f"`index` must name each image once per attack and radius. Received: twice for {name!r}")
    both = a.merge(b, on=keys, suffixes=("", "_other"))
    if len(both) == 0 or (both.y != both.y_other).any():
        found = "none" if len(both) == 0 else "different true classes for one index"
        raise ValueError(f"`{model}` and `{other}` must have images in common. Received: {found}")
    return mcnemar(both.right.to_numpy(), both.right_other.to_numpy())


def _right(results, model: str, attack: str, column: str) -> pd.DataFrame:
    checks.one_of("model", model, results.models)
    names = results.attacks(column, model) if attack == POOLED else [attack]
    found = [(name, results.outcome(model, name, column)) for name in names]
    if not found:
        raise ValueError(f"`column` must have attacks on the model {model!r}. Received: column={column!r}")
    parts = []
    for name, o in found:
        right = o.predicted == o.y if name == CLEAN else ~fooled(o, results.rejects(model))
        part = pd.DataFrame({"attack": name, "index": o.index, "y": o.y, "right": right})
        parts.append(part if o.radius is None else part.assign(radius=o.radius))
    rows = pd.concat(parts, ignore_index=True)
    return rows.fillna({"radius": -1.0}) if "radius" in rows else rows
