"""What adversarial training costs, next to its bare parts and to ART's trainer: ratios, not a test.

python benchmarks/training.py [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import attacks as bench
import keras
import numpy as np
import tables
import victims
from rich.console import Console
from rich.table import Table

from kerasdef import backend, models
from kerasdef.attacks import PGD
from kerasdef.models import networks
from kerasdef.recipes.robust.methods import Job, method_of
from kerasdef.recipes.robust.settings import METHODS, RobustSettings
from kerasdef.training import AdversarialTraining, Mixture

BATCH = 128
STEPS = 7
TRACES = 3  # fresh traces, whose median counts: a trace may be slow or fast


def loss() -> keras.losses.Loss:
    """Cross-entropy from logits."""
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def seconds_of_fit(make: Callable[[], keras.Model], x, y, batches: int, traces: int = TRACES) -> float:
    """Time of one batch of `fit` of a fresh trainer, tracing left out."""
    times = []
    for _ in range(traces):
        trainer = make()
        trainer.compile(keras.optimizers.Adam(), loss(), jit_compile=backend.jit())
        trainer.fit(x[:BATCH], y[:BATCH], batch_size=BATCH, epochs=2, verbose=0)
        start = time.perf_counter()
        trainer.fit(x, y, batch_size=BATCH, epochs=1, verbose=0)
        times.append((time.perf_counter() - start) / batches)
    return median(times)


def bare(shape, x, y, batches: int) -> dict[str, float]:
    """Times of one input gradient, one plain training step and one forward pass of a batch."""
    model = networks.cnn11(shape, 10)
    gradient = bench.gradient_seconds(model, x[:BATCH], y[:BATCH], 2)

    def forward(m=model):
        return models.predict_logits(m, x[:BATCH], batch_size=BATCH)

    forward()
    passes = bench.seconds(forward, 9)
    step = seconds_of_fit(lambda: networks.cnn11(shape, 10), x, y, batches)
    return {"gradient": gradient, "forward": passes, "step": step}


def art_seconds(shape, x, y, eps: float) -> float:
    """Time of one batch of ART's AdversarialTrainer on the same network, its graph traced before."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    estimator = TensorFlowV2Classifier(
        networks.cnn11(shape, 10),
        nb_classes=10,
        input_shape=shape,
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(),
        clip_values=(0.0, 1.0),
    )
    attack = ProjectedGradientDescent(
        estimator,
        eps=eps,
        eps_step=2.5 * eps / STEPS,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=BATCH,
        verbose=False,
    )
    trainer = AdversarialTrainer(estimator, attack, ratio=1.0)
    labels = np.eye(10, dtype="float32")[y]
    trainer.fit(x[:BATCH], labels[:BATCH], batch_size=BATCH, nb_epochs=1)
    start = time.perf_counter()
    trainer.fit(x, labels, batch_size=BATCH, nb_epochs=1)  # all images are attacked in batches while it trains
    return (time.perf_counter() - start) / (len(x) // BATCH)


def methods(shape, x, y, eps: float) -> list[dict]:
    """Time of an image and gradients of an image for each method, after tracing."""
    rows = []
    for name in METHODS:
        method = method_of(name, {})
        settings = RobustSettings(eps=eps, epochs=10, batch_size=BATCH, average=False, augment=False)
        model = networks.NETWORKS[method.own.networks[0]](shape, 10)

        def other(title, network, wrap=None):
            return networks.NETWORKS[network or "cnn11"](shape, 10)

        trainer = method.trainer(Job(model, settings, len(x) // BATCH, 0, other))
        if name == "multistage":
            trainer.attack = method.stages(settings)[-1].attack  # the dearest
        trainer.compile(keras.optimizers.Adam(), loss(), jit_compile=backend.jit())
        data = Mixture([(x, y)], batch_size=BATCH, seed=0, repeats=method.repeats)
        trainer.fit(Mixture([(x[:BATCH], y[:BATCH])], batch_size=BATCH, seed=0), epochs=2, shuffle=False, verbose=0)
        start = time.perf_counter()
        trainer.fit(data, epochs=1, shuffle=False, verbose=0)
        taken = time.perf_counter() - start
        gradients = getattr(trainer, "gradients_per_image", 1) * method.repeats
        rows.append({"method": name, "gradients": gradients, "milliseconds": 1e3 * taken / len(x)})
    return rows


def measure(quick: bool) -> dict:
    """Everything, as one JSON value."""
    console = Console(stderr=True)
    data = victims.load("digits" if quick else "mnist")
    batches = 8
    x, y = data.x_train[: batches * BATCH], data.y_train[: batches * BATCH].astype("int32")
    shape, eps = data.input_shape, 0.15 if data.name == "digits" else 0.3
    found = {"machine": bench.machine(), "dataset": data.name, "batch": BATCH, "steps": STEPS, "eps": eps}
    parts = bare(shape, x, y, batches)
    console.print("bare parts measured")

    def trainer():
        return AdversarialTraining(networks.cnn11(shape, 10), PGD(eps=eps, steps=STEPS))

    ours = seconds_of_fit(trainer, x, y, batches)
    sum_of_parts = STEPS * parts["gradient"] + parts["step"] + parts["forward"]
    found |= {"bare": parts, "fit": ours, "over_bare": ours / sum_of_parts, "over_bare_to_reach": 1.2}
    console.print("PGD training measured")
    found |= {"art": art_seconds(shape, x[: 4 * BATCH], y[: 4 * BATCH], eps), "art_to_reach": 5.0}
    found["times_as_fast_as_art"] = found["art"] / ours
    console.print("ART measured")
    found["methods"] = methods(shape, x, y, eps)
    return found


def show(found: dict) -> None:
    """Print the ratios and the table."""
    out, parts = Console(width=120), found["bare"]
    facts = found["machine"]
    out.print(f"{facts['cpus']} CPUs, device {facts['device']}, load {facts['load_before']:.1f}; {found['dataset']}")
    out.print(
        f"bare, batch of {found['batch']}: gradient {1e3 * parts['gradient']:.1f} ms, "
        f"training step {1e3 * parts['step']:.1f} ms, forward {1e3 * parts['forward']:.1f} ms"
    )
    over, art = found["over_bare"], found["times_as_fast_as_art"]
    out.print(
        f"PGD-{found['steps']} step of fit: {1e3 * found['fit']:.1f} ms, {over:.2f} x its bare parts "
        f"{tables.mark(over, found['over_bare_to_reach'], at_most=True)}"
    )
    out.print(f"ART's AdversarialTrainer: {1e3 * found['art']:.1f} ms, {art:.1f} x {tables.mark(art, 5.0)}")
    table = Table("method", "gradients of an image and epoch", "milliseconds of an image and epoch")
    for row in found["methods"]:
        table.add_row(row["method"], f"{row['gradients']:.0f}", f"{row['milliseconds']:.2f}")
    out.print(table)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--quick", action="store_true", help="on digits: a minute or two")
    options = parser.parse_args()
    found = measure(options.quick)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
