"""AutoAttack: the published sequence, what it leaves, resuming, flags; and sequences of attacks in general."""

import dataclasses
import shutil

import keras
import numpy as np
import pytest
from keras import layers

from kerasdef import losses, models
from kerasdef.attacks import APGD, FAB, PGD, AutoAttack, Evade, Hit, Misclassify, Restarts, Square, sequence
from kerasdef.attacks.base import Result
from kerasdef.attacks.sequence import STANDS, WRONG
from kerasdef.testing import LinearOracle, check_attack
from kerasdef.training import AdversarialTraining

EPS = 0.15
N = 40  # images of a whole evaluation
QUICK = ("apgd-ce", "apgd-t")


@pytest.fixture(scope="module")
def robust(digits):
    """A model of the digits that withstands some of what AutoAttack does at EPS."""
    x, y, _, _ = digits
    glorot = [keras.initializers.GlorotUniform(seed=i) for i in range(3)]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(16, 3, activation="relu", kernel_initializer=glorot[0]),
            layers.Flatten(),
            layers.Dense(64, activation="relu", kernel_initializer=glorot[1]),
            layers.Dense(10, kernel_initializer=glorot[2]),
        ]
    )
    trainer = AdversarialTraining(model, PGD(eps=EPS, steps=5), seed=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(3e-3), loss)
    trainer.fit(x, y, batch_size=50, epochs=6, shuffle=False, verbose=0)
    return model


@pytest.fixture(scope="module")
def standard(robust, digits):
    """The standard evaluation of the robust model on N images."""
    _, _, x, y = digits
    return AutoAttack(eps=EPS).run(robust, x[:N], y[:N], progress=False)


def left(model, x_adv, y):
    return models.predict_logits(model, x_adv).argmax(axis=1) == y


# -- what it is ------------------------------------------------------------------------------------


def test_standard_is_the_published_sequence_with_its_settings():
    parts = AutoAttack(eps=0.1).attacks()
    assert list(parts) == ["apgd-ce", "apgd-t", "fab-t", "square"]
    ce, targeted, fab, square = parts.values()
    assert (ce.loss, ce.steps, ce.restarts, ce.rho) == ("cross_entropy", 100, 1, 0.75)
    assert (targeted.loss, targeted.steps, targeted.restarts, targeted.targets) == ("targeted_dlr", 100, 1, 9)
    assert (fab.steps, fab.restarts, fab.targets) == (100, 1, 9)
    assert (square.queries, square.p_init, square.rescale) == (5000, 0.8, False)
    assert all(part.eps == 0.1 for part in parts.values())


def test_plus_rand_and_l1_differ_as_published():
    plus = AutoAttack(eps=0.1, version="plus").attacks()
    assert list(plus) == ["apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"]
    assert (plus["apgd-ce"].restarts, plus["apgd-dlr"].restarts, plus["fab"].restarts) == (5, 5, 5)
    assert plus["apgd-dlr"].loss == "dlr"
    rand = AutoAttack(eps=0.1, version="rand").attacks()
    assert list(rand) == ["apgd-ce", "apgd-dlr", "square"]  # the last is not the authors': see the next test
    assert all(part.samples == 20 and part.restarts == 1 for part in rand.values())
    l1 = AutoAttack(eps=8.0, norm="l1").attacks()
    assert (l1["apgd-ce"].restarts, l1["apgd-t"].targets) == (5, 5)
    assert l1["apgd-ce"].large_reps
    rand, plus = (AutoAttack(eps=8.0, norm="l1", version=v).attacks()["apgd-ce"] for v in ("rand", "plus"))
    assert not rand.large_reps
    assert not plus.large_reps
    assert (rand.restarts, plus.restarts) == (1, 5)


# -- what it leaves --------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_leaves_no_more_than_its_parts_and_no_more_than_apgd_and_pgd_with_20_restarts(robust, digits, standard):
    _, _, x, y = digits
    x, y = x[:N], y[:N]
    assert 0.2 < standard.robust_accuracy < standard.clean_accuracy  # a model that is neither lost nor untouched
    rivals = dict(AutoAttack(eps=EPS).attacks())
    rivals["pgd"] = Restarts(PGD(eps=EPS, steps=40), 20)
    survivors = np.ones(len(x), dtype=bool)
    for name, attack in rivals.items():
        stands = ~attack.run(robust, x, y, progress=False).success
        assert standard.robust_accuracy <= stands.mean(), name
        if name in ("apgd-ce", "pgd"):
            survivors &= stands
    assert standard.robust_accuracy <= survivors.mean()


