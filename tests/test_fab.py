"""FAB: exact on linear models, as a minimal-norm attack and as the part of AutoAttack that it is."""

import dataclasses

import numpy as np
import pytest
from helpers import WIDE, broken, linear, quiet, size

from kerasdef import models, norms
from kerasdef.attacks import Evade, Targeted
from kerasdef.attacks.white.deepfool import DeepFool
from kerasdef.attacks.white.fab import FAB
from kerasdef.testing import check_attack, linear_model

NORMS = ["linf", "l2", "l1"]


def correct(digits, model, n):
    x, y = digits[2], digits[3]
    right = ~broken(model, x, y)
    return x[right][:n], y[right][:n]


def lengths(attack, model, x, y, norm):
    """Sizes of the changes, infinite where the attack failed."""
    found = quiet(attack, model, x, y)
    return np.where(broken(model, found, y), size(norm, found - x), np.inf)


# -- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("k", "targets"), [(2, None), (5, None), (5, 9), pytest.param(2, 9, marks=pytest.mark.slow)])
def test_it_reaches_the_smallest_distance_on_linear_models(norm, targets, k):
    oracle, x, y = linear(k)
    found = quiet(FAB(norm=norm, targets=targets, steps=20, bounds=WIDE), oracle.model(), x, y)
    assert (oracle.margin(found, y) > 0).all()
    ratio = size(norm, found - x) / oracle.smallest_distance(x, y, norm)
    # the final search aims 0.1 % behind the boundary; in L1 steps go from corner to corner, and 20 may not be enough
    assert (ratio <= (1.02 if norm == "l1" else 1.002)).all()
    assert (ratio >= 1 - 1e-3).all()  # float32


@pytest.mark.parametrize("norm", NORMS)
def test_the_box_is_part_of_the_problem(norm):
    """Half of the features stand at the bound: the best change of the others is known."""
    model = linear_model(np.ones((8, 2)) * [0.0, 1.0], [0.0, -5.0])
    x = np.float32([[1, 1, 1, 1, 0.5, 0.5, 0.5, 0.5]])
    x[0, 4:] -= 0.375  # margin -0.5
    found = quiet(FAB(norm=norm, steps=10), model, x, np.array([0]))
    assert broken(model, found, [0]).all()
    best = {"linf": 0.125, "l2": 0.25, "l1": 0.5}[norm]
    np.testing.assert_allclose(size(norm, found - x), best, rtol=2e-3)  # the aim, and float32


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("targets", [None, 9])
def test_with_a_radius_it_breaks_exactly_what_can_be_broken_and_stays_inside(norm, targets):
    oracle, x, y = linear(5, n=60)
    distance = oracle.smallest_distance(x, y, norm)
    eps = np.median(distance)
    attack = FAB(norm=norm, eps=eps, targets=targets, steps=20, bounds=WIDE)
    found = attack.run(oracle.model(), x, y, progress=False)
    assert not found.success[distance > eps].any()
    assert found.success[distance < 0.95 * eps].all()  # steps overshoot by 5 % of what is left
    np.testing.assert_array_equal(found.x_adv[~found.success], x[~found.success])
    assert (size(norm, found.x_adv - x) <= eps * (1 + 1e-5)).all()  # float32
    assert found.evaluations[found.success].max() < found.evaluations[~found.success].min()  # they leave early


def test_every_row_keeps_to_its_own_radius():
    oracle, x, y = linear(5)
    distance = oracle.smallest_distance(x, y, "l2")
    eps = distance * np.where(np.arange(len(x)) % 2, 1.3, 0.7)
    found = FAB(norm="l2", eps=eps, steps=20, bounds=WIDE).run(oracle.model(), x, y, progress=False)
    np.testing.assert_array_equal(found.success, eps > distance)


# -- the promise of each setting -------------------------------------------------------------------


