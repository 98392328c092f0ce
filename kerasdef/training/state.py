"""The whole state of a training in one file, written whole or not at all."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from kerasdef.runs.pieces import Damaged, read_piece, write_piece

_VARIABLE = "v{:04d}"


def training_variables(model: keras.Model) -> list:
    """Everything that a training changes: weights, random states, metrics, optimizer."""
    return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]


def write_state(
    path: Path, model: keras.Model, meta: Mapping, arrays: Mapping[str, np.ndarray] | None = None, *, of: str = ""
) -> None:
    """Write a compiled model's variables, JSON values and further arrays.

    Args:
        path: File to write, ending in .npz.
        model: A compiled model whose optimizer is built.
        meta: JSON values.
        arrays: Arrays by names that are not of the form v0000.
        of: What the state is of, such as its run and piece.
    """
    variables = training_variables(model)
    kept = {_VARIABLE.format(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
    write_piece(path, kept | dict(arrays or {}), {"variables": len(variables), **meta}, of=of)


def read_state(path: Path, model: keras.Model, *, of: str = "") -> tuple[dict, dict[str, np.ndarray]] | None:
    """Give a compiled model the variables of a file; returns the JSON values and the further arrays.

    A file that is damaged, or not what it is to be, is moved aside with a warning: it may be somebody's.

    Args:
        path: The file.
        model: A compiled model.
        of: As in `write_state`.

    Returns:
        `(JSON values, arrays)`, or None where there is no state.

    Raises:
        ValueError: The file is of another model.
    """
    if not path.exists():
        return None
    try:
        arrays, meta = read_piece(path, of=of)
    except Damaged as damage:
        names = (path.with_name(f"{path.name}.damaged{i or ''}") for i in itertools.count())
        aside = next(name for name in names if not name.exists())
        os.replace(path, aside)
        text = f"{damage}. It is now named {aside.name}, and the training begins anew."
        warnings.warn(text, UserWarning, stacklevel=2)
        return None
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = training_variables(model)
    kept = [arrays.pop(_VARIABLE.format(i)) for i in range(meta.pop("variables"))]
    if [tuple(v.shape) for v in variables] != [v.shape for v in kept]:
        raise ValueError(f"`path` must be of a training of the same model. Received: path={str(path)!r}")
    for variable, value in zip(variables, kept, strict=True):
        variable.assign(value)
    return meta, arrays