def test_the_numbers_are_those_of_the_images_it_returns(robust, digits, standard):
    _, _, x, y = digits
    x, y = x[:N], y[:N]
    stands = left(robust, standard.x_adv, y)
    np.testing.assert_array_equal(stands, standard.broken_by == STANDS)
    np.testing.assert_array_equal(standard.success, ~stands)
    assert standard.robust_accuracy == stands.mean() == standard.table["robust_accuracy"].iloc[-1]
    assert standard.clean_accuracy == left(robust, x, y).mean()
    np.testing.assert_array_equal(standard.x_adv[standard.broken_by < 0], x[standard.broken_by < 0])
    assert np.abs(standard.x_adv - x).max() <= EPS + 1e-6
    assert standard.evaluations[standard.broken_by == WRONG].sum() == 0
    attacked = standard.table["attacked"].tolist()
    broken = standard.table["broken"].tolist()
    assert attacked == [attacked[0] - sum(broken[:i]) for i in range(4)]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), pytest.param("l2", 0.3, marks=pytest.mark.slow), ("l1", 0.5)])
def test_on_a_linear_model_it_breaks_exactly_what_can_be_broken(norm, eps):
    rng = np.random.default_rng(0)
    oracle = LinearOracle(rng.normal(size=(12, 4)), 0.1 * rng.normal(size=4))
    x = rng.uniform(-1, 1, (60, 12)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    attack = AutoAttack(eps=eps, norm=norm, version="custom", parts=(*QUICK, "fab-t"), bounds=(-50.0, 50.0))
    best = oracle.largest_margin(x, y, eps, norm)
    clear = np.abs(best) > 1e-3  # float32 on the boundary
    found = attack.run(oracle.model(), x, y, progress=False)
    np.testing.assert_array_equal(found.success[clear], best[clear] > 0)
    assert 0.1 < found.success.mean() < 0.9


def test_every_sample_may_have_a_radius_of_its_own_also_where_some_are_wrong_or_fall_early():
    rng = np.random.default_rng(2)
    oracle = LinearOracle(rng.normal(size=(10, 5)))
    x = rng.uniform(0.2, 0.8, (16, 10)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    y[3] = (y[3] + 1) % 5
    eps = rng.uniform(0.01, 0.2, 16).astype("float32")
    attack = AutoAttack(eps=eps, version="custom", parts=("apgd-ce", "fab-t"))
    found = attack.run(oracle.model(), x, y, progress=False)
    assert np.all(np.abs(found.x_adv - x).max(axis=1) <= eps + 1e-6)  # float32
    best = np.array([oracle.largest_margin(x[i : i + 1], y[i : i + 1], float(eps[i]))[0] for i in range(16)])
    clear = np.abs(best) > 1e-3
    np.testing.assert_array_equal(found.success[clear], best[clear] > 0)
    assert 0 < np.mean(found.success) < 1
    assert found.broken_by[3] == WRONG


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("wrong", ["all", "all but one"])
def test_samples_that_are_wrong_from_the_start_are_left_alone_in_every_part(wrong):
    oracle = LinearOracle(np.random.default_rng(3).normal(size=(10, 8)))
    x = np.random.default_rng(4).uniform(0.2, 0.8, (6, 10)).astype("float32")
    y = oracle.logits(x).argmin(axis=1)
    if wrong != "all":
        y[0] = oracle.logits(x[:1]).argmax()
    found = AutoAttack(eps=1e-6).run(oracle.model(), x, y, progress=False)
    np.testing.assert_array_equal(found.success, [wrong == "all", *[True] * 5])
    np.testing.assert_array_equal(found.x_adv[1:], x[1:])
    assert found.robust_accuracy == (0 if wrong == "all" else 1 / 6)


def test_equal_logits_count_as_the_label_that_they_give():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, kernel_initializer="zeros")])
    x, y = np.full((3, 4), 0.5, dtype="float32"), np.arange(3)
    found = AutoAttack(eps=0.1, version="custom", parts=("apgd-ce",)).run(model, x, y, progress=False)
    np.testing.assert_array_equal(found.broken_by, [STANDS, WRONG, WRONG])  # the label of equal logits is 0
    assert found.robust_accuracy == np.mean(left(model, found.x_adv, y))


