"""Parseval constraints and feature denoising: what they leave alone, where they lead, what they remove."""

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import optimize

from kerasdef import backend
from kerasdef.models.blocks import DENOISERS, ConvexSum, Denoising, Orthonormal, Simplex

KERNELS = [(7, 4), (4, 7), (5, 5), (3, 3, 2, 6), (3, 3, 2, 40), (1, 1, 5, 3)]


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def matrix(kernel):
    return np.reshape(kernel, (-1, kernel.shape[-1]))


def singular(kernel):
    return np.linalg.svd(matrix(kernel), compute_uv=False)


def normal(shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype("float32")


# -- Parseval kernels ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", KERNELS)
def test_orthonormal_kernels_are_left_alone(shape):
    u, _, v = np.linalg.svd(matrix(normal(shape)), full_matrices=False)
    kernel = (u @ v * Orthonormal.scale(shape)).astype("float32").reshape(shape)
    np.testing.assert_allclose(numpy(Orthonormal(0.1)(kernel)), kernel, atol=1e-6)  # float32


@pytest.mark.parametrize("shape", KERNELS)
def test_one_step_moves_each_singular_value_by_the_cubic(shape):
    beta, kernel, scale = 0.01, normal(shape, scale=0.3), Orthonormal.scale(shape)
    u, s, v = np.linalg.svd(matrix(kernel).astype("float64"), full_matrices=False)
    s = s / scale
    wanted = u @ np.diag((1 + beta) * s - beta * s**3) @ v * scale
    np.testing.assert_allclose(matrix(numpy(Orthonormal(beta)(kernel))), wanted, atol=1e-5)  # float32


@pytest.mark.parametrize("shape", KERNELS)
def test_many_steps_lead_to_the_nearest_orthonormal_kernel(shape):
    kernel, constraint = normal(shape, scale=0.1 * Orthonormal.scale(shape)), Orthonormal(0.5)
    u, _, v = np.linalg.svd(matrix(kernel), full_matrices=False)
    for _ in range(40):
        kernel = constraint(kernel)
    wanted = u @ v * Orthonormal.scale(shape)
    np.testing.assert_allclose(matrix(numpy(kernel)), wanted, atol=1e-4)  # forty steps of float32


def test_a_convolution_with_an_orthonormal_kernel_lengthens_nothing():
    kernel = numpy(keras.initializers.Orthogonal(gain=1 / 3, seed=0)((3, 3, 2, 6)))
    np.testing.assert_allclose(singular(kernel), Orthonormal.scale(kernel.shape), atol=1e-6)
    for seed in range(5):
        x = normal((4, 9, 9, 2), seed)
        out = numpy(ops.conv(x, kernel, padding="same", data_format="channels_last"))
        assert np.all(np.square(out).sum(axis=(1, 2, 3)) <= np.square(x).sum(axis=(1, 2, 3)) * (1 + 1e-5))


def test_training_keeps_a_dense_kernel_near_orthonormal():
    x, y = normal((64, 6)), np.random.default_rng(1).integers(0, 6, 64)
    worst = {}
    for beta in (None, 0.5):
        layer = layers.Dense(
            6,
            kernel_initializer=keras.initializers.Orthogonal(seed=0),
            kernel_constraint=None if beta is None else Orthonormal(beta),
        )
        model = keras.Sequential([keras.Input((6,)), layer])
        model.compile(
            keras.optimizers.SGD(0.3),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            jit_compile=backend.jit(),
        )
        model.fit(x, y, epochs=20, batch_size=32, verbose=0)
        worst[beta] = np.abs(singular(np.array(layer.kernel)) - 1).max()
    assert worst[0.5] < 0.05 < 0.2 < worst[None]


# -- convex sums -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_projection_on_the_simplex_is_the_nearest_point(seed):
    k = (1, 2, 3, 5, 8)[seed]
    point = normal(k, seed)
    found = numpy(Simplex()(point))
    assert np.all(found >= 0)
    np.testing.assert_allclose(found.sum(), 1, atol=1e-6)
    wanted = optimize.minimize(
        lambda w: np.square(w - point).sum(),
        np.full(k, 1 / k),
        bounds=[(0, None)] * k,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
    ).x
    np.testing.assert_allclose(found, wanted, atol=1e-3)  # what the solver reaches


def test_the_projection_on_the_simplex_has_its_closed_forms():
    for point, wanted in (
        ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
        ([5.0, 0.0, 0.0], [1.0, 0.0, 0.0]),
        ([1.0, 1.0, 1.0, 1.0], [0.25] * 4),
        ([0.6, 0.8, -3.0], [0.4, 0.6, 0.0]),
    ):
        np.testing.assert_allclose(numpy(Simplex()(np.array(point, "float32"))), wanted, atol=1e-6)


def test_a_convex_sum_starts_as_the_mean_and_stays_on_the_simplex():
    inputs = [keras.Input((3,)) for _ in range(4)]
    model = keras.Model(inputs, ConvexSum()(inputs))
    data = [normal((16, 3), i) for i in range(4)]
    np.testing.assert_allclose(numpy(model(data)), np.mean(data, axis=0), atol=1e-6)
    model.compile(keras.optimizers.SGD(1.0), "mse", jit_compile=backend.jit())
    model.fit(data, data[2], epochs=30, batch_size=16, verbose=0)
    (shares,) = model.get_weights()
    np.testing.assert_allclose(shares, [0, 0, 1, 0], atol=1e-2)  # the one that is wanted, and nothing below 0
    assert shares.min() >= 0


def test_a_convex_sum_refuses_what_it_cannot_add():
    with pytest.raises(ValueError, match="must be a list of tensors of one shape"):
        ConvexSum()([keras.Input((3,)), keras.Input((4,))])
    with pytest.raises(ValueError, match="must be a list of tensors of one shape"):
        ConvexSum()(keras.Input((3,)))


# -- denoising -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(DENOISERS))
def test_a_filter_leaves_a_constant_image_alone(kind):
    x = np.broadcast_to(normal((2, 1, 1, 3)), (2, 6, 5, 3)).copy()
    np.testing.assert_allclose(numpy(Denoising(kind).filtered(x)), x, atol=1e-6)


@pytest.mark.parametrize(("kind", "fn"), [("median", np.median), ("mean", np.mean)])
def test_the_local_filters_are_those_of_nine_pixels(kind, fn):
    x = normal((2, 6, 5, 3))
    z = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    windows = [z[:, i : i + 6, j : j + 5] for i in range(3) for j in range(3)]
    np.testing.assert_allclose(numpy(Denoising(kind).filtered(x)), fn(windows, axis=0), atol=1e-6)


def test_the_non_local_filter_is_its_formula():
    x = normal((2, 4, 3, 5))
    flat = x.reshape(2, 12, 5).astype("float64")
    weight = np.exp(flat @ flat.transpose(0, 2, 1) / np.sqrt(5))
    wanted = (weight / weight.sum(axis=2, keepdims=True)) @ flat
    np.testing.assert_allclose(numpy(Denoising().filtered(x)), wanted.reshape(x.shape), atol=1e-5)  # float32


def test_the_median_removes_one_outlier_and_the_mean_spreads_it():
    x = np.zeros((1, 5, 5, 1), "float32")
    x[0, 2, 2] = 9.0
    assert np.all(numpy(Denoising("median").filtered(x)) == 0)
    np.testing.assert_allclose(numpy(Denoising("mean").filtered(x))[0, 1:4, 1:4, 0], 1.0, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(DENOISERS))
def test_a_block_with_a_zero_kernel_is_the_identity_and_learns(kind):
    x = normal((8, 6, 6, 3))
    model = keras.Sequential([keras.Input((None, None, 3)), Denoising(kind)])
    np.testing.assert_array_equal(numpy(model(x)), x)
    np.testing.assert_array_equal(numpy(model(x[:, :4, :5])), x[:, :4, :5])  # any size
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=backend.jit())
    model.fit(x, 2 * x, epochs=1, verbose=0)
    assert np.abs(model.get_weights()[0]).max() > 1e-3


