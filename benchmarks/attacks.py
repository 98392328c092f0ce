"""Speed, strength and memory of the attacks, next to a bare gradient and to other toolkits: ratios, not a test.

    python benchmarks/attacks.py [--json FILE] [--quick] [--only NAME ...]

Every function runs once before it is timed, so tracing is left out. What is measured, and why so, stands in
README.md next to this file.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import memory
import numpy as np
import peers
import tables
import victims
from rich.console import Console

from kerasdef import backend, losses, models, norms
from kerasdef.attacks import (
    APGD,
    FAB,
    FMN,
    PGD,
    Attack,
    AutoAttack,
    CarliniWagner,
    DeepFool,
    HopSkipJump,
    Square,
)

BATCH = 256
STEPS = 40  # of PGD: Madry et al. for MNIST
STEP_SIZE = 2.5 / STEPS  # times eps
console = Console(stderr=True)


def seconds(run: Callable, repeats: int) -> float:
    """Median time of `run()`, which must have run before."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times)


# -- what is compared ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One attack on one model, with the same attack of others.

    Args:
        name: Of the row.
        attack: Ours.
        n: Images.
        peers: Functions that make a runner from the model, by the name of the toolkit.
        reach: Least ratio of their time to ours, by the name of the toolkit.
        overhead: Most time over that of the bare gradients, or None.
        norm: For the median change of minimal attacks.
        traces: Fresh traces whose median time counts.
    """

    name: str
    attack: Attack
    n: int = BATCH
    peers: Mapping[str, Callable] = field(default_factory=dict)
    reach: Mapping[str, float] = field(default_factory=dict)
    overhead: float | None = None
    norm: str = "l2"
    traces: int = 1


def cases(eps: float, quick: bool, few: int) -> Iterator[Case]:
    """The rows of one model; `few` images for what ART does slowly."""
    step = STEP_SIZE * eps
    yield Case(
        f"PGD-{STEPS}, all steps",
        PGD(eps=eps, steps=STEPS, early_stop=False),
        peers={
            "ART": lambda m: peers.art(
                "ProjectedGradientDescent",
                m,
                eps=eps,
                eps_step=step,
                max_iter=STEPS,
                num_random_init=1,
                batch_size=BATCH,
                verbose=False,
            ),
            "foolbox": lambda m: peers.foolbox(
                "LinfPGD", m, eps=eps, abs_stepsize=step, steps=STEPS, random_start=True
            ),
        },
        reach={"ART": 2.3, "foolbox": 2.0},
        overhead=1.15,
        traces=3,
    )
    yield Case(f"PGD-{STEPS}, early stop", PGD(eps=eps, steps=STEPS))
    apgd = {"eps": eps, "eps_step": 2 * eps, "max_iter": 100, "nb_random_init": 1, "batch_size": BATCH}
    yield Case(
        "APGD-CE 100, all steps",
        APGD(eps=eps, early_stop=False),
        peers={"ART": lambda m: peers.art("AutoProjectedGradientDescent", m, **apgd, verbose=False)},
        reach={"ART": 2.0},
        overhead=1.15,
    )
    yield Case("APGD-CE 100, early stop", APGD(eps=eps))
    yield Case("APGD-T 9 x 100", APGD(eps=eps, loss="targeted_dlr"))
    yield Case(
        "DeepFool L2",
        DeepFool(),
        peers={"foolbox": lambda m: peers.foolbox("L2DeepFoolAttack", m, steps=50, candidates=10, overshoot=0.02)},
        reach={"foolbox": 2.0},
    )
    yield Case(
        f"DeepFool L2, {few} images",
        DeepFool(),
        n=few,
        peers={"ART": lambda m: peers.art("DeepFool", m, max_iter=50, epsilon=0.02, batch_size=few, verbose=False)},
        reach={"ART": 50.0},
    )
    cw = {"steps": 20 if quick else 50, "binary_search_steps": 5}
    yield Case(
        f"C&W L2 {cw['binary_search_steps']} x {cw['steps']}",
        CarliniWagner(**cw, initial_c=0.1, learning_rate=0.1, abort_early=False),
        n=4 * few,
        peers={
            "foolbox": lambda m: peers.foolbox(
                "L2CarliniWagnerAttack", m, **cw, stepsize=0.1, initial_const=0.1, abort_early=False
            )
        },
        reach={"foolbox": 2.5},
        overhead=1.3,
    )
    small = {"steps": 20, "binary_search_steps": 5}
    yield Case(
        f"C&W L2 5 x 20, {few} images",
        CarliniWagner(**small, initial_c=0.1, learning_rate=0.1, abort_early=False),
        n=few,
        peers={
            "ART": lambda m: peers.art(
                "CarliniL2Method",
                m,
                max_iter=small["steps"],
                binary_search_steps=small["binary_search_steps"],
                initial_const=0.1,
                learning_rate=0.1,
                batch_size=few,
                verbose=False,
            )
        },
        reach={"ART": 30.0},
    )
    yield Case(
        "FMN L2 100",
        FMN(norm="l2", steps=100),
        peers={"foolbox": lambda m: peers.foolbox("L2FMNAttack", m, steps=100)},
    )
    yield Case("FAB-T Linf 100", FAB(steps=100, targets=9, eps=eps), overhead=1.3, norm="linf")
    queries = 200 if quick else 1000
    yield Case(
        f"Square {queries} queries",
        Square(eps=eps, queries=queries),
        peers={
            "ART": lambda m: peers.art(
                "SquareAttack", m, eps=eps, max_iter=queries, nb_restarts=1, batch_size=BATCH, verbose=False
            )
        },
    )
    yield Case(
        f"HopSkipJump L2, {few} images",
        HopSkipJump(queries=1000 if quick else 3000),
        n=few,
        peers={
            "ART": lambda m: peers.art(
                "HopSkipJump", m, max_iter=3 if quick else 7, init_eval=100, max_eval=1000, verbose=False
            )
        },
    )
    yield Case("AutoAttack standard, 200 images", AutoAttack(eps=eps), n=min(200, BATCH))


# -- how it is measured ----------------------------------------------------------------------------


def copy_of(model: keras.Model) -> keras.Model:
    """The same layers and weights in another model."""
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    return copy


def gradient_seconds(model, x, y, repeats: int) -> float:
    """Time of one compiled gradient of the cross-entropy on a batch, the median over fresh traces."""
    labels = y.astype("int32")

    def derive(z, labels):
        def value(images):
            logits = backend.evaluate(model, images)
            return losses.cross_entropy(logits, labels), logits

        return backend.gradient(value)(z)[2]

    on_device = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(labels)
    times = []
    for _ in range(3):  # a trace may be slow or fast
        compiled = backend.compiled(lambda z, labels: derive(z, labels), model)

        def once(compiled=compiled):
            keras.ops.convert_to_numpy(compiled(*on_device))

        once()
        times.append(seconds(once, repeats * 3))
    return median(times)


def strength(model, x, x_adv, y, norm: str) -> dict:
    """Accuracy left, mean cross-entropy, median change of what fell."""
    logits = models.predict_logits(model, x_adv)
    fell = logits.argmax(axis=1) != y
    change = keras.ops.convert_to_numpy(norms.get(norm).size(keras.ops.convert_to_tensor(x_adv - x)))
    loss = keras.ops.convert_to_numpy(losses.cross_entropy(logits, y))
    return {
        "accuracy_left": float(1 - fell.mean()),
        "mean_loss": float(loss.mean()),
        "fell": fell,
        "change": change,
    }


def measure_case(case: Case, model, x, y, gradients: dict[int, float], repeats: int) -> dict:
    """One row: ours and every peer on the same images."""
    x, y = x[: case.n], y[: case.n]
    if len(x) not in gradients:
        gradients[len(x)] = gradient_seconds(model, x, y, repeats)

    times = []
    for _ in range(case.traces):
        fresh = copy_of(model)  # for which nothing is compiled

        def ours(fresh=fresh):
            return case.attack.run(fresh, x, y, batch_size=min(BATCH, len(x)), progress=False)

        result = ours()
        times.append(seconds(ours, repeats))
    mine = {"seconds": median(times), **strength(model, x, result.x_adv, y, case.norm)}
    evaluations = float(np.sum(result.evaluations))
    row = {"name": case.name, "n": len(x), "kerasdef": mine, "evaluations": evaluations, "peers": {}}
    if case.attack.access == "white box":
        row["overhead"] = mine["seconds"] / (evaluations * gradients[len(x)] / len(x))
        row["overhead_to_reach"] = case.overhead
    for name, make in case.peers.items():
        if not peers.installed(name.lower()):
            continue
        theirs = make(model)
        theirs(x[: min(4, len(x))], y[: min(4, len(x))])  # what they compile for any batch
        start = time.perf_counter()
        found = theirs(x, y)
        first = time.perf_counter() - start
        taken = first if first > 20 else min(first, seconds(lambda f=theirs: f(x, y), repeats))
        row["peers"][name] = compare(mine, {"seconds": taken, **strength(model, x, found, y, case.norm)})
        row["peers"][name]["to_reach"] = case.reach.get(name)
    for side in (mine, *row["peers"].values()):
        side["success"] = float(np.mean(side.pop("fell")))
        side["median_change"] = _median(side.pop("change"))
    return row


def compare(mine: dict, theirs: dict) -> dict:
    """Ratio of the times, and of the median changes of what both broke."""
    both = mine["fell"] & theirs["fell"]
    medians = [_median(side["change"][both]) for side in (mine, theirs)]
    return theirs | {
        "times_as_fast": theirs["seconds"] / mine["seconds"],
        "both": int(both.sum()),
        "median_change_ratio": medians[0] / medians[1] if both.any() and medians[1] > 0 else math.nan,
    }


def _median(values) -> float:
    return float(np.median(values)) if len(values) else math.nan


def pgd_by_hand(mine: dict, model, x, y, eps: float, repeats: int) -> dict:
    """PGD-40 in PyTorch, where a Python with it is at hand, next to ours: a peer's entry by its name, or nothing."""
    if peers.torch_python() is None:
        return {}
    found = peers.torch_pgd(model, x, y, eps=eps, steps=STEPS, step_size=STEP_SIZE * eps, repeats=repeats)
    entry = strength(model, x, found["x_adv"], y, "linf")
    entry |= {
        "seconds": found["seconds"],
        "times_as_fast": found["seconds"] / mine["seconds"],
        "median_change_ratio": math.nan,
        "to_reach": 1.6,
        "success": float(np.mean(entry.pop("fell"))),
        "median_change": _median(entry.pop("change")),
    }
    return {"PyTorch by hand": entry}


