"""What a report shows of certificates: certified accuracy by radius, as a figure and as a section with its table."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from kerasdef.evaluation.certified import certified_accuracy
from kerasdef.reporting.figures import COLORS
from kerasdef.reporting.sections import Section


def certified_figure(found: Mapping[str, tuple[np.ndarray, np.ndarray]], *, title: str = "") -> Figure:
    """Certified accuracy by radius, a step curve for each model with its 95 % band.

    Args:
        found: For each model by its name `(correct, radius)`, as `kerasdef.evaluation.certified_accuracy` takes them.
        title: What stands above.

    Raises:
        ValueError: There is no model, or arrays are not as they must be.
    """
    if not found:
        raise ValueError("`found` must have one or more models. Received: found={}")
    figure = Figure(figsize=(7.0, 4.1), layout="constrained")
    ax = figure.subplots()
    for k, (name, (correct, radius)) in enumerate(found.items()):
        ends = np.unique(np.concatenate([[0.0], np.asarray(radius, dtype="float64")]))
        table = certified_accuracy(correct, radius, ends)
        beyond = certified_accuracy(correct, radius, [1.02 * ends[-1] + 1e-9])  # where nothing is certified any more
        table = pd.concat([table, beyond], ignore_index=True)
        color = COLORS[k % len(COLORS)]
        # at its own radius an image is still certified: the curve falls behind it
        ax.step(table["radius"], table["certified_accuracy"], where="pre", color=color, label=name)
        ax.fill_between(table["radius"], table["low"], table["high"], step="pre", color=color, alpha=0.15, lw=0)
    ax.set_xlim(left=0)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_xlabel("L2 radius (input units)")
    ax.set_ylabel("certified accuracy")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#E5E5E5", lw=0.8)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    return figure


def certified_section(correct: np.ndarray, radius: np.ndarray, radii, *, name: str, text: str) -> Section:
    """The section of a report on certificates.

    Args:
        correct: Booleans of shape (n,).
        radius: Certified radii of shape (n,).
        radii: The radii of the table.
        name: Name of the model.
        text: Sentences that say how it was certified.
    """
    table = certified_accuracy(correct, radius, radii)
    figure = certified_figure({name: (correct, radius)}, title=f"certified accuracy of {name} (n = {len(correct)})")
    return Section("certified", "Certified accuracy by radius", text, table.to_dict("records"), figure)
