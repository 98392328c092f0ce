"""Adversarial images that survive being stored with few levels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from keras import ops

from kerasdef import checks, norms, random
from kerasdef.attacks.base import Attack
from kerasdef.attacks.worst_of import judged
from kerasdef.attacks.wrappers.base import Wrapper, targets_outside
from kerasdef.norms import Norm
from kerasdef.threat import ThreatModel

_ON = 1e-3  # of a level: a value this near to one is on it (float32 noise is below 1e-4 of 256 levels)
_SALT = 71  # of the random roundings


@dataclass(frozen=True, eq=False, repr=False)
class Quantized(Wrapper):
    """An attack whose result lies on the levels of an image format, in its ball, and is still adversarial.

    Every value that the attack moved is rounded: to the nearest level, then, for samples that are no longer
    adversarial, away from x, toward x, and up or down at random. Where a rounding leaves the ball, the fewest values
    that bring it back are rounded toward x instead. A sample for which none of these is adversarial is returned as
    its nearest rounding (unchanged by a minimal attack). `x` itself should lie on the levels, as images of 8 bits do:
    a value without a level between x and x_adv stays as it is.

    Args:
        attack: Any attack. `Targeted` stands outside: `Targeted(Quantized(attack))`.
        levels: Levels between the bounds, at least 2; 256 for 8 bits.
        tries: Random roundings, at least 0.
        norm: Norm of the ball; None takes it, with `eps`, from the attack. A minimal attack has no ball.
        eps: Radius of the ball, a number or one for each sample.

    Looks at rounded images are not counted as evaluations.

    Example:
    >>> x_adv = Quantized(PGD(eps=8 / 255))(model, x, y)
    >>> pixels = np.rint(x_adv * 255).astype("uint8")
    """

    levels: int = 256
    tries: int = 8
    norm: Norm | str | None = None
    eps: float | tuple[float, ...] | None = None

    def __post_init__(self):
        super().__post_init__()
        targets_outside("Quantized", self.attack)
        checks.positive_int("levels", self.levels)
        if self.levels < 2:
            raise ValueError(f"`levels` must be at least 2. Received: levels={self.levels}")
        checks.non_negative_int("tries", self.tries)
        if (self.norm is None) != (self.eps is None):
            raise ValueError(f"`norm` and `eps` must be given together. Received: norm={self.norm!r}, eps={self.eps!r}")
        if self.norm is not None:
            object.__setattr__(self, "norm", norms.get(self.norm))
            object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        ball_of(self, 1)  # raises where it is not known

    @property
    def threat(self) -> ThreatModel:
        """Threat model of the inner attack, in the ball that is given."""
        inner = self.attack.threat
        return inner if self.norm is None else dataclasses.replace(inner, norm=self.norm, eps=self.eps)

    def _run(self, model, x, y, batch_size, seed, show):
        found, spent = self.attack._run(model, x, y, batch_size, seed, show)
        if found.shape != x.shape:
            raise ValueError(f"`attack` must return one image for one. Received: {self.attack!r}")
        x_adv = np.array(x)
        moved = np.flatnonzero(np.any(found != x, axis=tuple(range(1, x.ndim))))
        if not len(moved):
            return x_adv, spent
        seeds = random.sample_seeds(seed, np.arange(len(x)))
        ball = ball_of(self, len(x))

        def rounded(rows, rule):
            norm, eps = (None, None) if ball is None else (ball[0], ball[1][rows])
            return _round(x[rows], found[rows], rule, seeds[rows], self.levels, self.bounds, norm, eps)

        x_adv[moved] = rounded(moved, "nearest")
        won, _ = judged(self.attack, model, found[moved], y[moved])
        stands = ~judged(self.attack, model, x_adv[moved], y[moved])[0]
        left = moved[won & stands]  # rounding spoiled them
        for rule in ("outward", "inward", *range(self.tries)):
            if not len(left):
                break
            other = rounded(left, rule)
            good, _ = judged(self.attack, model, other, y[left])
            x_adv[left[good]] = other[good]
            left = left[~good]
        if self.kind == "minimal":
            x_adv[left] = x[left]
        return x_adv, spent


def ball_of(attack: Attack, n: int) -> tuple[Norm, np.ndarray] | None:
    """Norm and radii of shape (n,) of the ball that an attack stays in; None for a minimal attack.

    Raises:
        ValueError: A budget attack does not tell its ball.
    """
    threat = attack.threat
    if attack.kind == "minimal" and threat.eps is None:
        return None
    if threat.norm is None or threat.eps is None:
        raise ValueError(f"`norm` and `eps` must be given for an attack that has no single ball. Received: {attack!r}")
    return threat.norm, threat.radii(n)


def _round(x, x_adv, rule, seeds, levels, bounds, norm, eps) -> np.ndarray:
    """Round x_adv (m, ...) by a rule: "nearest", "outward", "inward", or the number of a random rounding."""
    low, high = bounds
    scale = (levels - 1) / (high - low)

    def level(values):
        z = (values.astype("float64") - low) * scale
        return np.where(np.abs(z - np.rint(z)) < _ON, np.rint(z), z)

    def value(z):
        return (np.clip(z, 0, levels - 1) / scale + low).astype("float32")

    at, clean = level(x_adv), level(x)
    up = at > clean
    toward = np.where(up, np.floor(at), np.ceil(at))
    none = np.where(up, toward < clean, toward > clean) | (x_adv == x)
    inward = np.where(none, x, value(toward))
    if rule == "inward":
        return inward
    if rule == "nearest":
        chosen = value(np.rint(at))
    elif rule == "outward":
        chosen = value(np.where(up, np.ceil(at), np.floor(at)))
    else:
        drawn = ops.convert_to_numpy(random.uniform(seeds, x.shape[1:], salt=_SALT + rule))
        chosen = value(np.floor(at) + (drawn < at - np.floor(at)))
    chosen = np.where(x_adv == x, x, chosen)
    return chosen if norm is None else _into_ball(chosen, inward, x, norm, eps, max(abs(low), abs(high)))


def _into_ball(chosen, inward, x, norm, eps, largest: float) -> np.ndarray:
    """Replace the fewest values of `chosen` by those of `inward` that bring it into the ball.

    First come the values that a projection on the ball shortens most; `inward` as a whole lies in the ball.
    """
    m = len(x)
    limit = eps * (1 + 1e-6) + 2e-7 * largest  # float32 noise of a difference of two values

    def size(z):
        return ops.convert_to_numpy(norm.size(ops.convert_to_tensor(z - x)))

    outside = size(chosen) > limit
    if not outside.any():
        return chosen
    delta = chosen - x
    nearest = ops.convert_to_numpy(norm.project(ops.convert_to_tensor(delta), ops.cast(eps, "float32")))
    gain = np.abs(delta) - np.abs(nearest)
    gain = np.where(np.abs(delta) > np.abs(inward - x), gain, -1.0).reshape(m, -1)  # others make it no smaller
    rank = np.empty(gain.shape, dtype="int64")
    np.put_along_axis(rank, np.argsort(-gain, axis=1, kind="stable"), np.arange(gain.shape[1])[None], axis=1)

    def replaced(count):
        return np.where((rank < count[:, None]).reshape(x.shape) & (np.abs(delta) > np.abs(inward - x)), inward, chosen)

    few, many = np.zeros(m, dtype="int64"), np.where(outside, gain.shape[1], 0)
    while np.any(few < many):  # the size falls as more values are replaced
        middle = (few + many) // 2
        good = size(replaced(middle)) <= limit
        few, many = np.where(good | (few >= many), few, middle + 1), np.where(good, np.minimum(middle, many), many)
    return replaced(many)
