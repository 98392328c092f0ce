"""Attack a model on the test images of a data set, and say what it withstood."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import math
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
from kerasdef.attacks import Attack, AutoAttack, Transfer, Wrapper, sequence
from kerasdef.attacks.sequence import STANDS, SequenceResult
from kerasdef.catalog import ATTACKS, AttackInfo
from kerasdef.datasets import Dataset
from kerasdef.defenses.loading import Loaded, is_resplit, load_model, test_images
from kerasdef.evaluation import Outcome
from kerasdef.evaluation.statistics import wilson
from kerasdef.files import identity
from kerasdef.reporting import Report

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
        clean = self.report.outcome(self.report.main, "clean", "adaptive")
        return float(np.mean(clean.predicted == clean.y))

    def table(self) -> pd.DataFrame:
        """One row for each attack."""
        return self.result.table

    def text(self) -> str:
        """The table for a terminal, with intervals and what makes the result doubtful."""
        n = len(self.result.success)
        console = Console(width=110, record=True, file=io.StringIO())
        shown = Table(title=f"{self.report.main} on {n:,} test images of {self.report.dataset}")
        left = "accuracy left" if self.report.reject is None else "not fooled"  # rejected is not fooled
        for head in ("attack", "attacked", "broken", left, "95 % interval", "median change", "seconds"):
            shown.add_column(head, justify="left" if head == "attack" else "right")
        shown.add_row("none", f"{n:,}", "", *_share(self.result.clean_accuracy, n), "", "")
        for row in self.result.table.to_dict("records"):
            distance = row.get("median_distance")
            shown.add_row(
                row["attack"],
                f"{row['attacked']:,}",
                f"{row['broken']:,}",
                *_share(row["robust_accuracy"], n),
                "" if distance is None else f"{distance:.4f}",
                f"{row['seconds']:.1f}",
            )
        console.print(shown)
        if self.report.reject is not None:
            console.print(f"Clean images labeled right, the rejected ones counted wrong: {self.clean_accuracy:.1%}")
        for flag in self.result.flags.values():
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
    victim, goal = loaded.defense.surface()
    chosen = chosen.with_goal(goal)
    view, x, y = chosen._prepare(victim, dataset.x_test[:n], dataset.y_test[:n])
    state = None if out is None else Path(out) / "state"
    options = {"batch_size": batch_size, "seed": seed, "progress": show, "out": state}
    if isinstance(chosen, AutoAttack):
        result = chosen.run(victim, x, y, **options)
    else:
        result = sequence.run({name: chosen}, view, x, y, **options)
    if chosen.kind == "minimal":
        result = _within(result, x, _norm(chosen), eps)
    report = _report(result, chosen, name, loaded, dataset, x, y, seed)
    run = AttackRun(result, report, {})
    return run if out is None else dataclasses.replace(run, files=_save(run, y, Path(out)))


def _share(value: float, n: int) -> tuple[str, str]:
    low, high = wilson(round(value * n), n)
    return f"{value:.1%}", f"{low:.1%} - {high:.1%}"


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


def _norm(attack: Attack) -> norms.Norm:
    """The norm in which an attack's changes are measured; L2 where it has none."""
    if isinstance(attack, Wrapper):
        return _norm(attack.attack)
    return norms.get(getattr(attack, "norm", "l2"))


def _distances(norm: norms.Norm, x: np.ndarray, x_adv: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(norm.size(keras.ops.convert_to_tensor(x_adv - x)))


def _within(result: SequenceResult, x, norm: norms.Norm, eps: float | None) -> SequenceResult:
    """A minimal attack's result in which changes beyond eps do not count, with its median distance."""
    distance = _distances(norm, x, result.x_adv)
    beyond = (result.broken_by >= 0) & (distance > (math.inf if eps is None else eps))
    broken_by = np.where(beyond, STANDS, result.broken_by)
    changed = result.broken_by >= 0
    table = result.table.assign(
        broken=int(np.sum(broken_by >= 0)),
        robust_accuracy=float(np.mean(broken_by == STANDS)),
        median_distance=float(np.median(distance[changed])) if changed.any() else math.nan,
    )
    x_adv = np.array(result.x_adv)
    x_adv[beyond] = x[beyond]
    return dataclasses.replace(result, x_adv=x_adv, success=broken_by != STANDS, broken_by=broken_by, table=table)


def _report(result, chosen, name, loaded: Loaded, dataset: Dataset, x, y, seed: int) -> Report:
    before, after = (loaded.defense.decide(v) for v in (x, result.x_adv))
    clean, attacked = before.label, after.label
    distance = _distances(_norm(chosen), x, result.x_adv)
    outcomes = [
        Outcome(loaded.name, "adaptive", "clean", y, clean),
        Outcome(loaded.name, "adaptive", name, y, attacked, distance=distance),
    ]
    rejects = loaded.defense.reject is not None
    beyond = before.probabilities is not None and before.probabilities.shape[1] > dataset.classes
    shown = np.flatnonzero(result.broken_by >= 0)[:_SHOWN]
    examples = None
    if len(shown) and len(dataset.input_shape) == 3:
        examples = {
            "images": x[shown],
            "attacks": {name: result.x_adv[shown]},
            "labels": y[shown],
            "predicted": {name: attacked[shown]},
        }
    return Report(
        outcomes,
        classes=dataset.classes,
        reject=dataset.classes if rejects or beyond else None,  # the label is there, whether it rejects or not
        rejecting=[loaded.name] if rejects else [],
        class_names=dataset.class_names,
        settings={
            "attack": identity(chosen, "attack", strict=False),
            "n": len(x),
            "parts": result.table.to_dict("records"),
        },
        seed=seed,
        dataset=dataset.name,
        phases={f"attack/{row.attack}": row.seconds for row in result.table.itertuples()},
        notes=_notes(chosen, loaded, dataset),
        examples=examples,
        flags=list(result.flags.values()),
    )


def _notes(chosen: Attack, loaded: Loaded, dataset: Dataset) -> list[str]:
    """Which images were attacked, and what the attacker did not see."""
    notes = ["The images are test images of the data set as it comes, which the model may have been trained on."]
    if is_resplit(dataset, loaded):
        held = loaded.settings["test_size"]
        notes = [f"The images are of the {held:.0%} of the data set that the model's run held out for testing."]
    if chosen.access != "white box" or isinstance(chosen, Transfer):
        notes.append("The attack saw no gradients of the model: one that does may leave less.")
    return notes


def _save(run: AttackRun, y: np.ndarray, out: Path) -> dict[str, Path]:
    result = run.result
    files = {"examples": out / "examples.npz", "attack table": out / "attack.csv", "result": out / "attack.json"}
    np.savez_compressed(files["examples"], x_adv=result.x_adv, y=y, success=result.success, broken_by=result.broken_by)
    result.table.to_csv(files["attack table"], index=False)
    record = {
        "clean_accuracy": run.clean_accuracy,
        "robust_accuracy": result.robust_accuracy,
        "n": len(y),
        "parts": result.table.to_dict("records"),
        "flags": result.flags,
    }
    files["result"].write_text(json.dumps(record, indent=1), encoding="utf-8")
    return {**files, **run.report.save(out)}
