"""GMA against undefended networks of several sizes, as one call (mia paper, section 6.2, figures 7 to 9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from kerasdef import checks
from kerasdef.attacks import GMA, GMAAnalysis, gma_analysis
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.evaluation import Plan, Planned, evaluate
from kerasdef.identity import digest, identity
from kerasdef.models import networks
from kerasdef.recipes.base import fit, unfinished
from kerasdef.reporting import Report
from kerasdef.runs.pieces import restore, weights_piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store
from kerasdef.training import Mixture

VICTIMS = ("vgg7", "vgg16", "resnet32", "resnet50")  # paper, section 6.2


@dataclass(frozen=True, eq=False)
class Victims:
    """Networks under GMA.

    Args:
        models: The trained networks by name.
        analyses: What Algorithm 2 found for each.
        report: Accuracy before and after, per radius, with intervals and figures.
        files: What was written, by name.
    """

    models: Mapping[str, keras.Model]
    analyses: Mapping[str, GMAAnalysis]
    report: Report
    files: Mapping[str, Path]

    def table(self) -> pd.DataFrame:
        """One row for each network: clean accuracy, accuracy under GMA, success of the attack, the case."""
        return pd.DataFrame(
            {
                "network": name,
                "clean": found.baseline,
                "under GMA": min(found.rounds),
                "GMA success rate": 1.0 - min(found.rounds),
                "below the worst case": found.success,
                "case": found.case,
            }
            for name, found in self.analyses.items()
        ).set_index("network")


def gma_victims(
    data: str | Path | Dataset | tuple = "digits",
    *,
    victims: Sequence[str] = VICTIMS,
    attack: GMA | None = None,
    epochs: int = 5,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    limit: int = 1000,
    seed: int = 0,
    out: str | Path | None = None,
    progress: bool | None = None,
) -> Victims:
    """Train undefended networks on a data set, attack each with GMA, and analyze what is left (Algorithm 2).

    Args:
        data: A name, the path of an .npz file, a `Dataset`, or arrays (x, y).
        victims: Names of networks; the paper's four by default.
        attack: A `GMA`; None for the default.
        epochs: Passes of each network.
        batch_size: Samples in a training batch.
        learning_rate: Learning rate of Adam, above 0.
        limit: Most test images that are attacked.
        seed: All randomness comes from it.
        out: Folder for the run; a run that was killed goes on from the last finished network.
        progress: Whether progress bars are shown; None shows them on a terminal and in notebooks.

    Raises:
        ValueError: A setting is out of range, a name is unknown, or `out` is of another run.

    References: Sanapala and Gondi, 2025, section 6.2.
    """
    dataset = as_dataset(data)
    attack = GMA(bounds=dataset.bounds) if attack is None else attack
    if not isinstance(attack, GMA):
        raise ValueError(f"`attack` must be a GMA. Received: attack={attack!r}")
    victims = (victims,) if isinstance(victims, str) else tuple(victims)
    if not victims:
        raise ValueError("`victims` must name at least one network. Received: victims=()")
    for name in victims:
        checks.one_of("victims", name, networks.NETWORKS)
    checks.positive_int("epochs", epochs)
    checks.positive_int("limit", limit)
    checks.non_negative_int("seed", seed)
    settings = {
        "recipe": "gma_victims",
        "dataset": dataset.name,
        "fingerprint": digest(dataset.x_train, dataset.y_train, dataset.x_test, dataset.y_test),
        "victims": list(victims),
        "attack": identity(attack, "attack"),
        "epochs": epochs,
        "batch_size": checks.positive_int("batch_size", batch_size),
        "learning_rate": checks.real("learning_rate", learning_rate, low=0.0, open_low=True),
        "limit": limit,
        "seed": seed,
    }
    train = Mixture([(dataset.x_train, dataset.y_train)], batch_size=batch_size, seed=derive(seed, "order"))
    built = {
        name: networks.build(name, dataset.input_shape, dataset.classes, seed=derive(seed, name)) for name in victims
    }
    pieces = Store(out, settings)
    x, y = dataset.x_test[:limit], dataset.y_test[:limit]
    outcomes, analyses, history = [], {}, {}
    for name, model in built.items():

        def make(model=model, name=name):
            options = {"epochs": epochs, "title": name, "learning_rate": learning_rate, "show": progress}
            options["keep"] = unfinished(pieces, name)
            return weights_piece(model, fit(model, train, **options))

        piece = pieces.get(name, make, phase=f"train/{name}")
        restore(model, piece)
        history[name] = piece[1]["history"]
        analyses[name] = gma_analysis(model, x, y, attack=attack, seed=derive(seed, name, "gma"), progress=progress)
        planned = Planned(attack, piece=f"{name}/gma", seed=derive(seed, name, "report"))
        plan = Plan(name, np.arange(min(limit, len(x))), adaptive={"gma": planned})
        outcomes += evaluate(model, dataset, plan, pieces, progress=progress).outcomes
    report = Report(
        outcomes,
        classes=dataset.classes,
        class_names=dataset.class_names,
        settings=settings,
        seed=seed,
        dataset=dataset.name,
        phases=pieces.seconds,
        history=history,
        notes=["GMA is made on each network itself; there is no defense."],
    )
    files = {} if out is None else report.save(out)
    return Victims(built, analyses, report, files)
