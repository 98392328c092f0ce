"""Models whose gradients, outputs or weights are not finite: told, and never taken for a success."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
from helpers import quiet_run
from keras import layers, ops

from kerasdef import Dataset, Report, losses
from kerasdef.attacks import (
    APGD,
    FAB,
    FMN,
    NES,
    PGD,
    AutoAttack,
    DeepFool,
    HopSkipJump,
    Restarts,
    Square,
    Targeted,
    Transfer,
    WorstOf,
    sequence,
)
from kerasdef.attacks.engine import joined
from kerasdef.attacks.parts.directions import Plain
from kerasdef.attacks.signs import blind_spots
from kerasdef.defenses import EvadeVote, as_defense
from kerasdef.evaluation import Plan, Planned, evaluate
from kerasdef.goals import Evade, Hit, Misclassify, answered
from kerasdef.models import stack_logits


@pytest.fixture(scope="module")
def rooted(digits, digits_model):
    """The digits' model on roots, and images that it gets right: the slope is infinite at the zeros."""
    images = keras.Input((8, 8, 1))
    model = keras.Model(images, digits_model(ops.sqrt(images)))
    x, y = digits[2][:40], digits[3][:40]
    right = np.argmax(model.predict(x, verbose=0), axis=1) == y
    return model, x[right], y[right]


@pytest.fixture(scope="module")
def of_nan():
    """A model whose weights are NaN, images, and their labels, some of them 0."""
    model = keras.Sequential([keras.Input((8,)), layers.Dense(4)])
    model.set_weights([np.full((8, 4), np.nan), np.full(4, np.nan)])
    x = np.random.default_rng(0).uniform(size=(40, 8)).astype("float32")
    return model, x, np.arange(40) % 4


@pytest.mark.parametrize("goal", [Misclassify(), Hit(), Evade(3)])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_no_answer_and_reaches_no_goal(goal, value):
    logits = np.float32([[0.0, 1.0, 0.5, 0.2], [0.0, 1.0, 0.5, value], [value] * 4])
    y = ops.convert_to_tensor(np.array([1, 1, 1] if goal == Hit() else [2, 2, 2]))
    logits = ops.convert_to_tensor(logits)
    np.testing.assert_array_equal(ops.convert_to_numpy(answered(logits)), [True, False, False])
    np.testing.assert_array_equal(ops.convert_to_numpy(goal.reached(logits, y)), [True, False, False])


@pytest.mark.parametrize("attack", [DeepFool(steps=20), FAB(steps=10), FMN(steps=20), PGD(eps=0.3, steps=10)])
def test_an_attack_goes_on_with_the_finite_part_of_a_gradient_and_says_so(attack, rooted):
    model, x, y = rooted
    with pytest.warns(UserWarning, match=r"losses or gradients for 100\.0%"):
        found = attack.run(model, x, y, progress=False)
    assert np.isfinite(found.x_adv).all()
    wrong = model.predict(found.x_adv, verbose=0).argmax(axis=1) != y
    np.testing.assert_array_equal(found.success, wrong)
    assert wrong.mean() > 0.5  # the pixels that are not 0 are enough


def test_the_shares_of_outputs_and_of_gradients_are_told(rooted):
    model, x, y = rooted
    some = x.copy()
    some[: len(x) // 2] = np.maximum(some[: len(x) // 2], 0.1)  # without a zero
    share = 1 - (len(x) // 2) / len(x)
    said = blind_spots(model, some, y)["non_finite"]
    assert "outputs are not finite for 0.0%" in said
    assert f"gradients for {share:.1%}" in said


@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.1, steps=2),
        Square(eps=0.1, queries=5),
        HopSkipJump(queries=30),
        Targeted(PGD(eps=0.1, steps=2)),
        WorstOf((PGD(eps=0.1, steps=2), Square(eps=0.1, queries=5))),
    ],
)
def test_weights_of_nan_are_told_and_never_a_success(attack, of_nan):
    model, x, y = of_nan
    with pytest.warns(UserWarning, match=r"outputs are not finite for 100\.0%"):
        found = attack.run(model, x, y, progress=False)
    assert not found.success.any()
    np.testing.assert_array_equal(found.x_adv, x)


def test_a_sequence_counts_images_without_an_answer_as_wrong_from_the_start_and_flags_them(of_nan):
    model, x, y = of_nan
    for parts in ({"pgd": PGD(eps=0.1, steps=2)}, {"square": Square(eps=0.1, queries=5)}):
        found = sequence.run(parts, model, x, y, progress=False)
        assert (found.clean_accuracy, found.robust_accuracy) == (0.0, 0.0)
        assert not found.success.any()
        assert "100.0%" in found.flags["non_finite"]


