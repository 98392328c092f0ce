"""What a recipe adds to its report: a section with a table, a figure, or both."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.text import Text

from kerasdef.annotations import check_fields
from kerasdef.reporting.values import plain
from kerasdef.texts import shown


@dataclass(frozen=True)
class Section:
    """A part of a report that only one kind of run has.

    Args:
        name: Name of its files: letters, digits and underscores.
        title: Heading.
        text: Sentences that say what is shown.
        rows: Rows of the table, all with the same keys, which are its heads; values are JSON values.
        figure: Drawn, or as the bytes of a PNG file; or None.
        timing: Whether the rows hold times, which two runs of one seed do not share.

    Raises:
        ValueError: The name is no identifier, or rows differ in their keys.
    """

    name: str
    title: str
    text: str = ""
    rows: Sequence[Mapping] = ()
    figure: Figure | bytes | None = None
    timing: bool = False

    def __post_init__(self):
        check_fields(self)
        if not str(self.name).isidentifier():
            raise ValueError(f"`name` must have letters, digits and underscores only. Received: name={self.name!r}")
        rows = [plain(dict(row), "rows") for row in self.rows]
        if any(list(row) != list(rows[0]) for row in rows):
            raise ValueError(f"`rows` must have the same keys. Received: rows={rows!r}")
        object.__setattr__(self, "rows", rows)

    @property
    def heads(self) -> list[str]:
        """Heads of the table."""
        return list(self.rows[0]) if self.rows else []

    def png(self) -> bytes | None:
        """The figure as the bytes of a PNG file."""
        return png(self.figure) if isinstance(self.figure, Figure) else self.figure

    def record(self) -> dict:
        """All but the figure, as JSON values."""
        names = ("name", "title", "text", "rows", "timing")
        return {name: getattr(self, name) for name in names}


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG file."""
    buffer = io.BytesIO()
    ticks = {id(t) for ax in figure.axes for axis in (ax.xaxis, ax.yaxis) for t in axis.get_ticklabels(which="both")}
    for text in figure.findobj(Text):
        text.set_text(shown(text.get_text()))
        if id(text) not in ticks:
            text.set_parse_math(False)  # a "$" in a name is no formula
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+")  # a name in letters that the font lacks
        figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()
