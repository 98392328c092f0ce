"""What a sound attack must do: succeed without a bound on the radius, and not get weaker with more of anything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from keras import ops
from scipy.stats import binomtest

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import Attack
from kerasdef.defenses.base import Defense, Outputs
from kerasdef.evaluation.judging import reach
from kerasdef.evaluation.sanity.varied import has, varied

SURE = 0.05  # level of the test that an accuracy has grown
_FAR = 1e6  # radius, in spans of the bounds for each value, of a ball that holds all inputs
SETTINGS = ("eps", "steps", "samples", "queries")
_FACTORS = {"eps": (0.5, 1.0, 2.0), "steps": (0.25, 1.0, 2.0), "samples": (0.5, 1.0, 2.0), "queries": (0.25, 1.0, 2.0)}


@dataclass(frozen=True, eq=False)
class Unbounded:
    """What an attack without a bound on the radius left.

    Args:
        robust: Booleans of shape (n,): the attack did not break the sample.
        radius: Its radius, or None for one that has none.
    """

    robust: np.ndarray
    radius: float | None

    def __post_init__(self):
        check_fields(self)

    @property
    def robust_accuracy(self) -> float:
        """Share of the samples that were left."""
        return float(np.mean(self.robust))

    @property
    def passed(self) -> bool:
        """Whether nothing was left."""
        return not self.robust.any()

    @property
    def text(self) -> str:
        """The outcome in a sentence."""
        if self.passed:
            return f"Without a bound on the radius the attack breaks all {len(self.robust)} images."
        return (
            f"Without a bound on the radius the attack leaves {self.robust_accuracy:.1%} of {len(self.robust)} images, "
            "although any image may become any other: it does not find what is there."
        )


@dataclass(frozen=True, eq=False)
class Monotone:
    """What was left by an attack with less and more of one setting.

    Args:
        setting: Name of the setting.
        factors: What its value was multiplied by, growing.
        robust: Booleans of shape (factors, n): the sample was not broken.
    """

    setting: str
    factors: tuple[float, ...]
    robust: np.ndarray

    def __post_init__(self):
        check_fields(self)

    @property
    def robust_accuracy(self) -> tuple[float, ...]:
        """Share of the samples that were left, for each factor."""
        return tuple(float(share) for share in np.mean(self.robust, axis=1))

    @property
    def lost(self) -> int:
        """Samples that some factor broke and a larger one did not.

        Each of them is a miss: with a larger radius the smaller change is still allowed. Steps and draws that are
        others may miss a few by chance.
        """
        broken = np.logical_or.accumulate(~self.robust, axis=0)
        return int(np.sum(np.any(broken & self.robust, axis=0)))

    @property
    def p_value(self) -> float:
        """Smallest chance, over all pairs of factors, of such a growth of the accuracy if nothing grew.

        McNemar's exact test, one-sided, times the number of pairs (Bonferroni).
        """
        pairs = list(itertools.combinations(range(len(self.factors)), 2))
        found = [1.0]
        for low, high in pairs:
            worse = int(np.sum(~self.robust[low] & self.robust[high]))
            better = int(np.sum(self.robust[low] & ~self.robust[high]))
            if worse + better:
                found.append(float(binomtest(worse, worse + better, alternative="greater").pvalue))
        return min(1.0, len(pairs) * min(found))

    @property
    def passed(self) -> bool:
        """Whether the robust accuracy grows nowhere by more than chance does."""
        return self.p_value >= SURE

    @property
    def text(self) -> str:
        """The outcome in a sentence."""
        shown = ", ".join(f"{share:.1%}" for share in self.robust_accuracy)
        times = ", ".join(f"{factor:g}" for factor in self.factors)
        start = f"With `{self.setting}` times {times} the attack leaves {shown} of {self.robust.shape[1]} images"
        if self.passed:
            return f"{start}."
        return f"{start}: a stronger attack finds less (p = {self.p_value:.2g}), so it is stuck or set badly."


@checked
def unbounded(
    defense: Defense | Outputs,
    attack: Attack,
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool | None = None,
) -> Unbounded:
    """Attack without a bound on the radius; a sound attack leaves nothing.

    The radius is that of the whole range of inputs, around any image. An attack on some features only (`norms.Masked`,
    or radii of 0 in `norms.Box`) may change all of these and nothing else, and then a defense may withstand.

    Args:
        defense: The defense.
        attack: The attack; its goal is taken from the defense. One that has no radius is run as it is.
        x: Clean images of shape (n, ...), within the bounds of the attack.
        y: Their labels of shape (n,).
        batch_size: Samples that the attack works on at a time.
        seed: All randomness comes from it.
        progress: Show bars; None shows them on a terminal and in notebooks.

    References: Carlini et al., 2019, https://arxiv.org/abs/1902.06705 (section 4.5: unbounded attacks reach 100 %).
    """
    _check(attack, x, y, batch_size, seed)
    norm, radii = reach(attack, len(x))
    if norm is None or radii is None:
        return Unbounded(robust(defense, attack, x, y, batch_size, seed, progress), None)
    span = attack.bounds[1] - attack.bounds[0]
    shape = np.shape(x)[1:]
    everything = ops.full((1, *shape), span, dtype="float32")  # what may not move is put back by the projection
    everything = norm.project(everything, ops.convert_to_tensor([np.float32(_FAR * span * math.prod(shape))]))
    radius = float(norm.size(everything)[0])
    free = varied(attack, "eps", lambda value: radius)
    return Unbounded(robust(defense, free, x, y, batch_size, seed, progress), radius)


@checked
def monotone(
    defense: Defense | Outputs,
    attack: Attack,
    x: np.ndarray,
    y: np.ndarray,
    setting: str = "eps",
    *,
    factors: tuple[float, ...] | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool | None = None,
) -> Monotone:
    """Attack with less and more of one setting; what is left must not grow.

    Args:
        defense: The defense.
        attack: The attack; its goal is taken from the defense.
        x: Clean images of shape (n, ...), within the bounds of the attack.
        y: Their labels of shape (n,).
        setting: "eps", "steps", "samples" (draws of a random model) or "queries". It is changed wherever the attack, or
            one inside of it, has it.
        factors: What its value is multiplied by, growing; whole numbers are rounded, and are at least 1. None takes
            half, one and two, and a quarter in the place of a half for steps and queries.
        batch_size: Samples that the attack works on at a time.
        seed: All randomness comes from it.
        progress: Show bars; None shows them on a terminal and in notebooks.

    Raises:
        ValueError: The attack does not have the setting, or factors that do not grow.

    References: Carlini et al., 2019, https://arxiv.org/abs/1902.06705 (section 4.5: more iterations, larger radii).
    """
    return _monotone(defense, attack, x, y, setting, factors, batch_size, seed, progress, None)


def _monotone(defense, attack, x, y, setting, factors, batch_size, seed, progress, once) -> Monotone:
    """As `monotone`; `once` is what the attack as it is left, where that is known."""
    _check(attack, x, y, batch_size, seed)
    checks.one_of("setting", setting, SETTINGS)
    if not has(attack, setting):
        raise ValueError(f"`setting` must be one that the attack has. Received: setting={setting!r}, attack={attack!r}")
    factors = tuple(float(f) for f in (_FACTORS[setting] if factors is None else factors))
    if len(factors) < 2 or factors[0] <= 0 or any(b <= a for a, b in itertools.pairwise(factors)):
        raise ValueError(f"`factors` must be two or more numbers above 0 that grow. Received: factors={factors!r}")
    left = [
        once
        if factor == 1.0 and once is not None
        else robust(defense, varied(attack, setting, _times(factor)), x, y, batch_size, seed, progress)
        for factor in factors
    ]
    return Monotone(setting, factors, np.stack(left))


def _times(factor: float) -> Callable:
    """Multiplies a value of a setting."""

    def change(value):
        if isinstance(value, tuple):
            return tuple(factor * v for v in value)
        return max(1, round(factor * value)) if isinstance(value, int) else factor * value

    return change


def _check(attack: Attack, x, y, batch_size: int, seed: int) -> None:
    """Raise where an argument is wrong that the attack itself would get."""
    x = checks.images("x", x, limits=attack.bounds)
    checks.labels("y", y, n=len(x))
    checks.positive_int("batch_size", batch_size)
    checks.non_negative_int("seed", seed)


def robust(defense, attack: Attack, x, y, batch_size: int, seed: int, progress: bool | None) -> np.ndarray:
    """Booleans of shape (n,): the attack, with the goal against the defense, does not break the sample."""
    model, goal = defense.surface()
    attack = attack.with_goal(goal)
    victim, x, y = attack._prepare(model, x, y)
    return ~np.asarray(attack._result(victim, x, y, batch_size, seed, progress).success)
