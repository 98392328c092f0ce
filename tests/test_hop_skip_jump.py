"""HopSkipJump: the smallest distance of linear models from labels alone, and no weaker than ART's."""

import dataclasses
import functools
import itertools

import helpers
import keras
import numpy as np
import pytest
from helpers import quiet_run as quiet

from kerasdef import models
from kerasdef.attacks.black.hop_skip_jump import HopSkipJump
from kerasdef.goals import Hit
from kerasdef.testing import LinearOracle, check_attack

SMALL = HopSkipJump(initial_queries=10, queries=60)
ORDER = {"linf": np.inf, "l2": 2}


def size(delta, norm="l2"):
    return np.linalg.norm(delta.reshape(len(delta), -1), ord=ORDER[norm], axis=1)


linear = functools.partial(helpers.linear, n=16, d=8, clear=0.0)


@pytest.mark.slow
def test_hop_skip_jump_keeps_the_contract_in_linf():  # in L2: see test_attacks.py
    check_attack(dataclasses.replace(SMALL, norm="linf"), kind="minimal")


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hop_skip_jump_reaches_the_smallest_distance_from_labels_alone(norm):
    oracle, x, y = linear(2)
    attack = HopSkipJump(norm=norm, queries=3000, bounds=(-5.0, 5.0))
    found = quiet(attack, lambda z: oracle.logits(z).argmax(axis=1), x, y)
    assert found.success.all()
    assert (oracle.margin(found.x_adv, y) > 0).all()
    ratio = size(found.x_adv - x, norm) / oracle.smallest_distance(x, y, norm)
    assert ratio.max() < 1.03  # the search ends at a thousandth; the estimates are noisy
    assert ratio.min() > 1 - 1e-4  # float32


def test_more_queries_never_give_a_larger_distance(digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    sizes = [size(quiet(HopSkipJump(queries=q), digits_model, x, y).x_adv - x) for q in (150, 500, 1500)]
    # the questions of a small budget are the first of a large one, but for those of its last round
    assert (sizes[2] <= sizes[0] + 1e-6).all()
    assert np.median(sizes[0]) > np.median(sizes[1]) > np.median(sizes[2]) > 0


def test_a_search_ends_where_float32_does():
    """With many features the paper's tolerance is below the rounding: the search would ask one point for ever."""
    d = 6912
    oracle = LinearOracle(np.random.default_rng(0).normal(size=(d, 2)))
    x = np.random.default_rng(1).uniform(0.2, 0.8, (2, d)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    asked = []

    def answer(z):
        asked.append(z[0].copy())
        return oracle.logits(z).argmax(axis=1)

    attack = HopSkipJump(norm="linf", queries=150, initial_queries=20)
    quiet(attack, answer, x[:1], y[:1])
    same = [np.array_equal(a, b) for a, b in itertools.pairwise(asked)]
    assert np.mean(same) < 0.1


def test_starts_are_used_where_they_reach_the_goal_and_noise_elsewhere(digits, digits_model):
    x, y = digits[2][:12], digits[3][:12]
    right = models.predict_logits(digits_model, x).argmax(axis=1) == y
    x, y = x[right], y[right]
    starts, targets = np.roll(x, 1, axis=0), np.roll(y, 1)
    other = targets != y
    attack = HopSkipJump(queries=300, goal=Hit(), tries=1, starts=starts[other])
    found = quiet(attack, digits_model, x[other], targets[other])
    assert found.success.all()
    assert (size(found.x_adv - x[other]) < size(starts[other] - x[other])).all()
    useless = quiet(HopSkipJump(queries=300, starts=x), digits_model, x, y)
    assert useless.success.all()  # noise took over


def test_samples_without_a_first_point_are_unchanged_and_cost_the_tries_only():
    x = np.full((3, 5), 0.5, dtype="float32")
    found = quiet(HopSkipJump(tries=7), lambda z: np.zeros(len(z), int), x, [0, 0, 0])
    np.testing.assert_array_equal(found.x_adv, x)
    assert not found.success.any()
    assert found.evaluations.tolist() == [8, 8, 8]


def test_first_points_differ_in_brightness():
    x = np.full((1, 400), 0.5, dtype="float32")
    asked = []

    def model(z):
        asked.append(np.array(z))
        return np.zeros(len(z), int)

    quiet(HopSkipJump(tries=40), model, x, [0])
    mean = np.concatenate(asked)[1:].mean(axis=1)
    assert mean[::2].std() < 0.05 < 0.2 < mean[1::2].std()  # uniform noise is gray, black and white noise is not


def test_starts_of_another_shape_are_an_error(digits, digits_model):
    with pytest.raises(ValueError, match="`starts` must have the shape of x"):
        quiet(HopSkipJump(starts=digits[2][:3]), digits_model, digits[2][:5], digits[3][:5])


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("norm", "l1"),
        ("initial_queries", 0),
        ("most_queries", 0),
        ("gamma", 0.0),
        ("tries", 0),
        ("queries", -1),
    ],
)
def test_hop_skip_jump_checks_its_settings(setting, value):
    with pytest.raises(ValueError, match=f"Received: {setting}="):
        HopSkipJump(**{setting: value})


def test_settings_with_starts_are_hashable():
    attack = HopSkipJump(starts=np.zeros((2, 3), "float32"))
    assert hash(attack) == hash(HopSkipJump())


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one backend is enough for ART")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_hop_skip_jump_is_no_weaker_than_art(norm, digits, digits_model):
    from art.attacks.evasion import HopSkipJump as Theirs
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    x, y, asked = digits[2][:12], digits[3][:12], []
    right = models.predict_logits(digits_model, x).argmax(axis=1) == y
    x, y = x[right], y[right]

    def answer(z):
        asked.append(len(z))
        return models.predict_logits(digits_model, np.asarray(z, dtype="float32"))

    classifier = BlackBoxClassifierNeuralNetwork(answer, (8, 8, 1), 10, clip_values=(0, 1), channels_first=False)
    keras.utils.set_random_seed(0)  # ART draws from the global generator
    theirs = Theirs(classifier, norm=ORDER[norm], max_iter=3, verbose=False).generate(x)
    budget = sum(asked) // len(x)
    found = quiet(HopSkipJump(norm=norm, queries=budget), digits_model, x, y)
    assert found.success.all()
    assert np.median(size(found.x_adv - x, norm)) <= 1.02 * np.median(size(theirs - x, norm))
