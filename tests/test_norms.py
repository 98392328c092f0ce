"""Norms: every exported one keeps the contract, and what each is known for."""

import inspect

import numpy as np
import pytest
from keras import ops

from kerasdef import norms
from kerasdef import random as draws
from kerasdef.norms import L1, L2, Box, Linf, Masked, Norm
from kerasdef.testing import check_norm
from kerasdef.testing.norms import _check_projection, _check_steepest

SHAPED = (Masked, Box)  # made for samples of one shape, so without a name
EXPORTED = [c for c in vars(norms).values() if inspect.isclass(c) and issubclass(c, Norm) and c not in (Norm, *SHAPED)]


def array(value):
    return ops.convert_to_numpy(value)


def tensor(value):
    return ops.convert_to_tensor(np.asarray(value, dtype="float32"))


@pytest.mark.parametrize("norm", EXPORTED)
def test_every_exported_norm_keeps_the_contract(norm):
    check_norm(norm())


@pytest.mark.parametrize("norm", EXPORTED)
def test_every_exported_norm_has_a_name(norm):
    assert norm in norms.NORMS.values()
    name = next(k for k, v in norms.NORMS.items() if v is norm)
    assert isinstance(norms.get(name), norm)
    assert isinstance(norms.get(name.upper()), norm)


def test_the_contract_catches_a_projection_that_moves_interior_points():
    class Wrong(L2):
        def project(self, delta, eps):
            size = self.size(delta)
            return delta * norms.per_sample(eps / ops.maximum(size, 1e-12), delta)

    with pytest.raises(AssertionError, match="points inside stay"):
        check_norm(Wrong())


def test_the_contract_catches_a_projection_that_is_not_the_nearest_point():
    class Wrong(Linf):
        def project(self, delta, eps):
            factor = ops.minimum(1.0, eps / ops.maximum(self.size(delta), 1e-12))
            return delta * norms.per_sample(factor, delta)

    with pytest.raises(AssertionError, match="the nearest point"):
        check_norm(Wrong())


def test_the_contract_catches_samples_that_crowd_at_the_center():
    class Wrong(L2):
        def sample(self, seeds, shape, eps):
            point = super().sample(seeds, shape, eps)
            return point * norms.per_sample(draws.uniform(seeds, (1,), salt=9)[:, 0], point)

    with pytest.raises(AssertionError, match="sample: uniform"):
        check_norm(Wrong())


@pytest.mark.parametrize(("norm", "size"), [(Linf(), 3.0), (L2(), np.sqrt(14.0)), (L1(), 6.0)])
def test_size_is_measured_over_all_features(norm, size):
    delta = ops.reshape(tensor([1.0, -2.0, 3.0, 0.0]), (1, 2, 2, 1))
    np.testing.assert_allclose(array(norm.size(delta)), [size], rtol=1e-6)  # float32


def test_l1_projection_equals_the_one_found_by_bisection():
    rng = np.random.default_rng(0)
    z, eps = rng.normal(size=(20, 9)), rng.uniform(0.1, 3.0, 20)
    got = array(L1().project(tensor(z), tensor(eps)))
    for row, radius, answer in zip(z, eps, got, strict=True):
        low, high = 0.0, np.abs(row).max()
        for _ in range(60):
            theta = (low + high) / 2
            total = np.maximum(np.abs(row) - theta, 0).sum()
            low, high = (theta, high) if total > radius else (low, theta)
        wanted = np.sign(row) * np.maximum(np.abs(row) - low, 0) if np.abs(row).sum() > radius else row
        np.testing.assert_allclose(answer, wanted, atol=1e-5)  # float32 sums


def test_l1_projection_of_a_whole_image_stays_in_the_ball():
    z = np.random.default_rng(1).normal(size=(4, 32, 32, 3))
    delta = L1().project(tensor(z), tensor(np.full(4, 5.0)))
    np.testing.assert_allclose(array(L1().size(delta)), 5.0, rtol=1e-3)  # a float32 sum of 3072 terms


def test_steepest_l2_step_survives_tiny_gradients():
    step = L2().steepest(tensor([[3e-25, 4e-25]]))
    np.testing.assert_allclose(array(step), [[0.6, 0.8]], rtol=1e-4)  # 1e-25 has few digits left after scaling


@pytest.mark.parametrize(("density", "moved"), [(0.1, 1), (0.3, 3), (1.0, 10)])
def test_l1_density_is_the_share_of_features_moved(density, moved):
    grad = np.random.default_rng(2).normal(size=(3, 10))
    step = array(L1(density).steepest(tensor(grad)))
    assert (np.count_nonzero(step, axis=1) == moved).all()
    np.testing.assert_allclose(np.abs(step).sum(axis=1), 1.0, rtol=1e-6)  # float32


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5, float("nan")])
def test_l1_density_outside_its_range_is_an_error(density):
    with pytest.raises(ValueError, match="Received: density="):
        L1(density)


def test_l2_samples_keep_away_from_the_center_in_many_dimensions_but_not_in_one():
    seeds, eps = ops.convert_to_tensor(draws.sample_seeds(0, np.arange(2000))), tensor(np.ones(2000))
    many = array(L2().size(L2().sample(seeds, (6, 5), eps)))
    one = array(L2().size(L2().sample(seeds, (1,), eps)))
    assert np.mean(many <= 0.5) == 0.0  # probability 2**-30
    assert abs(np.mean(one <= 0.5) - 0.5) < 5 * np.sqrt(0.25 / 2000)  # five standard errors


