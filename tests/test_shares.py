"""Batches with equal shares of several kinds of images."""

import re

import keras
import numpy as np
import pytest
from keras import ops

from kerasdef.training import Shares

N, CLASSES = 12, 4


def kinds(count=3, n=N):
    """Kinds of images that name themselves: the image in row i of kind k is (k, i), its class (k + i) mod 3."""
    rows = np.arange(n)
    images = [np.stack([np.full(n, k), rows], axis=1).astype("float32") for k in range(count)]
    return [(x, (k + rows) % 3) for k, x in enumerate(images)]


def shares(**changes):
    settings = {"parts": kinds(), "weights": (0.5, 0.3, 0.2), "batch_size": 6, "classes": CLASSES, "seed": 0} | changes
    return Shares(settings.pop("parts"), settings.pop("weights"), **settings)


def order(data, kind):
    """The rows of a kind, as an epoch shows them."""
    x = np.concatenate([x for x, _, _ in data_of(data)])
    return x[x[:, 0] == kind][:, 1].astype(int).tolist()


def data_of(data):
    return [data[i] for i in range(len(data))]


@pytest.mark.parametrize("batch_size", [3, 6, 9, 15, 36])
def test_every_batch_holds_equally_many_images_of_every_kind(batch_size):
    data = shares(batch_size=batch_size)
    assert len(data) == N // (batch_size // 3)
    for x, y, weights in data_of(data):
        assert len(x) == len(y) == len(weights) == batch_size
        assert np.bincount(x[:, 0].astype(int)).tolist() == [batch_size // 3] * 3


def test_an_epoch_shows_no_image_twice_and_all_where_the_batches_come_out_even():
    for kind in range(3):
        assert sorted(order(shares(), kind)) == list(range(N))
        odd = order(shares(batch_size=15), kind)  # 12 images, five in a batch: two are left out
        assert len(set(odd)) == len(odd) == 10


def test_images_and_one_hot_labels_stay_together():
    for x, y, _ in data_of(shares()):
        np.testing.assert_array_equal(y, np.eye(CLASSES)[(x.sum(axis=1) % 3).astype(int)])


def test_each_kind_has_an_order_of_its_own_that_comes_from_the_seed():
    found = [order(shares(), kind) for kind in range(3)]
    assert found == [order(shares(), kind) for kind in range(3)]
    assert len({tuple(rows) for rows in found}) == 3
    assert found != [order(shares(seed=1), kind) for kind in range(3)]


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_of_a_batch_is_the_weighted_sum_of_the_means_of_the_kinds(smoothing):
    """One step of plain gradient descent on a linear model, by hand and by `fit`."""
    rng = np.random.default_rng(0)
    parts = [(rng.random((5, 3)).astype("float32"), rng.integers(CLASSES, size=5)) for _ in range(3)]
    weights, rate = (0.5, 0.3, 0.2), 0.7
    start = rng.normal(size=(3, CLASSES)).astype("float32")

    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(CLASSES, use_bias=False)])
    model.set_weights([start])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing)
    model.compile(keras.optimizers.SGD(rate), loss, jit_compile=False)
    data = Shares(parts, weights, batch_size=15, classes=CLASSES)  # all in one batch
    history = model.fit(data, epochs=1, shuffle=False, verbose=0).history

    value, gradient = 0.0, np.zeros((3, CLASSES))
    for (x, y), weight in zip(parts, weights, strict=True):
        wanted = np.eye(CLASSES)[y] * (1 - smoothing) + smoothing / CLASSES
        p = softmax(x.astype("float64") @ start)
        value += weight * np.mean(-np.sum(wanted * np.log(p), axis=1))
        gradient += weight * x.T @ (p - wanted) / len(x)
    assert history["loss"][0] == pytest.approx(value, rel=1e-5)  # float32
    np.testing.assert_allclose(ops.convert_to_numpy(model.weights[0]), start - rate * gradient, atol=1e-5)


def test_a_kind_of_weight_zero_teaches_nothing():
    parts = kinds(2)
    other = [parts[0], (parts[1][0] + 7, parts[1][1])]
    found = []
    for given in (parts, other):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(CLASSES, kernel_initializer="zeros")])
        model.compile(keras.optimizers.SGD(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
        model.fit(Shares(given, (1.0, 0.0), batch_size=8, classes=CLASSES), epochs=1, shuffle=False, verbose=0)
        found.append(ops.convert_to_numpy(model.weights[0]))
    np.testing.assert_array_equal(*found)
    assert np.abs(found[0]).max() > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"parts": [*kinds(2), kinds(3, n=11)[2]]}, r"`parts` must be of one length.*\[12, 12, 11\]"),
        ({"weights": (0.5, 0.5)}, r"`parts` must be of one length, with a weight each.*\[0.5, 0.5\]"),
        ({"batch_size": 7}, "`batch_size` must be a multiple of 3. Received: batch_size=7"),
        ({"batch_size": 39}, "`batch_size` must be at most 36. Received: batch_size=39"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"batch_size": 6.0}, "`batch_size` must be a positive integer"),
        ({"classes": 0}, "`classes` must be a positive integer"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_an_error_of_one_line(changes, said):
    with pytest.raises(ValueError) as error:
        shares(**changes)
    assert re.search(said, str(error.value))
    assert "\n" not in str(error.value)
