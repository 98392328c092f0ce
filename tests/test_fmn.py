"""FMN: the closed form on linear models, and no weaker than foolbox's."""

import keras
import numpy as np
import pytest
from helpers import WIDE, broken, linear, quiet, size
from keras import ops

from kerasdef import models, norms
from kerasdef.attacks import Evade, Targeted
from kerasdef.attacks.white.fmn import FMN
from kerasdef.testing import check_attack, linear_model


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_reaches_the_smallest_distance_between_two_classes(norm):
    oracle, x, y = linear(2)
    found = quiet(FMN(norm=norm, bounds=WIDE), oracle.model(), x, y)
    assert (oracle.margin(found, y) > 0).all()
    ratio = size(norm, found - x) / oracle.smallest_distance(x, y, norm)
    assert (ratio <= 1.01).all()  # the last steps still move by 0.1 %
    assert (ratio >= 1 - 1e-3).all()  # float32


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_it_reaches_it_for_most_inputs_of_five_classes_and_never_beats_it(norm):
    oracle, x, y = linear(5)
    found = quiet(FMN(norm=norm, bounds=WIDE), oracle.model(), x, y)
    assert (oracle.margin(found, y) > 0).all()
    ratio = size(norm, found - x) / oracle.smallest_distance(x, y, norm)
    assert np.median(ratio) <= 1.01  # it follows the largest other logit: not always the nearest class
    assert (ratio >= 1 - 1e-3).all()  # float32


@pytest.mark.parametrize("goal", [None, Evade(9)])
def test_it_breaks_every_image_and_more_steps_are_no_worse(goal, digits, digits_model):
    x, y = digits[2][:80], digits[3][:80]
    x, y = x[y != 9], y[y != 9]
    for norm in ("linf", "l1"):
        found = []
        for steps in (20, 100):
            attack = FMN(norm=norm, steps=steps)
            attack = attack if goal is None else attack.with_goal(goal)
            found.append(attack.run(digits_model, x, y, progress=False))
        assert found[1].success.mean() > 0.98
        short, full = (np.where(f.success, size(norm, f.x_adv - x), np.inf) for f in found)
        assert np.median(full) <= np.median(short)


@pytest.mark.slow
def test_with_a_target_it_arrives_there(digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    targets = (y + 3) % 10
    found = Targeted(FMN(norm="l2", steps=60), targets).run(digits_model, x, y, progress=False)
    assert found.success.mean() > 0.95
    predicted = models.predict_logits(digits_model, found.x_adv).argmax(axis=1)
    np.testing.assert_array_equal(predicted == targets, found.success)


def test_features_at_their_bounds_do_not_keep_it_from_arriving():
    """The linearized distance reckons with features that cannot move: alone it would never be enough."""
    weights = np.ones((8, 2)) * [0.0, 1.0]
    model = linear_model(weights, [0.0, -5.0])
    x = np.float32([[1, 1, 1, 1, 0, 0, 0, 0.0]])  # margin -1: only the last four can rise
    found = quiet(FMN(norm="l2", steps=60), model, x, np.array([0]))
    assert broken(model, found, [0]).all()
    np.testing.assert_allclose(size("l2", found - x), 0.5, rtol=0.02)  # four features by 1 / 4 each


def test_what_it_cannot_break_comes_back_unchanged():
    flat = linear_model(np.zeros((6, 3)), [1.0, 0.0, 0.0])
    x = np.random.default_rng(0).uniform(0, 1, (5, 6)).astype("float32")
    np.testing.assert_array_equal(quiet(FMN(steps=5), flat, x, np.zeros(5, dtype="int64")), x)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", "l1"])  # in Linf: see test_attacks.py
def test_it_keeps_the_contract(norm):
    check_attack(FMN(norm=norm, steps=10), kind="minimal")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Received: steps=0"),
        ({"step_size": 0.0}, "Received: step_size=0.0"),
        ({"step_size": 1.0, "last_step_size": 2.0}, "Received: last_step_size=2.0"),
        ({"gamma": 1.0}, "Received: gamma=1.0"),
        ({"last_gamma": 0.1}, "Received: last_gamma=0.1"),
        ({"norm": "l3"}, "`norm` must be one of"),
        ({"norm": norms.Box([1.0])}, "`norm` must be linf or l2 or l1 here"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        FMN(**settings)
    assert hash(FMN()) == hash(FMN())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="foolbox attacks TensorFlow models")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_its_distances_are_no_larger_than_those_of_foolbox(norm, digits, digits_model):
    foolbox = pytest.importorskip("foolbox")
    x, y = digits[2][:80], digits[3][:80]
    right = ~broken(digits_model, x, y)
    x, y = x[right], y[right]
    theirs = {"linf": "LInfFMNAttack", "l2": "L2FMNAttack", "l1": "L1FMNAttack"}[norm]
    wrapped = foolbox.TensorFlowModel(lambda z: digits_model(z, training=False), bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(ops.convert_to_tensor(y))
    theirs = getattr(foolbox.attacks, theirs)(steps=50).run(wrapped, ops.convert_to_tensor(x), criterion).numpy()
    ours = quiet(FMN(norm=norm, steps=50), digits_model, x, y)
    length = [np.where(broken(digits_model, z, y), size(norm, z - x), np.inf) for z in (ours, theirs)]
    assert np.isfinite(length[0]).mean() >= np.isfinite(length[1]).mean()
    assert np.median(length[0]) <= 1.02 * np.median(length[1])
