"""Schedules: the radius between its points, stages as data, what is refused."""

import numpy as np
import pytest
from keras import ops

from kerasdef.attacks import APGD, FGSM, PGD
from kerasdef.training import Radius, Stage
from kerasdef.training.schedules import attack_of, radii_of


def at(radius, batches):
    return [float(ops.convert_to_numpy(radius.at(ops.convert_to_tensor(t, dtype="int32")))) for t in batches]


def test_a_ramp_is_a_straight_line_and_then_constant():
    np.testing.assert_allclose(at(Radius.ramp(0.3, 10), [0, 1, 5, 10, 1000]), [0, 0.03, 0.15, 0.3, 0.3], atol=1e-6)


def test_a_ramp_over_no_batches_is_the_radius_from_the_start():
    np.testing.assert_allclose(at(Radius.ramp(0.3, 0), [0, 7]), [0.3, 0.3], atol=1e-6)


def test_stages_jump_where_they_begin():
    radius = Radius.stages([0.1, 0.2, 0.4], [3, 2, 5])
    np.testing.assert_allclose(at(radius, [0, 2, 3, 4, 5, 99]), [0.1, 0.1, 0.2, 0.2, 0.4, 0.4], atol=1e-6)
    assert radius.last == 0.4


def test_geometric_radii_grow_by_one_factor():
    found = at(Radius.geometric(0.1, 0.4, 3, 10), [0, 10, 20])
    np.testing.assert_allclose(found, [0.1, 0.2, 0.4], atol=1e-6)


def test_stages_give_attack_and_radius_by_epoch():
    stages = (Stage(2, APGD(eps=0.1, steps=2)), Stage(1, PGD(eps=0.3, steps=5)))
    assert [attack_of(stages, epoch) for epoch in range(4)] == [stages[0].attack] * 2 + [stages[1].attack] * 2
    np.testing.assert_allclose(at(radii_of(stages, 10), [0, 19, 20]), [0.1, 0.1, 0.3], atol=1e-6)


def test_what_shrinks_or_does_not_match_is_refused():
    with pytest.raises(ValueError, match="in which neither shrinks"):
        Radius(((0, 0.3), (10, 0.1)))
    with pytest.raises(ValueError, match="in which neither shrinks"):
        Radius(((10, 0.1), (5, 0.3)))
    with pytest.raises(ValueError, match="in which neither shrinks"):
        Radius(())
    with pytest.raises(ValueError, match="one radius for each stage"):
        Radius.stages([0.1, 0.2], [5])
    with pytest.raises(ValueError, match="neither shrinks"):
        radii_of((Stage(1, FGSM(eps=0.3)), Stage(1, FGSM(eps=0.1))), 10)
    with pytest.raises(ValueError, match="`epochs` must be a positive integer"):
        Stage(0, FGSM())
    with pytest.raises(ValueError, match="an attack that takes steps"):
        Stage(1, "pgd")
