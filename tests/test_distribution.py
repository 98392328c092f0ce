"""Adversarial training under `tf.distribute.MirroredStrategy`, on two logical CPUs in a process of its own."""

import json
import subprocess
import sys

import pytest

from kerasdef import backend

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(backend.NAME != "tensorflow", reason="tf.distribute is TensorFlow's"),
]

SCRIPT = """
import contextlib, json, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)  # before anything runs
import keras
from keras import layers
from kerasdef.attacks import PGD
from kerasdef.training import AdversarialTraining, Bilateral, Distillation, Madry, Mart, Pairing, Radius, Trades

rng = np.random.default_rng(0)
y = rng.integers(0, 4, 64)
x = np.clip(0.5 + 0.2 * np.eye(4)[y].repeat(2, axis=1) + rng.normal(0, 0.05, (64, 8)), 0, 1).astype("float32")
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def trained(scope, attack, objective, epochs, l2=0.0, **options):
    with scope:
        glorot = [keras.initializers.GlorotUniform(seed=i) for i in range(2)]
        options_of_layer = {"kernel_initializer": glorot[0], "kernel_regularizer": keras.regularizers.L2(l2)}
        stack = [keras.Input((8,)), layers.Dense(16, activation="relu", **options_of_layer)]
        model = keras.Sequential([*stack, layers.Dense(4, kernel_initializer=glorot[1])])
        if objective is None:
            teacher = keras.Sequential([keras.Input((8,)), layers.Dense(4, kernel_initializer=glorot[1])])
            trainer = Distillation(model, 3.0, teacher)
        else:
            trainer = AdversarialTraining(model, attack, objective, seed=3, **options)
            if attack.eps == 0:  # the same images however many replicas draw random starts
                trainer.perturb = lambda x, y: x + 0.1 * np.cos(np.arange(8)).astype("float32")
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.5), loss, metrics=["accuracy"])
    history = trainer.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0).history
    return trainer, [w.tolist() for w in model.get_weights()], history


found = {"replicas": strategy.num_replicas_in_sync, "pairs": {}}
objectives = {"madry": Madry(), "trades": Trades(2.0), "mart": Mart(3.0), "pairing": Pairing(0.5)}
objectives |= {"bilateral": Bilateral(), "distillation": None}
for name, objective in objectives.items():
    scopes = strategy.scope(), contextlib.nullcontext()
    found["pairs"][name] = [trained(s, PGD(eps=0.0, steps=2), objective, 1, l2=0.1)[1] for s in scopes]

attack = PGD(eps=0.05, steps=1, relative_step=0.1)  # a short step: where an image ends tells where it started
trainer, weights, history = trained(strategy.scope(), attack, Madry(), 60, radius=Radius.ramp(0.05, 4))
found["loss"], found["accuracy"] = history["loss"], history["accuracy"]
found["batches"] = int(trainer.batches.numpy())


@tf.function
def starts():
    still = tf.constant(np.full((4, 8), 0.5, "float32")), tf.constant(np.zeros(4, "int32"))
    return strategy.run(lambda: trainer.perturb(*still))


found["starts"] = [v.numpy().tolist() for v in strategy.experimental_local_results(starts())]
found["again"] = [v.numpy().tolist() for v in strategy.experimental_local_results(starts())]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize("objective", ["madry", "trades", "mart", "pairing", "bilateral", "distillation"])
def test_two_replicas_take_the_steps_of_one_on_the_same_adversarial_images(found, objective):
    assert found["replicas"] == 2
    for a, b in zip(*found["pairs"][objective], strict=True):
        assert a == [pytest.approx(v, abs=1e-5) for v in b]  # float32, sums in another order


def test_adversarial_training_on_two_replicas_learns(found):
    assert found["loss"][-1] < 0.7 * found["loss"][0]
    assert found["accuracy"][-1] > 0.8


def test_batches_are_counted_once_however_many_replicas_share_them(found):
    assert found["batches"] == 60 * 64 // 16


def test_replicas_draw_random_starts_of_their_own(found):
    first, second = found["starts"]
    assert first != second
    assert found["again"] != found["starts"]
