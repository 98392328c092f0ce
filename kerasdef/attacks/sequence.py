"""Attacks one after the other, each on what still stands; saved as they go, so that a killed run goes on.

A run is cut into blocks of a fixed number of samples. What a block found is one small file, written as soon as it is
there; a run that is started again in the same folder reads those files and goes on with the first that is missing.
Within a block the state of the attack is kept by time.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from kerasdef import checks
from kerasdef._version import __version__
from kerasdef.annotations import checked
from kerasdef.attacks import signs
from kerasdef.attacks.base import Attack, Result
from kerasdef.identity import digest
from kerasdef.models import Victim
from kerasdef.runs import keeping
from kerasdef.runs.pieces import Piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store

BLOCK = 1024  # samples between two saves: four full pools, so that few steps run half empty
STANDS, WRONG = -1, -2  # values of `broken_by` that are no index of a part


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


class PartByPart(Attack):
    """An attack of several parts, each on what still stands; its result says which part broke what.

    Subclasses are frozen dataclasses and have `_parts`.
    """

    @abstractmethod
    def _parts(self, victim: Victim, x: np.ndarray, y: np.ndarray, seed: int) -> dict[str, Attack]:
        """The parts by name, in their order, for a victim and checked arrays."""

    def _doubts(self, victim: Victim, x: np.ndarray, y: np.ndarray) -> dict[str, str]:
        """What about the victim itself makes a result doubtful, as sentences by name."""
        return {}

    @checked
    def run(
        self,
        model: keras.Model | Callable | Victim,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        batch_size: int = 256,
        seed: int = 0,
        progress: bool | None = None,
        out: str | Path | None = None,
    ) -> SequenceResult:
        """Attack every sample of an array; arguments as in a call.

        Args:
            out: Folder for the state. It is written after every attack and every block of 1,024 samples, and every few
                seconds within; a run that is killed and started again with the same folder goes on from there and
                ends with the same result.

        Returns:
            A `SequenceResult`: x_adv, success, which part broke what, a table, and flags where the result is doubtful.
            Every flag is a warning as well.
        """
        model, x, y = self._prepare(model, x, y)
        checks.positive_int("batch_size", batch_size)
        checks.non_negative_int("seed", seed)
        flags = self._doubts(model, x, y)
        parts = self._parts(model, x, y, seed)
        result = run(parts, model, x, y, batch_size=batch_size, seed=seed, progress=progress, out=out)
        flags |= result.flags | square_beats(result)
        for flag in flags.values():
            signs.warn(flag)
        return dataclasses.replace(result, flags=flags)

    def __call__(self, model, x, y=None, **options) -> np.ndarray:
        """Attack every sample of an array; arguments as in `run`, whose flags are warnings here as well."""
        return self.run(model, x, y, **options).x_adv

    def _run(self, model, x, y, batch_size, seed, show):
        found = run(self._parts(model, x, y, seed), model, x, y, batch_size=batch_size, seed=seed, progress=show)
        return found.x_adv, found.evaluations


def square_beats(result: SequenceResult) -> dict[str, str]:
    """The sign of gradients that are hidden: the part "square" broke what parts before it did not."""
    beaten = int(np.sum(result.broken_by == result.parts.index("square"))) if "square" in result.parts else 0
    if not beaten or len(result.parts) == 1:
        return {}
    text = (
        f"Square, which sees no gradients, broke {beaten} samples that the white-box attacks before it did "
        "not: the model may hide its gradients."
    )
    return {"square_beats_white_box": text}


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
    store = Store(
        out,
        {
            "kerasdef": __version__,
            "attacks": parts,
            "order": list(parts),
            "model": model.facts(),
            "data": digest(x, np.asarray(y, "int64")),
            "n": len(x),
            "seed": seed,
        },
    )
    white = [attack for attack in parts.values() if attack.access == "white box"]
    flags = (white or [first])[0]._signs(model, x, y)
    x_adv = np.array(x)
    spent = np.zeros(len(x), dtype="int64")
    reached = first._success(model, x, y)
    wrong = reached | ~first._answered(model, x)  # what is no answer is not right either
    broken_by = np.where(wrong, WRONG, STANDS)
    if model.access != "gradients":
        spent[wrong] = 1  # the look at the clean input
    rows = []
    for i, (name, attack) in enumerate(parts.items()):
        standing = np.flatnonzero(broken_by == STANDS)
        for j, start in enumerate(range(0, len(standing), BLOCK)):
            index = standing[start : start + BLOCK]
            options = batch_size, seed if i == j == 0 else derive(seed, i, j), progress
            piece = f"{i:02d}-{name}-{j:04d}"
            found, _ = store.get(
                piece,
                partial(_block, attack, model, x, y, index, options, store, piece),
                phase=name,
                given={"samples": digest(index)},
            )
            fell = index[found["success"]]
            x_adv[fell] = found["x_adv"]
            broken_by[fell] = i
            spent[index] += found["evaluations"]
        rows.append(
            {
                "attack": name,
                "attacked": len(standing),
                "broken": int(np.sum(broken_by == i)),
                "robust_accuracy": float(np.mean(broken_by == STANDS)),
                "seconds": store.seconds.get(name, 0.0),
            }
        )
    table = pd.DataFrame(rows)
    return SequenceResult(x_adv, reached | (broken_by >= 0), spent, tuple(parts), broken_by, table, flags)


def _block(attack: Attack, model, x, y, index: np.ndarray, options: tuple, store: Store, piece: str) -> Piece:
    """What an attack finds on some of the samples, as a piece."""
    with keeping.kept(store.path(piece), store.of(piece)):
        result = attack.rows(index, len(x))._result(model, model.rows(x, index), y[index], *options)
    arrays = {"success": result.success, "x_adv": result.x_adv[result.success], "evaluations": result.evaluations}
    return arrays, {}
