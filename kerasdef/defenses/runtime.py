"""A defense in service: it answers requests, learns from labels that arrive, and counts what happens."""

from __future__ import annotations

import time

import numpy as np

from kerasdef.annotations import checked
from kerasdef.defenses.base import Decision
from kerasdef.defenses.hybrid import HybridDefense


class Runtime:
    """A `HybridDefense` in a Python service.

    The state that moves is that of the defense itself, which `kerasdef.models.export.export` keeps. It serves one
    thread at a time.

    Args:
        defense: The defense.

    Example:
    >>> service = Runtime(defense)
    >>> service.predict(images).label
    >>> service.update(true_labels)  # of these images, when they are known
    >>> service.metrics
    """

    @checked
    def __init__(self, defense: HybridDefense):
        self.defense = defense
        self._last: np.ndarray | None = None
        self._said: Decision | None = None
        self._counts = {"requests": 0, "images": 0, "flagged": 0, "labeled": 0, "right": 0, "seconds": 0.0}

    @checked
    def predict(self, x: np.ndarray) -> Decision:
        """Decide on a request, and remember it until its labels arrive.

        Args:
            x: Images of shape (n, ...), as `HybridDefense.decide` takes them.

        Raises:
            ValueError: The images do not fit; nothing is counted then.
        """
        begun = time.perf_counter()
        said = self.defense.decide(x)
        self._counts["seconds"] += time.perf_counter() - begun
        self._counts["requests"] += 1
        self._counts["images"] += len(said.label)
        self._counts["flagged"] += int(said.rejected.sum())
        self._last, self._said = np.array(x), said
        return said

    @checked
    def update(self, y: np.ndarray) -> dict[str, np.ndarray]:
        """Learn from the true labels of the last request: they move the weights of the members, and the threshold.

        Args:
            y: True labels of the images of the last request, of shape (n,).

        Returns:
            `weights` of shape (members,) and, with a detector, `threshold`: what they are now.

        Raises:
            ValueError: There was no request, or the labels do not fit it; nothing is learned then.
        """
        if self._last is None:
            raise ValueError("`update` must follow a `predict` whose labels were not given yet. Received: no request")
        found = self.defense.update(self._last, y)
        self._counts["labeled"] += len(self._last)
        self._counts["right"] += int(np.sum(self._said.label == np.asarray(y)))
        self._last = self._said = None  # labels count once
        return found

    @property
    def state(self) -> dict:
        """What has been learned, as JSON values: the weights, and with a detector the threshold and its bound."""
        found = {"weights": [float(w) for w in self.defense.weights_of_members]}
        detector = self.defense.detector
        if detector is not None:
            low, calibrated, high = (float(v) for v in np.asarray(detector.span))
            found |= {"threshold": float(detector.threshold.value), "calibrated": calibrated, "bound": [low, high]}
        return found

    @property
    def metrics(self) -> dict:
        """What happened, as JSON values.

        `requests`, `images` and `labeled` are counts; `flagged` is the share of the images that were rejected;
        `accuracy` that of the labeled images that were labeled right, where a rejection is not right;
        `seconds_per_image` the mean time. What cannot be known yet is None.
        """
        c = self._counts
        return {
            "requests": c["requests"],
            "images": c["images"],
            "labeled": c["labeled"],
            "flagged": c["flagged"] / c["images"] if c["images"] else None,
            "accuracy": c["right"] / c["labeled"] if c["labeled"] else None,
            "seconds_per_image": c["seconds"] / c["images"] if c["images"] else None,
        }
