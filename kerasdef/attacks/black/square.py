"""The Square attack: random search whose every step changes one square of the image."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from kerasdef import checks, norms
from kerasdef import random as draws
from kerasdef.attacks.engine import spread
from kerasdef.attacks.queries import QueryAttack, tall
from kerasdef.norms import L1, L2, Linf, Norm

# share of the budget after which the share of changed pixels is halved (paper, section 5: of 10,000 queries)
_PUBLISHED = 10_000  # queries of the paper
_HALVINGS = np.array([10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]) / _PUBLISHED
_TINY = 1e-10
_ROW, _COLUMN, _ROW2, _COLUMN2, _TURN = range(5)  # numbers drawn for a step; signs come after these
_TILES = 5  # the first points in L2 have 5 x 5 tiles (authors' code)


@dataclass(frozen=True, repr=False)
class Square(QueryAttack):
    """Square attack: random search on the margin, in squares that shrink as the queries go.

    In Linf every point lies in a corner of the ball (clipped to the bounds); the first has vertical stripes. In L2 and
    L1 the mass of two windows is moved into one. An array of shape (n, h, w, channels) holds images; (n, h, w) images
    of one channel; a row of a table, (n, d), is an image of height 1 and width d, so that a "square" is a run of
    neighbors.

    Args:
        eps: Radius in input units (write `8 / 255`), at least 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or the `Norm`.
        p_init: Share of the pixels that the first steps change, above 0 and at most 1 (paper: 0.8 on MNIST, 0.05 in
            Linf and 0.1 in L2 on ImageNet).
        restarts: Runs from new starts; they share `queries`.
        rescale: Whether the squares shrink over `queries`. False: over the 10,000 of the paper, whatever the budget.
        queries: Most queries for each sample, at least 1.
        samples: Passes that are averaged for one answer; each is a query. More than one is for random models.
        goal: What the attacker wants.
        bounds: Valid range of an input value.

    Example:
    >>> x_adv = Square(eps=8 / 255, queries=1000)(lambda images: service(images), x, y)

    References: Andriushchenko et al., 2020, https://arxiv.org/abs/1912.00049 (Algorithms 1 to 3); in L1 as
    in Croce and Hein, 2021, https://arxiv.org/abs/2103.01208, but scaled and clipped instead of projected. Where the
    signs drawn would change nothing, all are turned; the authors draw again.
    """

    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)
    p_init: float = 0.8
    restarts: int = 1
    rescale: bool = True
    queries: int = field(default=5000, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        object.__setattr__(self, "norm", norms.get(self.norm))
        if type(self.norm) not in _MOVES:
            raise ValueError(f"`norm` must be linf, l2 or l1. Received: norm={self.norm!r}")
        checks.real("p_init", self.p_init, low=0.0, high=1.0, open_low=True)
        checks.positive_int("restarts", self.restarts)

    def init(self, x, seeds, value) -> dict:
        """State before the first round."""
        eps = spread("eps", self.eps, len(x))
        return {"done": eps == 0, "eps": eps, "now": np.array(x), "value": value, "best": value.copy()}

    def round(self, ask, part) -> None:
        """One query of each sample: its new point is kept where the margin grows."""
        rule = _MOVES[type(self.norm)]
        shape = as_image(part["x"].shape[1:])
        x, now = (part[k].reshape(-1, *shape) for k in ("x", "now"))
        eps, seeds = part["eps"], draws.branch(part["seed"], part["moves"])
        length = max(1, (self.queries // self.samples - 1) // self.restarts)
        at = part["moves"] % length
        first = at == 0
        whole = length if self.rescale else _PUBLISHED
        sizes = np.where(first, -1, np.searchsorted(_HALVINGS * whole, at))
        kinds = np.unique(sizes)
        new = np.empty_like(now) if len(kinds) > 1 else None
        for k in kinds:  # first points, and squares of one size, together
            rows = slice(None) if len(kinds) == 1 else np.flatnonzero(sizes == k)
            if k < 0:
                moved = rule.start(x[rows], eps[rows], seeds[rows], self.bounds)
            else:
                moved = rule.move(x[rows], now[rows], eps[rows], seeds[rows], self.p_init / 2.0**k, self.bounds)
            if new is None:
                new = moved
            else:
                new[rows] = moved
        new = new.reshape(part["x"].shape)
        value, reached = ask(part["row"], new)
        better = first | (value > part["value"])
        part["now"][better], part["value"][better] = new[better], value[better]
        best = reached | (value > part["best"])
        part["adv"][best], part["best"][best] = new[best], value[best]
        part["reached"] |= reached
        part["done"] |= reached


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Height, width and channels of an input of any shape."""
    if len(shape) == 1:
        return 1, shape[0], 1
    if len(shape) == 2:
        return *shape, 1
    return shape[0], math.prod(shape[1:-1]), shape[-1]


def window(share: float, h: int, w: int) -> tuple[int, int]:
    """Sides of a square that covers a share of an image; a rectangle where the image is too low for it."""
    side = max(1, round(math.sqrt(share * h * w)))
    if side <= min(h, w):
        return side, side
    other = min(max(h, w), max(1, round(share * h * w / min(h, w))))
    return (h, other) if h <= w else (other, w)


def _pixels(seeds, which, sides, shape):
    """Index arrays of one window for each sample, at a place drawn from its seed."""
    (sh, sw), (h, w) = sides, shape
    top = (draws.unit(draws.branch(seeds, which[0])) * (h - sh + 1)).astype("int64")
    left = (draws.unit(draws.branch(seeds, which[1])) * (w - sw + 1)).astype("int64")
    rows = top[:, None, None] + np.arange(sh)[None, :, None]
    columns = left[:, None, None] + np.arange(sw)[None, None, :]
    return np.arange(len(seeds))[:, None, None], rows, columns


