"""The Carlini and Wagner attack in Linf: its closed form on linear models, ART for comparison."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import art_classifier, quiet

from kerasdef import models
from kerasdef.attacks.white.carlini_wagner_linf import CarliniWagnerLinf
from kerasdef.testing import LinearOracle

# a step of Adam moves an input by up to 5 * learning_rate here: 0.02, for distances of 0.05 and more
ATTACK = CarliniWagnerLinf(steps=200, initial_c=0.01, learning_rate=0.004, bounds=(-5.0, 5.0))


def far(k, n=24, d=6):
    """A linear oracle with inputs that lie at least 0.05 from its decision boundary."""
    rng = np.random.default_rng(0)
    oracle = LinearOracle(rng.normal(size=(d, k)), 0.1 * rng.normal(size=k))
    x = rng.uniform(-1, 1, (n, d)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    keep = oracle.smallest_distance(x, y, "linf") > 0.05
    return oracle, x[keep], y[keep]


def ratio(attack, oracle, x, y):
    """Distance found over the smallest one, of inputs that all fall."""
    found = quiet(attack, oracle.model(), x, y)
    assert (oracle.margin(found, y) > 0).all()
    return np.abs(found - x).max(axis=1) / oracle.smallest_distance(x, y, "linf")


def test_it_comes_within_a_few_percent_of_the_smallest_distance():
    found = ratio(ATTACK, *far(2))
    assert (found <= 1.06).all()  # 200 steps of Adam, and tau shrinks by a tenth
    assert np.median(found) <= 1.03
    assert (found >= 1 - 1e-3).all()  # float32


def test_it_does_for_most_inputs_of_four_classes_and_never_beats_the_closed_form():
    found = ratio(ATTACK, *far(4))
    assert np.mean(found <= 1.06) > 0.7  # it follows the largest other logit: not always the nearest class
    assert (found >= 1 - 1e-3).all()  # float32


def test_the_change_gets_smaller_with_tau():
    oracle, x, y = far(2)
    # tau falls below its end at once: the first adversarial point is all that is found
    once = ratio(dataclasses.replace(ATTACK, shrink=1e-9), oracle, x, y)
    found = ratio(ATTACK, oracle, x, y)
    assert (found <= once + 1e-6).all()  # float32
    assert np.median(found) < np.median(once) - 0.01


def test_c_is_raised_where_the_changes_beyond_tau_weigh_more_than_the_logits():
    oracle, x, y = far(2)
    small = LinearOracle(oracle.weights * 1e-3, oracle.bias * 1e-3)
    raised, fixed = (ratio(dataclasses.replace(ATTACK, largest_c=c), small, x, y) for c in (1e5, ATTACK.initial_c))
    assert (raised <= fixed + 1e-6).all()  # float32
    assert np.median(raised) < np.median(fixed) - 0.005


def test_it_reaches_its_confidence():
    oracle, x, y = far(3)
    found = quiet(dataclasses.replace(ATTACK, confidence=0.5), oracle.model(), x, y)
    assert (oracle.margin(found, y) >= 0.5 - 1e-4).all()  # float32


def test_no_sample_takes_more_steps_than_it_says(digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    attack = CarliniWagnerLinf(steps=5, initial_c=1.0, largest_c=4.0, learning_rate=0.01)
    # c = 1, 2, 4 and once over; tau = 0.9 ** i down to 1/256
    assert attack.steps_in_all == 5 * (4 + 54)
    found = attack.run(digits_model, x, y, progress=False)
    assert found.evaluations.max() < attack.steps_in_all  # done by its own rule, not cut off


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", -1.0),
        ("steps", 0),
        ("initial_c", 0.0),
        ("largest_c", 1e-9),
        ("growth", 1.0),
        ("shrink", 1.0),
        ("learning_rate", float("nan")),
    ],
)
def test_a_setting_outside_its_range_is_an_error_with_the_value_received(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}="):
        CarliniWagnerLinf(**{name: value})


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="ART attacks TensorFlow models")
def test_it_is_no_weaker_than_art_with_the_same_settings(digits, digits_model):
    from art.attacks.evasion import CarliniLInfMethod

    right = models.predict_logits(digits_model, digits[2]).argmax(axis=1) == digits[3]
    x, y = digits[2][right][:3], digits[3][right][:3]
    classifier = art_classifier(digits_model)
    theirs = CarliniLInfMethod(
        classifier,
        max_iter=20,
        learning_rate=0.2,
        initial_const=2.0,
        largest_const=4.0,
        batch_size=1,
        verbose=False,
    ).generate(x, y)
    attack = CarliniWagnerLinf(steps=20, learning_rate=0.2, initial_c=2.0, largest_c=3.9)
    ours = quiet(attack, digits_model, x, y)
    broke = [models.predict_logits(digits_model, z).argmax(axis=1) != y for z in (ours, theirs)]
    assert broke[0].sum() >= broke[1].sum() > 0
    both = broke[0] & broke[1]
    size = [np.median(np.abs(z - x)[both].max(axis=(1, 2, 3))) for z in (ours, theirs)]
    assert size[0] <= size[1]
