"""Bagging and voting: the draws of scikit-learn, the rule in closed form, and an attacker who sees all of it."""

import dataclasses

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.tree import DecisionTreeClassifier

from kerasdef import losses, models
from kerasdef.attacks import PGD, ZOO, CarliniWagner, CarliniWagnerLinf
from kerasdef.defenses import EvadeVote, Vote, bootstrap_indices, voting_model
from kerasdef.defenses.voting import decide


class Table(ClassifierMixin, BaseEstimator):
    """A classifier that looks its probabilities up: row i of the table for the sample [[i]]."""

    def __init__(self, table=None):
        self.table = table

    def fit(self, x, y):
        self.classes_ = np.arange(self.table.shape[1])
        return self

    def predict_proba(self, x):
        return self.table[np.asarray(x)[:, 0].astype(int)]

    def predict(self, x):
        return self.predict_proba(x).argmax(axis=1)


def tables(n, members, classes, seed=0):
    """Probabilities of shape (members, n, classes)."""
    return np.random.default_rng(seed).dirichlet(np.ones(classes), (members, n)).astype("float32")


def decided(logits):
    return [ops.convert_to_numpy(v) for v in decide(ops.convert_to_tensor(logits))]


def member(seed, shape=(4,), classes=3, **kwargs):
    layers = [keras.Input(shape), keras.layers.Flatten()]
    normal = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
    return keras.Sequential([*layers, keras.layers.Dense(classes, kernel_initializer=normal, **kwargs)])


# -- bootstraps ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "bootstraps", "seed"), [(50, 3, 0), (37, 5, 7), (200, 1, 123)])
def test_the_bootstraps_are_those_of_scikit_learn(n, bootstraps, seed):
    x, y = np.arange(n).reshape(-1, 1), np.arange(n) % 2
    stump = DecisionTreeClassifier(max_depth=1)
    bagging = BaggingClassifier(stump, n_estimators=bootstraps, random_state=seed).fit(x, y)
    found = bootstrap_indices(n, bootstraps, seed)
    assert len(found) == bootstraps
    for ours, theirs in zip(found, bagging.estimators_samples_, strict=True):
        np.testing.assert_array_equal(np.sort(ours), np.sort(theirs))


def test_a_bootstrap_has_the_size_of_the_data_and_about_632_of_1000_samples():
    n = 20_000
    for rows in bootstrap_indices(n, 3, 0):
        assert rows.shape == (n,)
        assert rows.min() >= 0
        assert rows.max() < n
        # mean 1 - 1/e; the standard deviation of the share is 0.0022 at this n
        assert abs(len(np.unique(rows)) / n - (1 - np.exp(-1))) < 0.01


def test_bootstraps_are_determined_by_the_seed_and_differ_among_themselves():
    first, again, other = (bootstrap_indices(100, 2, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert np.any(first[0] != first[1])
    assert np.any(np.asarray(first) != np.asarray(other))


@pytest.mark.parametrize(("n", "bootstraps"), [(0, 1), (5, 0), (5, -1), (5, 1.5)])
def test_bootstraps_of_nothing_are_an_error(n, bootstraps):
    with pytest.raises(ValueError, match=r"must be an? (positive )?integer"):
        bootstrap_indices(n, bootstraps, 0)


# -- the rule -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 3, 5])
def test_the_vote_is_scikit_learns_hard_vote_and_its_soft_vote_among_tied_classes(members):
    n, classes = 400, 4
    table = tables(n, members, classes)
    x = np.arange(n).reshape(-1, 1)
    named = [(f"m{i}", Table(t)) for i, t in enumerate(table)]
    hard, soft = (VotingClassifier(named, voting=v).fit(x, np.arange(n) % classes) for v in ("hard", "soft"))
    label, votes, probabilities = decided(np.log(table).transpose(1, 0, 2))
    np.testing.assert_allclose(probabilities, soft.predict_proba(x), atol=1e-6)  # float32 softmax of a logarithm
    leading = votes == votes.max(axis=1, keepdims=True)
    tied = leading.sum(axis=1) > 1
    assert 0 < tied.sum() < n
    np.testing.assert_array_equal(label[~tied], hard.predict(x)[~tied])
    among = np.where(leading, soft.predict_proba(x), -1.0)
    np.testing.assert_array_equal(label[tied], among.argmax(axis=1)[tied])


@settings(deadline=None, max_examples=50)  # the first example compiles
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 5))
def test_decide_agrees_with_counting_by_hand(seed, members, classes):
    logits = np.random.default_rng(seed).normal(0, 3, (8, members, classes)).astype("float32")
    label, votes, probabilities = decided(logits)
    for i, sample in enumerate(logits.astype("float64")):
        count = np.bincount(sample.argmax(axis=1), minlength=classes)
        mean = (np.exp(sample) / np.exp(sample).sum(axis=1, keepdims=True)).mean(axis=0)
        best = max(range(classes), key=lambda c: (count[c], mean[c]))
        np.testing.assert_array_equal(votes[i], count)
        np.testing.assert_allclose(probabilities[i], mean, atol=1e-5)
        rivals = [c for c in range(classes) if c != best and count[c] == count[best]]
        if all(mean[best] - mean[c] > 1e-5 for c in rivals):  # nearer ones may go either way in float32
            assert label[i] == best


