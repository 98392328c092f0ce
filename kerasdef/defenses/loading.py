"""Defenses and classifiers as users have them: an object, a .keras file, the folder of a run, a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras

from kerasdef.datasets import Dataset
from kerasdef.datasets import load as load_dataset
from kerasdef.defenses.base import Defense, Outputs, as_defense
from kerasdef.models.export import Served, run_of
from kerasdef.models.loading import read_keras as read_keras


@dataclass(frozen=True, eq=False)
class Loaded:
    """A defense, and where it is from.

    Args:
        defense: What is attacked; a plain classifier is a defense without a reject class.
        name: In words, for reports.
        settings: Settings of the run that it is from, None for others.
    """

    defense: Defense | Outputs
    name: str
    settings: dict | None = None

    @property
    def black_box(self) -> bool:
        """Whether the defense gives outputs only."""
        return isinstance(self.defense, Outputs)


def load(path: str | Path) -> Defense | Outputs:
    """The defense of a .keras file, of the folder of a finished run, or of a SavedModel.

    A plain classifier comes back as a defense without a reject class, a SavedModel as one that gives outputs only.

    Raises:
        ValueError: There is no model where the path leads.
    """
    return load_model(Path(path)).defense


def load_model(model: keras.Model | Callable | str | Path) -> Loaded:
    """Make a defense of any model, and tell what is known of where it is from.

    Args:
        model: A defense, a built Keras classifier, a callable from images to logits, probabilities or labels, a .keras
            file, the folder of a finished run, or the folder of a SavedModel (outputs only: black-box attacks).

    Raises:
        ValueError: There is no model where the path leads.
    """
    if not isinstance(model, str | Path):
        if not isinstance(model, keras.Model | Outputs) and not callable(model):
            raise ValueError(f"`model` must be a Keras model, a callable or a path. Received: model={model!r}")
        return Loaded(as_defense(model), getattr(model, "name", getattr(model, "__name__", "model")))
    path = Path(model)
    if path.suffix == ".keras" and path.is_file():
        return Loaded(as_defense(read_keras(path)), path.stem, run_of(path))
    if (path / "saved_model.pb").is_file():
        served = Served(path)
        facts = {"classes": served.classes, "reject": served.reject, "bounds": served.bounds}
        return Loaded(Outputs(served, name=path.name, **facts), path.name, run_of(path))
    files = sorted(path.glob("*.keras")) if path.is_dir() else []
    if len(files) == 1:
        return Loaded(as_defense(read_keras(files[0])), path.name, run_of(files[0]))
    raise ValueError(
        "`model` must be a .keras file, the folder of a finished run, or the folder of a SavedModel. "
        f"Received: model={str(model)!r}"
    )


def test_images(dataset: str | Path | Dataset, loaded: Loaded) -> Dataset:
    """The data set, split as the run split it that the model is from: its test images were not trained on."""
    dataset = load_dataset(dataset) if isinstance(dataset, str | Path) else dataset
    if is_resplit(dataset, loaded):
        return dataset.resplit(loaded.settings["test_size"], seed=loaded.settings["seed"])
    return dataset


def is_resplit(dataset: Dataset, loaded: Loaded) -> bool:
    """Whether the run that the model is from divided these very samples anew."""
    settings = loaded.settings or {}
    return "test_size" in settings and settings.get("data") == dataset.fingerprint
