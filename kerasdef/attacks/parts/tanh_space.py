"""What the Carlini and Wagner attacks share: images as tanh of free variables, and steps of Adam on these."""

from __future__ import annotations

from keras import ops

from kerasdef import norms

# The range of tanh is wider than the bounds by the inverse of this, and what lies outside is clipped. The authors have
# 0.999999: near a bound, where most of an image may lie, hundreds of steps of Adam then change nothing.
_INSIDE = 0.95
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam's defaults (Kingma and Ba, 2015)


def image(w, bounds: tuple[float, float]):
    """Images of free variables, of the same shape (n, ...), within the bounds."""
    low, high = bounds
    wide = ops.tanh(w) * ((high - low) / 2 / _INSIDE) + (low + high) / 2
    return wide + ops.stop_gradient(ops.clip(wide, low, high) - wide)


def free(x, bounds: tuple[float, float]):
    """Free variables of images, of the same shape (n, ...)."""
    low, high = bounds
    return ops.arctanh((x - (low + high) / 2) * (2 * _INSIDE / (high - low)))


def adam(w, grad, m, v, t, learning_rate):
    """One step of Adam down a gradient, each sample by its own count.

    Args:
        w: Variables of shape (n, ...).
        grad: Their gradient.
        m: First moment.
        v: Second moment.
        t: Steps taken with this one, integers of shape (n,), at least 1.
        learning_rate: Of shape (n,).

    Returns:
        `(w, m, v)`.

    References: Kingma and Ba, 2015, https://arxiv.org/abs/1412.6980 (Algorithm 1).
    """
    time = norms.per_sample(ops.cast(t, "float32"), w)
    m = _BETA1 * m + (1 - _BETA1) * grad
    v = _BETA2 * v + (1 - _BETA2) * ops.square(grad)
    rate = norms.per_sample(learning_rate, w) * ops.sqrt(1 - _BETA2**time) / (1 - _BETA1**time)
    return w - rate * m / (ops.sqrt(v) + _TINY), m, v