@pytest.mark.parametrize("goal", [Misclassify(), Evade(3)])
def test_no_run_is_spent_on_a_class_that_the_attacker_does_not_want(goal):
    model = models.Victim.of(LinearOracle(np.random.default_rng(5).normal(size=(6, 4))).model())
    x, y = np.full((2, 6), 0.5, dtype="float32"), np.array([0, 1])
    seeds = np.zeros(2, dtype="uint32")
    for attack in (APGD(eps=0.1, loss="targeted_dlr", goal=goal), FAB(eps=0.1, targets=9, goal=goal)):
        state = attack.init(model, keras.ops.convert_to_tensor(x), y, seeds, {"eps": np.full(2, 0.1, "float32")})
        targets = keras.ops.convert_to_numpy(state["targets" if isinstance(attack, APGD) else "classes"])
        for label, row in zip(y, targets, strict=True):
            assert sorted(row) == sorted({0, 1, 2, 3} - {label} - ({3} if goal == Evade(3) else set()))


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_work_and_are_flagged(classes):
    rng = np.random.default_rng(1)
    oracle = LinearOracle(rng.normal(size=(10, classes)))
    x = rng.uniform(0.2, 0.8, (40, 10)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    attack = AutoAttack(eps=0.05, version="custom", parts=("apgd-ce", "apgd-t", "fab-t"))
    with pytest.warns(UserWarning, match="targeted DLR"):
        found = attack.run(oracle.model(), x, y, progress=False)
    best = oracle.largest_margin(x, y, 0.05)
    clear = np.abs(best) > 1e-3
    np.testing.assert_array_equal(found.success[clear], best[clear] > 0)
    assert "few_classes" in found.flags


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 1.0)])
def test_it_keeps_the_contract_of_attacks(norm, eps):
    check_attack(AutoAttack(eps=eps, norm=norm, version="custom", parts=("apgd-ce", "fab-t")), norm=norm, eps=eps)


def test_a_vote_or_a_reject_class_is_attacked_by_its_goal(robust, digits):
    _, _, x, y = digits
    attack = AutoAttack(eps=0.3, version="custom", parts=QUICK, goal=Evade(9))
    found = attack.run(robust, x[:60], y[:60], progress=False)
    said = models.predict_logits(robust, found.x_adv).argmax(axis=1)
    broken = found.broken_by >= 0
    assert broken.any()
    assert np.all(said[broken] != 9)
    assert np.all(said[broken] != y[:60][broken])


# -- a killed run goes on --------------------------------------------------------------------------


@pytest.mark.slow
def test_rand_breaks_a_random_model_that_hides_its_gradients(digits, digits_model):
    class Steps(keras.layers.Layer):
        """Rounds to few levels, with noise: no gradient, and no two answers alike."""

        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(0)

        def call(self, z):
            return keras.ops.round(8 * (z + 0.02 * keras.random.normal(keras.ops.shape(z), seed=self.seeds))) / 8

    model = keras.Sequential([keras.Input((8, 8, 1)), Steps(), digits_model])
    x, y = digits[2][:20], digits[3][:20]
    with pytest.warns(UserWarning, match="Square"):
        found = AutoAttack(eps=0.25, version="rand").run(model, x, y, progress=False)
    left = found.table.set_index("attack").robust_accuracy
    assert left["apgd-dlr"] > 0.5  # what gradients see
    assert found.robust_accuracy < 0.2


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_result(robust, digits, tmp_path, monkeypatch):
    _, _, x, y = digits
    x, y = x[:48], y[:48]
    monkeypatch.setattr(sequence, "BLOCK", 16)
    attack = AutoAttack(eps=EPS, version="custom", parts=("apgd-ce", "fab-t"))
    whole = attack.run(robust, x, y, progress=False, out=tmp_path / "whole")
    blocks = sorted((tmp_path / "whole" / "pieces").glob("*.npz"))
    assert len(blocks) >= 4

    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for file in blocks[2:]:  # as a kill after two blocks leaves it
        (tmp_path / "killed" / "pieces" / file.name).unlink()
    calls = []
    original = APGD._result
    monkeypatch.setattr(APGD, "_result", lambda self, *a: calls.append(len(a[1])) or original(self, *a))
    again = attack.run(robust, x, y, progress=False, out=tmp_path / "killed")
    assert len(calls) == sum(name.name.startswith("00") for name in blocks) - 2
    np.testing.assert_array_equal(again.x_adv, whole.x_adv)
    np.testing.assert_array_equal(again.broken_by, whole.broken_by)
    np.testing.assert_array_equal(again.evaluations, whole.evaluations)


