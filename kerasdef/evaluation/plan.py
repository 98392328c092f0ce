"""What is to be evaluated, as data: which attacks, by column and name, on whom, and on which images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import keras
import numpy as np

from kerasdef import checks
from kerasdef.annotations import check, check_fields
from kerasdef.evaluation.outcomes import ACCESS, CLEAN, COLUMNS, POOLED


@dataclass(frozen=True, eq=False)
class Images:
    """Adversarial images that are there already.

    Args:
        x: Images of shape (n, ...).
        index: Which test image each was made of, int, shape (n,).
        radius: Radius of each, shape (n,), or None.
        norm: Norm of the radii, in which distances are measured: a name or a `Norm`. None measures L2.
        access: What the attacker had of the model that is judged, as in `Outcome`.
    """

    x: np.ndarray
    index: np.ndarray
    radius: np.ndarray | None = None
    norm: object = None
    access: str = "none"

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True, eq=False)
class Planned:
    """An attack of a plan.

    Args:
        attack: An `Attack`, or anything called as `attack(model, x, y, seed=..., progress=...)` that returns x_adv.
        on: The model that it is made on. None: the surface of the defense that is judged, with the goal of that.
        piece: Name under which the images are kept; two plans with the same name share them. None: "COLUMN/ATTACK".
        phase: What the time counts towards; None: "attack" and the name of the piece.
        seed: All randomness comes from it.
        batch_size: Samples that are worked on at a time; None takes the attack's own.
        count: How many of the images of the plan are attacked, the first ones; None: all.
        standing: Whether the attack meets only what is not broken from the start, in blocks, each of which is kept.
        within: Radius beyond which a change of a minimal attack does not count, or None.
        access: What the attacker has of the model that is judged, as in `Outcome`. None: what the attack says, and
            "none" where it is made on another model.
    """

    attack: Callable
    on: keras.Model | Callable | None = None
    piece: str | None = None
    phase: str | None = None
    seed: int = 0
    batch_size: int | None = None
    count: int | None = None
    standing: bool = False
    within: float | None = None
    access: str | None = None

    def __post_init__(self):
        check_fields(self)
        checks.non_negative_int("seed", self.seed)
        for name in ("batch_size", "count"):
            if getattr(self, name) is not None:
                checks.positive_int(name, getattr(self, name))
        if self.within is not None:
            checks.real("within", self.within, low=0.0)
        if self.access is not None:
            checks.one_of("access", self.access, ACCESS)


@dataclass(frozen=True, eq=False)
class Plan:
    """How one model is judged.

    Args:
        model: Its name in outcomes.
        rows: Which test images, int, shape (n,).
        paper: Attacks by name, as a paper made them: mostly on other models, and then shown to this one.
        adaptive: Attacks on this very model, by name.

    Raises:
        ValueError: A name says something else in reports, or an attack is neither planned nor made.

    Example:
    >>> plan = Plan("vote", np.arange(100), adaptive={"pgd": Planned(PGD(eps=0.1))})
    >>> outcomes = evaluate(defense, data, plan).outcomes
    """

    model: str
    rows: np.ndarray
    paper: Mapping[str, Planned | Images] = field(default_factory=dict)
    adaptive: Mapping[str, Planned | Images] = field(default_factory=dict)

    def __post_init__(self):
        check("model", self.model, str)
        check("rows", self.rows, np.ndarray)
        check("paper", self.paper, Mapping)
        check("adaptive", self.adaptive, Mapping)
        rows = checks.labels("rows", self.rows, classes=None)
        if not len(rows) or len(np.unique(rows)) < len(rows):
            raise ValueError(f"`rows` must name test images, each once. Received: rows={self.rows!r}")
        object.__setattr__(self, "rows", rows)
        for column in COLUMNS:
            for name, planned in self.of(column).items():
                if name in (CLEAN, POOLED):
                    raise ValueError(f"Names of attacks must not be {CLEAN!r} or {POOLED!r}. Received: {name!r}")
                if not isinstance(planned, Planned | Images):
                    raise ValueError(f"`{column}` must map names to Planned or Images. Received: {name}={planned!r}")

    def of(self, column: str) -> Mapping[str, Planned | Images]:
        """The attacks of a column by name."""
        return {"paper": self.paper, "adaptive": self.adaptive}[column]
