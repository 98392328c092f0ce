"""What training a classifier returns, whatever the method: it predicts, scores and exports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from kerasdef import checks, models


@dataclass
class Classifier:
    """A trained classifier.

    Args:
        model: A Keras classifier.

    Subclasses have a `report`, whose settings an export notes.
    """

    model: keras.Model

    def predict(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Labels of shape (n,) for images of shape (n, ...)."""
        x = checks.images("x", x, shape=self.model.input_shape[1:])
        return models.predict_logits(self.model, x, batch_size=batch_size).argmax(axis=-1)

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Accuracy on clean images."""
        return float(np.mean(self.predict(x) == checks.labels("y", y, n=len(x))))

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write the classifier as a SavedModel ("saved_model") or a .keras file ("keras"), and check the file."""
        from kerasdef.models.export import export

        return export(self.model, path, to=to, facts={"run": self.report.settings})
