"""The threat model of an attack: what the attacker wants, may change, sees and knows."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from kerasdef import checks, norms
from kerasdef.annotations import check_fields
from kerasdef.goals import Goal, Misclassify
from kerasdef.norms import Norm

ACCESS = ("white box", "black box")


@dataclass(frozen=True, eq=False)
class ThreatModel:
    """What an attacker wants, may change, sees and knows; every attack has one, `attack.threat`.

    Args:
        norm: Norm in which changes are measured: "linf", "l2", "l1", or a `Norm` (`norms.Masked` and `norms.Box` say
            which features may change, and how far each). None where an attack has none.
        eps: Radius in the units of the data, at least 0: a number, or one for each sample of shape (n,). None for
            attacks that look for the smallest change.
        bounds: Range of the values of the data, `(low, high)`.
        goal: What the attacker wants of a sample.
        access: "white box" (gradients) or "black box" (outputs only).
        queries: Most questions for each sample, or None for no limit.
        knows: What the attacker knows of the defense, in words.

    Raises:
        ValueError: A value is out of range.
    """

    norm: Norm | str | None = None
    eps: float | tuple[float, ...] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    goal: Goal = field(default_factory=Misclassify)
    access: str = "white box"
    queries: int | None = None
    knows: str = "the whole model"

    def __post_init__(self):
        check_fields(self)
        if self.norm is not None:
            object.__setattr__(self, "norm", norms.get(self.norm))
        if self.eps is not None:
            object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        if not isinstance(self.goal, Goal):
            raise ValueError(f"`goal` must be a Goal, such as Misclassify(). Received: goal={self.goal!r}")
        checks.one_of("access", self.access, ACCESS)
        if self.queries is not None:
            checks.positive_int("queries", self.queries)

    def radii(self, n: int) -> np.ndarray | None:
        """The radius of each of n samples, of shape (n,); several radii are taken in turn. None without one."""
        return None if self.eps is None else np.resize(np.asarray(self.eps, dtype="float64"), n)

    def record(self) -> dict:
        """The threat model as JSON values, for reports."""
        facts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        several = isinstance(self.eps, tuple)
        return facts | {
            "norm": None if self.norm is None else self.norm.title,
            "eps": sorted(set(self.eps)) if several else self.eps,
            "bounds": list(self.bounds),
            "goal": repr(self.goal),
        }
