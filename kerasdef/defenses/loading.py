"""Defenses and classifiers as users have them: an object, a .keras file, the folder of a run, a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from kerasdef import checks
from kerasdef.annotations import checked
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.defenses.base import Defense, Outputs, as_defense
from kerasdef.models.bounds import UNIT, input_bounds
from kerasdef.models.export import run_of
from kerasdef.models.loading import read_keras as read_keras
from kerasdef.models.served import Served, is_saved_model


@dataclass(frozen=True, eq=False)
class Loaded:
    """A defense, and where it is from.

    Args:
        defense: What is attacked; a plain classifier is a defense without a reject class.
        name: Name in words, for reports.
        settings: Settings of the run that it is from, None for others.
    """

    defense: Defense | Outputs
    name: str
    settings: dict | None = None

    @property
    def black_box(self) -> bool:
        """Whether the defense gives outputs only."""
        return isinstance(self.defense, Outputs)


@checked
def load(path: str | Path, *, trust: bool = False) -> Defense | Outputs:
    """The defense of a .keras file, of the folder of a finished run, or of a SavedModel.

    A plain classifier comes back as a defense without a reject class, a SavedModel as one that gives outputs only. A
    .keras file is read in Keras' safe mode; a SavedModel is a program, whose operations run in this process.

    Args:
        path: The file or folder.
        trust: Whether a SavedModel may have operations that touch files, processes, Python or the network. Without it
            such a SavedModel is refused before any of it runs, which is a seat belt and no sandbox.

    Raises:
        ValueError: There is no model where the path leads, or a SavedModel has such operations.
    """
    return load_model(Path(path), trust=trust).defense


def load_model(
    model: keras.Model | Callable | str | Path,
    *,
    bounds: tuple[float, float] | None = None,
    trust: bool = False,
) -> Loaded:
    """Make a defense of any model, and tell what is known of where it is from.

    Args:
        model: A defense, a built Keras classifier, a callable from images to logits, probabilities or labels, a .keras
            file, the folder of a finished run, or the folder of a SavedModel (outputs only: black-box attacks).
        bounds: `(low, high)`: range of the values of the data, which a classifier or callable takes that does not say
            its own. None is (0, 1).
        trust: As in `load`.

    Raises:
        ValueError: There is no model where the path leads, or a SavedModel has operations that are not allowed.
    """
    if not isinstance(model, str | Path):
        if not isinstance(model, keras.Model | Outputs) and not callable(model):
            raise ValueError(f"`model` must be a Keras model, a callable or a path. Received: model={model!r}")
        return Loaded(_defense(model, bounds), getattr(model, "name", getattr(model, "__name__", "model")))
    path = Path(model)
    if path.suffix == ".keras" and path.is_file():
        return Loaded(_defense(read_keras(path), bounds), path.stem, run_of(path))
    if is_saved_model(path):
        served = Served(path, trust=trust)
        facts = {"classes": served.classes, "reject": served.reject}
        facts["bounds"] = served.bounds or (UNIT if bounds is None else bounds)
        return Loaded(Outputs(served, name=path.name, **facts), path.name, run_of(path))
    files = sorted(path.glob("*.keras")) if path.is_dir() else []
    if len(files) == 1:
        return Loaded(_defense(read_keras(files[0]), bounds), path.name, run_of(files[0]))
    raise ValueError(
        "`model` must be a .keras file, the folder of a finished run, or the folder of a SavedModel. "
        f"Received: model={str(model)!r}"
    )


def _defense(model, bounds) -> Defense | Outputs:
    """A defense of a model, with these bounds where the model says none."""
    return as_defense(model, bounds=None if input_bounds(model) else bounds)


def test_images(data: str | Path | Dataset | tuple, loaded: Loaded) -> Dataset:
    """The data set, split as the run split it that the model is from: its test images were not trained on.

    Arrays (x, y) that no run split are test images, all of them.
    """
    if isinstance(data, tuple | list) and len(data) == 2 and not isinstance(data[0], tuple):
        y = checks.labels("y", data[1])
        whole = Dataset.from_arrays(data[0], y, data[0], y)
        _, counts = np.unique(whole.y_test, return_counts=True)
        if counts.min() < 2 or 0.3 * whole.n_test < len(counts):  # too few for a run to have divided them
            return whole
        dataset = as_dataset(data)
        if not is_resplit(dataset, loaded):
            return whole
    else:
        dataset = as_dataset(data)
    if is_resplit(dataset, loaded):
        return dataset.resplit(loaded.settings["test_size"], seed=loaded.settings["seed"])
    return dataset


def is_resplit(dataset: Dataset, loaded: Loaded) -> bool:
    """Whether the run that the model is from divided these very samples anew."""
    settings = loaded.settings or {}
    return "test_size" in settings and settings.get("data") == dataset.fingerprint
