"""What robust training returns: a classifier and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kerasdef.recipes.classifier import Classifier
from kerasdef.reporting import Report


@dataclass
class Trained(Classifier):
    """A classifier after robust training.

    Args:
        model: The classifier, trained in place.
        method: Name of the method.
        history: Keras' history, with `val_robust_accuracy`.
        cost: `gradients` (evaluations in all, of single images), `seconds` of training and `peak_bytes` of memory.
        report: What was measured.
        out: The folder of the run, or None.
        files: What was written, by name.
    """

    method: str
    history: dict[str, list[float]]
    cost: Mapping[str, float]
    report: Report
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)
