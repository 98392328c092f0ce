"""The threat model of every attack, made from its own settings and validated once."""

import numpy as np
import pytest

import kerasdef.attacks as attacks
from kerasdef import norms
from kerasdef.attacks import GMA, PGD, CarliniWagner, Cycled, HopSkipJump, Quantized, Restarts, Targeted, WorstOf
from kerasdef.goals import Evade, Hit
from kerasdef.threat import ThreatModel


def test_a_budget_attack_tells_its_ball_its_goal_and_its_range():
    threat = PGD(eps=8, norm="l2", bounds=(0, 255), goal=Evade(10)).threat
    assert (threat.norm, threat.eps, threat.bounds, threat.goal) == (norms.L2(), 8, (0, 255), Evade(10))
    assert (threat.access, threat.queries, threat.knows) == ("white box", None, "the whole model")
    np.testing.assert_array_equal(threat.radii(3), [8, 8, 8])


def test_a_minimal_attack_has_a_norm_and_no_radius():
    threat = CarliniWagner().threat
    assert (threat.norm, threat.eps, threat.radii(3)) == (norms.L2(), None, None)


def test_a_query_attack_tells_its_budget_and_what_it_does_not_know():
    threat = HopSkipJump(queries=77).threat
    assert (threat.access, threat.queries, threat.knows) == ("black box", 77, "the outputs of the model")


def test_radii_of_samples_and_radii_in_turn():
    np.testing.assert_array_equal(PGD(eps=(0.1, 0.2)).threat.radii(2), [0.1, 0.2])
    np.testing.assert_array_equal(Cycled(PGD(norm="l2"), (1.0, 2.0, 3.0)).threat.radii(4), [1, 2, 3, 1])
    np.testing.assert_array_equal(GMA().threat.radii(31), GMA().radii_of(31))


@pytest.mark.parametrize("wrap", [lambda a: Restarts(a, 2), Targeted, Quantized, lambda a: WorstOf((a, a))])
def test_wrappers_have_the_ball_of_what_they_wrap(wrap):
    threat = wrap(PGD(eps=0.2, norm="l2")).threat
    assert (threat.norm, threat.eps) == (norms.L2(), 0.2)


def test_attacks_with_different_balls_have_none_together():
    threat = WorstOf((PGD(eps=0.2), PGD(eps=0.1))).threat
    assert (threat.norm, threat.eps) == (None, None)


def test_every_attack_with_defaults_tells_its_threat():
    for name in ("FGSM", "APGD", "AutoAttack", "FAB", "FMN", "DeepFool", "CarliniWagnerLinf", "Square", "NES", "ZOO"):
        attack = getattr(attacks, name)()
        record = attack.threat.record()
        assert record["norm"] in ("Linf", "L2", "L1"), name
        assert record["access"] == attack.access


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"norm": "l3"}, "`norm`"),
        ({"eps": -1.0}, "`eps`"),
        ({"bounds": (1, 0)}, "`bounds`"),
        ({"goal": "hit"}, "`goal` must be a Goal"),
        ({"access": "grey box"}, "`access`"),
        ({"queries": 0}, "`queries`"),
    ],
)
def test_bad_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ThreatModel(**given)


def test_goals_are_part_of_it():
    assert PGD(goal=Hit()).threat.goal == Hit()
