"""Attack a model on the test images of a data set, and say what it withstood."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

import kerasdef.attacks
from kerasdef import checks, norms
from kerasdef.attacks import Attack
from kerasdef.attacks.sequence import WRONG, SequenceResult
from kerasdef.catalog import ATTACKS, AttackInfo
from kerasdef.datasets import Dataset
from kerasdef.defenses.loading import Loaded, is_resplit, load_model, test_images
from kerasdef.evaluation import Evaluation, Plan, Planned, evaluate, wilson
from kerasdef.evaluation.outcomes import POOLED
from kerasdef.files import digest, identity
from kerasdef.reporting import Report, Section
from kerasdef.reporting.words import distance, label
from kerasdef.runs.store import Store

_SHOWN = 8  # adversarial images in the report


@dataclass(frozen=True, eq=False)
class AttackRun:
    """A finished attack on a model.

    Args:
        result: What the attack found, image by image.
        report: The same with intervals, as a `Report`; its column is "adaptive".
        files: What was written, by name.
    """

    result: SequenceResult
    report: Report
    files: Mapping[str, Path]

    @property
    def clean_accuracy(self) -> float:
        """Share of the clean images that get their true label; those that are rejected do not."""
        return self._row["clean_accuracy"]

    @property
    def robust_accuracy(self) -> float:
        """Share of the images that get their true label when clean and that the attack did not break."""
        return self._row["robust_accuracy"]

    @property
    def not_fooled(self) -> float:
        """Share of the images that the attack did not break, those among them that are rejected even when clean."""
        return self._row["not_fooled"]

    @property
    def _row(self) -> dict[str, float]:
        return self.report.row(self.report.main, POOLED, "adaptive")

    def table(self) -> pd.DataFrame:
        """One row for each attack, in their order, with what is left after it.

        Columns: attack, attacked, broken, robust_accuracy, not_fooled (of a defense that rejects), norm,
        median_distance (of the images that it broke) and seconds.
        """
        (parts,) = self.report.sections
        return pd.DataFrame(parts.rows).assign(seconds=self.result.table["seconds"])

    def text(self) -> str:
        """The table for a terminal, with intervals and what makes the result doubtful."""
        n, rejects = len(self.result.success), self.report.rejects(self.report.main) is not None
        console = Console(width=110, record=True, file=io.StringIO())
        shown = Table(title=f"{self.report.main} on {n:,} test images of {self.report.dataset}")
        shares = ["robust_accuracy", *["not_fooled"] * rejects]
        heads = ["attack", "attacked", "broken", *[label(name) for name in shares], "median broken at", "seconds"]
        for head in heads:
            shown.add_column(head, justify="left" if head == "attack" else "right")
        for row in self.table().to_dict("records"):
            cells = [_share(row[name], n) for name in shares]
            counts = f"{row['attacked']:,}", f"{row['broken']:,}"
            shown.add_row(row["attack"], *counts, *cells, distance(row), f"{row['seconds']:.1f}")
        console.print(f"{label('clean_accuracy').capitalize()}: {_share(self.clean_accuracy, n)}, 95 % intervals.")
        console.print(shown)
        for flag in self.report.flags:
            console.print(f"Warning: {flag}")
        return console.export_text().rstrip()


def attack(
    model: keras.Model | Callable | str | Path,
    data: str | Path | Dataset = "digits",
    attack: str | Attack = "autoattack",
    *,
    norm: str | None = None,
    eps: float | None = None,
    settings: Mapping | None = None,
    n: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    out: str | Path | None = None,
    show: bool | None = None,
) -> AttackRun:
    """Attack a model on the first test images of a data set.

    A model from the folder of a run is attacked on the images that this run held out for testing. A defense that votes
    is attacked whole. Images that the model gets wrong count as broken.

    Args:
        model: A built Keras classifier, a callable from images to logits, probabilities or labels, a .keras file, the
            folder of a finished run, or the folder of a SavedModel (black-box attacks only).
        data: A name, the path of an .npz file, or a `Dataset`.
        attack: A name of `kerasdef list attacks`, or an `Attack`; then norm, eps and settings are its own.
        norm: "linf", "l2" or "l1"; None takes the attack's default.
        eps: Radius in input units. Minimal attacks do not need it: with it, a change beyond eps does not count.
        settings: Further settings of the attack by name, such as `{"steps": 50}`.
        n: Number of test images; None takes all.
        batch_size: Images that are worked on at a time.
        seed: All randomness comes from it.
        out: Folder for the state, the report and the adversarial images; a run that was killed goes on from there.
        show: Progress bars; None shows them on a terminal and in notebooks.

    Raises:
        ValueError: An unknown name or setting, a value out of range, or a model that does not fit the data or the
            attack.
    """
    loaded = load_model(model)
    chosen, name = _choose(attack, norm, eps, settings or {}, loaded)
    dataset = test_images(data, loaded)
    if n is not None and checks.positive_int("n", n) > dataset.n_test:
        raise ValueError(f"`n` must be at most the number of test images, {dataset.n_test}. Received: n={n}")
    rows = np.arange(dataset.n_test if n is None else n)
    minimal = chosen.kind == "minimal"
    planned = Planned(
        chosen,
        piece="state",
        seed=checks.non_negative_int("seed", seed),
        batch_size=checks.positive_int("batch_size", batch_size),
        standing=True,
        within=eps if minimal else None,
    )
    plan = Plan(loaded.name, rows, adaptive={name: planned})
    found = evaluate(loaded.defense, dataset, plan, _store(out, loaded, chosen, dataset, rows, seed), progress=show)
    result = found.results["adaptive", name]
    report = _report(found, chosen, name, loaded, dataset, rows, seed)
    run = AttackRun(result, report, {})
    return run if out is None else dataclasses.replace(run, files=_save(run, dataset.y_test[rows], Path(out)))


def _store(out, loaded: Loaded, chosen: Attack, dataset: Dataset, rows: np.ndarray, seed: int) -> Store:
    """The folder of the attack's state, which is that of one attack on one model."""
    if out is None:
        return Store(None, {})
    settings = {
        "attack": chosen,
        "model": loaded.defense.surface()[0],
        "data": digest(dataset.x_test[rows], dataset.y_test[rows]),
        "seed": seed,
    }
    return Store(Path(out) / "state", settings)


