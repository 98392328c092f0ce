"""The same attacks in ART, foolbox and PyTorch, ready to be timed: each returns x_adv for arrays."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kerasdef import models

Runner = Callable[[np.ndarray, np.ndarray], np.ndarray]


def installed(name: str) -> bool:
    """Whether a peer can be imported."""
    return importlib.util.find_spec(name) is not None


def in_art(model):
    """The model as ART's classifier."""
    from kerasdef.attacks import as_art

    return as_art(model)


def art(name: str, model, **settings) -> Runner:
    """An evasion attack of ART by the name of its class."""
    import art.attacks.evasion as evasion

    attack = getattr(evasion, name)(in_art(model), **settings)
    return lambda x, y: attack.generate(x, y)


def foolbox(name: str, model, *, eps: float | None = None, batch_size: int = 256, **settings) -> Runner:
    """An attack of foolbox by the name of its class."""
    import foolbox
    import tensorflow as tf

    view = models.logits_view(model)
    wrapped = foolbox.TensorFlowModel(lambda z: view(z, training=False), bounds=(0, 1))
    attack = getattr(foolbox.attacks, name)(**settings)

    def run(x, y):
        parts = []
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            found = attack(wrapped, tf.constant(x[part]), tf.constant(y[part]), epsilons=eps)
            parts.append(found[1].numpy())
        return np.concatenate(parts)

    return run


def torch_python() -> str | None:
    """A Python that has PyTorch: `KERASDEF_TORCH_PYTHON`, or this one."""
    python = os.environ.get("KERASDEF_TORCH_PYTHON", sys.executable)
    if shutil.which(python) is None:
        return None
    done = subprocess.run([python, "-c", "import torch, numpy"], capture_output=True, check=False)
    return python if done.returncode == 0 else None


def torch_pgd(model: keras.Model, x, y, *, eps: float, steps: int, step_size: float, repeats: int) -> dict:
    """PGD written by hand in PyTorch, in a process of its own: seconds and x_adv.

    The model must be `cnn11`: two convolutions with pooling, two dense layers.
    """
    kernels = [w for w in model.get_weights() if w.ndim in (1, 2, 4)]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(given, *kernels, x=x, y=y)
        script = str(Path(__file__).with_name("pgd_torch.py"))
        numbers = [str(v) for v in (eps, steps, step_size, repeats)]
        subprocess.run([torch_python(), script, str(given), str(found), *numbers], check=True)
        with np.load(found) as arrays:
            return {"seconds": float(arrays["seconds"]), "x_adv": arrays["x_adv"]}
