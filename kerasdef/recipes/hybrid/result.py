"""What training by the hybrid recipe returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from kerasdef import checks
from kerasdef.defenses import HybridDefense
from kerasdef.reporting import Report
from kerasdef.runs.places import UNDEFENDED


@dataclass
class Hybrid:
    """A trained hybrid defense.

    Args:
        model: One `HybridDefense`: images in, a decision out.
        members: The classifiers of its ensemble.
        undefended: The network trained on clean images, on which the attacks of the paper's protocol are made.
        history: Keras history by network.
        report: What was measured.
        out: The folder of the run, or None.
        files: What was written, by name.
    """

    model: HybridDefense
    members: list[keras.Model]
    undefended: keras.Model
    history: dict[str, dict[str, list[float]]]
    report: Report
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def predict(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Labels of shape (n,) for images of shape (n, ...); where flagged images are rejected, K says so."""
        x = checks.images("x", x, shape=self.model.input_shape[1:])
        return self.model.decide(x, batch_size=batch_size).label

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Share of clean images that get their true label; one that is rejected does not."""
        return float(np.mean(self.predict(x) == checks.labels("y", y, n=len(x), classes=self.model.classes)))

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write the defense as a SavedModel ("saved_model") or a .keras file ("keras"), and check what was written."""
        from kerasdef.models.export import export

        return export(self.model, path, to=to, facts={"run": self.report.settings})

    def write(self, out: str | Path | None) -> Hybrid:
        """Write the report, the undefended network and both exports into a folder, where there is one."""
        if out is not None:
            from kerasdef.models.export import export

            self.out = Path(out)
            self.files = self.report.save(self.out)
            self.files["model"] = self.export(self.out / "hybrid.keras", to="keras")
            self.files["saved_model"] = self.export(self.out / "saved_model")
            facts = {"run": self.report.settings}
            self.files["undefended"] = export(self.undefended, self.out / UNDEFENDED, to="keras", facts=facts)
        return self
