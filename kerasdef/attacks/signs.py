"""Signs that an attack may be blind: facts about a model that make it look more robust than it is."""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kerasdef import backend, losses, models, norms
from kerasdef.goals import Goal, Misclassify, answered
from kerasdef.models import Victim, WhiteBox

LOOKED_AT = 256  # samples on which a model is looked at
SURE = 0.1  # share of gradients of exactly zero from which a result is doubtful
_FAR = 0.25  # of the way from the best constant answer to a perfect one: a model below it has not learned the data
_ENOUGH = 30  # samples below which an accuracy says little
_ROUNDING = float(np.finfo("float32").eps)  # a cross-entropy below it has a gradient of rounding errors alone
_KEPT = 16  # programs of one model that are kept
_PROGRAMS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def blind_spots(
    model: keras.Model | Victim, x, y, goal: Goal | None = None, loss: Callable | None = None
) -> dict[str, str]:
    """Return what about a model hides weaknesses from attacks, as sentences by the name of the sign.

    Args:
        model: A built Keras classifier, or the `Victim` of one, which may face data in another range.
        x: Clean images of shape (n, ...), float32, as the model or the victim takes them. The first 256 are looked at.
        y: Their labels of shape (n,), or the targets if the goal is `Hit()`.
        goal: What the attacker wants; `Misclassify()` by default. The accuracy is looked at for untargeted goals only.
        loss: A function of (logits, y) that the attacker climbs; None is the cross-entropy.

    Returns:
        "non_finite": outputs, losses or gradients that are not finite, and their shares.
        "softmax_output": outputs that are probabilities. "zero_gradients": images that the model gets right and whose
        loss has no gradient. "low_accuracy": an accuracy far below what the data allow.
    """
    goal = Misclassify() if goal is None else goal
    x, y = np.asarray(x[:LOOKED_AT], dtype="float32"), np.asarray(y[:LOOKED_AT]).astype("int32")
    size = min(LOOKED_AT, max(8, 1 << (len(x) - 1).bit_length()))  # few sizes: few traces
    found = _program(Victim.of(model), goal, loss)(*(ops.convert_to_tensor(models.pad(v, size)) for v in (x, y)))
    logits, reached, zero, broken = (ops.convert_to_numpy(v)[: len(x)] for v in found)
    spots = non_finite(float(np.mean(~ops.convert_to_numpy(answered(logits)))), float(broken.mean()))
    if are_probabilities(logits):
        spots["softmax_output"] = SOFTMAX
    if not reached.all():
        spots |= zero_gradients(float(zero[~reached].mean()), "cross-entropy" if loss is None else "attack's own loss")
    if isinstance(goal, Misclassify):
        right = ops.convert_to_numpy(answered(logits)) & (logits.argmax(axis=-1) == y)
        often = np.bincount(y, minlength=logits.shape[-1]).max() / len(y)
        spots |= low_accuracy(float(np.mean(right)), float(often), len(y))
    return spots


def _program(victim: WhiteBox, goal: Goal, loss: Callable | None):
    """The compiled look at a model, kept as long as the model lives."""
    kept = _PROGRAMS.setdefault(victim.view, {})
    key = goal, loss, victim.map
    if key not in kept:
        back = victim.weak()  # what is kept must not keep the model alive
        kept[key] = backend.compiled(lambda x, y: look_at(back().logits, x, y, goal, loss), victim.view)
        if len(kept) > _KEPT:
            kept.pop(next(iter(kept)))
    return kept[key]


def look_at(call, x, y, goal: Goal, loss: Callable | None = None):
    """Look at the outputs and gradients of a batch; traceable.

    Args:
        call: Maps images to outputs of shape (n, classes) that are taken for logits.
        x: Tensor of shape (n, ...), float32.
        y: Labels of shape (n,), integers.
        goal: What the attacker wants.
        loss: A function of (logits, y) that the attacker climbs; None is the cross-entropy.

    Returns:
        The outputs, and three times booleans of shape (n,): where the goal is reached already; where the gradient of
        the loss is exactly zero or, for the cross-entropy, made of rounding errors alone; where the loss or a number
        in its gradient is not finite.
    """
    climbed = losses.cross_entropy if loss is None else losses.get(loss)

    def objective(z):
        logits = call(z)
        return goal.value(climbed, logits, y), logits

    value, logits, grad = backend.gradient(objective)(x)
    size = ops.abs(norms.flatten(grad))
    largest = ops.max(ops.where(ops.isfinite(size), size, np.inf), axis=-1)
    lost = largest == 0
    if loss is None:
        lost = ops.logical_or(lost, ops.abs(value) < _ROUNDING)
    whole = ops.logical_and(ops.isfinite(value), ops.isfinite(largest))
    return logits, goal.reached(logits, y), lost, ops.logical_not(whole)


def are_probabilities(outputs: np.ndarray) -> bool:
    """Whether the outputs of a model are probabilities: none is negative and each row has the sum 1."""
    return bool(np.all(outputs >= 0) and np.allclose(outputs.sum(axis=-1), 1.0, atol=1e-4))


SOFTMAX = (
    "The model's outputs are probabilities that could not be looked through: gradients vanish behind a softmax, and "
    "the result may be too good. Give a model of logits."
)


def non_finite(outputs: float, gradients: float = 0.0) -> dict[str, str]:
    """Return the sign of numbers that are not finite, from the shares of the images that have them.

    Args:
        outputs: Share of the images whose outputs are not finite, in [0, 1].
        gradients: Share of the images whose loss or gradient is not finite.
    """
    if not outputs and not gradients:
        return {}
    text = (
        f"The model's outputs are not finite for {outputs:.1%} of the images, and the losses or gradients for "
        f"{gradients:.1%}. Such an output is no answer: it is neither right nor a success of an attack. Attacks take "
        "0 for what is not finite of a gradient, see less of the model, and the result may be too good."
    )
    return {"non_finite": text}


def zero_gradients(share: float, of: str = "cross-entropy") -> dict[str, str]:
    """Return the sign of gradients that are exactly zero, from their share among the images that the model gets right.

    Args:
        share: A share in [0, 1]. The sign is given above 0.1.
        of: What the gradients are those of.
    """
    if share <= SURE:
        return {}
    text = (
        f"The gradient of the {of} is exactly zero, or made of rounding errors alone, for {share:.0%} of "
        "the images: white-box attacks see nothing there, and the result may be too good."
    )
    return {"zero_gradients": text}


def low_accuracy(accuracy: float, often: float, n: int) -> dict[str, str]:
    """Return the sign of an accuracy on clean images that is far below what the data allow.

    The threshold lies a quarter of the way from the accuracy of the best constant answer, at most 0.5, to 1. A working
    model falls below it if, for example, its images are in another range than those it was trained on.

    Args:
        accuracy: Share of the clean images that the model labels right, in [0, 1].
        often: Share of the most frequent label, in [0, 1].
        n: Number of images. Below 30 the sign is not given.
    """
    constant = min(often, 0.5)  # images of one class alone are answered by a constant, and yet a model may be good
    if n < _ENOUGH or accuracy >= constant + _FAR * (1.0 - constant):
        return {}
    text = (
        f"The model labels only {accuracy:.1%} of the clean images right, and the best constant answer labels "
        f"{often:.1%} right: the images may be in another range than those the model was trained on or in another "
        "order than the labels, or the training was too short. What an attack finds on such a model says nothing "
        "about its robustness."
    )
    return {"low_accuracy": text}


def warn(text: str) -> None:
    """Warn on behalf of the line outside of kerasdef and Keras that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in ("kerasdef", "keras"):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, UserWarning, stacklevel=level)
