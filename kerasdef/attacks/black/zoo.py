"""ZOO: the Carlini and Wagner attack without gradients, coordinate by coordinate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from kerasdef import checks, norms
from kerasdef import random as draws
from kerasdef.attacks.queries import QueryAttack, pieces

_WITHOUT_END = 1e10  # upper end of the search before c has been too large once
_BETA1, _BETA2, _TINY = 0.9, 0.999, 1e-8  # Adam's defaults (Kingma and Ba, 2015)


@dataclass(frozen=True, repr=False)
class ZOO(QueryAttack):
    """Minimal-norm attack in L2: |delta|^2 + c * max(confidence - margin, 0) falls by Adam on single coordinates.

    The slope along a coordinate is the difference of two answers; that of the size is known. Each sample has its own
    binary search over c; delta is measured in spans of the bounds. Where the margin is reached, nothing is asked but
    the new point. Samples on which it fails are returned unchanged. Every step of a few coordinates costs their double
    in queries: images need 100,000 or more.

    Args:
        confidence: Margin that the adversarial class must reach, in logits; at least 0.
        steps: Steps for each c, at most; fewer where `queries` do not allow for all.
        binary_search_steps: Values of c that are tried (paper: 9).
        initial_c: First c.
        learning_rate: Of Adam, as a share of the range of the bounds (paper: 0.01).
        coordinates: Features that a step changes (paper: 128).
        radius: Half the distance of the two points of a difference, as a share of the range. Logits near 10 in float32
            have errors of 1e-6: a radius of 1e-3 leaves slopes with errors below 1e-3, the paper's 1e-4 below 1e-2.
        queries: Most queries for each sample, at least 1.
        samples: Passes of a random model that are averaged for one answer, at least 1; each is a query.
        goal: What the attacker wants.
        bounds: Valid range of an input value.

    References: Chen et al., 2017, https://arxiv.org/abs/1708.03999 (Algorithms 1 and 3). Without the space of reduced
    dimension, the hierarchy and the importance sampling that the paper adds for large images; coordinates are
    shuffled instead of drawn, so that all have their turn.
    """

    norm: ClassVar[norms.Norm] = norms.L2()
    kind: ClassVar[str] = "minimal"

    confidence: float = 0.0
    steps: int = 1000
    binary_search_steps: int = 5
    initial_c: float = 1.0
    learning_rate: float = 1e-2
    coordinates: int = 128
    radius: float = 1e-3
    queries: int = field(default=100_000, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        checks.real("confidence", self.confidence, low=0.0)
        checks.positive_int("steps", self.steps)
        checks.positive_int("binary_search_steps", self.binary_search_steps)
        checks.real("initial_c", self.initial_c, low=0.0, open_low=True)
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)
        checks.positive_int("coordinates", self.coordinates)
        checks.real("radius", self.radius, low=0.0, high=1.0, open_low=True)

    def init(self, x, seeds, value) -> dict:
        """State before the first round."""
        none = np.zeros(len(x), dtype="float32")
        flat = np.zeros((len(x), x[0].size), dtype="float32")
        return {
            "done": none > 0,
            "now": np.array(x),
            "gain": value,
            "there": none > 0,
            "clean": value.copy(),
            "m": flat,
            "v": flat.copy(),
            "t": flat.astype("int32"),
            "step": none.astype("int64"),
            "search": none.astype("int64"),
            "c": none + np.float32(self.initial_c),
            "low": none,
            "high": none + np.float32(_WITHOUT_END),
            "found": none > 0,
            "size": none + np.float32(np.inf),
        }

    def round(self, ask, part) -> None:
        """One Adam step of each sample, and the next c where this one is through."""
        x = part["x"]
        n, d = len(x), x[0].size
        k = min(self.coordinates, d)
        chosen = self._choose(part, k, d)
        at = np.arange(n)[:, None], chosen
        delta = (part["now"] - x).reshape(n, d)
        grad = 2.0 * delta[at] / self.span - part["c"][:, None] * self.span * self._slopes(ask, part, chosen)
        part["t"][at] += 1
        t = part["t"][at]
        part["m"][at] = m = _BETA1 * part["m"][at] + (1 - _BETA1) * grad
        part["v"][at] = v = _BETA2 * part["v"][at] + (1 - _BETA2) * np.square(grad)
        rate = self.learning_rate * self.span
        delta[at] -= rate * (m / (1 - _BETA1**t)) / (np.sqrt(v / (1 - _BETA2**t)) + _TINY)
        new = np.clip(x + delta.reshape(x.shape), *self.bounds)
        gain, reached = ask(part["row"], new)
        part["now"], part["gain"], part["there"] = new, gain, reached

        hit = reached & ((gain >= self.confidence) | (self.confidence == 0))
        size = np.square((new - x).reshape(n, d) / self.span).sum(axis=1)
        better = hit & (size < part["size"])
        part["adv"][better], part["size"][better] = new[better], size[better]
        part["reached"] |= hit
        part["found"] |= hit
        part["step"] += 1
        self._next_c(part, part["step"] >= self._steps_for(k))

    def _steps_for(self, k: int) -> int:
        """Steps for each c that the budget allows, where a step has k coordinates."""
        return max(1, min(self.steps, (self.queries - 1) // (self.binary_search_steps * (2 * k + 1))))

    def _choose(self, part, k, d) -> np.ndarray:
        """Coordinates of this step, of shape (n, k): the next of a shuffled list of all."""
        turns = -(-d // k)
        seeds = draws.branch(part["seed"], part["moves"] // turns)
        order = np.argsort(draws.branch(seeds[:, None], np.arange(d)[None, :]), axis=1, kind="stable")
        start = (part["moves"] % turns) * k
        return np.take_along_axis(order, (start[:, None] + np.arange(k)[None, :]) % d, axis=1)

    def _slopes(self, ask, part, chosen) -> np.ndarray:
        """Slope of the margin along the chosen coordinates; 0 where the margin is reached, or nothing may be asked."""
        now, k = part["now"], chosen.shape[1]
        slopes = np.zeros(chosen.shape, dtype="float32")
        h = np.float32(self.radius * self.span)
        short = ~part["there"] | (part["gain"] < self.confidence)
        pairs = np.where(short, np.minimum(k, (ask.left(part["row"]) - 1) // 2), 0)
        for owner, number in pieces(pairs, 2 * now[0].size):
            feature = chosen[owner, number]
            there = np.arange(len(owner))
            values, places = [], []
            for move in (h, -h):
                points = now[owner].reshape(len(owner), -1)
                points[there, feature] = np.clip(points[there, feature] + move, *self.bounds)
                places.append(points[there, feature])
                values.append(ask(part["row"][owner], points.reshape(-1, *now.shape[1:]))[0])
            known = np.isfinite(values[0]) & np.isfinite(values[1])
            rise = np.where(known, values[0], 0) - np.where(known, values[1], 0)
            slopes[owner, number] = rise / (places[0] - places[1])
        return slopes

    def _next_c(self, part, over) -> None:
        """Halve the range of c where its steps are through, and start again from x."""
        c = part["c"]
        high = np.where(over & part["found"], np.minimum(part["high"], c), part["high"])
        low = np.where(over & ~part["found"], np.maximum(part["low"], c), part["low"])
        following = np.where(high < _WITHOUT_END, (low + high) / 2, c * 10)
        part["high"], part["low"] = high, low
        part["c"] = np.where(over, following, c).astype("float32")
        part["search"] += over
        part["step"][over], part["found"][over] = 0, False
        part["now"][over], part["gain"][over], part["there"][over] = part["x"][over], part["clean"][over], False
        for memory in ("m", "v", "t"):
            part[memory][over] = 0
        part["done"] |= part["search"] >= self.binary_search_steps
