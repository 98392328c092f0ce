"""Figures of a report. Each function returns a `matplotlib.figure.Figure` and leaves pyplot alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from sklearn.metrics import roc_curve

from kerasdef import checks
from kerasdef.evaluation.outcomes import COLUMNS, POOLED
from kerasdef.reporting.results import Results
from kerasdef.reporting.words import label

# Okabe and Ito, 2008, "Color universal design": told apart with any color vision.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000", "#8C8C8C")
NAMES = {
    "paper_vs_adaptive",
    "before_after",
    "success_rates",
    "detection_roc",
    "radius_paper",
    "radius_adaptive",
    "examples",
    "accuracy",
    "loss",
}
_TITLES = {"paper": "As the paper did it", "adaptive": "Adaptive attacker"}
_GRID = 8  # images in the example grid


def draw_all(report: Results) -> dict[str, tuple[Figure, str]]:
    """Every figure the report has data for, as `(figure, caption)` by a name of `NAMES`."""
    drawn = {}
    attacked = [c for c in COLUMNS if report.attacks(c)]
    if any(report.attacks(c, report.main) for c in COLUMNS):
        caption = f"What {report.main} said of attacked images."
        caption += " Left and right are different attackers." if len(report.columns) > 1 else ""
        drawn["paper_vs_adaptive"] = paper_vs_adaptive(report), caption
    if report.attacks("paper"):
        caption = "Clean accuracy, and images not fooled: labeled with the true class, or as adversarial."
        drawn["before_after"] = before_after(report), caption
    if attacked:
        caption = "Share of attacked images with a label that is neither the true class nor adversarial."
        drawn["success_rates"] = success_rates(report), caption
    if any(o.score is not None for o in _scored(report)):
        caption = f"Detector of {report.main}: attacked images found against clean images flagged by mistake."
        drawn["detection_roc"] = detection_roc(report), caption
    for column in attacked:
        name = next((a for a in report.attacks(column) if len(report.by_radius(a, column))), None)
        if name:
            caption = f"{name} by radius, with 95 % bands. The mean over radii hides the strong ones."
            drawn[f"radius_{column}"] = accuracy_per_radius(report, name, column), caption
    if report.examples and report.examples["images"].ndim in (3, 4):
        caption = "Top: clean images, true class. Below: attacked ones, what the target says, distances."
        drawn["examples"] = (
            example_grid(report.examples, report.class_names, title=report.dataset, bounds=report.bounds),
            caption,
        )
    for metric in ("accuracy", "loss"):
        if any(metric in h for h in report.history.values()):
            caption = f"{metric.capitalize()} while training, one panel per model or cycle."
            drawn[metric] = learning_curves(report.history, metric, title=report.dataset), caption
    return drawn


def example_grid(
    examples: Mapping, class_names: Sequence[str], *, title: str = "", bounds: tuple[float, float] = (0.0, 1.0)
) -> Figure:
    """Clean images in the top row, each attack below, with distances and the target's label.

    Args:
        examples: `images` (m, h, w, c) or (m, h, w) within `bounds`, `attacks` {name: the same shape}, `labels`
            (m,), `predicted` {name: (m,)}; the first 8 images are drawn.
        class_names: K names; a label K is written "adversarial".
        title: Data set.
        bounds: Range of a value: the first is shown black, the second white.
    """
    images = np.asarray(examples["images"])[:_GRID]
    if images.ndim not in (3, 4):
        raise ValueError(f"`examples` must hold images of shape (m, h, w, c). Received: shape={images.shape}")
    names = [*class_names, "adversarial", "no answer"]  # whose label is -1
    rows, m = len(examples["attacks"]) + 1, len(images)
    figure = Figure(figsize=(max(1.35 * m, 4) + 0.6, 1.75 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, m, squeeze=False)
    for i, ax in enumerate(axes[0]):
        _image(ax, images[i], names[examples["labels"][i]], bounds)
    axes[0, 0].set_ylabel("clean", fontsize=10)
    for row, (attack, x_adv) in zip(axes[1:], examples["attacks"].items(), strict=True):
        row[0].set_ylabel(attack, fontsize=10)
        for i, ax in enumerate(row):
            change = (x_adv[i] - images[i]).ravel()
            said = f"→ {names[examples['predicted'][attack][i]]}\n" if attack in examples["predicted"] else ""
            _image(ax, x_adv[i], f"{said}L∞ {np.abs(change).max():.2g}, L2 {np.linalg.norm(change):.2g}", bounds)
    figure.suptitle(f"{title + ': ' if title else ''}clean and attacked images (n = {m})", fontsize=11)
    return figure


def before_after(report: Results, models: Sequence[str] | None = None) -> Figure:
    """Bars of the clean accuracy, and of the images not fooled by each attack of the paper column, by model."""
    models = [m for m in (models or report.shown) if report.attacks("paper", m)]
    attacks = report.attacks("paper")
    figure, (ax,) = _figure(1, len(models) * (len(attacks) + 1))
    for k, model in enumerate(models):
        names = [a for a in ["clean", *attacks] if a in report.attacks("paper", model) or a == "clean"]
        at = [["clean", *attacks].index(a) for a in names]
        wanted = [("clean_accuracy" if a == "clean" else "not_fooled", report.row(model, a, "paper")) for a in names]
        wanted[0] = "clean_accuracy", report.row(model, names[-1], "paper")
        shares = [(row[key], row[f"{key}_low"], row[f"{key}_high"]) for key, row in wanted]
        _bars(ax, at, shares, k, len(models), model)
    _attack_axis(ax, ["clean", *attacks], "clean accuracy, not fooled")
    _legend(figure, ax)
    return _titled(figure, report, "before and after each attack, as the paper did it", _sizes(report, "paper"))


def success_rates(report: Results, models: Sequence[str] | None = None) -> Figure:
    """Bars of the share of attacked images that fooled each model, one panel per column."""
    models = list(models or report.shown)
    columns = [c for c in COLUMNS if report.attacks(c)]
    figure, axes = _figure(len(columns), max(len(report.attacks(c)) for c in columns) * len(models))
    for ax, column in zip(axes, columns, strict=True):
        attacks = report.attacks(column)
        present = [m for m in models if report.attacks(column, m)]
        for k, model in enumerate(present):
            names = report.attacks(column, model)
            rows = [report.row(model, a, column) for a in names]
            shares = [(1 - r["not_fooled"], 1 - r["not_fooled_high"], 1 - r["not_fooled_low"]) for r in rows]
            _bars(
                ax,
                [attacks.index(a) for a in names],
                shares,
                k,
                len(present),
                model,
                COLORS[models.index(model) % 8],
            )
        _attack_axis(ax, attacks, "fooled")
        ax.set_title(f"{_TITLES[column]} ({_sizes(report, column)})", fontsize=10)
    _legend(figure, *axes)
    return _titled(figure, report, "attack success")


def learning_curves(history: Mapping[str, Mapping], metric: str = "accuracy", *, title: str = "") -> Figure:
    """One small panel per model or cycle: training (solid) and validation (dashed).

    Args:
        history: Keras history by model or cycle name.
        metric: "accuracy", "loss" or another key of the histories.
        title: Data set.
    """
    shown = {name: h for name, h in history.items() if metric in h}
    if not shown:
        known = {k for h in history.values() for k in h}
        raise ValueError(f"`metric` must be one of {', '.join(sorted(known))}. Received: metric={metric!r}")
    wide = min(4, len(shown))
    tall = math.ceil(len(shown) / wide)
    figure = Figure(figsize=(max(2.7 * wide + 0.8, 5.2), 1.9 * tall + 1.0), layout="constrained")
    axes = figure.subplots(tall, wide, squeeze=False, sharey=True).ravel()
    for ax, (name, values) in zip(axes, shown.items(), strict=False):
        for key, style, color, what in (
            (metric, "-", 0, "training"),
            (f"val_{metric}", "--", 3, "validation"),
            (f"val_robust_{metric}", ":", 2, "validation, attacked"),
        ):
            if key in values:
                y = np.asarray(values[key], dtype="float64")
                marker = "o" if len(y) == 1 else None
                ax.plot(np.arange(1, len(y) + 1), y, style, color=COLORS[color], label=what, marker=marker)
        ax.set_title(name, fontsize=9)
        ax.xaxis.get_major_locator().set_params(integer=True)
        _clean(ax)
    for ax in axes[len(shown) :]:
        ax.set_axis_off()
    for ax in axes[max(0, len(shown) - wide) : len(shown)]:
        ax.set_xlabel("epoch", fontsize=9)
    for ax in axes[::wide]:
        ax.set_ylabel(metric, fontsize=9)
    _legend(figure, *axes)
    figure.suptitle(f"{title + ': ' if title else ''}{metric} while training", fontsize=11)
    return figure


def accuracy_per_radius(report: Results, attack: str = "gma", column: str = "paper") -> Figure:
    """Share of images that were not fooled by radius (log axis), a line per model with its band."""
    rows = report.by_radius(attack, column)
    if len(rows) == 0:
        raise ValueError(f"`attack` must have several radii. Received: attack={attack!r}")
    figure, (ax,) = _figure(1, 6)
    for k, model in enumerate(m for m in report.shown if m in set(rows["model"])):
        mine = rows[(rows["model"] == model) & (rows["radius"] > 0)]
        color, marker = COLORS[k % 8], "osD^vPX*"[k % 8]
        ax.plot(mine["radius"], mine["not_fooled"], marker=marker, markersize=4, color=color, label=model)
        ax.fill_between(mine["radius"], mine["not_fooled_low"], mine["not_fooled_high"], color=color, alpha=0.15, lw=0)
    ax.set_xscale("log")
    ax.set_xlabel("radius (input units)")
    ax.set_ylabel(label("not_fooled"))
    _shares(ax)
    _legend(figure, ax)
    n = sorted({int(v) for v in rows["n"]})
    each = f"n = {n[0]}" + (f" to {n[-1]}" if len(n) > 1 else "") + " per radius"
    return _titled(figure, report, f"{attack} by radius, {_TITLES[column].lower()}", each)


def detection_roc(report: Results, model: str | None = None) -> Figure:
    """ROC of a model's detector per attack, false positives on a log axis: the paper column alone, see `measure`."""
    found = _scored(report, model)
    if not found:
        raise ValueError(f"`model` must have scores on clean and attacked images. Received: model={model!r}")
    figure, (ax,) = _figure(1, 6)
    floor = 1.0
    for k, o in enumerate(found):
        clean = report.clean(o.model, o.column)
        truth = np.repeat([0, 1], [len(clean), len(o)])
        fpr, tpr, _ = roc_curve(truth, np.concatenate([clean.score, o.score]))
        floor = min(floor, 0.5 / len(clean))
        ax.step(np.maximum(fpr, 0.5 / len(clean)), tpr, where="post", color=COLORS[k % 8], label=o.attack)
    line = np.geomspace(floor, 1, 50)
    ax.plot(line, line, ":", color="#777777", lw=1, label="chance")
    for share in (0.01, 0.05):
        ax.axvline(share, color="#BBBBBB", lw=0.8, zorder=0)
    ax.set_xscale("log")
    ax.set_xlim(floor, 1)
    ax.set_xlabel("clean images flagged (lines at 1 % and 5 %)")
    ax.set_ylabel("attacked images flagged")
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    _shares(ax)
    _legend(figure, ax)
    return _titled(figure, report, f"detector of {found[0].model}", f"n = {len(clean)} clean, {_span(found)} attacked")


