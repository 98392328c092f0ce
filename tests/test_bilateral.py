"""Bilateral adversarial training: the labels and the loss are their formulas."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef.attacks import PGD
from kerasdef.training import AdversarialTraining
from kerasdef.training.bilateral import Bilateral, adversarial_labels, most_confusing
from kerasdef.training.objectives import Batch


def logits_and_labels(n=20, k=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)).astype("float32") * 3, rng.integers(0, k, n).astype("int32")


def log_softmax(z):
    z = z.astype("float64")
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def labels_by_hand(z, y, eps_y, gamma):
    """The rule of section 4.1, sample by sample."""
    rate, found = -log_softmax(z), np.zeros(z.shape)
    for i, c in enumerate(y):
        wrong = [k for k in range(z.shape[1]) if k != c]
        least = min(rate[i, k] for k in wrong)
        mean = np.mean([rate[i, k] for k in wrong])
        for k in wrong:
            found[i, k] = eps_y / len(wrong) * (rate[i, k] - least + gamma) / (mean - least + gamma)
        found[i, c] = 1 - eps_y
    return found


@pytest.mark.parametrize(("eps_y", "gamma"), [(0.5, 0.01), (0.2, 1.0), (0.0, 0.01), (1.0, 0.01)])
def test_the_labels_are_their_formula(eps_y, gamma):
    z, y = logits_and_labels()
    found = ops.convert_to_numpy(adversarial_labels(z, y, eps_y, gamma))
    np.testing.assert_allclose(found, labels_by_hand(z, y, eps_y, gamma), atol=1e-5)  # float32
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-6)
    assert found.min() >= 0


def test_equal_wrong_classes_give_label_smoothing_and_the_most_confusing_one_gets_least():
    smooth = ops.convert_to_numpy(adversarial_labels(np.array([[4.0, 1, 1, 1]], "float32"), np.array([0])))
    np.testing.assert_allclose(smooth, [[0.5, 1 / 6, 1 / 6, 1 / 6]], atol=1e-5)
    z, y = logits_and_labels()
    found, rows = ops.convert_to_numpy(adversarial_labels(z, y)), np.arange(len(y))
    z[rows, y], found[rows, y] = -99.0, 9.0
    np.testing.assert_array_equal(found.argmin(axis=1), z.argmax(axis=1))


def test_without_a_given_share_the_true_class_keeps_its_ratio_to_the_largest_other():
    z, y = logits_and_labels()
    found, rows = ops.convert_to_numpy(adversarial_labels(z, y, None, 0.01, 9.0)), np.arange(len(y))
    true = found[rows, y].copy()
    found[rows, y] = 0
    np.testing.assert_allclose(true, 9.0 * found.max(axis=1), rtol=1e-4)
    even = np.zeros((1, 10), "float32")  # ten equal classes: one half, the fixed value
    np.testing.assert_allclose(float(adversarial_labels(even, np.array([3]), None)[0, 3]), 0.5, atol=1e-6)


def test_labels_stay_finite_where_the_model_is_very_sure():
    z = np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], "float32")
    found = ops.convert_to_numpy(adversarial_labels(z, np.array([0, 0])))
    assert np.all(np.isfinite(found))
    np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)


def test_the_loss_of_the_attack_is_the_log_probability_of_the_likeliest_wrong_class():
    z, y = logits_and_labels()
    log_p = log_softmax(z)
    log_p[np.arange(len(y)), y] = -np.inf
    np.testing.assert_allclose(ops.convert_to_numpy(most_confusing(z, y)), log_p.max(axis=1), atol=1e-5)


def test_one_step_of_the_attack_goes_towards_the_most_confusing_class():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 4)).astype("float32")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, use_bias=False)])
    model.set_weights([w])
    x, y = rng.uniform(0.3, 0.7, (10, 6)).astype("float32"), rng.integers(0, 4, 10)
    z = x @ w
    z_wrong = z.copy()
    z_wrong[np.arange(10), y] = -np.inf
    target = np.eye(4)[z_wrong.argmax(axis=1)]
    wanted = x + 0.1 * np.sign((target - np.exp(log_softmax(z))) @ w.T)
    attack = PGD(eps=0.1, steps=1, relative_step=1.0, random_start=False, best=False, loss=most_confusing)
    seeds = np.zeros(10, "int32")
    found = attack.perturb(model, ops.convert_to_tensor(x), ops.convert_to_tensor(y.astype("int32")), seeds)
    np.testing.assert_allclose(ops.convert_to_numpy(found), wanted, atol=1e-6)


def test_the_objective_is_the_cross_entropy_against_the_labels():
    clean, y = logits_and_labels()
    adv, _ = logits_and_labels(seed=1)
    batch = Batch(y=y, clean=clean, adversarial=adv, task=None, mean=ops.mean, penalty=0.25)
    wanted = -np.sum(labels_by_hand(clean, y, 0.5, 0.01) * log_softmax(adv), axis=1).mean() + 0.25
    np.testing.assert_allclose(float(Bilateral()(batch)), wanted, rtol=1e-5)


def test_no_gradient_flows_through_the_labels():
    """On a linear model and equal images the gradient is that of fixed labels."""
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, (12, 5)).astype("float32"), rng.integers(0, 4, 12)
    w = rng.normal(size=(5, 4)).astype("float32")
    model = keras.Sequential([keras.Input((5,)), layers.Dense(4, use_bias=False)])
    model.set_weights([w])
    attack = PGD(eps=0.0, steps=1, loss=most_confusing)  # adversarial images are the clean ones
    trainer = AdversarialTraining(model, attack, Bilateral(0.3, 0.1))
    trainer.compile(keras.optimizers.SGD(0.5), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trainer.fit(x, y, batch_size=12, epochs=1, verbose=0)
    error = (np.exp(log_softmax(x @ w)) - labels_by_hand(x @ w, y, 0.3, 0.1)) / 12
    np.testing.assert_allclose(model.get_weights()[0], w - 0.5 * x.T @ error, atol=1e-5)  # float32


def test_bad_settings_are_refused():
    for settings in ({"eps_y": 1.1}, {"eps_y": -0.1}, {"gamma": 0.0}, {"ratio": 0}):
        with pytest.raises(ValueError, match="must be a finite number"):
            Bilateral(**settings)
    assert hash(Bilateral(None)) == hash(Bilateral(None))
