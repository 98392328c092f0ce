"""Names and texts that others have chosen, made harmless for a terminal, a page and a spreadsheet."""

from __future__ import annotations

import unicodedata

# Unicode: control, format, surrogate, separators of lines and of paragraphs
_CONTROLS = ("Cc", "Cf", "Cs", "Zl", "Zp")


def shown(text: str) -> str:
    """A text with its control characters written out, ESC as "\\x1b": a terminal obeys them. Line breaks stay."""
    return "".join(c.encode("unicode_escape").decode() if _controls(c) else c for c in text)


def _controls(c: str) -> bool:
    return c != "\n" and unicodedata.category(c) in _CONTROLS


def cell(value):
    """A value of a CSV file; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    if not isinstance(value, str):
        return value
    text = shown(value).replace("\n", "\\n")
    formula = unicodedata.normalize("NFKC", text).lstrip().startswith(("=", "+", "-", "@"))
    return f"'{text}" if formula else text
