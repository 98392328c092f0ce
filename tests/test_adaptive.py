"""The attack that is made from a defense: closed forms, floors it is never weaker than, its manifest, randomness."""

import dataclasses
import json
import warnings

import keras
import numpy as np
import pytest
from helpers import WIDE
from keras import layers, ops
from scipy.optimize import linprog

import kerasdef
from kerasdef import losses, models
from kerasdef.attacks import APGD, PGD, Evade, Hit, Misclassify, OrthogonalPGD, SelectivePGD
from kerasdef.attacks.white.orthogonal import without
from kerasdef.defenses import EvadeEnsemble, EvadeVote, HybridDefense, Plain, RejectClass, Voting
from kerasdef.defenses.adaptive.stages import FAMILIES
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.evaluation import Plan, Planned, evaluate, four_numbers
from kerasdef.testing import linear_model

SMALL = {"steps": 10, "queries": 60}


class Alarm(layers.Layer):
    """Logits with one more column: the largest of them and what a detector says beyond."""

    def __init__(self, detector, **kwargs):
        super().__init__(**kwargs)
        self.detector = detector
        self.built = True

    def call(self, x, logits):
        excess = self.detector.excess(x, ops.stack([logits], axis=1))
        return ops.concatenate([logits, ops.expand_dims(ops.max(logits, axis=-1) + excess, -1)], axis=-1)

    def get_config(self):
        return {"detector": self.detector.get_config()}


def rejecting(model, detector):
    """A classifier whose last output is above the others where a detector says so."""
    images = keras.Input(model.input_shape[1:])
    return models.as_logits(keras.Model(images, Alarm(detector)(images, model(images))))


class Linear:
    """A detector whose excess is weights @ x - threshold."""

    def __init__(self, weights, threshold):
        self.weights, self.threshold = np.float32(weights), np.float32(threshold)

    def excess(self, x, logits):
        return ops.matmul(x, ops.convert_to_tensor(self.weights)) - self.threshold

    def get_config(self):
        return {"weights": self.weights.tolist(), "threshold": float(self.threshold)}


@pytest.fixture(scope="module")
def guarded(digits, digits_model):
    """A net of digits with a detector at 5 % false positives, as a defense, and images that it gets right."""
    x, y, x_test, y_test = digits
    detector = LogitDeviation(rate=0.05).fit(digits_model, x[:1000], y[:1000], valid=x[1000:])
    defense = HybridDefense([digits_model], detector=detector)
    right = np.flatnonzero(defense.decide(x_test).label == y_test)[:40]
    return defense, x_test[right], y_test[right]


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# -- two objectives ------------------------------------------------------------------------------------------------


def random_goal_logits(n=200, k=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, k)).astype("float32"), rng.integers(0, k - 1, n).astype("int32")


def test_gap_and_alarm_together_say_when_the_goal_is_reached():
    logits, y = random_goal_logits()
    for goal in (Evade(4), Misclassify(), Hit()):
        gap, alarm = map(ops.convert_to_numpy, goal.apart(logits, y))
        np.testing.assert_array_equal((gap > 0) & (alarm <= 0), ops.convert_to_numpy(goal.reached(logits, y)))


def test_what_is_left_of_a_vector_is_at_a_right_angle_to_the_other():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 20, 3, 4)).astype("float32")
    left = ops.convert_to_numpy(without(a, b * np.float32(1e-20)))  # however small the other is
    np.testing.assert_allclose((left * b).sum(axis=(1, 2)), 0, atol=1e-5)
    along = (a * b).sum(axis=(1, 2)) / (b * b).sum(axis=(1, 2))
    np.testing.assert_allclose(a - left, along[:, None, None] * b, atol=1e-5)


@pytest.mark.parametrize("fooled", [False, True])
def test_a_step_of_orthogonal_pgd_is_at_a_right_angle_to_the_other_gradient(fooled):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(6, 3)).astype("float32")
    model, x, y = linear_model(weights), rng.uniform(-1, 1, (400, 6)).astype("float32"), np.zeros(400, int)
    z = x @ weights
    keep = (z[:, 2] > z[:, :2].max(axis=1) + 0.3) & (z[:, 1] - z[:, 0] > 0.3 if fooled else z[:, 1] - z[:, 0] < -0.3)
    x, y = x[keep], y[keep]
    eps = 0.08
    attack = OrthogonalPGD(eps=eps, norm="l2", steps=1, goal=Evade(2), bounds=WIDE)
    moved = attack(model, x, y, progress=False) - x
    gap = weights[:, 1] - weights[:, 0]
    alarm = weights[:, 2] - weights[:, 1 if fooled else 0]
    climbed, other = (-alarm, gap) if fooled else (gap, alarm)
    np.testing.assert_allclose(moved @ other, 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), eps / 8, rtol=1e-4)
    assert len(x) >= 3
    assert (moved @ climbed > 0).all()


