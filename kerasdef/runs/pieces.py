"""One file of a run: arrays and JSON values, sealed with what they are of and a digest of their content."""

from __future__ import annotations

import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from kerasdef.archives import TooLarge, open_npz
from kerasdef.files import naming, write_whole
from kerasdef.identity import digest

_META, _SEAL = "meta", "seal"
_BROKEN = (ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, RuntimeError)
_BROKEN += (zipfile.BadZipFile, zlib.error, struct.error)

Piece = tuple[dict[str, np.ndarray], dict]


class Damaged(ValueError):
    """A file that is not what it is to be: cut off, changed, or of something else."""


def write_piece(path: Path, arrays: Mapping[str, np.ndarray], meta: Mapping, *, of: str = "") -> None:
    """Write arrays and JSON values into one file that ends in .npz, whole or not at all.

    Args:
        path: The file.
        arrays: Arrays by name.
        meta: JSON values.
        of: What the piece is of: its run and its name.
    """
    text = json.dumps(meta)
    seal = json.dumps({"of": of, "digest": digest(dict(arrays), text)})
    write_whole(path, lambda part: np.savez(part, **arrays, **{_META: text, _SEAL: seal}))


def read_piece(path: Path, *, of: str = "") -> Piece:
    """Read what `write_piece` wrote.

    Raises:
        Damaged: The file is damaged, or of something else.
        ValueError: It unpacks to more than the limit of `kerasdef.archives`.
        OSError: It could not be read.
    """
    try:
        with naming(path), open_npz(path) as file:
            arrays = {name: file[name] for name in file.files}
        text, seal = str(arrays.pop(_META)), json.loads(str(arrays.pop(_SEAL)))
        whole = seal["digest"] == digest(arrays, text)
        meta, found = json.loads(text), seal["of"]
    except TooLarge:
        raise
    except _BROKEN:
        whole = False
    if not whole:
        raise Damaged(f"{path} is damaged, or of another version")
    if found != of:
        raise Damaged(f"{path} is of another run, or of another part of this one")
    return arrays, meta


def read_or_none(path: Path, *, of: str = "", then: str = "it is made again") -> Piece | None:
    """Read what `write_piece` wrote; None where there is nothing, and with a warning where it is damaged."""
    try:
        return read_piece(path, of=of)
    except FileNotFoundError:
        return None
    except Damaged as damage:
        warnings.warn(f"{damage}: {then}.", UserWarning, stacklevel=3)
        return None


def weights_piece(model: keras.Model, history: Mapping) -> Piece:
    """A piece from a trained model: its weights and the states of its random layers."""
    arrays = {f"w{i:03d}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.variables)}
    return arrays, {"history": dict(history)}


def restore(model: keras.Model, piece: Piece) -> keras.Model:
    """Give a model the weights of a piece."""
    names = [f"w{i:03d}" for i in range(len(piece[0]))]
    for variable, name in zip(model.variables, names, strict=True):
        variable.assign(piece[0][name])
    return model