# -- all of it -------------------------------------------------------------------------------------


def machine() -> dict:
    """Where this runs."""
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


def measure(quick: bool, only: list[str], path: Path | None) -> dict:
    """Everything, as one JSON value; what there is so far is written to `path` after every model."""
    began = time.perf_counter()
    found: dict = {"machine": machine(), "batch": BATCH, "models": [], "memory": []}

    def note(text: str) -> None:
        console.print(f"[{time.perf_counter() - began:5.0f} s] {text}")

    mnist = victims.load("digits" if quick else "mnist")
    plans = [  # kind, data, epochs, training images, eps, images attacked, rows left out
        ("plain", mnist, 2, 20_000, 0.3, BATCH, ()),
        ("robust", mnist, 4, 20_000, 0.2, BATCH, ("DeepFool", "HopSkipJump", "5 x 20")),
    ]
    if not quick:
        color = victims.load("cifar10")
        left_out = ("HopSkipJump", "Square", "AutoAttack", "5 x 20", "APGD-T", "C&W", "images")
        plans.append(("residual", color, 2, 10_000, 8 / 255, 128, left_out))
    repeats = 1 if quick else 2
    for kind, data, epochs, limit, eps, n, left_out in plans:
        model, facts = victims.victim(kind, data, epochs=8 if data.name == "digits" else epochs, limit=limit)
        note(f"model {kind} ready")
        x, y = victims.correct(model, data, n)
        gradients = {len(x): gradient_seconds(model, x, y, repeats)}
        rows = []
        for case in cases(eps, quick, few=4 if quick else 10):
            skipped = any(word in case.name for word in left_out)
            if skipped or (only and not any(word.lower() in case.name.lower() for word in only)):
                continue
            rows.append(measure_case(case, model, x, y, gradients, repeats))
            note(f"{kind}: {case.name}")
            if kind == "plain" and case.name.startswith(f"PGD-{STEPS}, all"):
                rows[-1]["peers"] |= pgd_by_hand(rows[-1]["kerasdef"], model, x, y, eps, repeats)
        found["models"].append(facts | {"eps": eps, "n": n, "gradient_seconds": gradients[n], "rows": rows})
        write(found, path)
    if not only:
        for n in (2_000, 10_000) if quick else (10_000, 60_000):
            found["memory"].append(memory.in_a_child(n, mnist.input_shape))
        note("memory measured")
    found["seconds_in_all"] = time.perf_counter() - began
    return found


def write(found: dict, path: Path | None) -> None:
    """Keep what was measured, where a file was asked for."""
    if path:
        path.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--quick", action="store_true", help="less of everything, on digits: a few minutes")
    parser.add_argument("--only", nargs="*", default=[], help="rows whose names hold one of these words")
    options = parser.parse_args()
    found = measure(options.quick, options.only, options.json)
    tables.show(found)
    write(found, options.json)


if __name__ == "__main__":
    main()