@pytest.mark.slow
def test_of_all_fooling_points_the_one_with_the_lowest_alarm_is_returned(guarded):
    defense, x, y = guarded
    model, goal = defense.surface()
    for cls in (OrthogonalPGD, SelectivePGD):
        found = {}
        for steps in (10, 40):
            x_adv = cls(eps=0.2, steps=steps, goal=goal)(model, x, y, progress=False)
            gap, alarm = map(ops.convert_to_numpy, goal.apart(models.predict_logits(model, x_adv), y.astype("int32")))
            found[steps] = gap > 0, alarm
        both = found[10][0] & found[40][0]
        assert found[40][0].sum() >= found[10][0].sum() >= 5
        assert np.median(found[40][1][both]) < np.median(found[10][1][both])


def smallest_radius(w, h, margin, room):
    """The least eps for which some delta in [-eps, eps] has w @ delta >= margin and h @ delta <= room."""
    d = len(w)
    rows = [np.append(-w, 0), np.append(h, 0)]
    sides = np.concatenate([np.hstack([s * np.eye(d), -np.ones((d, 1))]) for s in (1, -1)])
    found = linprog(
        np.append(np.zeros(d), 1), np.vstack([rows, sides]), [-margin, room, *np.zeros(2 * d)], bounds=(None, None)
    )
    return found.fun


@dataclasses.dataclass
class Scene:
    """A linear classifier with a linear detector, images of class 0, and the least radius at which each falls."""

    model: keras.Model
    defense: RejectClass
    x: np.ndarray
    y: np.ndarray
    radius: np.ndarray


@pytest.fixture(scope="module")
def scene():
    rng = np.random.default_rng(3)
    d, n = 6, 16
    weights, h = rng.normal(size=(d, 2)), rng.normal(size=d)
    w = weights[:, 1] - weights[:, 0]
    h += 2 * w  # what fools the classifier alarms the detector
    x = rng.uniform(-1, 1, (20_000, d)).astype("float32")
    logits = x @ weights
    threshold = np.quantile(x @ h, 0.4)
    room, margin = threshold - x @ h, logits[:, 0] - logits[:, 1]
    kept = np.flatnonzero((room > 0.1) & (room < 0.5) & (margin > 0.5))[:n]
    x, room, margin = x[kept], room[kept], margin[kept]
    radius = np.array([smallest_radius(w, h, margin[i], room[i]) for i in range(n)])
    assert np.mean(radius > 1.2 * margin / np.abs(w).sum()) > 0.5  # the detector costs the attacker something
    model = linear_model(weights)
    defense = RejectClass(rejecting(model, Linear(h, threshold)), bounds=WIDE)
    return Scene(model, defense, x, np.zeros(n, int), radius)


def test_on_a_linear_classifier_with_a_linear_detector_adaptive_finds_nothing_where_there_is_nothing(scene):
    parts = ("apgd-margin", "orthogonal", "selective", "hinge")
    attack = kerasdef.adaptive(scene.defense, eps=tuple(0.99 * scene.radius), steps=20, parts=parts)
    assert not attack.run(scene.defense, scene.x, scene.y, progress=False).success.any()


def test_an_attack_that_ignores_the_detector_is_flagged_where_adaptive_is_not(scene):
    x, y, eps = scene.x, scene.y, tuple(1.4 * scene.radius)
    blind = PGD(eps=eps, early_stop=False, bounds=WIDE)(scene.model, x, y, progress=False)
    assert (models.predict_logits(scene.model, blind).argmax(axis=1) != y).all()
    assert scene.defense.decide(blind).rejected.mean() > 0.9
    found = kerasdef.adaptive(scene.defense, eps=eps, steps=200, parts=("apgd-margin", "hinge")).run(
        scene.defense, x, y
    )
    decision = scene.defense.decide(found.x_adv)
    np.testing.assert_array_equal(found.success, (decision.label != y) & ~decision.rejected)
    assert found.success.mean() > 0.9
    assert (np.abs(found.x_adv - x).max(axis=1) <= np.array(eps) + 1e-6).all()


SOME = ("noise", "apgd-margin", "square", "members", "base")


