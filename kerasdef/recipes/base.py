"""What recipes share: a folder of finished pieces that a killed run goes on from, seeds, training with a bar."""

from __future__ import annotations

import copy
import json
import os
import re
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from kerasdef import backend, models
from kerasdef.models.export import RUN
from kerasdef.runs import progress
from kerasdef.training import Mixture

_META = "meta"
_JUDGING = "judging"
_INNER = "inner"
EARLIER = "earlier"  # seconds that processes before this one spent on a piece
_SHOWN = 8  # images in a report

Piece = tuple[dict[str, np.ndarray], dict]


def derive(seed: int, *labels) -> int:
    """A seed below 2**31 for a purpose, from the seed of the run."""
    return zlib.crc32("/".join(str(v) for v in (seed, *labels)).encode()) & 0x7FFFFFFF


def fingerprint(*arrays: np.ndarray) -> str:
    """Checksum of arrays: tells data sets of the same name apart."""
    value = 0
    for array in arrays:
        value = zlib.crc32(np.ascontiguousarray(array).view("uint8").reshape(-1), value)
    return f"{value:08x}"


class Pieces:
    """Finished pieces of a run, kept in a folder where there is one.

    A piece is a dict of arrays and a dict of JSON values. It is written whole or not at all, so a run that was killed
    goes on from the last finished piece.

    Args:
        folder: Where the run is kept, or None.
        settings: Everything the results depend on, as JSON values.
        judging: Names of those settings that only judging pieces depend on: a run may go on with others, and only these
            pieces are made again.
        same: Brings records that mean the same to the same words, for those of earlier versions.

    Attributes:
        times: Phase and seconds of every piece that was asked for.

    Raises:
        ValueError: The folder holds another run, or something that is no run.
    """

    def __init__(
        self,
        folder: str | Path | None,
        settings: Mapping,
        *,
        judging: Sequence[str] = (),
        same: Callable[[dict], dict] = dict,
    ):
        self.folder = None if folder is None else Path(folder)
        self.times: dict[str, tuple[str, float]] = {}
        self._within = 0.0  # time of the pieces that the piece being made has made
        self.judging = self.unsaid = {}
        if self.folder is None:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"`out` must be a folder. Received: out={str(folder)!r}, which is a file")
        settings = json.loads(json.dumps(settings))
        self.judging = {name: settings.pop(name) for name in judging}
        record = self.folder / RUN
        if record.exists():
            found = json.loads(record.read_text())
            # folders from before these were kept with their pieces have them here
            self.unsaid = {name: found.pop(name) for name in judging if name in found}
            _check_same(same(found), same(settings), folder)
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(
                f"`out` must be a new or empty folder, or one of an earlier run. Received: out={str(folder)!r}, "
                "which holds other files"
            )
        else:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_whole(record, lambda path: path.write_text(json.dumps(settings, indent=1)))

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each phase: each piece counts once, however often it was asked for."""
        total: dict[str, float] = {}
        for phase, seconds in self.times.values():
            total[phase] = total.get(phase, 0.0) + seconds
        return total

    def branch(self) -> Pieces:
        """The same pieces for a part of the run: its times begin with those so far and do not count here."""
        part = copy.copy(self)
        part.times = dict(self.times)
        return part

    def get(self, name: str, make: Callable[[], Piece], *, phase: str, judging: bool = False) -> Piece:
        """Return a piece, made now or found in the folder.

        Args:
            name: Of the piece.
            make: Makes it. Seconds that earlier processes spent on it may stand in its meta as `EARLIER`.
            phase: What its time counts towards.
            judging: Whether it depends on the settings of judging as well; found with others, it is made again.
        """
        path = None if self.folder is None else self.folder / "pieces" / f"{name}.npz"
        piece = None if path is None or not path.exists() else _read(path)
        if piece is None or (judging and piece[1].get(_JUDGING, self.unsaid) != self.judging):
            start, outer, before = time.perf_counter(), self._within, set(self.times)
            self._within = 0.0
            arrays, meta = make()
            spent = time.perf_counter() - start
            inner = {name: self.times[name] for name in self.times if name not in before}
            meta = {
                **meta,
                "seconds": spent - self._within + meta.get(EARLIER, 0.0),
                _INNER: inner,
                **({_JUDGING: self.judging} if judging else {}),
            }
            self._within = outer + spent
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, lambda part: np.savez(part, **arrays, **{_META: json.dumps(meta)}))
            piece = arrays, meta
        # pieces made within this one count on their own; of a piece that is found they are not asked for
        self.times |= {inner: tuple(found) for inner, found in piece[1].get(_INNER, {}).items()}
        self.times[name] = (phase, piece[1]["seconds"])
        return piece


def _read(path: Path) -> Piece:
    with np.load(path, allow_pickle=False) as file:
        return {k: file[k] for k in file.files if k != _META}, json.loads(str(file[_META]))


def _check_same(found: dict, wanted: dict, folder) -> None:
    different = [k for k in sorted({*found, *wanted}) if found.get(k) != wanted.get(k)]
    if different:
        shown = ", ".join(f"{k}={_short(wanted.get(k))} (there: {_short(found.get(k))})" for k in different[:3])
        raise ValueError(
            f"`out` must be a new folder, or one of a run with the same settings. Received: out={str(folder)!r}, "
            f"which differs in {shown}"
        )


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under another name and move it into place: it is there whole or not at all."""
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    write(part)
    os.replace(part, path)


