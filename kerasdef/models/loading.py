"""Reading of .keras files, whatever layers and models of kerasdef are in them."""

from __future__ import annotations

import importlib
import json
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

import keras

from kerasdef.archives import check_zip

_DAMAGED = (zipfile.BadZipFile, zlib.error, json.JSONDecodeError, UnicodeDecodeError, RecursionError)
_DAMAGED += (KeyError, EOFError)


def read_keras(path: str | Path) -> keras.Model:
    """The model of a .keras file, read in safe mode.

    Layers and models of kerasdef in it are made known to Keras first, so nothing needs to be imported before.

    Args:
        path: A file ending in .keras.

    Raises:
        ValueError: There is no such file, or it holds layers that are not known; import the module that registers
            them first.
        OSError: Keras has no room to unpack the weights.
    """
    path = Path(path)
    if path.suffix != ".keras" or not path.is_file():
        raise ValueError(f"`model` must be a .keras file. Received: model={str(path)!r}")
    try:
        with zipfile.ZipFile(path) as file:
            check_zip(file)
            config = json.loads(file.read("config.json"))
            broken = file.testzip()
    except _DAMAGED as error:
        raise ValueError(
            f"`model` must be a whole .keras file. Received: model={str(path)!r}, which is damaged ({error})"
        ) from error
    if broken is not None:
        raise ValueError(
            f"`model` must be a whole .keras file. Received: model={str(path)!r}, which is damaged (in {broken})"
        )
    register(config)
    try:
        return keras.saving.load_model(path, safe_mode=True)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        what = f"{os.strerror(error.errno)}, so its weights could not be unpacked into {tempfile.gettempdir()}"
        raise OSError(error.errno, what, str(path)) from error


def register(config) -> None:
    """Import the modules of kerasdef that a serialized configuration names; importing them registers their classes."""
    if isinstance(config, dict):
        module, name = config.get("module"), config.get("registered_name")
        known = isinstance(module, str) and module.startswith("kerasdef.") and isinstance(name, str)
        if known and name.startswith("kerasdef>") and "__" not in module:  # not what runs when imported: __main__
            importlib.import_module(module)
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            register(value)
