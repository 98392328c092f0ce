"""DeepFool: exact on linear models, no weaker than the implementations of foolbox and ART."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import WIDE, art_classifier, broken, linear, quiet, size
from keras import ops

from kerasdef import models
from kerasdef.attacks import Evade, Targeted
from kerasdef.attacks.white.deepfool import DeepFool
from kerasdef.testing import check_attack, linear_model


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("k", [2, 5])
def test_it_goes_to_the_nearest_boundary_of_a_linear_model_and_overshoots_as_told(norm, k):
    oracle, x, y = linear(k)
    for overshoot in (0.02, 0.5):
        found = quiet(DeepFool(norm=norm, overshoot=overshoot, bounds=WIDE), oracle.model(), x, y)
        ratio = size(norm, found - x) / oracle.smallest_distance(x, y, norm)
        np.testing.assert_allclose(ratio, 1 + overshoot, rtol=1e-3)  # float32
        assert (oracle.margin(found, y) > 0).all()


def test_a_linear_model_takes_one_step():
    oracle, x, y = linear(5)
    found = DeepFool(bounds=WIDE).run(oracle.model(), x, y, progress=False)
    assert found.success.all()
    np.testing.assert_array_equal(found.evaluations, 1)


@pytest.mark.slow
def test_fewer_candidates_find_a_boundary_that_may_be_further():
    oracle, x, y = linear(10, n=60)
    lengths = [
        size("l2", quiet(DeepFool(candidates=c, bounds=WIDE), oracle.model(), x, y) - x) for c in (2, 4, 10, None)
    ]
    for more, fewer in zip(lengths[1:], lengths, strict=False):
        assert (more <= fewer * (1 + 1e-4)).all()  # float32
    np.testing.assert_array_equal(lengths[2], lengths[3])
    assert (lengths[0] > 1.01 * lengths[3]).any()


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_with_a_target_it_arrives_there(norm, digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    targets = (y + 3) % 10
    found = Targeted(DeepFool(norm=norm), targets).run(digits_model, x, y, progress=False)
    assert found.success.mean() > 0.9
    predicted = models.predict_logits(digits_model, found.x_adv).argmax(axis=1)
    np.testing.assert_array_equal(predicted == targets, found.success)


def test_two_boundaries_of_a_target_are_crossed_at_the_closed_form_of_two_classes():
    oracle, x, y = linear(2)
    found = quiet(Targeted(DeepFool(bounds=WIDE), 1 - y), oracle.model(), x, y)
    np.testing.assert_allclose(size("l2", found - x) / oracle.smallest_distance(x, y, "l2"), 1.02, rtol=1e-3)


def test_a_rejected_class_does_not_count():
    oracle, x, y = linear(5, n=60)
    x, y = x[y != 4], y[y != 4]
    found = quiet(DeepFool(goal=Evade(4), bounds=WIDE), oracle.model(), x, y)
    moved = np.any(found != x, axis=1)
    assert moved.mean() > 0.8  # where the two unwanted classes take turns in front, it may not arrive
    predicted = oracle.logits(found).argmax(axis=1)[moved]
    assert (predicted != y[moved]).all()
    assert (predicted != 4).all()
    plain = oracle.logits(quiet(DeepFool(bounds=WIDE), oracle.model(), x, y)).argmax(axis=1)
    assert (plain == 4).any()  # the test means something


def test_features_at_their_bounds_do_not_keep_it_from_arriving(digits, digits_model):
    x, y = digits[2], digits[3]  # half of the pixels are 0 or 1
    right = ~broken(digits_model, x, y)
    for norm in ("l2", "linf"):
        found = quiet(DeepFool(norm=norm), digits_model, x[right], y[right])
        assert broken(digits_model, found, y[right]).all()


def test_what_it_cannot_break_comes_back_unchanged():
    flat = linear_model(np.zeros((6, 3)), [1.0, 0.0, 0.0])
    x = np.random.default_rng(0).uniform(0, 1, (5, 6)).astype("float32")
    np.testing.assert_array_equal(quiet(DeepFool(steps=3), flat, x, np.zeros(5, dtype="int64")), x)


@pytest.mark.slow
def test_it_keeps_the_contract_in_linf():  # in L2: see test_attacks.py
    check_attack(DeepFool(norm="linf", steps=8), kind="minimal")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l1"}, "`norm` must be l2 or linf"),
        ({"steps": 0}, "Received: steps=0"),
        ({"overshoot": -0.1}, "Received: overshoot=-0.1"),
        ({"candidates": 1}, "`candidates` must be at least 2. Received: candidates=1"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        DeepFool(**settings)
    assert hash(DeepFool()) == hash(dataclasses.replace(DeepFool()))


# -- other libraries -------------------------------------------------------------------------------

PEERS = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="ART and foolbox attack TensorFlow models")


def correct(digits, model, n):
    x, y = digits[2], digits[3]
    right = ~broken(model, x, y)
    return x[right][:n], y[right][:n]


@PEERS
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_its_distances_are_those_of_foolbox(norm, digits, digits_model):
    foolbox = pytest.importorskip("foolbox")
    x, y = correct(digits, digits_model, 60)
    theirs = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}[norm]
    wrapped = foolbox.TensorFlowModel(lambda z: digits_model(z, training=False), bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(ops.convert_to_tensor(y))
    found = theirs(steps=50, candidates=10, overshoot=0.02).run(wrapped, ops.convert_to_tensor(x), criterion)
    ours = quiet(DeepFool(norm=norm), digits_model, x, y)
    assert broken(digits_model, ours, y).mean() >= broken(digits_model, found.numpy(), y).mean()
    assert np.median(size(norm, ours - x)) <= 1.02 * np.median(size(norm, found.numpy() - x))


@pytest.mark.slow
@PEERS
def test_its_distances_are_those_of_art(digits, digits_model):
    from art.attacks.evasion import DeepFool as Theirs

    x, y = correct(digits, digits_model, 20)
    wrapped = art_classifier(digits_model)
    found = Theirs(wrapped, max_iter=50, epsilon=0.02, nb_grads=10, batch_size=20, verbose=False).generate(x, y)
    ours = quiet(DeepFool(), digits_model, x, y)
    assert broken(digits_model, ours, y).mean() >= broken(digits_model, found, y).mean()
    assert np.median(size("l2", ours - x)) <= 1.02 * np.median(size("l2", found - x))
