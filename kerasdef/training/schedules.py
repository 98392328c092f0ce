"""How the radius and the attack of adversarial training change while it runs: data, not code."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import StepAttack


@dataclass(frozen=True)
class Radius:
    """A radius that grows with the batches trained on: straight lines between points.

    Two points at the same batch are a jump. Before the first point the radius is that of the first, after the last
    that of the last.

    Args:
        points: Pairs (batches trained on, radius in input units), in order; neither may shrink.

    Raises:
        ValueError: No points, or a radius or a number of batches that shrinks.

    Example:
    >>> Radius.ramp(0.3, batches=938)  # from 0 to 0.3 over two epochs of 469 batches
    """

    points: tuple[tuple[float, float], ...]

    def __post_init__(self):
        check_fields(self)
        points = tuple((checks.real("points", t, low=0.0), checks.real("points", r, low=0.0)) for t, r in self.points)
        shrinks = any(b[0] < a[0] or b[1] < a[1] for a, b in itertools.pairwise(points))
        if not points or shrinks:
            raise ValueError(
                "`points` must be pairs (batches, radius) in which neither shrinks. "
                f"Received: points={tuple(self.points)!r}"
            )
        object.__setattr__(self, "points", points)

    @classmethod
    @checked
    def ramp(cls, eps: float, batches: int) -> Radius:
        """From 0 to eps over the first batches; 0 batches: eps from the start."""
        return cls(((0, 0.0), (batches, eps)) if batches else ((0, eps),))

    @classmethod
    @checked
    def stages(cls, radii: tuple[float, ...], batches: tuple[int, ...]) -> Radius:
        """One radius for each stage, each for its number of batches; the last one stays."""
        if len(radii) != len(batches) or not len(radii):
            raise ValueError(
                "`radii` must have one radius for each stage. "
                f"Received: radii={tuple(radii)!r} for {len(batches)} stages of {tuple(batches)!r} batches"
            )
        starts = np.cumsum([0, *batches])
        points = [(starts[i + j], r) for i, r in enumerate(radii) for j in (0, 1)]
        return cls(tuple((float(t), float(r)) for t, r in points))

    @classmethod
    @checked
    def geometric(cls, first: float, last: float, stages: int, batches: int) -> Radius:
        """Stages of equal length whose radii grow by the same factor, from `first` to `last`."""
        checks.real("first", first, low=0.0, open_low=True)
        return cls.stages(np.geomspace(first, last, checks.positive_int("stages", stages)), [batches] * stages)

    @property
    def last(self) -> float:
        """The largest radius."""
        return self.points[-1][1]

    def at(self, batches):
        """Radius after a number of batches: a float32 scalar tensor from an integer or a tensor."""
        t = ops.cast(batches, "float32")
        radius = ops.full_like(t, self.points[0][1])
        for (t0, r0), (t1, r1) in itertools.pairwise(self.points):
            share = ops.cast(t >= t1, "float32") if t1 == t0 else ops.clip((t - t0) / (t1 - t0), 0.0, 1.0)
            radius = radius + (r1 - r0) * share
        return radius


@dataclass(frozen=True)
class Stage:
    """A part of the training with an attack of its own.

    Args:
        epochs: Passes over the data, at least 1.
        attack: A `StepAttack`; its radius is the stage's.
    """

    epochs: int
    attack: StepAttack

    def __post_init__(self):
        checks.positive_int("epochs", self.epochs)
        if not isinstance(self.attack, StepAttack):
            raise ValueError(
                f"`attack` must be an attack that takes steps, such as PGD. Received: attack={self.attack!r}"
            )
        if "eps" not in self.attack.parameters:
            raise ValueError(f"`attack` must have an `eps`, as PGD has. Received: attack={self.attack!r}")


def attack_of(stages: Sequence[Stage], epoch: int) -> StepAttack:
    """The attack of an epoch, counted from 0; the last stage's after the end."""
    ends = np.cumsum([stage.epochs for stage in stages])
    return stages[min(int(np.searchsorted(ends, epoch, side="right")), len(stages) - 1)].attack


def radii_of(stages: Sequence[Stage], batches: int) -> Radius:
    """The radii of stages as a function of the batches trained on, with `batches` in an epoch."""
    return Radius.stages([s.attack.parameters["eps"] for s in stages], [s.epochs * batches for s in stages])
