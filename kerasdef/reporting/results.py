"""The data and the numbers of a report: everything about an evaluation but how it is shown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import pandas as pd

from kerasdef import checks
from kerasdef.annotations import checked
from kerasdef.evaluation.measures import measure
from kerasdef.evaluation.outcomes import CLEAN, COLUMNS, POOLED, Outcome, fooled, pool, take
from kerasdef.reporting import compare as pairs
from kerasdef.reporting.sections import Section
from kerasdef.reporting.values import check_examples, check_outcomes, digest, key, plain, rounded
from kerasdef.reporting.values import machine as this_machine
from kerasdef.reporting.values import versions as installed


class Results:
    """What was measured, and every number made of it; arguments as those of `kerasdef.Report`."""

    @checked
    def __init__(
        self,
        outcomes: Sequence[Outcome],
        *,
        classes: int,
        main: str | None = None,
        hidden: Sequence[str] = (),
        sections: Sequence[Section] = (),
        bounds: tuple[float, float] = (0.0, 1.0),
        reject: int | None = None,
        rejecting: Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        settings: Mapping | None = None,
        seed: int = 0,
        dataset: str = "",
        phases: Mapping[str, float] | None = None,
        history: Mapping[str, Mapping[str, Sequence]] | None = None,
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
        check_outcomes(self.outcomes, self.classes, self.reject)
        self.rejecting = None if rejecting is None else [checks.one_of("rejecting", m, self.models) for m in rejecting]
        self.class_names = [str(v) for v in (range(classes) if class_names is None else class_names)]
        if len(self.class_names) != self.classes:
            raise ValueError(f"`class_names` must be {classes} names. Received: class_names={self.class_names!r}")
        self.settings = plain(dict(settings or {}), "settings")
        self.seed = int(seed)
        self.dataset = str(dataset)
        self.phases = {str(k): float(v) for k, v in (phases or {}).items()}
        self.history = plain({k: dict(v) for k, v in (history or {}).items()}, "history")
        self.costs = plain({k: dict(v) for k, v in (costs or {}).items()}, "costs")
        self.examples = check_examples(examples)
        self.notes = [str(v) for v in notes]
        self.flags = list(dict.fromkeys(str(v) for v in flags))
        self.bounds = checks.bounds(bounds)
        self.main = self.models[-1] if main is None else checks.one_of("main", main, self.models)
        self.hidden = [checks.one_of("hidden", m, self.models) for m in hidden]
        if self.main in self.hidden:
            raise ValueError(f"`hidden` must not hold the main model. Received: hidden={self.hidden!r}")
        self.sections = list(sections)
        names = [section.name for section in self.sections]
        if len(set(names)) < len(names):
            raise ValueError(f"`sections` must have different names. Received: {names!r}")
        self.versions = installed() if versions is None else dict(versions)
        self.machine = this_machine() if machine is None else plain(dict(machine), "machine")

    # What was measured

    @property
    def models(self) -> list[str]:
        """Names of the models, in the order of the outcomes."""
        return list(dict.fromkeys(o.model for o in self.outcomes))

    @property
    def shown(self) -> list[str]:
        """Models that short tables and figures show."""
        return [name for name in self.models if name not in self.hidden]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that short tables show: both, or the adaptive one where no model has anything in the other."""
        return COLUMNS if any(o.column == "paper" for o in self.outcomes) else ("adaptive",)

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
        """Every number of one row of `frame()`; `kerasdef.evaluation.measure` says what each is."""
        found = self.outcome(model, attack, column)
        attacked = [] if attack == CLEAN else [found]
        if attack == POOLED:
            attacked = [self.outcome(model, name, column) for name in self.attacks(column, model)]
        return measure(self.clean(model, column), attacked, self.rejects(model), column)

    def frame(self) -> pd.DataFrame:
        """One row per (column, model, attack), with "clean" and "pooled" (all attacks of the column together)."""
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

    def row(self, model: str, attack: str, column: str) -> dict[str, float]:
        """`metrics` of a row of the frame, which are at hand, or of any other."""
        frame = self._frame
        found = frame[(frame.model == model) & (frame.attack == attack) & (frame.column == column)]
        return found.iloc[0].to_dict() if len(found) else self.metrics(model, attack, column)

    def mean_detection_accuracy(self, model: str, column: str = "paper") -> float:
        """Mean detection accuracy over the attacks of a column; NaN without a reject class or attacks."""
        checks.one_of("model", model, self.models)
        values = [self.row(model, attack, column)["detection_accuracy"] for attack in self.attacks(column, model)]
        return float(np.mean(values)) if values else math.nan

    def by_radius(self, attack: str, column: str = "paper") -> pd.DataFrame:
        """One row per model and radius of an attack with several radii; empty for any other.

        Columns: model, radius, norm, n, detected, adversarial_accuracy, not_fooled and robust_accuracy, each of the
        last two with its interval. Robust accuracy is NaN in the paper column.
        """
        checks.one_of("attack", attack, self.attacks(column))
        if (attack, column) not in self._radii:
            self._radii[attack, column] = self._by_radius(attack, column)
        return self._radii[attack, column].copy()

    @cached_property
    def _radii(self) -> dict[tuple[str, str], pd.DataFrame]:
        """Tables of `by_radius`, which the page, the files and the figures share."""
        return {}

    def _by_radius(self, attack: str, column: str) -> pd.DataFrame:
        names = ["norm", "n", "detected", "adversarial_accuracy"]
        for name in ("not_fooled", "robust_accuracy"):
            names += [name, f"{name}_low", f"{name}_high"]
        mine = [o for o in self.outcomes if (o.column, o.attack) == (column, attack) and o.radius is not None]
        radii = [np.round(o.radius.astype("float64"), 6) for o in mine]
        rows = []
        for o, radius in zip(mine, radii, strict=True):
            if len(np.unique(np.concatenate(radii))) == 1:
                break
            for value in np.unique(radius):
                row = measure(self.clean(o.model, column), [take(o, radius == value)], self.rejects(o.model), column)
                rows.append({"model": o.model, "radius": float(value)} | {name: row[name] for name in names})
        return pd.DataFrame(rows, columns=["model", "radius", *names])

    def by_class(self, model: str, column: str = "adaptive") -> pd.DataFrame:
        """One row per class: images, clean accuracy, and the share not fooled by each attack of a column."""
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
                good = o.predicted == o.y if attack == CLEAN else ~fooled(o, self.rejects(model))
                here = o.y == label
                row[attack] = float(np.mean(good[here])) if here.any() else math.nan
            rows.append(row)
        return pd.DataFrame(rows)

    def worst_case(self, model: str, column: str = "adaptive") -> dict[str, float]:
        """What is left of a model under all attacks of a column together.

        Only images that every attack of the column met count, each once. An image is fooled if any attack, at any
        radius, got a label that is neither its true class nor the one that says adversarial.

        Returns:
            `n_images`, `attacks` (how many), and with their intervals `clean_accuracy`, `not_fooled` and
            `robust_accuracy`, which is NaN in the paper column.
        """
        checks.one_of("model", model, self.models)
        count = len(self.attacks(column, model))
        if not count:
            raise ValueError(f"`column` must have attacks on the model {model!r}. Received: column={column!r}")
        row = self.row(model, POOLED, column)
        names = ["n_images"]
        for name in ("clean_accuracy", "not_fooled", "robust_accuracy"):
            names += [name, f"{name}_low", f"{name}_high"]
        return {"attacks": count} | {name: row[name] for name in names}

    def compare(
        self, other: str, model: str | None = None, attack: str = POOLED, column: str = "paper"
    ) -> dict[str, float]:
        """Exact McNemar test of two models on the images they have in common; `None` takes the main model.

        See `kerasdef.reporting.compare.compare`.
        """
        return pairs.compare(self, self.main if model is None else model, other, attack, column)

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
        sections = [section.record() for section in self.sections if not section.timing]
        labels = {key(o): digest(o) for o in self.outcomes}
        return rounded(self.record() | {"sections": plain(sections, "sections"), "labels": labels})

    def record(self) -> dict:
        """Everything about the run and its results as JSON values, at full precision."""
        per_radius = {c: {a: self.by_radius(a, c).to_dict("records") for a in self.attacks(c)} for c in COLUMNS}
        worst = {c: {m: self.worst_case(m, c) for m in self.models if self.attacks(c, m)} for c in COLUMNS}
        record = {
            "dataset": self.dataset,
            "seed": self.seed,
            "classes": self.classes,
            "main": self.main,
            "hidden": self.hidden,
            "bounds": list(self.bounds),
            "sections": [section.record() for section in self.sections],
            "reject": self.reject,
            "rejecting": self.rejecting,
            "class_names": self.class_names,
            "settings": self.settings,
            "metrics": self._frame.to_dict("records"),
            "mean_detection_accuracy": {
                c: {m: self.mean_detection_accuracy(m, c) for m in self.models if self.attacks(c, m)} for c in COLUMNS
            },
            "by_radius": {c: {a: rows for a, rows in per_radius[c].items() if rows} for c in COLUMNS},
            "worst_case": worst,
            "comparisons": self.comparisons().to_dict("records"),
            "history": self.history,
            "notes": self.notes,
            "flags": self.flags,
        }
        return plain(record, "results")

    def __eq__(self, other) -> bool:
        """Same outcomes per image, settings and numbers; times, versions and machine may differ."""
        if not isinstance(other, Results):
            return NotImplemented
        return self.outcomes == other.outcomes and self.results() == other.results()

    __hash__ = None

    def __repr__(self) -> str:
        name, count = type(self).__name__, len(self.outcomes)
        return f"{name}({self.dataset!r}, models={self.models}, outcomes={count}, seed={self.seed})"
