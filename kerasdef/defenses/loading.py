"""Models as users have them: an object, a .keras file, the folder of a run, a SavedModel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

import kerasdef.defenses  # registers the layers, so that .keras files load in safe mode
import kerasdef.models.blocks
from kerasdef import checks
from kerasdef.attacks import Goal, Misclassify
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.defenses import attackable
from kerasdef.models.export import run_of, served


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model that is ready to be attacked.

    Args:
        model: Keras model of logits, or a callable from images to scores.
        goal: What an attacker of it wants.
        name: In words, for reports.
        classes: Number of real classes, None where it cannot be known.
        reject: Label that stands for "adversarial", or None.
        settings: Settings of the run that it is from, empty for others.
    """

    model: keras.Model | Callable
    goal: Goal
    name: str
    classes: int | None = None
    reject: int | None = None
    settings: dict | None = None

    @property
    def black_box(self) -> bool:
        """Whether the model gives outputs only."""
        return not isinstance(self.model, keras.Model)


def load_model(model: keras.Model | Callable | str | Path) -> Loaded:
    """Make a model ready to be attacked.

    A defense that votes is attacked whole, with all its members, for a label that is neither the true one nor
    "adversarial".

    Args:
        model: A built Keras classifier, a callable from images to logits, probabilities or labels, a .keras file, the
            folder of a finished run, or the folder of a SavedModel (outputs only: black-box attacks).

    Raises:
        ValueError: There is no model where the path leads.
    """
    if isinstance(model, keras.Model):
        return _keras(model, model.name)
    if not isinstance(model, str | Path):
        if callable(model):
            return Loaded(model, Misclassify(), getattr(model, "__name__", "model"))
        raise ValueError(f"`model` must be a Keras model, a callable or a path. Received: model={model!r}")
    path = Path(model)
    if path.suffix == ".keras" and path.is_file():
        return _keras(keras.saving.load_model(path, safe_mode=True), path.stem, run_of(path))
    if (path / "saved_model.pb").is_file():
        (scores, reject), settings = served(path), run_of(path)
        reject = scores.classes - 1 if _of_iar(settings) else reject
        goal = Misclassify() if reject is None else kerasdef.attacks.Evade(reject)
        return Loaded(scores, goal, path.name, classes=reject, reject=reject, settings=settings)
    files = sorted(path.glob("*.keras")) if path.is_dir() else []
    if len(files) == 1:
        return _keras(keras.saving.load_model(files[0], safe_mode=True), path.name, run_of(files[0]))
    raise ValueError(
        "`model` must be a .keras file, the folder of a finished run, or the folder of a SavedModel. "
        f"Received: model={str(model)!r}"
    )


def read_keras(path: str | Path) -> keras.Model:
    """The model of a .keras file.

    Raises:
        ValueError: There is no such file.
    """
    path = Path(path)
    if path.suffix != ".keras" or not path.is_file():
        raise ValueError(f"`model` must be a .keras file. Received: model={str(path)!r}")
    return keras.saving.load_model(path, safe_mode=True)


def _of_iar(settings: dict | None) -> bool:
    """Whether a run made a plain classifier whose last class stands for "adversarial"."""
    return (settings or {}).get("recipe") == "iar"


def _keras(model: keras.Model, name: str, settings: dict | None = None) -> Loaded:
    model, goal = attackable(model)
    if _of_iar(settings):
        goal = kerasdef.attacks.Evade(model.output_shape[-1] - 1)
    classes = model.output_shape[-1]
    reject = getattr(goal, "reject", None)
    return Loaded(model, goal, name, classes if reject is None else classes - 1, reject, settings)


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
    return "test_size" in settings and settings.get("data") == dataset.fingerprint()
