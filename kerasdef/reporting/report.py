"""The report: every number, table and figure of an evaluation, from the outcomes per image."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from functools import cached_property, reduce
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerasdef import checks
from kerasdef._version import __version__
from kerasdef.evaluation.outcomes import ARRAYS, CLEAN, COLUMNS, POOLED, Outcome, measure, pool, withstood
from kerasdef.evaluation.statistics import mcnemar, wilson
from kerasdef.files import write_whole

SCHEMA = 1
TITLES = {"paper": "as the paper did it", "adaptive": "adaptive"}
MEANINGS = {
    "paper": "attacks as the paper made them: on an undefended model and shown to this one, or as the notes say",
    "adaptive": "the attacker knows the whole defense and attacks it end to end",
}
_CYCLE = re.compile(r"(.+)/cycle(\d+)")
_VOTER = re.compile(r"voter\d*")
_EXAMPLES = ("images", "attacks", "labels", "predicted")


class Report:
    """What was measured, with intervals, in two columns that never mix.

    "paper" holds attacks made on an undefended model and then shown to the defense; "adaptive" holds
    attackers who know the whole defense. Only numbers of the second are called robust accuracy.

    Models without a reject class (the target, plain robust training) have NaN in the detection columns.

    Args:
        outcomes: What each model said of each set of images; one per (model, column, attack).
        classes: Number of real classes K.
        reject: K if the label K stands for adversarial, None if there is no such label.
        rejecting: Names of the models for which that label says so. None: those with an outcome that has scores or
            uses the label.
        class_names: K names; None gives "0" to "K-1".
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
    """

    def __init__(
        self,
        outcomes: Sequence[Outcome],
        *,
        classes: int,
        reject: int | None = None,
        rejecting: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        settings: Mapping | None = None,
        seed: int = 0,
        dataset: str = "",
        phases: Mapping[str, float] | None = None,
        history: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
        costs: Mapping[str, Mapping[str, float]] | None = None,
        examples: Mapping | None = None,
        notes: Sequence[str] = (),
        flags: Sequence[str] = (),
        versions: Mapping[str, str] | None = None,
        machine: Mapping | None = None,
    ):
        self.outcomes = list(outcomes)
        self.classes = checks.positive_int("classes", classes)
        if reject is not None and reject != classes:
            raise ValueError(f"`reject` must be None or classes={classes}. Received: reject={reject!r}")
        self.reject = None if reject is None else int(reject)
        _check_outcomes(self.outcomes, self.classes, self.reject)
        self.rejecting = None if rejecting is None else [checks.one_of("rejecting", m, self.models) for m in rejecting]
        self.class_names = [str(v) for v in (range(classes) if class_names is None else class_names)]
        if len(self.class_names) != self.classes:
            raise ValueError(f"`class_names` must be {classes} names. Received: class_names={self.class_names!r}")
        self.settings = _plain(dict(settings or {}), "settings")
        self.seed = int(seed)
        self.dataset = str(dataset)
        self.phases = {str(k): float(v) for k, v in (phases or {}).items()}
        self.history = _plain({k: dict(v) for k, v in (history or {}).items()}, "history")
        self.costs = _plain({k: dict(v) for k, v in (costs or {}).items()}, "costs")
        self.examples = _check_examples(examples)
        self.notes = [str(v) for v in notes]
        self.flags = [str(v) for v in flags]
        self.versions = _versions() if versions is None else dict(versions)
        self.machine = _machine() if machine is None else _plain(dict(machine), "machine")

    # What was measured

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of the outcomes."""
        return list(dict.fromkeys(o.model for o in self.outcomes))

    @property
    def main(self) -> str:
        """The model the report is about: "mia", or the last one if there is none of this name."""
        return "mia" if "mia" in self.models else self.models[-1]

    @property
    def shown(self) -> list[str]:
        """Models that short tables and figures show: without voters and without cycles before the last."""
        last: dict[str, int] = {}
        for name in self.models:
            if found := _CYCLE.fullmatch(name):
                last[found[1]] = max(last.get(found[1], 0), int(found[2]))
        keep = []
        for name in self.models:
            found = _CYCLE.fullmatch(name)
            if not _VOTER.fullmatch(name) and (not found or int(found[2]) == last[found[1]]):
                keep.append(name)
        return keep

    def attacks(self, column: str, model: str | None = None) -> list[str]:
        """Attacks of a column, of one model or of any, in the order of the outcomes."""
        checks.one_of("column", column, COLUMNS)
        found = (o for o in self.outcomes if o.column == column and model in (None, o.model))
        return list(dict.fromkeys(o.attack for o in found if o.attack != CLEAN))

    def rejects(self, model: str) -> int | None:
        """The label of `model` that stands for adversarial, or None if it has no such label."""
        checks.one_of("model", model, self.models)
        if self.rejecting is not None:
            return self.reject if model in self.rejecting else None
        mine = [o for o in self.outcomes if o.model == model]
        uses = any(o.score is not None or np.any(o.predicted == self.reject) for o in mine)
        return self.reject if uses else None

    def clean(self, model: str, column: str = "paper") -> Outcome | None:
        """The outcome of `model` on clean images, of that column or else of the other; or None."""
        columns = sorted(COLUMNS, key=lambda c: c != column)
        return next(
            (o for c in columns for o in self.outcomes if (o.model, o.column, o.attack) == (model, c, CLEAN)),
            None,
        )

    def outcome(self, model: str, attack: str, column: str = "paper") -> Outcome:
        """The outcome of `model` under `attack`; "pooled" joins all attacks of the column, "clean" is none.

        Raises:
            ValueError: if there is none.
        """
        checks.one_of("model", model, self.models)
        if attack == CLEAN and (found := self.clean(model, column)) is not None:
            return found
        names = self.attacks(column, model)
        checks.one_of("attack", attack, [*names, POOLED] if names else [])
        mine = [o for o in self.outcomes if (o.model, o.column) == (model, column) and o.attack != CLEAN]
        return pool(mine) if attack == POOLED else next(o for o in mine if o.attack == attack)

    # Numbers

    def metrics(self, model: str, attack: str, column: str = "paper") -> dict[str, float]:
        """Every number of one row of `frame()`; `kerasdef.evaluation.outcomes.measure` says what each is."""
        found = self.outcome(model, attack, column)
        attacked = None if attack == CLEAN else found
        return measure(self.clean(model, column), attacked, self.rejects(model), column)

    def frame(self) -> pd.DataFrame:
        """One row per (column, model, attack), with "clean" and "pooled" (all attacks of the column)."""
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        rows = []
        for column in COLUMNS:
            for model in self.models:
                has_clean = any((o.model, o.column, o.attack) == (model, column, CLEAN) for o in self.outcomes)
                names = self.attacks(column, model)
                for attack in [CLEAN] * has_clean + names + [POOLED] * bool(names):
                    head = {"column": column, "model": model, "attack": attack}
                    rows.append(head | self.metrics(model, attack, column))
        return pd.DataFrame(rows)

    def _row(self, model: str, attack: str, column: str) -> dict[str, float]:
        frame = self._frame
        found = frame[(frame.model == model) & (frame.attack == attack) & (frame.column == column)]
        return found.iloc[0].to_dict() if len(found) else self.metrics(model, attack, column)

    def mean_detection_accuracy(self, model: str, column: str = "paper") -> float:
        """Mean detection accuracy over the attacks of a column; NaN without a reject class or attacks."""
        checks.one_of("model", model, self.models)
        values = [self._row(model, attack, column)["detection_accuracy"] for attack in self.attacks(column, model)]
        return float(np.mean(values)) if values else math.nan

    def by_radius(self, attack: str, column: str = "paper") -> pd.DataFrame:
        """One row per model and radius of an attack with several.

        Columns: model, radius, n, detected, adversarial_accuracy, withstood, withstood_low, withstood_high
            and
        robust_accuracy (NaN in the paper column). Empty if no outcome of this attack has radii.
        """
        checks.one_of("attack", attack, self.attacks(column))
        names = ["n", "detected", "adversarial_accuracy", "withstood", "withstood_low", "withstood_high"]
        names.append("robust_accuracy")
        rows = []
        for o in self.outcomes:
            if (o.column, o.attack) != (column, attack) or o.radius is None:
                continue
            radii = np.round(o.radius.astype("float64"), 6)
            for value in np.unique(radii):
                row = measure(None, _take(o, radii == value), self.rejects(o.model), column)
                rows.append({"model": o.model, "radius": float(value)} | {name: row[name] for name in names})
        return pd.DataFrame(rows, columns=["model", "radius", *names])

    def by_class(self, model: str, column: str = "adaptive") -> pd.DataFrame:
        """One row per class: images, and the share withstood of clean images and under each attack of a column."""
        checks.one_of("model", model, self.models)
        found = {CLEAN: self.clean(model, column)} if self.clean(model, column) else {}
        found |= {name: self.outcome(model, name, column) for name in self.attacks(column, model)}
        if not found:
            raise ValueError(f"`column` must have outcomes of the model {model!r}. Received: column={column!r}")
        first = next(iter(found.values()))
        rows = []
        for label, name in enumerate(self.class_names):
            row = {"class": name, "n": int(np.sum(first.y == label))}
            for attack, o in found.items():
                good = o.predicted == o.y if attack == CLEAN else withstood(o, self.rejects(model))
                row[attack] = float(np.mean(good[o.y == label])) if row["n"] else math.nan
            rows.append(row)
        return pd.DataFrame(rows)

    def worst_case(self, model: str, column: str = "adaptive") -> dict[str, float]:
        """Share of images that no attack of the column broke.

        Only images that every attack of the column saw count, each once. An image is broken if any attack, at
        any radius, got a label that is neither its true class nor K. Read it with the clean accuracy: a model
        that rejects everything is never broken.

        Returns:
            `n` images, `attacks` (how many), `withstood` with `withstood_low` and `withstood_high` (Wilson,
            95 %) and `robust_accuracy`, the same share, NaN in the paper column.
        """
        checks.one_of("model", model, self.models)
        names = self.attacks(column, model)
        if not names:
            raise ValueError(f"`column` must have attacks on the model {model!r}. Received: column={column!r}")
        found = [self.outcome(model, name, column) for name in names]
        images = reduce(np.intersect1d, [np.unique(o.index) for o in found])
        broken = np.concatenate([o.index[~withstood(o, self.rejects(model))] for o in found])
        n, good = len(images), int(np.sum(~np.isin(images, broken)))
        low, high = wilson(good, n)
        share = good / n if n else math.nan
        result = {
            "n": n,
            "attacks": len(names),
            "withstood": share,
            "withstood_low": low,
            "withstood_high": high,
        }
        return result | {"robust_accuracy": share if column == "adaptive" else math.nan}

    def compare(
        self, other: str, model: str | None = None, attack: str = POOLED, column: str = "paper"
    ) -> dict[str, float]:
        """Exact McNemar test of two models on the images they have in common.

        A model is right on a clean image it labels with the true class, and on an attacked one that it labels
        with the true class or as adversarial. Images are paired by attack, index and radius. Several attacks
        or radii of one image are not independent, so a p-value over them is too small: name one attack.

        Args:
            other: Name of a model in this report.
            model: Another; None: the one that the report is about.
            attack: Name of an attack; "pooled" takes all of the column.
            column: "paper" or "adaptive".

        Returns:
            `n`, `a_only` (only `model` right), `b_only` (only `other` right), `p_value` and `difference`, the
            share right of `model` minus that of `other`.
        """
        model = self.main if model is None else model
        a, b = (self._right(name, attack, column) for name in (model, other))
        keys = ["attack", "index"] + ["radius"] * ("radius" in a and "radius" in b)
        for name, rows in ((model, a), (other, b)):
            if rows.duplicated(keys).any():
                raise ValueError(
                    f"`index` must name each image once per attack and radius. Received: twice for {name!r}"
                )
        both = a.merge(b, on=keys, suffixes=("", "_other"))
        if len(both) == 0 or (both.y != both.y_other).any():
            found = "none" if len(both) == 0 else "different true classes for one index"
            raise ValueError(f"`{model}` and `{other}` must have images in common. Received: {found}")
        return mcnemar(both.right.to_numpy(), both.right_other.to_numpy())

    def _right(self, model: str, attack: str, column: str) -> pd.DataFrame:
        checks.one_of("model", model, self.models)
        names = self.attacks(column, model) if attack == POOLED else [attack]
        found = [(name, self.outcome(model, name, column)) for name in names]
        if not found:
            raise ValueError(f"`column` must have attacks on the model {model!r}. Received: column={column!r}")
        parts = []
        for name, o in found:
            right = o.predicted == o.y if name == CLEAN else withstood(o, self.rejects(model))
            part = pd.DataFrame({"attack": name, "index": o.index, "y": o.y, "right": right})
            parts.append(part if o.radius is None else part.assign(radius=o.radius))
        rows = pd.concat(parts, ignore_index=True)
        return rows.fillna({"radius": -1.0}) if "radius" in rows else rows

    def comparisons(self) -> pd.DataFrame:
        """McNemar tests of the main model against the others shown, per attack; p-values uncorrected."""
        rows = []
        for column in COLUMNS:
            for attack in [CLEAN] * (column == "paper") + self.attacks(column):
                for other in self.shown:
                    names = {self.main: self.attacks(column, self.main), other: self.attacks(column, other)}
                    has = all(attack in names[m] or (attack == CLEAN and self.clean(m)) for m in names)
                    if other != self.main and has:
                        head = {"column": column, "attack": attack, "model": self.main, "other": other}
                        rows.append(head | self.compare(other, self.main, attack, column))
        names = ["column", "attack", "model", "other", "n", "a_only", "b_only", "p_value", "difference"]
        return pd.DataFrame(rows, columns=names)

    def results(self) -> dict:
        """What must be the same in two runs of one seed: no times, no versions, no machine.

        Floats are rounded to 6 significant digits; labels per image enter through a digest.
        """
        return _rounded(self._record() | {"labels": {_key(o): _digest(o) for o in self.outcomes}})

    def _record(self) -> dict:
        """Everything about the run and its results as JSON values, at full precision."""
        per_radius = {c: {a: _records(self.by_radius(a, c)) for a in self.attacks(c)} for c in COLUMNS}
        worst = {c: {m: self.worst_case(m, c) for m in self.models if self.attacks(c, m)} for c in COLUMNS}
        record = {
            "dataset": self.dataset,
            "seed": self.seed,
            "classes": self.classes,
            "reject": self.reject,
            "rejecting": self.rejecting,
            "class_names": self.class_names,
            "settings": self.settings,
            "metrics": _records(self._frame),
            "mean_detection_accuracy": {
                c: {m: self.mean_detection_accuracy(m, c) for m in self.models if self.attacks(c, m)} for c in COLUMNS
            },
            "by_radius": {c: {a: rows for a, rows in per_radius[c].items() if rows} for c in COLUMNS},
            "worst_case": worst,
            "comparisons": _records(self.comparisons()),
            "history": self.history,
            "notes": self.notes,
            "flags": self.flags,
        }
        return _plain(record, "results")

    def __eq__(self, other) -> bool:
        """Same outcomes per image, settings and numbers; times, versions and machine may differ."""
        if not isinstance(other, Report):
            return NotImplemented
        return self.outcomes == other.outcomes and self.results() == other.results()

    __hash__ = None

    def __repr__(self) -> str:
        return f"Report({self.dataset!r}, models={self.models}, outcomes={len(self.outcomes)}, seed={self.seed})"

    # For readers

    def table(self, models: Sequence[str] | None = None, width: int = 110) -> str:
        """The report in short, as plain text for a terminal.

        Args:
            models: Models to show; None takes `shown`.
            width: Characters per line.
        """
        models = self.shown if models is None else [checks.one_of("models", m, self.models) for m in models]
        parts = [self._headline(), *self._paper_tables(models), self._adaptive_table(models), self._cost_table()]
        console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, emoji=False)
        about = [f"{self.dataset or 'data'}: {self.classes} classes, seed {self.seed}. Shares in %, [95 % Wilson]."]
        for part in [*about, *[p for p in parts if p is not None], *[f"Flag: {f}" for f in self.flags]]:
            console.print(Text(part) if isinstance(part, str) else part)
        return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines()) + "\n"

    def side_by_side(self) -> list[tuple[str, str, str]]:
        """Rows (what, in the paper column, in the adaptive column) about the main model, as text."""
        main, cells = self.main, {}
        for column in COLUMNS:
            if not self.attacks(column, main):
                cells[column] = ["not measured"] + ["-"] * 7
                continue
            row, worst = self._row(main, POOLED, column), self.worst_case(main, column)
            cells[column] = [
                ", ".join(self.attacks(column, main)),
                f"{row['n_clean']} / {row['n']}",
                percent(row, "clean_accuracy", "clean"),
                percent(row, "detected"),
                percent(row, "adversarial_accuracy"),
                percent(row, "attack_success"),
                percent(row, "detection_accuracy", "detection"),
                percent(worst, "withstood", "withstood"),
            ]
        names = [
            "attacks",
            "clean / attacked images",
            "clean images labeled right",
            "attacked: labeled adversarial",
            "attacked: labeled true class",
            "attacked: fooled (neither)",
            "adversarial or not, right",
            "images no attack fooled",
        ]
        rows = list(zip(names, cells["paper"], cells["adaptive"], strict=True))
        return (
            rows
            if self.reject is not None
            else [r for r in rows if not r[0].startswith(("adversarial or", "attacked: labeled adv"))]
        )

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that short tables show: both, or the adaptive one where no model has anything in the other."""
        return COLUMNS if any(o.column == "paper" for o in self.outcomes) else ("adaptive",)

    def _headline(self) -> Table:
        shown = self.columns
        title = f"{self.main}: two columns that never mix" if len(shown) > 1 else self.main
        table = _table(title, "", *[TITLES[c] for c in shown])
        table.add_row(*_texts("", *[MEANINGS[c] for c in shown]), end_section=True)
        for name, *cells in self.side_by_side():
            table.add_row(*_texts(name, *[cells[COLUMNS.index(c)] for c in shown]))
        return table

    def _paper_tables(self, models: Sequence[str]) -> list[Table]:
        attacks, tables = self.attacks("paper"), []
        plain = [m for m in models if self.rejects(m) is None and self.attacks("paper", m)]
        if plain:
            table = _table(f"Accuracy on attacked images ({TITLES['paper']})", "model", "clean", *attacks)
            for model in plain:
                clean = percent(self._row(model, POOLED, "paper"), "clean_accuracy", "clean")
                cells = [self._cell(model, a, "paper", "adversarial_accuracy") for a in attacks]
                table.add_row(*_texts(model, clean, *cells))
            tables.append(table)
        judged = [m for m in models if self.rejects(m) is not None and self.attacks("paper", m)]
        if judged:
            title = f"Detection accuracy ({TITLES['paper']}); the last four over all attacks"
            table = _table(
                title,
                "model",
                "clean",
                *attacks,
                "mean",
                f"{self.classes + 1}-class",
                "F1",
                "AUROC",
                "TPR@1%",
            )
            for model in judged:
                row = self._row(model, POOLED, "paper")
                cells = [self._cell(model, a, "paper", "detection_accuracy") for a in attacks]
                rest = [percent(row, k) for k in ("accuracy", "macro_f1", "auroc", "tpr_at_1_fpr")]
                mean = _percent(self.mean_detection_accuracy(model))
                table.add_row(*_texts(model, percent(row, "clean_accuracy"), *cells, mean, *rest))
            tables.append(table)
        return tables

    def _adaptive_table(self, models: Sequence[str]) -> Table | None:
        models = [m for m in models if self.attacks("adaptive", m)]
        if not models:
            return None
        heads = ("model", "attack", "n", "clean", "true class", "adversarial", "fooled", "robust accuracy")
        table = _table(f"Adaptive: {MEANINGS['adaptive']}", *heads)
        for model in models:
            for attack in self.attacks("adaptive", model):
                row = self._row(model, attack, "adaptive")
                names = ("clean_accuracy", "adversarial_accuracy", "detected", "attack_success")
                cells = [percent(row, name) for name in names]
                table.add_row(*_texts(model, attack, str(row["n"]), *cells, percent(row, "robust_accuracy", "robust")))
            if len(self.attacks("adaptive", model)) > 1:
                worst = self.worst_case(model, "adaptive")
                share = percent(worst, "robust_accuracy", "withstood")
                table.add_row(
                    *_texts(
                        model,
                        "any of them",
                        str(worst["n"]),
                        "",
                        "",
                        "",
                        _percent(1 - worst["withstood"]),
                        share,
                    )
                )
        return table

    def _cost_table(self) -> Table | None:
        if not self.costs:
            return None
        table = _table("Cost of training", "model", "gradients of images", "seconds", "peak memory, MiB")
        for model, cost in self.costs.items():
            numbers = f"{cost['gradients']:,.0f}", f"{cost['seconds']:,.0f}", f"{cost['peak_bytes'] / 2**20:,.0f}"
            table.add_row(*_texts(model, *numbers))
        return table

    def _cell(self, model: str, attack: str, column: str, name: str) -> str:
        return percent(self._row(model, attack, column), name) if attack in self.attacks(column, model) else "-"

    # On disk

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write the report: `report.json`, `report.csv`, `report.html`, `outcomes.npz` and `figures/*.png`.

        Each file is written whole or not at all, `report.json` last.

        Args:
            folder: Where to; made if it does not exist.

        Returns:
            The path of each file by its name; figures by "figures/NAME".
        """
        from kerasdef.reporting import figures as plots

        folder = Path(folder)
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        drawn = {name: (caption, _png(figure)) for name, (figure, caption) in plots.draw_all(self).items()}
        arrays = self._npz()
        contents = {f"figures/{name}.png": data for name, (_, data) in drawn.items()}
        contents["outcomes.npz"] = arrays
        contents["report.csv"] = self._frame.to_csv(index=False, lineterminator="\n").encode()
        contents["report.html"] = self.html(drawn).encode()
        contents["report.json"] = self._json(hashlib.sha256(arrays).hexdigest()).encode()
        for stale in plots.NAMES - drawn.keys():  # of an earlier report in this folder
            (folder / "figures" / f"{stale}.png").unlink(missing_ok=True)
        return {
            n: write_whole(folder / n, lambda part, data=data: part.write_bytes(data)) for n, data in contents.items()
        }

    def html(self, figures: Mapping[str, tuple[str, bytes]] | None = None) -> str:
        """The report as one HTML page that needs no network and no script.

        Args:
            figures: `(caption, PNG bytes)` by name; None draws them.
        """
        if figures is None:
            from kerasdef.reporting import figures as plots

            figures = {name: (caption, _png(figure)) for name, (figure, caption) in plots.draw_all(self).items()}
        uris = [(n, c, "data:image/png;base64," + base64.b64encode(png).decode()) for n, (c, png) in figures.items()]
        loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        page = jinja2.Environment(autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True)
        page.filters.update(percent=_percent, seconds=_seconds, pretty=lambda v: json.dumps(v, ensure_ascii=False))
        page.tests["known"] = lambda v: v is not None and not (isinstance(v, float) and math.isnan(v))
        frame = self._frame.to_dict("records")
        return page.get_template("report.html").render(
            report=self,
            figures=uris,
            rows={c: [r for r in frame if r["column"] == c and self._tells(r)] for c in COLUMNS},
            titles=TITLES,
            meanings=MEANINGS,
            cell=percent,
            radii={
                c: {a: t.to_dict("records") for a in self.attacks(c) if len(t := self.by_radius(a, c))} for c in COLUMNS
            },
            comparisons=self.comparisons().to_dict("records"),
            classes={
                c: (self.main, self.by_class(self.main, c).to_dict("records"))
                for c in COLUMNS
                if self.attacks(c, self.main)
            },
            total=sum(self.phases.values()),
        )

    def _tells(self, row: Mapping) -> bool:
        """Whether a row of the frame adds something: the clean one does not where there are attacks."""
        return row["attack"] != CLEAN or not self.attacks(row["column"], row["model"])

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read what `save` wrote.

        Raises:
            ValueError: if there is no report, its schema is another, or its files are not of one report.
        """
        folder = Path(folder)
        if not (folder / "report.json").is_file():
            raise ValueError(f"`folder` must hold a report.json. Received: folder={str(folder)!r}")
        record = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        if record.get("schema") != SCHEMA:
            raise ValueError(f"`schema` must be {SCHEMA} in report.json. Received: schema={record.get('schema')!r}")
        data = (folder / record["outcomes"]["file"]).read_bytes()
        if hashlib.sha256(data).hexdigest() != record["outcomes"]["sha256"]:
            raise ValueError("`folder` must hold the outcomes.npz that belongs to report.json. Received: another one")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        outcomes = []
        for i, head in enumerate(record["outcomes"]["list"]):
            values = {name: found.get(f"{i}/{name}") for name in ARRAYS}
            outcomes.append(Outcome(head["model"], head["column"], head["attack"], **values))
        names = (
            "classes",
            "reject",
            "class_names",
            "settings",
            "seed",
            "dataset",
            "history",
            "notes",
            "flags",
            "costs",
            "rejecting",
        )
        kept = {name: record[name] for name in (*names, "phases", "versions", "machine")}
        return cls(outcomes, examples=_unflat(found, record["examples"]), **kept)

    def _npz(self) -> bytes:
        arrays = {
            f"{i}/{n}": v for i, o in enumerate(self.outcomes) for n in ARRAYS if (v := getattr(o, n)) is not None
        }
        if self.examples:
            for i, name in enumerate(self.examples["attacks"]):
                arrays[f"examples/attacks/{i}"] = self.examples["attacks"][name]
            for i, name in enumerate(self.examples["predicted"]):
                arrays[f"examples/predicted/{i}"] = self.examples["predicted"][name]
            arrays |= {f"examples/{name}": self.examples[name] for name in ("images", "labels")}
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        return buffer.getvalue()

    def _json(self, digest: str) -> str:
        heads = [{"model": o.model, "column": o.column, "attack": o.attack, "n": len(o)} for o in self.outcomes]
        names = {part: list(self.examples[part]) for part in ("attacks", "predicted")} if self.examples else None
        record = {"schema": SCHEMA} | self._record()
        record["outcomes"] = {"file": "outcomes.npz", "sha256": digest, "list": heads}
        record |= {
            "examples": names,
            "phases": self.phases,
            "costs": self.costs,
            "versions": self.versions,
            "machine": self.machine,
        }
        return json.dumps(_plain(record, "report"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def percent(row: Mapping[str, float], name: str, interval: str | None = None) -> str:
    """`row[name]` in percent, and the interval whose ends begin with `interval` if that is named."""
    text = _percent(row[name])
    if interval is None or text == "-":
        return text
    return f"{text} [{_percent(row[interval + '_low'])}, {_percent(row[interval + '_high'])}]"


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def _table(title: str, *heads: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if i == 0 else "right", overflow="fold")
    return table


def _texts(*cells: str) -> list[Text]:
    return [Text(cell) for cell in cells]  # Text: brackets are not markup


def _check_outcomes(outcomes: list[Outcome], classes: int, reject: int | None) -> None:
    if not outcomes:
        raise ValueError("`outcomes` must be a non-empty list of Outcome. Received: outcomes=[]")
    seen = set()
    for o in outcomes:
        if not isinstance(o, Outcome):
            raise ValueError(f"`outcomes` must be a non-empty list of Outcome. Received: an item of {type(o).__name__}")
        if _key(o) in seen:
            raise ValueError(f"`outcomes` must hold each model, column and attack once. Received: {_key(o)!r} twice")
        if o.attack == POOLED:
            raise ValueError(f"`attack` must be another name, {POOLED!r} is the sum. Received: attack={o.attack!r}")
        seen.add(_key(o))
        checks.labels("y", o.y, classes=classes)
        checks.labels("predicted", o.predicted, classes=classes + (reject is not None))


def _check_examples(examples: Mapping | None) -> dict:
    if not examples:
        return {}
    if set(examples) != set(_EXAMPLES):
        raise ValueError(f"`examples` must have {', '.join(_EXAMPLES)}. Received: {', '.join(map(str, examples))}")
    images = np.asarray(examples["images"], dtype="float32")
    attacks = {str(k): np.asarray(v, dtype="float32") for k, v in examples["attacks"].items()}
    for name, x in attacks.items():
        if x.shape != images.shape:
            raise ValueError(f"`examples` must be of shape {images.shape}. Received: {name} of shape {x.shape}")
    labels = checks.labels("examples", examples["labels"], n=len(images))
    predicted = {str(k): checks.labels("examples", v, n=len(images)) for k, v in examples["predicted"].items()}
    return {"images": images, "attacks": attacks, "labels": labels, "predicted": predicted}


def _unflat(arrays: Mapping[str, np.ndarray], names: Mapping | None) -> dict:
    """The examples of `_npz` in their first shape."""
    if not names:
        return {}
    parts = {part: {n: arrays[f"examples/{part}/{i}"] for i, n in enumerate(names[part])} for part in names}
    return parts | {name: arrays[f"examples/{name}"] for name in ("images", "labels")}


def _take(outcome: Outcome, rows: np.ndarray) -> Outcome:
    values = {name: getattr(outcome, name) for name in ARRAYS}
    values = {name: None if v is None else v[rows] for name, v in values.items()}
    return Outcome(outcome.model, outcome.column, outcome.attack, **values)


def _key(o: Outcome) -> str:
    return f"{o.column}: {o.model}: {o.attack}"


def _digest(o: Outcome) -> str:
    joined = np.stack([o.index, o.y, o.predicted]).astype("<i8")
    return hashlib.sha256(joined.tobytes()).hexdigest()[:16]


def _records(frame: pd.DataFrame) -> list[dict]:
    return frame.to_dict("records")


def _plain(value, name: str):
    """`value` as JSON values: no numpy, no tuples, None for NaN and infinity."""
    if hasattr(value, "__dataclass_fields__"):
        value = {"name": type(value).__name__} | {f: getattr(value, f) for f in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(k): _plain(v, name) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v, name) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"`{name}` must hold numbers, strings, lists and dicts. Received: {type(value).__name__}")


def _rounded(value):
    if isinstance(value, dict):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _versions() -> dict[str, str]:
    found = {"kerasdef": __version__, "python": platform.python_version()}
    for name in ("keras", "tensorflow", "jax", "numpy", "scipy", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def _machine() -> dict:
    return {"system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count()}


def _png(figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
