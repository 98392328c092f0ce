"""What training by the MIA recipe returns: a defense, or one for each attack."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from kerasdef import checks
from kerasdef.reporting import Report


@dataclass
class MIA:
    """A trained defense.

    Args:
        model: One `keras.Model`: images in; `label`, `is_adversarial`, `votes`, `probabilities` out.
        members: The voters: Keras models that give K + 1 logits; the last stands for "adversarial".
        target: The undefended model that the attacks were made on.
        history: Keras history by model and cycle.
        report: What was measured.
        share: Share of adversarial images that the voters were trained at.
        fired: Whether the stop rule fired.
        out: The folder of the run, or None.
        files: What was written, by name.
    """

    model: keras.Model
    members: list[keras.Model]
    target: keras.Model
    history: dict[str, dict[str, list[float]]]
    report: Report
    share: float
    fired: bool
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def reject(self) -> int:
        """The label that stands for "adversarial"."""
        return self.members[0].output_shape[-1] - 1

    def predict(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Labels of shape (n,) for images of shape (n, ...); K stands for "adversarial"."""
        x = checks.images("x", x, shape=self.model.input_shape[1:])
        return self.model.decide(x, batch_size=batch_size).label

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Accuracy over K + 1 classes."""
        return float(np.mean(self.predict(x) == checks.labels("y", y, n=len(x), classes=self.reject + 1)))

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write the defense as a SavedModel ("saved_model") or a .keras file ("keras"), and check what was written."""
        from kerasdef.models.export import export

        return export(self.model, path, to=to, facts={"run": self.report.settings})

    def write(self, out: str | Path | None) -> MIA:
        """Write the report and both exports into a folder, where there is one, and return the result."""
        if out is not None:
            self.out = Path(out)
            self.files = self.report.save(self.out)
            self.files["model"] = self.export(self.out / "mia.keras", to="keras")
            self.files["saved_model"] = self.export(self.out / "saved_model")
        return self


@dataclass
class MIAEach:
    """One defense for each attack, as in the paper's tables 3, 5 and 6.

    Args:
        parts: The defenses by the name of their attack.
        report: All of them in one report: "mia-gma" is the defense against "gma", and so on.
        out: The folder of the run, or None.
        files: What was written, by name: the report of all, and the exports as "gma/model" and "gma/saved_model".
    """

    parts: dict[str, MIA]
    report: Report
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write each defense into a folder of the name of its attack."""
        for name, part in self.parts.items():
            part.export(Path(path) / (name if to == "saved_model" else f"{name}.keras"), to=to)
        return Path(path)

    def write(self, out: str | Path | None) -> MIAEach:
        """Write the report of all defenses, and report and exports of each into a folder of its own within."""
        if out is not None:
            self.out = Path(out)
            self.files = self.report.save(self.out)
            for name, part in self.parts.items():
                part.write(self.out / name)
                self.files |= {f"{name}/{kind}": part.files[kind] for kind in ("model", "saved_model")}
        return self
