"""A table in a file of tab-separated values whose rows are appended as they are made.

A process that is killed leaves whole rows and perhaps a part of the last one, which is dropped when the run goes on.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kerasdef.files import naming


class Rows:
    """The rows of such a file, which is made where there is none.

    Args:
        path: The file. Who makes the object holds the folder: no other process writes it.
        columns: What reads the text of each column, by the name of the column. It raises ValueError for a text that
            it cannot read.
        fits: Whether a row, given its place from 0 and its values, is one that belongs there; None takes every row.

    Attributes:
        found: The whole rows that were in the file, each a dict.

    Raises:
        ValueError: The file has other columns.
        OSError: It cannot be written.
    """

    def __init__(
        self,
        path: Path,
        columns: Mapping[str, Callable[[str], object]],
        fits: Callable[[int, Mapping], bool] | None = None,
    ):
        self.path, self.columns, self.fits = path, dict(columns), fits
        with naming(path):
            self.found, whole = self._read(path.read_bytes() if path.exists() else b"")
            if not whole:
                path.write_bytes(self._line(self.columns))
            elif whole < path.stat().st_size:
                with path.open("r+b") as file:
                    file.truncate(whole)

    def append(self, rows: Iterable[Mapping]) -> None:
        """Write rows behind the others."""
        text = b"".join(self._line(str(row[name]) for name in self.columns) for row in rows)
        with naming(self.path), self.path.open("ab") as file:
            file.write(text)

    def _read(self, data: bytes) -> tuple[list[dict], int]:
        """The whole rows, and the bytes of the head and of these rows."""
        lines = data.split(b"\n")[:-1]  # behind the last line break there is nothing, or a part of a row
        head = self._line(self.columns)
        if not lines and head.startswith(data):
            return [], 0
        if not data.startswith(head):
            raise ValueError(
                f"{self.path} must be a table with the columns {', '.join(self.columns)}: move the file that is there "
                "elsewhere, or remove it."
            )
        rows, whole = [], len(lines[0]) + 1
        for line in lines[1:]:
            row = self._row(line)
            if row is None or not (self.fits is None or self.fits(len(rows), row)):
                warnings.warn(
                    f"{self.path} is damaged in row {len(rows) + 1}: it is made again from there.",
                    UserWarning,
                    stacklevel=4,
                )
                break
            rows.append(row)
            whole += len(line) + 1
        return rows, whole

    def _row(self, line: bytes) -> dict | None:
        try:
            cells = line.decode().split("\t")
            row = {name: read(cell) for (name, read), cell in zip(self.columns.items(), cells, strict=True)}
        except ValueError:  # also of bytes that are no text
            return None
        # what is written again must be the same bytes
        return row if self._line(str(v) for v in row.values()) == line + b"\n" else None

    @staticmethod
    def _line(cells: Iterable[str]) -> bytes:
        return ("\t".join(cells) + "\n").encode()
