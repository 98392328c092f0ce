"""The binarization test: a problem that surely has a solution, made of the defense itself, for the attack itself."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from keras import ops
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import Attack, Targeted, Transfer
from kerasdef.defenses.base import Defense
from kerasdef.evaluation.judging import reach
from kerasdef.evaluation.sanity.heads import Problem, problem
from kerasdef.evaluation.sanity.points import inside, on_surface, sizes
from kerasdef.evaluation.sanity.varied import aimed, parts_of
from kerasdef.models import Victim
from kerasdef.models.bounds import onto
from kerasdef.norms import Norm
from kerasdef.random import branch, sample_seeds

WANTED = 0.95  # share that a right attack finds (Zimmermann et al., 2022)
ENOUGH = 50  # images below which the test says nothing
SURE = 0.05  # level of the test that random draws find fewer
GAP = 0.95  # inner points lie within this part of the radius (paper, eta)
_LEAST = 200  # random draws at least (authors' code)
_ROUNDS = 10  # times that points are drawn until they are not flagged (authors' code)
_SPARE = 5  # for each of so many images one more is there, in the place of those that cannot be tested
_ATTEMPTS = 3  # sets of points of which the heads of an image are made, until one makes a sound problem
_DRAWN = 8  # looks at every point where the features are random
_SOFT = 1e6  # inverse of the penalty on the weights of a head: as good as none
_NUMBERS = 1 << 24  # most numbers in an array of random points: 64 MiB
_ROUNDING = 1e-4  # part of the radius by which float32 may be beyond it


@dataclass(frozen=True, eq=False)
class Binarization:
    """What came of a binarization test.

    Args:
        index: Which of the samples were tested, integers of shape (n,): those for which a point that an attack must
            find could be made.
        found: Booleans of shape (n,): the attack found one.
        drawn: Booleans of shape (n,): random points found one.
        evaluations: Integers of shape (n,): gradients or queries that the attack spent.
        draws: Random points for each sample.
        asked: How many samples were to be tested.
    """

    index: np.ndarray
    found: np.ndarray
    drawn: np.ndarray
    evaluations: np.ndarray
    draws: int
    asked: int

    def __post_init__(self):
        check_fields(self)

    @property
    def n(self) -> int:
        """Number of samples that were tested."""
        return len(self.index)

    @property
    def attack_rate(self) -> float:
        """Share of the samples for which the attack found a point; NaN without samples."""
        return float(np.mean(self.found)) if self.n else float("nan")

    @property
    def random_rate(self) -> float:
        """Share of the samples for which random points found one; NaN without samples."""
        return float(np.mean(self.drawn)) if self.n else float("nan")

    @property
    def p_value(self) -> float:
        """Chance of such a difference if the attack were no better than random points: McNemar's exact test, one-sided.

        Only samples on which exactly one of the two succeeds tell something; each would be a fair coin toss.
        """
        attack, random = int(np.sum(self.found & ~self.drawn)), int(np.sum(self.drawn & ~self.found))
        return float(binomtest(attack, attack + random, alternative="greater").pvalue) if attack + random else 1.0

    @property
    def verdict(self) -> str:
        """The outcome: "passed", "failed", "too easy" where random points do as well, or "too few" samples."""
        if self.n and self.attack_rate < WANTED and (self.n >= ENOUGH or self._surely_below()):
            return "failed"
        if self.n < ENOUGH:
            return "too few"
        return "passed" if self.p_value < SURE else "too easy"

    def _surely_below(self) -> bool:
        """Whether a right attack would do so badly on these samples in fewer than 5 % of all cases."""
        return bool(binomtest(int(np.sum(self.found)), self.n, WANTED, alternative="less").pvalue < SURE)

    @property
    def passed(self) -> bool:
        """Whether the attack found at least 95 % on at least 50 samples, and significantly more than random points."""
        return self.verdict == "passed"

    @property
    def text(self) -> str:
        """The outcome in a sentence."""
        numbers = (
            f"On {self.n} images whose last layers were replaced so that an adversarial example surely exists, the "
            f"attack finds one for {self.attack_rate:.0%}, {self.draws} random points for {self.random_rate:.0%}"
        )
        return {
            "passed": f"{numbers}.",
            "failed": f"{numbers}: it misses what is there, and what it finds on the defense itself is not reliable.",
            "too easy": f"{numbers}: the problem is too easy to tell the attack from chance.",
            "too few": f"{numbers}: fewer than {ENOUGH} images, of {self.asked} asked for, say too little.",
        }[self.verdict]


@checked
def binarization(
    defense: Defense,
    attack: Attack,
    x: np.ndarray,
    y: np.ndarray | None = None,
    *,
    eps: float | None = None,
    n: int = ENOUGH,
    inner: int = 49,
    boundary: int = 1,
    closeness: float = 0.999,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool | None = None,
) -> Binarization:
    """Test whether an attack finds an adversarial example on a defense where one surely exists.

    Everything of the defense stays in place, such as purifiers, noise, votes and detectors, but the last layers of its
    members. These are replaced, for each image, by a logistic regression that tells points well inside the ball around
    the image (class 0) from points at its radius (class 1). All points are drawn again until the defense does not flag
    them. So a point of class 1 that is not flagged lies in the ball, and the attack, as it is, has to find one. What
    an attack that misses them finds on the defense itself says little. A `HybridDefense` with `sure` asks all members.

    The heads of all images are in one model, in which every input meets the head of the image in whose ball it lies.
    Images whose balls touch are attacked one group after the other.

    Args:
        defense: A defense made of members: `Plain`, `RejectClass`, `Voting`, `HybridDefense`.
        attack: The attack, with its norm, radius and bounds; its goal is taken from the defense. One that was made by
            `adaptive` is made anew from the defense with binary heads, without parts on single members.
        x: Clean images of shape (m, ...), within the bounds of the attack.
        y: Their labels of shape (m,). Images that the defense labels otherwise are not used; None uses all that it does
            not flag.
        eps: Radius, for an attack that has none; what it finds beyond does not count.
        n: How many images are tested, the first ones that can be. Below 50 the test says nothing.
        inner: Points inside of each ball, beside the image. Paper: 49.
        boundary: Points at the radius. Paper: 1 or 10.
        closeness: How far the boundary of a head is moved towards the point at the radius that it is surest of, from 0
            (where the regression has it) to below 1 (through the point). 0.999 is that of the authors' scripts; smaller
            values make the test easier, for random points above all: with 0 these often find as much as an attack.
            Where noise decides, no head is sure of a point at its boundary, and too few images may be left: take 0.
        batch_size: Samples that the attack works on at a time.
        seed: All randomness comes from it.
        progress: Show bars; None shows them on a terminal and in notebooks.

    Returns:
        A `Binarization`.

    Raises:
        ValueError: The defense is not made of members that end in a layer with weights, the attack has no norm or no
            radius or is made on another model, or the images do not fit.

    Example:
    >>> binarization(defense, PGD(eps=8 / 255), x_test, y_test).passed

    References: Zimmermann et al., 2022, https://arxiv.org/abs/2206.13991 (section 3; random points are the control).
    That random points do clearly worse is judged by McNemar's test at 5 %, which is a choice made here.
    """
    checks.positive_int("n", n)
    checks.positive_int("inner", inner)
    checks.positive_int("boundary", boundary)
    checks.positive_int("batch_size", batch_size)
    checks.non_negative_int("seed", seed)
    closeness = checks.real("closeness", closeness, low=0.0)
    if closeness >= 1:
        raise ValueError(f"`closeness` must be below 1. Received: closeness={closeness}")
    norm, radii = _threat(attack, eps, len(x))
    x = checks.images("x", x, limits=attack.bounds, shape=defense.input_shape[1:])
    y = None if y is None else checks.labels("y", y, n=len(x), classes=defense.classes)
    chosen = _accepted(defense, attack, x, y, n + -(-n // _SPARE))
    attack, x, radii = attack.rows(chosen, len(x)), x[chosen], radii[chosen]
    scale = (defense.bounds[1] - defense.bounds[0]) / (attack.bounds[1] - attack.bounds[0])
    made = problem(defense, norm, onto(x, defense.bounds, attack.bounds), radii * scale)
    test = _Test(defense, aimed(attack, made.defense), made, norm, x, radii, sample_seeds(seed, chosen))
    known = test.solve(inner, boundary, closeness)
    known &= np.cumsum(known) <= n
    found, spent = test.attacked(known, batch_size, seed, progress)
    draws = max(_LEAST, int(spent.max(initial=0)))
    drawn = test.drawn(known, draws)
    return Binarization(chosen[known], found[known], drawn[known], spent[known], draws, n)


def _threat(attack: Attack, eps: float | None, n: int) -> tuple[Norm, np.ndarray]:
    """Norm and radii of shape (n,) that a success has to keep to."""
    if any(isinstance(part, Transfer | Targeted) for part in parts_of(attack)):
        raise ValueError(f"`attack` must be made on the defense itself, without targets. Received: attack={attack!r}")
    norm, radii = reach(attack, n)
    if norm is None:
        raise ValueError(f"`attack` must have a norm. Received: attack={attack!r}")
    if (radii is None) == (eps is None):
        given = "has none" if radii is None else "has one"
        raise ValueError(
            f"`eps` must be given where the attack has no radius, and only there. Received: eps={eps!r}, "
            f"and an attack that {given}"
        )
    radii = np.full(n, checks.real("eps", eps, low=0.0, open_low=True)) if radii is None else radii
    return norm, np.asarray(radii, dtype="float32")


def _accepted(defense: Defense, attack: Attack, x: np.ndarray, y: np.ndarray | None, wanted: int) -> np.ndarray:
    """The first images that the defense does not flag and, where labels are given, labels right."""
    found: list[int] = []
    for start in range(0, len(x), 2 * wanted):
        part = slice(start, start + 2 * wanted)
        decision = defense.decide(x[part], bounds=attack.bounds)
        good = ~decision.rejected if y is None else ~decision.rejected & (decision.label == y[part])
        found += (start + np.flatnonzero(good)).tolist()
        if len(found) >= wanted:
            break
    if not found:
        raise ValueError("`x` must have images that the defense labels right and does not flag. Received: none of them")
    return np.asarray(found[:wanted])


def apart(norm: Norm, x: np.ndarray, radii: np.ndarray) -> list[np.ndarray]:
    """Groups of samples, as few as a greedy choice gives, in which no two balls touch."""
    free = np.stack([sizes(norm, x - one) > (radii + own) * (1 + _ROUNDING) for one, own in zip(x, radii, strict=True)])
    groups: list[list[int]] = []
    for i in range(len(x)):
        fitting = (group for group in groups if free[i, group].all())
        group = next(fitting, None)
        groups.append([i]) if group is None else group.append(i)
    return [np.asarray(group) for group in groups]


@dataclass(frozen=True, eq=False)
class _Test:
    """The images of a test, and the problems that are made of them."""

    defense: Defense
    attack: Attack
    made: Problem
    norm: Norm
    x: np.ndarray
    radii: np.ndarray
    seeds: np.ndarray

    @functools.cached_property
    def groups(self) -> list[np.ndarray]:
        """Samples whose problems can be asked for together."""
        return apart(self.norm, self.x, self.radii)

    @functools.cached_property
    def victim(self) -> Victim:
        """The binary problems as the attack sees them."""
        return self.attack._view(self.made.model)

    def solve(self, inner: int, boundary: int, closeness: float) -> np.ndarray:
        """Make the heads; booleans of shape (n,): a point is known that an attack has to find, and the heads are sound.

        That is, the defense with its new heads gives class 1 to a point at the radius that it does not flag, and to
        neither the image nor the points inside.
        """
        known = np.zeros(len(self.x), dtype=bool)
        for attempt in range(_ATTEMPTS):
            rows = np.flatnonzero(~known)
            if not len(rows):
                break
            within, _ = self._unflagged(inside, GAP, rows, inner, branch(self.seeds[rows], 3 * attempt))
            at, good = self._unflagged(on_surface, 1.0, rows, boundary, branch(self.seeds[rows], 3 * attempt + 1))
            first = np.argmax(good, axis=1)  # stands for those that are flagged
            at = np.where(_wide(good, at), at, at[np.arange(len(rows)), first][:, None])
            points = np.concatenate([self.x[rows][:, None], within, at], axis=1)
            self._fit(rows, points, boundary, closeness)
            reached = self._reached(rows, points)
            known[rows] = good.any(axis=1) & reached[:, -boundary:].any(axis=1) & ~reached[:, :-boundary].any(axis=1)
        return known

    def attacked(self, known: np.ndarray, batch_size: int, seed: int, show: bool | None):
        """Run the attack; whether it found a point of each ball, and what that cost, both of shape (n,)."""
        found, spent = np.zeros(len(self.x), dtype=bool), np.zeros(len(self.x), dtype="int64")
        for rows in self._each(known):
            own, x, zeros = self.attack.rows(rows, len(self.x)), self.x[rows], np.zeros(len(rows), dtype="int32")
            result = own._result(self.victim, x, zeros, batch_size, seed, show)
            within = sizes(self.norm, result.x_adv - x) <= self.radii[rows] * (1 + _ROUNDING)
            found[rows], spent[rows] = result.success & within, result.evaluations
        return found, spent

    def drawn(self, known: np.ndarray, draws: int) -> np.ndarray:
        """Whether one of so many random points at the radius is what the attack looks for, of shape (n,)."""
        found = np.zeros(len(self.x), dtype=bool)
        at_once = max(1, _NUMBERS // (draws * self.x[0].size))
        for group in self._each(known):
            for rows in np.array_split(group, -(-len(group) // at_once)):
                seeds = branch(self.seeds[rows], 3 * _ATTEMPTS)
                points = on_surface(self.norm, self.x[rows], self.radii[rows], self.attack.bounds, draws, seeds)
                found[rows] = self._says(points).any(axis=1)
        return found

    def _each(self, known: np.ndarray) -> Iterator[np.ndarray]:
        """Groups of known samples, each of which is asked for while it is the turn of the group."""
        for group in self.groups:
            rows = group[known[group]]
            if len(rows):
                self.made.only(rows)
                yield rows

    def _unflagged(self, draw, part: float, rows, count: int, seeds) -> tuple[np.ndarray, np.ndarray]:
        """Points of shape (n, count, ...), drawn again where they are flagged, and whether they are not flagged now."""
        x, radii = self.x[rows], part * self.radii[rows]
        points, good = None, np.zeros((len(rows), count), dtype=bool)
        for turn in range(_ROUNDS):
            fresh = draw(self.norm, x, radii, self.attack.bounds, count, branch(seeds, turn))
            if self.defense.reject is None:
                return fresh, ~good
            flat = fresh.reshape(-1, *x.shape[1:])
            fine = ~self.defense.decide(flat, bounds=self.attack.bounds).rejected.reshape(good.shape)
            points = fresh if points is None else points
            for i in range(len(rows)):
                free, new = np.flatnonzero(~good[i]), np.flatnonzero(fine[i])
                taken = min(len(free), len(new))
                points[i, free[:taken]], good[i, free[:taken]] = fresh[i, new[:taken]], True
            if good.all():
                break
        return points, good

    def _fit(self, rows, points: np.ndarray, boundary: int, closeness: float) -> None:
        """Give the heads of some samples their weights, from points of shape (n, count, ...), the last of class 1."""
        seen = Victim.of(self.made.features).facing(self.attack.bounds)
        flat = points.reshape(-1, *points.shape[2:])
        looks = [seen.predict(flat, seed=i) for i in range(_DRAWN if seen.random else 1)]
        count = len(looks)
        looks = np.stack(looks, axis=1).reshape(len(rows), points.shape[1] * count, -1)
        labels = np.repeat(np.arange(points.shape[1]) >= points.shape[1] - boundary, count)
        start = 0
        for (width, outputs), pairs in zip(self.made.widths, self.made.heads, strict=True):
            features, logits = np.split(looks[..., start : start + width + outputs], [width], axis=-1)
            start += width + outputs
            kernel, bias = (ops.convert_to_numpy(v).copy() for v in (pairs.kernel, pairs.bias))
            for i, row in enumerate(rows):
                kernel[:, row], bias[row] = _head(features[i], labels, float(np.ptp(logits[i])), closeness, count)
            pairs.kernel.assign(kernel)
            pairs.bias.assign(bias)

    def _reached(self, rows, points: np.ndarray) -> np.ndarray:
        """Which points of shape (n, count, ...) are what an attack looks for, of shape (n, count)."""
        found = np.zeros((len(self.x), points.shape[1]), dtype=bool)
        place = np.full(len(self.x), -1)
        place[rows] = np.arange(len(rows))
        for group in self._each(place >= 0):
            found[group] = self._says(points[place[group]])
        return found[rows]

    def _says(self, points: np.ndarray) -> np.ndarray:
        """Which points of the samples whose turn it is are of class 1 and not flagged."""
        flat = points.reshape(-1, *points.shape[2:])
        reached = self.attack._success(self.victim, flat, np.zeros(len(flat), dtype="int32"))
        return np.asarray(reached).reshape(points.shape[:2])


def _head(
    features: np.ndarray, labels: np.ndarray, span: float, closeness: float, looks: int
) -> tuple[np.ndarray, float]:
    """Weights and bias of a head.

    Args:
        features: Array of shape (points * looks, width), all looks at a point one after the other.
        labels: Booleans of shape (points * looks,): class 1.
        span: Width of the range of the logits of the layer that is replaced, on the same points. The scores of the head
            get it too, so that the slopes of losses are as they were (authors' code, "adaptive").
        closeness: As in `binarization`; the score of a point is its mean over the looks.
        looks: Looks at every point.
    """
    middle, spread = features.mean(axis=0), float(features.std()) or 1.0
    model = LogisticRegression(C=_SOFT, max_iter=2000, tol=1e-6)
    model.fit((features - middle) / spread, labels)
    weights = model.coef_[0] / spread
    bias = float(model.intercept_[0] - middle @ weights)
    scores = features @ weights + bias
    bias -= closeness * max(0.0, float(scores[labels].reshape(-1, looks).mean(axis=1).max()))
    largest = float(np.abs(scores).max())
    factor = span / largest if largest > 0 and span > 0 else 1.0
    return (weights * factor).astype("float32"), bias * factor


def _wide(mask: np.ndarray, x: np.ndarray) -> np.ndarray:
    return mask.reshape(*mask.shape, *(1,) * (x.ndim - mask.ndim))