@pytest.mark.slow
@pytest.mark.parametrize("groups", [SOME, None])
def test_it_is_never_weaker_than_any_of_its_parts_and_the_manifest_names_each(digits, guarded, digits_model, groups):
    x_train, y_train, _, _ = digits
    _, x, y = guarded
    other = keras.models.clone_model(digits_model)
    other.set_weights([w + 0.05 * np.random.default_rng(0).normal(size=w.shape) for w in digits_model.get_weights()])
    members = [digits_model, other]
    detector = LogitDeviation(rate=0.05).fit(members, x_train[:1000], y_train[:1000], valid=x_train[1000:])
    defense = HybridDefense(members, detector=detector)
    attack = kerasdef.adaptive(defense, eps=0.1, parts=groups, **SMALL)
    found = attack.run(defense, x, y, progress=False)
    assert 0 < found.success.mean() < 1
    parts = attack._parts(attack._view(defense.surface()[0]), x, y, 0)
    assert tuple(parts) == found.parts
    floors = ("noise", "square", "member-1-apgd", "member-2-mim", "base-apgd-ce", "base-mim", "apgd-margin-mean")
    for name in floors if groups else parts:
        alone = parts[name].run(defense.surface()[0], x, y, progress=False).success
        assert found.success.sum() >= alone.sum(), name
    manifest = attack.on(x).manifest
    rows = {row.stage: row for row in manifest}
    assert set(found.parts) <= set(rows)
    assert rows["detector LogitDeviation"].gradient == "exact"
    assert "labels" in rows["update"].not_attacked
    assert "threshold" in rows["detector LogitDeviation"].not_attacked
    assert rows["base-mim"].not_attacked == "all of the defense"
    assert json.loads(json.dumps(manifest.records()))[0]["on"] == "defense"
    assert all(name in manifest.text() for name in found.parts)


def test_parts_that_are_left_out_are_in_the_manifest(guarded):
    defense = guarded[0]
    whole = kerasdef.adaptive(defense, eps=0.1)
    some = kerasdef.adaptive(defense, eps=0.1, parts=("noise", "square"))
    left = [row.stage for row in some.manifest if "left out" in row.not_attacked]
    assert "orthogonal" in left
    assert {row.stage for row in some.manifest} == {row.stage for row in whole.manifest}
    with pytest.raises(ValueError, match="`parts` must name some of"):
        len(kerasdef.adaptive(linear_model(np.eye(4)), eps=0.1, parts=("orthogonal",)).manifest)
    with pytest.raises(ValueError, match="`parts` must be one of"):
        kerasdef.adaptive(defense, eps=0.1, parts=("apgd",))
    with pytest.raises(ValueError, match="`eps` must be above 0"):
        kerasdef.adaptive(defense, eps=0.0)
    with pytest.raises(ValueError, match="`goal` must be that of the defense"):
        whole.with_goal(Misclassify())


def small(k=4, d=16, seed=0):
    rng = np.random.default_rng(seed)
    model = linear_model(rng.normal(size=(d, k)), input_shape=(d,))
    x = rng.uniform(size=(30, d)).astype("float32")
    return model, x, models.predict_logits(model, x).argmax(axis=1)


def test_evaluate_and_a_run_that_goes_on_know_it_as_an_attack_of_parts(tmp_path):
    model, x, y = small()
    data = kerasdef.Dataset("d", x, y, x, y, x, y, bounds=(0, 1))
    attack = kerasdef.adaptive(model, eps=0.1, steps=5, parts=("noise", "apgd-ce"))
    found = evaluate(model, data, Plan("m", np.arange(20), adaptive={"adaptive": Planned(attack)}))
    result = found.results["adaptive", "adaptive"]
    assert result.parts == ("noise", "apgd-ce")
    assert found.outcomes[-1].norm == "Linf"
    np.testing.assert_array_equal(found.outcomes[-1].predicted != y[:20], result.success)
    first, again = (attack.run(model, x, y, out=tmp_path, progress=False) for _ in range(2))
    np.testing.assert_array_equal(first.x_adv, again.x_adv)
    assert list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_callable_is_attacked_by_its_outputs_and_by_a_net_that_learns_them():
    model, x, y = small()

    def service(images):
        return ops.convert_to_numpy(ops.softmax(model(images)))

    attack = kerasdef.adaptive(service, eps=0.15, steps=10, queries=20)
    assert attack.access == "black box"
    found = attack.run(service, x, y, progress=False)
    assert found.parts == ("noise", "square", "substitute")
    assert found.success.any()
    np.testing.assert_array_equal(found.success, models.predict_logits(model, found.x_adv).argmax(axis=1) != y)
    assert any("outputs" in row.not_attacked for row in attack.manifest)


@pytest.mark.slow
def test_a_substitute_alone_breaks_a_model_without_gradients():
    model, x, y = small()
    images = keras.Input((16,))
    steps = keras.Model(images, model(layers.Lambda(lambda z: ops.round(16 * z) / 16)(images)))
    y = models.predict_logits(steps, x).argmax(axis=1)
    gone = APGD(eps=0.15, steps=10).run(steps, x, y, progress=False).success.mean()
    attack = kerasdef.adaptive(steps, eps=0.15, steps=10, parts=("substitute",))
    assert attack.run(steps, x, y, progress=False).success.mean() > gone + 0.3