def _share(value: float, n: int) -> str:
    low, high = wilson(round(value * n), n)
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _choose(attack: str | Attack, norm, eps, settings: Mapping, loaded: Loaded) -> tuple[Attack, str]:
    """The attack object and its name."""
    if isinstance(attack, Attack):
        if norm is not None or eps is not None or settings:
            raise ValueError(
                "`norm`, `eps` and `settings` belong to an attack given by name. "
                f"Received: norm={norm!r}, eps={eps!r}, settings={dict(settings)!r} with attack={attack!r}"
            )
        chosen, name = attack, type(attack).__name__.lower()
    else:
        name = checks.one_of("attack", attack, ATTACKS)
        chosen = _make(ATTACKS[name], name, norm, eps, settings)
    if loaded.black_box and chosen.access != "black box":
        black = ", ".join(key for key, info in ATTACKS.items() if info.access == "black box")
        raise ValueError(
            f"`attack` must be a black-box attack ({black}) for a model that gives outputs only. "
            f"Received: attack={name!r} on {loaded.name!r}"
        )
    return chosen, name


def _make(info: AttackInfo, name: str, norm, eps, settings: Mapping) -> Attack:
    cls = getattr(kerasdef.attacks, info.cls)
    known = [p for p in inspect.signature(cls).parameters if p not in ("goal", "bounds")]
    given = {checks.one_of("settings", key, known): value for key, value in settings.items()}
    if norm is not None:
        if checks.one_of("norm", norm, norms.NORMS) not in info.norms:
            raise ValueError(f"`norm` must be one of {', '.join(info.norms)} for {name}. Received: norm={norm!r}")
        if "norm" in known:
            given["norm"] = norm
    if eps is not None and info.kind == "budget" and "eps" in known:
        given["eps"] = eps
    if eps is None and "eps" in known and info.kind == "budget":
        raise ValueError(f"`eps` must be given for {name}, such as 8/255 (0.0314). Received: eps=None")
    return cls(**given)