def test_the_folder_of_another_run_is_refused_and_left_alone(robust, digits, tmp_path):
    _, _, x, y = digits
    attack = AutoAttack(eps=EPS, version="custom", parts=("apgd-ce",))
    attack.run(robust, x[:20], y[:20], progress=False, out=tmp_path / "run")
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    other = dataclasses.replace(attack, eps=0.2)
    with pytest.raises(ValueError, match="differs in attacks"):
        other.run(robust, x[:20], y[:20], progress=False, out=tmp_path / "run")
    other = keras.models.clone_model(robust)
    other.layers[0].activation = keras.activations.tanh  # the same weights
    other.set_weights(robust.get_weights())
    with pytest.raises(ValueError, match="differs in model"):
        attack.run(other, x[:20], y[:20], progress=False, out=tmp_path / "run")
    with pytest.raises(ValueError, match=r"differs in data=.*, n=21 \(there: 20\)"):
        attack.run(robust, x[:21], y[:21], progress=False, out=tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(ValueError, match="holds other files"):
        attack.run(robust, x[:20], y[:20], progress=False, out=tmp_path / "mine")
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


# -- flags -----------------------------------------------------------------------------------------


class Round(layers.Layer):
    """Values on a coarse grid: there is nothing for a gradient to see."""

    def call(self, z):
        return keras.ops.round(z * 10.0) / 10.0


def test_square_that_beats_the_white_box_is_flagged():
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((16,)), Round(), layers.Dense(4)])
    model.layers[-1].set_weights([rng.normal(size=(16, 4)).astype("float32"), np.zeros(4)])
    x = rng.uniform(0.3, 0.7, size=(30, 16)).astype("float32")
    y = models.predict_logits(model, x).argmax(axis=1)
    attack = AutoAttack(eps=0.2, version="custom", parts=("apgd-ce", "square"))
    with pytest.warns(UserWarning, match="Square"):
        found = attack.run(model, x, y, progress=False)
    assert found.table["broken"].iloc[1] > 0
    assert set(found.flags) == {"zero_gradients", "square_beats_white_box"}


def flat_model():
    """Saturated: the cross-entropy's gradient is exactly zero, while a margin is there."""
    model = keras.Sequential([keras.Input((16,)), layers.Dense(4)])
    model.layers[0].set_weights([np.random.default_rng(0).normal(size=(16, 4)).astype("float32") * 1e5, np.zeros(4)])
    return model


def test_zero_gradients_are_flagged():
    model = flat_model()
    x = np.random.default_rng(1).uniform(size=(30, 16)).astype("float32")
    y = models.predict_logits(model, x).argmax(axis=1)
    attack = AutoAttack(eps=0.01, version="custom", parts=("apgd-ce",))
    with pytest.warns(UserWarning, match="exactly zero"):
        assert "zero_gradients" in attack.run(model, x, y, progress=False).flags
    for other in (attack, APGD(eps=0.01, steps=3)):  # a call has no flags to give back, and so says it
        with pytest.warns(UserWarning, match="exactly zero"):
            other(model, x, y, progress=False)


def test_outputs_that_are_probabilities_and_random_models_are_flagged():
    class Squash(layers.Layer):
        def call(self, z):
            return keras.ops.softmax(z)

    class Noise(layers.Layer):
        def __init__(self):
            super().__init__()
            self.generator = keras.random.SeedGenerator(0)

        def call(self, z):
            return z + 0.1 * keras.random.normal(keras.ops.shape(z), seed=self.generator)

    x = np.random.default_rng(1).uniform(size=(20, 6)).astype("float32")
    y = np.zeros(20, dtype="int64")
    attack = AutoAttack(eps=0.01, version="custom", parts=("apgd-ce",))
    hidden = keras.Sequential([keras.Input((6,)), layers.Dense(5), Squash()])
    with pytest.warns(UserWarning, match="probabilities"):
        assert "softmax_output" in attack.run(hidden, x, y, progress=False).flags
    random = keras.Sequential([keras.Input((6,)), Noise(), layers.Dense(5)])
    with pytest.warns(UserWarning, match="rand"):
        assert "randomized" in attack.run(random, x, y, progress=False).flags
    clean = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5), layers.Dense(5)])
    assert attack.run(clean, x, y, progress=False).flags == {}


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "`eps` must be above 0"),
        ({"eps": -1.0}, "`eps` must be"),
        ({"eps": float("nan")}, "`eps` must be"),
        ({"version": "strong"}, "`version` must be one of"),
        ({"version": "custom"}, "`parts` must name attacks"),
        ({"parts": ("square",)}, "`parts` must name attacks"),
        ({"version": "custom", "parts": ("apdg-ce",)}, "Did you mean 'apgd-ce'"),
        ({"norm": "l3"}, "`norm` must be one of"),
        ({"goal": Hit()}, "untargeted"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AutoAttack(**settings)


def test_a_sequence_is_made_of_attacks_that_tell_their_success(robust, digits):
    _, _, x, y = digits
    parts = {"pgd": PGD(eps=EPS, steps=10), "square": Square(eps=EPS, queries=50), "fab": FAB(eps=EPS, steps=10)}
    found = sequence.run(parts, models.logits_view(robust), x[:50], y[:50].astype("int32"), progress=False)
    assert isinstance(found, Result)
    assert found.parts == tuple(parts)
    values = losses.margin(models.predict_logits(robust, found.x_adv), y[:50])
    np.testing.assert_array_equal(np.asarray(values) > 0, found.success)
