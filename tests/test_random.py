"""Counter-based random numbers: uniform, normal, and the same in any batch and on any backend."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from keras import ops

from kerasdef import random as draws

N = 200_000


def seeds(n, seed=0, start=0):
    return ops.convert_to_tensor(draws.sample_seeds(seed, np.arange(start, start + n)))


def array(value):
    return ops.convert_to_numpy(value)


def close(found, wanted, deviation, n):
    """Within five standard errors of a mean of n numbers."""
    return abs(found - wanted) < 5 * deviation / np.sqrt(n)


@pytest.fixture(scope="module")
def uniform():
    return array(draws.uniform(seeds(N // 100), (10, 10))).astype("float64")


@pytest.fixture(scope="module")
def normal():
    return array(draws.normal(seeds(N // 100), (10, 10))).astype("float64")


def test_uniform_numbers_lie_strictly_between_0_and_1(uniform):
    assert uniform.min() > 0
    assert uniform.max() < 1


def test_uniform_numbers_have_the_mean_and_variance_of_a_uniform_variable(uniform):
    assert close(uniform.mean(), 1 / 2, np.sqrt(1 / 12), N)
    assert close(np.mean((uniform - 0.5) ** 2), 1 / 12, np.sqrt(1 / 80 - 1 / 144), N)


def test_uniform_numbers_fill_all_bins_evenly(uniform):
    count = np.histogram(uniform, bins=50, range=(0, 1))[0]
    chi2 = np.sum((count - N / 50) ** 2 / (N / 50))
    assert abs(chi2 - 49) < 5 * np.sqrt(2 * 49)  # mean 49 and variance 98


def test_normal_numbers_have_mean_0_variance_1_and_kurtosis_3(normal):
    assert np.isfinite(normal).all()
    assert close(normal.mean(), 0, 1, N)
    assert close(np.mean(normal**2), 1, np.sqrt(2), N)
    assert close(np.mean(normal**4), 3, np.sqrt(96), N)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_neighbors_are_not_correlated(uniform, axis):
    a = np.take(uniform, range(uniform.shape[axis] - 1), axis=axis).ravel() - 0.5
    b = np.take(uniform, range(1, uniform.shape[axis]), axis=axis).ravel() - 0.5
    assert close(np.mean(a * b) * 12, 0, 1, a.size)


def test_neighboring_seeds_and_salts_give_unrelated_numbers(uniform):
    n = N // 100
    for other in (draws.uniform(seeds(n, seed=1), (10, 10)), draws.uniform(seeds(n), (10, 10), salt=1)):
        other = array(other).astype("float64")
        assert close(np.mean((uniform - 0.5) * (other - 0.5)) * 12, 0, 1, N)


def test_a_sample_draws_the_same_numbers_in_any_batch():
    whole = array(draws.uniform(seeds(20), (3, 2)))
    for size in (1, 7):
        parts = [array(draws.uniform(seeds(min(size, 20 - i), start=i), (3, 2))) for i in range(0, 20, size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_seeds_differ_for_different_samples():
    assert len(np.unique(draws.sample_seeds(0, np.arange(50_000)))) == 50_000
    assert not np.any(draws.sample_seeds(0, np.arange(100)) == draws.sample_seeds(1, np.arange(100)))


def test_numbers_of_one_sample_do_not_repeat():
    assert len(np.unique(array(draws.bits(seeds(1), (50_000,))))) > 49_990  # 0.3 collisions are expected


def _fingerprint() -> dict:
    bits = array(draws.bits(seeds(50), (4, 5), salt=7))
    numbers = array(draws.normal(seeds(3), (4,)))
    return {"bits": hashlib.sha256(bits.tobytes()).hexdigest(), "normal": numbers.tolist()}


@pytest.mark.slow
@pytest.mark.parametrize("other", ["tensorflow", "jax"])
def test_tensorflow_and_jax_draw_the_same_bits(other):
    code = "import json, tests.test_random as t; print(json.dumps(t._fingerprint()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"KERAS_BACKEND": other, "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        check=True,
    )
    theirs, ours = json.loads(done.stdout.splitlines()[-1]), _fingerprint()
    assert theirs["bits"] == ours["bits"]
    np.testing.assert_allclose(theirs["normal"], ours["normal"], rtol=1e-5)  # erfinv is approximated differently
