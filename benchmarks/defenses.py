"""What defenses cost next to the same in other toolkits: ratios, not a test.

python benchmarks/defenses.py [--json FILE] [--quick] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import attacks as bench
import keras
import numpy as np
import peers
import tables
from keras import layers
from rich.console import Console
from rich.table import Table

from kerasdef import datasets
from kerasdef.defenses import HybridDefense, Smoothed
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.defenses.purifiers import DenoisingAutoencoder
from kerasdef.models import networks
from kerasdef.models.export import export

out = Console(width=120)

# -- certificates ----------------------------------------------------------------------------------

SIGMA, ALPHA, N0 = 0.25, 0.001, 100  # Cohen et al., 2019
ART_BATCH = 32  # the default of ART's `certify`
BAR = 5.0


def small(shape: tuple[int, ...], outputs: int = 10) -> keras.Model:
    """The MNIST network of Wong and Kolter, 2018 (two convolutions of stride 2, a dense layer of 100)."""
    convolution = {"kernel_size": 4, "strides": 2, "padding": "same", "activation": "relu"}
    return keras.Sequential(
        [
            keras.Input(shape),
            layers.Conv2D(16, **convolution),
            layers.Conv2D(32, **convolution),
            layers.Flatten(),
            layers.Dense(100, activation="relu"),
            layers.Dense(outputs),
        ]
    )


def mnist_images(n: int) -> tuple[np.ndarray, str]:
    """Test images of MNIST; random ones of its shape where it is missing, which take as long."""
    try:
        return datasets.load("mnist", download=False).x_test[:n], "MNIST"
    except datasets.DatasetNotFound:
        x = np.random.default_rng(0).uniform(size=(n, 28, 28, 1))
        return x.astype("float32"), "random images of MNIST's shape"


def art_certify(model: keras.Model, x: np.ndarray, n: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and radii by ART's TensorFlowV2RandomizedSmoothing."""
    from art.estimators.certification.randomized_smoothing import TensorFlowV2RandomizedSmoothing

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    shape = tuple(x.shape[1:])
    options = {"sample_size": N0, "scale": SIGMA, "alpha": ALPHA}
    theirs = TensorFlowV2RandomizedSmoothing(model, 10, shape, loss_object=loss, **options)
    return theirs.certify(x, n=n, batch_size=batch_size)


def certify(quick: bool) -> dict:
    """Images certified in a second by Smoothed and by ART: the same networks, images and numbers of draws."""
    n, count = (1_000, 2) if quick else (10_000, 4)
    x, kind = mnist_images(count)
    rows = []
    for name, make in {"small": small, "cnn11": networks.cnn11}.items():
        keras.utils.set_random_seed(0)
        model = make(x.shape[1:], 10)
        smoothed = Smoothed(model, SIGMA)
        smoothed.certify(x[:1], n=600, n0=N0, progress=False)  # traces
        start = time.perf_counter()
        found = smoothed.certify(x, n=n, n0=N0, alpha=ALPHA, progress=False)
        ours = (time.perf_counter() - start) / count
        row = {"network": name, "seconds": ours, "images_per_second": 1 / ours, "peers": {}}
        batches = (ART_BATCH, 512) if peers.installed("art") and peers.installed("statsmodels") else ()
        for batch_size in batches:
            art_certify(model, x[:1], 10 * batch_size, batch_size)
            start = time.perf_counter()
            label, radius = art_certify(model, x, n, batch_size)
            theirs = (time.perf_counter() - start) / count
            both = (label == found.label) & (label >= 0)
            row["peers"][f"ART, batches of {batch_size}"] = {
                "seconds": theirs,
                "times_as_fast": theirs / ours,
                "to_reach": BAR if batch_size == ART_BATCH else None,
                "same_label": float(np.mean(label == found.label)),
                "largest_difference": float(np.max(np.abs(radius - found.radius)[both], initial=0.0)),
            }
        rows.append(row)
    return {"images": kind, "n": n, "count": count, "rows": rows}


def show_certify(found: dict) -> None:
    """Print the table of certificates."""
    table = Table(title=f"certify, n = {found['n']:,}, {found['count']} {found['images']}", title_justify="left")
    for head in (
        "network",
        "seconds of an image",
        "peer",
        "its seconds",
        "times as fast",
        "same label",
        "radii differ by",
    ):
        table.add_column(head, justify="left" if head in ("network", "peer") else "right")
    for row in found["rows"]:
        first = [row["network"], f"{row['seconds']:.2f}"]
        for name, theirs in row["peers"].items():
            fast = theirs["times_as_fast"]
            cells = [name, f"{theirs['seconds']:.2f}", f"{fast:.2f} {tables.mark(fast, theirs['to_reach'])}".rstrip()]
            cells += [f"{theirs['same_label']:.0%}", f"{theirs['largest_difference']:.3f}"]
            table.add_row(*first, *cells)
            first = ["", ""]
        if not row["peers"]:
            table.add_row(*first, "ART, or statsmodels, which it needs, is not installed", "", "", "", "")
    out.print(table)


