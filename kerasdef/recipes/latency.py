"""What a prediction of a defense costs, beside its ensemble and the sum of its parts."""

from __future__ import annotations

import time
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kerasdef import backend, models
from kerasdef.defenses import HybridDefense
from kerasdef.reporting import Section

BATCHES = (1, 256)
_CALLS = {1: 50, 256: 10}  # measured calls; the median of them counts


def seconds(function: Callable, model: keras.Model, x: np.ndarray, calls: int) -> float:
    """Median seconds of a call of a compiled function, from an array to arrays."""
    program = backend.compiled(function, model)

    def once() -> float:
        start = time.perf_counter()
        found = program(ops.convert_to_tensor(x))
        keras.tree.map_structure(ops.convert_to_numpy, found)
        return time.perf_counter() - start

    once()  # compiles
    return float(np.median([once() for _ in range(calls)]))


def latency(defense: HybridDefense, x: np.ndarray) -> Section:
    """Milliseconds of a prediction of images that are not flagged and that are, compiled, on this machine.

    Args:
        defense: The defense.
        x: Images of shape (n, ...), such as clean and attacked ones.
    """
    flags = np.zeros(len(x), bool) if defense.detector is None else defense.detector.flags(x)
    groups = {"not flagged": x[~flags], "flagged": x[flags]}
    plain = models.stack_logits(defense.members)
    rows = []
    for batch in BATCHES:
        for what, found in groups.items():
            if not len(found):
                continue
            images = np.resize(found, (batch, *found.shape[1:]))
            calls = _CALLS[batch]
            parts = {"members one by one": sum(seconds(_call(m), m, images, calls) for m in defense.members)}
            if defense.detector is not None:
                logits = models.predict_logits(plain, images)
                watched = defense.surface()[0]
                parts["detector"] = seconds(
                    lambda z, logits=logits: defense.detector(z, logits), watched, images, calls
                )
            if defense.purifier is not None and what == "flagged":
                parts["purifier"] = seconds(lambda z: defense.purifier(z), defense.surface()[0], images, calls)
            whole = seconds(_call(defense), defense, images, calls)
            ensemble = seconds(_call(plain), plain, images, calls)
            total = sum(parts.values())
            rows.append(
                {
                    "batch": batch,
                    "images": what,
                    "defense, ms an image": _ms(whole, batch),
                    "ensemble": _ms(ensemble, batch),
                    "sum of parts": _ms(total, batch),
                    "of ensemble": f"{whole / ensemble:.2f}",
                    "of parts": f"{whole / total:.2f}",
                }
            )
    text = (
        f"Median of {_CALLS[1]} calls of one image and of {_CALLS[256]} calls of 256, compiled, on {backend.device()}. "
        "The parts are each member and the detector alone, and the purifier where an image is flagged, which is then "
        "answered by every member again."
    )
    return Section("latency", "Cost of a prediction", text, rows, timing=True)


def _call(model: keras.Model) -> Callable:
    return lambda x: model(x, training=False)


def _ms(value: float, batch: int) -> str:
    return f"{1000 * value / batch:.3g}"