@pytest.mark.parametrize("kind", sorted(DENOISERS))
def test_gradients_flow_through_a_block_to_its_inputs(kind):
    before = layers.Conv2D(3, 1, use_bias=False)
    stack = [keras.Input((6, 6, 2)), before, Denoising(kind, kernel_initializer="orthogonal"), layers.Flatten()]
    model = keras.Sequential([*stack, layers.Dense(1)])
    start = np.array(before.kernel)
    model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=backend.jit())
    model.fit(normal((8, 6, 6, 2)), np.ones(8), epochs=1, verbose=0)
    assert np.abs(np.array(before.kernel) - start).max() > 1e-4
    assert np.all(np.isfinite(np.array(before.kernel)))


# -- a normal Keras citizen ------------------------------------------------------------------------


def test_a_model_of_all_blocks_is_saved_and_loaded(tmp_path):
    inputs = keras.Input((6, 6, 2))
    a = layers.Conv2D(4, 3, padding="same", kernel_constraint=Orthonormal(0.01))(inputs)
    b = Denoising("median", kernel_initializer=keras.initializers.Orthogonal(seed=0))(a)
    model = keras.Model(inputs, layers.Flatten()(ConvexSum()([a, b])))
    path = tmp_path / "model.keras"
    model.save(path)
    again = keras.models.load_model(path)
    x = normal((3, 6, 6, 2))
    np.testing.assert_allclose(numpy(again(x)), numpy(model(x)), atol=1e-6)
    assert again.layers[1].kernel_constraint.beta == 0.01
    assert [type(v.constraint) for v in again.trainable_variables if v.constraint] == [Orthonormal, Simplex]
    assert next(layer.kind for layer in again.layers if isinstance(layer, Denoising)) == "median"


def test_arguments_are_checked():
    for beta in (0, 0.6, float("nan")):
        with pytest.raises(ValueError, match="`beta` must be a finite number"):
            Orthonormal(beta)
    with pytest.raises(ValueError, match="Did you mean 'median'"):
        Denoising("medium")
