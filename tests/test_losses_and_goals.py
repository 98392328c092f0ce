"""Losses against SciPy, goals against plain arg-max."""

import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax, logsumexp

from kerasdef import losses
from kerasdef.attacks import Evade, Hit, Misclassify


def array(value):
    return ops.convert_to_numpy(value)


def draw(n=500, k=6, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    z = (scale * rng.normal(size=(n, k))).astype("float32")
    return z, rng.integers(0, k, n)


def evaluate(fn, z, y):
    return array(fn(ops.convert_to_tensor(z), ops.convert_to_tensor(y.astype("int32"))))


def test_cross_entropy_is_minus_the_log_softmax_of_the_label():
    z, y = draw()
    wanted = -log_softmax(z.astype("float64"), axis=1)[np.arange(len(y)), y]
    np.testing.assert_allclose(evaluate(losses.cross_entropy, z, y), wanted, rtol=1e-5, atol=1e-5)  # float32


def test_margin_is_the_largest_other_logit_minus_the_labels():
    z, y = draw()
    others = z.copy()
    others[np.arange(len(y)), y] = -np.inf
    wanted = others.max(axis=1) - z[np.arange(len(y)), y]
    np.testing.assert_array_equal(evaluate(losses.margin, z, y), wanted)


def test_margin_is_above_zero_exactly_where_the_sample_is_misclassified():
    z, y = draw()
    np.testing.assert_array_equal(evaluate(losses.margin, z, y) > 0, z.argmax(axis=1) != y)


def test_pick_and_best_other():
    z, y = np.float32([[1, 5, 3], [7, -1, 2]]), np.array([1, 0])
    np.testing.assert_array_equal(evaluate(losses.pick, z, y), [5, 7])
    np.testing.assert_array_equal(evaluate(losses.best_other, z, y), [3, 2])


@pytest.mark.parametrize("name", sorted(losses.LOSSES))
def test_no_loss_overflows_on_extreme_logits(name):
    z = np.float32([[1e4, -1e4, 0], [-1e4, -1e4, -1e4], [1e30, 0, 0], [-1e30, -1e30, 0]])
    for label in range(3):
        value = evaluate(losses.LOSSES[name], z, np.full(4, label))
        assert np.isfinite(value).all()


def test_misclassify_is_reached_exactly_where_the_argmax_is_not_the_label():
    z, y = draw()
    np.testing.assert_array_equal(evaluate(Misclassify().reached, z, y), z.argmax(axis=1) != y)
    np.testing.assert_array_equal(evaluate(Misclassify().reached, z - 1000, y), (z - 1000).argmax(axis=1) != y)


def test_hit_is_reached_exactly_where_the_argmax_is_the_target():
    z, y = draw()
    np.testing.assert_array_equal(evaluate(Hit().reached, z, y), z.argmax(axis=1) == y)


@pytest.mark.parametrize("loss", [losses.margin, losses.cross_entropy])
def test_hit_raises_what_misclassify_lowers(loss):
    z, y = draw()
    hit = evaluate(lambda a, b: Hit().value(loss, a, b), z, y)
    np.testing.assert_array_equal(hit, -evaluate(lambda a, b: Misclassify().value(loss, a, b), z, y))


@pytest.mark.parametrize("k", [3, 4, 11])
@pytest.mark.parametrize("scale", [0.1, 3.0, 300.0])
@pytest.mark.parametrize("shift", [0.0, -1000.0])
def test_evade_is_reached_exactly_where_the_argmax_is_neither_the_label_nor_reject(k, scale, shift):
    z, _ = draw(k=k, scale=scale)
    z = z + np.float32(shift)
    rng = np.random.default_rng(1)
    for reject in range(k):
        y = rng.integers(0, k, len(z))  # the label may be the rejected class itself
        top = z.argmax(axis=1)
        np.testing.assert_array_equal(evaluate(Evade(reject).reached, z, y), (top != y) & (top != reject))


def test_evade_counts_the_two_unwanted_classes_as_one():
    z, y = draw(k=5, seed=2)
    y = y % 4
    unwanted = np.stack([z[np.arange(len(y)), y], z[:, 4]], axis=1).astype("float64")
    wanted = logsumexp(z.astype("float64"), axis=1) - logsumexp(unwanted, axis=1)
    got = evaluate(lambda a, b: Evade(4).value(losses.cross_entropy, a, b), z, y)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)  # float32
    others = z.copy()
    others[np.arange(len(y)), y] = others[:, 4] = -np.inf
    got = evaluate(lambda a, b: Evade(4).value(losses.margin, a, b), z, y)
    np.testing.assert_allclose(got, others.max(axis=1) - unwanted.max(axis=1), rtol=1e-6)  # float32


@pytest.mark.parametrize("goal", [Misclassify(), Hit(), Evade(2), Evade(0)])
@pytest.mark.parametrize("loss", [losses.margin, losses.cross_entropy])
def test_no_goal_is_nan_on_extreme_logits(goal, loss):
    rows = [
        [0, 0, 0, 0],
        [1e4, -1e4, 1e4, 0],
        [-1e4] * 4,
        [1e8, 1e8, 0, 0],
        [0, -1e20, 1e20, 0],
        [1e30, 0, -1e30, 1],
    ]
    z = np.float32(rows)
    for label in range(4):
        value = evaluate(lambda a, b: goal.value(loss, a, b), z, np.full(len(z), label))
        assert not np.isnan(value).any()


@pytest.mark.parametrize("reject", [-1, 1.5, True])
def test_a_reject_class_that_is_no_index_is_an_error(reject):
    with pytest.raises(ValueError, match="Received: reject="):
        Evade(reject)