@pytest.mark.parametrize("norm", [pytest.param("linf", marks=pytest.mark.slow), "l2"])
def test_it_finds_smaller_changes_than_deepfool(norm, digits, digits_model):
    x, y = correct(digits, digits_model, 80)
    ours = lengths(FAB(norm=norm, steps=20), digits_model, x, y, norm)
    theirs = lengths(DeepFool(norm=norm), digits_model, x, y, norm)
    assert np.isfinite(ours).mean() > 0.97  # 20 steps of 100
    assert np.median(ours) < np.median(theirs)
    assert np.mean(ours <= theirs) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["l2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("linf", "l1"))])
def test_more_targets_and_more_restarts_break_what_fewer_break(norm, digits, digits_model):
    x, y = correct(digits, digits_model, 60)
    eps = {"linf": 0.12, "l2": 0.6, "l1": 1.5}[norm]
    base = FAB(norm=norm, eps=eps, steps=8)
    for few, more in (
        (dataclasses.replace(base, targets=1), dataclasses.replace(base, targets=9)),
        (base, dataclasses.replace(base, restarts=4)),
    ):
        fell = [broken(digits_model, quiet(a, digits_model, x, y), y) for a in (few, more)]
        assert not (fell[0] & ~fell[1]).any()  # the first of several runs is the one
        assert 0 < fell[0].sum() <= fell[1].sum() < 60


@pytest.mark.slow
def test_more_targets_and_more_restarts_find_smaller_changes(digits, digits_model):
    x, y = correct(digits, digits_model, 60)
    base = FAB(norm="l1", steps=20)
    for few, more in ({"targets": 1}, {"targets": 9}), ({"restarts": 1}, {"restarts": 4}):
        one, found = (lengths(dataclasses.replace(base, **s), digits_model, x, y, "l1") for s in (few, more))
        assert (found < 0.98 * one).any()
        assert np.mean(found > 1.02 * one) < 0.1  # the final search gains more on some points than on others


def test_every_restart_has_a_start_of_its_own_from_the_seed(digits, digits_model):
    x, y = correct(digits, digits_model, 20)
    attack = FAB(norm="l2", steps=8, restarts=3)
    found = [quiet(attack, digits_model, x, y, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])


def test_targets_are_no_more_than_there_are_classes():
    oracle, x, y = linear(3)
    found = FAB(targets=9, steps=10, bounds=WIDE).run(oracle.model(), x, y, progress=False)
    assert (found.evaluations >= 2 * 10 + 3).all()  # two targets and the final search
    assert (found.evaluations < 4 * 10).all()  # looks are eleven steps apart


@pytest.mark.parametrize("targets", [None, 9])
def test_with_a_target_of_its_own_it_arrives_there(targets, digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    goals = (y + 3) % 10
    found = Targeted(FAB(norm="l2", steps=30, targets=targets), goals).run(digits_model, x, y, progress=False)
    assert found.success.mean() > 0.9
    predicted = models.predict_logits(digits_model, found.x_adv).argmax(axis=1)
    np.testing.assert_array_equal(predicted == goals, found.success)
    assert found.evaluations.max() <= 33  # one run


def test_a_rejected_class_does_not_count():
    oracle, x, y = linear(5, n=60)
    x, y = x[y != 4], y[y != 4]
    found = quiet(FAB(norm="l2", targets=9, steps=20, bounds=WIDE, goal=Evade(4)), oracle.model(), x, y)
    predicted = oracle.logits(found).argmax(axis=1)
    assert (predicted != y).all()
    assert (predicted != 4).all()


def test_what_it_cannot_break_comes_back_unchanged():
    flat = linear_model(np.zeros((6, 3)), [1.0, 0.0, 0.0])
    x = np.random.default_rng(0).uniform(0, 1, (5, 6)).astype("float32")
    for attack in (FAB(steps=4, restarts=2), FAB(steps=4, targets=2, eps=0.3)):
        np.testing.assert_array_equal(quiet(attack, flat, x, np.zeros(5, dtype="int64")), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        *(FAB(norm=norm, steps=6) for norm in NORMS[1:]),  # in Linf: see test_attacks.py
        FAB(norm="l2", steps=5, restarts=2, targets=2),
        FAB(norm="linf", eps=0.2, steps=6, targets=9),
        FAB(norm="l2", eps=0.7, steps=6, restarts=2),
    ],
    ids=lambda a: f"{type(a.norm).__name__}-{a.kind}-{a.targets}-{a.restarts}",
)
def test_it_keeps_the_contract(attack):
    ball = {"norm": attack.norm, "eps": attack.eps} if attack.kind == "budget" else {}
    check_attack(attack, kind=attack.kind, **ball)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "Received: steps=0"),
        ({"restarts": 0}, "Received: restarts=0"),
        ({"targets": 0}, "Received: targets=0"),
        ({"eps": -0.1}, "Received: eps=-0.1"),
        ({"alpha_max": 1.1}, "Received: alpha_max=1.1"),
        ({"eta": 0.9}, "Received: eta=0.9"),
        ({"beta": 1.0}, "Received: beta=1.0"),
        ({"norm": norms.Box([1.0])}, "`norm` must be linf or l2 or l1 here"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        FAB(**settings)
    assert hash(FAB(eps=(0.1, 0.2))) == hash(dataclasses.replace(FAB(), eps=[0.1, 0.2]))