def paper_vs_adaptive(report: Results, model: str | None = None) -> Figure:
    """What a model said of attacked images, the two columns side by side, as stacked bars."""
    model = report.main if model is None else checks.one_of("model", model, report.models)
    columns = report.columns
    figure, axes = _figure(len(columns), max(len(report.attacks(c, model)) for c in columns) * 2)
    parts = [
        ("detected", COLORS[0], ""),
        ("adversarial_accuracy", COLORS[5], ".."),
        ("fooled", COLORS[3], "//"),
    ]
    if report.rejects(model) is None:
        parts = parts[1:]
    for ax, column in zip(axes, columns, strict=True):
        attacks = report.attacks(column, model)
        rows = [report.row(model, attack, column) for attack in attacks]
        base, at = np.zeros(len(rows)), np.arange(len(rows))
        for name, color, hatch in parts:
            height = np.array([r[name] for r in rows])
            ax.bar(at, height, 0.6, bottom=base, color=color, label=label(name), hatch=hatch, edgecolor="white", lw=0.5)
            for x, low, value in zip(at, base, height, strict=True):
                if value >= 0.06:
                    ink = "black" if color == COLORS[5] else "white"
                    box = {"facecolor": color, "edgecolor": "none", "pad": 1.5}
                    ax.text(
                        x,
                        low + value / 2,
                        f"{100 * value:.0f}",
                        ha="center",
                        va="center",
                        color=ink,
                        fontsize=9,
                        bbox=box,
                    )
            base = base + height
        if rows:
            middle, low, high = np.array([[r[f"not_fooled{end}"] for end in ("", "_low", "_high")] for r in rows]).T
            ends = np.stack([middle - low, high - middle], axis=1)
            ax.errorbar(at, middle, yerr=np.clip(ends.T, 0, None), fmt="none", color="black", capsize=4, lw=1.2)
            sizes = f" ({_span([report.outcome(model, a, column) for a in attacks], 'n = ')})"
        else:
            ax.text(0.5, 0.5, "not measured", ha="center", transform=ax.transAxes, fontsize=11, color="#777777")
            sizes = ""
        _attack_axis(ax, attacks, "attacked images")
        ax.set_title(_TITLES[column] + sizes, fontsize=10)
    _legend(figure, *axes)
    what = "two columns that never mix" if len(columns) > 1 else _TITLES[columns[0]].lower()
    return _titled(figure, report, f"{model}, {what}")


