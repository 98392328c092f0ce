"""Smooth a model, certify the test images of a data set, and say how many labels are certain within which radius."""

from __future__ import annotations

import dataclasses
import datetime
import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerasdef import backend
from kerasdef.annotations import checked
from kerasdef.checks import NOBODY
from kerasdef.datasets import Dataset
from kerasdef.datasets import load as load_dataset
from kerasdef.defenses.loading import Loaded, is_resplit, load_model, test_images
from kerasdef.defenses.smoothing import Smoothed, check_draws, largest_radius
from kerasdef.evaluation import Outcome, wilson
from kerasdef.identity import digest
from kerasdef.recipes.settings import CertifySettings
from kerasdef.reporting import Report
from kerasdef.reporting.certified import certified_section
from kerasdef.runs import places, progress
from kerasdef.runs.rows import Rows
from kerasdef.runs.store import Store
from kerasdef.settings import takes
from kerasdef.texts import shown

# the columns of the files that Cohen et al. publish (github.com/locuslab/smoothing, data/certify)
COLUMNS = {"idx": int, "label": int, "predict": int, "radius": float, "correct": int, "time": str}
_AT_ONCE = 10_000  # noisy images between two times that rows are written: a second of a small network on a CPU
SMOOTHED = "smoothed"  # name of the smoothed model in the report


@dataclass(frozen=True, eq=False)
class CertifyRun:
    """A finished certification of a model.

    Args:
        table: A row for each image, in the columns of the authors' files: idx (which test image), label (the true
            one), predict (-1 where the smoothed model abstains), radius, correct and time.
        certified: Certified accuracy by radius, as `kerasdef.evaluation.certified_accuracy` gives it.
        report: Both, and what the model itself says of the images, as a `Report`.
        files: What was written, by name.
    """

    table: pd.DataFrame
    certified: pd.DataFrame
    report: Report
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        """Share of the images that the model itself, without noise, labels right."""
        base, _ = self.report.outcomes
        return float(np.mean(base.predicted == base.y))

    @property
    def accuracy(self) -> float:
        """Share of the images that the smoothed model labels right; where it abstains it does not."""
        return float(self.table["correct"].mean())

    @property
    def abstained(self) -> float:
        """Share of the images on which the smoothed model abstains."""
        return float((self.table["predict"] == NOBODY).mean())

    def text(self) -> str:
        """Certified accuracy by radius for a terminal, with intervals."""
        n = len(self.table)
        console = Console(width=110, record=True, file=io.StringIO())
        console.print(Text(shown(f"{self.report.main}, on {n:,} test images of {self.report.dataset}")))
        table = Table()
        for head in ("L2 radius", "certified accuracy"):
            table.add_column(head, justify="right")
        for row in self.certified.to_dict("records"):
            table.add_row(f"{row['radius']:.4g}", _share(row["certified_accuracy"], n))
        console.print(table)
        told = {"accuracy without noise": self.clean_accuracy, "smoothed": self.accuracy, "abstained": self.abstained}
        for name, value in told.items():
            console.print(f"{name}: {_share(value, n)}, 95 % interval")
        for note in self.report.notes:
            console.print(Text(shown(note)))
        return "\n".join(line.rstrip() for line in console.export_text().rstrip().splitlines())


@takes(CertifySettings)
@checked
def certify(
    model: keras.Model | str | Path,
    data: str | Path | Dataset | tuple = CertifySettings.data,
    **given,
) -> CertifyRun:
    """Smooth a model with Gaussian noise and certify the first test images of a data set.

    A model from the folder of a run is certified on the images that this run held out for testing. With `out`, the rows
    are written as they are found, and a run that was killed goes on behind the last whole one; the same folder may be
    asked for more images later.

    Args:
        {settings}

    Raises:
        ValueError: A value out of range, too few draws for a certificate, a model that cannot be smoothed or that does
            not fit the data, or `out` is of other settings.
    """
    s = CertifySettings.of({"model": model, "data": data, **given})
    check_draws(s.draws, s.n0, s.alpha, ("draws", "n0"))
    if s.out is not None:
        places.of_certify(Path(s.out))
    data = load_dataset(s.data) if isinstance(s.data, str | Path) else s.data
    loaded = load_model(s.model, bounds=s.bounds or getattr(data, "bounds", None))
    if loaded.black_box:
        raise ValueError(
            "`model` must be a Keras model, such as the .keras file of the same run: what gives outputs only may "
            f"refuse noisy images beyond its bounds. Received: model={loaded.name!r}"
        )
    dataset = test_images(data, loaded)
    if s.n is not None and s.n > dataset.n_test:
        raise ValueError(f"`n` must be at most the number of test images, {dataset.n_test}. Received: n={s.n}")
    smoothed = Smoothed(loaded.defense, s.sigma, bounds=dataset.bounds)
    n = dataset.n_test if s.n is None else s.n
    store = _store(s, loaded, dataset)
    start = time.perf_counter()
    table = certify_set(smoothed, dataset.x_test, dataset.y_test, np.arange(n), s, out=s.out)
    report = _report(table, smoothed, loaded, dataset, s, time.perf_counter() - start)
    run = CertifyRun(table, pd.DataFrame(report.sections[0].rows), report)
    if store.folder is None:
        return run
    files = {"certificates": Path(s.out) / places.CERTIFICATES, **report.save(s.out)}
    return dataclasses.replace(run, files=files)


