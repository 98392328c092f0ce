"""Losses per sample, from logits: what an attack climbs and a trainer descends.

Every function maps logits of shape (n, k) and labels of shape (n,) to values of shape (n,).
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.annotations import checked

FAR = 1e9  # removes a class from a maximum
_WANTED = "`loss` must be a function of (logits, y) that gives a floating-point tensor of shape (n,)."
_TINY = 1e-12  # keeps the ratio of logits finite when the top ones are equal (authors' code)


def _mask(y, k):
    return ops.one_hot(ops.cast(y, "int32"), k, dtype="float32")


@checked
def pick(logits, y):
    """Logit of the label."""
    return ops.sum(logits * _mask(y, logits.shape[-1]), axis=-1)


@checked
def best_other(logits, y):
    """Largest logit of any class but the label."""
    return ops.max(logits - FAR * _mask(y, logits.shape[-1]), axis=-1)


@checked
def cross_entropy(logits, y):
    """Minus the log-probability of the label.

    Source: Goodfellow et al., 2015 (FGSM); Madry et al., 2018 (PGD).
    """
    return ops.logsumexp(logits, axis=-1) - pick(logits, y)


@checked
def margin(logits, y):
    """Largest other logit minus the label's: above 0 exactly where the sample is misclassified.

    Source: Carlini and Wagner, 2017 (the f6 family). Unlike cross-entropy, its gradient does not vanish when a
    model is very sure.
    """
    return best_other(logits, y) - pick(logits, y)


def finite(value):
    """Values of shape (n,) with minus infinity, which no attack prefers, in the place of all that are not finite."""
    return ops.where(ops.isfinite(value), value, -np.inf)


def _ratio(gap, spread):
    """A gap between logits over their spread, or as it is where a class has been removed with `FAR`."""
    return gap / ops.where(spread > FAR / 2, 1.0, spread + _TINY)


@checked
def dlr(logits, y):
    """Difference of logits ratio: the margin over the distance of the largest from the third largest logit.

    It does not change when all logits are scaled or shifted, so its gradient never vanishes with them. Below three
    classes, where there is no third logit, it is the margin itself.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690 (equation 6).
    """
    if logits.shape[-1] < 3:
        return margin(logits, y)
    top = ops.top_k(logits, 3)[0]
    return _ratio(margin(logits, y), top[:, 0] - top[:, 2])


@checked
def dlr_targeted(logits, y, targets):
    """DLR loss towards one class; below four classes the target's logit minus the label's.

    Args:
        logits: Tensor of shape (n, k).
        y: Labels of shape (n,).
        targets: Classes of shape (n,) to move to.

    Source: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690 (equation 7).
    """
    gap = pick(logits, targets) - pick(logits, y)
    if logits.shape[-1] < 4:
        return gap
    top = ops.top_k(logits, 4)[0]
    return _ratio(gap, top[:, 0] - (top[:, 2] + top[:, 3]) / 2)


def get(loss: Callable | str) -> Callable:
    """Return a loss from its name, or a function of one's own whose answers are checked.

    Raises:
        ValueError: The name is unknown; or, where it is called, the function does not give one value for each sample,
            as a floating-point tensor.
    """
    if isinstance(loss, str):
        return LOSSES[checks.one_of("loss", loss, LOSSES)]
    if loss in LOSSES.values():
        return loss

    def checked(logits, y):
        try:
            found = loss(logits, y)
        except Exception as error:  # whatever a function of another kind does with logits
            raise ValueError(f"{_WANTED} Received: loss={loss!r}, which raises {type(error).__name__}") from error
        shape = getattr(found, "shape", None)
        if shape is None or len(shape) != 1:
            raise ValueError(f"{_WANTED} Received: loss={loss!r}, which gives {shape or type(found).__name__}")
        if not ops.is_tensor(found):
            raise ValueError(f"{_WANTED} Received: loss={loss!r}, which gives a {type(found).__name__}")
        dtype = keras.backend.standardize_dtype(found.dtype)
        if "float" not in dtype:
            raise ValueError(f"{_WANTED} Received: loss={loss!r}, which gives {dtype}")
        return ops.cast(found, "float32")

    return checked


LOSSES = {"cross_entropy": cross_entropy, "margin": margin, "dlr": dlr}
