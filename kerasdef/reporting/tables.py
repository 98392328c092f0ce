"""The tables of a report, as plain text for a terminal."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerasdef import checks
from kerasdef.evaluation.outcomes import COLUMNS, POOLED
from kerasdef.reporting.results import Results
from kerasdef.reporting.words import TITLES, distance, label, meaning, percent, radius, share
from kerasdef.texts import shown


def text(results: Results, models: Sequence[str] | None = None, width: int = 110) -> str:
    """The report in short.

    Args:
        results: What is shown.
        models: Models to show; None takes `shown`.
        width: Characters per line.
    """
    models = results.shown if models is None else [checks.one_of("models", m, results.models) for m in models]
    parts = [
        f"{results.dataset or 'data'}: {results.classes} classes, seed {results.seed}. Shares in %, [95 % interval].",
        _headline(results),
        *_paper(results, models),
        _adaptive(results, models),
        *[part for section in results.sections for part in _section(section)],
        _costs(results),
        *[f"Flag: {flag}" for flag in results.flags],
    ]
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None, emoji=False)
    for part in parts:
        if part is not None:
            console.print(Text(shown(part)) if isinstance(part, str) else part)
    return "\n".join(line.rstrip() for line in console.file.getvalue().rstrip().splitlines()) + "\n"


def side_by_side(results: Results) -> list[tuple[str, str, str]]:
    """Rows (what, in the paper column, in the adaptive column) about the main model, as text."""
    main, rows = results.main, [("attacks",), ("clean / attacked images",)]
    names = ["clean_accuracy", "detected", "adversarial_accuracy", "fooled", "detection_accuracy", "not_fooled"]
    names.append("robust_accuracy")
    if results.rejects(main) is None:
        names = [name for name in names if name not in ("detected", "detection_accuracy")]
    several = any(len(results.attacks(c, main)) > 1 for c in COLUMNS)
    scope = dict.fromkeys(("detected", "adversarial_accuracy", "fooled"), ", each attack")
    scope |= dict.fromkeys(("not_fooled", "robust_accuracy"), ", all attacks")
    rows += [(label(name) + (scope.get(name, "") if several else ""),) for name in names]
    for column in COLUMNS:
        if not results.attacks(column, main):
            cells = ["not measured"] + ["-"] * (len(rows) - 1)
        else:
            row = results.row(main, POOLED, column)
            cells = [", ".join(results.attacks(column, main)), f"{row['n_clean']} / {row['n']}"]
            cells += [percent(row, name, interval=f"{name}_low" in row) for name in names]
        rows = [(*row, cell) for row, cell in zip(rows, cells, strict=True)]
    return rows


def _headline(results: Results) -> Table:
    shown = results.columns
    title = f"{results.main}: two columns that never mix" if len(shown) > 1 else results.main
    table = _table(title, "", *[TITLES[c] for c in shown])
    table.add_row(*_texts("", *[meaning(results, c) for c in shown]), end_section=True)
    for name, *cells in side_by_side(results):
        table.add_row(*_texts(name, *[cells[COLUMNS.index(c)] for c in shown]))
    return table


def _paper(results: Results, models: Sequence[str]) -> list[Table]:
    attacks, tables = results.attacks("paper"), []

    def cell(model: str, attack: str, name: str) -> str:
        return percent(results.row(model, attack, "paper"), name) if attack in results.attacks("paper", model) else "-"

    plain = [m for m in models if results.rejects(m) is None and results.attacks("paper", m)]
    if plain:
        title = f"{label('adversarial_accuracy').capitalize()} ({TITLES['paper']})"
        table = _table(title, "model", label("clean_accuracy"), *attacks)
        for model in plain:
            clean = percent(results.row(model, POOLED, "paper"), "clean_accuracy", interval=True)
            table.add_row(*_texts(model, clean, *[cell(model, a, "adversarial_accuracy") for a in attacks]))
        tables.append(table)
    judged = [m for m in models if results.rejects(m) is not None and results.attacks("paper", m)]
    if judged:
        title = f"{label('detection_accuracy').capitalize()} ({TITLES['paper']}); the last four over all attacks"
        heads = ("mean", f"{results.classes + 1}-class", "F1", "AUROC", "TPR@1%")
        table = _table(title, "model", label("clean_accuracy"), *attacks, *heads)
        for model in judged:
            row = results.row(model, POOLED, "paper")
            rest = [percent(row, k) for k in ("accuracy", "macro_f1", "auroc", "tpr_at_1_fpr")]
            cells = [cell(model, a, "detection_accuracy") for a in attacks]
            mean = share(results.mean_detection_accuracy(model))
            table.add_row(*_texts(model, percent(row, "clean_accuracy"), *cells, mean, *rest))
        tables.append(table)
    return tables


def _adaptive(results: Results, models: Sequence[str]) -> Table | None:
    models = [m for m in models if results.attacks("adaptive", m)]
    if not models:
        return None
    rejects = any(results.rejects(m) is not None for m in models)
    names = ["clean_accuracy", *["detected", "not_fooled"] * rejects]
    heads = ("model", "attack", "n", "radius", *[label(name) for name in names])
    table = _table(f"Models ({TITLES['adaptive']})", *heads, label("robust_accuracy"), "median broken at")
    for model in models:
        for attack in results.attacks("adaptive", model):
            row = results.row(model, attack, "adaptive")
            cells = [percent(row, name) for name in names]
            robust = percent(row, "robust_accuracy", interval=True)
            table.add_row(*_texts(model, attack, str(row["n"]), radius(row), *cells, robust, distance(row)))
        if len(results.attacks("adaptive", model)) > 1:
            row = results.row(model, POOLED, "adaptive")
            known = ("clean_accuracy", "not_fooled")
            cells = [percent(row, name) if name in known else "" for name in names]
            robust = percent(row, "robust_accuracy", interval=True)
            table.add_row(*_texts(model, "all of them", str(row["n_images"]), "", *cells, robust, ""))
    return table


def _section(section) -> list[str | Table]:
    parts = [section.title + (f". {section.text}" if section.text else "")]
    if section.rows:
        table = _table("", *section.heads)
        for row in section.rows:
            table.add_row(*_texts(*[_plain(value) for value in row.values()]))
        parts.append(table)
    return parts


def _plain(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)


def _costs(results: Results) -> Table | None:
    if not results.costs:
        return None
    table = _table("Cost of training", "model", "gradients of images", "seconds", "peak memory, MiB")
    for model, cost in results.costs.items():
        numbers = f"{cost['gradients']:,.0f}", f"{cost['seconds']:,.0f}", f"{cost['peak_bytes'] / 2**20:,.0f}"
        table.add_row(*_texts(model, *numbers))
    return table


def _table(title: str, *heads: str) -> Table:
    table = Table(title=Text(shown(title)), title_justify="left", box=box.SIMPLE, pad_edge=False)
    for i, head in enumerate(heads):
        table.add_column(Text(shown(head)), justify="left" if i == 0 else "right", overflow="fold")
    return table


def _texts(*cells: str) -> list[Text]:
    return [Text(shown(cell)) for cell in cells]  # Text: brackets are not markup
