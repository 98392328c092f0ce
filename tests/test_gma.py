"""GMA: thirty radii, each image in its ball, and the analysis of Algorithm 2."""

import math

import numpy as np
import pytest
from helpers import size

from kerasdef import models
from kerasdef.attacks import GMA, gma_analysis
from kerasdef.testing import linear_model


@pytest.fixture(scope="module")
def fragile():
    """A linear model on inputs that lie 0.0001 from its decision boundary, all classified right."""
    model = linear_model([[1.0, -1.0]] * 4)
    x = np.random.default_rng(0).uniform(0.3, 0.7, (30, 4)).astype("float32")
    y = np.arange(30) % 2
    total = np.where(y == 0, 1, -1) * 1e-4
    model.layers[-1].set_weights([model.layers[-1].get_weights()[0], np.float32([-2.0, 2.0])])
    x += ((2.0 + total - x.sum(axis=1)) / 4)[:, None].astype("float32")
    assert (models.predict_logits(model, x).argmax(axis=1) == y).all()
    return model, x, y


@pytest.fixture(scope="module")
def robust():
    """A model that says 0 to everything."""
    return (
        linear_model(np.zeros((4, 2)), [1.0, 0.0]),
        np.full((30, 4), 0.5, dtype="float32"),
        np.zeros(30, dtype=int),
    )


def test_there_are_thirty_radii_from_the_paper():
    radii = GMA().radii
    assert len(radii) == len(set(radii)) == 30
    assert math.isclose(min(radii), 0.1 * math.exp(-6))
    assert math.isclose(min(radii), 0.000248, rel_tol=2e-3)
    assert math.isclose(max(radii), 3 * math.exp(-1))
    assert math.isclose(max(radii), 1.1036, rel_tol=1e-4)
    np.testing.assert_allclose(radii[:6], [v * math.exp(-1) for v in (0.1, 0.5, 1, 2, 3)] + [0.1 * math.exp(-2)])


def test_cycle_gives_every_image_one_radius_and_all_gives_it_all():
    attack = GMA(radii=(0.1, 0.2, 0.3), scale=2.0)
    np.testing.assert_allclose(attack.radii_of(5), [0.2, 0.4, 0.6, 0.2, 0.4])
    every = GMA(mode="all", radii=(0.1, 0.2))
    np.testing.assert_allclose(every.radii_of(3), [0.1, 0.2] * 3)
    assert len(GMA(mode="all").radii_of(4)) == 120


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_every_image_stays_in_its_ball(norm, digits, digits_model):
    x, y = digits[2][:35], digits[3][:35]
    attack = GMA(norm=norm)
    x_adv = attack(digits_model, x, y, progress=False)
    assert x_adv.shape == x.shape
    assert (size(norm, x_adv - x) <= attack.radii_of(35) * (1 + 1e-5) + 2e-6).all()  # x + delta is rounded
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1


def test_all_returns_every_image_at_every_radius_in_order(digits, digits_model):
    x, y = digits[2][:3], digits[3][:3]
    attack = GMA(mode="all")
    x_adv = attack(digits_model, x, y, progress=False)
    assert x_adv.shape == (90, *x.shape[1:])
    distance = size("linf", x_adv - np.repeat(x, 30, axis=0))
    assert (distance <= attack.radii_of(3) * (1 + 1e-5) + 2e-7).all()  # x + delta is rounded
    for j in (0, 4, 29):
        alone = GMA(radii=(attack.radii[j],))(digits_model, x, y, progress=False)
        np.testing.assert_allclose(x_adv[j::30], alone, atol=1e-5)  # kernels of another batch size


def test_quantized_images_lie_on_the_8_bit_grid(digits, digits_model):
    x, y = digits[2][:30], digits[3][:30]
    levels = GMA(quantize=True)(digits_model, x, y, progress=False) * 255
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)  # float32 times 255


def test_a_model_at_its_boundary_falls_in_the_first_round(fragile):
    found = gma_analysis(*fragile, progress=False)
    assert found.baseline == 1.0
    assert found.success
    assert found.case == "worst"
    assert found.rounds == (0.0,)
    assert len(found.by_radius) == 30
    assert set(found.by_radius.values()) == {0.0}


@pytest.mark.parametrize("mode", ["cycle", "all"])
def test_a_robust_model_survives_all_rounds(mode, robust):
    found = gma_analysis(*robust, attack=GMA(mode=mode), progress=False)
    assert not found.success
    assert found.case == "best"
    assert found.rounds == (1.0, 1.0, 1.0)
    assert set(found.by_radius.values()) == {1.0}


def test_a_model_between_the_cases_is_called_so(robust):
    model, x, y = robust
    y = np.where(np.arange(30) % 3 == 0, 1, 0)
    found = gma_analysis(model, x, y, rounds=2, progress=False)
    assert (found.case, found.success, len(found.rounds)) == ("between", False, 2)
    assert math.isclose(found.rounds[0], 2 / 3)


def test_the_analysis_takes_uint8_images_as_the_attack_does(digits, digits_model):
    pixels, y = np.rint(digits[2][:30] * 255).astype("uint8"), digits[3][:30]
    a = gma_analysis(digits_model, pixels, y, rounds=1, progress=False)
    b = gma_analysis(digits_model, pixels.astype("float32") / np.float32(255), y, rounds=1, progress=False)
    assert a == b


@pytest.mark.parametrize(
    ("name", "value"),
    [("mode", "every"), ("radii", [-0.1]), ("radii", []), ("steps", 0), ("scale", 0.0), ("bounds", (1, 0))],
)
def test_settings_are_checked(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}="):
        GMA(**{name: value})


def test_one_radius_may_be_a_number():
    assert GMA(radii=0.1).radii == (0.1,)


def test_the_cases_must_be_in_order(robust):
    with pytest.raises(ValueError, match="Received: worst_case="):
        gma_analysis(*robust, best_case=0.5, worst_case=0.8)
