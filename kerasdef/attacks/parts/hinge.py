"""What Carlini and Wagner's attacks climb until the goal is reached, also where a positive margin is not enough.

A vote may stand while the mean margin of its members is above 0, and fall while it is below.
"""

from __future__ import annotations

from keras import ops


def hinge(reached, gain, confidence):
    """Loss of shape (n,): falls with the gain until the goal is reached with `confidence`.

    Args:
        reached: Booleans of shape (n,).
        gain: The goal's value for the margin, of shape (n,).
        confidence: Gain that is asked for, of shape (n,).
    """
    short = confidence - gain
    return ops.where(reached, ops.maximum(short, 0.0), short)


def hits(reached, gain, confidence):
    """Booleans of shape (n,): the goal is reached with `confidence`.

    Args:
        reached: Share of the draws of the model in which the goal is reached, of shape (n,).
        gain: As above, averaged over the draws.
        confidence: Gain that is asked for, of shape (n,); 0 asks for none beyond the goal.
    """
    return ops.logical_and(reached > 0.5, ops.logical_or(confidence == 0, gain >= confidence))
