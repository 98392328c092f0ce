"""Where an output may be written: into nothing, an empty folder, or an earlier output of the same kind and run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kerasdef.files import is_part
from kerasdef.runs.locks import LOCK, held

RUN = "run.json"  # settings of a run, in its folder
STATE = "state"  # folder of the state of an attack, in that of its report
REPORT = "report.json"
_SAVED_MODEL = {"saved_model.pb", "fingerprint.pb", "variables", "assets", "assets.extra", "keras_metadata.pb"}
OF_RUN = (RUN, LOCK, "pieces/x.npz", "unfinished/x.npz", "saved_model/x.pb")  # x: whatever lies in the folder
OF_REPORT = (REPORT, "report.csv", "report.html", "outcomes.npz", "figures/x.png")
CERTIFICATES = "certificates.tsv"
_OF_ATTACK = ("examples.npz", "attack.csv", "attack.json", f"{STATE}/{RUN}")
_OF_CERTIFY = (CERTIFICATES, f"{STATE}/{RUN}")
OWN_MODELS = ("model.keras", "mia.keras", "iar.keras", "hybrid.keras")  # of recipes, in the folder of their run
UNDEFENDED = "undefended/model.keras"  # that of a run whose attacks were made on another model than its own
_OF_REPORT = ("settings", "dataset", "main", "seed")  # what tells one run's report from another's


def folder(name: str, path: Path) -> None:
    """Make a folder.

    Raises:
        ValueError: There is a file, or no folder can be made.
    """
    if path.is_file():
        raise ValueError(f"`{name}` must be a folder. Received: {name}={str(path)!r}, which is a file")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"`{name}` must be a folder that can be written to. Received: {name}={str(path)!r} ({error.strerror})"
        ) from None


def inside(path: Path, name: str) -> Path:
    """The path of a file in the folder of a run; neither its name nor a link may lead out.

    Raises:
        ValueError: It does.
    """
    file = path / name
    try:
        within = file.resolve().is_relative_to(path.resolve())
    except (OSError, RuntimeError, ValueError):  # links in a circle, a name that no file can have
        within = False
    if not within:
        raise ValueError(f"A file of a run must lie in its folder. Received: {name!r}, which leads out of {path}")
    return file


def free(path: Path, names: Iterable[str]) -> None:
    """Refuse a folder of a run where something else is in the place of its files.

    Args:
        path: The folder.
        names: Files that are written into it, as "report.html" or "figures/accuracy.png".

    Raises:
        ValueError: A link leads out of the folder, or there is a folder in the place of a file or of a folder a file.
    """
    for name in names:
        for parent in reversed(Path(name).parents[:-1]):
            place = inside(path, parent.as_posix())
            if place.exists() and not place.is_dir():
                raise ValueError(f"{place} must be a folder: move the file that is there elsewhere, or remove it.")
        place = inside(path, name)
        if place.is_dir():
            raise ValueError(f"{place} must be a file: move the folder that is there elsewhere, or remove it.")


def others(path: Path) -> list[str]:
    """Names of what is in a folder, without locks and half-written files; none where there is no folder."""
    return sorted(p.name for p in path.iterdir() if p.name != LOCK and not is_part(p)) if path.is_dir() else []


def own(path: Path) -> bool:
    """Whether a path lies in the folder of a run that this process works on."""
    return any(held(place) for place in (path / STATE, path, *list(path.resolve().parents)[:2]))


def of_attack(path: Path) -> None:
    """Refuse a folder for the report of an attack that holds anything but an earlier one.

    Raises:
        ValueError: It does, or something else is in the place of a file of the report.
    """
    _of_judging(path, "attack", _OF_ATTACK)


def of_certify(path: Path) -> None:
    """Refuse a folder for certificates that holds anything but earlier ones.

    Raises:
        ValueError: It does, or something else is in the place of a file of theirs.
    """
    _of_judging(path, "certification", _OF_CERTIFY)


def _of_judging(path: Path, kind: str, names: Iterable[str]) -> None:
    """Refuse a folder for what is found of a finished model that holds anything but the same of earlier."""
    there = others(path)
    if there and ((path / RUN).exists() or not (path / STATE / RUN).exists()):
        what = "the run of a training" if (path / RUN).exists() else f"other files ({there[0]})"
        raise ValueError(
            f"`out` must be a new or empty folder, or one of an earlier {kind}. Received: out={str(path)!r}, "
            f"which holds {what}"
        )
    free(path, [*OF_REPORT, *names])


def of_report(path: Path, record: Mapping) -> None:
    """Refuse a folder that holds anything but an earlier report of the same run.

    Args:
        path: The folder; it is made.
        record: What `report.json` is to say, as JSON values.

    Raises:
        ValueError: It holds something else.
    """
    there = others(path)
    if there and not own(path):
        try:
            found = json.loads((path / REPORT).read_text(encoding="utf-8"))
            same = all(found[name] == record[name] for name in _OF_REPORT)
            what = "the report of another run"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            same, what = False, f"other files ({there[0]})"
        if not same:
            raise ValueError(
                "`folder` must be a new or empty folder, or one with an earlier report of the same run. "
                f"Received: folder={str(path)!r}, which holds {what}"
            )
    folder("folder", path)


def of_export(path: Path, to: str, run: Mapping | None, noted: Callable[[Path], Mapping]) -> None:
    """Refuse a path for an export that holds anything but an earlier one of the same kind and run.

    Args:
        path: Where it is to be written; the folder that it lies in is made.
        to: The format, "saved_model", "keras" or "onnx".
        run: Settings of the run that is exported, or None.
        noted: Reads what an export has noted in itself; empty for files of others.

    Raises:
        ValueError: It holds something else.
    """
    if path.exists() or path.is_symlink():
        reason = _not_ours(path, to, run, noted)
        if reason:
            kind = "a new or empty folder" if to == "saved_model" else "a new file"
            raise ValueError(
                f"`path` must be {kind}, or an earlier export of the same kind and run. "
                f"Received: path={str(path)!r}, which {reason}"
            )
    folder("path", path.parent)


def _not_ours(path: Path, to: str, run: Mapping | None, noted: Callable[[Path], Mapping]) -> str | None:
    """Why what is there must stay; None where it may be replaced."""
    if not path.exists():
        return "is a link that leads nowhere"
    if path.is_dir() != (to == "saved_model"):
        return "is a folder" if path.is_dir() else "is a file"
    there = others(path)
    if path.is_dir() and not there:
        return None
    foreign = sorted(set(there) - _SAVED_MODEL)
    if foreign:
        return f"holds other files ({foreign[0]})"
    try:
        found = noted(path)
    except Exception:  # an export in its own place was cut off or changed; of other files nobody knows
        if not (own(path) and path.name in ("saved_model", *OWN_MODELS)):
            return "is damaged, or was not exported by kerasdef"
        warnings.warn(f"{path} is damaged: it is made again.", UserWarning, stacklevel=4)
        return None
    if "classes" not in found:
        return "was not exported by kerasdef"
    if not own(path) and found.get("run") != json.loads(json.dumps(run)):
        return "is the export of another run"
    return None
