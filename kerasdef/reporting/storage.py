"""A report in a folder: what is written, and reading it back."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from kerasdef.archives import open_npz
from kerasdef.evaluation.outcomes import ARRAYS, WORDS, Outcome
from kerasdef.files import write_whole
from kerasdef.reporting.figures import NAMES
from kerasdef.reporting.html import page
from kerasdef.reporting.results import Results
from kerasdef.reporting.sections import Section
from kerasdef.reporting.values import plain
from kerasdef.runs import places
from kerasdef.texts import cell

SCHEMA = 2
_DAMAGED = (LookupError, TypeError, AttributeError, RecursionError)
_DAMAGED += (json.JSONDecodeError, UnicodeDecodeError, BadZipFile)
_KEPT = ("classes", "main", "hidden", "bounds", "reject", "rejecting", "class_names", "settings", "seed", "dataset")
_KEPT += ("history", "notes", "flags", "phases", "costs", "versions", "machine")


def write(results: Results, folder: Path, figures: Mapping[str, tuple[str, bytes]]) -> dict[str, Path]:
    """Write a report; each file whole or not at all, `report.json` last.

    Args:
        results: What is written.
        folder: Where to; made if it does not exist.
        figures: `(caption, PNG bytes)` by name.

    Returns:
        The path of each file by its name; figures by "figures/NAME".

    Raises:
        ValueError: The folder holds something else than an earlier report of the same run, or something else in the
            place of a file of the report; nothing is written.
    """
    arrays = _npz(results)
    record = _json(results, hashlib.sha256(arrays).hexdigest())
    contents = {f"figures/{name}.png": data for name, (_, data) in figures.items()}
    contents |= {_figure(s.name): s.png() for s in results.sections if s.figure is not None}
    contents["outcomes.npz"] = arrays
    contents["report.csv"] = results.frame().map(cell).to_csv(index=False, lineterminator="\n").encode()
    contents["report.html"] = page(results, figures).encode()
    contents["report.json"] = record.encode()
    ours = {f"figures/{name}.png" for name in NAMES}
    ours |= {f"figures/{path.name}" for path in (folder / "figures").glob("section_*.png")}
    places.free(folder, sorted(ours | contents.keys()))
    places.of_report(folder, json.loads(record))
    for stale in ours - contents.keys():  # of an earlier report in this folder
        (folder / stale).unlink(missing_ok=True)
    return {n: write_whole(folder / n, lambda part, data=data: part.write_bytes(data)) for n, data in contents.items()}


def read(folder: Path) -> dict:
    """What `write` wrote, as arguments of a `Results`.

    Raises:
        ValueError: There is no report, its schema is another, its files are not of one report or lie outside of the
            folder, or the arrays unpack to more than the limit of `kerasdef.archives`.
    """
    path = places.inside(folder, "report.json")
    if not path.is_file():
        raise ValueError(f"`folder` must hold a report.json. Received: folder={str(folder)!r}")
    try:
        return _read(folder, json.loads(path.read_text(encoding="utf-8")))
    except _DAMAGED as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{folder / 'report.json'} must be a report as kerasdef writes it. Received: {found}"
        ) from error


def _read(folder: Path, record: dict) -> dict:
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"`schema` must be {SCHEMA} in report.json, that of this version. Received: schema={record.get('schema')!r}"
        )
    path = places.inside(folder, record["outcomes"]["file"])
    if not path.is_file():
        raise ValueError(f"`folder` must hold the outcomes of its report.json. Received: no file {path.name!r} in it")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != record["outcomes"]["sha256"]:
        raise ValueError("`folder` must hold the outcomes.npz that belongs to report.json. Received: another one")
    with open_npz(io.BytesIO(data)) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    outcomes = []
    for i, head in enumerate(record["outcomes"]["list"]):
        values = {name: found.get(f"{i}/{name}") for name in ARRAYS}
        outcomes.append(Outcome(**{name: head[name] for name in WORDS}, **values))
    sections = []
    for section in record["sections"]:
        image = places.inside(folder, _figure(section["name"]))
        sections.append(Section(**section, figure=image.read_bytes() if image.is_file() else None))
    examples = _unflat(found, record["examples"])
    lost = sorted(found.keys() - _arrays(outcomes, examples).keys())
    if lost:  # the report would be written again without them
        raise LookupError(f"nothing in it names the array {lost[0]!r} of outcomes.npz")
    kept = {name: record[name] for name in _KEPT}
    return {"outcomes": outcomes, "sections": sections, "examples": examples, **kept}


def _figure(section: str) -> str:
    return f"figures/section_{section}.png"


def _npz(results: Results) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **_arrays(results.outcomes, results.examples))
    return buffer.getvalue()


def _arrays(outcomes: Sequence[Outcome], examples: Mapping) -> dict[str, np.ndarray]:
    """The arrays of a report by their names in its file."""
    arrays = {f"{i}/{n}": v for i, o in enumerate(outcomes) for n in ARRAYS if (v := getattr(o, n)) is not None}
    if examples:
        for part in ("attacks", "predicted"):
            arrays |= {f"examples/{part}/{i}": v for i, v in enumerate(examples[part].values())}
        arrays |= {f"examples/{name}": examples[name] for name in ("images", "labels")}
    return arrays


def _json(results: Results, digest: str) -> str:
    heads = [_head(o) for o in results.outcomes]
    names = {part: list(results.examples[part]) for part in ("attacks", "predicted")} if results.examples else None
    record = {"schema": SCHEMA} | results.record()
    record["outcomes"] = {"file": "outcomes.npz", "sha256": digest, "list": heads}
    record |= {
        "examples": names,
        "phases": results.phases,
        "costs": results.costs,
        "versions": results.versions,
        "machine": results.machine,
    }
    return json.dumps(plain(record, "report"), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def _head(o: Outcome) -> dict:
    """An outcome in short: its words, how many images, and the radii, one number where all have the same."""
    radii = None if o.radius is None else [float(str(v)) for v in np.unique(o.radius)]  # 0.1, not 0.10000000149
    return {name: getattr(o, name) for name in WORDS} | {"n": len(o), "radii": radii}


def _unflat(arrays: Mapping[str, np.ndarray], names: Mapping | None) -> dict:
    """The examples of `_npz` in their first shape."""
    if not names:
        return {}
    parts = {part: {n: arrays[f"examples/{part}/{i}"] for i, n in enumerate(names[part])} for part in names}
    return parts | {name: arrays[f"examples/{name}"] for name in ("images", "labels")}
