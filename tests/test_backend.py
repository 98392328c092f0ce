"""The backend file: gradients, compiled functions, and models that are read but not changed."""

import numpy as np
import pytest
from keras import ops

from kerasdef import backend
from kerasdef.testing import linear_model


def test_the_gradient_of_a_quadratic_is_its_closed_form():
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(3, 3)).astype("float32"), rng.normal(size=(5, 3)).astype("float32")

    def fn(z):
        return ops.sum(ops.matmul(z, a) * z, axis=1), z * 2

    value, aux, grad = (ops.convert_to_numpy(v) for v in backend.gradient(fn)(ops.convert_to_tensor(x)))
    np.testing.assert_allclose(value, np.einsum("ni,ij,nj->n", x, a, x), rtol=1e-4, atol=1e-5)  # float32
    np.testing.assert_array_equal(aux, 2 * x)
    np.testing.assert_allclose(grad, x @ (a + a.T), rtol=1e-4, atol=1e-5)  # float32


def test_the_gradient_of_what_does_not_depend_on_x_is_zero():
    x = ops.convert_to_tensor(np.ones((2, 3), dtype="float32"))
    grad = backend.gradient(lambda z: (ops.ones((2,)), ()))(x)[2]
    np.testing.assert_array_equal(ops.convert_to_numpy(grad), np.zeros((2, 3)))


@pytest.mark.parametrize("k", [1, 3, 40])
def test_the_jacobian_of_quadratics_is_its_closed_form(k):
    rng = np.random.default_rng(1)
    a, x = rng.normal(size=(k, 3, 3)).astype("float32"), rng.normal(size=(5, 3)).astype("float32")

    def fn(z):
        return ops.einsum("ni,kij,nj->nk", z, a, z), z * 2

    model = linear_model(np.eye(3))  # compiled functions belong to a model
    for run in (backend.jacobian(fn), backend.compiled(backend.jacobian(fn), model)):
        values, aux, jac = (ops.convert_to_numpy(v) for v in run(ops.convert_to_tensor(x)))
        np.testing.assert_allclose(values, np.einsum("ni,kij,nj->nk", x, a, x), rtol=1e-4, atol=1e-5)  # float32
        np.testing.assert_array_equal(aux, 2 * x)
        exact = np.einsum("kij,nj->nki", a + a.transpose(0, 2, 1), x)
        np.testing.assert_allclose(jac, exact, rtol=1e-4, atol=1e-5)  # float32


def test_the_jacobian_of_what_does_not_depend_on_x_is_zero():
    x = ops.convert_to_tensor(np.ones((2, 3), dtype="float32"))
    jac = backend.jacobian(lambda z: (ops.ones((2, 4)), ()))(x)[2]
    np.testing.assert_array_equal(ops.convert_to_numpy(jac), np.zeros((2, 4, 3)))


def test_a_compiled_function_sees_later_weights_and_is_not_traced_again_for_equal_shapes():
    model = linear_model(np.eye(3))
    traces = []

    def fn(x):
        traces.append(1)
        return model(x)

    run = backend.compiled(fn, model)
    x = np.ones((2, 3), dtype="float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(run(x)), np.ones((2, 3)))
    model.layers[-1].set_weights([3 * np.eye(3, dtype="float32"), np.zeros(3, dtype="float32")])
    np.testing.assert_array_equal(ops.convert_to_numpy(run(2 * x)), 6 * np.ones((2, 3)))
    assert len(traces) == 1


def test_the_device_has_a_name():
    assert backend.NAME in ("tensorflow", "jax")
    assert backend.device()
    assert isinstance(backend.has_gpu(), bool)
    assert backend.jit() in (True, False, "auto")


def test_pools_shrink_in_whole_blocks_and_in_few_sizes_where_each_is_compiled():
    for batch_size in (1, 5, 60, 256, 1000):
        found = backend.sizes(batch_size, 1000)
        assert found == sorted(set(found), reverse=True)
        assert all(size % found[-1] == 0 for size in found)
        assert found[-1] == backend.sizes(1, 1000)[0]  # the block: the same for every batch size
        assert found[0] <= max(batch_size, found[-1])
    if backend.NAME == "tensorflow" and not backend.has_gpu():
        assert backend.sizes(256, 1000) == [240, 192, 144, 96, 48]
    else:
        assert backend.sizes(256, 1000) == [256, 64]
