"""What tests of attacks share: linear models with closed forms, calls without a progress bar, ART's wrapper."""

import json
import multiprocessing
import re
import select
import subprocess
import sys

import keras
import numpy as np
from keras import ops

from kerasdef import models, norms
from kerasdef.testing import LinearOracle

WIDE = (-50.0, 50.0)  # no bound is active around inputs in [-1, 1]


def size(norm, delta):
    """Size of perturbations in a norm."""
    return ops.convert_to_numpy(norms.get(norm).size(ops.convert_to_tensor(np.asarray(delta, dtype="float32"))))


def quiet(attack, model, x, y, **options):
    """x_adv."""
    return attack(model, x, y, progress=False, **options)


def quiet_run(attack, model, x, y, **options):
    """The result of an attack, with what it cost."""
    return attack.run(model, x, y, progress=False, **options)


_MODELS = {}


class _Oracle(LinearOracle):
    """A linear oracle whose model is one object, also for tests that come later: nothing is compiled twice."""

    def model(self, input_shape=None):
        key = self.weights.shape, self.weights.tobytes(), self.bias.tobytes(), input_shape
        if key not in _MODELS:
            _MODELS[key] = super().model(input_shape)
        return _MODELS[key]


def linear(k, n=24, d=6, seed=0, clear=0.02):
    """A linear oracle, inputs that it gets right by at least `clear` in Linf, and their labels."""
    rng = np.random.default_rng(seed)
    oracle = _Oracle(rng.normal(size=(d, k)), 0.1 * rng.normal(size=k))
    x = rng.uniform(-1, 1, (n, d)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    keep = oracle.smallest_distance(x, y, "linf") >= clear
    return oracle, x[keep], y[keep]


def broken(model, x, y):
    """Which inputs the model gets wrong."""
    return models.predict_logits(model, x).argmax(axis=1) != y


def art_classifier(model, bounds=(0.0, 1.0)):
    """ART's wrapper of a model that gives logits for ten classes."""
    from art.estimators.classification import TensorFlowV2Classifier

    return TensorFlowV2Classifier(
        model=model,
        nb_classes=10,
        input_shape=model.input_shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=bounds,
    )


def at_once(count, write, folder):
    """Processes that call `write(folder, number, barrier)`, and the barrier, which also waits for the caller."""
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(count + 1)
    others = [context.Process(target=write, args=(folder, i, barrier)) for i in range(count)]
    for other in others:
        other.start()
    barrier.wait()
    return others


def without_address(value):
    """The name of a test's case: no addresses, which are others in every worker."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


# -- commands in processes of their own ------------------------------------------------------------

STARTER = """
import json, os, sys
import kerasdef.recipes.attack, kerasdef.recipes.robust.training  # imported once, as commands would
from kerasdef import cli
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        out = os.open(os.devnull, os.O_RDWR)
        os.dup2(out, 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.argv = ["kerasdef", *json.loads(line)]
        cli.main()
        sys.exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


class Commands:
    """`kerasdef WORDS` in processes of their own, without seconds of imports: forked where all is imported.

    The backend starts in each of them anew, as in any process.
    """

    def __init__(self):
        self._starter = subprocess.Popen(
            [sys.executable, "-c", STARTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def start(self, *words):
        """Start a command: its process number."""
        self._starter.stdin.write(json.dumps(list(map(str, words))) + "\n")
        return int(self._starter.stdout.readline())

    def ended(self, seconds=None):
        """Whether the command ends within some seconds."""
        return bool(select.select([self._starter.stdout], [], [], seconds)[0])

    def status(self):
        """Wait until the command ends: its exit status, below 0 where a signal ended it."""
        return int(self._starter.stdout.readline())

    def run(self, *words):
        """Run a command, which must end well."""
        self.start(*words)
        assert self.status() == 0, words

    def close(self):
        self._starter.stdin.close()
        self._starter.stdout.close()
        self._starter.wait()