def _scored(report: Results, model: str | None = None) -> list:
    model = report.main if model is None else checks.one_of("model", model, report.models)
    clean = report.clean(model)
    if clean is None or clean.score is None:
        return []
    found = [report.outcome(model, a) for a in report.attacks("paper", model)]
    return [o for o in found if o.score is not None]


def _figure(panels: int, bars: int) -> tuple[Figure, np.ndarray]:
    wide = min(max(4.2, 0.34 * bars + 2.0), 9.0)
    figure = Figure(figsize=(min(max(wide * panels * 0.85, 7.0), 11.0), 4.1), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for ax in axes:
        _clean(ax)
    return figure, axes


def _bars(ax, at: list[int], shares: list[tuple], k: int, of: int, name: str, color: str | None = None) -> None:
    """Bars number `k` of `of` per position; `shares` are (value, low, high)."""
    values, low, high = np.array(shares, dtype="float64").T
    ends = np.clip(np.stack([values - low, high - values]), 0, None)
    width = min(0.8 / of, 0.3)
    x = np.array(at) + (k - (of - 1) / 2) * width
    bar = {"color": color or COLORS[k % 8], "label": name, "capsize": 2, "error_kw": {"lw": 0.9}}
    ax.bar(x, values, 0.92 * width, yerr=ends, **bar)


def _attack_axis(ax, names: Sequence[str], what: str) -> None:
    turned = max((len(n) for n in names), default=0) * len(names) > 60
    ax.set_xticks(
        range(len(names)), names, fontsize=9, rotation=30 if turned else 0, ha="right" if turned else "center"
    )
    ax.set_xlim(-0.6, max(len(names), 1) - 0.4)
    ax.set_ylabel(what)
    _shares(ax)


def _shares(ax) -> None:
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))


