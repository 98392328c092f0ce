"""The decision boundaries of a classifier around a sample, as an attack that linearizes them sees them."""

from __future__ import annotations

import keras
from keras import ops

from kerasdef import backend, losses, norms
from kerasdef import random as draws
from kerasdef.goals import Goal, Hit
from kerasdef.norms import L1, L2, Linf, Norm

_DUAL = {Linf: L1(), L2: L2(), L1: Linf()}
_ROUNDING = 1e-5  # of the largest logit: some hundred roundings of float32
_AWAY = 1e6  # gap to a class whose logit is not finite
_TINY = 1e-12  # keeps the distance to the boundary of a flat function finite (FAB, authors' code)


def supported(norm: Norm | str, allowed: tuple[type, ...] = (Linf, L2, L1)) -> Norm:
    """Return the norm object, or raise where an attack has no closed form for it."""
    norm = norms.get(norm)
    if type(norm) not in allowed:
        names = " or ".join(t.__name__.lower() for t in allowed)
        raise ValueError(f"`norm` must be {names} here. Received: norm={norm!r}")
    return norm


def dual_size(norm: Norm, slope):
    """Dual norm of every gradient, (n, ...) to (n,), above 0: a linear function grows by it in the ball of radius 1."""
    return ops.maximum(_DUAL[type(norm)].size(slope), _TINY)


def rivals(goal: Goal, logits, y, count: int):
    """The `count` most likely classes that the attacker wants, of shape (n, count), the most likely first."""
    seen = goal.merged(logits, y)
    own = ops.one_hot(ops.cast(y, "int32"), seen.shape[-1], dtype=seen.dtype)
    return ops.cast(ops.top_k(seen - 2.0 * losses.FAR * own, count)[1], "int32")


def crossed(goal: Goal, logits, y):
    """Booleans of shape (n,): the goal is reached, by more than what another batch or device may round away."""
    scale = ops.max(ops.abs(norms.flatten(logits)), axis=1)
    clear = ops.abs(goal.value(losses.margin, logits, y)) > _ROUNDING * scale
    return ops.logical_and(goal.reached(logits, y), clear)


def gaps(goal: Goal, logits, y, classes):
    """Logits of classes minus the label's: (n, c), above 0 beyond the boundary. A `Hit` has one, around its class."""
    if isinstance(goal, Hit):
        return ops.expand_dims(goal.value(losses.margin, logits, y), 1)
    seen = goal.merged(logits, y)
    return ops.take_along_axis(seen, classes, axis=1) - ops.expand_dims(losses.pick(seen, y), 1)


def linearize(attack, model, y, classes, z, state):
    """Gaps to classes at z, their gradients, and the logits, averaged over the attack's `samples` draws.

    Args:
        attack: The `StepAttack` that asks, for its goal and its number of draws.
        model: The classifier.
        y: Labels of shape (n,).
        classes: Integers of shape (n, c).
        z: Tensor of shape (n, ...).
        state: The state: its "seed" and "moves" give every sample, step and draw noise of its own.

    Returns:
        `(gaps, slopes, logits)` of shapes (n, c), (n, c, ...) and (n, classes).
    """
    total = None
    for i in range(attack.samples):
        draw = draws.fold(state["seed"], state["moves"] * attack.samples + i) if model.random else None

        def fn(v, draw=draw):
            logits = model.logits(v, draw)
            return gaps(attack.goal, logits, y, classes), logits

        values, logits, slopes = backend.jacobian(fn)(z)
        found = (values, slopes, logits)
        total = found if total is None else keras.tree.map_structure(ops.add, total, found)
    values, slopes, logits = (
        keras.tree.map_structure(lambda t: t / attack.samples, total) if attack.samples > 1 else total
    )
    # what is not finite: a boundary far away, and no slope
    return ops.where(ops.isfinite(values), values, -_AWAY), ops.where(ops.isfinite(slopes), slopes, 0.0), logits


def nearest(norm: Norm, values, slopes):
    """The nearest of the linearized boundaries.

    Args:
        norm: Norm of the distance.
        values: Gaps of shape (n, c).
        slopes: Their gradients, of shape (n, c, ...).

    Returns:
        `(gap, slope)` of shapes (n,) and (n, ...).
    """
    if slopes.shape[1] == 1:
        return values[:, 0], slopes[:, 0]
    shape = tuple(slopes.shape[2:])
    size = ops.reshape(dual_size(norm, ops.reshape(slopes, (-1, *shape))), (-1, slopes.shape[1]))
    best = ops.expand_dims(ops.argmin(ops.abs(values) / size, axis=1), 1)
    at = ops.reshape(best, (-1, 1) + (1,) * len(shape))
    return ops.take_along_axis(values, best, axis=1)[:, 0], ops.take_along_axis(slopes, at, axis=1)[:, 0]
