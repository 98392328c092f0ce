"""What robust training returns: a classifier and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from kerasdef import checks, models
from kerasdef.evaluation import Report


@dataclass
class Trained:
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

    model: keras.Model
    method: str
    history: dict[str, list[float]]
    cost: Mapping[str, float]
    report: Report
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def predict(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Labels of shape (n,) for images of shape (n, ...)."""
        x = checks.images("x", x, shape=self.model.input_shape[1:])
        return models.predict_logits(self.model, x, batch_size=batch_size).argmax(axis=-1)

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Accuracy on clean images."""
        return float(np.mean(self.predict(x) == checks.labels("y", y, n=len(x))))

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write the classifier as a SavedModel ("saved_model") or a .keras file ("keras"), and check the file."""
        from kerasdef.export import export

        return export(self.model, path, to=to)
