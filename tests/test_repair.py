"""Operations without useful gradients are found, and what stands in for them leaves the answers as they are."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import models
from kerasdef.attacks import PGD
from kerasdef.models import networks, probe, repair, stand_ins


class Function(layers.Layer):
    """A function as a layer, of which nothing is known."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, x):
        return self.function(x)


def behind(layer):
    """A small classifier behind a layer."""
    return keras.Sequential([keras.Input((8, 8, 1)), layer, layers.Flatten(), layers.Dense(10)])


def looked_at(model, digits):
    return repair(model, digits[0][:64])


def same_answers(model, repaired, x):
    np.testing.assert_array_equal(models.predict_logits(model, x), models.predict_logits(repaired, x))


# -- what is left alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["target_dnn", "eat1", "denoising_cnn"])
def test_a_clean_network_comes_back_as_it_is(name, digits):
    model = networks.build(name, (8, 8, 1), 10)
    found = looked_at(model, digits)
    assert found.model is model
    assert found.findings == ()


def test_a_trained_model_behind_a_softmax_in_another_comes_back_as_it_is(digits, digits_model):
    model = keras.Sequential([keras.Input((8, 8, 1)), digits_model, layers.Softmax()])
    found = looked_at(model, digits)
    assert (found.model, found.findings) == (model, ())


def test_noise_is_no_useless_gradient(digits):
    draws = keras.random.SeedGenerator(1)
    model = behind(Function(lambda x: x + keras.random.normal(ops.shape(x), seed=draws)))
    assert looked_at(model, digits).findings == ()


def test_huge_logits_are_no_matter_of_layers(digits, digits_model):
    model = keras.Sequential([keras.Input((8, 8, 1)), digits_model, layers.Rescaling(1e3), layers.Activation("linear")])
    assert looked_at(model, digits).findings == ()


# -- what is found --------------------------------------------------------------------------------------------------


def steps(x):
    return ops.round(x * 15) / 15


def thermometer(x):
    return ops.cast(x > np.arange(10, dtype="float32") / 10, "float32")


def blocked(x):
    return ops.concatenate([x, ops.stop_gradient(x)], axis=-1)


def root(x):
    return x + ops.sqrt(0.0 * x)  # the square root of 0 has the slope infinity, times 0


ODD = {
    "rounding": (steps, "zero gradient", "the identity", 0.95),
    "stopped": (ops.stop_gradient, "zero gradient", "the identity", 0.99),
    "reversed": (lambda x: 2 * ops.stop_gradient(x) - x, "uncorrelated gradient", "the identity", 0.99),
    "tiny": (lambda x: 1e-6 * x + (1 - 1e-6) * ops.stop_gradient(x), "vanishing gradient", "the identity", 0.99),
    "sine": (lambda x: x + ops.sin(200 * x) / 20, "uncorrelated gradient", "the identity", 0.9),
    "infinite": (root, "non-finite gradient", "the identity", 0.99),
    "half": (blocked, "uncorrelated gradient", "a learned net of each position", 0.95),
    "thermometer": (thermometer, "zero gradient", "a learned net of each position", 0.6),
}


@pytest.mark.parametrize("case", ODD)
def test_a_useless_gradient_is_found_and_another_stands_in(case, digits):
    function, seen, rule, fit = ODD[case]
    model = behind(Function(function, name="culprit"))
    found = looked_at(model, digits)
    (finding,) = found.findings
    assert (finding.layer, finding.kind, finding.seen) == ("culprit", "Function", seen)
    assert finding.rule.startswith(rule)
    assert finding.fit > fit
    same_answers(model, found.model, digits[2])


def test_an_operation_and_a_chain_over_integers_are_found_as_layers_are(digits):
    images = keras.Input((8, 8, 1))
    z = ops.one_hot(ops.cast(images * 3.999, "int32"), 4)
    logits = layers.Dense(10)(layers.Flatten()(ops.stop_gradient(z)))
    model = keras.Model(images, logits)
    found = looked_at(model, digits)
    assert [f.kind for f in found.findings] == ["Cast -> OneHot", "StopGradient"]
    assert found.findings[0].fit > 0.6
    same_answers(model, found.model, digits[2])


def test_what_is_inside_a_model_inside_a_model_is_found_by_its_path(digits):
    inner = keras.Sequential([keras.Input((8, 8, 1)), Function(steps, name="steps"), layers.Flatten()], name="inner")
    outer = keras.Sequential([keras.Input((8, 8, 1)), inner, layers.Dense(10)], name="outer")
    model = keras.Sequential([keras.Input((8, 8, 1)), outer], name="all")
    found = looked_at(model, digits)
    assert [f.layer for f in found.findings] == ["outer/inner/steps"]
    same_answers(model, found.model, digits[2])
    assert {id(w) for w in found.model.weights} == {id(w) for w in model.weights}


