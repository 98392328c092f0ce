"""HopSkipJump: walks along the decision boundary towards the input, knowing labels only."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from kerasdef import checks, norms
from kerasdef import random as draws
from kerasdef.attacks.queries import QueryAttack, add_up, on_rows, pieces, tall
from kerasdef.norms import L2, Linf, Norm

_FIRST_RADIUS = 0.1  # of the first estimate, as a share of the range (authors' code)
_FINEST = 2.0**-22  # finer differences below 1 are the rounding of float32: a search for them would not end
_FINE = 1e-3  # coarsest binary search: the paper's own, d**-1.5, is coarse where there are few features
_HALVINGS = 25  # after so many a step is lost in float32
_RESERVE = 20  # queries kept for the step and the binary search after an estimate


@dataclass(frozen=True, repr=False)
class HopSkipJump(QueryAttack):
    """HopSkipJump attack: the smallest change that is found from labels alone.

    From a first point that reaches the goal, each round estimates the normal of the boundary from labels around the
    point, steps along it, and goes back to the boundary by a binary search towards the input. Samples for which no
    first point is found are returned unchanged; for a goal like `Hit`, noise rarely does, so give `starts`.

    Args:
        norm: "l2", "linf", or the `Norm`.
        initial_queries: Queries of the first estimate, at least 1; the t-th has sqrt(t) times as many.
        most_queries: Most queries of an estimate.
        gamma: Scale of the binary search's tolerance, above 0.
        tries: Noise images that are tried as a first point.
        starts: First points of the shape of x, or None for noise; noise is tried where they do not reach the goal.
        queries: Most queries for each sample, at least 1.
        samples: Passes of a random model that are averaged for one answer, at least 1; each is a query.
        goal: What the attacker wants.
        bounds: Valid range of an input value.

    Example:
    >>> x_adv = HopSkipJump(queries=2000)(lambda images: service(images), x, y)

    References: Chen et al., 2020, https://arxiv.org/abs/1904.02144 (Algorithms 1 and 2). The binary search is never
    coarser than 0.001 of the distance, and every other first point is tried as black and white noise of any density,
    because uniform noise has one class only for many models.
    """

    kind: ClassVar[str] = "minimal"
    per_sample: ClassVar[tuple[str, ...]] = ("starts",)
    scores: ClassVar[bool] = False
    least: ClassVar[int] = 1 + _RESERVE

    norm: Norm | str = field(default_factory=L2)
    initial_queries: int = 100
    most_queries: int = 10_000
    gamma: float = 1.0
    tries: int = 100
    starts: np.ndarray | None = field(default=None, compare=False)
    queries: int = field(default=10_000, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "norm", norms.get(self.norm))
        if type(self.norm) not in _SPACES:
            raise ValueError(f"`norm` must be l2 or linf. Received: norm={self.norm!r}")
        for name in ("initial_queries", "most_queries", "tries"):
            checks.positive_int(name, getattr(self, name))
        checks.real("gamma", self.gamma, low=0.0, open_low=True)
        if self.starts is not None:
            object.__setattr__(self, "starts", checks.images("starts", self.starts, limits=self.bounds))

    def init(self, x, seeds, value) -> dict:
        """State before the first round."""
        starts = x if self.starts is None else self.starts
        if starts.shape != x.shape:
            raise ValueError(f"`starts` must have the shape of x, {x.shape}. Received: shape={starts.shape}")
        none = np.zeros(len(x), dtype="float32")
        return {
            "done": none > 0,
            "now": np.array(starts),
            "distance": none,
            "best": none + np.float32(np.inf),
        }

    def round(self, ask, part) -> None:
        """Find a first point, or make one step along the boundary."""
        fresh = part["moves"] == 0
        if fresh.any():
            self._on(fresh, part, ask, self._start)
        if not fresh.all():
            self._on(~fresh, part, ask, self._walk)
        closer = part["reached"] & (part["distance"] < part["best"])
        part["adv"][closer], part["best"][closer] = part["now"][closer], part["distance"][closer]

    def _on(self, rows, part, ask, move) -> None:
        """Let a move work on some of the samples."""
        some = {k: v[rows] for k, v in part.items()}
        move(ask, some)
        for k, v in some.items():
            part[k][rows] = v

    def _size(self, delta) -> np.ndarray:
        return on_rows(self.norm.size, delta)

    def _start(self, ask, part) -> None:
        """First points: the given ones, then noise; brought to the boundary."""
        x = part["x"]
        found = np.zeros(len(x), dtype=bool)
        if self.starts is not None:
            found[:] = ask(part["row"], part["now"])[1]
        for i in range(self.tries):
            rows = np.flatnonzero(~found)
            if not len(rows):
                break
            noise = self._noise(draws.branch(part["seed"][rows], i), x.shape[1:], i)
            hit = ask(part["row"][rows], noise)[1]
            part["now"][rows[hit]] = noise[hit]
            found[rows[hit]] = True
        part["reached"], part["done"] = found, ~found
        self._to_boundary(ask, part)

    def _noise(self, seeds, shape, i) -> np.ndarray:
        low, high = self.bounds
        drawn = draws.uniform_array(seeds, shape)
        if i % 2:
            drawn = (drawn < tall(draws.unit(draws.branch(seeds, 0)), drawn)).astype("float32")
        return np.clip(low + (high - low) * drawn, low, high).astype("float32", copy=False)

    def _to_boundary(self, ask, part) -> None:
        """Binary search between x and the current point, which reaches the goal and still does afterwards."""
        space = _SPACES[type(self.norm)]
        x, far = part["x"], part["now"].copy()
        distance = self._size(far - x)
        tolerance = max(min(self.gamma * space.tolerance(x[0].size), _FINE), _FINEST)
        low, high = np.zeros(len(x), dtype="float32"), np.ones(len(x), dtype="float32")
        while True:
            rows = np.flatnonzero(part["reached"] & (high - low > tolerance) & (ask.left(part["row"]) > 0))
            if not len(rows):
                break
            middle = (low[rows] + high[rows]) / 2
            point = np.clip(space.between(x[rows], far[rows], middle, distance[rows]), *self.bounds)
            hit = ask(part["row"][rows], point)[1]
            high[rows[hit]], low[rows[~hit]] = middle[hit], middle[~hit]
            part["now"][rows[hit]] = point[hit]
        part["distance"] = self._size(part["now"] - x)

    def _walk(self, ask, part) -> None:
        """One step: estimate the normal, go along it as far as the goal is still reached, return to the boundary."""
        t, x = part["moves"], part["x"]
        space = _SPACES[type(self.norm)]
        d = x[0].size
        count = np.minimum(self.initial_queries * np.sqrt(t), self.most_queries).astype("int64")
        count = np.minimum(count, ask.left(part["row"]) - _RESERVE)
        radius = space.radius(d) * self.gamma * part["distance"]
        radius = np.where(t == 1, _FIRST_RADIUS * self.span, radius)
        normal = self._normal(ask, part, count, np.maximum(radius, np.finfo("float32").tiny), space)
        direction = on_rows(self.norm.steepest, normal)
        length = (part["distance"] / np.sqrt(t)).astype("float32")
        going = np.arange(len(x))
        for _ in range(_HALVINGS):
            point = np.clip(part["now"][going] + tall(length[going], x) * direction[going], *self.bounds)
            hit = ask(part["row"][going], point)[1]
            part["now"][going[hit]] = point[hit]
            going = going[~hit]
            length[going] /= 2
            if not len(going):
                break
        self._to_boundary(ask, part)

    def _normal(self, ask, part, count, radius, space) -> np.ndarray:
        """Direction into the region of the goal, from answers around the current points (equation 16)."""
        now, shape = part["now"], part["x"].shape[1:]
        signed, plain = np.zeros_like(now), np.zeros_like(now)
        hits = np.zeros(len(now), dtype="float32")
        for owner, number in pieces(count, now[0].size):
            u = space.noise(draws.branch(part["seed"][owner], part["moves"][owner], number), shape)
            size = np.sqrt(np.square(u).sum(axis=tuple(range(1, u.ndim))))
            reach = tall(radius[owner] / size, u).astype("float32")
            points = np.clip(now[owner] + reach * u, *self.bounds)
            u = (points - now[owner]) / tall(radius[owner], u).astype("float32")
            sign = np.where(ask(part["row"][owner], points)[1], 1.0, -1.0).astype("float32")
            add_up(signed, owner, u * tall(sign, u))
            add_up(plain, owner, u)
            add_up(hits, owner, sign)
        mean = hits / count
        baseline = np.where(np.abs(mean) == 1.0, 0.0, mean)  # all answers the same: their mean is the direction
        return signed - tall(baseline.astype("float32"), now) * plain


class _Space(ABC):
    """What differs between the norms: the noise, the way to the input, and how fine the search is."""

    @abstractmethod
    def noise(self, seeds, shape) -> np.ndarray:
        """Random directions, one for each seed; their lengths do not matter."""

    @abstractmethod
    def between(self, x, far, share, distance):
        """Points at a share of the distance of `far` from x."""

    @abstractmethod
    def tolerance(self, d: int) -> float:
        """Share of the distance at which a binary search over d features ends."""

    @abstractmethod
    def radius(self, d: int) -> float:
        """Radius of an estimate, as a share of the distance."""


class _Straight(_Space):
    """L2: normal noise, straight lines."""

    def noise(self, seeds, shape):
        return draws.normal_array(seeds, shape)

    def between(self, x, far, share, distance):
        return x + tall(share, x) * (far - x)

    def tolerance(self, d):
        return d**-1.5

    def radius(self, d):
        return math.sqrt(d) * d**-1.5


class _Cube(_Space):
    """Linf: uniform noise, cubes around x."""

    def noise(self, seeds, shape):
        return np.float32(2.0) * draws.uniform_array(seeds, shape) - np.float32(1.0)

    def between(self, x, far, share, distance):
        reach = tall(share * distance, x)
        return np.clip(far, x - reach, x + reach)

    def tolerance(self, d):
        return d**-2.0

    def radius(self, d):
        return d * d**-2.0


_SPACES: dict[type[Norm], _Space] = {L2: _Straight(), Linf: _Cube()}
