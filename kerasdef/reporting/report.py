"""The report: the numbers of an evaluation, its tables, its page, and the folder that it is kept in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from kerasdef.reporting import figures as plots
from kerasdef.reporting import html, storage, tables
from kerasdef.reporting.results import Results
from kerasdef.reporting.sections import png


class Report(Results):
    """What was measured, with intervals, in two columns that never mix.

    "paper" holds attacks as a paper made them, mostly on an undefended model and then shown to the defense;
    "adaptive" holds attacks on the very model. Only numbers of the second are called robust accuracy.

    Models without a reject class have NaN in the detection columns.

    Args:
        outcomes: What each model said of each set of images; one per (model, column, attack).
        classes: Number of real classes K.
        main: Name of the model that the report is about; None takes that of the last outcome.
        hidden: Names of models that short tables and figures leave out.
        sections: What only this kind of run has to show.
        reject: K if the label K stands for adversarial, None if there is no such label.
        rejecting: Names of the models for which that label says so. None: those with an outcome that has scores or
            uses the label.
        class_names: K names; None gives "0" to "K-1".
        bounds: Range of an input value, (low, high): example images are shown in it.
        settings: Everything needed to run it again: JSON values (numbers, strings, lists, dicts,
            dataclasses).
        seed: Seed of the run.
        dataset: Name of the data set.
        phases: Wall time in seconds of each phase. Kept apart from the results.
        history: Keras history (loss, accuracy, val_loss, val_accuracy) by model or cycle name.
        costs: What training cost, by model: `gradients` (evaluations of single images), `seconds`, `peak_bytes`.
        examples: `images` (m, h, w, c) clean, `attacks` {name: (m, h, w, c)}, `labels` (m,) and `predicted`
            {name: (m,)} by the target; or empty.
        notes: What a reader should know.
        flags: Signs that the evaluation is weak.
        versions: Versions of what was used; None asks the installed packages, without importing them.
        machine: The machine; None gathers system, processor type and number of CPUs.

    Raises:
        ValueError: without outcomes, for one given twice, for labels out of range, or for settings that are
            not JSON values.

    Example:
    >>> report = Report(outcomes, classes=10, main="voting", hidden=["voter1", "voter2"])
    >>> print(report.table())
    >>> report.save("runs/voting")
    """

    def table(self, models: Sequence[str] | None = None, width: int = 110) -> str:
        """The report in short, as plain text for a terminal.

        Args:
            models: Models to show; None takes `shown`.
            width: Characters per line.
        """
        return tables.text(self, models, width)

    def side_by_side(self) -> list[tuple[str, str, str]]:
        """Rows (what, in the paper column, in the adaptive column) about the main model, as text."""
        return tables.side_by_side(self)

    def html(self, figures: Mapping[str, tuple[str, bytes]] | None = None) -> str:
        """The report as one HTML page that needs no network and no script.

        Args:
            figures: `(caption, PNG bytes)` by name; None draws them.
        """
        return html.page(self, self._drawn() if figures is None else figures)

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write the report: `report.json`, `report.csv`, `report.html`, `outcomes.npz` and `figures/*.png`.

        Each file is written whole or not at all, `report.json` last.

        Args:
            folder: Where to: nothing, an empty folder, or that of an earlier report of the same run.

        Returns:
            The path of each file by its name; figures by "figures/NAME".

        Raises:
            ValueError: The folder holds something else.
        """
        return storage.write(self, Path(folder), self._drawn())

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read what `save` wrote.

        Raises:
            ValueError: if there is no report, its schema is another, or its files are not of one report.
        """
        return cls(**storage.read(Path(folder)))

    def _drawn(self) -> dict[str, tuple[str, bytes]]:
        return {name: (caption, png(figure)) for name, (figure, caption) in plots.draw_all(self).items()}
