"""Speed, strength and memory of the attacks, next to a bare gradient, ART and foolbox: ratios, not a test.

    python benchmarks/attacks.py [--json FILE] [--dataset digits|mnist] [--quick]

Every function runs once before it is timed, so tracing is left out. What is measured, and why so, stands in
README.md next to this file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from kerasdef import backend, datasets, losses, models, networks, progress
from kerasdef.attacks import FGSM, PGD, CarliniWagner, base

BATCH = 256
EPS = 0.3
STEPS = 40
STEP_SIZE = 2.5 * EPS / STEPS
C_AND_W = {"steps": 20, "binary_search_steps": 5, "initial_c": 0.1, "learning_rate": 0.1}
console = Console(stderr=True)


def seconds(run, repeats: int) -> float:
    """Median time of `run()`, which must have run before."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


def load(name: str) -> datasets.Dataset:
    try:
        return datasets.load(name, download=False)
    except datasets.DatasetNotFound:
        console.print(f"{name} was not found: the benchmark runs on digits, its numbers are those of 8x8 images.")
        return datasets.load("digits")


def train(data: datasets.Dataset, epochs: int, limit: int) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = networks.cnn11(data.input_shape)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], jit_compile=backend.jit())
    batches = -(-min(limit, data.n_train) // 128)
    with progress.bar("training", epochs * batches) as tick:
        on_batch = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: tick(1))
        x, y = data.x_train[:limit], data.y_train[:limit]
        model.fit(x, y, batch_size=128, epochs=epochs, verbose=0, callbacks=[on_batch])
    return model


def correct(model, data: datasets.Dataset, n: int):
    """The first n test images (training images after them) that the model gets right."""
    x = np.concatenate([data.x_test, data.x_train[: 4 * n]])
    y = np.concatenate([data.y_test, data.y_train[: 4 * n]])
    x, y = x[: 8 * n], y[: 8 * n]
    right = np.flatnonzero(models.predict_logits(model, x).argmax(axis=1) == y)[:n]
    return x[right], y[right]


def strength(model, x_adv, y) -> dict:
    logits = models.predict_logits(model, x_adv)
    loss = keras.ops.convert_to_numpy(losses.cross_entropy(logits, y))
    return {"accuracy_left": float((logits.argmax(axis=1) == y).mean()), "mean_loss": float(loss.mean())}


def peer(name: str) -> bool:
    found = importlib.util.find_spec(name) is not None
    if not found:
        console.print(f"{name} is not installed: its rows are left out.")
    return found


def in_art(model):
    from art.estimators.classification import TensorFlowV2Classifier

    return TensorFlowV2Classifier(
        model=model,
        nb_classes=model.output_shape[-1],
        input_shape=model.input_shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=(0.0, 1.0),
    )


def in_foolbox(model):
    import foolbox

    return foolbox.TensorFlowModel(lambda z: model(z, training=False), bounds=(0, 1))


def step_against_gradient(model, x, y, traces: int, repeats: int) -> dict:
    """One PGD step over one compiled gradient, each over several fresh traces, taken in turn."""
    attack = PGD(eps=EPS, steps=STEPS, early_stop=False)
    labels = y.astype("int32")
    steps, gradients = [], []
    with progress.bar("PGD step / gradient", traces) as tick:
        for _ in range(traces):
            base._PROGRAMS.clear()
            attack(model, x, y, batch_size=BATCH, progress=False)
            whole = seconds(lambda: attack(model, x, y, batch_size=BATCH, progress=False), repeats)
            steps.append(whole / STEPS)

            def derive(z, labels):
                def value(images):
                    logits = model(images, training=False)
                    return losses.cross_entropy(logits, labels), logits

                return backend.gradient(value)(z)[2]

            compiled = backend.compiled(derive, model)
            on_device = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(labels)

            def once(compiled=compiled, on_device=on_device):
                keras.ops.convert_to_numpy(compiled(*on_device))

            once()
            gradients.append(seconds(once, repeats * 5))
            tick(1)
    return {
        "step_seconds": steps,
        "gradient_seconds": gradients,
        "ratio_of_medians": median(steps) / median(gradients),
        "ratio_of_minima": min(steps) / min(gradients),
    }


