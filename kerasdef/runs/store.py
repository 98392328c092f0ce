"""The one store of results: finished pieces of a run in a folder, from which a run that was killed goes on."""

from __future__ import annotations

import copy
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kerasdef.files import remove, write_text
from kerasdef.identity import digest, identity, refuse_unknown
from kerasdef.runs import locks, places
from kerasdef.runs.pieces import Damaged, Piece, read_or_none, read_piece, write_piece
from kerasdef.runs.places import RUN

EARLIER = "earlier"  # seconds that processes before this one spent on a piece
_GIVEN = "given"
_INNER = "inner"
_SECONDS = "seconds"


class Store:
    """Finished pieces of a run, kept in a folder where there is one.

    A piece is a dict of arrays and a dict of JSON values. It is written whole or not at all, so a run that was killed
    goes on from its last finished piece. Two runs are the same where the content of their settings is the same. A piece
    says what it is of and has a digest of its content: one that is damaged or of something else is made again, with a
    warning. As long as the store lives, no other process can open its folder.

    Args:
        folder: Where the run is kept, or None for a run that is not kept.
        settings: Everything the results depend on; see `kerasdef.identity.identity` for what it may hold.
        judging: Names of those settings that only judging pieces depend on: a run may go on with others, and only these
            pieces are made again.

    Attributes:
        times: Phase and seconds of every piece that was asked for.

    Raises:
        ValueError: The folder holds another run, or something that is no run, or something else in the place of a file
            of the run, or another process works in it; or the content of a setting cannot be read.
    """

    def __init__(self, folder: str | Path | None, settings: Mapping, *, judging: Sequence[str] = ()):
        self.folder = None if folder is None else Path(folder)
        self.times: dict[str, tuple[str, float]] = {}
        self._within = 0.0  # time of the pieces that the piece being made has made
        self.judging: dict = {}
        if self.folder is None:
            return
        settings = {name: identity(value, name) for name, value in settings.items()}
        refuse_unknown(settings, "")
        settings = json.loads(json.dumps(settings))
        self.judging = {name: settings.pop(name) for name in judging}
        self.run = digest(settings)
        self._open(settings)

    def _open(self, settings: dict) -> None:
        """Take the folder, and see that it is of this run."""
        record = self.folder / RUN
        if not record.exists() and places.others(self.folder):
            raise ValueError(
                f"`out` must be a new or empty folder, or one of an earlier run. Received: out={str(self.folder)!r}, "
                "which holds other files"
            )
        places.folder("out", self.folder)
        there = [p for name in ("pieces", "unfinished") for p in (self.folder / name).rglob("*.npz")]
        there = [p.relative_to(self.folder).as_posix() for p in there]
        places.free(self.folder, [*places.OF_RUN, *places.OF_REPORT, *places.OWN_MODELS, places.UNDEFENDED, *there])
        found = _read(record) if record.exists() else None
        if found is not None:
            _check_same(found, settings, self.folder)  # before anything in the folder is touched
        self._lock = locks.hold("out", self.folder)
        if found is not None:
            return
        if record.exists():
            self._recover(record)
        write_text(record, json.dumps(settings, indent=1))

    def _recover(self, record: Path) -> None:
        """Refuse a damaged record, unless the pieces beside it tell that they are of this run."""
        if not self._known():
            raise ValueError(
                f"`out` must be a new folder, or one of a run with the same settings. Received: "
                f"out={str(self.folder)!r}, whose {RUN} is damaged, so that nothing tells which run it holds: take "
                "another folder, or empty this one to begin anew"
            )
        warnings.warn(f"{record} is damaged: it is made again, for the pieces beside it are of this run.", stacklevel=5)

    def _known(self) -> bool:
        """Whether some piece in the folder is of this run, and none of another."""
        known = False
        for path in sorted((self.folder / "pieces").rglob("*.npz")):
            try:
                read_piece(path, of=self.of(path.relative_to(self.folder / "pieces").with_suffix("").as_posix()))
                known = True
            except Damaged as damage:
                if "another run" in str(damage):
                    return False
        return known

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each phase: each piece counts once, however often it was asked for."""
        total: dict[str, float] = {}
        for phase, seconds in self.times.values():
            total[phase] = total.get(phase, 0.0) + seconds
        return total

    def branch(self) -> Store:
        """The same pieces for a part of the run: its times begin with those so far and do not count here."""
        part = copy.copy(self)
        part.times = dict(self.times)
        return part

    def of(self, name: str) -> str:
        """What a piece, or the state of one, is of: this run and its name."""
        return "" if self.folder is None else f"{self.run[:32]} {name}"

    def path(self, name: str, *, judging: bool = False) -> Path | None:
        """Folder for the state of an unfinished piece, which may not exist yet; None where nothing is kept.

        It is removed as soon as the piece is finished.

        Args:
            name: Name of the piece.
            judging: Whether the piece depends on the settings of judging; with others it has another folder.
        """
        if self.folder is None:
            return None
        return self.folder / "unfinished" / (f"{name}-{digest(self.judging)[:8]}" if judging else name)

    def get(
        self, name: str, make: Callable[[], Piece], *, phase: str, judging: bool = False, given: Mapping | None = None
    ) -> Piece:
        """Return a piece, made now or found in the folder.

        Args:
            name: Name of the piece.
            make: Makes it. Seconds that earlier processes spent on it may stand in its meta as `EARLIER`.
            phase: What its time counts towards.
            judging: Whether it depends on the settings of judging as well; found with others, it is made again.
            given: JSON values that this piece depends on beside the settings; found with others, it is made again.
        """
        path = None if self.folder is None else places.inside(self.folder, f"pieces/{name}.npz")
        given = (self.judging if judging else {}) | json.loads(json.dumps(dict(given or {})))
        piece = None if path is None else read_or_none(path, of=self.of(name))
        if piece is None or piece[1][_GIVEN] != given:
            piece = self._made(make, given)
            if path is not None:
                write_piece(path, *piece, of=self.of(name))
                remove(self.path(name, judging=judging))
        # pieces made within this one count on their own; of a piece that is found they are not asked for
        self.times |= {inner: tuple(found) for inner, found in piece[1][_INNER].items()}
        self.times[name] = (phase, piece[1][_SECONDS])
        return piece

    def _made(self, make: Callable[[], Piece], given: Mapping) -> Piece:
        start, outer, before = time.perf_counter(), self._within, set(self.times)
        self._within = 0.0
        arrays, meta = make()
        spent = time.perf_counter() - start
        meta = {
            **meta,
            _SECONDS: spent - self._within + meta.get(EARLIER, 0.0),
            _INNER: {name: self.times[name] for name in self.times if name not in before},
            _GIVEN: dict(given),
        }
        self._within = outer + spent
        return arrays, meta


def _check_same(found: dict, wanted: dict, folder) -> None:
    different = list(_differences(found, wanted, ""))
    if different:
        shown = ", ".join(f"{name}={_short(now)} (there: {_short(there)})" for name, there, now in different[:3])
        raise ValueError(
            f"`out` must be a new folder, or one of a run with the same settings. Received: out={str(folder)!r}, "
            f"which differs in {shown}"
        )


def _differences(found: dict, wanted: dict, prefix: str):
    """Yield the name of each setting that differs, with its value there and now; of nested ones the innermost."""
    for key in sorted({*found, *wanted}):
        there, now = found.get(key), wanted.get(key)
        if there == now:
            continue
        if isinstance(there, dict) and isinstance(now, dict):
            yield from _differences(there, now, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", there, now


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _read(record: Path) -> dict | None:
    """The settings in a record; None where it is damaged."""
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
