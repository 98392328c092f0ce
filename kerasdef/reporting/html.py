"""The report as one HTML page that needs no network and no script."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path

import jinja2

from kerasdef.evaluation.outcomes import CLEAN, COLUMNS
from kerasdef.reporting import words
from kerasdef.reporting.results import Results
from kerasdef.reporting.tables import side_by_side
from kerasdef.texts import shown


def page(results: Results, figures: Mapping[str, tuple[str, bytes]]) -> str:
    """Write the page.

    Args:
        results: What is shown.
        figures: `(caption, PNG bytes)` by name.
    """
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(
        autoescape=True, loader=loader, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    environment.filters.update(
        percent=words.share, seconds=words.seconds, pretty=lambda v: json.dumps(v, ensure_ascii=False)
    )
    environment.tests["known"] = lambda v: v is not None and not (isinstance(v, float) and math.isnan(v))
    frame = results.frame().to_dict("records")
    radii = {c: {a: results.by_radius(a, c).to_dict("records") for a in results.attacks(c)} for c in COLUMNS}
    return environment.get_template("report.html").render(
        report=results,
        figures=[(name, caption, _uri(png)) for name, (caption, png) in figures.items()],
        sections=[(section, None if section.figure is None else _uri(section.png())) for section in results.sections],
        rows={c: [r for r in frame if r["column"] == c and _tells(results, r)] for c in COLUMNS},
        side_by_side=side_by_side(results),
        titles=words.TITLES,
        limits=words.LIMITS,
        meanings={c: words.meaning(results, c) for c in COLUMNS},
        label=words.label,
        distance=words.distance,
        radius=words.radius,
        radii={c: {a: rows for a, rows in radii[c].items() if rows} for c in COLUMNS},
        comparisons=results.comparisons().to_dict("records"),
        classes={
            c: (results.main, results.by_class(results.main, c).to_dict("records"))
            for c in COLUMNS
            if results.attacks(c, results.main)
        },
        total=sum(results.phases.values()),
    )


def _shown(value):
    """What is written for a value: of a text, control characters as such. What a macro has made stays."""
    return shown(value) if type(value) is str else value


def _uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _tells(results: Results, row: Mapping) -> bool:
    """Whether a row of the frame adds something: the clean one does not where there are attacks."""
    return row["attack"] != CLEAN or not results.attacks(row["column"], row["model"])
