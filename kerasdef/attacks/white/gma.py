"""The gradient-based miniature attack: one gradient attack at thirty small radii, and its analysis.

References: Sanapala and Gondi, 2025 (short name "mia"), section 3: equation 2, Algorithms 1 and 2.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import keras
import numpy as np

from kerasdef import checks, models, norms
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks.base import Attack
from kerasdef.attacks.white.gradient import GradientAttack
from kerasdef.goals import Goal, Misclassify
from kerasdef.norms import Linf, Norm
from kerasdef.threat import ThreatModel

SIZES = (0.1, 0.5, 1.0, 2.0, 3.0)  # paper, equation 2: V
POWERS = (1, 2, 3, 4, 5, 6)  # paper, equation 2: i
RADII = tuple(v * math.exp(-i) for i in POWERS for v in SIZES)  # in the order of Algorithm 1: V within i


@dataclass(frozen=True, repr=False)
class GMA(Attack):
    """Gradient-based miniature attack (evasion): ten gradient steps at each of thirty radii V * exp(-i).

    The radii run from 0.00025 to 1.1036. The paper names no norm: Linf, with values in [0, 1], is the reading under
    which its accuracies near zero appear; L2 is the other. Below 1/510 a perturbation does not survive 8 bits.

    Args:
        mode: "cycle": the images take the radii in turn, one each. "all": every image at every radius, as in
            Algorithm 1; the result is 30 times as long, image by image.
        norm: "linf", "l2" or a `Norm`.
        steps: Gradient steps (paper, table 2: 10).
        radii: The radii as shares of the span of the bounds, each at least 0.
        scale: Factor on the radii.
        quantize: Round x_adv to the 256 levels that an 8-bit image has.
        bounds: Valid range of an input value.
        goal: What the attacker wants.

    Called with mode "all", it returns x_adv of shape (30 * n, ...), where rows 30 * i to 30 * i + 29 are of image i.

    Example:
    >>> x_adv = GMA()(model, x, y)
    >>> radius = GMA().radii_of(len(x))

    References: Sanapala and Gondi, 2025 (equation 2, Algorithm 1).
    """

    mode: str = "cycle"
    norm: Norm | str = field(default_factory=Linf)
    steps: int = 10  # paper, table 2
    radii: float | tuple[float, ...] = RADII
    scale: float = 1.0
    quantize: bool = False
    bounds: tuple[float, float] = (0.0, 1.0)
    goal: Goal = field(default_factory=Misclassify)

    def __post_init__(self):
        check_fields(self)
        checks.one_of("mode", self.mode, ("cycle", "all"))
        object.__setattr__(self, "norm", norms.get(self.norm))
        object.__setattr__(self, "radii", checks.radius("radii", np.atleast_1d(self.radii)))
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        checks.positive_int("steps", self.steps)
        checks.real("scale", self.scale, low=0.0, open_low=True)

    def radii_of(self, n: int) -> np.ndarray:
        """Radius in input units of every image of the result for n images: shape (n,), or (30 * n,) with "all"."""
        radii = np.asarray(self.radii) * self.scale * (self.bounds[1] - self.bounds[0])
        return np.tile(radii, n) if self.mode == "all" else np.resize(radii, n)

    def attack(self, n: int) -> GradientAttack:
        """The gradient attack for n images, each with its radius.

        All steps are taken, and a step is 2.5 * eps / steps, as in `PGD`; there is no random start.
        """
        eps = tuple(self.radii_of(n).tolist())
        return GradientAttack(
            eps=eps,
            norm=self.norm,
            steps=self.steps,
            relative_step=2.5,
            early_stop=False,
            goal=self.goal,
            bounds=self.bounds,
        )

    @property
    def threat(self) -> ThreatModel:
        """Threat model: the radii in turn, or all of them for every image."""
        return ThreatModel(self.norm, tuple(self.radii_of(len(self.radii)).tolist()), self.bounds, self.goal)

    def _run(self, model, x, y, batch_size, seed, show):
        attack = self.attack(len(x))
        if self.mode == "all":
            x, y = np.repeat(x, len(self.radii), axis=0), np.repeat(y, len(self.radii))
        x_adv, evaluations = attack._run(model, x, y, batch_size, seed, show)
        return to_8_bits(x_adv, self.bounds) if self.quantize else x_adv, evaluations


def to_8_bits(x: np.ndarray, bounds: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Round values of shape (n, ...) to the 256 levels between the bounds."""
    low, high = bounds
    return (np.rint((x - low) / (high - low) * 255) / 255 * (high - low) + low).astype("float32")


@dataclass(frozen=True)
class GMAAnalysis:
    """What Algorithm 2 found.

    Args:
        baseline: Accuracy on the clean images.
        rounds: Accuracy under attack in each round.
        success: Whether a round ended below the worst case.
        case: "best" (above the best case), "worst" (below the worst case) or "between".
        by_radius: Accuracy at each radius in the last round.
    """

    baseline: float
    rounds: tuple[float, ...]
    success: bool
    case: str
    by_radius: dict[float, float]

    def __post_init__(self):
        check_fields(self)


@checked
def gma_analysis(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    *,
    attack: GMA | None = None,
    best_case: float = 0.80,
    worst_case: float = 0.50,
    rounds: int = 3,
    seed: int = 0,
    progress: bool | None = None,
) -> GMAAnalysis:
    """Tell whether GMA brings a classifier below the worst case.

    The paper repeats the same attack up to three times, which changes nothing for an attack without randomness; a
    later round therefore moves the images on to the next radius, so that a round is another sample of the attack.

    Args:
        model: A built Keras classifier.
        x: Images of shape (n, ...).
        y: True labels of shape (n,).
        attack: A `GMA`; None for the default.
        best_case: Accuracy above which the model holds (paper: 80 %).
        worst_case: Accuracy below which the attack has succeeded (paper: 50 %).
        rounds: Most rounds (paper: 3).
        seed: Passed to the attack.
        progress: Show a bar; None shows it on a terminal and in notebooks.

    References: Sanapala and Gondi, 2025 (Algorithm 2).
    """
    attack = GMA() if attack is None else attack
    checks.positive_int("rounds", rounds)
    checks.real("best_case", best_case, low=0.0, high=1.0)
    checks.real("worst_case", worst_case, low=0.0, high=best_case)
    x = checks.images("x", x, limits=attack.bounds)
    y = checks.labels("y", y, n=len(x))
    baseline = float(np.mean(models.predict_logits(model, x).argmax(axis=1) == y))
    found, right, radius = [], None, None
    for i in range(rounds):
        shifted = dataclasses.replace(attack, radii=attack.radii[i:] + attack.radii[:i])
        x_adv = shifted(model, x, y, seed=seed + i, progress=progress)
        truth = np.repeat(y, len(attack.radii)) if attack.mode == "all" else y
        right = models.predict_logits(model, x_adv).argmax(axis=1) == truth
        radius = shifted.radii_of(len(x))
        found.append(float(right.mean()))
        if found[-1] < worst_case:
            break
    case = "worst" if found[-1] < worst_case else "best" if found[-1] > best_case else "between"
    by_radius = {float(r): float(right[radius == r].mean()) for r in np.unique(radius)}
    return GMAAnalysis(baseline, tuple(found), found[-1] < worst_case, case, by_radius)
