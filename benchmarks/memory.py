"""Memory that FGSM needs beyond the arrays: python benchmarks/memory.py N SIDE SIDE CHANNELS."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from kerasdef import models
from kerasdef.attacks import FGSM
from kerasdef.models import networks


def peak() -> int:
    """Peak resident memory of this process in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def forget_peak() -> None:
    """Let the peak begin at what is in use now; elsewhere than on Linux it keeps what came before."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def measure(n: int, shape: tuple[int, ...]) -> None:
    """Attack n images and print the growth of the peak less the size of the answer, in bytes."""
    batch = 256
    model = networks.cnn11(shape)
    rng = np.random.default_rng(0)
    x = rng.random((n, *shape), dtype="float32")
    y = models.predict_logits(model, x).argmax(axis=1)
    attack = FGSM(eps=0.3)
    attack(model, x[: 4 * batch], y[: 4 * batch], batch_size=batch, progress=False)
    forget_peak()
    before = peak()
    out = attack(model, x, y, batch_size=batch, progress=False)
    print(json.dumps({"n": n, "constant_bytes": peak() - before - out.nbytes, "array_bytes": out.nbytes}))


def in_a_child(n: int, shape: tuple[int, ...]) -> dict:
    """Run this file in a process of its own: peaks only ever rise."""
    command = [sys.executable, __file__, str(n), *map(str, shape)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(answer.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    number, *sides = (int(word) for word in sys.argv[1:])
    measure(number, tuple(sides))
