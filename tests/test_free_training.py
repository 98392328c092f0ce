"""Free adversarial training: two steps by hand, the perturbation stays where it belongs, Keras works as usual."""

import keras
import numpy as np
import pytest
from keras import layers

from kerasdef import backend
from kerasdef.attacks import PGD
from kerasdef.training.free import FreeTraining

EPS = 0.1


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def dense(k=4, d=6, seed=0, norm=False):
    rng = np.random.default_rng(seed)
    model = keras.Sequential([keras.Input((d,)), *([layers.BatchNormalization()] if norm else []), layers.Dense(k)])
    model.layers[-1].set_weights([rng.normal(size=(d, k)).astype("float32"), rng.normal(size=k).astype("float32")])
    return model


def data(n=32, d=6, k=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.0, 1.0, (n, d)).astype("float32"), rng.integers(0, k, n)


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


def trainer_of(model, optimizer=None, **options):
    options = {"eps": EPS, "batch_size": 32} | options
    trainer = FreeTraining(model, **options)
    trainer.compile(keras.optimizers.SGD(0.5) if optimizer is None else optimizer, loss(), metrics=["accuracy"])
    return trainer


# -- closed form -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step_size", [None, 0.07])
def test_the_steps_are_those_worked_out_by_hand(step_size):
    model, (x, y) = dense(), data()
    w, b = (v.astype("float64") for v in model.layers[-1].get_weights())
    one_hot, delta, rate = np.eye(4)[y], np.zeros(x.shape), 0.5
    trainer = trainer_of(model, keras.optimizers.SGD(rate), step_size=step_size)
    for _ in range(4):
        x_adv = np.clip(x + delta, 0, 1)
        error = softmax(x_adv @ w + b) - one_hot
        delta = np.clip(delta + (step_size or EPS) * np.sign(error @ w.T), -EPS, EPS)
        w, b = w - rate * x_adv.T @ error / len(x), b - rate * error.mean(axis=0)
        trainer.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
        np.testing.assert_allclose(np.array(trainer.delta), delta, atol=1e-6)
        for found, value in zip(model.layers[-1].get_weights(), (w, b), strict=True):
            np.testing.assert_allclose(found, value, atol=1e-5)  # float32


def test_the_first_step_is_one_of_plain_training():
    model, plain, (x, y) = dense(), dense(), data()
    trainer_of(model).fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    plain.compile(keras.optimizers.SGD(0.5), loss(), jit_compile=backend.jit())
    plain.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    for a, b in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# -- the perturbation ------------------------------------------------------------------------------


def test_the_perturbation_stays_in_the_ball_and_the_images_in_their_bounds():
    model, (x, y) = dense(), data()
    trainer = trainer_of(model, step_size=0.07)
    for _ in range(5):
        trainer.fit(x, y, batch_size=32, epochs=1, verbose=0)
        x_adv = keras.ops.convert_to_numpy(trainer.perturb(x))
        assert np.abs(np.array(trainer.delta)).max() <= np.float32(EPS)
        assert np.abs(x_adv - x).max() <= EPS + 1e-6
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
    assert np.abs(np.array(trainer.delta)).max() > 0.5 * EPS


def test_images_with_the_perturbation_are_harder_than_clean_ones_and_than_random_ones():
    model, (x, y) = dense(), data()
    trainer = trainer_of(model, keras.optimizers.SGD(0.01))
    trainer.fit(x, y, batch_size=32, epochs=5, shuffle=False, verbose=0)  # one batch, five times
    signs = EPS * np.sign(np.random.default_rng(0).normal(size=x.shape))
    values = {
        name: float(loss()(y, model(z)))
        for name, z in {"clean": x, "random": np.clip(x + signs, 0, 1), "perturbed": trainer.perturb(x)}.items()
    }
    assert values["perturbed"] > values["clean"] + 0.1
    assert values["perturbed"] > values["random"] + 0.1


def test_a_smaller_batch_leaves_the_other_places_alone():
    model, (x, y) = dense(), data(40)
    trainer = trainer_of(model)
    trainer.fit(x[:32], y[:32], batch_size=32, epochs=1, shuffle=False, verbose=0)
    first = np.array(trainer.delta)
    trainer.fit(x[32:], y[32:], batch_size=32, epochs=1, shuffle=False, verbose=0)
    second = np.array(trainer.delta)
    np.testing.assert_array_equal(second[8:], first[8:])
    assert np.abs(second[:8] - first[:8]).max() > EPS / 2
    trainer.fit(x, y, batch_size=32, epochs=2, verbose=0)  # batches of 32 and of 8
    with pytest.raises(ValueError, match="A batch must have at most 32 samples"):
        trainer.perturb(x)


