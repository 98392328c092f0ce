"""One sign of life for everything that takes more than a few seconds: a bar, or lines where there is no terminal."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]

FIRST = 5.0  # seconds until the first line
EVERY = 10.0  # seconds between two lines at first
GROWTH = 30  # of the time so far, this part is the pause before the next line in long runs,
SELDOM = 300.0  # but never more seconds than these

console = Console(stderr=True)


@contextlib.contextmanager
def bar(title: str, total: int, *, show: bool | None = None, unit: str = "") -> Iterator[Advance]:
    """Show how far something is, on stderr; yields `advance(count, note=None)`.

    On a terminal and in a notebook this is a bar. Elsewhere, as in a log file, it is a line after five seconds and then
    about every ten seconds, more seldom in long runs. Both tell what is done, of how much, the time it took and the
    time that is left, and the newest note.

    Args:
        title: What is being done.
        total: Units in all.
        show: False shows nothing; True and None show a bar or lines.
        unit: What is counted, such as "samples".
    """
    if show is False:
        yield lambda count, note=None: None
    elif console.is_terminal or console.is_jupyter:
        with _bar(title, total, unit) as advance:
            yield advance
    else:
        lines = Lines(title, total, unit)
        with lines.running():
            yield lines.advance


@contextlib.contextmanager
def _bar(title: str, total: int, unit: str) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(count: int, note: str | None = None) -> None:
            progress.update(task, advance=count, **({} if note is None else {"note": note}))

        yield advance


class Lines:
    """What a bar shows, as a line from time to time.

    Args:
        title: What is being done.
        total: Units in all.
        unit: What is counted.
    """

    def __init__(self, title: str, total: int, unit: str = ""):
        self.title, self.total, self.unit = title, total, unit
        self.done, self.note, self.written = 0, "", 0
        self.start = time.monotonic()
        self.over = threading.Event()

    def advance(self, count: int, note: str | None = None) -> None:
        """Count units, and take a new note; None keeps the one before."""
        self.done += count
        self.note = self.note if note is None else note

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Write lines while the work within goes on, also while it counts nothing, and one at its end."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.over.set()
            thread.join()
        if self.written:
            self._write()

    def _watch(self) -> None:
        pause = FIRST
        while not self.over.wait(pause):
            self._write()
            pause = max(EVERY, min(SELDOM, (time.monotonic() - self.start) / GROWTH))

    def _write(self) -> None:
        self.written += 1
        print(self.text(time.monotonic() - self.start), file=console.file, flush=True)

    def text(self, elapsed: float) -> str:
        """The line after so many seconds."""
        parts = [f"{self.done:,} of {self.total:,}{self.unit and ' ' + self.unit}", f"{_clock(elapsed)} elapsed"]
        if 0 < self.done < self.total:
            parts.append(f"{_clock(elapsed * (self.total - self.done) / self.done)} left")
        if self.note:
            parts.append(self.note)
        return f"{self.title}: {', '.join(parts)}"


def _clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def numbers(logs: Mapping[str, float]) -> str:
    """Numbers as a note: "loss 0.312, accuracy 91.2 %"; of those of the validation, the accuracies."""
    shares = [f"{_words(k)} {100 * v:.1f} %" for k, v in logs.items() if k.endswith("accuracy")]
    rest = [f"{_words(k)} {v:.3g}" for k, v in logs.items() if not k.startswith("val_") and not k.endswith("accuracy")]
    return ", ".join(rest + shares)


def standing(done: int, fell: int) -> str:
    """The share of the samples that are done which withstand, as a note."""
    return f"robust accuracy so far {100 * (1 - fell / done):.1f} %" if done else ""


def _words(name: str) -> str:
    name = "validation " + name.removeprefix("val_") if name.startswith("val_") else name
    return name.replace("_", " ")