@pytest.mark.parametrize("goal", [EvadeVote(4), EvadeVote(), EvadeEnsemble(4), EvadeEnsemble()])
def test_each_variant_of_the_goal_against_several_is_reached_alike_and_both_make_the_whole(goal):
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(50, 3, 5)).astype("float32"), rng.integers(0, 4, 50).astype("int32")
    assert set(goal.variants) == {"mean", "members"}
    values = [g.value(losses.margin, logits, y) for g in goal.variants.values()]
    np.testing.assert_allclose(values[0] + values[1], goal.value(losses.margin, logits, y), atol=1e-5)
    for variant in goal.variants.values():
        np.testing.assert_array_equal(variant.reached(logits, y), goal.reached(logits, y))
    same = np.repeat(logits[:, None], 4, axis=1)  # the mean over draws that are all alike changes no probability
    found = goal.joint(goal.averaged(same))
    np.testing.assert_allclose(ops.softmax(found), ops.softmax(goal.joint(logits)), atol=1e-5)


def test_every_group_of_parts_is_made_for_some_defense(guarded):
    of_detector = kerasdef.adaptive(guarded[0], eps=0.1, norm="l2")
    of_vote = kerasdef.adaptive(Voting(guarded[0].members * 2), eps=0.1)
    names = {part.family for a in (of_detector, of_vote) for part in a._stages[0].values()}
    assert set(FAMILIES) - names <= {"refined"}  # only where gradients are replaced


# -- randomness ---------------------------------------------------------------------------------------------------


class Noise(layers.Layer):
    """Adds normal noise, in inference too."""

    def __init__(self, deviation, **kwargs):
        super().__init__(**kwargs)
        self.deviation, self.generator = deviation, keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(ops.shape(x), stddev=self.deviation, seed=self.generator)

    def get_config(self):
        return {**super().get_config(), "deviation": self.deviation}


@pytest.fixture(scope="module")
def noisy():
    model, x, y = small()
    images = keras.Input((16,))
    return Plain(keras.Model(images, model(Noise(0.1)(images)))), x, y


@pytest.mark.slow
def test_a_random_defense_is_attacked_over_draws(noisy):
    defense, x, y = noisy
    attack = kerasdef.adaptive(defense, eps=0.1, steps=5, draws=4, parts=("apgd-margin", "fab"))
    rows = {row.stage: row for row in attack.manifest}
    assert (rows["apgd-margin"].draws, rows["apgd-margin-draws"].draws) == (4, 4)
    assert "random" in rows["fab"].not_attacked
    found = attack.run(defense, x, y, progress=False)
    assert found.parts == ("apgd-margin", "apgd-margin-draws")
    numbers = four_numbers(defense, x, y, found.x_adv, draws=15)
    assert numbers.attacked.majority < numbers.clean.majority


def test_four_numbers_of_a_random_defense_and_the_control(noisy):
    defense, x, y = noisy
    attack = PGD(eps=0.1, steps=5)
    x_adv = attack(defense.surface()[0], x, y, progress=False)
    found = four_numbers(defense, x, y, x_adv, attack=attack, draws=15)
    for numbers in (found.attacked, found.clean):
        assert numbers.worst <= min(numbers.majority, numbers.one_shot)
        assert all(0 <= value <= 1 for value in dataclasses.astuple(numbers))
    assert found.attacked.one_shot < found.clean.one_shot
    assert found.clean.worst < found.clean.majority  # the control: noise alone is a success for one who may try often
    clean, attacked = found.rows()
    assert (clean["on"], attacked["on"], clean["draws"], clean["images"]) == ("clean", "attacked", 15, 30)
    assert four_numbers(defense, x, y, x_adv, draws=15).attacked.fixed is None
    more = four_numbers(defense, x, y, x_adv, draws=60)
    assert more.clean.worst <= found.clean.worst
    with pytest.raises(ValueError, match="`defense` must draw random numbers"):
        four_numbers(small()[0], x, y, x_adv)


def test_a_draw_that_is_held_still_is_the_same_for_every_image_and_call(noisy):
    defense, x, _ = noisy
    fixed = models.fixed_draw(defense.surface()[0], 3)
    same = np.repeat(x[:1], 5, axis=0)
    logits = models.predict_logits(fixed, same)
    np.testing.assert_array_equal(logits, np.repeat(logits[:1], 5, axis=0))
    np.testing.assert_array_equal(models.predict_logits(fixed, same), logits)
    assert not models.Victim.of(fixed).random
    other = models.predict_logits(models.fixed_draw(defense.surface()[0], 4), same)
    assert np.abs(other - logits).min() > 0
