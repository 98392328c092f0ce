"""Carrying out a plan: images are made through a store, the defense decides, and outcomes are kept image by image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import keras
import numpy as np
import pandas as pd
from keras import ops

from kerasdef import norms
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import Attack, Transfer, WorstOf, Wrapper, sequence
from kerasdef.attacks.sequence import STANDS, PartByPart, SequenceResult
from kerasdef.datasets import Dataset
from kerasdef.defenses.base import Defense, Outputs, as_defense
from kerasdef.evaluation.outcomes import CLEAN, COLUMNS, Outcome
from kerasdef.evaluation.plan import Images, Plan, Planned
from kerasdef.models.bounds import input_bounds
from kerasdef.norms import Norm
from kerasdef.runs import keeping
from kerasdef.runs.store import Store

_ACCESS = {"white box": "gradients", "black box": "scores"}


@dataclass
class Evaluation:
    """What came of a plan.

    Args:
        outcomes: What the defense said, of the clean images first.
        flags: Signs that an attack was weak, in words.
        images: Adversarial images by (column, attack).
        results: What attacks found that went part by part, by (column, attack).
    """

    outcomes: list[Outcome] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    images: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    results: dict[tuple[str, str], SequenceResult] = field(default_factory=dict)

    def __post_init__(self):
        check_fields(self)


@checked
def evaluate(
    defense: Defense | Outputs | keras.Model,
    data: Dataset,
    plan: Plan,
    store: Store | None = None,
    *,
    progress: bool | None = None,
) -> Evaluation:
    """Make the images of a plan, and ask a defense about them.

    Every attack is a judging piece of the store, so a run that was killed goes on with the first that is not there.
    An attack that goes part by part, as AutoAttack does, goes on within.

    Args:
        defense: What is judged; a plain classifier is a defense without a reject class.
        data: Its test images are judged on.
        plan: The attacks.
        store: Keeps the images; None keeps nothing.
        progress: Show bars; None shows them on a terminal and in notebooks.

    Returns:
        An `Evaluation`. The clean outcome is in the first column that has attacks ("adaptive" if none has).
    """
    if not isinstance(defense, Defense | Outputs):
        defense = as_defense(defense, bounds=input_bounds(defense) or data.bounds)
    indices = [plan.rows, *(i.index for c in COLUMNS for i in plan.of(c).values() if isinstance(i, Images))]
    if max(int(np.max(index, initial=0)) for index in indices) >= data.n_test:
        raise ValueError(f"`plan` must name some of the {data.n_test} test images. Received: plan={plan!r}")
    store = Store(None, {}) if store is None else store
    x, y = data.x_test[plan.rows], data.y_test[plan.rows]
    found = Evaluation()
    first = next((c for c in COLUMNS if plan.of(c)), COLUMNS[-1])
    found.outcomes.append(Outcome(plan.model, first, CLEAN, y, *_answer(defense, x, data.bounds), index=plan.rows))
    for column in COLUMNS:
        for name, planned in plan.of(column).items():
            if isinstance(planned, Planned):
                images, flags, result = _made(defense, x, y, plan, column, name, planned, store, progress)
                found.flags += [flag for flag in flags if flag not in found.flags]
                if result is not None:
                    found.results[column, name] = result
            else:
                images = planned
            found.images[column, name] = images.x
            norm = norms.get("l2" if images.norm is None else images.norm)
            values = {
                "radius": images.radius,
                "index": images.index,
                "distance": distances(norm, data.x_test[images.index], images.x),
                "norm": norm.title,
                "access": images.access,
            }
            said = _answer(defense, images.x, data.bounds)
            found.outcomes.append(Outcome(plan.model, column, name, data.y_test[images.index], *said, **values))
    return found


def distances(norm: Norm, x: np.ndarray, x_adv: np.ndarray) -> np.ndarray:
    """Size of each change in a norm, of shape (n,)."""
    change = np.asarray(x_adv, dtype="float32") - np.asarray(x, dtype="float32")
    return ops.convert_to_numpy(norm.size(ops.convert_to_tensor(change)))


def reach(attack, n: int) -> tuple[Norm | None, np.ndarray | None]:
    """Norm of an attack, and its radius for each image that it makes of n samples; None where it has none.

    Args:
        attack: An attack, a wrapper of one, or any callable.
        n: Number of samples.
    """
    if isinstance(attack, Wrapper):  # its own norm, where it has one, only compares what was found
        norm, radius = reach(attack.attack, n)
        return norm, np.asarray(attack.radii_of(n), dtype="float32") if hasattr(attack, "radii_of") else radius
    if isinstance(attack, WorstOf):
        norm, radius = reach(attack.attacks[0], n)
        others = [reach(a, n) for a in attack.attacks[1:]]
        same = all(a == norm and np.array_equal(r, radius) for a, r in others)
        return (norm, radius) if same else (None, None)
    threat = getattr(attack, "threat", attack)
    norm, eps = getattr(threat, "norm", None), getattr(threat, "eps", None)
    radius = attack.radii_of(n) if hasattr(attack, "radii_of") else eps
    if radius is not None:
        radius = np.asarray(radius, dtype="float32")
        radius = np.broadcast_to(radius, (n,)) if radius.ndim == 0 else radius
    return None if norm is None else norms.get(norm), radius


def access(planned: Planned) -> str:
    """What the attacker has of the model that is judged: "gradients", "scores", "labels" or "none"."""
    attack = planned.attack
    if planned.access is not None:
        return planned.access
    if planned.on is not None or isinstance(attack, Transfer):
        return "none"
    return _ACCESS[getattr(attack, "access", "white box")]


def _answer(defense, x, bounds) -> tuple[np.ndarray, np.ndarray | None]:
    decision = defense.decide(x, bounds=bounds)
    return decision.label, decision.score


def _made(defense, x, y, plan: Plan, column, name, planned: Planned, store: Store, progress):
    """The images of a planned attack, what makes them doubtful, and the parts of an attack that has them."""
    victim, attack = planned.on, planned.attack
    if victim is None:
        victim, goal = defense.surface()
        attack = attack.with_goal(goal) if hasattr(attack, "with_goal") else attack
    rows, x, y = plan.rows[: planned.count], x[: planned.count], y[: planned.count]
    piece = f"{column}/{name}" if planned.piece is None else planned.piece
    options = {"seed": planned.seed, "progress": progress}
    options |= {} if planned.batch_size is None else {"batch_size": planned.batch_size}

    def make():
        parts = None
        if isinstance(attack, PartByPart):
            parts = attack.run(victim, x, y, out=store.path(piece, judging=True), **options)
        elif planned.standing:
            view, clean, truth = attack._prepare(victim, x, y)
            state = store.path(piece, judging=True)
            parts = sequence.run({name: attack}, view, clean, truth, out=state, **options)
        if parts is None:
            looks = isinstance(attack, Attack) and isinstance(victim, keras.Model)
            seen = attack.look(victim, x, y) if looks else {}
            with keeping.kept(store.path(piece, judging=True), store.of(piece)):
                return {"x": attack(victim, x, y, **options)}, {"flags": seen}
        arrays = {"x": parts.x_adv, "broken_by": parts.broken_by, "evaluations": parts.evaluations}
        return arrays, {"flags": parts.flags, "parts": parts.table.to_dict("records")}

    phase = f"attack {piece}" if planned.phase is None else planned.phase
    arrays, meta = store.get(piece, make, phase=phase, judging=True)
    result = _parts(arrays, meta) if "broken_by" in arrays else None
    norm, radius = reach(attack, len(rows))
    if result is not None and getattr(attack, "kind", "budget") == "minimal":
        result = _within(result, x, norms.get("l2" if norm is None else norm), planned.within)
        radius = None if planned.within is None else np.full(len(rows), planned.within)
    x_adv = arrays["x"] if result is None else result.x_adv
    times = len(x_adv) // len(rows)  # an attack at all its radii makes several images of one
    if radius is not None and len(radius) != len(x_adv):
        radius = np.repeat(radius, times)
    images = Images(x_adv, np.repeat(rows, times), radius, norm, access(planned))
    return images, list(meta["flags"].values()), result


def _parts(arrays, meta) -> SequenceResult:
    """The result of an attack that went part by part, from its piece."""
    broken_by, table = arrays["broken_by"], pd.DataFrame(meta["parts"])
    names = tuple(table["attack"])
    found = {"parts": names, "broken_by": broken_by, "table": table, "flags": meta["flags"]}
    return SequenceResult(arrays["x"], broken_by != STANDS, arrays["evaluations"], **found)


def _within(result: SequenceResult, x: np.ndarray, norm: Norm, eps: float | None) -> SequenceResult:
    """A minimal attack's result in which changes beyond eps do not count."""
    beyond = (result.broken_by >= 0) & (distances(norm, x, result.x_adv) > (math.inf if eps is None else eps))
    broken_by = np.where(beyond, STANDS, result.broken_by)
    x_adv = np.array(result.x_adv)
    x_adv[beyond] = x[beyond]
    found = {"parts": result.parts, "broken_by": broken_by, "table": result.table, "flags": result.flags}
    return SequenceResult(x_adv, broken_by != STANDS, result.evaluations, **found)
