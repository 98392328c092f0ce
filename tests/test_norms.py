"""Norms: every exported one keeps the contract, and what each is known for."""

import inspect

import numpy as np
import pytest
from keras import ops

from kerasdef import norms
from kerasdef import random as draws
from kerasdef.norms import L1, L2, Linf, Norm
from kerasdef.testing import check_norm

EXPORTED = [c for c in vars(norms).values() if inspect.isclass(c) and issubclass(c, Norm) and c is not Norm]


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
