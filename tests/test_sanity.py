"""Self-checks of an attack: what surely exists is found, what is masked is missed, more is never worse."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import models, norms
from kerasdef.attacks import (
    APGD,
    PGD,
    AutoAttack,
    CarliniWagner,
    Cycled,
    Restarts,
    Square,
    Targeted,
    Transfer,
)
from kerasdef.attacks.wrappers.base import Wrapper
from kerasdef.defenses import HybridDefense, Plain, RejectClass, Voting, adaptive
from kerasdef.defenses.base import Outputs
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.evaluation import Binarization, Monotone, binarization, monotone, self_check, unbounded
from kerasdef.evaluation.sanity.binarization import apart
from kerasdef.evaluation.sanity.heads import Own, Pairs, problem
from kerasdef.evaluation.sanity.points import inside, on_surface, sizes
from kerasdef.evaluation.sanity.varied import aimed, has, varied
from kerasdef.models.features import features_of

NORMS = {
    "linf": norms.Linf(),
    "l2": norms.L2(),
    "l1": norms.L1(),
    "masked": norms.Masked("l2", np.arange(64).reshape(8, 8, 1) % 2),
    "box": norms.Box(np.arange(64).reshape(8, 8, 1) % 3 / 2),
}


def drawn(n, low=0.0, high=1.0, seed=1):
    return np.random.default_rng(seed).uniform(low, high, (n, 8, 8, 1)).astype("float32")


def normal(*shape):
    return np.random.default_rng(2).normal(size=shape).astype("float32")


X = drawn(6, seed=0)
SEEDS = np.arange(6, dtype="uint32")


@keras.saving.register_keras_serializable("tests")
class Masked(layers.Layer):
    """Rounds to 16 levels, and says nothing of a backward rule: no gradient comes through."""

    def call(self, x):
        return ops.stop_gradient(ops.round(15.0 * x) / 15.0)


@keras.saving.register_keras_serializable("tests")
class Rough(LogitDeviation):
    """A detector of differences between neighboring values: changes by gradients are rougher than clean images."""

    def call(self, x, logits):
        down, right = ops.abs(x[:, 1:] - x[:, :-1]), ops.abs(x[:, :, 1:] - x[:, :, :-1])
        return ops.mean(down, axis=(1, 2, 3)) + ops.mean(right, axis=(1, 2, 3))


@keras.saving.register_keras_serializable("tests")
class Blind(Rough):
    """A detector whose score hides its gradient."""

    def call(self, x, logits):
        return ops.stop_gradient(super().call(x, logits))


def masked(model):
    images = keras.Input(model.input_shape[1:])
    return keras.Model(images, model(Masked()(images)))


def linear(k=3, seed=0):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(k)])
    model.set_weights([np.random.default_rng(seed).normal(size=(64, k)), np.zeros(k)])
    return model


# -- points -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_points_lie_inside_of_the_ball_or_at_its_radius_and_in_the_bounds(name):
    norm, eps = NORMS[name], np.linspace(0.05, 0.3, 6).astype("float32")
    within = inside(norm, X, eps, (0, 1), 20, SEEDS)
    at = on_surface(norm, X, eps, (0, 1), 20, SEEDS)
    radius = np.repeat(eps, 20)
    for points in (within, at):
        assert points.shape == (6, 20, 8, 8, 1)
        assert points.min() >= 0
        assert points.max() <= 1
        assert len(np.unique(points[0].reshape(20, -1), axis=0)) == 20
    size = sizes(norm, (within - X[:, None]).reshape(-1, 8, 8, 1))
    assert (size <= radius * (1 + 1e-5)).all()
    size = sizes(norm, (at - X[:, None]).reshape(-1, 8, 8, 1))
    # 1e-4: x + delta - x is rounded to the last bit of x, which is 1e-6 of the smallest radius, for each of 64 values
    np.testing.assert_allclose(size, radius, rtol=1e-4)


def test_where_the_bounds_are_nearer_than_the_radius_a_point_is_at_the_bounds():
    at = on_surface(norms.Linf(), X, np.full(6, 3.0, "float32"), (0, 1), 5, SEEDS)
    assert np.isin(np.round(at, 6), (0, 1)).mean() > 0.9


def test_points_depend_on_the_seed_of_their_image_alone():
    eps = np.full(6, 0.1, "float32")
    together = inside(norms.L2(), X, eps, (0, 1), 4, SEEDS)[2:3]
    alone = inside(norms.L2(), X[2:3], eps[2:3], (0, 1), 4, SEEDS[2:3])
    # one unit in the last place of 1: the rest of a batch that does not fill a vector is computed by other instructions
    np.testing.assert_allclose(together, alone, rtol=0, atol=2.0**-23)


def test_balls_of_a_group_do_not_touch():
    line = np.array([0.0, 0.1, 0.2, 0.5, 0.9], "float32").reshape(-1, 1, 1, 1)
    groups = apart(norms.Linf(), line, np.full(5, 0.06, "float32"))  # 0.0 and 0.1 touch, 0.0 and 0.2 do not
    assert [g.tolist() for g in groups] == [[0, 2, 3, 4], [1]]
    assert [g.tolist() for g in apart(norms.Linf(), line, np.full(5, 0.04, "float32"))] == [[0, 1, 2, 3, 4]]
    assert len(apart(norms.Linf(), line, np.full(5, 1.0, "float32"))) == 5


# -- heads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_every_point_of_a_ball_meets_the_head_of_that_ball(name):
    norm, eps = NORMS[name], np.linspace(0.05, 0.3, 6).astype("float32")
    own = Own(norm, (8, 8, 1), 6)
    own.centers.assign(X)
    own.radii.assign(eps)
    points = np.concatenate([f(norm, X, eps, (0, 1), 8, SEEDS) for f in (inside, on_surface)], axis=1)
    flat = ops.convert_to_tensor(points.reshape(-1, 8, 8, 1))
    answers = ops.tile(ops.reshape(ops.arange(12, dtype="float32"), (1, 1, 12)), (len(flat), 1, 1))
    found = ops.convert_to_numpy(own(flat, answers))[:, 0]
    expected = np.repeat(np.arange(6), 16)
    np.testing.assert_array_equal(found, np.stack([expected, expected + 6], axis=1))
    own.asleep.assign([0, 1, 1, 1, 1, 1])
    assert (ops.convert_to_numpy(own(flat, answers))[:, 0, 0] == 0).all()


def test_a_softmax_over_all_heads_keeps_the_odds_within_each():
    pairs = Pairs(4, 3)
    kernel = normal(4, 3)
    pairs.kernel.assign(kernel)
    features = normal(5, 4)
    found = ops.convert_to_numpy(pairs(ops.convert_to_tensor(features)))
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found[:, 3:] - found[:, :3], features @ kernel, atol=1e-5)


def nested(model):
    images = keras.Input((8, 8, 1))
    return keras.Model(images, layers.Softmax()(keras.Sequential([keras.Input((8, 8, 1)), model])(images)))


@pytest.mark.parametrize(
    ("model", "width"),
    [
        (linear(), 64),
        (nested(linear()), 64),
        (keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1, activation="sigmoid")]), 64),
        (
            keras.Sequential(
                [
                    keras.Input((8, 8, 1)),
                    layers.Conv2D(3, 3),
                    layers.GlobalAveragePooling2D(),
                    layers.BatchNormalization(),
                    layers.Softmax(),
                ]
            ),
            64,
        ),
    ],
)
def test_features_are_what_the_last_layer_with_weights_is_given(model, width):
    view = models.logits_view(model)
    features = keras.Model(view.inputs, features_of(model))
    assert features.output_shape == (None, width)
    np.testing.assert_allclose(ops.convert_to_numpy(features(X)), X.reshape(6, -1))


def test_a_model_that_ends_in_a_sum_has_no_last_layer():
    images = keras.Input((8, 8, 1))
    flat = layers.Flatten()(images)
    model = keras.Model(images, layers.Dense(3)(flat) + layers.Dense(3)(flat))
    with pytest.warns(UserWarning, match="not a Dense"), pytest.raises(ValueError, match="must end in a layer"):
        binarization(Plain(model), PGD(eps=0.1), X, n=2)


def cases():
    members = [linear(4, seed) for seed in range(3)]
    detector = LogitDeviation(rate=0.2).fit(
        members[:2], np.tile(X, (10, 1, 1, 1)) ** np.arange(1, 61).reshape(-1, 1, 1, 1) ** 0.1, np.arange(60) % 4
    )
    return {
        "Plain": Plain(members[0]),
        "RejectClass": RejectClass(members[0]),
        "RejectClass that does not reject": RejectClass(members[0], rejects=False),
        "Voting": Voting(members),
        "Voting that rejects": Voting(members, reject=3),
        "detector": HybridDefense(members[:2], detector=detector),
        "ensemble": HybridDefense(members),
        "smoothed": HybridDefense(members, sigma=0.1, draws=3, repair="always"),
        "answered": HybridDefense(members[:2], detector=detector, sigma=0.1, draws=3, flagged="answered"),
    }


NAMES = tuple(cases())


def with_random_heads(defense):
    made = problem(defense, norms.Linf(), X, np.full(6, 0.1, "float32"))
    for pairs in made.heads:
        pairs.kernel.assign(normal(*pairs.kernel.shape))
    return made


@pytest.mark.parametrize("name", ["RejectClass", "detector"])
def test_what_a_defense_flags_is_flagged_with_other_heads_too(name):
    x, y = drawn(40), np.zeros(40, "int32")
    defense = cases()[name]
    made = with_random_heads(defense)
    logits = models.predict_logits(made.model, x)
    free = [ops.convert_to_numpy(made.goal.reached(logits, y + k)) for k in (0, 1)]  # class 1, class 0
    expected = defense.decide(x).rejected
    assert 0 < expected.sum() < 40
    assert all(f.any() for f in free)
    np.testing.assert_array_equal(~(free[0] | free[1]), expected)


def test_members_of_a_vote_reject_what_they_rejected():
    x = drawn(40)
    defense = cases()["Voting that rejects"]
    found = models.predict_logits(with_random_heads(defense).model, x).argmax(axis=-1)
    expected = np.stack([models.predict_logits(m, x).argmax(axis=-1) for m in defense.members], axis=1)
    assert found.shape == (40, 3)
    np.testing.assert_array_equal(found == 2, expected == 3)


@pytest.mark.parametrize("name", ["Plain", "RejectClass that does not reject", "Voting", "ensemble", "answered"])
def test_where_nothing_is_rejected_there_are_two_classes(name):
    assert with_random_heads(cases()[name]).model.output_shape[-1] == 2


# -- the test -----------------------------------------------------------------------------------------------------


def outcome(found, drawn, n=50, asked=50):
    first = np.arange(n)
    return Binarization(first, first < found, first < drawn, np.zeros(n, "int64"), 200, asked)


@pytest.mark.parametrize(
    ("found", "drawn", "n", "verdict"),
    [
        (50, 0, 50, "passed"),
        (48, 0, 50, "passed"),  # 96 %
        (47, 0, 50, "failed"),  # 94 %
        (50, 45, 50, "passed"),  # five tosses of a coin in a row: 3 %
        (50, 46, 50, "too easy"),  # four: 6 %
        (0, 0, 50, "failed"),
        (49, 0, 49, "too few"),
        (3, 0, 10, "failed"),  # too few to pass, but enough to fail
        (9, 0, 10, "too few"),
        (0, 0, 0, "too few"),
    ],
)
def test_the_verdict(found, drawn, n, verdict):
    result = outcome(found, drawn, n)
    assert result.verdict == verdict
    assert result.passed == (verdict == "passed")
    assert f"{n} images" in result.text
    assert ("not reliable" in result.text) == (verdict == "failed")


@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.1, steps=10),
        PGD(eps=0.5, norm="l2", steps=10),
        APGD(eps=2.0, norm="l1", steps=40),
        PGD(eps=0.8, norm=NORMS["masked"], steps=20),
        PGD(eps=0.2, norm=NORMS["box"], steps=10),
    ],
    ids=lambda a: a.norm.title,
)
def test_on_a_linear_model_an_attack_finds_all_and_chance_little_in_every_norm(attack):
    x = drawn(14)
    result = binarization(Plain(linear()), attack, x, n=12, closeness=0.5, progress=False)
    assert result.n == 12
    assert result.attack_rate == 1
    assert result.random_rate < 0.5
    assert result.draws == 200


def test_projections_that_forget_the_bounds_are_found_out_in_l1():
    # Croce and Hein, 2021, https://arxiv.org/abs/2103.01208: the steepest step is along a feature that is at its bound
    # already, so projected gradients stand still; where no bound is near, they find all
    attack, found = PGD(eps=2.0, norm="l1", steps=20), []
    for x in (drawn(14), drawn(14, 0.49, 0.51)):
        own = attack if x.max() > 0.9 else dataclasses.replace(attack, eps=0.2)
        found.append(binarization(Plain(linear()), own, x, n=12, progress=False).attack_rate)
    assert found[0] < 0.75
    assert found[1] == 1


SHORT = ("detector",)  # each costs some seconds of compiling


@pytest.mark.parametrize("name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_every_defense_can_be_tested(name):
    x, defense = drawn(60), cases()[name]
    # noise as large as the radius decides near the boundary, so heads have to keep away from their points
    closeness = 0.0 if name in ("smoothed", "answered") else 0.5
    result = binarization(defense, PGD(eps=0.1, steps=20), x, n=6, closeness=closeness, progress=False)
    assert result.n == 6
    assert result.attack_rate >= 5 / 6
    assert not defense.decide(x[result.index]).rejected.any()


def test_an_attack_made_from_the_defense_is_made_anew_from_the_one_with_binary_heads():
    x, defense = drawn(60), cases()["detector"]
    attack = adaptive(defense, eps=0.1, steps=10, parts=("apgd-ce",))
    made = with_random_heads(defense)
    own = aimed(attack, made.defense)
    assert own.defense is made.defense
    assert own.goal == made.goal != attack.goal
    assert (own.eps, own.norm, own.steps, own.parts) == (attack.eps, attack.norm, attack.steps, attack.parts)
    result = binarization(defense, attack, x, n=6, progress=False)  # takes norm and radius from the attack
    assert result.n == 6
    assert result.attack_rate == 1
    assert result.evaluations.min() > 0


@pytest.mark.slow
def test_data_and_defense_may_have_other_ranges():
    x = drawn(14)
    pixels = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), *linear().layers])
    assert Plain(pixels).bounds == (0, 255)
    result = binarization(Plain(pixels), PGD(eps=0.1, steps=10), x, n=12, progress=False)
    same = binarization(Plain(linear()), PGD(eps=0.1, steps=10), x, n=12, progress=False)
    assert (result.n, result.attack_rate) == (12, 1)
    np.testing.assert_array_equal(result.index, same.index)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Overshooting(Wrapper):
    """Goes three times as far as it may."""

    def _run(self, model, x, y, batch_size, seed, show):
        found, spent = self.attack._run(model, x, y, batch_size, seed, show)
        return np.clip(x + 3 * (found - x), 0, 1), spent


def test_what_lies_beyond_the_radius_does_not_count():
    x = drawn(12, 0.4, 0.6)
    result = binarization(Plain(linear()), Overshooting(PGD(eps=0.1, steps=10)), x, n=10, progress=False)
    assert result.n == 10
    assert not result.found.any()


@pytest.mark.slow
def test_an_attack_without_a_radius_is_given_one():
    x = drawn(12)
    result = binarization(Plain(linear()), CarliniWagner(), x, eps=0.8, n=6, progress=False)
    assert result.attack_rate == 1


def test_a_radius_is_given_where_the_attack_has_none_and_only_there():
    x = drawn(12)
    with pytest.raises(ValueError, match="`eps` must be given where"):
        binarization(Plain(linear()), CarliniWagner(), x)
    with pytest.raises(ValueError, match="`eps` must be given where"):
        binarization(Plain(linear()), PGD(eps=0.1), x, eps=0.1)


@pytest.mark.parametrize("attack", [Transfer(linear(), PGD()), Targeted(PGD())], ids=["transfer", "targeted"])
def test_attacks_on_something_else_are_refused(attack):
    with pytest.raises(ValueError, match="on the defense itself"):
        binarization(Plain(linear()), attack, X)


def test_the_same_seed_gives_the_same_result():
    x = drawn(14)
    results = [binarization(Plain(linear()), PGD(eps=0.05, steps=2), x, n=12, seed=s, progress=False) for s in (3, 3)]
    for name in ("index", "found", "drawn", "evaluations"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))


def test_a_right_attack_passes_and_one_that_follows_masked_gradients_fails(digits, digits_model):
    _, _, x, y = digits
    right = binarization(Plain(digits_model), PGD(eps=0.1, steps=20), x, y, progress=False)
    assert right.passed
    assert right.n == 50
    wrong = binarization(Plain(masked(digits_model)), PGD(eps=0.1, steps=20), x, y, progress=False)
    assert wrong.verdict == "failed"
    assert wrong.attack_rate < 0.5
    with_queries = binarization(Plain(masked(digits_model)), Square(eps=0.1, queries=500), x, y, n=10, progress=False)
    assert with_queries.attack_rate == 1  # it needs no gradients


@pytest.mark.slow
def test_an_attack_that_cannot_see_the_detector_fails_where_one_that_can_passes(digits, digits_model):
    x_train, y_train, x, y = digits
    found = {}
    for kind in (Rough, Blind):
        detector = kind(rate=0.3).fit(digits_model, x_train[:1000], y_train[:1000], valid=x_train[1000:])
        defense = HybridDefense([digits_model], detector=detector)
        found[kind] = binarization(defense, PGD(eps=0.3, steps=20), x, y, progress=False)
    assert found[Rough].passed
    assert found[Blind].verdict == "failed"


# -- without a bound, and with more --------------------------------------------------------------------------------


def test_an_attack_without_a_bound_leaves_nothing_unless_it_is_blind(digits, digits_model):
    _, _, x, y = digits
    free = unbounded(Plain(digits_model), PGD(eps=0.01, steps=20), x[:50], y[:50], progress=False)
    assert free.passed
    assert free.radius == 1
    assert "breaks all 50" in free.text
    blind = unbounded(
        Plain(masked(digits_model)), PGD(eps=0.01, steps=20, random_start=False), x[:50], y[:50], progress=False
    )
    assert not blind.passed
    assert blind.robust_accuracy > 0.9
    assert "does not find what is there" in blind.text


@pytest.mark.parametrize(
    ("kind", "norm", "radius"),
    [(PGD, "l2", 8.0), (APGD, "l1", 64.0), (PGD, NORMS["masked"], np.sqrt(32)), (PGD, NORMS["box"], 2.0)],
    ids=["l2", "l1", "masked", "box"],
)
def test_the_radius_holds_every_input(kind, norm, radius):
    y = models.predict_logits(linear(), X).argmax(axis=1)
    free = unbounded(Plain(linear()), Restarts(kind(eps=0.01, norm=norm, steps=40), 1), X, y, progress=False)
    assert free.radius == pytest.approx(radius)
    assert free.passed


def rates(*rows):
    return Monotone("eps", tuple(float(i + 1) for i in range(len(rows))), np.array(rows, bool))


def test_a_growth_beyond_chance_is_told():
    n = 50
    up, down = np.arange(n) < 30, np.arange(n) < 20
    assert rates(up, down, down).passed
    grown = rates(down, up)  # ten lost, none won: a thousandth
    assert not grown.passed
    assert grown.p_value == pytest.approx(2.0**-10)
    assert (grown.lost, grown.robust_accuracy) == (10, (0.4, 0.6))
    assert "a stronger attack finds less" in grown.text
    assert rates(np.arange(n) < 20, np.arange(n) < 22).passed  # two lost: chance
    assert not rates(up, down, up).passed  # also between the second and the third
    assert rates(up, up).p_value == 1


@pytest.mark.parametrize("setting", ["eps", "steps"])
def test_more_of_a_setting_is_never_worse_for_a_right_attack(digits, digits_model, setting):
    _, _, x, y = digits
    found = monotone(Plain(digits_model), PGD(eps=0.05, steps=8), x[:100], y[:100], setting, progress=False)
    assert found.passed
    assert found.robust.shape == (3, 100)
    accuracy = found.robust_accuracy
    assert accuracy[0] > accuracy[-1] or setting == "steps"


def test_a_setting_is_changed_wherever_it_is():
    def twice(value):
        return tuple(map(twice, value)) if isinstance(value, tuple) else 2 * value

    attack = Restarts(PGD(eps=(0.1, 0.2), steps=7), 2)
    other = varied(varied(attack, "eps", twice), "steps", lambda v: v + 1)
    assert (other.attack.eps, other.attack.steps, other.count) == ((0.2, 0.4), 8, 2)
    assert attack.attack.steps == 7
    assert varied(Cycled(PGD(), (0.1, 0.3)), "eps", twice).radii == (0.2, 0.6)
    assert has(attack, "steps")
    assert not has(AutoAttack(), "steps")
    assert not has(CarliniWagner(), "eps")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"setting": "queries"}, "`setting` must be one that the attack has"),
        ({"setting": "size"}, "`setting` must be one of"),
        ({"factors": (1.0,)}, "`factors` must be two or more"),
        ({"factors": (2.0, 1.0)}, "`factors` must be two or more"),
    ],
)
def test_settings_that_cannot_be_varied_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        monotone(Plain(linear()), PGD(eps=0.1), X, np.zeros(6, int), **options)


# -- all of them --------------------------------------------------------------------------------------------------


def test_all_checks_of_a_right_attack_and_of_a_blind_one(digits, digits_model):
    _, _, x, y = digits
    attack = PGD(eps=0.1, steps=20)
    right = self_check(Plain(digits_model), attack, x, y, progress=False)
    assert right.reliable
    assert right.passed
    assert right.flags == []
    assert right.table["check"].tolist() == ["binarization", "unbounded", "more eps", "more steps"]
    assert right.table["passed"].tolist() == [True] * 4
    assert len(right.texts) == 4
    wrong = self_check(Plain(masked(digits_model)), attack, x, y, progress=False)
    assert not wrong.reliable
    assert not wrong.passed
    assert "not reliable" in wrong.flags[0]


def test_outputs_alone_have_no_binarization_test():
    y = models.predict_logits(linear(), X).argmax(axis=1)
    model = linear()
    defense = Outputs(lambda x: models.predict_logits(model, x), classes=3)
    found = self_check(defense, Square(eps=0.1, queries=40), X, y, progress=False)
    assert found.binarization is None
    assert "only outputs" in found.flags[-1]
    assert found.table["check"].tolist() == ["unbounded", "more eps", "more queries"]
    assert not found.passed
