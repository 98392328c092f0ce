"""Losses against SciPy, goals against plain arg-max."""

import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax, logsumexp

from kerasdef import backend, losses
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


def test_dlr_is_the_margin_over_the_way_from_the_largest_to_the_third_logit():
    z, y = draw()
    ordered = np.sort(z.astype("float64"), axis=1)
    own = z[np.arange(len(y)), y]
    other = np.where(z.argmax(axis=1) == y, ordered[:, -2], ordered[:, -1])
    wanted = (other - own) / (ordered[:, -1] - ordered[:, -3])
    np.testing.assert_allclose(evaluate(losses.dlr, z, y), wanted, rtol=1e-4)  # float32


def test_targeted_dlr_is_the_way_to_the_target_over_that_to_the_mean_of_third_and_fourth():
    z, y = draw()
    targets = (y + 1 + np.arange(len(y)) % 5) % 6
    ordered = np.sort(z.astype("float64"), axis=1)
    gap = (z[np.arange(len(y)), targets] - z[np.arange(len(y)), y]).astype("float64")
    wanted = gap / (ordered[:, -1] - (ordered[:, -3] + ordered[:, -4]) / 2)
    got = evaluate(lambda a, b: losses.dlr_targeted(a, b, ops.convert_to_tensor(targets)), z, y)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)  # float32


@pytest.mark.parametrize("k", [3, 4, 10])
def test_dlr_does_not_change_with_the_scale_and_the_zero_of_the_logits(k):
    z, y = draw(k=k)
    value = evaluate(losses.dlr, z, y)
    assert (value > 0).any()
    assert (value < 0).any()
    np.testing.assert_array_equal(value > 0, z.argmax(axis=1) != y)
    # float32: the fourth digit of logits moved by 100
    np.testing.assert_allclose(evaluate(losses.dlr, 20.0 * z + 100.0, y), value, rtol=1e-3, atol=1e-4)


def test_with_few_classes_dlr_is_a_gap_of_logits():
    z, y = draw(k=2)
    np.testing.assert_array_equal(evaluate(losses.dlr, z, y), evaluate(losses.margin, z, y))
    for k in (2, 3):
        z, y = draw(k=k)
        targets = (y + 1) % k
        got = evaluate(lambda a, b, t=targets: losses.dlr_targeted(a, b, ops.convert_to_tensor(t)), z, y)
        np.testing.assert_array_equal(got, z[np.arange(len(y)), targets] - z[np.arange(len(y)), y])


def test_gradients_of_dlr_are_finite_at_ties():
    rows = [[0, 0, 0, 0, 0], [1, 1, 0, 0, 0], [2, 1, 1, 1, 0], [5, 5, 5, 0, 0], [0, 1e-20, 0, 0, 0], [-9, 3, 3, 3, 3]]
    z = ops.convert_to_tensor(np.float32(rows))
    for label in range(5):
        y = ops.convert_to_tensor(np.full(len(rows), label, "int32"))
        target = (y + 1) % 5
        for loss in (losses.dlr, lambda a, b, t=target: losses.dlr_targeted(a, b, t)):
            value, _, grad = backend.gradient(lambda v, loss=loss, y=y: (loss(v, y), ()))(z)
            assert np.isfinite(array(value)).all()
            assert np.isfinite(array(grad)).all()


def test_the_gradient_of_dlr_is_that_of_its_formula():
    z, y = draw(n=50, k=5)
    _, _, grad = backend.gradient(lambda v: (losses.dlr(v, ops.convert_to_tensor(y.astype("int32"))), ()))(
        ops.convert_to_tensor(z)
    )
    step = 1e-2
    for i in range(5):
        shift = step * np.eye(5, dtype="float32")[i]
        ends = [evaluate(losses.dlr, z + s * shift, y) for s in (1, -1)]
        slope = (ends[0] - ends[1]) / (2 * step)
        # the median: finite differences fail where two logits are within a step of each other
        assert np.median(np.abs(array(grad)[:, i] - slope)) < 1e-3


@pytest.mark.parametrize("k", [3, 4, 5])
def test_dlr_with_a_rejected_class_is_dlr_without_it(k):
    z, _ = draw(k=k)
    y = np.random.default_rng(1).integers(0, k - 1, len(z))
    merged = z.astype("float64")
    merged[np.arange(len(y)), y] = np.logaddexp(z[np.arange(len(y)), y], z[:, k - 1])
    wanted = evaluate(losses.dlr, merged[:, : k - 1].astype("float32"), y)
    got = evaluate(lambda a, b: Evade(k - 1).value(losses.dlr, a, b), z, y)
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)  # float32


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
@pytest.mark.parametrize("loss", [losses.margin, losses.cross_entropy, losses.dlr])
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