def _clean(ax) -> None:
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#E5E5E5", lw=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=9)


def _image(ax, x: np.ndarray, text: str, bounds: tuple[float, float]) -> None:
    x = x[..., 0] if x.ndim == 3 and x.shape[-1] == 1 else x
    x = (np.asarray(x, dtype="float64") - bounds[0]) / (bounds[1] - bounds[0])
    ax.imshow(np.clip(x, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_xlabel(text, fontsize=8)


def _legend(figure: Figure, *axes) -> None:
    entries = {text: h for ax in axes for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    place = {"loc": "outside lower center", "ncols": min(len(entries), 5), "frameon": False, "fontsize": 9}
    figure.legend(list(entries.values()), list(entries), **place)


def _titled(figure: Figure, report: Results, text: str, sizes: str = "") -> Figure:
    head = f"{report.dataset}: {text}" if report.dataset else text
    figure.suptitle(head + (f" ({sizes})" if sizes else ""), fontsize=11)
    return figure


def _sizes(report: Results, column: str) -> str:
    return _span([o for o in report.outcomes if o.column == column and o.attack not in ("clean", POOLED)], "n = ")


def _span(outcomes: Sequence, prefix: str = "") -> str:
    n = sorted({len(o) for o in outcomes})
    return f"{prefix}{n[0]}" + (f" to {n[-1]}" if len(n) > 1 else "")
