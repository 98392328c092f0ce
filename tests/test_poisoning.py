"""Poisoning: the gradient through the training is right, and crafted points hurt more than random ones."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

from kerasdef import backend, models
from kerasdef.poisoning.gma import GMAPoisoning, PoisonResult, poisoning_effect, random_points
from kerasdef.testing import linear_model


def softmax_training(weights, bias, x, y, batches, targets, rate, part):
    """Loss of the targets after gradient descent on a softmax regression, written out in float64."""

    def logs(w, b, x):
        z = x @ w + b
        return z - np.log(np.exp(z).sum(axis=1, keepdims=True))

    def gradients(w, b, x, y):
        error = np.exp(logs(w, b, x)) - np.eye(w.shape[1])[y]
        return x.T @ error / len(x), error.mean(axis=0)

    for x_batch, y_batch in batches:
        own, rest = gradients(weights, bias, x, y), gradients(weights, bias, x_batch, y_batch)
        weights = weights - rate * (part * own[0] + (1 - part) * rest[0])
        bias = bias - rate * (part * own[1] + (1 - part) * rest[1])
    return -logs(weights, bias, targets[0])[np.arange(len(targets[0])), targets[1]].mean()


@pytest.mark.parametrize("steps", [1, 4])
def test_the_gradient_through_the_training_equals_finite_differences(steps):
    rng = np.random.default_rng(0)
    weights, bias = rng.normal(size=(5, 3)), rng.normal(size=3)
    x, y = rng.uniform(0, 1, (4, 5)), rng.integers(0, 3, 4)
    batches = [(rng.uniform(0, 1, (6, 5)), rng.integers(0, 3, 6)) for _ in range(steps)]
    targets = rng.uniform(0, 1, (7, 5)), rng.integers(0, 3, 7)
    rate, part = 0.8, 0.4

    def loss(x):
        return softmax_training(weights, bias, x, y, batches, targets, rate, part)

    wanted = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        nudge = np.zeros_like(x)
        nudge[i] = 1e-5
        wanted[i] = (loss(x + nudge) - loss(x - nudge)) / 2e-5

    view = linear_model(weights, bias)
    attack = GMAPoisoning(steps=steps, learning_rate=rate)
    stacked = [np.stack(b).astype(t) for b, t in zip(zip(*batches, strict=True), ("float32", "int32"), strict=True)]
    arrays = [
        x.astype("float32"),
        y.astype("int32"),
        *stacked,
        targets[0].astype("float32"),
        targets[1].astype("int32"),
    ]
    value, grad = backend.compiled(lambda *a: attack._climb(view, *a), view)(*arrays, np.float32(part))
    np.testing.assert_allclose(keras.ops.convert_to_numpy(value), loss(x), rtol=1e-5)  # float32
    grad = keras.ops.convert_to_numpy(grad)
    assert np.abs(wanted).max() > 1e-3  # there is something to compare
    np.testing.assert_allclose(grad, wanted, atol=2e-5 * np.abs(wanted).max() + 1e-7)  # float32


def test_nested_gradients_give_second_derivatives():
    def inner(x):
        return backend.value_and_grad(lambda v: keras.ops.sum(v[0] ** 3))([x])[1][0]

    x = keras.ops.convert_to_tensor(np.float32([1.0, 2.0]))
    value, (grad,) = backend.value_and_grad(lambda v: keras.ops.sum(inner(v[0])))([x])
    assert float(value) == 15.0
    np.testing.assert_allclose(keras.ops.convert_to_numpy(grad), [6.0, 12.0], rtol=1e-6)  # float32


def dense(seed):
    glorot = [keras.initializers.GlorotUniform(seed=10 * seed + i) for i in range(2)]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(24, activation="relu", kernel_initializer=glorot[0]),
            layers.Dense(10, kernel_initializer=glorot[1]),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss, jit_compile=backend.jit())
    return model


def training(seed):
    """Fifteen epochs of a dense net, the same for the same arrays."""

    def train(x, y):
        model, rng = dense(seed), np.random.default_rng(seed)
        order = np.concatenate([rng.permutation(len(x)) for _ in range(15)])
        model.fit(x[order], y[order], batch_size=40, epochs=1, shuffle=False, verbose=0)
        return model

    return train


@pytest.mark.slow  # that the loss of the targets rises is tested below
def test_crafted_points_hurt_the_targets_more_than_random_ones(digits):
    x, y, x_target, y_target = digits
    attack = GMAPoisoning(share=0.3, steps=20, rounds=15, batch_size=300)
    found = []
    for seed in range(2):
        found.append(
            poisoning_effect(
                training(seed),
                x[:300],
                y[:300],
                x_target[:200],
                y_target[:200],
                attack=attack,
                seed=seed,
                progress=False,
            )
        )
        assert found[-1].points == 90
    clean, random, crafted = (np.mean([getattr(f, k) for f in found]) for k in ("clean", "random", "crafted"))
    assert clean > 0.85  # the model had learned
    assert random > clean - 0.04
    assert crafted < random - 0.03  # three points of accuracy: about twice the error of a mean over 400 answers


@pytest.fixture(scope="module")
def crafted(digits):
    model = dense(0)
    x, y, x_target, y_target = digits
    before = [np.array(v) for v in model.variables]
    attack = GMAPoisoning(share=0.1, rounds=6, steps=3, batch_size=200)
    arguments = (model, x[:200], y[:200], x_target[:50], y_target[:50])
    return attack, arguments, before, attack(*arguments, progress=False)


def test_poison_keeps_labels_and_bounds_and_the_loss_of_the_targets_rises(crafted):
    attack, (_, x, y, _, _), _, found = crafted
    assert found.x.shape == (20, 8, 8, 1)
    assert found.x.dtype == np.float32
    assert len(set(found.index.tolist())) == 20
    np.testing.assert_array_equal(found.y, y[found.index])
    assert 0.0 <= found.x.min() <= found.x.max() <= 1.0
    assert np.abs(found.x - x[found.index]).max() <= attack.rounds * attack.eta + 1e-6  # float32
    assert len(found.history) == attack.rounds + 1
    assert max(found.history) > found.history[0]
    together = found.added(x, y)
    np.testing.assert_array_equal(together[0], np.concatenate([x, found.x]))
    np.testing.assert_array_equal(together[1], np.concatenate([y, found.y]))


def test_poisoning_reads_the_model_only_and_follows_its_seed(crafted):
    attack, arguments, before, found = crafted
    for value, variable in zip(before, arguments[0].variables, strict=True):
        np.testing.assert_array_equal(value, np.array(variable))
    again = attack(*arguments, progress=False)
    np.testing.assert_array_equal(again.x, found.x)
    other = attack(*arguments, seed=1, progress=False)
    assert not np.array_equal(other.index, found.index)


def test_random_points_go_as_far_from_the_same_places(crafted):
    _, (_, x, _, _, _), _, found = crafted
    control = random_points(found, x, seed=3)
    far = [np.linalg.norm((p.x - x[found.index]).reshape(20, -1), axis=1) for p in (control, found)]
    np.testing.assert_allclose(*far, rtol=1e-3)  # float32 and a bisection
    np.testing.assert_array_equal(control.y, found.y)
    assert 0.0 <= control.x.min() <= control.x.max() <= 1.0
    assert not np.allclose(control.x, random_points(found, x, seed=4).x)
    whole = PoisonResult(1.0 - np.round(x[found.index]), found.y, found.index, ())  # as far as there is
    assert np.isfinite(random_points(whole, x).x).all()


def test_a_conv_net_with_a_softmax_and_batch_normalization_can_be_poisoned(digits):
    x, y, x_target, y_target = digits
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(4, 3, activation="relu"),
            layers.BatchNormalization(),
            layers.MaxPooling2D(2),
            layers.Dropout(0.5),
            layers.Flatten(),
            layers.Dense(10, activation="softmax"),
        ]
    )
    before = [np.array(v) for v in model.variables]
    found = GMAPoisoning(rounds=3, steps=2)(model, x[:60], y[:60], x_target[:20], y_target[:20], progress=False)
    assert found.history[-1] > found.history[0]
    assert all(np.array_equal(b, np.array(v)) for b, v in zip(before, model.variables, strict=True))
    assert models.predict_logits(model, found.x).shape == (6, 10)


def test_more_poison_than_training_samples_repeats_them(digits):
    x, y, x_target, y_target = digits
    found = GMAPoisoning(share=2.5, rounds=1, steps=1)(
        dense(0), x[:8], y[:8], x_target[:4], y_target[:4], progress=False
    )
    assert np.bincount(found.index).min() >= 2
    assert len(found.x) == 20


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"share": 0.0}, "share"),
        ({"steps": 0}, "steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"eta": -1.0}, "eta"),
        ({"rounds": 0}, "rounds"),
        ({"batch_size": 0}, "batch_size"),
        ({"bounds": (1.0, 0.0)}, "bounds"),
    ],
)
def test_wrong_settings_are_errors(settings, what):
    with pytest.raises(ValueError, match=f"`{what}` must be .* Received: {what}="):
        GMAPoisoning(**settings)


def test_wrong_data_are_errors(digits):
    x, y, x_target, y_target = digits
    with pytest.raises(ValueError, match="`x_target` must hold samples of shape"):
        GMAPoisoning()(dense(0), x[:8], y[:8], x_target[:4, :4], y_target[:4])
    with pytest.raises(ValueError, match="`y_train` must have one label for each"):
        GMAPoisoning()(dense(0), x[:8], y[:7], x_target[:4], y_target[:4])


@pytest.mark.slow
def test_poison_in_other_bounds_is_the_same_poison_in_their_units(digits):
    x, y, x_target, y_target = digits
    found = []
    for scale in (1, 255):
        base = dense(0)
        model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / scale), *base.layers])
        attack = GMAPoisoning(rounds=3, steps=2, eta=0.1 * scale, bounds=(0, scale))
        arrays = (scale * x[:60], y[:60], scale * x_target[:20], y_target[:20])
        found.append(attack(model, *arrays, progress=False).x / scale)
        control = random_points(attack(model, *arrays, progress=False), arrays[0], bounds=(0, scale))
        assert 0 <= control.x.min() <= control.x.max() <= scale
    assert np.mean(np.abs(found[0] - found[1]) > 1e-3) < 0.02  # a sign of a tiny gradient may differ in float32
    with pytest.raises(ValueError, match=r"`x_train` must lie in the bounds \[0, 1\]"):
        GMAPoisoning()(model, *arrays, progress=False)


def test_poison_that_has_no_gradient_to_follow_is_told(digits):
    x, y, x_target, y_target = digits
    flat = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(0.0), *dense(0).layers])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GMAPoisoning(rounds=2, steps=1)(flat, x[:20], y[:20], x_target[:5], y_target[:5], progress=False)
    assert any("exactly zero: the poison stays as it is" in str(w.message) for w in caught)
