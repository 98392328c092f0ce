"""The words of a report: one for each number and column, the same in the terminal, on the page and in figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

TITLES = {"paper": "as the paper did it", "adaptive": "adaptive"}
LIMITS = {
    "paper": "It says how well the defense knows these attacks again, not how robust it is.",
    "adaptive": "This column, and only this one, speaks of robustness.",
}
_PAPER = "attacks as the paper made them: on an undefended model and shown to this one, or as the notes say"
_ADAPTIVE = {
    "gradients": "the attacker knows the whole defense and attacks it end to end",
    "scores": "the attacker sees the scores of the whole defense, not its gradients: one who knows it may do more",
    "labels": "the attacker sees the labels of the whole defense and nothing else: one who knows it may do more",
    "none": "the attacker sees nothing of the defense and attacks another model: one who knows it may do more",
}
_LABELS = {
    "adversarial_accuracy": "attacked, true class",
    "macro_f1": "macro F1",
    "auroc": "AUROC",
    "tpr_at_1_fpr": "TPR at 1 % FPR",
    "tpr_at_5_fpr": "TPR at 5 % FPR",
}


def label(name: str) -> str:
    """The words for a number of `measure`: its name, or what it is called elsewhere."""
    return _LABELS.get(name, name.replace("_", " "))


def meaning(results, column: str, model: str | None = None) -> str:
    """What a column of a report holds; that of the adaptive one follows what its attackers saw.

    Args:
        results: The `Results`.
        column: "paper" or "adaptive".
        model: Whose attacks count; None takes the main model.
    """
    if column == "paper":
        return _PAPER
    model = results.main if model is None else model
    mine = [o for o in results.outcomes if (o.column, o.model) == (column, model) and o.attack != "clean"]
    seen = {o.access for o in mine} or {"gradients"}
    if len(seen) == 1:
        return _ADAPTIVE[seen.pop()]
    blind = ", ".join(o.attack for o in mine if o.access != "gradients")
    return f"the attacks are made on the whole defense; {blind} without its gradients"


def percent(row: Mapping[str, float], name: str, *, interval: bool = False) -> str:
    """`row[name]` in percent, with the interval if that is wanted."""
    text = share(row[name])
    if not interval or text == "-":
        return text
    return f"{text} [{share(row[name + '_low'])}, {share(row[name + '_high'])}]"


def share(value: float | None) -> str:
    """A share in percent."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def distance(row: Mapping) -> str:
    """The median distance of a row with its norm."""
    value = row["median_distance"]
    norm = row["norm"] if isinstance(row["norm"], str) else ""  # a table writes None as NaN
    return "-" if value is None or math.isnan(value) else f"{value:.3g} {norm}".rstrip()


def radius(row: Mapping) -> str:
    """The radius or the radii of a row."""
    low, high = row["radius_min"], row["radius_max"]
    if low is None or math.isnan(low):
        return "-"
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def seconds(value: float) -> str:
    """A time in seconds or minutes."""
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"
