"""One progress bar for everything that takes more than a few seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

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

console = Console(stderr=True)


@contextlib.contextmanager
def bar(title: str, total: int, *, show: bool | None = None) -> Iterator[Advance]:
    """Show a progress bar on stderr; yields `advance(count, note="")`.

    Args:
        title: What is being done.
        total: Units in all.
        show: True, False, or None for "only on a terminal or in a notebook".
    """
    show = (console.is_terminal or console.is_jupyter) if show is None else show
    if not show:
        yield lambda count, note="": None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(title, total=total, note="")

        def advance(count: int, note: str = "") -> None:
            progress.update(task, advance=count, note=note)

        yield advance
