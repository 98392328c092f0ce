"""What a step of adversarial training costs, next to its bare parts and to ART's trainer; every method by the image.

    python benchmarks/training.py [--json FILE] [--quick]

Ratios, not a test. Everything runs once before it is timed, so tracing is left out. How to read it stands in README.md
next to this file.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import attacks as bench  # the benchmark next to this one
import keras
import peers
import victims
from rich.console import Console
from rich.table import Table

from kerasdef import backend, datasets, networks
from kerasdef.attacks import PGD
from kerasdef.recipes.robust_methods import METHODS, Job
from kerasdef.recipes.robust_settings import EPS, Settings
from kerasdef.training import AdversarialTraining, AttackStages, Mixture

BATCH = 128  # Madry et al.; hybrid paper
STEPS = 7  # of PGD: Madry et al.
TRACES = 3  # TensorFlow's traces of one function differ in speed on a CPU
OVERHEAD, AS_FAST = 1.2, 5.0  # the bars


def plain(data: datasets.Dataset, name: str = "cnn11", seed: int = 0) -> keras.Model:
    """A fresh network for a data set."""
    return networks.build(name, data.input_shape, data.classes, seed=seed)


def compiled(trainer: keras.Model) -> keras.Model:
    """The trainer, compiled as the recipe of robust training does."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"], jit_compile=backend.jit())
    return trainer


def fit_seconds(trainer: keras.Model, data: Mixture, repeats: int) -> float:
    """Time of a batch in `fit`, the median over epochs."""

    def epoch():
        trainer.fit(data, epochs=1, shuffle=False, verbose=0)

    epoch()
    return bench.seconds(epoch, repeats) / len(data)


# -- a step and its parts --------------------------------------------------------------------------


def parts_seconds(data: datasets.Dataset, repeats: int) -> dict[str, float]:
    """One input gradient, one training step and one forward pass on a batch, each the median over fresh traces."""
    x, y = data.x_train[:BATCH], data.y_train[:BATCH].astype("int32")
    tensors = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
    times: dict[str, list[float]] = {"gradient": [], "training step": [], "forward": []}
    for seed in range(TRACES):
        model = plain(data, seed=seed)
        forward = backend.compiled(lambda z, model=model: backend.evaluate(model, z), model)
        trained = compiled(plain(data, seed=seed))

        def look(forward=forward):
            keras.ops.convert_to_numpy(forward(tensors[0]))

        def step(trained=trained):
            trained.train_on_batch(*tensors)

        for name, once in (("forward", look), ("training step", step)):
            once()
            times[name].append(bench.seconds(once, 10 * repeats))
        times["gradient"].append(bench.gradient_seconds(model, x, y, repeats))
    return {name: median(found) for name, found in times.items()}


def step(data: datasets.Dataset, eps: float, batches: int, repeats: int) -> dict:
    """One PGD-7 step of `fit` over the sum of its parts."""
    parts = parts_seconds(data, repeats)
    mixture = Mixture([(data.x_train[: batches * BATCH], data.y_train[: batches * BATCH])], batch_size=BATCH, seed=0)
    found = []
    for seed in range(TRACES):
        trainer = compiled(AdversarialTraining(plain(data, seed=seed), PGD(eps=eps, steps=STEPS)))
        found.append(fit_seconds(trainer, mixture, repeats))
    bare = STEPS * parts["gradient"] + parts["training step"] + parts["forward"]
    return {"parts": parts, "bare": bare, "traces": found, "fit": median(found), "overhead": median(found) / bare}


# -- next to ART -----------------------------------------------------------------------------------


def art_seconds(data: datasets.Dataset, eps: float, n: int) -> float:
    """Time of ART's `AdversarialTrainer` on n images, all of them attacked by PGD-7."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.trainer import AdversarialTrainer
    from art.estimators.classification import TensorFlowV2Classifier

    classifier = TensorFlowV2Classifier(
        model=plain(data),
        nb_classes=data.classes,
        input_shape=data.input_shape,
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        optimizer=keras.optimizers.Adam(1e-3),
        clip_values=(0, 1),
    )
    attack = ProjectedGradientDescent(
        classifier,
        eps=eps,
        eps_step=2.5 * eps / STEPS,  # as ours
        max_iter=STEPS,
        num_random_init=1,
        batch_size=BATCH,
        verbose=False,
    )
    trainer = AdversarialTrainer(classifier, attack, ratio=1.0)

    def run(count):
        trainer.fit(data.x_train[:count], data.y_train[:count], batch_size=BATCH, nb_epochs=1)

    run(BATCH)
    return bench.seconds(lambda: run(n), 1)


def next_to_art(data: datasets.Dataset, eps: float, n: int, ours: float) -> dict:
    """ART's time and ours, `ours` of a batch, on the same number of images."""
    if backend.NAME != "tensorflow" or not peers.installed("art"):
        return {}
    mine, theirs = ours * n / BATCH, art_seconds(data, eps, n)
    return {"n": n, "kerasdef": mine, "ART": theirs, "times_as_fast": theirs / mine}


