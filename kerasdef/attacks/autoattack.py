"""AutoAttack: a fixed ensemble of attacks without settings to tune, each on what still stands."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from kerasdef import checks, norms
from kerasdef.annotations import check_fields
from kerasdef.attacks.base import Attack
from kerasdef.attacks.black.square import Square
from kerasdef.attacks.sequence import PartByPart
from kerasdef.attacks.white.apgd import APGD
from kerasdef.attacks.white.fab import FAB
from kerasdef.goals import Goal, Hit, Misclassify
from kerasdef.norms import L1, Linf, Norm

VERSIONS = {  # Croce and Hein, 2020; "plus" and "rand" as the authors published them
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr", "square"),  # the authors have no Square here; see `AutoAttack`
    "custom": (),
}
_JUDGED = 20  # passes that Square averages on random models (Croce et al., 2022, on defenses with random parts)
_DRAWS = 20  # authors: gradients averaged in "rand"
_FEW = 4  # classes below which the targeted DLR loss is not defined


@dataclass(frozen=True, repr=False)
class AutoAttack(PartByPart):
    """The standard evaluation: APGD on cross-entropy, targeted APGD on DLR, targeted FAB, Square.

    A sample that one part breaks is not shown to the next. Settings are as published. Differences: random numbers;
    ties and steps back of APGD, and scaling instead of projecting in Square's L1, see there; there are at most as many
    targets as classes that the attacker may want, and below four classes the margin stands in for targeted DLR.

    Args:
        eps: Radius in input units, above 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2" or "l1".
        version: "standard"; "plus" (adds untargeted APGD-DLR and FAB, five restarts); "rand" for models with
            randomness (gradients averaged over 20 draws, and, unlike the authors', Square on scores averaged over 20
            passes, which sees models that hide their gradients); "custom" (what `parts` names).
        parts: With "custom": names out of apgd-ce, apgd-dlr, apgd-t, fab, fab-t, square.
        goal: What the attacker wants; a fixed target class is not possible.
        bounds: Valid range of an input value.

    Example:
    >>> result = AutoAttack(eps=8 / 255).run(model, x, y, out="runs/aa")
    >>> result.robust_accuracy, result.table, result.flags

    References: Croce and Hein, 2020, https://arxiv.org/abs/2003.01690 (section 5); Croce and Hein, 2021,
    https://arxiv.org/abs/2103.01208 (L1: five restarts or five targets, and larger radii first).
    """

    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)
    version: str = "standard"
    parts: tuple[str, ...] = ()
    goal: Goal = field(default_factory=Misclassify)
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        if np.any(np.asarray(self.eps) <= 0):
            raise ValueError(f"`eps` must be above 0. Received: eps={self.eps!r}")
        object.__setattr__(self, "norm", norms.get(self.norm))
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        checks.one_of("version", self.version, VERSIONS)
        if (self.version == "custom") != bool(self.parts):
            raise ValueError(
                '`parts` must name attacks with version="custom", and only then. '
                f"Received: version={self.version!r}, parts={self.parts!r}"
            )
        object.__setattr__(self, "parts", tuple(checks.one_of("parts", p, VERSIONS["plus"]) for p in self.parts))
        if isinstance(self.goal, Hit):
            raise ValueError("`goal` must not be a fixed target: AutoAttack is untargeted. Received: goal=Hit()")

    def attacks(self) -> dict[str, Attack]:
        """The parts by name, in their order, with the published settings."""
        common = {"eps": self.eps, "norm": self.norm, "goal": self.goal, "bounds": self.bounds}
        plus, l1 = self.version == "plus", isinstance(self.norm, L1)
        restarts = 5 if plus or (l1 and self.version != "rand") else 1  # authors: five with L1 and in "plus"
        targets = 5 if l1 and not plus else 9  # authors: five with L1
        draws = _DRAWS if self.version == "rand" else 1
        apgd = APGD(steps=100, samples=draws, large_reps=self.version in ("standard", "custom"), **common)
        fab = FAB(steps=100, **common)
        known = {
            "apgd-ce": dataclasses.replace(apgd, loss="cross_entropy", restarts=restarts),
            "apgd-dlr": dataclasses.replace(apgd, loss="dlr", restarts=restarts),
            "apgd-t": dataclasses.replace(apgd, loss="targeted_dlr", targets=targets),
            "fab": dataclasses.replace(fab, restarts=5 if plus else 1),
            "fab-t": dataclasses.replace(fab, targets=9),
            "square": Square(queries=5000, rescale=False, **common),  # authors: resc_schedule=False
        }
        if self.version == "rand":  # each of 1,000 points is judged by the average of many passes
            known["square"] = Square(queries=1000 * _JUDGED, samples=_JUDGED, **common)
        return {name: known[name] for name in VERSIONS[self.version] or self.parts}

    def _parts(self, victim, x, y, seed) -> dict[str, Attack]:
        return self.attacks()

    def _doubts(self, model, x, y) -> dict[str, str]:
        flags = {}
        if self.version != "rand" and model.random:
            flags["randomized"] = (
                'The model gives other outputs for the same images: use version="rand", which averages gradients.'
            )
        classes = model.classes
        if classes < _FEW and any(part.endswith("-t") for part in self.attacks()):
            flags["few_classes"] = (
                f"With {classes} classes the targeted DLR loss is not defined; targeted attacks climb the margin."
            )
        return flags
