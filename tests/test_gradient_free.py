"""NES and SPSA: estimates of known gradients, closed forms on linear models."""

import dataclasses
import functools

import helpers
import numpy as np
import pytest
from helpers import WIDE
from helpers import quiet_run as quiet

from kerasdef import models
from kerasdef.attacks import PGD
from kerasdef.attacks.black.gradient_free import NES, SPSA
from kerasdef.attacks.queries import Queries
from kerasdef.random import sample_seeds
from kerasdef.testing import check_attack

linear = functools.partial(helpers.linear, n=16, d=8, clear=0.0)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [NES, SPSA])
def test_they_keep_the_contract_in_l2(attack):  # in Linf: see test_attacks.py
    check_attack(attack(eps=0.8, norm="l2", pairs=4, queries=30))


@pytest.mark.parametrize("attack", [NES, SPSA])
def test_the_estimate_of_a_linear_function_is_its_gradient(attack):
    oracle, x, y = linear(2)
    # 100 times a thousandth of the range: differences far above the errors of float32
    attack = attack(queries=100_000, radius=1e-3, bounds=WIDE)
    ask = Queries(models.Victim.of(oracle.model()), attack.goal, y.astype("int32"), attack.queries)
    part = {"now": x, "x": x, "row": np.arange(16), "seed": sample_seeds(0, np.arange(16)), "moves": np.zeros(16, int)}
    found = attack.estimate(ask, part, np.full(16, 2000))
    wanted = oracle.weights.T[1 - y] - oracle.weights.T[y]
    error = np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    assert error.max() < 5 * np.sqrt(8 / 2000)  # standard error of a mean of 2000 draws in 8 dimensions
    assert (ask.spent == 4000).all()


@pytest.mark.parametrize(("attack", "share"), [(NES, 0.97), (SPSA, 0.85)])  # Adam rescales what is not a sign
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_they_come_close_to_the_closed_form_and_never_beat_it(attack, share, norm):
    oracle, x, y = linear(2)
    eps = 0.9 * oracle.smallest_distance(x, y, norm)
    attack = attack(eps=eps, norm=norm, pairs=25, queries=3000, radius=1e-3, bounds=WIDE)
    found = quiet(attack, oracle.model(), x, y)
    start, best = oracle.margin(x, y), oracle.largest_margin(x, y, eps, norm)
    gain = (oracle.margin(found.x_adv, y) - start) / (best - start)
    assert gain.min() > share
    assert (oracle.margin(found.x_adv, y) <= best + 1e-4).all()  # float32
    if norm == "linf":
        signs = np.sign(oracle.weights.T[1 - y] - oracle.weights.T[y])
        assert np.mean(np.sign(found.x_adv - x) == signs) > 0.98


@pytest.mark.parametrize("attack", [NES(pairs=10), SPSA(pairs=10)])
def test_with_enough_queries_they_find_most_of_what_pgd_finds(attack, digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    pgd = quiet(PGD(eps=0.25), digits_model, x, y).success.mean()
    found = quiet(dataclasses.replace(attack, eps=0.25, queries=1500), digits_model, x, y)
    assert found.success.mean() > 0.8 * pgd > 0.6


def test_the_cross_entropy_may_be_climbed_too(digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    found = quiet(NES(eps=0.3, pairs=10, loss="cross_entropy", queries=1000), digits_model, x, y)
    assert found.success.mean() > 0.7


def test_a_step_size_is_kept_to():
    oracle, x, y = linear(2)
    found = quiet(NES(eps=1.0, step_size=0.01, pairs=3, queries=8, bounds=WIDE), oracle.model(), x, y)
    moved = np.abs(found.x_adv - x).max(axis=1)
    np.testing.assert_allclose(moved[moved > 0], 0.01, rtol=1e-4)  # one step; float32
    assert (moved > 0).any()


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("eps", -0.1),
        ("norm", "l3"),
        ("pairs", 0),
        ("radius", 0.0),
        ("step_size", 0.0),
        ("relative_step", -1.0),
        ("loss", "margn"),
        ("momentum", 1.5),
    ],
)
def test_they_check_their_settings(setting, value):
    with pytest.raises(ValueError, match=f"Received: {setting}="):
        NES(**{setting: value})