def _signs(seeds, shape: tuple[int, ...]) -> np.ndarray:
    """1 or -1, of shape (n, *shape)."""
    counters = 1 + _TURN + np.arange(math.prod(shape))
    drawn = draws.branch(seeds[:, None], counters[None, :]) >> np.uint32(31)
    return (1.0 - 2.0 * drawn).astype("float32").reshape(len(seeds), *shape)


class _Move(ABC):
    """Where the search starts and where a step may go, in one norm; arrays have the shape (n, h, w, channels)."""

    @abstractmethod
    def start(self, x, eps, seeds, bounds):
        """First points."""

    @abstractmethod
    def move(self, x, now, eps, seeds, share, bounds):
        """Points that differ from `now` in a square of this share of the pixels."""


class _Corners(_Move):
    """Linf: each channel of a square goes up or down by eps."""

    def start(self, x, eps, seeds, bounds):
        _, _, w, c = x.shape
        return np.clip(x + tall(eps, x) * _signs(seeds, (1, w, c)), *bounds)

    def move(self, x, now, eps, seeds, share, bounds):
        _, h, w, c = x.shape
        place = _pixels(seeds, (_ROW, _COLUMN), window(share, h, w), (h, w))
        signs = _signs(seeds, (1, 1, c))
        inside, old = x[place], now[place]
        target = np.clip(inside + tall(eps, x) * signs, *bounds)
        turned = np.clip(inside - tall(eps, x) * signs, *bounds)
        same = (target == old).all(axis=(1, 2, 3), keepdims=True)
        new = now.copy()
        new[place] = np.where(same, turned, target)
        return new


@dataclass(frozen=True)
class _Mass(_Move):
    """L2 and L1: the change of two windows is gathered in one, in the shape of two bumps of opposite signs.

    Args:
        order: 2 or 1. What is moved is the sum of this power of the changes.
    """

    order: int

    def start(self, x, eps, seeds, bounds):
        n, h, w, c = x.shape
        sh, sw = max(1, h // _TILES), max(1, w // _TILES)
        down, across = h // sh, w // sw
        signs = _signs(seeds, (down, 1, across, 1, c))
        tiles = signs * _bumps(sh, sw)[None, None, :, None, :, None]
        delta = np.zeros_like(x)
        top, left = (h - down * sh) // 2, (w - across * sw) // 2
        delta[:, top : top + down * sh, left : left + across * sw] = tiles.reshape(n, down * sh, across * sw, c)
        return self._on_sphere(x, delta, eps, bounds)

    def move(self, x, now, eps, seeds, share, bounds):
        _, h, w, c = x.shape
        sides = tuple(min(max(3, s + 1 - s % 2), side) for s, side in zip(window(share, h, w), (h, w), strict=True))
        to, source = (_pixels(seeds, which, sides, (h, w)) for which in ((_ROW, _COLUMN), (_ROW2, _COLUMN2)))
        delta = now - x
        old = delta[to]
        rest = delta.copy()
        rest[source] = 0.0
        rest[to] = 0.0
        total, kept = self._mass(delta), self._mass(rest)
        free = np.maximum(tall(eps, x) ** self.order - total.sum(axis=3, keepdims=True), 0.0) / c  # lost at the bounds
        bumps = np.broadcast_to(_bumps(*sides)[None, :, :, None], old.shape)
        if sides[0] == sides[1]:
            turned = draws.branch(seeds, _TURN) >> np.uint32(31) > 0
            bumps = np.where(tall(turned, x), np.swapaxes(bumps, 1, 2), bumps)
        new = bumps * _signs(seeds, (1, 1, c)) + old / (self._size(old) + _TINY)
        new = new / (self._size(new) + _TINY) * (free + np.maximum(total - kept, 0.0)) ** (1 / self.order)
        rest[to] = new
        return self._on_sphere(x, rest, eps, bounds)

    def _on_sphere(self, x, delta, eps, bounds):
        size = self._mass(delta).sum(axis=(1, 2, 3)) ** (1 / self.order)
        return np.clip(x + delta * tall(eps / np.maximum(size, _TINY), x), *bounds)

    def _mass(self, delta) -> np.ndarray:
        """Sum of the powers in each channel: (n, 1, 1, channels)."""
        return (np.abs(delta) ** self.order).sum(axis=(1, 2), keepdims=True)

    def _size(self, delta) -> np.ndarray:
        return self._mass(delta) ** (1 / self.order)


@functools.cache
def _bumps(h: int, w: int) -> np.ndarray:
    """Two bumps side by side, one up and one down, of L2 norm 1 (paper, equation 2)."""
    if max(h, w) < 2:
        return np.ones((h, w), dtype="float32")
    if h < w:
        return _bumps(w, h).T
    both = np.concatenate([_bump(h // 2, w), -_bump(h - h // 2, w)])
    return (both / np.linalg.norm(both)).astype("float32")


def _bump(h: int, w: int) -> np.ndarray:
    """A pyramid: towards its middle the terms 1, 1/4, 1/9, ... of squares inside squares add up."""
    down, across = np.abs(np.arange(h) - h // 2), np.abs(np.arange(w) - w // 2)
    distance = np.maximum(down[:, None], across[None, :])
    terms = 1.0 / (1.0 + np.arange(distance.max() + 1)) ** 2
    bump = np.cumsum(terms[::-1])[::-1][distance]
    return bump / np.linalg.norm(bump)


_MOVES: dict[type[Norm], _Move] = {Linf: _Corners(), L2: _Mass(2), L1: _Mass(1)}