def pgd(model, x, y, traces: int, repeats: int) -> dict:
    """PGD with all its steps, and as it comes (samples leave when they are adversarial)."""
    found = {}
    for key, attack in (
        ("all steps", PGD(eps=EPS, steps=STEPS, early_stop=False)),
        ("early stop", PGD(eps=EPS, steps=STEPS)),
    ):
        times = []
        for _ in range(traces):
            base._PROGRAMS.clear()
            x_adv = attack(model, x, y, batch_size=BATCH, progress=False)
            times.append(seconds(lambda: attack(model, x, y, batch_size=BATCH, progress=False), repeats))  # noqa: B023
        found[key] = {"seconds": median(times), "fastest": min(times), **strength(model, x_adv, y)}
    return found


def pgd_of_art(model, x, y, repeats: int) -> dict:
    from art.attacks.evasion import ProjectedGradientDescent

    attack = ProjectedGradientDescent(
        in_art(model),
        eps=EPS,
        eps_step=STEP_SIZE,
        max_iter=STEPS,
        num_random_init=1,
        batch_size=BATCH,
        verbose=False,
    )
    attack.generate(x[:BATCH], y[:BATCH])
    x_adv = attack.generate(x, y)
    return {"seconds": seconds(lambda: attack.generate(x, y), repeats), **strength(model, x_adv, y)}


def pgd_of_foolbox(model, x, y, repeats: int) -> dict:
    import foolbox
    import tensorflow as tf

    wrapped = in_foolbox(model)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=STEP_SIZE, steps=STEPS, random_start=True)

    def run():
        parts = []
        for start in range(0, len(x), BATCH):
            part = slice(start, start + BATCH)
            _, clipped, _ = attack(wrapped, tf.constant(x[part]), tf.constant(y[part]), epsilons=EPS)
            parts.append(clipped.numpy())
        return np.concatenate(parts)

    x_adv = run()
    return {"seconds": seconds(run, repeats), **strength(model, x_adv, y)}


def carlini_wagner(model, x, y, repeats: int) -> tuple[dict, np.ndarray]:
    attack = CarliniWagner(**C_AND_W, abort_early=False)
    x_adv = attack(model, x, y, batch_size=len(x), progress=False)
    return {"seconds": seconds(lambda: attack(model, x, y, batch_size=len(x), progress=False), repeats)}, x_adv


def carlini_wagner_of_art(model, x, y, batch_size: int, warm_up: int) -> tuple[dict, np.ndarray]:
    from art.attacks.evasion import CarliniL2Method

    attack = CarliniL2Method(
        in_art(model),
        max_iter=C_AND_W["steps"],
        binary_search_steps=C_AND_W["binary_search_steps"],
        initial_const=C_AND_W["initial_c"],
        learning_rate=C_AND_W["learning_rate"],
        batch_size=batch_size,
        verbose=False,
    )
    attack.generate(x[:warm_up], y[:warm_up])
    start = time.perf_counter()
    x_adv = attack.generate(x, y)
    return {"seconds": time.perf_counter() - start}, x_adv


def carlini_wagner_of_foolbox(model, x, y, repeats: int) -> tuple[dict, np.ndarray]:
    import foolbox
    import tensorflow as tf

    wrapped = in_foolbox(model)
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=C_AND_W["binary_search_steps"],
        steps=C_AND_W["steps"],
        stepsize=C_AND_W["learning_rate"],
        initial_const=C_AND_W["initial_c"],
        abort_early=False,
    )

    def run():
        return attack(wrapped, tf.constant(x), tf.constant(y), epsilons=None)[0].numpy()

    x_adv = run()
    return {"seconds": seconds(run, repeats)}, x_adv


