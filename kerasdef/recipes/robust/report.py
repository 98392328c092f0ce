"""How a classifier is judged after robust training: attacks that know it whole, and the report made of them."""

from __future__ import annotations

from collections.abc import Mapping

import keras

from kerasdef import norms
from kerasdef.attacks import FGSM, PGD, Attack, AutoAttack
from kerasdef.datasets import Dataset
from kerasdef.evaluation import Evaluation, Plan, Planned
from kerasdef.recipes.base import first_examples, stratified
from kerasdef.reporting import Report
from kerasdef.runs.seeds import derive


def attacks_of(eps: float, norm: norms.Norm | str, bounds: tuple[float, float] = (0.0, 1.0)) -> dict[str, Attack]:
    """The attacks that every classifier meets (hybrid paper, section 4.1), AutoAttack aside.

    "cw" is PGD on the margin, the loss of Carlini and Wagner, within the radius (Madry et al., 2018, section 5).
    """
    return {
        "fgsm": FGSM(eps=eps, norm=norm, bounds=bounds),
        "pgd": PGD(eps=eps, norm=norm, steps=20, bounds=bounds),
        "cw": PGD(eps=eps, norm=norm, steps=20, loss="margin", bounds=bounds),
    }


def plan(name: str, data: Dataset, *, n: int, eps: float, norm: norms.Norm | str, seed: int, autoattack: bool) -> Plan:
    """Attacks on the classifier itself, each a piece that is kept.

    Args:
        name: Name of the classifier.
        data: The data set.
        n: Most test images, the classes in proportion.
        eps: Radius.
        norm: A norm or its name.
        seed: Seed of the attacks.
        autoattack: Whether AutoAttack is one of them.
    """
    attacks = attacks_of(eps, norm, data.bounds)
    if autoattack:
        attacks["autoattack"] = AutoAttack(eps=eps, norm=norm, bounds=data.bounds)
    adaptive = {}
    for attack, settings in attacks.items():
        label = f"{name}-{attack}"
        own = seed if attack == "autoattack" else derive(seed, attack)
        adaptive[attack] = Planned(
            settings, piece=f"attacks/{label}", phase=f"attack {label}", seed=own, batch_size=256
        )
    return Plan(name, stratified(data.y_test, n, derive(seed, "test")), adaptive=adaptive)


def report(
    data: Dataset,
    planned: Plan,
    found: Evaluation,
    model: keras.Model,
    costs: Mapping[str, Mapping[str, float]],
    *,
    eps: float,
    norm: norms.Norm | str,
    seed: int,
    notes: tuple[str, ...] = (),
    **rest,
) -> Report:
    """The report of one classifier.

    Args:
        data: The data set.
        planned: How it was judged.
        found: What came of that.
        model: The classifier, which says what it sees in the examples.
        costs: What training cost, by name.
        eps: Radius of the attacks.
        norm: Norm of the attacks.
        seed: Seed of the run.
        notes: More of them.
        **rest: As `Report` takes it.
    """
    examples = None
    if len(data.input_shape) == 3:
        made = {attack: x for (_, attack), x in found.images.items()}
        examples = first_examples(data.x_test[planned.rows], data.y_test[planned.rows], made, model)
    about = f"All attacks are white box, on the trained model itself, {norms.get(norm).title} radius {eps:g}."
    return Report(
        found.outcomes,
        classes=data.classes,
        main=planned.model,
        class_names=data.class_names,
        dataset=data.name,
        bounds=data.bounds,
        seed=seed,
        costs=costs,
        notes=[about, *notes],
        flags=found.flags,
        examples=examples,
        **rest,
    )
