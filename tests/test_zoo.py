"""ZOO: slopes, the smallest distance of linear models, and no weaker than ART's."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import quiet_run as quiet

from kerasdef import models
from kerasdef.attacks.black.zoo import ZOO
from kerasdef.attacks.queries import Queries
from kerasdef.testing import LinearOracle

FINE = ZOO(coordinates=8, learning_rate=0.002, binary_search_steps=6, queries=8000, bounds=(-5.0, 5.0))


def linear(k, d=8, n=12):
    """A linear oracle with inputs that lie at least 0.1 from its decision boundary."""
    rng = np.random.default_rng(0)
    oracle = LinearOracle(rng.normal(size=(d, k)), 0.1 * rng.normal(size=k))
    x = rng.uniform(-1, 1, (n, d)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    keep = oracle.smallest_distance(x, y, "l2") > 0.1
    return oracle, x[keep], y[keep]


def test_zoo_reaches_the_smallest_distance():
    oracle, x, y = linear(2)
    found = quiet(FINE, oracle.model(), x, y)
    assert found.success.all()
    ratio = np.linalg.norm(found.x_adv - x, axis=1) / oracle.smallest_distance(x, y, "l2")
    assert ratio.max() < 1.05  # steps of 0.02
    assert ratio.min() > 1 - 1e-4  # float32


def test_zoo_reaches_its_confidence():
    oracle, x, y = linear(2)
    found = quiet(dataclasses.replace(FINE, confidence=0.5, queries=4000), oracle.model(), x, y)
    assert found.success.all()
    assert (oracle.margin(found.x_adv, y) >= 0.5 - 1e-4).all()  # float32


def test_slopes_are_exact_on_a_linear_model_also_at_the_bounds():
    oracle, _, _ = linear(2)
    x = np.tile(np.float32([0, 1, 0, 1, 0.5, 0.5, 0, 1]), (4, 1))
    y = oracle.logits(x).argmax(axis=1)
    attack = ZOO(coordinates=8)
    ask = Queries(models.Victim.of(oracle.model()), attack.goal, y.astype("int32"), 100)
    part = {"now": x, "gain": np.full(4, -1.0), "c": np.ones(4), "row": np.arange(4), "there": np.zeros(4, bool)}
    found = attack._slopes(ask, part, np.tile(np.arange(8), (4, 1)))
    np.testing.assert_allclose(found, oracle.weights.T[1 - y] - oracle.weights.T[y], atol=2e-3)  # 1e-6 / 1e-3
    part["gain"], part["there"] = np.full(4, 1.0), np.ones(4, bool)
    assert not attack._slopes(ask, part, np.tile(np.arange(8), (4, 1))).any()
    assert (ask.spent == 16).all()  # nothing is asked where the margin is reached


def test_every_coordinate_has_its_turn():
    attack = ZOO(coordinates=3)
    part = {"seed": np.uint32([1, 2]), "moves": np.zeros(2, int)}
    seen = []
    for i in range(3):
        part["moves"][:] = i
        chosen = attack._choose(part, 3, 7)
        assert all(len(set(row)) == 3 for row in chosen.tolist())
        seen.append(chosen)
    seen = np.concatenate(seen, axis=1)
    assert all(set(row) == set(range(7)) for row in seen.tolist())
    assert not np.array_equal(seen[0], seen[1])


def test_the_search_over_c_halves_its_range_and_starts_again_from_x():
    attack = ZOO(binary_search_steps=3, initial_c=2.0)
    x = np.full((3, 4), 0.5, dtype="float32")
    part = attack.init(x, np.zeros(3, "uint32"), np.full(3, -1.0, "float32")) | {"x": x}
    for found, wanted in (((0, 1, 1), (20.0, 1.0, 2.0)), ((1, 0, 0), (11.0, 1.5, 2.0)), ((0, 0, 1), (15.5, 1.75, 2.0))):
        part["now"], part["m"] = x + 0.1, part["m"] + 1
        part["found"] = np.array(found, bool)
        attack._next_c(part, np.array([True, True, False]))
        np.testing.assert_array_equal(part["c"], np.float32(wanted))
        np.testing.assert_allclose(part["now"][:2], x[:2])
        assert not part["m"][:2].any()
    np.testing.assert_allclose(part["now"][2], 0.6)  # not through: nothing is touched
    assert part["done"].tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("confidence", -1.0),
        ("steps", 0),
        ("binary_search_steps", 0),
        ("initial_c", 0.0),
        ("learning_rate", 0.0),
        ("coordinates", 0),
        ("radius", 0.0),
        ("queries", 0),
    ],
)
def test_zoo_checks_its_settings(setting, value):
    with pytest.raises(ValueError, match=f"Received: {setting}="):
        ZOO(**{setting: value})


@pytest.mark.slow
@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one backend is enough for ART")
def test_zoo_is_no_weaker_than_art_on_a_table(digits, digits_model):
    from art.attacks.evasion import ZooAttack
    from art.estimators.classification import BlackBoxClassifier

    x, y = digits[2][:8].reshape(8, 64), digits[3][:8]
    right = models.predict_logits(digits_model, x.reshape(-1, 8, 8, 1)).argmax(axis=1) == y
    x, y, asked = x[right], y[right], []

    def answer(z):
        asked.append(len(z))
        logits = models.predict_logits(digits_model, np.asarray(z, dtype="float32").reshape(-1, 8, 8, 1))
        return keras.ops.convert_to_numpy(keras.ops.softmax(logits))

    settings = {"learning_rate": 0.05, "binary_search_steps": 1}
    theirs = ZooAttack(
        BlackBoxClassifier(answer, (64,), 10, clip_values=(0, 1)),
        max_iter=20,
        initial_const=1.0,
        abort_early=False,
        use_resize=False,
        use_importance=False,
        nb_parallel=32,
        variable_h=1e-3,
        verbose=False,
        **settings,
    ).generate(x)
    budget = sum(asked) // len(x)
    fell = answer(theirs).argmax(axis=1) != y
    found = quiet(ZOO(steps=20, initial_c=1.0, coordinates=32, queries=budget, **settings), answer, x, y)
    assert found.success.mean() >= fell.mean()
    both = found.success & fell
    assert np.median(np.linalg.norm((found.x_adv - x)[both], axis=1)) <= np.median(
        np.linalg.norm((theirs - x)[both], axis=1)
    )
