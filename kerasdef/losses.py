"""Losses per sample, from logits: what an attack climbs and a trainer descends.

Every function maps logits of shape (n, k) and labels of shape (n,) to values of shape (n,).
"""

from __future__ import annotations

from keras import ops

FAR = 1e9  # removes a class from a maximum


def _mask(y, k):
    return ops.one_hot(ops.cast(y, "int32"), k, dtype="float32")


def pick(logits, y):
    """Logit of the label."""
    return ops.sum(logits * _mask(y, logits.shape[-1]), axis=-1)


def best_other(logits, y):
    """Largest logit of any class but the label."""
    return ops.max(logits - FAR * _mask(y, logits.shape[-1]), axis=-1)


def cross_entropy(logits, y):
    """Minus the log-probability of the label.

    Source: Goodfellow et al., 2015 (FGSM); Madry et al., 2018 (PGD).
    """
    return ops.logsumexp(logits, axis=-1) - pick(logits, y)


def margin(logits, y):
    """Largest other logit minus the label's: above 0 exactly where the sample is misclassified.

    Source: Carlini and Wagner, 2017 (the f6 family). Unlike cross-entropy, its gradient does not vanish when a
    model is very sure.
    """
    return best_other(logits, y) - pick(logits, y)


LOSSES = {"cross_entropy": cross_entropy, "margin": margin}