class Tick(keras.callbacks.Callback):
    """Moves a progress bar on with every batch; a training that goes on begins where it was.

    Args:
        advance: Moves the bar by a number of batches.
        batches: In an epoch.
    """

    def __init__(self, advance, batches: int):
        super().__init__()
        self.advance, self.batches, self.done = advance, batches, 0

    def on_epoch_begin(self, epoch, logs=None):
        """Skip the epochs that an earlier process trained."""
        self._move_to(epoch * self.batches)

    def on_train_batch_end(self, batch, logs=None):
        """One batch more."""
        self._move_to(self.done + 1)

    def _move_to(self, done: int) -> None:
        if done > self.done:
            self.advance(done - self.done, "")
            self.done = done


def fit(
    model: keras.Model,
    data: Mixture,
    *,
    epochs: int,
    title: str,
    valid: Mixture | None = None,
    learning_rate: float = 1e-3,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    show: bool | None = None,
) -> dict[str, list[float]]:
    """Train a classifier that gives logits with Adam and sparse categorical cross-entropy.

    Returns:
        Keras' history: loss, accuracy and, with `valid`, val_loss and val_accuracy by epoch.
    """
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=backend.jit(),
    )
    with progress.bar(title, epochs * len(data), show=show) as advance:
        history = model.fit(
            data,
            epochs=epochs,
            validation_data=valid,
            verbose=0,
            callbacks=[*callbacks, Tick(advance, len(data))],
            shuffle=False,  # the order is that of `data`; Keras would shuffle the batches without a seed
        )
    return {k: [float(v) for v in values] for k, values in history.history.items()}


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


def stratified(y: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` rows with the classes in proportion, in random order."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(y))
    if len(y) <= limit:
        return shuffled
    rank = np.empty(len(y))
    for label in np.unique(y):
        here = shuffled[y[shuffled] == label]
        rank[here] = (np.arange(len(here)) + rng.random()) / len(here)
    return rng.permutation(np.argsort(rank, kind="stable")[:limit])


def check_network(what: str, model, input_shape: tuple[int, ...], outputs: int) -> None:
    """Raise unless a model takes samples of this shape and has so many outputs; `what` is its name in the error."""
    if not isinstance(model, keras.Model) or model.output_shape[-1] != outputs:
        raise ValueError(
            f"{what} must be a keras.Model with {outputs} outputs. "
            f"Received: {getattr(model, 'output_shape', type(model).__name__)}"
        )
    if tuple(model.input_shape[1:]) != tuple(input_shape):
        raise ValueError(
            f"{what} must take inputs of shape {tuple(input_shape)}. Received: {tuple(model.input_shape[1:])}"
        )


def first_examples(x: np.ndarray, y: np.ndarray, attacks: Mapping[str, np.ndarray], model: keras.Model) -> dict:
    """For a report: an image of each of up to eight classes, and what attacks made of it; labels are the model's.

    Args:
        x: Clean images of shape (n, h, w, c).
        y: Their classes of shape (n,).
        attacks: x_adv of the shape of x by attack.
        model: Classifier that is asked.
    """
    rows = np.sort(np.unique(y, return_index=True)[1])[:_SHOWN]
    made = {name: x_adv[rows] for name, x_adv in attacks.items()}
    predicted = {name: models.predict_logits(model, x_adv).argmax(axis=1) for name, x_adv in made.items()}
    return {"images": x[rows], "attacks": made, "labels": y[rows], "predicted": predicted}


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; 0 where the system does not tell. A GPU's is not in it."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Cost(keras.callbacks.Callback):
    """Counts what a training costs, through all parts of a run that was killed and went on.

    Args:
        images: Images in an epoch, repeats included.
    """

    def __init__(self, images: int):
        super().__init__()
        self.images, self.gradients, self.seconds = images, 0.0, 0.0

    def on_epoch_begin(self, epoch, logs=None):
        """Start the clock."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Add the epoch; what other callbacks do after this one does not count."""
        self.gradients += self.images * getattr(self.model, "gradients_per_image", 1)
        self.seconds += time.perf_counter() - self._start

    def get_state(self) -> dict:
        """What a resumed run needs."""
        return {"gradients": self.gradients, "seconds": self.seconds}

    def set_state(self, state: dict) -> None:
        """Go on from `get_state`."""
        self.gradients, self.seconds = state["gradients"], state["seconds"]

    def facts(self) -> dict[str, float]:
        """Gradients of single images, seconds, and peak memory in bytes."""
        return {"gradients": self.gradients, "seconds": self.seconds, "peak_bytes": float(peak_memory())}


def total(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The cost of several trainings, one after the other: memory is the largest, the rest adds up."""
    join = {"peak_bytes": max}
    return {name: join.get(name, sum)([cost[name] for cost in costs]) for name in costs[0]}


def words(attack) -> str:
    """The `repr` of an attack without addresses, which are others in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(attack))


def l2_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """L2 distance of each pair of images, shape (n,)."""
    return np.sqrt(np.sum((a - b).reshape(len(a), -1) ** 2, axis=1, dtype="float64"))
