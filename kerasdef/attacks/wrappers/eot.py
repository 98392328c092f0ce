"""Expectation over transformation: gradients averaged over a model's own randomness."""

from __future__ import annotations

import dataclasses

from kerasdef import checks
from kerasdef.annotations import checked
from kerasdef.attacks.base import Attack
from kerasdef.attacks.engine import StepAttack
from kerasdef.attacks.worst_of import WorstOf
from kerasdef.attacks.wrappers.base import Wrapper


@checked
def EOT(attack: Attack, samples: int) -> Attack:
    """Return an attack whose gradients are averaged over draws of the model's randomness; wrappers stay around it.

    Args:
        attack: An attack made of steps, or wrappers around such attacks.
        samples: Draws for each gradient, at least 1.

    Raises:
        ValueError: The attack takes no gradients that could be averaged.

    Example:
    >>> x_adv = EOT(Restarts(PGD(eps=8 / 255), 5), samples=20)(random_model, x, y)

    References: Athalye et al., 2018, https://arxiv.org/abs/1707.07397 (section 2.1).
    """
    checks.positive_int("samples", samples)
    if isinstance(attack, StepAttack):
        return dataclasses.replace(attack, samples=samples)
    if isinstance(attack, Wrapper):
        return dataclasses.replace(attack, attack=EOT(attack.attack, samples))
    if isinstance(attack, WorstOf):
        return dataclasses.replace(attack, attacks=tuple(EOT(a, samples) for a in attack.attacks))
    raise ValueError(f"`attack` must average its gradients (a StepAttack, or wrappers of one). Received: {attack!r}")