def test_a_point_without_an_answer_is_no_success_of_autoattack():
    """Beyond the sum 4.2 the outputs are infinite; nothing else is ever wrong."""
    images = keras.Input((8,))
    weights = np.stack([np.ones(8), -np.ones(8)], axis=1)
    dense = layers.Dense(2)
    overflow = ops.exp(ops.relu(1e4 * (ops.sum(images, axis=1, keepdims=True) - 4.2)))
    model = keras.Model(images, dense(images * overflow))
    dense.set_weights([weights, np.zeros(2)])
    x = np.full((6, 8), 0.5, dtype="float32")
    attack = AutoAttack(eps=0.2, version="custom", parts=("apgd-ce", "fab", "square"))
    attacks = {
        k: dataclasses.replace(a, **({"queries": 50} if k == "square" else {"steps": 5}))
        for k, a in attack.attacks().items()
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = sequence.run(attacks, model, x, np.zeros(6, "int32"), progress=False)
    assert not found.success.any()
    assert found.robust_accuracy == 1.0
    assert np.isfinite(found.x_adv).all()


def test_a_callable_that_returns_nan_is_refused_and_infinity_is_no_answer():
    x, y = np.full((4, 8), 0.5, dtype="float32"), np.zeros(4, int)
    with pytest.raises(ValueError, match="must not return NaN"):
        quiet_run(Square(eps=0.1, queries=5), lambda z: np.full((len(z), 3), np.nan), x, y)

    def moved(z):
        answer = np.tile(np.float32([1.0, 0.0, 0.5]), (len(z), 1))
        answer[(z != 0.5).any(axis=1), 1] = np.inf
        return answer

    assert not quiet_run(Square(eps=0.1, queries=5), moved, x, y).success.any()


def test_names_in_a_state_that_collide_are_an_error():
    class Taking(Plain):
        def init(self, x):
            return {"adv": x}

    with pytest.raises(ValueError, match="Received: adv more than once"):
        joined({"adv": 1, "done": 2}, {"adv": 3})
    model = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    x = np.full((4, 8), 0.5, dtype="float32")
    with pytest.raises(ValueError, match="adv more than once"):
        quiet_run(PGD(eps=0.1, steps=2, direction=Taking()), model, x, np.asarray(model(x)).argmax(axis=1))


def test_a_report_counts_an_answer_that_is_none_as_wrong_and_as_no_success(of_nan):
    model, x, y = of_nan
    defense = as_defense(model)
    decision = defense.decide(x)
    assert np.all(decision.label == -1)
    np.testing.assert_allclose(decision.probabilities, 0.25)
    data = Dataset.from_arrays(x, y, x, y)
    with pytest.warns(UserWarning, match="not finite"):
        found = evaluate(defense, data, Plan("net", np.arange(40), adaptive={"pgd": Planned(PGD(eps=0.3, steps=2))}))
    row = Report(found.outcomes, classes=4).metrics("net", "pgd", "adaptive")
    assert [row[name] for name in ("clean_accuracy", "robust_accuracy", "fooled")] == [0, 0, 0]
    assert any("finite" in flag for flag in found.flags)


@pytest.mark.parametrize(
    "wrap", [lambda attack: attack, lambda attack: Restarts(attack, 2), lambda attack: WorstOf((attack,))]
)
def test_radii_for_another_number_of_samples_are_refused_before_work(wrap, digits, digits_model):
    x, y = digits[2][:10], digits[3][:10]
    with pytest.raises(
        ValueError, match=r"`eps` must be a number or one for each of the 10 samples\. Received: 9 values"
    ):
        wrap(PGD(eps=(0.1,) * 9, steps=2))(digits_model, x, y)


@pytest.fixture(scope="module")
def plain():
    """A model of 3 classes, images, and the model's own labels."""
    model = keras.Sequential([keras.Input((2, 2, 1)), layers.Flatten(), layers.Dense(3)])
    x = np.random.default_rng(0).uniform(0.1, 0.9, (6, 2, 2, 1)).astype("float32")
    return model, x, np.argmax(np.asarray(model(x)), axis=1)


@pytest.mark.parametrize("attack", [PGD(eps=0.3, steps=1, goal=Evade(3)), Square(eps=0.3, queries=2, goal=Evade(7))])
def test_a_class_of_rejected_inputs_that_the_model_lacks_is_refused(attack, plain):
    model, x, y = plain
    with pytest.raises(ValueError, match=r"`reject` must be one of the classes, 0 to 2\. Received: reject="):
        attack(model, x, y)
    if attack.access == "black box":
        with pytest.raises(ValueError, match="`reject` must be one of the classes, 0 to 2"):
            attack(lambda z: np.asarray(model(z)), x, y)
    else:
        with pytest.raises(ValueError, match="`reject` must be one of the classes, 0 to 2"):
            attack.perturb(model, x, y, np.arange(6))
    for goal in (Evade, EvadeVote):
        with pytest.raises(ValueError, match="`reject`"):
            goal(10**12)


def test_a_vote_has_no_class_of_rejected_inputs_beyond_its_own():
    members = [keras.Sequential([keras.Input((4,)), layers.Dense(3)]) for _ in range(2)]
    x = np.full((2, 4), 0.5, dtype="float32")
    with pytest.raises(ValueError, match=r"0 to 2\. Received: reject=3"):
        PGD(eps=0.1, steps=1, goal=EvadeVote(3))(stack_logits(members), x, np.zeros(2, int))


@pytest.mark.parametrize(
    ("wrap", "loss", "message"),
    [
        (wrap, loss, message)
        for wrap in (
            lambda loss: PGD(eps=0.3, steps=2, loss=loss),
            lambda loss: Restarts(WorstOf((PGD(eps=0.3, steps=1), APGD(eps=0.3, steps=2, loss=loss))), 2),
            lambda loss: NES(eps=0.3, pairs=1, queries=4, loss=loss),
        )
        for loss, message in (
            (lambda z, y: z[:, 0] * np.nan, r"losses or gradients for 100\.0%"),
            (lambda z, y: ops.full_like(z[:, 0], np.inf), r"losses or gradients for 100\.0%"),
            (lambda z, y: ops.stop_gradient(z[:, 0]), r"attack's own loss is exactly zero"),
        )
    ],
)
def test_a_loss_of_ones_own_that_shows_nothing_is_told(wrap, loss, message, plain):
    attack, (model, x, y) = wrap(loss), plain
    if attack.access == "black box" and "zero" in message:
        assert attack.look(model, x, y) == {}  # it takes no gradients
        return
    with pytest.warns(UserWarning, match=message):
        attack(model, x, y, progress=False)


def test_a_sound_loss_of_ones_own_is_no_sign(plain):
    model, x, y = plain
    for loss in (lambda z, y: losses.margin(z, y), lambda z, y: ops.cast(-losses.pick(z, y), "float64")):
        assert PGD(eps=0.3, steps=2, loss=loss).look(model, x, y) == {}
        assert NES(eps=0.3, queries=9, loss=loss).look(lambda z: np.asarray(model(z)), x, y) == {}


def test_a_source_of_nan_is_told(plain):
    model, x, y = plain
    source = keras.models.clone_model(model)
    source.set_weights([np.full((4, 3), np.nan), np.zeros(3)])
    attack = Transfer(source, PGD(eps=0.3, steps=2))
    said = attack.look(model, x, y)
    assert set(said) == {"source_non_finite"}
    assert "source" in said["source_non_finite"]
    with pytest.warns(UserWarning, match=r"source of the transfer: .* not finite for 100\.0%"):
        attack.run(lambda z: np.asarray(model(z)), x, y, progress=False)
    assert Transfer(model, PGD(eps=0.3, steps=2)).look(model, x, y) == {}


def test_a_callable_that_answers_minus_infinity_alone_gives_no_answer():
    x, y = np.full((4, 8), 0.5, dtype="float32"), np.zeros(4, int)
    with pytest.warns(UserWarning, match=r"outputs are not finite for 100\.0%"):
        found = quiet_run(Square(eps=0.1, queries=5), lambda z: np.full((len(z), 3), -np.inf), x, y)
    assert not found.success.any()
    one = Square(eps=0.1, queries=5).look(lambda z: np.tile([1.0, -np.inf, 0.0], (len(z), 1)), x, y)
    assert one == {}  # a class that is ruled out is an answer


@pytest.mark.parametrize(
    ("loss", "given"),
    [
        (lambda z, y: y, "int32"),
        (lambda z, y: z[:, 0] > 0, "bool"),
        (lambda z, y: ops.cast(z[:, 0], "complex64"), "complex64"),
        (lambda z, y: np.ones(8, "float32"), "ndarray"),
    ],
)
@pytest.mark.parametrize(
    "attack", [lambda f: PGD(eps=0.1, steps=1, loss=f), lambda f: NES(eps=0.1, pairs=1, queries=4, loss=f)]
)
def test_a_loss_that_gives_no_floating_point_tensor_is_refused(attack, loss, given, plain):
    model, x, y = plain
    with pytest.raises(ValueError, match=rf"`loss` must be a function .* which gives .*{given}"):
        attack(loss)(model, np.repeat(x, 2, axis=0)[:8], np.repeat(y, 2)[:8])


@pytest.mark.parametrize(
    ("answer", "label"),
    [([np.nan, 0, 0], -1), ([np.inf, 0, 0], -1), ([0, 2, 0], 1)],
)
def test_a_callable_decides_only_where_its_answer_is_finite_and_gets_a_copy(answer, label):
    def answers(images):
        images[:] = 0.5
        return np.tile(np.float32(answer), (len(images), 1))

    x = np.full((4, 2, 2, 1), 0.25, dtype="float32")
    decision = as_defense(answers).decide(x)
    assert decision.label.tolist() == [label] * 4
    assert np.isfinite(decision.probabilities).all()
    assert np.all(x == 0.25)


@pytest.mark.parametrize("answer", [np.zeros((1, 3)), np.zeros((4, 3, 1, 1)), np.array("abc")])
def test_a_callable_that_answers_for_another_number_of_images_is_refused(answer):
    with pytest.raises(ValueError, match=r"`model` must return logits .* of 4 images"):
        as_defense(lambda images: answer).decide(np.zeros((4, 2, 2, 1), dtype="float32"))
