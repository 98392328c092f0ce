"""The models that the benchmarks attack: trained once, then kept in `benchmarks/.cache`."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
from keras import layers
from rich.console import Console

from kerasdef import backend, datasets, models
from kerasdef.attacks import PGD
from kerasdef.models import networks
from kerasdef.runs import progress
from kerasdef.training import AdversarialTraining

CACHE = Path(__file__).with_name(".cache")
console = Console(stderr=True)


def load(name: str) -> datasets.Dataset:
    """A data set, or digits where it is missing."""
    try:
        return datasets.load(name, download=False)
    except datasets.DatasetNotFound:
        console.print(f"{name} was not found: the benchmark runs on digits, its numbers are those of 8x8 images.")
        return datasets.load("digits")


def small_residual(input_shape: tuple[int, ...], outputs: int = 10) -> keras.Model:
    """A residual net of seven convolutions with batch normalization, for color images."""

    def normalized(z):
        return layers.BatchNormalization(momentum=0.9)(z)  # few steps: 0.99 would still be at the start

    inputs = keras.Input(input_shape)
    z = layers.Conv2D(16, 3, padding="same", use_bias=False)(inputs)
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        y = layers.ReLU()(normalized(z))
        y = layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(y)
        y = layers.ReLU()(normalized(y))
        y = layers.Conv2D(width, 3, padding="same", use_bias=False)(y)
        short = z if stride == 1 else layers.Conv2D(width, 1, strides=stride, use_bias=False)(z)
        z = layers.Add()([y, short])
    z = layers.GlobalAveragePooling2D()(layers.ReLU()(normalized(z)))
    return keras.Model(inputs, layers.Dense(outputs)(z), name="small_residual")


def victim(kind: str, data: datasets.Dataset, *, epochs: int, limit: int) -> tuple[keras.Model, dict]:
    """A trained model and how it was made.

    Args:
        kind: "plain" (cnn11), "robust" (cnn11, PGD-7 adversarial training at eps 0.2) or "residual".
        data: Data set.
        epochs: Passes.
        limit: Most training images.
    """
    keras.utils.set_random_seed(0)
    model = small_residual(data.input_shape) if kind == "residual" else networks.cnn11(data.input_shape)
    facts = {"kind": kind, "dataset": data.name, "epochs": epochs, "n": min(limit, data.n_train), "seed": 0}
    file = CACHE / f"{'-'.join(str(v) for v in facts.values())}.npz"
    if file.is_file():
        with np.load(file) as kept:
            for variable, name in zip(model.variables, sorted(kept.files), strict=True):
                variable.assign(kept[name])
    else:
        _train(model, kind, data, epochs, limit)
        CACHE.mkdir(exist_ok=True)
        arrays = {f"w{i:03d}": keras.ops.convert_to_numpy(v) for i, v in enumerate(model.variables)}
        np.savez(file, **arrays)
        file.with_suffix(".json").write_text(json.dumps(facts))
    right = models.predict_logits(model, data.x_test[:1000]).argmax(axis=1) == data.y_test[:1000]
    return model, facts | {"clean_accuracy_of_1000": float(right.mean())}


def _train(model, kind: str, data, epochs: int, limit: int) -> None:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained = model
    if kind == "robust":
        trained = AdversarialTraining(model, PGD(eps=0.2, steps=7))
    batches = -(-min(limit, data.n_train) // 128)
    rate = keras.optimizers.schedules.CosineDecay(2e-3, epochs * batches)
    trained.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=backend.jit())
    with progress.bar(f"training {kind}", epochs * batches) as tick:
        on_batch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: tick(1))
        x, y = data.x_train[:limit], data.y_train[:limit]
        trained.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=[on_batch])


def correct(model, data: datasets.Dataset, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The first n test images (training images after them) that the model gets right."""
    x = np.concatenate([data.x_test, data.x_train[: 4 * n]])[: 16 * n]
    y = np.concatenate([data.y_test, data.y_train[: 4 * n]])[: 16 * n]
    right = np.flatnonzero(models.predict_logits(model, x).argmax(axis=1) == y)[:n]
    if len(right) < n:
        raise SystemExit(f"The model gets only {len(right)} images right, {n} are needed.")
    return x[right], y[right]
