"""Signs of a blind attack: each is given where it should be, and no other."""

import keras
import numpy as np
import pytest
from keras import layers

from kerasdef import models
from kerasdef.attacks.signs import blind_spots
from kerasdef.goals import Evade, Hit, Misclassify


def linear(scale=1.0, activation=None, classes=4):
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((16,)), layers.Dense(classes, activation=activation)])
    model.set_weights([scale * rng.normal(size=(16, classes)).astype("float32"), np.zeros(classes)])
    return model


def answered(model, n=60):
    x = np.random.default_rng(1).uniform(size=(n, 16)).astype("float32")
    return x, models.predict_logits(model, x).argmax(axis=1)


def test_a_sound_model_has_no_blind_spot():
    model = linear()
    x, y = answered(model)
    for goal in (Misclassify(), Hit(), Evade(3)):
        assert blind_spots(model, x, y if goal != Hit() else (y + 1) % 4, goal) == {}


def test_a_saturated_model_has_gradients_of_zero_and_the_share_is_told():
    model = linear(1e5)
    x, y = answered(model)
    found = blind_spots(model, x, y)
    assert set(found) == {"zero_gradients"}
    assert "100% of the images" in found["zero_gradients"]
    mixed = linear(3.0)
    z = models.predict_logits(mixed, x)
    x[:15] *= 1e3  # these alone are saturated
    y = np.concatenate([models.predict_logits(mixed, x[:15]).argmax(axis=1), z[15:].argmax(axis=1)])
    assert "25% of the images" in blind_spots(mixed, x, y)["zero_gradients"]


def test_probabilities_that_are_taken_for_logits_are_told():
    model = models.as_logits(linear(activation="softmax"))  # as if it could not be looked through
    x, y = answered(model)
    assert set(blind_spots(model, x, y)) == {"softmax_output"}


def test_an_accuracy_far_below_what_the_data_allow_is_told_where_there_are_enough_images():
    model = linear()
    x, y = answered(model, 200)
    wrong = (y + 1) % 4
    assert set(blind_spots(model, x, np.where(np.arange(200) < 40, y, wrong))) == {"low_accuracy"}
    assert "20.0%" in blind_spots(model, x, np.where(np.arange(200) < 40, y, wrong))["low_accuracy"]
    assert blind_spots(model, x, np.where(np.arange(200) < 150, y, wrong)) == {}
    assert blind_spots(model, x[:20], wrong[:20]) == {}
    one = y == np.bincount(y).argmax()  # of one class alone, and one of them wrong
    labels = y[one].copy()
    x = x[one].copy()
    x[0] = answered(model, 200)[0][~one][0]
    assert blind_spots(model, x, labels) == {}


@pytest.mark.parametrize("n", [1, 7, 300])
def test_any_number_of_images_may_be_looked_at(n):
    model = linear()
    assert blind_spots(model, *answered(model, n)) == {}
