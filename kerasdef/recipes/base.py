"""What recipes share: training with a bar, usual numbers, checks of networks, examples for a report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from kerasdef import backend, models
from kerasdef.runs import progress
from kerasdef.runs.store import Store
from kerasdef.training import Mixture, Resume

_SHOWN = 8  # images in a report


class Tick(keras.callbacks.Callback):
    """Moves a progress bar on with every batch, and notes what training has measured so far.

    A training that goes on begins where it was.

    Args:
        advance: Moves the bar by a number of batches.
        batches: Number of batches in an epoch.
    """

    def __init__(self, advance, batches: int):
        super().__init__()
        self.advance, self.batches, self.done = advance, batches, 0
        self.held_out: dict[str, float] = {}  # what the last epoch measured on validation images

    def on_epoch_begin(self, epoch, logs=None):
        """Skip the epochs that an earlier process trained."""
        self._move_to(epoch * self.batches, None)

    def on_train_batch_end(self, batch, logs=None):
        """One batch more."""
        self._move_to(self.done + 1, logs)

    def on_epoch_end(self, epoch, logs=None):
        """Note what was measured on validation images, such as the robust accuracy."""
        self.held_out = {name: value for name, value in (logs or {}).items() if name.startswith("val_")}
        self.advance(0, progress.numbers(logs or {}))

    def _move_to(self, done: int, logs: Mapping[str, float] | None) -> None:
        if done > self.done:
            self.advance(done - self.done, progress.numbers({**logs, **self.held_out}) if logs else None)
            self.done = done


class Diverged(keras.callbacks.Callback):
    """Ends a training whose loss is no number any more, where it happens."""

    def __init__(self):
        super().__init__()
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        """Note the epoch."""
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        """Raise where the loss is NaN or infinite."""
        loss = float((logs or {}).get("loss", 0.0))
        if not math.isfinite(loss):
            raise ValueError(
                "The training diverged; a smaller `learning_rate` may help. "
                f"Received: loss={loss} in epoch {self.epoch + 1}, batch {batch + 1}"
            )


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
    keep: tuple[Path, str] | None = None,
) -> dict[str, list[float]]:
    """Train a classifier that gives logits with Adam and sparse categorical cross-entropy.

    With `keep`, what `unfinished` gives for a piece, a training that was killed goes on where it was.

    Returns:
        Keras' history: loss, accuracy and, with `valid`, val_loss and val_accuracy by epoch.
    """
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=backend.jit(),
    )
    resume = [] if keep is None else [Resume(keep[0], data, callbacks, of=keep[1])]
    with progress.bar(title, epochs * len(data), show=show, unit="batches") as advance:
        history = model.fit(
            data,
            epochs=epochs,
            validation_data=valid,
            verbose=0,
            callbacks=[*callbacks, Tick(advance, len(data)), Diverged(), *resume],
            shuffle=False,  # the order is that of `data`; Keras would shuffle the batches without a seed
        )
    return {k: [float(v) for v in values] for k, values in history.history.items()}


def unfinished(store: Store, piece: str) -> tuple[Path, str] | None:
    """File for the state of the training that makes a piece, and what it is of; None where nothing is kept."""
    folder = store.path(piece)
    return None if folder is None else (folder / "training.npz", store.of(piece))


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