def test_one_sure_member_does_not_outvote_two():
    label, votes, _ = decided(np.array([[[0.1, 0.0], [0.1, 0.0], [0.0, 100.0]]], "float32"))
    assert label.tolist() == [0]
    assert votes.tolist() == [[2, 1]]


# -- the layer and the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reject", [None, 2])
def test_vote_gives_the_shapes_and_types_it_declares(reject):
    logits = [np.random.default_rng(i).normal(size=(5, 3)).astype("float32") for i in range(2)]
    layer = Vote(reject)
    found = layer([ops.convert_to_tensor(v) for v in logits])
    declared = layer.compute_output_spec([keras.KerasTensor((5, 3)) for _ in logits])
    assert sorted(found) == sorted(declared) == ["is_adversarial", "label", "probabilities", "votes"]
    for name, value in found.items():
        assert tuple(value.shape) == tuple(declared[name].shape)
        assert keras.backend.standardize_dtype(value.dtype) == declared[name].dtype
    np.testing.assert_array_equal(ops.convert_to_numpy(ops.sum(found["votes"], axis=1)), 2)
    label = ops.convert_to_numpy(found["label"])
    wanted = np.zeros(5, bool) if reject is None else label == reject
    np.testing.assert_array_equal(ops.convert_to_numpy(found["is_adversarial"]), wanted)


@pytest.mark.parametrize("reject", [-1, 1.5, True])
def test_vote_refuses_a_reject_class_that_is_no_index(reject):
    with pytest.raises(ValueError, match=r"`reject` must be an integer\b"):
        Vote(reject)


@pytest.mark.parametrize("reject", [None, 0, 2])
def test_a_voting_model_comes_back_from_a_file_in_safe_mode(reject, tmp_path):
    model = voting_model([member(i) for i in range(3)], reject=reject)
    model.save(tmp_path / "vote.keras")
    again = keras.saving.load_model(tmp_path / "vote.keras", safe_mode=True)
    assert again.reject == reject
    assert Vote.from_config(Vote(reject).get_config()).reject == reject
    x = np.random.default_rng(0).random((20, 4), dtype="float32")
    before, after = model(x), again(x)
    for name in before:
        np.testing.assert_array_equal(ops.convert_to_numpy(before[name]), ops.convert_to_numpy(after[name]))


def test_a_voting_model_decides_on_the_logits_of_its_members_behind_a_softmax_too():
    plain = [member(i) for i in range(3)]
    soft = [member(i, activation="softmax") for i in range(3)]
    for a, b in zip(plain, soft, strict=True):
        b.set_weights(a.get_weights())
    x = np.random.default_rng(0).random((20, 4), dtype="float32")
    label, votes, probabilities = decided(np.stack([models.predict_logits(m, x) for m in plain], axis=1))
    for members in (plain, soft):
        found = voting_model(members, reject=2)(x)
        np.testing.assert_array_equal(ops.convert_to_numpy(found["label"]), label)
        np.testing.assert_array_equal(ops.convert_to_numpy(found["votes"]), votes)
        np.testing.assert_allclose(ops.convert_to_numpy(found["probabilities"]), probabilities, atol=1e-6)


def test_members_may_have_the_same_name():
    members = [member(i) for i in range(3)]
    for m in members:
        m.name = "twin"
    model = voting_model(members)
    assert ops.shape(model(np.zeros((2, 4), "float32"))["votes"]) == (2, 3)
    assert ops.shape(models.stack_logits(members)(np.zeros((2, 4), "float32"))) == (2, 3, 3)


def test_a_vote_of_no_members_is_an_error():
    with pytest.raises(ValueError, match="`members` must be one or more models"):
        voting_model([])


@pytest.mark.parametrize("other", [{"shape": (5,)}, {"classes": 4}])
def test_members_of_different_shapes_are_an_error(other):
    with pytest.raises(ValueError, match="`members` must have the same input and output shapes"):
        voting_model([member(0), member(1, **other)])


@pytest.mark.parametrize("reject", [3, 100, -1])
def test_a_reject_class_that_the_members_do_not_have_is_an_error(reject):
    with pytest.raises(ValueError, match="`reject` must be"):
        voting_model([member(0), member(1)], reject=reject)


