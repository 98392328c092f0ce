"""The shortest move, in a norm, from a point of a box onto a hyperplane without leaving the box.

In every norm the move goes along the sign of the hyperplane's normal, and a feature stops at its bound. In Linf and
L2 one number per sample, the length of the step, decides about all features; the plane comes nearer with it along a
concave function made of straight pieces. Newton's method climbs such a function piece by piece and ends on the exact
answer after a few passes, where sorting all features would cost more than the gradient of a small model. In L1 the
features with the largest weights go to their bounds first; bisection finds the weight of the last one.
"""

from __future__ import annotations

from keras import ops

from kerasdef.norms import L1, L2, Linf, Norm, flatten

_CLOSE = 1e-5  # share of the way that may be left: float32 sums over an image are no better
_PASSES = 50  # at most; images need three to six
_HALVINGS = 16  # of the range of weights: those that share the rest in L1 differ by less than 2e-5 of the largest
_TINY = 1e-30  # keeps divisions by zero weights finite


def project(norm: Norm, points, normal, way, bounds: tuple[float, float]):
    """Return the shortest move of every point within the box that gains `way` along `normal`.

    Where the box does not hold such a point, everything goes to the bounds: as near to the plane as the box allows.

    Args:
        norm: `Linf`, `L2` or `L1`: what the length of the move is measured by.
        points: Tensor of shape (n, ...), within `bounds`.
        normal: Tensor of the shape of points.
        way: Tensor of shape (n,): wanted value of sum(normal * move).
        bounds: The box, `(low, high)`.

    Returns:
        Tensor of the shape of points: the moves.

    References: Croce and Hein, 2020, https://arxiv.org/abs/1907.02044 (section 2.2, which sorts in all norms).
    """
    flat, weight = flatten(points), flatten(normal)
    top = ops.maximum(ops.max(ops.abs(weight), axis=1, keepdims=True), _TINY)
    way = ops.expand_dims(way, 1) / top
    sign = ops.sign(weight) * ops.sign(way)
    room = ops.where(sign > 0, bounds[1] - flat, flat - bounds[0])
    size = _SIZES[type(norm)](ops.abs(weight) / top, room, ops.abs(way))
    return ops.reshape(sign * size, ops.shape(points))


def _linf(weight, room, way):
    return _stepped(weight, ops.ones_like(weight), room, way)


def _l2(weight, room, way):
    return _stepped(weight, weight, room, way)


def _stepped(weight, rate, room, way):
    """Sizes min(step * rate, room) with the step at which sum(weight * sizes) is `way`."""
    gain, speed = weight * room, weight * rate
    way = ops.minimum(way, ops.sum(gain, axis=1, keepdims=True))

    def left_at(step):
        """What is left of the way after this step, and how fast it shrinks there."""
        free = step * rate < room
        slope = ops.sum(ops.where(free, speed, 0.0), axis=1, keepdims=True)
        stopped = ops.sum(ops.where(free, 0.0, gain), axis=1, keepdims=True)
        return way - stopped - step * slope, slope

    def far(left, slope):
        return ops.logical_and(left > _CLOSE * way, slope > 0)

    def going(step, left, slope):
        return ops.any(far(left, slope))

    def longer(step, left, slope):
        step = ops.where(far(left, slope), step + left / ops.maximum(slope, _TINY), step)
        return (step, *left_at(step))

    step = ops.zeros_like(way)
    step, _, _ = ops.while_loop(going, longer, (step, *left_at(step)), maximum_iterations=_PASSES)
    return ops.minimum(step * rate, room)


def _l1(weight, room, way):
    """Sizes that fill the features of the largest weights first; those around the last one share what is left."""
    gain = weight * room

    def total(edge):
        return ops.sum(ops.where(weight > edge, gain, 0.0), axis=1, keepdims=True)

    low = ops.zeros_like(way)
    high, most, least = ops.ones_like(way), total(low), ops.zeros_like(way)  # totals at low and high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = total(middle)
        enough = found >= way
        low, most = ops.where(enough, middle, low), ops.where(enough, found, most)
        high, least = ops.where(enough, high, middle), ops.where(enough, least, found)
    share = ops.clip((way - least) / ops.maximum(most - least, _TINY), 0.0, 1.0)
    return room * ops.where(weight > high, 1.0, ops.where(weight > low, share, 0.0))


_SIZES = {Linf: _linf, L2: _l2, L1: _l1}
