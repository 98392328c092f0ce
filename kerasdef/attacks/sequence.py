"""Attacks one after the other, each on what still stands; saved as they go, so that a killed run goes on.

A run is cut into blocks of a fixed number of samples. What a block found is one small file, written as soon as it is
there; a run that is started again in the same folder reads those files and goes on with the first that is missing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from kerasdef import backend, models
from kerasdef._version import __version__
from kerasdef.attacks.base import Attack, Result

BLOCK = 1024  # samples between two saves: four full pools, so that few steps run half empty
STANDS, WRONG = -1, -2  # values of `broken_by` that are no index of a part
_STATE = "state.json"


@dataclass(frozen=True, eq=False)
class SequenceResult(Result):
    """What a sequence of attacks found.

    Args:
        parts: Names of the attacks, in the order in which they ran.
        broken_by: Integers of shape (n,): index of the part that broke a sample first, -1 where it still stands, -2
            where the model was wrong from the start.
        table: One row for each part: samples attacked, broken, robust accuracy after it, evaluations, seconds.
        flags: What makes the result doubtful, as sentences by name.
    """

    parts: tuple[str, ...]
    broken_by: np.ndarray
    table: pd.DataFrame
    flags: dict[str, str] = field(default_factory=dict)

    @property
    def clean_accuracy(self) -> float:
        """Share of samples that the model gets right before any attack."""
        return float(np.mean(self.broken_by != WRONG))

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that withstand every attack."""
        return float(np.mean(self.broken_by == STANDS))


def run(
    parts: Mapping[str, Attack],
    model: keras.Model | Callable,
    x: np.ndarray,
    y: np.ndarray,
    *,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool | None = None,
    out: str | Path | None = None,
) -> SequenceResult:
    """Run attacks in turn, each on the samples that still stand.

    Args:
        parts: Attacks by name, in their order.
        model: Model to attack, as the parts want it.
        x: Array of shape (n, ...), checked.
        y: Labels of shape (n,), checked.
        batch_size: Samples that are worked on at a time.
        seed: All randomness comes from it.
        progress: Show bars; None shows them on a terminal and in notebooks.
        out: Folder for the state of the run, or None.

    Raises:
        ValueError: The folder holds the state of another run.
    """
    first = next(iter(parts.values()))
    model = first._view(model)
    folder = None if out is None else _open(Path(out), parts, model, x, y, seed)
    x_adv = np.array(x)
    spent = np.zeros(len(x), dtype="int64")
    wrong = first._success(model, x, y)
    broken_by = np.where(wrong, WRONG, STANDS)
    rows = []
    for i, (name, attack) in enumerate(parts.items()):
        standing = np.flatnonzero(broken_by == STANDS)
        seconds = 0.0
        for j, start in enumerate(range(0, len(standing), BLOCK)):
            index = standing[start : start + BLOCK]
            file = None if folder is None else folder / f"{i:02d}-{name}-{j:04d}.npz"
            options = {"batch_size": batch_size, "seed": seed + 1000 * i + j, "progress": progress}
            found = _block(file, index, partial(attack.rows(index, len(x)).run, model, x[index], y[index], **options))
            fell = index[found["success"]]
            x_adv[fell] = found["x_adv"]
            broken_by[fell] = i
            spent[index] += found["evaluations"]
            seconds += float(found["seconds"])
        rows.append(
            {
                "attack": name,
                "attacked": len(standing),
                "broken": int(np.sum(broken_by == i)),
                "robust_accuracy": float(np.mean(broken_by == STANDS)),
                "seconds": seconds,
            }
        )
    return SequenceResult(x_adv, broken_by != STANDS, spent, tuple(parts), broken_by, pd.DataFrame(rows))


def _block(file: Path | None, index: np.ndarray, work: Callable[[], Result]) -> dict:
    """Result of one block: from its file, or from work that is then saved."""
    if file is not None and file.is_file():
        with np.load(file) as kept:
            found = dict(kept)
        if np.array_equal(found["index"], index):
            return found
    start = time.perf_counter()
    result = work()
    found = {
        "index": index,
        "success": result.success,
        "x_adv": result.x_adv[result.success],
        "evaluations": result.evaluations,
        "seconds": time.perf_counter() - start,
    }
    if file is not None:
        part = file.with_name(f"{file.stem}.part.npz")
        np.savez(part, **found)
        part.replace(file)  # a block is there whole or not at all
    return found


def _open(folder: Path, parts, model, x, y, seed) -> Path:
    """Make the folder, or check that it is of the same run."""
    state = {
        "kerasdef": __version__,
        "attacks": {name: settings(attack) for name, attack in parts.items()},
        "model": weights_digest(model),
        "data": hashlib.sha256(np.ascontiguousarray(x).tobytes() + np.asarray(y, "int64").tobytes()).hexdigest(),
        "n": len(x),
        "seed": seed,
    }
    file = folder / _STATE
    if file.is_file():
        kept = json.loads(file.read_text(encoding="utf-8"))
        other = sorted(k for k in state if kept.get(k) != state[k])
        if other:
            raise ValueError(
                "`out` must be a new folder or the folder of the same run. "
                f"Received: out={str(folder)!r}, which differs in {', '.join(other)}"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"`out` must be a new folder. Received: out={str(folder)!r}, which holds something else")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(state, indent=1), encoding="utf-8")
    return folder


def settings(attack: Attack) -> dict[str, str]:
    """Every setting of an attack in words, also those that its `repr` shortens."""
    return {"name": type(attack).__name__} | {f.name: repr(getattr(attack, f.name)) for f in dataclasses.fields(attack)}


def weights_digest(model) -> str | None:
    """SHA-256 of a Keras model's layers and weights, the `digest` that another callable has, or None."""
    if isinstance(model, models.WhiteBox):
        model = model.view
    if not isinstance(model, keras.Model):
        return getattr(getattr(model, "function", model), "digest", None)
    digest = hashlib.sha256(repr(models.architecture(model)).encode())
    for variable in model.variables:
        if backend.is_seed(variable):  # moves on whenever a random model is asked
            continue
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(variable)).tobytes())
    return digest.hexdigest()