def compare_sizes(model, x, y, ours, theirs) -> dict:
    """Success of both, and the median L2 change of the images that both broke."""
    broke = [models.predict_logits(model, z).argmax(axis=1) != y for z in (ours, theirs)]
    both = broke[0] & broke[1]
    change = [np.linalg.norm((z - x)[both].reshape(both.sum(), -1), axis=1) for z in (ours, theirs)]
    sizes = [float(np.median(c)) if both.any() else float("nan") for c in change]
    return {
        "success_ours": float(broke[0].mean()),
        "success_theirs": float(broke[1].mean()),
        "both": int(both.sum()),
        "median_l2_ours": sizes[0],
        "median_l2_theirs": sizes[1],
    }


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Let the peak begin at what is in use now; elsewhere than on Linux it keeps what came before."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def memory_child(n: int, shape: tuple[int, ...]) -> None:
    """Attack n images and print the growth of the peak less the size of the answer, in bytes."""
    model = networks.cnn11(shape)
    rng = np.random.default_rng(0)
    x = rng.random((n, *shape), dtype="float32")
    y = models.predict_logits(model, x).argmax(axis=1)
    attack = FGSM(eps=EPS)
    attack(model, x[: 4 * BATCH], y[: 4 * BATCH], batch_size=BATCH, progress=False)
    forget_peak()
    before = peak()
    out = attack(model, x, y, batch_size=BATCH, progress=False)
    print(json.dumps({"n": n, "constant_bytes": peak() - before - out.nbytes, "array_bytes": out.nbytes}))


def memory(n: int, shape) -> dict:
    """Run `memory_child` in a process of its own: peaks only ever rise."""
    sides = ",".join(map(str, shape))
    command = [sys.executable, __file__, "--memory", str(n), "--shape", sides]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(answer.stdout.strip().splitlines()[-1])


def machine() -> dict:
    packages = ("kerasdef", "keras", "tensorflow", "numpy", "adversarial-robustness-toolbox", "foolbox")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cpus": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "load_before": os.getloadavg()[0],
        "device": backend.device(),
        "python": platform.python_version(),
        "versions": versions,
    }


def measure(name: str, quick: bool) -> dict:
    began = time.perf_counter()
    found: dict = {"machine": machine(), "settings": {"batch": BATCH, "eps": EPS, "steps": STEPS, **C_AND_W}}

    def note(text: str) -> None:
        console.print(f"[{time.perf_counter() - began:5.0f} s] {text}")

    data = load("digits" if quick else name)
    shape = data.input_shape
    found["dataset"] = data.name
    sizes = (2_000, 10_000) if quick else (10_000, 60_000)
    found["memory"] = []
    with progress.bar("memory", len(sizes)) as tick:
        for n in sizes:
            found["memory"].append(memory(n, shape))
            tick(1)
    note("memory measured")

    model = train(data, *((8, 2_000) if data.name == "digits" else (2, 20_000)))
    note("model trained")
    traces, repeats = (3, 2) if quick else (5, 3)
    x, y = correct(model, data, BATCH)
    if len(x) < BATCH:
        raise SystemExit(f"The model gets only {len(x)} images right, {BATCH} are needed.")
    found["step_over_gradient"] = step_against_gradient(model, x, y, traces, repeats)
    note("PGD step and gradient measured")

    found["pgd"] = {"n": len(x), "kerasdef": pgd(model, x, y, traces=2 if quick else 3, repeats=2)}
    few = 2 if quick else 10
    found["carlini_wagner"] = {"n": few}
    cw_time, cw_adv = carlini_wagner(model, x[:few], y[:few], 3)
    found["carlini_wagner"]["kerasdef"] = cw_time
    note("kerasdef measured")

    if peer("art"):
        found["pgd"]["art"] = pgd_of_art(model, x, y, 1 if quick else 2)
        note("ART PGD measured")
        for key, size in (("art", few), ("art, its batch size of 1", 1)):
            if quick and size == 1:
                continue
            theirs, adv = carlini_wagner_of_art(model, x[:few], y[:few], size, warm_up=1 if quick else size)
            found["carlini_wagner"][key] = theirs | compare_sizes(model, x[:few], y[:few], cw_adv, adv)
        note("ART C&W measured")
    if peer("foolbox"):
        found["pgd"]["foolbox"] = pgd_of_foolbox(model, x, y, 1 if quick else 2)
        theirs, adv = carlini_wagner_of_foolbox(model, x[:few], y[:few], 2)
        found["carlini_wagner"]["foolbox"] = theirs | compare_sizes(model, x[:few], y[:few], cw_adv, adv)
        note("foolbox measured")
    found["seconds_in_all"] = time.perf_counter() - began
    return found


