"""Views of models: logits behind any usual head, predictions in batches."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import models
from kerasdef.testing import linear_model

RNG = np.random.default_rng(0)
W, B = RNG.normal(size=(4, 3)).astype("float32"), RNG.normal(size=3).astype("float32")
X = RNG.uniform(size=(5, 4)).astype("float32")


def headed(*head):
    model = keras.Sequential([keras.Input((4,)), *head])
    model.layers[0].set_weights([W, B])
    return model


@pytest.mark.parametrize(
    "head",
    [
        lambda: [layers.Dense(3)],
        lambda: [layers.Dense(3, activation="softmax")],
        lambda: [layers.Dense(3), layers.Softmax()],
        lambda: [layers.Dense(3), layers.Activation("softmax")],
    ],
)
def test_the_logits_are_found_behind_every_usual_head(head):
    found = models.predict_logits(headed(*head()), X)
    np.testing.assert_allclose(found, X @ W + B, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_one_output_becomes_two_logits(activation):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(1, activation=activation)])
    model.layers[0].set_weights([W[:, :1], B[:1]])
    found = models.predict_logits(model, X)
    np.testing.assert_array_equal(found[:, 0], 0)
    np.testing.assert_allclose(found[:, 1], (X @ W + B)[:, 0], rtol=1e-5, atol=1e-6)  # float32


def test_the_view_shares_the_weights_and_is_made_once():
    model = headed(layers.Dense(3, activation="softmax"))
    view = models.logits_view(model)
    assert models.logits_view(model) is view
    before = models.predict_logits(model, X)
    model.layers[0].set_weights([2 * W, 2 * B])
    np.testing.assert_allclose(models.predict_logits(model, X), 2 * before, rtol=1e-5, atol=1e-6)  # float32


def test_a_logits_model_is_its_own_view():
    model = linear_model(W, B)
    assert models.logits_view(model) is model


def test_an_unknown_last_layer_is_taken_as_logits_with_a_warning():
    model = headed(layers.Dense(3), layers.ReLU())
    with pytest.warns(UserWarning, match="taken as logits"):
        assert models.logits_view(model) is model


def test_models_that_cannot_be_attacked_are_errors():
    with pytest.raises(ValueError, match="Received: str"):
        models.logits_view("model")
    with pytest.raises(ValueError, match="must be built"):
        models.logits_view(keras.Sequential([layers.Dense(3)]))
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="one output of shape"):
        models.logits_view(keras.Model(x, [layers.Dense(3)(x), layers.Dense(3)(x)]))


@pytest.mark.parametrize("batch_size", [1, 2, 5, 512])
def test_outputs_do_not_depend_on_the_batch_size(batch_size):
    found = models.predict_logits(linear_model(W, B), X, batch_size=batch_size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, X @ W + B, rtol=1e-5, atol=1e-6)  # float32


def test_stacked_models_give_one_block_of_logits():
    stacked = models.stack_logits([linear_model(W, B), headed(layers.Dense(3, activation="softmax"))])
    found = models.predict_logits(stacked, X)
    assert found.shape == (5, 2, 3)
    np.testing.assert_allclose(found[:, 0], found[:, 1], rtol=1e-5)  # float32


def test_pad_repeats_the_last_row():
    np.testing.assert_array_equal(models.pad(np.array([[1], [2]]), 4), [[1], [2], [2], [2]])
    assert ops.shape(models.pad(X, 5)) == (5, 4)
