"""What iterative adversarial retraining returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from kerasdef import checks, models
from kerasdef.evaluation import Report


@dataclass
class IAR:
    """A classifier before and after retraining.

    Args:
        model: The retrained classifier: K + 1 logits, the last for "adversarial".
        before: The classifier trained on clean images.
        surrogate: The gray-box attacker's.
        history: By round: loss, accuracy, `val_robust_accuracy` (the worst attack), rho of each attack.
        fired: The round after which the paper's rule held first, from 1, or None.
        report: What was measured.
        out: The folder of the run, or None.
        files: What was written, by name.
    """

    model: keras.Model
    before: keras.Model
    surrogate: keras.Model
    history: dict[str, list[float]]
    fired: int | None
    report: Report
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """Accuracy in percent by attack, white box and gray box, before and after (paper, tables II and III)."""
        attacks = [a for a in self.report.attacks("paper") if not a.startswith("gray_")]
        rows = []
        for box, prefix in (("white box", ""), ("gray box", "gray_")):
            for attack in attacks:
                row = {"attacker": box, "attack": attack}
                for model in ("before", "after"):
                    row[model] = 100 * self.report.metrics(model, prefix + attack)["adversarial_accuracy"]
                    row[f"{model}, not fooled"] = 100 * self.report.metrics(model, prefix + attack)["withstood"]
                rows.append(row)
        return pd.DataFrame(rows)

    def predict(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Labels of shape (n,) for images of shape (n, ...); K stands for "adversarial"."""
        x = checks.images("x", x, shape=self.model.input_shape[1:])
        return models.predict_logits(self.model, x, batch_size=batch_size).argmax(axis=-1)

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Accuracy over K + 1 classes."""
        return float(np.mean(self.predict(x) == checks.labels("y", y, n=len(x))))

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write the classifier as a SavedModel ("saved_model") or a .keras file ("keras"), and check the file."""
        from kerasdef.export import export

        return export(self.model, path, to=to)
