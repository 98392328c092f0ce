"""What a report takes and keeps: checked, as JSON values, and what it ran on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import math
import os
import platform
from collections.abc import Mapping

import numpy as np

from kerasdef import checks
from kerasdef._version import __version__
from kerasdef.evaluation.outcomes import POOLED, Outcome

_EXAMPLES = ("images", "attacks", "labels", "predicted")


def check_outcomes(outcomes: list[Outcome], classes: int, reject: int | None) -> None:
    """Raise unless these are outcomes of one evaluation, each given once, with labels in range."""
    if not outcomes:
        raise ValueError("`outcomes` must be a non-empty list of Outcome. Received: outcomes=[]")
    seen = set()
    for o in outcomes:
        if not isinstance(o, Outcome):
            raise ValueError(f"`outcomes` must be a non-empty list of Outcome. Received: an item of {type(o).__name__}")
        if key(o) in seen:
            raise ValueError(f"`outcomes` must hold each model, column and attack once. Received: {key(o)!r} twice")
        if o.attack == POOLED:
            raise ValueError(f"`attack` must be another name, {POOLED!r} is the sum. Received: attack={o.attack!r}")
        seen.add(key(o))
        checks.labels("y", o.y, classes=classes)
        checks.labels("predicted", o.predicted, classes=classes + (reject is not None), least=checks.NOBODY)


def check_examples(examples: Mapping | None) -> dict:
    """The example images as float32 arrays of one shape; empty if there are none."""
    if not examples:
        return {}
    if set(examples) != set(_EXAMPLES):
        raise ValueError(f"`examples` must have {', '.join(_EXAMPLES)}. Received: {', '.join(map(str, examples))}")
    images = np.asarray(examples["images"], dtype="float32")
    attacks = {str(k): np.asarray(v, dtype="float32") for k, v in examples["attacks"].items()}
    for name, x in attacks.items():
        if x.shape != images.shape:
            raise ValueError(f"`examples` must be of shape {images.shape}. Received: {name} of shape {x.shape}")
    labels = checks.labels("examples", examples["labels"], n=len(images))
    predicted = {
        str(k): checks.labels("examples", v, n=len(images), least=checks.NOBODY)
        for k, v in examples["predicted"].items()
    }
    return {"images": images, "attacks": attacks, "labels": labels, "predicted": predicted}


def key(o: Outcome) -> str:
    """Name of an outcome in records."""
    return f"{o.column}: {o.model}: {o.attack}"


def digest(o: Outcome) -> str:
    """Checksum of the labels of an outcome, image by image."""
    joined = np.stack([o.index, o.y, o.predicted]).astype("<i8")
    return hashlib.sha256(joined.tobytes()).hexdigest()[:16]


def plain(value, name: str):
    """`value` as JSON values: no numpy, no tuples, None for NaN and infinity."""
    if hasattr(value, "__dataclass_fields__"):
        value = {"name": type(value).__name__} | {f: getattr(value, f) for f in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(k): plain(v, name) for k, v in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(v, name) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(f"`{name}` must hold numbers, strings, lists and dicts. Received: {type(value).__name__}")


def rounded(value):
    """`value` with 6 significant digits in its floats."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def versions() -> dict[str, str]:
    """Versions of what is installed, without importing it."""
    found = {"kerasdef": __version__, "python": platform.python_version()}
    for name in ("keras", "tensorflow", "jax", "numpy", "scipy", "scikit-learn"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def machine() -> dict:
    """The machine in words."""
    return {"system": f"{platform.system()} {platform.machine()}", "cpus": os.cpu_count()}