def show(found: dict) -> None:
    facts = found["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in facts["versions"].items())
    out = Console(width=None if sys.stdout.isatty() else 150)
    out.print(f"{facts['cpus']} CPUs ({facts['processor']}), device {facts['device']}")
    out.print(f"Python {facts['python']}, {versions}")
    out.print(
        f"data set {found['dataset']}, batch {BATCH}, eps {EPS}, {STEPS} steps; "
        "every function ran once before it was timed (tracing is not counted), then medians"
    )
    table = Table("what", "measured", "to reach", "details")

    step = found["step_over_gradient"]
    detail = f"{1e3 * median(step['step_seconds']):.1f} ms / {1e3 * median(step['gradient_seconds']):.1f} ms"
    count = len(step["step_seconds"])
    table.add_row(
        f"PGD step / compiled gradient, median of {count} traces",
        f"{step['ratio_of_medians']:.2f}",
        "<= 1.15",
        detail,
    )
    detail = f"{1e3 * min(step['step_seconds']):.1f} ms / {1e3 * min(step['gradient_seconds']):.1f} ms"
    table.add_row(f"the same, fastest of {count} traces", f"{step['ratio_of_minima']:.2f}", "<= 1.15", detail)

    ours = found["pgd"]["kerasdef"]
    for name, goal in (("art", 2.3), ("foolbox", 2.0)):
        if name not in found["pgd"]:
            continue
        theirs = found["pgd"][name]
        for kind, mine in ours.items():
            table.add_row(
                f"PGD-{STEPS} ({kind}), times as fast as {name}",
                f"{theirs['seconds'] / mine['seconds']:.2f}",
                f">= {goal}",
                f"{mine['seconds']:.2f} s / {theirs['seconds']:.2f} s; "
                f"accuracy left {mine['accuracy_left']:.3f} / {theirs['accuracy_left']:.3f}; "
                f"mean loss {mine['mean_loss']:.2f} / {theirs['mean_loss']:.2f}",
            )
    mine = found["carlini_wagner"]["kerasdef"]
    for name, theirs in found["carlini_wagner"].items():
        if name in ("n", "kerasdef"):
            continue
        table.add_row(
            f"C&W L2, times as fast as {name}",
            f"{theirs['seconds'] / mine['seconds']:.1f}",
            ">= 30" if name.startswith("art") else "",
            f"{mine['seconds']:.2f} s / {theirs['seconds']:.2f} s; success {theirs['success_ours']:.2f} / "
            f"{theirs['success_theirs']:.2f}",
        )
        table.add_row(
            f"C&W L2, median change over that of {name}",
            f"{theirs['median_l2_ours'] / theirs['median_l2_theirs']:.3f}",
            "<= 1.02",
            f"{theirs['median_l2_ours']:.3f} / {theirs['median_l2_theirs']:.3f} on the {theirs['both']} both broke",
        )
    for part in found["memory"]:
        table.add_row(
            f"memory of FGSM on {part['n']:,} images beyond the arrays",
            f"{part['constant_bytes'] / 2**20:.1f} MiB",
            "a constant",
            f"arrays in and out {part['array_bytes'] / 2**20:.0f} MiB each",
        )
    out.print(table)
    out.print(f"{found['seconds_in_all']:.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="mnist")
    parser.add_argument("--quick", action="store_true", help="less of everything, on digits: under a minute")
    parser.add_argument("--memory", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--shape", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory:
        memory_child(options.memory, tuple(int(s) for s in options.shape.split(",")))
        return
    found = measure(options.dataset, options.quick)
    show(found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
