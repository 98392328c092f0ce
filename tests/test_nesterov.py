"""The Nesterov iterative method: where its gradients are taken, and what it has in common with MIM."""

import numpy as np
import pytest
from helpers import quiet
from keras import ops

from kerasdef import backend, losses, models
from kerasdef.attacks import MIM
from kerasdef.attacks.parts.directions import Momentum, Nesterov, Plain
from kerasdef.attacks.white.gradient import NIM
from kerasdef.testing import check_attack

SETTINGS = {"eps": 0.2, "steps": 8, "early_stop": False}


def test_the_look_ahead_is_a_step_along_the_mean_normalized_velocity():
    now = ops.convert_to_tensor(np.zeros((2, 4), "float32"))
    memory = {"velocity": ops.convert_to_tensor(np.float32([[0.25] * 4, [1.0, 0.0, 0.0, -1.0]]))}
    length = ops.convert_to_tensor(np.float32([0.1, 0.2]))
    found = ops.convert_to_numpy(Nesterov(decay=0.5).look_ahead(now, memory, length))
    # length * decay * velocity * number of features
    np.testing.assert_allclose(found, [[0.05] * 4, [0.4, 0, 0, -0.4]], rtol=1e-6)


def test_other_directions_look_at_the_point_itself():
    now = object()
    assert Plain().look_ahead(now, {}, None) is now
    assert Momentum().look_ahead(now, {"velocity": 1.0}, 0.1) is now


@pytest.mark.parametrize("best", [True, False])
def test_without_decay_it_is_mim(best, digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    nesterov = NIM(direction=Nesterov(decay=0.0), best=best, **SETTINGS)
    momentum = MIM(direction=Momentum(decay=0.0), best=best, **SETTINGS)
    found, wanted = (quiet(attack, digits_model, x, y) for attack in (nesterov, momentum))
    np.testing.assert_array_equal(found, wanted)
    assert not np.allclose(quiet(NIM(best=best, **SETTINGS), digits_model, x, y), wanted, atol=1e-3)


def by_hand(model, x, y, eps, steps, decay):
    """Section 3.2 of the paper in NumPy."""
    now, velocity = x.astype("float64"), np.zeros(x.shape)
    for _ in range(steps):
        ahead = now + eps / steps * decay * velocity

        def loss(z):
            return losses.cross_entropy(model(z), ops.convert_to_tensor(y)), ()

        grad = backend.gradient(loss)(ops.convert_to_tensor(ahead.astype("float32")))[2]
        grad = ops.convert_to_numpy(grad).astype("float64")
        velocity = decay * velocity + grad / np.abs(grad).mean(axis=(1, 2, 3), keepdims=True)
        now = np.clip(np.clip(now + eps / steps * np.sign(velocity), x - eps, x + eps), 0, 1)
    return now


def test_it_takes_the_steps_of_the_paper(digits, digits_model):
    right = models.predict_logits(digits_model, digits[2]).argmax(axis=1) == digits[3]
    x, y = digits[2][right][:20], digits[3][right][:20].astype("int32")
    found = quiet(NIM(best=False, **SETTINGS), digits_model, x, y)
    wanted = by_hand(digits_model, x, y, 0.2, 8, 1.0)
    # where a velocity is near 0 its sign is float32 noise, and a step is 0.025
    assert np.mean(np.abs(found - wanted) > 1e-4) < 0.005


def test_the_best_point_is_judged_where_it_stands_not_ahead_of_it(digits, digits_model):
    x, y = digits[2][:60], digits[3][:60]
    best, last = (
        models.predict_logits(digits_model, quiet(NIM(best=best, eps=0.1, early_stop=False), digits_model, x, y))
        for best in (True, False)
    )
    assert ((best.argmax(axis=1) != y) >= (last.argmax(axis=1) != y)).all()


@pytest.mark.slow
def test_it_keeps_the_contract_in_l2():  # in Linf: see test_attacks.py
    check_attack(NIM(norm="l2", eps=0.3, steps=4))
