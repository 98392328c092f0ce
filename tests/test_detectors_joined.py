"""Detectors made of detectors, and those with a network of their own."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import defenses, models
from kerasdef.defenses import HybridDefense
from kerasdef.defenses.detectors import AnyOf, Disagreement, LogitDeviation, Watching

K = 3


def linear(seed, outputs=K, shape=(4, 4, 1)):
    model = keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(outputs)], name="linear")
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=(int(np.prod(shape)), outputs)), rng.normal(size=outputs)])
    return model


@pytest.fixture(scope="module")
def members():
    return [linear(0), linear(1)]


@pytest.fixture(scope="module")
def network():
    return linear(2)


@pytest.fixture(scope="module")
def data():
    x = np.random.default_rng(3).random((300, 4, 4, 1), dtype="float32")
    return x, np.arange(300) % K


def softmax(z):
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_any_of_takes_the_largest_excess(members, data):
    x, y = data
    parts = [LogitDeviation(rate=0.1), LogitDeviation(by_class=True, reduce="mean", rate=0.1)]
    detector = AnyOf(parts, rate=0.1).fit(members, x[:200], y[:200], valid=x[200:])
    away = [(d.scores(x) - float(d.threshold.value)) / float(d.spread.value) for d in parts]
    np.testing.assert_allclose(detector.scores(x), np.max(away, axis=0), rtol=1e-4, atol=1e-4)
    assert detector.flags(x[200:]).sum() == 100 - np.ceil(101 * 0.9)


def test_watching_scores_as_its_detector_does_on_the_network_and_the_members(members, network, data):
    x, y = data
    alone = LogitDeviation(by_class=True).fit([network, *members], x[:200], y[:200])
    detector = Watching(network, LogitDeviation(by_class=True)).fit(members, x[:200], y[:200], valid=x[200:])
    np.testing.assert_allclose(detector.scores(x), alone.scores(x), rtol=1e-5)


def test_disagreement_is_the_cross_entropy_of_the_first_answer_and_the_mean_of_the_others(members, network, data):
    x, y = data
    detector = Watching(network, Disagreement()).fit(members, x[:200], y[:200], valid=x[200:])
    others = np.log(np.mean([softmax(models.predict_logits(m, x)) for m in members], axis=0))
    wanted = -np.sum(softmax(models.predict_logits(network, x)) * others, axis=1)
    np.testing.assert_allclose(detector.scores(x), wanted, rtol=1e-4, atol=1e-5)


def joined(network):
    return Watching(network, AnyOf([LogitDeviation(by_class=True), Disagreement()]), rate=0.1)


def test_a_saved_defense_keeps_them_and_the_network(members, network, data, tmp_path):
    x, y = data
    defense = HybridDefense(members, detector=joined(network).fit(members, x[:200], y[:200], valid=x[200:]))
    defense.save(tmp_path / "d.keras")
    loaded = defenses.load(tmp_path / "d.keras")
    before, after = defense.decide(x), loaded.decide(x)
    np.testing.assert_array_equal(after.label, before.label)
    np.testing.assert_allclose(after.score, before.score, rtol=1e-4, atol=1e-4)
    assert 0 < before.rejected.sum() < len(x)


def test_gradients_of_the_excess_reach_the_images(members, network, data):
    from kerasdef import backend

    x, y = data
    defense = HybridDefense(members, detector=joined(network).fit(members, x[:200], y[:200], valid=x[200:]))
    surface = defense.surface()[0]
    program = backend.compiled(backend.gradient(lambda z: (surface(z)[:, 0, -1], ())), surface)
    grad = ops.convert_to_numpy(program(ops.convert_to_tensor(x[:8]))[2])
    assert np.isfinite(grad).all()
    assert np.abs(grad).max(axis=(1, 2, 3)).min() > 0


def test_what_does_not_fit_is_refused(members, network, data):
    x, y = data
    with pytest.raises(ValueError, match="`detectors` must be one or more detectors"):
        AnyOf([])
    with pytest.raises(ValueError, match="`detectors` must be"):
        AnyOf([LogitDeviation])
    with pytest.raises(ValueError, match="`members` must be two or more"):
        Disagreement().fit(members[0], x, y)
    with pytest.raises(ValueError, match="`network` must take inputs of shape"):
        Watching(linear(0, outputs=4), LogitDeviation()).fit(members, x, y)
    with pytest.raises(ValueError, match="`network` must take inputs of shape"):
        Watching(linear(0, shape=(5, 5, 1)), LogitDeviation()).fit(members, x, y)