@pytest.mark.parametrize(("name", "near"), [("l3", None), ("linff", "linf"), ("inf", "linf"), (2, None)])
def test_an_unknown_norm_is_an_error_that_names_the_nearest(name, near):
    with pytest.raises(ValueError, match="Received: norm=") as error:
        norms.get(name)
    assert near is None or f"Did you mean '{near}'" in str(error.value)


# -- masks and boxes -------------------------------------------------------------------------------


def test_a_box_of_equal_radii_keeps_the_contract():
    check_norm(Box(0.7))


def test_a_box_keeps_the_contract_but_for_equal_coordinates():
    # `check_norm` asks that samples spread the same way in every coordinate, which a box is there to break
    radii = np.linspace(0.2, 3.0, 7)
    _check_projection(Box(radii), (7,))
    _check_steepest(Box(radii), (7,))
    seeds, eps = ops.convert_to_tensor(draws.sample_seeds(3, np.arange(4000))), np.linspace(0.5, 2.0, 4000)
    points = array(Box(radii).sample(seeds, (7,), tensor(eps))) / eps[:, None] / radii
    assert np.abs(points).max() <= 1 + 1e-6  # float32
    share = np.abs(points)
    assert (np.abs(share.mean(axis=0) - 0.5) <= 5 * np.sqrt(1 / 12 / 4000)).all()  # five standard errors
    assert (np.abs(points.mean(axis=0)) <= 5 * np.sqrt(1 / 3 / 4000)).all()


def test_a_feature_of_radius_0_is_fixed():
    box = Box([[1.0, 0.0], [2.0, 0.5]])
    delta = tensor([[[9.0, 9.0], [-9.0, 0.1]]])
    np.testing.assert_allclose(array(box.project(delta, tensor([0.5]))), [[[0.5, 0.0], [-1.0, 0.1]]])
    np.testing.assert_allclose(array(box.steepest(delta)), [[[1.0, 0.0], [-2.0, 0.5]]])
    np.testing.assert_allclose(array(box.size(tensor([[[0.5, 0.0], [-3.0, 0.1]]]))), [1.5])
    assert np.isinf(array(box.size(tensor([[[0.0, 0.01], [0.0, 0.0]]]))))


@pytest.mark.parametrize("norm", [Linf(), L2(), L1(density=0.4)])
def test_a_masked_norm_is_the_norm_of_the_features_that_move(norm):
    rng = np.random.default_rng(0)
    mask = rng.uniform(size=(4, 5, 1)) < 0.5
    masked, count = Masked(norm, mask), int(mask.sum())
    z, eps = rng.normal(size=(6, 4, 5, 1)) * 1.0, tensor(np.linspace(0.1, 2.0, 6))
    seeds = ops.convert_to_tensor(draws.sample_seeds(0, np.arange(6)))
    part = tensor(z[:, mask])
    pairs = [
        (masked.project(tensor(z), eps), norm.project(part, eps)),
        (masked.steepest(tensor(z)), norm.steepest(part)),
        (masked.sample(seeds, (4, 5, 1), eps), norm.sample(seeds, (count,), eps)),
    ]
    for whole, wanted in pairs:
        assert whole.shape == (6, 4, 5, 1)
        np.testing.assert_array_equal(array(whole)[:, mask], array(wanted))
        assert (array(whole)[:, ~mask] == 0).all()
    np.testing.assert_allclose(array(masked.size(tensor(z * mask))), array(norm.size(part)), rtol=1e-6)  # float32
    assert np.isinf(array(masked.size(tensor(z)))).all()


def test_a_mask_broadcasts_over_channels_and_fits_flat_features():
    mask = np.zeros((2, 3, 1))
    mask[0, 1] = 1
    delta = array(Masked("linf", mask).project(tensor(np.ones((1, 2, 3, 2))), tensor([0.5])))
    assert delta.sum() == 1.0
    assert (delta[0, 0, 1] == 0.5).all()
    assert array(Masked("linf", mask).project(tensor(np.ones((1, 6))), tensor([0.5]))).tolist()[0][1] == 0.5


def test_masks_and_boxes_are_equal_by_value_and_short_in_words():
    mask, box = Masked("l2", np.eye(9)), Box(np.arange(9.0))
    for one, same, others in (
        (mask, Masked(L2(), np.eye(9)), (Masked("l2", 1 - np.eye(9)), Masked("linf", np.eye(9)), L2())),
        (box, Box(np.arange(9)), (Box(np.arange(9.0) + 1), Box(np.arange(9.0).reshape(3, 3)), Linf())),
    ):
        assert one == same
        assert hash(one) == hash(same)
        assert all(one != other for other in others)
    assert repr(mask) == "Masked(norm=L2(), mask=<9 of 81>)"
    assert repr(box) == "Box(radii=<9 values>)"
    assert repr(Box([1.0, 0.5])) == "Box(radii=[1.0, 0.5])"


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Masked("l2", [0, 2]), "`mask` must hold 0 and 1"),
        (lambda: Masked("l2", [0, 0]), "at least one 1"),
        (lambda: Masked("l9", [1]), "`norm` must be one of"),
        (lambda: Masked(Box(1.0), [1]), "no shape of its own"),
        (lambda: Box([0.0, 0.0]), "not all of them 0"),
        (lambda: Box([1.0, -1.0]), "at least 0"),
        (lambda: Box([1.0, np.nan]), "finite"),
        (lambda: Box([1.0, 2.0, 3.0]).size(tensor(np.ones((1, 2)))), "`radii` must fit samples of shape"),
        (lambda: Masked("l2", [1, 0]).size(tensor(np.ones((1, 5)))), "`mask` must fit samples of shape"),
    ],
)
def test_wrong_masks_and_radii_are_errors(make, what):
    with pytest.raises(ValueError, match=what):
        make()
