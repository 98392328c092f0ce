"""How a classifier is judged after robust training: attacks that know it whole, and the report made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import keras
import numpy as np

from kerasdef import models, norms
from kerasdef.attacks import FGSM, PGD, Attack, AutoAttack
from kerasdef.datasets import Dataset
from kerasdef.evaluation import Outcome
from kerasdef.recipes.autoattack import run_autoattack
from kerasdef.recipes.base import first_examples, stratified
from kerasdef.reporting import Report
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store


def attacks_of(eps: float, norm: str) -> dict[str, Attack]:
    """The attacks that every classifier meets (hybrid paper, section 4.1), AutoAttack aside.

    "cw" is PGD on the margin, the loss of Carlini and Wagner, within the radius (Madry et al., 2018, section 5).
    """
    return {
        "fgsm": FGSM(eps=eps, norm=norm),
        "pgd": PGD(eps=eps, norm=norm, steps=20),
        "cw": PGD(eps=eps, norm=norm, steps=20, loss="margin"),
    }


class Judge:
    """Attacks a classifier on the first test images, each attack a piece that is kept.

    Args:
        data: The data set.
        n: Most test images, the classes in proportion.
        eps: Radius.
        norm: Name of a norm.
        seed: Of the attacks.
        show: Progress bars.
    """

    def __init__(self, data: Dataset, n: int, eps: float, norm: str, seed: int, show: bool | None):
        self.rows = stratified(data.y_test, n, derive(seed, "test"))
        self.data, self.eps, self.norm, self.seed, self.show = data, eps, norm, seed, show
        self.x, self.y = data.x_test[self.rows], data.y_test[self.rows]
        self.made: dict[str, dict[str, np.ndarray]] = {}
        self.flags: list[str] = []

    def outcome(self, name: str, column: str, attack: str, model: keras.Model, x: np.ndarray) -> Outcome:
        """What a model says of images."""
        size = keras.ops.convert_to_numpy(norms.get(self.norm).size(keras.ops.convert_to_tensor(x - self.x)))
        predicted = models.predict_logits(model, x).argmax(axis=1)
        return Outcome(name, column, attack, self.y, predicted, index=self.rows, distance=size)

    def attacked(self, pieces: Store, name: str, attack: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Adversarial images of an attack on a model, made now or found."""
        label = f"{name}-{attack}"
        piece = pieces.get(f"attacks/{label}", lambda: ({"x": make()}, {}), phase=f"attack {label}", judging=True)
        self.made.setdefault(name, {})[attack] = piece[0]["x"]
        return piece[0]["x"]

    def adaptive(self, pieces: Store, name: str, model: keras.Model, *, autoattack: bool) -> list[Outcome]:
        """Outcomes of the classifier on clean images and under every attack on itself."""
        found = [self.outcome(name, "adaptive", "clean", model, self.x)]
        options = {"batch_size": 256, "progress": self.show}
        for attack, settings in attacks_of(self.eps, self.norm).items():

            def make(attack=attack, settings=settings):
                return settings(model, self.x, self.y, seed=derive(self.seed, attack), **options)

            x = self.attacked(pieces, name, attack, make)
            found.append(self.outcome(name, "adaptive", attack, model, x))
        if autoattack:
            whole = AutoAttack(eps=self.eps, norm=self.norm)
            label = f"{name}-autoattack"
            x, flags = run_autoattack(pieces, label, whole, model, self.x, self.y, seed=self.seed, **options)
            self.made.setdefault(name, {})["autoattack"] = x
            self.flags += flags
            found.append(self.outcome(name, "adaptive", "autoattack", model, x))
        return found

    def examples(self, name: str, model: keras.Model) -> dict | None:
        """A test image of each of the first classes, and what the attacks on a model made of it."""
        if len(self.data.input_shape) != 3:
            return None
        return first_examples(self.x, self.y, self.made[name], model)

    def report(self, outcomes: list[Outcome], costs: Mapping[str, Mapping[str, float]], **rest) -> Report:
        """The report; `rest` as `Report` takes it."""
        norm = {"linf": "Linf", "l2": "L2", "l1": "L1"}[self.norm]
        notes = [f"All attacks are white box, on the trained model itself, {norm} radius {self.eps:g}."]
        return Report(
            outcomes,
            classes=self.data.classes,
            class_names=self.data.class_names,
            dataset=self.data.name,
            bounds=self.data.bounds,
            seed=self.seed,
            costs=costs,
            notes=[*notes, *rest.pop("notes", ())],
            flags=self.flags,
            **rest,
        )