def _store(s: CertifySettings, loaded: Loaded, dataset: Dataset) -> Store:
    """The folder of the rows, which is that of one model and of one way to certify it."""
    if s.out is None:
        return Store(None, {})
    settings = {name: getattr(s, name) for name in ("sigma", "draws", "n0", "alpha", "seed")}
    settings |= {"model": loaded.defense, "bounds": list(dataset.bounds), "backend": backend.NAME}
    return Store(Path(s.out) / places.STATE, settings | {"data": digest(dataset.x_test, dataset.y_test)})


def certify_set(smoothed: Smoothed, x, y, rows: np.ndarray, s: CertifySettings, *, out: Path | None) -> pd.DataFrame:
    """Certify images one after the other, and keep their rows.

    Args:
        smoothed: The smoothed model.
        x: All test images.
        y: Their labels.
        rows: Which of them, in this order.
        s: How they are certified.
        out: Folder of the rows, from which a run goes on; None keeps nothing.

    Returns:
        The rows, with the columns of `COLUMNS`.
    """
    kept = None
    if out is not None:

        def fits(place: int, row: Mapping) -> bool:
            if place >= len(rows):  # of a run on more images
                return True
            return row["idx"] == rows[place] and row["label"] == y[rows[place]]

        kept = Rows(Path(out) / places.CERTIFICATES, COLUMNS, fits)
    found = [] if kept is None else kept.found[: len(rows)]
    each = max(1, _AT_ONCE // (s.draws + s.n0))
    with progress.bar("certifying", len(rows), show=s.progress, unit="images") as tick:
        tick(len(found), _note(found))
        while len(found) < len(rows):
            part = rows[len(found) : len(found) + each]
            start = time.perf_counter()
            made = smoothed.certify(
                x[part], n=s.draws, n0=s.n0, alpha=s.alpha, batch_size=s.batch_size, seed=s.seed, progress=False
            )
            took = str(datetime.timedelta(seconds=(time.perf_counter() - start) / len(part)))
            values = zip(part, y[part], made.label, made.radius, strict=True)
            new = [
                dict(zip(COLUMNS, (int(i), int(t), int(p), float(r), int(p == t), took), strict=True))
                for i, t, p, r in values
            ]
            if kept is not None:
                kept.append(new)
            found = [*found, *new]
            tick(len(new), _note(found))
    return pd.DataFrame(found, columns=list(COLUMNS))


def _note(found: list[dict]) -> str | None:
    return f"right so far {100 * np.mean([row['correct'] for row in found]):.1f} %" if found else None


def _share(value: float, n: int) -> str:
    low, high = wilson(round(value * n), n)
    return f"{value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def _radii(s: CertifySettings) -> list[float]:
    """The radii of the table: halves of sigma, as far as a certificate can reach."""
    most = largest_radius(s.draws, s.alpha, s.sigma)
    return [float(f"{k * s.sigma / 2:.6g}") for k in range(math.floor(2 * most / s.sigma) + 1)]


def _report(table, smoothed: Smoothed, loaded: Loaded, dataset: Dataset, s: CertifySettings, seconds) -> Report:
    rows, y = table["idx"].to_numpy(), table["label"].to_numpy()
    base = loaded.defense.decide(dataset.x_test[rows], bounds=dataset.bounds).label
    said = [(loaded.name, base), (f"{loaded.name}, {SMOOTHED}", table["predict"].to_numpy())]
    outcomes = [Outcome(name, "adaptive", "clean", y, label, index=rows) for name, label in said]
    names = (*dataset.class_names, *map(str, range(dataset.classes, smoothed.base.classes)))
    rejects = smoothed.labels > len(names)  # the label is there, whether it rejects or not
    correct, radius = table["correct"].to_numpy().astype(bool), table["radius"].to_numpy()
    text = (
        f"Gaussian noise of standard deviation {s.sigma:g}, not clipped; {s.n0:,} noisy copies guess the label and "
        f"{s.draws:,} others bound its probability; each certificate is wrong with a probability of at most "
        f"{s.alpha:g}. The largest radius that this can certify is "
        f"{largest_radius(s.draws, s.alpha, s.sigma):.4g}."
    )
    section = certified_section(correct, radius, _radii(s), name=outcomes[1].model, text=text)
    return Report(
        outcomes,
        classes=len(names),
        reject=len(names) if rejects else None,
        rejecting=[o.model for o in outcomes] if smoothed.base.reject is not None else [],
        class_names=names,
        bounds=dataset.bounds,
        settings={name: getattr(s, name) for name in ("sigma", "draws", "n0", "alpha")}
        | {"n": len(table), "bounds": list(dataset.bounds)},
        sections=[section],
        seed=s.seed,
        dataset=dataset.name,
        phases={"certify": seconds},
        notes=_notes(smoothed, loaded, dataset),
    )


def _notes(smoothed: Smoothed, loaded: Loaded, dataset: Dataset) -> list[str]:
    """What a reader of the certificates should know."""
    notes = ["The images are test images of the data set as it comes, which the model may have been trained on."]
    if is_resplit(dataset, loaded):
        held = loaded.settings["test_size"]
        notes = [f"The images are of the {held:.0%} of the data set that the model's run held out for testing."]
    notes.append(
        "The certificates are of the smoothed model, which averages over noise, and not of the model itself, which "
        "attacks break as before."
    )
    if smoothed.base.reject is not None:
        notes.append(
            "What is smoothed is the decision of the defense. A certified label may be that of rejected images, which "
            "counts as wrong here."
        )
    return notes