# -- serving ---------------------------------------------------------------------------------------

UNFLAGGED_BAR, SERVED_BAR = 1.3, 1.5  # times the ensemble, and times the sum of the parts, at most


def _timed(run: Callable, calls: int) -> float:
    """Median seconds of a call, after some that are not counted."""
    for _ in range(10):
        run()
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def _signature(model: keras.Model, folder: Path):
    """The model as plain TensorFlow serves it."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(export(model, folder)))
    function = loaded.signatures["serving_default"]
    function.keep = loaded
    return lambda x: function(images=x)


def serving(quick: bool) -> dict:
    """Time of a prediction: of the defense next to its ensemble alone, and next to the sum of its parts.

    All are exported SavedModels. An image that is not flagged meets detector and members, so the sum of its parts is
    that of three members and of what the detector adds to them. For one that is flagged the autoencoder alone and the
    smoothed ensemble alone come to it.
    """
    import tensorflow as tf

    calls, shape = (60, (28, 28, 1)) if quick else (300, (28, 28, 1))
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(400, *shape)).astype("float32")
    keras.utils.set_random_seed(0)
    members = [small(shape) for _ in range(3)]
    detector = LogitDeviation(rate=0.05).fit(members, x, rng.integers(0, 10, 400))
    purifier = DenoisingAutoencoder()
    purifier.build((None, *shape))
    rows = []
    defense = HybridDefense(members, detector=detector, purifier=purifier, sigma=0.1, draws=8)
    flagged = detector.flags(x)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        whole = _signature(defense, folder / "defense")
        ensemble = _signature(HybridDefense(members), folder / "ensemble")
        watched = _signature(HybridDefense(members, detector=detector), folder / "watched")
        alone = [_signature(HybridDefense([m]), folder / f"member{i}") for i, m in enumerate(members)]
        smoothed = _signature(HybridDefense(members, sigma=0.1, draws=8, repair="always"), folder / "smoothed")
        cleaned = keras.Sequential([keras.Input(shape), purifier])
        cleaned = tf.function(cleaned, input_signature=[tf.TensorSpec((None, *shape), tf.float32)])
        for kind, mask, size in (
            ("not flagged", ~flagged, 1),
            ("not flagged", ~flagged, 64),
            ("flagged", flagged, 1),
        ):
            some = tf.constant(np.resize(x[mask], (size, *shape)))

            def timed(function, some=some):
                return _timed(lambda: function(some), calls)

            took = {"defense": timed(whole), "ensemble": timed(ensemble)}
            parts = sum(map(timed, alone)) + max(0.0, timed(watched) - took["ensemble"])
            if kind == "flagged":
                parts += timed(cleaned) + timed(smoothed)
            took["parts"] = parts
            rows.append({"images": kind, "batch": size, "seconds": took})
    return {"shape": shape, "calls": calls, "rows": rows}


def show_serving(found: dict) -> None:
    """Print the table of predictions."""
    table = Table(title="a prediction of HybridDefense, as a SavedModel", title_justify="left")
    for head in ("images", "batch", "milliseconds", "times its ensemble", "times the sum of its parts"):
        table.add_column(head, justify="left" if head == "images" else "right")
    for row in found["rows"]:
        took = row["seconds"]
        ratios = [took["defense"] / took["ensemble"], took["defense"] / took["parts"]]
        bars = [UNFLAGGED_BAR if row["images"] == "not flagged" else None, SERVED_BAR]
        cells = [
            f"{r:.2f}" + ("" if b is None else f" (at most {b:g}: {'yes' if r <= b else 'NO'})")
            for r, b in zip(ratios, bars, strict=True)
        ]
        table.add_row(row["images"], str(row["batch"]), f"{1000 * took['defense']:.2f}", *cells)
    out.print(table)


# -- all of them -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """A part of the benchmark.

    Args:
        measure: Given whether to be quick, returns JSON values.
        show: Prints them.
    """

    measure: Callable[[bool], dict]
    show: Callable[[dict], None]


PARTS = {"certify": Part(certify, show_certify), "serving": Part(serving, show_serving)}


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="these parts only")
    options = parser.parse_args()
    found = {"machine": bench.machine()}
    facts = found["machine"]
    out.print(f"{facts['cpus']} CPUs ({facts['processor']}), device {facts['device']}, load {facts['load_before']:.1f}")
    for name in options.only:
        found[name] = PARTS[name].measure(options.quick)
        PARTS[name].show(found[name])
        if options.json:
            options.json.write_text(json.dumps(found, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
