"""What an attack on a defense did and did not do, stage by stage."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from kerasdef.annotations import check_fields
from kerasdef.texts import shown

_WIDE = 150  # characters of a line of the table


@dataclass(frozen=True)
class Row:
    """A stage of a defense, or a stage of the attack on it.

    Args:
        stage: What it is called.
        on: What it belongs to: "defense" for a part of the defense, else the model that the attack is made on.
        gradient: How gradients pass it: "exact", the rule that stands in for them, or "none".
        draws: Draws of random numbers over which a gradient or an answer is averaged.
        loss: What is climbed; empty for a part of the defense.
        not_attacked: What is left as it is; empty where that is nothing.
    """

    stage: str
    on: str
    gradient: str = "exact"
    draws: int = 1
    loss: str = ""
    not_attacked: str = ""

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True)
class Manifest(Sequence):
    """The rows of a defense and of the attack on it, which print as a table.

    Args:
        rows: The rows, those of the defense first.
    """

    rows: tuple[Row, ...]

    def __post_init__(self):
        check_fields(self)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def records(self) -> list[dict]:
        """The rows as JSON values."""
        return [dataclasses.asdict(row) for row in self.rows]

    def text(self) -> str:
        """The table for a terminal."""
        console = Console(width=_WIDE, record=True, file=io.StringIO())
        table = Table(title="What was attacked, and what was not")
        for name in (f.name for f in dataclasses.fields(Row)):
            table.add_column(name.replace("_", " "), justify="right" if name == "draws" else "left")
        for row in self.records():
            table.add_row(*(Text(shown(str(value))) for value in row.values()))
        console.print(table)
        return console.export_text().rstrip()