# -- the attacker -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)  # the first example compiles
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_the_attacker_has_won_exactly_when_the_vote_is_for_neither_y_nor_reject(seed, members):
    rng = np.random.default_rng(seed)
    logits, y = rng.normal(0, 2, (16, members, 4)).astype("float32"), rng.integers(0, 4, 16)
    label = decided(logits)[0]
    reached = EvadeVote(3).reached(ops.convert_to_tensor(logits), ops.convert_to_tensor(y))
    np.testing.assert_array_equal(ops.convert_to_numpy(reached), (label != y) & (label != 3))


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_value_of_evading_a_vote_has_a_finite_gradient_that_is_not_zero_unless_logits_are_far_apart(loss, scale):
    from kerasdef import backend

    rng = np.random.default_rng(0)
    logits = ops.convert_to_tensor((scale * rng.normal(size=(32, 3, 5))).astype("float32"))
    y = ops.convert_to_tensor(rng.integers(0, 5, 32).astype("int32"))
    value, _, grad = backend.gradient(lambda z: (EvadeVote(4).value(losses.LOSSES[loss], z, y), z))(logits)
    assert value.shape == (32,)
    assert np.all(np.isfinite(ops.convert_to_numpy(value)))
    grad = ops.convert_to_numpy(grad)
    assert np.all(np.isfinite(grad))
    if scale == 1.0:
        honest = ops.convert_to_numpy(y) != 4
        assert np.all(np.abs(grad[honest]).max(axis=(1, 2)) > 0)


@pytest.mark.parametrize("loss", ["cross_entropy", "margin"])
def test_what_pgd_finds_against_a_vote_evades_the_voting_model(loss):
    members = [member(i, classes=4) for i in range(3)]
    model, stacked, goal = voting_model(members, reject=3), models.stack_logits(members), EvadeVote(3)
    x = np.random.default_rng(0).random((60, 4), dtype="float32")
    label = ops.convert_to_numpy(model(x)["label"]).astype("int64")
    x, y = x[label != 3], label[label != 3]
    x_adv = PGD(eps=0.5, steps=8, loss=loss, goal=goal)(stacked, x, y)  # steps are unrolled: compiling costs most
    assert np.abs(x_adv - x).max() <= 0.5 + 1e-6  # float32
    reported = ops.convert_to_numpy(goal.reached(stacked(x_adv), ops.convert_to_tensor(y)))
    assert reported.sum() > 0
    label = ops.convert_to_numpy(model(x_adv)["label"])
    np.testing.assert_array_equal(reported, (label != y) & (label != 3))


def test_a_sample_that_evades_from_the_start_is_returned_unchanged():
    members = [member(i, classes=4) for i in range(3)]
    x = np.random.default_rng(0).random((30, 4), dtype="float32")
    label = ops.convert_to_numpy(voting_model(members)(x)["label"])
    x = x[label != 3]
    y = (label[label != 3].astype("int64") + 1) % 3  # neither what the vote says nor the rejecting class
    x_adv = PGD(eps=0.5, goal=EvadeVote(3))(models.stack_logits(members), x, y)
    np.testing.assert_array_equal(x_adv, x)


@pytest.mark.parametrize(
    "attack",
    [
        CarliniWagner(steps=200, binary_search_steps=3, initial_c=1.0, learning_rate=0.05),
        CarliniWagnerLinf(steps=100, initial_c=1.0, learning_rate=0.05),
        ZOO(steps=200, queries=4000, binary_search_steps=2, initial_c=10.0, coordinates=4, learning_rate=0.05),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_minimal_attacks_on_a_vote_go_on_until_the_vote_falls(attack):
    """One member is so sure that the mean of the margins says little about the vote."""
    members = []
    for column, scale in ((0, 100.0), (1, 1.0), (2, 1.0)):
        weights = np.zeros((4, 2), dtype="float32")
        weights[column] = [scale, -scale]
        members.append(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=True)]))
        members[-1].set_weights([weights, np.array([-scale, scale], "float32")])  # class 0 above 1 in one feature
    model = models.stack_logits(members)
    x = np.random.default_rng(0).uniform(1.1, 1.4, (8, 4)).astype("float32")
    y = np.zeros(8, dtype="int64")
    attack = dataclasses.replace(attack, goal=EvadeVote(), bounds=(0.0, 2.0))
    found = attack.run(model, x, y, progress=False)
    label = decided(models.predict_logits(model, found.x_adv))[0]
    np.testing.assert_array_equal(found.success, label != y)
    assert found.success.all()
    moved = np.abs(found.x_adv - x) > 1e-3
    assert np.all(moved[:, :3].sum(axis=1) >= 2)  # two members of three have to fall