def _report(found: Evaluation, chosen, name, loaded: Loaded, dataset: Dataset, rows, seed: int) -> Report:
    result = found.results["adaptive", name]
    rejects = loaded.defense.reject is not None
    labels = found.outcomes[-1].predicted
    beyond = max(int(o.predicted.max()) for o in found.outcomes) >= dataset.classes
    shown = np.flatnonzero(result.broken_by >= 0)[:_SHOWN]
    examples = None
    if len(shown) and len(dataset.input_shape) == 3:
        examples = {
            "images": dataset.x_test[rows[shown]],
            "attacks": {name: result.x_adv[shown]},
            "labels": dataset.y_test[rows[shown]],
            "predicted": {name: labels[shown]},
        }
    return Report(
        found.outcomes,
        classes=dataset.classes,
        reject=dataset.classes if rejects or beyond else None,  # the label is there, whether it rejects or not
        rejecting=[loaded.name] if rejects else [],
        class_names=dataset.class_names,
        bounds=dataset.bounds,
        settings={"attack": identity(chosen, "attack", strict=False), "n": len(rows)},
        sections=[_parts(found, name, rejects)],
        seed=seed,
        dataset=dataset.name,
        phases={f"attack/{row.attack}": row.seconds for row in result.table.itertuples()},
        notes=_notes(loaded, dataset),
        examples=examples,
        flags=found.flags,
    )


def _parts(found: Evaluation, name: str, rejects: bool) -> Section:
    """What is left after each part of an attack."""
    clean, attacked = found.outcomes
    result = found.results["adaptive", name]
    right = clean.predicted == clean.y
    rows = []
    for i, row in enumerate(result.table.to_dict("records")):
        fell = (result.broken_by == WRONG) | ((result.broken_by >= 0) & (result.broken_by <= i))
        broken = (result.broken_by == i) & (attacked.distance > 0)
        part = {
            "attack": row["attack"],
            "attacked": row["attacked"],
            "broken": int(np.sum(result.broken_by == i)),
            "robust_accuracy": float(np.mean(right & ~fell)),
        }
        if rejects:
            part["not_fooled"] = float(np.mean(~fell))
        part["norm"] = attacked.norm
        part["median_distance"] = float(np.median(attacked.distance[broken])) if broken.any() else None
        rows.append(part)
    return Section("parts", "Attacks, each on what still stands", rows=rows)


def _notes(loaded: Loaded, dataset: Dataset) -> list[str]:
    """Which images were attacked."""
    notes = ["The images are test images of the data set as it comes, which the model may have been trained on."]
    if is_resplit(dataset, loaded):
        held = loaded.settings["test_size"]
        notes = [f"The images are of the {held:.0%} of the data set that the model's run held out for testing."]
    return notes


def _save(run: AttackRun, y: np.ndarray, out: Path) -> dict[str, Path]:
    result = run.result
    files = {"examples": out / "examples.npz", "attack table": out / "attack.csv", "result": out / "attack.json"}
    np.savez_compressed(files["examples"], x_adv=result.x_adv, y=y, success=result.success, broken_by=result.broken_by)
    run.table().to_csv(files["attack table"], index=False)
    outcome = run.report.outcomes[-1]
    record = {
        "clean_accuracy": run.clean_accuracy,
        "robust_accuracy": run.robust_accuracy,
        "not_fooled": run.not_fooled,
        "n": len(y),
        "norm": outcome.norm,
        "radius": None if outcome.radius is None else sorted({float(str(v)) for v in outcome.radius}),
        "access": outcome.access,
        "parts": run.report.sections[0].rows,
        "flags": result.flags,
    }
    files["result"].write_text(json.dumps(record, indent=1), encoding="utf-8")
    return {**files, **run.report.save(out)}
