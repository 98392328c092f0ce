"""The whole state of a training in one file, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np

from kerasdef.runs.store import read_piece, write_piece

_VARIABLE = "v{:04d}"


def training_variables(model: keras.Model) -> list:
    """Everything that a training changes: weights, random states, metrics, optimizer."""
    return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]


def write_state(path: Path, model: keras.Model, meta: Mapping, arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Write a compiled model's variables, JSON values and further arrays.

    Args:
        path: File to write, ending in .npz.
        model: A compiled model whose optimizer is built.
        meta: JSON values.
        arrays: Arrays by names that are not of the form v0000.
    """
    variables = training_variables(model)
    kept = {_VARIABLE.format(i): keras.ops.convert_to_numpy(v) for i, v in enumerate(variables)}
    write_piece(path, kept | dict(arrays or {}), {"variables": len(variables), **meta})


def read_state(path: Path, model: keras.Model) -> tuple[dict, dict[str, np.ndarray]]:
    """Give a compiled model the variables of a file; returns the JSON values and the further arrays.

    Raises:
        ValueError: The file is of another model.
    """
    arrays, meta = read_piece(path)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    variables = training_variables(model)
    kept = [arrays.pop(_VARIABLE.format(i)) for i in range(meta.pop("variables"))]
    if [tuple(v.shape) for v in variables] != [v.shape for v in kept]:
        raise ValueError(f"`path` must be of a training of the same model. Received: path={str(path)!r}")
    for variable, value in zip(variables, kept, strict=True):
        variable.assign(value)
    return meta, arrays
