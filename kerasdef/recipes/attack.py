"""Attack a model on the test images of a data set, and say what it withstood."""

from __future__ import annotations

import dataclasses
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
from rich.text import Text

from kerasdef.annotations import checked
from kerasdef.attacks import Attack, by_name
from kerasdef.attacks.sequence import WRONG, SequenceResult
from kerasdef.catalog import ATTACKS
from kerasdef.datasets import Dataset
from kerasdef.datasets import load as load_dataset
from kerasdef.defenses.loading import Loaded, is_resplit, load_model, test_images
from kerasdef.evaluation import Evaluation, Plan, Planned, evaluate, wilson
from kerasdef.evaluation.outcomes import POOLED
from kerasdef.files import write_text, write_whole
from kerasdef.identity import digest, identity
from kerasdef.recipes.settings import AttackSettings
from kerasdef.reporting import Report, Section
from kerasdef.reporting.words import distance, label
from kerasdef.runs import places
from kerasdef.runs.store import Store
from kerasdef.settings import takes
from kerasdef.texts import cell, shown

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
        title = f"{self.report.main} on {n:,} test images of {self.report.dataset}"
        table = Table(title=Text(shown(title)))
        shares = ["robust_accuracy", *["not_fooled"] * rejects]
        heads = ["attack", "attacked", "broken", *[label(name) for name in shares], "median broken at", "seconds"]
        for head in heads:
            table.add_column(head, justify="left" if head == "attack" else "right")
        for row in self.table().to_dict("records"):
            cells = [_share(row[name], n) for name in shares]
            counts = f"{row['attacked']:,}", f"{row['broken']:,}"
            table.add_row(Text(shown(row["attack"])), *counts, *cells, distance(row), f"{row['seconds']:.1f}")
        console.print(f"{label('clean_accuracy').capitalize()}: {_share(self.clean_accuracy, n)}, 95 % intervals.")
        console.print(table)
        for flag in self.report.flags:
            console.print(Text(shown(f"Warning: {flag}")))
        return console.export_text().rstrip()


@takes(AttackSettings)
@checked
def attack(
    model: keras.Model | Callable | str | Path,
    data: str | Path | Dataset | tuple = AttackSettings.data,
    attack: str | Attack = AttackSettings.attack,
    **given,
) -> AttackRun:
    """Attack a model on the first test images of a data set.

    A model from the folder of a run is attacked on the images that this run held out for testing. A defense that votes
    is attacked whole. Images that the model gets wrong count as broken.

    Args:
        {settings}

    Raises:
        ValueError: An unknown name or setting, a value out of range, or a model that does not fit the data or the
            attack.
    """
    s = AttackSettings.of({"model": model, "data": data, "attack": attack, **given})
    if s.out is not None:
        places.of_attack(Path(s.out))
    data = load_dataset(s.data) if isinstance(s.data, str | Path) else s.data
    loaded = load_model(s.model, bounds=s.bounds or getattr(data, "bounds", None), trust=s.trust)
    dataset = test_images(data, loaded)
    chosen, name = _choose(s.attack, s.norm, s.eps, s.settings or {}, dataset.bounds, loaded)
    if s.n is not None and s.n > dataset.n_test:
        raise ValueError(f"`n` must be at most the number of test images, {dataset.n_test}. Received: n={s.n}")
    rows = np.arange(dataset.n_test if s.n is None else s.n)
    planned = Planned(
        chosen,
        piece="state",
        seed=s.seed,
        batch_size=s.batch_size,
        standing=True,
        within=s.eps if chosen.kind == "minimal" else None,
    )
    plan = Plan(loaded.name, rows, adaptive={name: planned})
    store = _store(s.out, loaded, chosen, dataset, rows, s.seed)
    found = evaluate(loaded.defense, dataset, plan, store, progress=s.progress)
    report = _report(found, chosen, name, loaded, dataset, rows, s.seed)
    run = AttackRun(found.results["adaptive", name], report, {})
    return run if s.out is None else dataclasses.replace(run, files=_save(run, dataset.y_test[rows], Path(s.out)))


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
    return Store(Path(out) / places.STATE, settings)


def _share(value: float, n: int) -> str:
    low, high = wilson(round(value * n), n)
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _choose(attack: str | Attack, norm, eps, settings: Mapping, bounds, loaded: Loaded) -> tuple[Attack, str]:
    """The attack object and its name."""
    if isinstance(attack, Attack):
        if norm is not None or eps is not None or settings:
            raise ValueError(
                "`norm`, `eps` and `settings` belong to an attack given by name. "
                f"Received: norm={norm!r}, eps={eps!r}, settings={dict(settings)!r} with attack={attack!r}"
            )
        if getattr(attack, "bounds", bounds) != bounds:
            raise ValueError(
                f"`attack` must have the bounds of the data, {bounds}. Received: bounds={attack.bounds} in {attack!r}"
            )
        chosen, name = by_name.one_for_each(attack), type(attack).__name__.lower()
    else:
        chosen, name = by_name.make(attack, norm=norm, eps=eps, settings=settings, bounds=bounds), attack
    if loaded.black_box and chosen.access != "black box":
        black = ", ".join(key for key, info in ATTACKS.items() if info.access == "black box")
        raise ValueError(
            f"`attack` must be a black-box attack ({black}) for a model that gives outputs only. "
            f"Received: attack={name!r} on {loaded.name!r}"
        )
    return chosen, name


def _report(found: Evaluation, chosen, name, loaded: Loaded, dataset: Dataset, rows, seed: int) -> Report:
    result = found.results["adaptive", name]
    rejects = loaded.defense.reject is not None
    labels = found.outcomes[-1].predicted
    # a few images may not have all the classes of the model
    names = (*dataset.class_names, *map(str, range(dataset.classes, loaded.defense.classes or 0)))
    beyond = max(int(o.predicted.max()) for o in found.outcomes) >= len(names)
    few = np.flatnonzero(result.broken_by >= 0)[:_SHOWN]
    examples = None
    if len(few) and len(dataset.input_shape) == 3:
        examples = {
            "images": dataset.x_test[rows[few]],
            "attacks": {name: result.x_adv[few]},
            "labels": dataset.y_test[rows[few]],
            "predicted": {name: labels[few]},
        }
    return Report(
        found.outcomes,
        classes=len(names),
        reject=len(names) if rejects or beyond else None,  # the label is there, whether it rejects or not
        rejecting=[loaded.name] if rejects else [],
        class_names=names,
        bounds=dataset.bounds,
        settings={
            "attack": identity(chosen, "attack", strict=False),
            "n": len(rows),
            "bounds": list(dataset.bounds),
        },
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
    if not isinstance(loaded.defense.surface()[0], keras.Model):
        notes.append(
            "The report itself asked the model once for each clean image and once for each image that the attack "
            "returned. These two queries are not in the attack's budget."
        )
    return notes


def _save(run: AttackRun, y: np.ndarray, out: Path) -> dict[str, Path]:
    result = run.result
    files = {"examples": out / "examples.npz", "attack table": out / "attack.csv", "result": out / "attack.json"}
    arrays = {"x_adv": result.x_adv, "y": y, "success": result.success, "broken_by": result.broken_by}
    write_whole(files["examples"], lambda part: np.savez_compressed(part, **arrays))
    write_text(files["attack table"], run.table().map(cell).to_csv(index=False))
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
    write_text(files["result"], json.dumps(record, indent=1))
    return {**files, **run.report.save(out)}
