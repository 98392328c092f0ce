"""The contract of a defense."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from keras import ops

from kerasdef import backend, losses, models
from kerasdef.annotations import checked
from kerasdef.attacks import PGD
from kerasdef.defenses import Decision, Defense, load
from kerasdef.models import Victim
from kerasdef.models.bounds import from_pixels
from kerasdef.models.export import export
from kerasdef.testing.attacks import claim

_N = 24


@checked
def check_defense(defense: Defense, *, saved_model: bool = True) -> None:
    """Check that a defense keeps the contract of all defenses; it takes some seconds.

    Clauses: `decide` gives labels, rejections, scores and probabilities that belong together, the same as a call on a
    tensor, for any batch size, for uint8 as for float images, and refuses bad data; `surface` gives a model through
    which gradients flow, on whose logits the goal is reached exactly where the decision is neither the true label nor
    a rejection; an attack on it runs; what is saved as .keras or as a SavedModel and moved alone to another folder has
    the same kind, classes, reject class, bounds and goal, and decides alike; the weights stay as they are.

    Args:
        defense: A `Defense`.
        saved_model: Whether a SavedModel is among the files; with JAX another process writes it, in some ten seconds.

    Raises:
        AssertionError: A clause does not hold; the message names it.
        ValueError: It is not a `Defense`.
    """
    if not isinstance(defense, Defense):
        raise ValueError(f"`defense` must be a Defense. Received: defense={defense!r}")
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (_N, *defense.input_shape[1:])).astype("uint8")
    x = from_pixels(pixels, defense.bounds)
    variables = [v for v in defense.variables if not backend.is_seed(v)]  # draws that are made move on
    weights = [ops.convert_to_numpy(v).copy() for v in variables]
    found = defense.decide(x)
    _check_decision(defense, x, pixels, found)
    _check_surface(defense, x, found, rng)
    _check_files(defense, x, found, saved_model)
    same = [np.array_equal(ops.convert_to_numpy(v), w) for v, w in zip(variables, weights, strict=True)]
    claim(defense, "the weights stay as they are", all(same))


def _alike(a: Decision, b: Decision) -> bool:
    """Whether two decisions agree, up to the rounding of another batch size or graph."""
    tied = np.ptp(np.sort(b.probabilities, axis=1)[:, -2:], axis=1) < 1e-4
    if (a.score is None) != (b.score is None) or np.abs(a.probabilities - b.probabilities).max() > 1e-4:
        return False
    return bool(np.all((a.label == b.label) | tied) and np.all((a.rejected == b.rejected) | tied))


def _check_decision(defense: Defense, x, pixels, found: Decision) -> None:
    columns = found.probabilities.shape[1]
    claim(defense, "classes", defense.classes in (columns, columns - 1), f"Received: {columns} probabilities.")
    claim(defense, "label: integers of shape (n,)", found.label.shape == (_N,) and found.label.dtype == np.int64)
    claim(defense, "label: one of the outputs", found.label.min() >= 0 and found.label.max() < columns)
    claim(defense, "rejected: booleans", found.rejected.shape == (_N,) and found.rejected.dtype == bool)
    rejected = np.zeros(_N, bool) if defense.reject is None else found.label == defense.reject
    claim(defense, "rejected: those with the label that rejects", np.array_equal(found.rejected, rejected))
    total = found.probabilities.sum(axis=1)
    claim(defense, "probabilities: each row sums to 1", np.allclose(total, 1, atol=1e-5), f"Received: {total}.")
    claim(defense, "score: only where something is rejected", (found.score is None) == (defense.reject is None))
    if found.score is not None:
        claim(defense, "score: one for each sample", found.score.shape == (_N,) and np.isfinite(found.score).all())

    called = {name: ops.convert_to_numpy(v) for name, v in defense(ops.convert_to_tensor(x), training=False).items()}
    score = None if defense.reject is None else called["probabilities"][:, defense.reject]
    direct = Decision(called["label"], called["label"] == defense.reject, score, called["probabilities"])
    for size in (1, 7, 256):
        claim(defense, f"the same for batch_size={size}", _alike(defense.decide(x, batch_size=size), found))
    if not Victim.of(defense.surface()[0]).random:  # else other draws: those of a call, and of another position
        claim(defense, "a call decides as `decide`", _alike(direct, found))
        one = defense.decide(x[3:4])
        claim(defense, "one sample alone", np.abs(one.probabilities - found.probabilities[3:4]).max() <= 1e-4)
    claim(defense, "uint8 images are mapped onto the bounds", _alike(defense.decide(pixels), found))
    unit = (pixels / 255).astype("float32")
    claim(defense, "values of another range are mapped", _alike(defense.decide(unit, bounds=(0, 1)), found))
    low, high = defense.bounds
    for clause, bad in {
        "beyond the bounds": x + (high - low),
        "NaN": np.full_like(x, np.nan),
        "another shape": x[:, None],
    }.items():
        try:
            defense.decide(bad)
        except ValueError:
            continue
        claim(defense, f"inputs {clause} are a ValueError", False)


def _check_surface(defense: Defense, x, found: Decision, rng) -> None:
    model, goal = defense.surface()
    y = np.where(rng.random(_N) < 0.5, found.label, rng.integers(0, defense.classes, _N)) % defense.classes
    logits = models.predict_logits(model, x)
    claim(defense, "surface: the same model each time", defense.surface()[0] is model)
    reached = ops.convert_to_numpy(
        goal.reached(ops.convert_to_tensor(logits), ops.convert_to_tensor(y.astype("int32")))
    )
    wanted = (found.label != y) & ~found.rejected
    tied = np.ptp(np.sort(found.probabilities, axis=1)[:, -2:], axis=1) < 1e-4
    claim(defense, "surface: the goal is reached where the decision is wrong", np.all((reached == wanted) | tied))
    view = models.logits_view(model)

    def loss(z):
        return goal.value(losses.LOSSES["margin"], view(z, training=False), ops.convert_to_tensor(y.astype("int32"))), z

    gradient = ops.convert_to_numpy(backend.gradient(loss)(ops.convert_to_tensor(x))[2])
    claim(defense, "surface: gradients are finite", np.isfinite(gradient).all())
    claim(defense, "surface: gradients flow", np.any(gradient != 0))
    eps = 0.1 * (defense.bounds[1] - defense.bounds[0])
    attack = PGD(eps=eps, steps=3, goal=goal, bounds=defense.bounds)
    x_adv = attack(model, x, y, progress=False)
    before, after = (defense.decide(v) for v in (x, x_adv))
    broken = [(d.label != y) & ~d.rejected for d in (before, after)]
    claim(defense, "surface: an attack does not lose what it has", broken[1].sum() >= broken[0].sum())


def _check_files(defense: Defense, x, found: Decision, saved_model: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for to, name in (("keras", "defense.keras"), ("saved_model", "defense"))[: 1 + saved_model]:
            try:
                written = export(defense, Path(folder, "first", name), to=to)
            except RuntimeError as error:
                claim(defense, f"{to}: what is written decides alike", False, str(error))
            moved = Path(folder, "second", f"moved_{name}")
            moved.parent.mkdir(exist_ok=True)
            written.rename(moved)
            again = load(moved)
            facts = {k: v for k, v in defense.facts.items() if k != "kind" or to == "keras"}
            claim(defense, f"{to}: facts", {k: again.facts[k] for k in facts} == facts, f"Received: {again.facts}.")
            if to == "keras" or not Victim.of(defense.surface()[0]).random:  # a served model makes draws of its own
                claim(defense, f"{to}: decides alike", _alike(again.decide(x), found))
            if to == "keras":
                claim(defense, "keras: the same class", type(again) is type(defense))
                claim(defense, "keras: goal", again.surface()[1] == defense.surface()[1])