def test_an_operation_of_several_inputs_is_reported_and_left(digits):
    images = keras.Input((8, 8, 1))

    class Both(layers.Layer):
        def call(self, a, b):
            return ops.round(a * 15) / 15 + 0 * b

    model = keras.Model(images, layers.Dense(10)(layers.Flatten()(Both()(images, layers.Rescaling(2.0)(images)))))
    found = looked_at(model, digits)
    (finding,) = found.findings
    assert (finding.seen, finding.rule) == ("zero gradient", "none")
    assert found.model is model


def test_the_repaired_model_is_attacked_where_the_model_hides(digits, digits_model):
    x, y = digits[2][:100], digits[3][:100]
    model = keras.Sequential([keras.Input((8, 8, 1)), Function(steps), digits_model])
    found = looked_at(model, digits)
    attack = PGD(eps=0.2, steps=20)
    with pytest.warns(UserWarning, match="exactly zero"):
        hidden = attack(model, x, y)
    opened = attack(found.model, x, y)

    def accuracy(x_adv):
        return np.mean(models.predict_logits(model, x_adv).argmax(axis=1) == y)

    assert accuracy(hidden) > 0.9
    assert accuracy(opened) < 0.25


def test_repair_is_the_same_for_a_seed_and_keeps_the_range(digits):
    model = behind(Function(lambda x: ops.round(x / 255 * 15) / 15))
    model.bounds = (0.0, 255.0)
    first, again = (repair(model, digits[0][:64] * 255, seed=3) for _ in range(2))
    assert first.findings == again.findings != ()
    assert models.input_bounds(first.model) == (0.0, 255.0)
    with pytest.raises(ValueError, match="`x` must lie in the bounds"):
        repair(model, digits[0][:64] * 256)


def test_bad_input_is_refused(digits, digits_model):
    with pytest.raises(ValueError, match="`x` must hold samples of shape"):
        repair(digits_model, digits[0][:, :4])
    with pytest.raises(ValueError, match="`seed`"):
        repair(digits_model, digits[0], seed=-1)
    with pytest.raises(ValueError, match="`model`"):
        repair(len, digits[0])


# -- the parts ------------------------------------------------------------------------------------------------------


def gradient(near, x, cotangent):
    from kerasdef import backend

    run = backend.value_and_grad(lambda t: ops.sum(near(t[0]) * cotangent))
    return ops.convert_to_numpy(run([ops.convert_to_tensor(x)])[1][0])


@pytest.mark.parametrize("reach", ["value", "position", "sample"])
def test_the_local_average_of_a_linear_function_has_its_gradient(reach):
    rng = np.random.default_rng(0)
    x, u = (rng.normal(size=(5, 2, 3)).astype("float32") for _ in range(2))
    matrix = np.diag([1.0, -2.0, 3.0]) if reach == "value" else rng.normal(size=(3, 3))
    matrix = matrix.astype("float32")
    near = stand_ins.LocalAverage(lambda z: ops.matmul(z, matrix), (2, 3), 0.1, reach, rng)
    exact = u @ matrix.T
    found = gradient(near, x, u)
    if reach == "sample":  # eight random directions in six dimensions: unbiased, and noisy
        assert np.sum(found * exact) / np.sqrt(np.sum(found**2) * np.sum(exact**2)) > 0.5
    else:
        np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)


def test_the_local_average_of_a_step_is_a_hill_around_it():
    near = stand_ins.LocalAverage(lambda z: ops.cast(z > 0.5, "float32"), (1,), 0.1, "value", np.random.default_rng(0))
    x = np.array([[0.0], [0.3], [0.5], [0.7], [1.0]], "float32")
    slope = gradient(near, x, np.ones((5, 1), "float32"))[:, 0]
    assert slope[2] == max(slope) > 1
    assert slope[0] == slope[4] == 0


def test_secants_of_a_linear_function_are_what_its_gradient_predicts():
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(4, 3)).astype("float32")

    def call(tensors):
        return [ops.matmul(tensors[0], matrix)]

    secants = probe.draw(call, [rng.normal(size=(6, 4)).astype("float32")], 0.05, 3, rng)
    told = probe.predicted(call, secants)
    np.testing.assert_allclose(told, secants.found, rtol=1e-3, atol=1e-5)  # differences of float32
    assert probe.cosine(secants.found, told) > 0.9999
    assert probe.cosine(secants.found, np.zeros_like(told)) == 0
