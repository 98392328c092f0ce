"""What runs on GPUs only, XLA and loops inside one program, on a tiny net and the CPU: XLA compiles for that too."""

import keras
import numpy as np
import pytest
from helpers import broken, quiet, quiet_run, size

from kerasdef import backend
from kerasdef.attacks import APGD, FAB, FMN, MIM, PGD, AutoAttack, CarliniWagner, DeepFool, Square
from kerasdef.training import AdversarialTraining

if keras.backend.backend() != "tensorflow":
    pytest.skip("JAX always compiles with XLA", allow_module_level=True)

import tensorflow as tf

N = 20
CLOSE = 1e-4  # XLA sums in another order; smooth activations keep gradients away from 0


def tiny(seed=0):
    """A fresh net, whose programs nobody compiled before; sure of nothing, so attacks have work to do."""
    start = [keras.initializers.GlorotNormal(seed=seed + i) for i in range(2)]
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, activation="gelu", kernel_initializer=start[0]),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(5, kernel_initializer=start[1]),
        ]
    )


@pytest.fixture
def gpu(monkeypatch):
    """A switch: from then on TensorFlow is taken to compute on a GPU."""
    return lambda: monkeypatch.setattr(backend, "has_gpu", lambda: True)


@pytest.fixture(scope="module")
def samples():
    x = np.random.default_rng(0).random((N, 6, 6, 1), dtype="float32")
    return x, keras.ops.convert_to_numpy(tiny()(x)).argmax(axis=1)


def of_python(x):
    return tf.ensure_shape(tf.py_function(lambda z: 2 * z, [x], tf.float32), x.shape)


def test_programs_are_compiled_by_xla_on_gpus_only(gpu):
    """XLA refuses what calls Python; a graph runs it."""
    x, model = np.ones((2, 3), "float32"), tiny()
    np.testing.assert_array_equal(backend.compiled(of_python, model)(x), 2 * x)
    gpu()
    assert backend.jit() is True
    with pytest.raises(tf.errors.InvalidArgumentError, match="EagerPyFunc"):
        backend.compiled(of_python, model)(x)


def test_a_repeated_step_is_one_loop_in_one_program(gpu):
    traces = []

    def step(x, y, state):
        traces.append(1)
        return state + x * y

    x, y, start = np.full((4, 2), 3.0, "float32"), np.float32(2), np.zeros((4, 2), "float32")
    gpu()
    found = backend.repeated(step, tiny())(x, y, start, 50)
    np.testing.assert_array_equal(found, np.full((4, 2), 300))
    assert len(traces) < 5
    assert backend.sizes(256, 1000) == [256, 64]


ATTACKS = {
    "pgd": PGD(eps=0.1, steps=5),
    "deepfool": DeepFool(steps=5),
    "mim": MIM(eps=0.5, norm="l2", steps=5),
    "apgd": APGD(eps=0.1, steps=8),
    "fmn": FMN(norm="l2", steps=10),
    "fab": FAB(norm="l2", steps=5, targets=2),
}
DEFAULT = ("pgd",)  # XLA takes seconds to compile each


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in DEFAULT else pytest.mark.slow) for n in ATTACKS])
def test_gradient_attacks_give_the_images_that_a_graph_gives(gpu, samples, name):
    """A batch of 16 images, and one of 4 that is padded to a size that is compiled."""
    x, y = samples
    graph = quiet(ATTACKS[name], tiny(), x, y, batch_size=16)
    gpu()
    xla = quiet(ATTACKS[name], tiny(), x, y, batch_size=16)
    assert np.any(graph != x)
    np.testing.assert_allclose(xla, graph, atol=CLOSE)


def test_carlini_wagner_finds_what_a_graph_finds(gpu, samples):
    """Adam divides by the size of the first gradient, so that rounding grows: sizes are compared, to 5 %."""
    x, y = samples
    attack = CarliniWagner(steps=8, binary_search_steps=2, initial_c=10.0, learning_rate=0.1)
    graph = quiet_run(attack, tiny(), x, y)
    gpu()
    xla = quiet_run(attack, tiny(), x, y)
    assert graph.success.all()
    assert xla.success.all()
    np.testing.assert_allclose(size("l2", xla.x_adv - x), size("l2", graph.x_adv - x), rtol=0.05)


def test_a_query_attack_gives_the_images_that_a_graph_gives(gpu, samples):
    x, y = samples
    attack = Square(eps=0.1, queries=40)
    graph = quiet_run(attack, tiny(), x, y)
    gpu()
    xla = quiet_run(attack, tiny(), x, y)
    assert graph.success.any()
    np.testing.assert_array_equal(xla.success, graph.success)
    np.testing.assert_array_equal(xla.evaluations, graph.evaluations)
    np.testing.assert_allclose(xla.x_adv, graph.x_adv, atol=CLOSE)


@pytest.mark.slow
def test_autoattack_breaks_what_a_graph_breaks(gpu, samples):
    x, y = samples
    attack = AutoAttack(eps=0.04)
    graph = broken(tiny(), quiet(attack, tiny(), x, y), y)
    gpu()
    xla = broken(tiny(), quiet(attack, tiny(), x, y), y)
    assert 0 < graph.sum() < N
    np.testing.assert_array_equal(xla, graph)


@pytest.mark.slow
def test_adversarial_training_takes_the_steps_that_a_graph_takes(gpu, samples):
    def trained():
        model = tiny()
        trainer = AdversarialTraining(model, PGD(eps=0.1, steps=3))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.SGD(0.1), loss, jit_compile=backend.jit())
        keras.utils.set_random_seed(0)
        trainer.fit(*samples, batch_size=10, epochs=2, shuffle=False, verbose=0)
        return model.get_weights()

    graph = trained()
    gpu()
    for ours, theirs, start in zip(trained(), graph, tiny().get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=CLOSE)
        assert np.any(theirs != start)
