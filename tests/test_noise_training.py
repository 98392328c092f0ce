"""Training for smoothing: what a step minimizes, worked out by hand, and what it gains under noise."""

import keras
import numpy as np
import pytest
from keras import ops

import kerasdef
from kerasdef import backend
from kerasdef import random as draws
from kerasdef.attacks import FGSM, PGD, DeepFool
from kerasdef.defenses import Smoothed
from kerasdef.evaluation import certified_accuracy
from kerasdef.training import NoiseTraining, Radius

RNG = np.random.default_rng(0)
X, Y = RNG.uniform(0.3, 0.7, size=(5, 4)).astype("float32"), np.array([0, 1, 2, 0, 1])
W = RNG.normal(size=(4, 3)).astype("float32")
L2 = {"norm": "l2", "random_start": False}


def linear(weights=W):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(weights.shape[1], use_bias=False)])
    model.layers[0].kernel.assign(weights)
    return model


def compiled(trainer, rate=1.0):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return trainer


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def the_noise(trainer, n, sigma, copies):
    """The noise of the next batch, of shape (n, copies, 4), from the state of the trainer's generator."""
    state = keras.random.SeedGenerator(0)
    state.state.assign(trainer.draws.state)
    seeds = keras.random.randint((n,), 0, 2**31 - 1, dtype="int32", seed=state)
    own = [draws.normal(draws.fold(ops.cast(seeds, "uint32"), 2 + i), (4,)) for i in range(copies)]
    return sigma * np.stack([ops.convert_to_numpy(v) for v in own], axis=1)


def test_a_step_on_noisy_images_is_that_of_their_cross_entropy():
    model = linear()
    trainer = compiled(NoiseTraining(model, 0.3, copies=2))
    many = (X[:, None] + the_noise(trainer, 5, 0.3, 2)).reshape(-1, 4)
    labels = np.repeat(Y, 2)
    p = softmax(many @ W)
    wanted = W - many.T @ (p - np.eye(3)[labels]) / len(many)
    found = trainer.fit(X, Y, batch_size=5, epochs=1, verbose=0, shuffle=False).history
    np.testing.assert_allclose(model.layers[0].kernel, wanted, atol=1e-5)  # float32
    assert found["loss"][0] == pytest.approx(-np.mean(np.log(p[np.arange(10), labels])), abs=1e-5)
    assert found["noisy_accuracy"][0] == pytest.approx(np.mean(p.argmax(axis=1) == labels))
    assert found["accuracy"][0] == pytest.approx(np.mean((X @ W).argmax(axis=1) == Y))


def test_the_attack_climbs_the_mean_probability_under_the_noise_that_is_trained_on():
    eps, sigma, copies = 0.2, 0.3, 4
    attack = PGD(eps=eps, steps=1, relative_step=1.0, bounds=(-9.0, 9.0), **L2)
    trainer = compiled(NoiseTraining(linear(), sigma, attack=attack, copies=copies))
    noise = the_noise(trainer, 5, sigma, copies)
    p = softmax((X[:, None] + noise) @ W)  # (5, 4, 3)
    true = p[np.arange(5), :, Y]
    # d/dx of -log mean_i p_i[y]: minus the mean of p_i[y] * (w_y - sum_k p_i[k] w_k) over the mean of p_i[y]
    inner = W.T[Y][:, None] - p @ W.T
    grad = -(true[..., None] * inner).mean(axis=1) / true.mean(axis=1, keepdims=True)
    moved = X + eps * grad / np.linalg.norm(grad, axis=1, keepdims=True)
    found = ops.convert_to_numpy(trainer.noisy_copies(ops.convert_to_tensor(X), ops.convert_to_tensor(Y)))
    np.testing.assert_allclose(found.reshape(5, copies, 4), moved[:, None] + noise, atol=1e-5)


