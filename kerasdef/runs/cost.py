"""What a training costs: gradients, seconds, memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence

import keras


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not tell. A GPU's is not in it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Cost(keras.callbacks.Callback):
    """Counts what a training costs, through all parts of a run that was killed and went on.

    Args:
        images: Images in an epoch, repeats included.
    """

    def __init__(self, images: int):
        super().__init__()
        self.images, self.gradients, self.seconds = images, 0.0, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        """Add the time of the batch."""
        self._add()

    def on_epoch_end(self, epoch, logs=None):
        """Add the epoch; what other callbacks do after this one does not count."""
        self.gradients += self.images * getattr(self.model, "gradients_per_image", 1)
        self._add()

    def _add(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._start
        self._start = now

    def get_state(self) -> dict:
        """What a resumed run needs."""
        return {"gradients": self.gradients, "seconds": self.seconds}

    def set_state(self, state: dict) -> None:
        """Go on from `get_state`."""
        self.gradients, self.seconds = state["gradients"], state["seconds"]

    def facts(self) -> dict[str, float]:
        """Gradients of single images, seconds, and peak memory in bytes."""
        return {"gradients": self.gradients, "seconds": self.seconds, "peak_bytes": float(peak_memory())}


def total(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The cost of several trainings, one after the other: memory is the largest, the rest adds up."""
    join = {"peak_bytes": max}
    return {name: join.get(name, sum)([cost[name] for cost in costs]) for name in costs[0]}
