"""What iterative adversarial retraining returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import keras
import pandas as pd

from kerasdef.defenses import RejectClass
from kerasdef.models.export import export
from kerasdef.recipes.classifier import Classifier
from kerasdef.reporting import Report


@dataclass
class IAR(Classifier):
    """A classifier before and after retraining.

    Args:
        model: The retrained classifier: K + 1 logits, the last for "adversarial".
        before: The classifier trained on clean images.
        surrogate: The gray-box attacker's.
        history: Numbers by round: loss, accuracy, `val_robust_accuracy` (the worst attack), rho of each attack.
        fired: The round after which the paper's rule held first, from 1, or None.
        report: What was measured.
        out: The folder of the run, or None.
        files: What was written, by name.
    """

    before: keras.Model
    surrogate: keras.Model
    history: dict[str, list[float]]
    fired: int | None
    report: Report
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def defense(self) -> RejectClass:
        """The classifier as a defense; its last label rejects an image if adversarial ones were trained on with it."""
        return RejectClass(self.model, rejects=self.report.settings["adversarial_label"] == "reject", name="iar")

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write the defense as a SavedModel ("saved_model") or a .keras file ("keras"), and check what was written."""
        return export(self.defense, path, to=to, facts={"run": self.report.settings})

    def table(self) -> pd.DataFrame:
        """Accuracy in percent by attack, white box and gray box, before and after (paper, tables II and III)."""
        attacks = [a for a in self.report.attacks("paper") if not a.startswith("gray_")]
        rows = []
        for box, prefix in (("white box", ""), ("gray box", "gray_")):
            for attack in attacks:
                row = {"attacker": box, "attack": attack}
                for model in ("before", "after"):
                    row[model] = 100 * self.report.metrics(model, prefix + attack)["adversarial_accuracy"]
                    row[f"{model}, not fooled"] = 100 * self.report.metrics(model, prefix + attack)["not_fooled"]
                rows.append(row)
        return pd.DataFrame(rows)