def test_a_radius_takes_the_place_of_the_eps_of_the_attack():
    attack = PGD(eps=0.5, steps=2, **L2)
    trainer = compiled(NoiseTraining(linear(), 0.1, attack=attack, radius=Radius.ramp(0.5, 4)), rate=0.0)
    sizes = []
    for _ in range(5):
        noise = the_noise(trainer, 5, 0.1, 1)[:, 0]
        state = ops.convert_to_numpy(trainer.draws.state)
        copies = trainer.noisy_copies(ops.convert_to_tensor(X), ops.convert_to_tensor(Y))
        trainer.draws.state.assign(state)
        sizes.append(np.linalg.norm(ops.convert_to_numpy(copies) - noise - X, axis=1).max())
        trainer.fit(X, Y, batch_size=5, epochs=1, verbose=0)
    assert sizes[0] < 1e-6
    assert all(size <= radius + 1e-5 for size, radius in zip(sizes, (0.0, 0.125, 0.25, 0.375, 0.5), strict=True))
    assert sizes[4] > 0.25


def test_evaluation_is_on_clean_images_and_a_fit_is_the_same_again():
    weights, history = [], []
    for _ in range(2):
        model = linear()
        trainer = compiled(NoiseTraining(model, 0.3, attack=PGD(eps=0.1, steps=1, norm="l2"), seed=3))
        found = trainer.fit(X, Y, batch_size=5, epochs=2, verbose=0, validation_data=(X, Y), shuffle=False).history
        weights.append(ops.convert_to_numpy(model.layers[0].kernel))
        history.append(found)
        assert "val_noisy_accuracy" not in found
        logits = X @ weights[-1]
        assert found["val_loss"][-1] == pytest.approx(-np.mean(np.log(softmax(logits)[np.arange(5), Y])), abs=1e-5)
    np.testing.assert_array_equal(*weights)
    assert history[0] == history[1]


def test_a_trainer_is_loaded_with_its_settings_and_its_noise(tmp_path):
    trainer = compiled(NoiseTraining(linear(), 0.3, attack=PGD(eps=0.1, steps=1, norm="l2"), copies=2))
    trainer.fit(X, Y, batch_size=5, epochs=1, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    other = keras.saving.load_model(tmp_path / "trainer.keras")
    assert (other.sigma, other.copies, other.attack) == (trainer.sigma, trainer.copies, trainer.attack)
    for one in (trainer, other):
        one.fit(X, Y, batch_size=5, epochs=1, verbose=0, shuffle=False)
    np.testing.assert_allclose(other.model.layers[0].kernel, trainer.model.layers[0].kernel, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigma": 0.0}, "`sigma` must be a finite number above 0"),
        ({"sigma": -1.0}, "`sigma` must be a finite number above 0"),
        ({"copies": 0}, "`copies` must be a positive integer"),
        ({"attack": DeepFool()}, "`attack` must look for the strongest image"),
        ({"radius": Radius.ramp(0.1, 2)}, "`radius` is for attacks"),
        ({"attack": FGSM(), "model": keras.Sequential([keras.Input((4,)), keras.layers.Rescaling(1 / 255),
          keras.layers.Dense(3)])}, "`attack` must have the bounds"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        NoiseTraining(**{"model": linear(), "sigma": 0.1} | changes)


@pytest.mark.slow
def test_training_under_noise_gains_certified_accuracy(digits):
    x, y, x_test, y_test = digits
    found = {}
    for sigma in (0.01, 0.5):
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Flatten(), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        trainer = NoiseTraining(model, sigma)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        trainer.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=backend.jit())
        trainer.fit(x, y, batch_size=50, epochs=12, verbose=0)
        certificates = Smoothed(model, 0.5).certify(x_test[:100], n=300, progress=False)
        table = certified_accuracy(certificates.label == y_test[:100], certificates.radius, [0.0, 0.5])
        found[sigma] = table["certified_accuracy"].to_numpy()
    assert np.all(found[0.5] > found[0.01] + 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gaussian", "smoothadv"])
def test_the_methods_train_from_the_command_of_each(digits, method):
    x, y, x_test, y_test = digits
    settings = {"epochs": 8, "eps": 0.1, "n_test": 16, "autoattack": False, "progress": False, "network": "target_dnn"}
    result = getattr(kerasdef, f"train_{method}")((x[:600], y[:600], x_test, y_test), sigma=0.3, **settings)
    found = Smoothed(result.model, 0.3).predict(x_test[:100], progress=False)
    assert np.mean(found.label == y_test[:100]) > 0.5
    each = {"gaussian": 1, "smoothadv": 2 * (2 + 1)}[method]
    assert result.cost["gradients"] % each == 0