def test_samples_of_weight_zero_move_nothing():
    model, (x, y) = dense(), data()
    weight = np.ones(32, "float32")
    weight[:10] = 0
    trainer = trainer_of(model)
    trainer.fit(x, y, sample_weight=weight, batch_size=32, epochs=1, shuffle=False, verbose=0)
    moved = np.abs(np.array(trainer.delta)).max(axis=1) > 0
    np.testing.assert_array_equal(moved, weight > 0)


def test_free_training_makes_a_model_more_robust(digits):
    x, y, x_test, y_test = digits
    order = np.concatenate([np.tile(rows, 4) for rows in np.array_split(np.arange(1400), 28)])  # each batch four times
    robust = {}
    for name in ("plain", "free"):
        keras.utils.set_random_seed(0)
        stack = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
        model = keras.Sequential(stack)
        trained = model if name == "plain" else FreeTraining(model, 0.15, batch_size=50)
        trained.compile(keras.optimizers.Adam(3e-3), loss(), jit_compile=backend.jit())
        trained.fit(x[order], y[order], batch_size=50, epochs=2, shuffle=False, verbose=0)
        robust[name] = 1 - PGD(eps=0.15, steps=20).run(model, x_test, y_test, progress=False).success.mean()
    assert robust["free"] > robust["plain"] + 0.2


# -- a normal Keras citizen ------------------------------------------------------------------------


def test_the_perturbation_belongs_to_the_trainer_alone():
    model = dense()
    trainer = trainer_of(model)
    assert trainer.delta.shape == (32, 6)
    assert len(model.weights) == 2
    assert len(trainer.trainable_weights) == 3


def test_evaluate_and_predict_are_those_of_the_model_on_clean_images():
    model, (x, y) = dense(), data()
    trainer = trainer_of(model)
    trainer.fit(x, y, batch_size=32, epochs=3, verbose=0)
    model.compile("sgd", loss(), metrics=["accuracy"])
    np.testing.assert_allclose(trainer.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-5)
    np.testing.assert_allclose(trainer.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


def test_eager_steps_are_those_of_a_compiled_function():
    found, (x, y) = [], data()
    for eagerly in (False, True):
        trainer = FreeTraining(dense(), EPS, batch_size=32)
        trainer.compile(keras.optimizers.SGD(0.5), loss(), run_eagerly=eagerly)
        trainer.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
        found.append(np.array(trainer.delta))
    np.testing.assert_allclose(*found, atol=1e-6)


def test_batch_normalization_sees_the_perturbed_images_in_training_mode():
    model, (x, y) = dense(norm=True), data()
    trainer = trainer_of(model, keras.optimizers.SGD(0.0))
    means = np.zeros(6)
    for _ in range(2):
        means = 0.99 * means + 0.01 * keras.ops.convert_to_numpy(trainer.perturb(x)).mean(axis=0)
        trainer.fit(x, y, batch_size=32, epochs=1, shuffle=False, verbose=0)
    np.testing.assert_allclose(np.array(model.layers[0].moving_mean), means, rtol=1e-4)


def test_optimizers_with_memory_decay_and_clipping_leave_the_perturbation_alone():
    x, y = data()
    for optimizer in (
        keras.optimizers.AdamW(1e-3, weight_decay=0.1),
        keras.optimizers.SGD(1e-3, momentum=0.9, nesterov=True),
        keras.optimizers.SGD(1e-3, global_clipnorm=1e-3),
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(1e-3)),
    ):
        trainer = trainer_of(dense(), optimizer)
        trainer.fit(x, y, batch_size=32, epochs=4, shuffle=False, verbose=0)
        np.testing.assert_allclose(np.abs(np.array(trainer.delta)), EPS, rtol=1e-6)  # whole steps to its faces


def test_a_model_of_half_precision_is_trained():
    x, y = data()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        trainer = trainer_of(dense())
        trainer.fit(x, y, batch_size=32, epochs=2, verbose=0)
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_allclose(np.abs(np.array(trainer.delta)).max(), EPS, rtol=1e-6)


def test_bad_arguments_are_refused():
    for settings in ({"eps": -1}, {"batch_size": 0}, {"step_size": 0.0}, {"bounds": (1, 0)}, {"eps": (0.1, 0.2)}):
        with pytest.raises(ValueError, match="Received"):
            trainer_of(dense(), **settings)
    with pytest.raises(ValueError, match="must be built"):
        FreeTraining(keras.Sequential([layers.Dense(3)]), EPS, batch_size=8)
    sized = keras.Sequential([keras.Input((None, 3)), layers.GlobalAveragePooling1D(), layers.Dense(2)])
    with pytest.raises(ValueError, match="inputs of a fixed size"):
        FreeTraining(sized, EPS, batch_size=8)
    for setting in ({"gradient_accumulation_steps": 2}, {"use_ema": True}):
        with pytest.raises(ValueError, match=f"must not have `{next(iter(setting))}`"):
            trainer_of(dense(), keras.optimizers.SGD(0.1, **setting))