# -- every method ----------------------------------------------------------------------------------


def method_row(name: str, data: datasets.Dataset, eps: float, batches: int, repeats: int) -> dict:
    """Time and gradients of one image in an epoch of a method at its usual settings, its networks untrained."""
    method = METHODS[name]()
    settings = Settings(
        eps=eps,
        norm="linf",
        epochs=method.epochs,
        batch_size=BATCH,
        learning_rate=1e-3,
        weight_decay=0.0,
        average=False,
        shift=0,
        precision="float32",
        valid_size=0.05,
        n_test=1,
        autoattack=False,
        seed=0,
    )

    def other(title, network, wrap=None):
        model = plain(data, network or method.network[0], seed=1)
        if wrap is not None:
            wrap(model)
        return model

    job = Job(plain(data, method.network[0]), settings, batches, 0, other)
    trainer = compiled(method.trainer(job))
    for callback in method.callbacks(job):
        if isinstance(callback, AttackStages):
            trainer.attack = callback.stages[-1].attack  # the one that takes most of the epochs
    arrays = data.x_train[: batches * BATCH], data.y_train[: batches * BATCH]
    mixture = Mixture([arrays], batch_size=BATCH, seed=0, repeats=method.repeats)
    seconds = fit_seconds(trainer, mixture, repeats) * method.repeats / BATCH
    gradients = getattr(trainer, "gradients_per_image", 1) * method.repeats
    return {"method": name, "network": method.network[0], "seconds_per_image": seconds, "gradients": gradients}


# -- all of it -------------------------------------------------------------------------------------


def measure(quick: bool, path: Path | None) -> dict:
    """Everything, as one JSON value; what there is so far is written to `path` after every part."""
    began = time.perf_counter()
    data = victims.load("digits" if quick else "mnist")
    eps, batches, repeats = EPS[data.name], 8 if quick else 10, 2 if quick else 3
    found: dict = {"machine": bench.machine(), "dataset": data.name, "eps": eps, "batch": BATCH, "methods": []}

    def note(text: str) -> None:
        bench.console.print(f"[{time.perf_counter() - began:5.0f} s] {text}")
        bench.write(found, path)

    found["step"] = step(data, eps, batches, repeats)
    note("one step measured")
    found["art"] = next_to_art(data, eps, 256 if quick else 512, found["step"]["fit"])
    note("ART measured")
    for name in METHODS:
        found["methods"].append(method_row(name, data, eps, batches, repeats))
        note(name)
    found["seconds_in_all"] = time.perf_counter() - began
    return found


def show(found: dict) -> None:
    """Print the tables."""
    facts, step = found["machine"], found["step"]
    out = Console(width=None if sys.stdout.isatty() else 120)
    out.print(f"{facts['cpus']} CPUs ({facts['processor']}), device {facts['device']}, load {facts['load_before']:.1f}")
    out.print(f"Python {facts['python']}, " + ", ".join(f"{k} {v}" for k, v in facts["versions"].items()))
    title = f"One PGD-{STEPS} step of fit: cnn11, {found['dataset']}, batch {found['batch']}"
    table = Table("part", "times", "ms each", title=title, title_justify="left")
    counts = {"gradient": STEPS, "training step": 1, "forward": 1}
    for name, count in counts.items():
        table.add_row(f"bare {name}", str(count), f"{1e3 * step['parts'][name]:.2f}")
    table.add_row("sum of these", "", f"{1e3 * step['bare']:.1f}")
    table.add_row("fit", "1", f"{1e3 * step['fit']:.1f}")
    out.print(table)
    out.print(f"fit over its parts: {step['overhead']:.2f} {bench._mark(step['overhead'], OVERHEAD, True)}")
    if art := found["art"]:
        fast = art["times_as_fast"]
        out.print(
            f"PGD-{STEPS} training on {art['n']} images: kerasdef {art['kerasdef']:.2f} s, ART {art['ART']:.2f} s, "
            f"{fast:.2f} times as fast {bench._mark(fast, AS_FAST)}"
        )
    first = found["methods"][0]["seconds_per_image"]
    heads = ("method", "network", "ms per image", "gradients per image", "over standard")
    table = Table(*heads, title="Methods at their usual settings", title_justify="left")
    for row in found["methods"]:
        each = row["seconds_per_image"]
        cells = f"{1e3 * each:.3f}", f"{row['gradients']:g}", f"{each / first:.1f}"
        table.add_row(row["method"], row["network"], *cells)
    out.print(table)
    out.print(f"{found['seconds_in_all']:.0f} s in all")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--quick", action="store_true", help="less of everything, on digits: two minutes")
    options = parser.parse_args()
    found = measure(options.quick, options.json)
    show(found)
    bench.write(found, options.json)


if __name__ == "__main__":
    main()
