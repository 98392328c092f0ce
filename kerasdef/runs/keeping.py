"""Keeping the state of long loops by time, so that a process that is killed loses seconds of its work.

Within `kept`, every loop that asks for a `Keeper` writes its state from time to time and its result in the end. Loops
are told apart by their order, so what runs within must come to the same loops in the same order when it runs again,
as attacks do; what they work on is compared, and a state of something else is not taken up.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from kerasdef.identity import digest
from kerasdef.runs.pieces import read_or_none, write_piece

SECONDS = 1.0  # between two states that are quickly written,
COST = 20.0  # but at least so many times what the last one took to write,
LONGEST = 20.0  # and at most so many seconds
CHUNK = 2.0  # seconds of steps that are taken between two looks at the clock
_OVER = "over"


class Pace:
    """Says when to write a state: often where that is quick.

    Args:
        seconds: Seconds between two states, at least.
    """

    def __init__(self, seconds: float = SECONDS):
        self.seconds, self.cost, self.last = seconds, 0.0, time.monotonic()

    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() - self.last >= max(self.seconds, min(LONGEST, COST * self.cost))

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Measure what it takes."""
        start = time.monotonic()
        yield
        self.last = time.monotonic()
        self.cost = self.last - start


class _Journal:
    """The loops of one piece, by their order."""

    def __init__(self, folder: Path, of: str):
        self.folder, self.of, self.count = folder, of, 0

    def next(self) -> tuple[Path, str]:
        """File of the next loop, and what it is of."""
        self.count += 1
        return self.folder / f"loop{self.count:04d}.npz", f"{self.of} loop {self.count}"


_CURRENT: ContextVar[_Journal | None] = ContextVar("journal", default=None)


@contextlib.contextmanager
def kept(folder: Path | None, of: str = "") -> Iterator[None]:
    """Keep the state of all loops within in a folder.

    Args:
        folder: The folder, which whoever makes the piece removes with the rest of its unfinished state; None keeps
            nothing.
        of: What the states are of, as `Store.of` says it.
    """
    token = _CURRENT.set(None if folder is None else _Journal(folder, of))
    try:
        yield
    finally:
        _CURRENT.reset(token)


class Keeper:
    """The state of one loop.

    Args:
        work: What the loop works on: arrays, numbers and strings. A state of other work is not taken up.

    Attributes:
        active: Whether anything is kept.
        found: What an earlier process wrote last, or None.
        over: Whether that is the result of the whole loop.
    """

    def __init__(self, *work):
        journal = _CURRENT.get()
        self.active, self.found, self.over = journal is not None, None, False
        if journal is None:
            return
        self.path, self.of = journal.next()
        self.work, self.pace, self.each = digest(*work), Pace(), None
        found = read_or_none(self.path, of=self.of, then="this part begins anew")
        if found is not None and found[1].get("work") == self.work:
            self.found, self.over = found, found[1][_OVER]

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return self.active and self.pace.due()

    def write(self, arrays: Mapping[str, np.ndarray], meta: Mapping, *, over: bool = False) -> None:
        """Write the state, or the result of the whole loop; a disk that is full does not end the loop."""
        if not self.active:
            return
        try:
            with self.pace.writing():
                write_piece(self.path, arrays, {**meta, "work": self.work, _OVER: over}, of=self.of)
        except OSError as error:
            self.active = False
            warnings.warn(f"{error}: until this part is over its state is not kept.", UserWarning, stacklevel=2)

    def finish(self, **arrays: np.ndarray) -> None:
        """Write the result of the whole loop."""
        self.write(arrays, {}, over=True)

    def chunks(self, steps: int) -> Iterator[int]:
        """Yield numbers of steps that make up `steps`: few enough that the clock is looked at in time."""
        while steps > 0:
            few = 1 if self.each is None else max(1, int(CHUNK / self.each))
            count = min(steps, few)
            start = time.monotonic()
            yield count
            self.each = max(1e-9, (time.monotonic() - start) / count)
            steps -= count
