"""DeepFool: steps to the nearest boundary of the linearized classifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from keras import ops

from kerasdef import checks
from kerasdef.attacks.engine import StepAttack, logits_at, select
from kerasdef.attacks.parts import boundaries
from kerasdef.norms import L2, Linf, Norm, per_sample


@dataclass(frozen=True, repr=False)
class DeepFool(StepAttack):
    """Minimal-norm attack: goes to the nearest linearized boundary, again and again, until it is across.

    A sample stops at its first adversarial point. Samples on which it fails are returned unchanged. With a target
    (`Targeted`) there is one boundary, that of the target with the largest other class.

    Args:
        norm: "l2" or "linf".
        steps: Linearizations, at most (authors' code: 50).
        overshoot: Share by which the way to the boundary is lengthened, at least 0 (paper: 0.02).
        candidates: Most likely classes of the clean input, the label among them, whose boundaries are looked at; at
            least 2 (authors' code: 10). Each but the label costs a backward pass. None takes all classes.
        goal: What the attacker wants.
        bounds: Valid range of an input value.
        samples: Draws of a random model that a gradient averages.

    Example:
    >>> x_adv = DeepFool(norm="linf")(model, x, y)

    References: Moosavi-Dezfooli et al., 2016, https://arxiv.org/abs/1511.04599 (Algorithm 2; other norms: equation
    11). Every point is judged with its overshoot, so that a sample stops as early as it can, and is kept within the
    bounds, which the paper leaves open.
    """

    kind: ClassVar[str] = "minimal"
    arguments: ClassVar[tuple[str, ...]] = ("overshoot",)

    norm: Norm | str = field(default_factory=L2)
    steps: int = 50
    overshoot: float = 0.02
    candidates: int | None = 10

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "norm", boundaries.supported(self.norm, (L2, Linf)))
        checks.positive_int("steps", self.steps)
        checks.real("overshoot", self.overshoot, low=0.0)
        if self.candidates is not None and checks.positive_int("candidates", self.candidates) < 2:
            raise ValueError(f"`candidates` must be at least 2. Received: candidates={self.candidates!r}")

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return self.steps

    @property
    def look_every(self) -> int:
        """Steps between two looks: most samples need two or three."""
        return 1

    def init(self, model, x, y, seeds, parameters: dict) -> dict:
        """State before the first step."""
        logits = logits_at(model, x, seeds, 0)
        k = logits.shape[-1]
        count = max(1, min((self.candidates or k) - 1, k - self.goal.unwanted))
        return {
            "classes": boundaries.rivals(self.goal, logits, y, count),
            "way": ops.zeros_like(x),
            "adv": x,
            "done": ops.zeros_like(y, dtype="bool"),
        }

    def step(self, model, x, y, state: dict) -> dict:
        """Go to the nearest boundary, and judge the point a little further."""
        now = x + state["way"]
        values, slopes, _ = boundaries.linearize(self, model, y, state["classes"], now, state)
        gap, slope = boundaries.nearest(self.norm, values, slopes)
        length = -gap / boundaries.dual_size(self.norm, slope)  # back where the boundary is behind
        way = ops.clip(now + per_sample(length, x) * self.norm.steepest(slope), *self.bounds) - x
        moved = ops.clip(x + per_sample(1.0 + state["overshoot"], x) * way, *self.bounds)
        logits = logits_at(model, moved, state["seed"], state["moves"])
        reached = ops.logical_and(boundaries.crossed(self.goal, logits, y), ops.logical_not(state["done"]))
        over = ops.logical_or(reached, state["moves"] + 1 >= self.steps)
        return state | {
            "way": way,
            "adv": select(reached, moved, state["adv"]),
            "done": ops.logical_or(state["done"], over),
        }
