"""Iterative adversarial retraining on a few digits: what it returns, what it repeats, what it refuses."""

import dataclasses
import itertools
import json
import re
from types import SimpleNamespace

import keras
import numpy as np
import pandas as pd
import pytest
from helpers import without_address
from keras import layers

import kerasdef
import kerasdef.recipes.iar.training as recipe
from kerasdef import defenses, models
from kerasdef.attacks import FGSM, PGD, AutoAttack, CarliniWagner
from kerasdef.attacks.sequence import SequenceResult
from kerasdef.defenses.loading import load_model
from kerasdef.goals import Evade, Misclassify
from kerasdef.identity import identity
from kerasdef.recipes.base import stratified
from kerasdef.recipes.iar.attacks import CW_RADIUS, Within, default_attacks
from kerasdef.recipes.iar.settings import RHO
from kerasdef.reporting import Report
from kerasdef.runs.seeds import derive

EPS = 0.15
BOXES = ["fgsm", "pgd", "bim", "cw"]


def _dense(input_shape, outputs, seed, units):
    glorot = [keras.initializers.GlorotUniform(seed=2 * seed + i) for i in range(2)]
    return keras.Sequential(
        [
            keras.Input(input_shape),
            layers.Flatten(),
            layers.Dense(units, activation="relu", kernel_initializer=glorot[0]),
            layers.Dropout(0.1, seed=seed),  # a random state that a resumed run has to take up
            layers.Dense(outputs, kernel_initializer=glorot[1]),
        ]
    )


def tiny(input_shape, outputs, *, seed=0):
    return _dense(input_shape, outputs, seed, 48)


def other(input_shape, outputs, *, seed=0):
    return _dense(input_shape, outputs, seed, 32)


class Watched:
    """FGSM that keeps what it was asked for; raises KeyboardInterrupt at the call number `stop_at` of a round."""

    def __init__(self, round_size=120, stop_at=None):
        self.attack, self.round_size, self.stop_at, self.seeds, self.seen = FGSM(eps=EPS), round_size, stop_at, [], []

    def get_config(self):
        return {}  # where it stops does not change what it makes

    def __call__(self, model, x, y, *, seed=0, progress=None):
        if len(x) == self.round_size:
            self.seeds.append(seed)
            self.seen.append(x)
            if len(self.seeds) == self.stop_at:
                raise KeyboardInterrupt
        return self.attack(model, x, y, seed=seed, progress=progress)


def settings(**changes):
    common = {
        "eps": EPS,
        "attacks": {"fgsm": FGSM(eps=EPS)},
        "iterations": 40,
        "round_size": 120,
        "batch_size": 45,  # fifteen of each of three kinds: eight batches in a round, five rounds
        "learning_rate": 5e-3,
        "network": tiny,
        "surrogate": other,
        "epochs": 8,
        "n_test": 40,
        "autoattack": False,
        "progress": False,
    }
    return common | changes


def weights(model):
    return [keras.ops.convert_to_numpy(v) for v in model.variables]


def same(found, wanted):
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def contents(folder):
    """Bytes of every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


PAPERS = {"attacks": None, "iterations": 8, "round_size": 60, "batch_size": 90}  # its four attacks, in two rounds


@pytest.fixture(scope="module")
def data(digits):
    """Digits as (x, y)."""
    x, y, _, _ = digits
    return x[:1000], y[:1000]


@pytest.fixture
def lean(monkeypatch):
    """Runs that only train and see the paper's column: nothing is exported, drawn or attacked adaptively."""
    monkeypatch.setattr(recipe._Run, "adaptive", lambda self: {})
    monkeypatch.setattr(recipe.Report, "save", lambda self, folder: {})
    monkeypatch.setattr(recipe.IAR, "export", lambda self, path, to="saved_model": path)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """One run with the paper's attacks and a folder: (result, folder)."""
    folder = tmp_path_factory.mktemp("iar") / "run"
    return kerasdef.train_iar(data, **settings(out=folder, **PAPERS)), folder


@pytest.fixture(scope="module")
def plain(data):
    """One run with a single attack, without a folder."""
    return kerasdef.train_iar(data, **settings())


@pytest.fixture(scope="module")
def rejecting(data):
    """A run that labels adversarial images K: (result, the shares of each round, goals of the adaptive attacks)."""
    given, goals = [], []

    class Kept(recipe.Shares):
        def __init__(self, parts, weights, **kwargs):
            given.append((list(parts), weights))
            super().__init__(parts, weights, **kwargs)

    def kept(defense, data, plan, *args, **options):
        goals.extend(defense.surface()[1] for _ in plan.adaptive)
        return evaluate(defense, data, plan, *args, **options)

    evaluate = recipe.evaluate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "Shares", Kept)
        patch.setattr(recipe, "evaluate", kept)
        result = kerasdef.train_iar(data, **settings(adversarial_label="reject", weight=0.4, smoothing=0.2))
    return result, given, goals


# -- what comes back ----------------------------------------------------------------------------------------------


def test_the_report_holds_white_and_gray_box_before_and_after_and_the_adaptive_column_after(run):
    report = run[0].report
    assert report.models == ["before", "after"]
    for model in report.models:
        assert report.attacks("paper", model) == [*BOXES, *(f"gray_{name}" for name in BOXES)]
        assert all(len(report.outcome(model, a)) == 40 for a in ("clean", *report.attacks("paper", model)))
    assert report.attacks("adaptive", "before") == []
    assert report.attacks("adaptive", "after") == ["pgd", "margin_pgd"]
    assert set(report.history) == {"before", "after"}


def test_the_table_has_a_row_for_each_box_and_attack_with_the_numbers_of_the_report(run):
    result = run[0]
    table = result.table().set_index(["attacker", "attack"])
    assert list(table.index) == [(box, a) for box in ("white box", "gray box") for a in BOXES]
    for model in ("before", "after"):
        row = result.report.metrics(model, "gray_pgd")
        assert table.loc[("gray box", "pgd"), model] == 100 * row["adversarial_accuracy"]
        assert table.loc[("gray box", "pgd"), f"{model}, not fooled"] == 100 * row["not_fooled"]


def test_gray_box_images_are_made_on_the_surrogate_and_are_the_same_for_both_models(run, judged):
    result, folder = run
    x, y = judged
    for name in BOXES:
        with np.load(folder / "pieces" / "attacks" / f"gray-{name}.npz") as file:
            images = file["x"]
        for label, model in (("before", result.before), ("after", result.model)):
            found = result.report.outcome(label, f"gray_{name}")
            np.testing.assert_array_equal(found.predicted, models.predict_logits(model, images).argmax(axis=1))
        fooled = models.predict_logits(result.surrogate, images).argmax(axis=1) != y
        clean = models.predict_logits(result.surrogate, x).argmax(axis=1) != y
        assert fooled.sum() > clean.sum()


def test_every_attack_stays_in_its_ball(run, judged):
    folder, x = run[1], judged[0]
    for box in ("before", "after", "gray"):
        for name in BOXES:
            with np.load(folder / "pieces" / "attacks" / f"{box}-{name}.npz") as file:
                images = file["x"]
            delta = (images - x).reshape(len(x), -1)
            size = np.linalg.norm(delta, axis=1) if name == "cw" else np.abs(delta).max(axis=1)
            radius = CW_RADIUS * np.sqrt(64 / 784) if name == "cw" else EPS
            assert size.max() <= radius + 1e-5  # float32
            assert images.min() >= 0
            assert images.max() <= 1


@pytest.fixture(scope="module")
def judged(data, run):
    """The test images that the run with a folder was judged on, and their classes."""
    saved = json.loads((run[1] / "run.json").read_text())
    dataset = kerasdef.datasets.as_dataset(data).resplit(saved["test_size"], seed=saved["seed"])
    rows = run[0].report.outcome("after", "clean").index
    return dataset.x_test[rows], dataset.y_test[rows]


def test_retraining_makes_the_classifier_withstand_more(plain, data):
    found = {m: plain.report.metrics(m, "fgsm")["adversarial_accuracy"] for m in ("before", "after")}
    assert found["after"] > found["before"] + 0.1
    assert plain.score(*data) > 0.8


def test_predict_gives_labels_up_to_k_and_score_is_their_accuracy(rejecting, data):
    result, x, y = rejecting[0], *data
    found = result.predict(FGSM(eps=EPS)(result.before, x, y, progress=False))
    assert found.max() == 10
    assert result.score(x, y) == np.mean(result.predict(x) == y)


def test_attacks_of_ones_own_are_used_by_name(plain):
    assert plain.report.attacks("paper") == ["fgsm", "gray_fgsm"]
    assert [k for k in plain.history if k.startswith("rho_")] == ["rho_fgsm"]
    assert plain.report.settings["attacks"] == {"fgsm": identity(FGSM(eps=EPS), "attacks")}


# -- the rule -----------------------------------------------------------------------------------------------------


def test_the_rule_fires_after_the_first_round_with_every_rho_at_the_threshold(run, plain, rejecting):
    fired = []
    for result in (run[0], plain, rejecting[0]):
        rho = np.array([v for k, v in result.history.items() if k.startswith("rho_")])
        met = np.flatnonzero(np.all(rho >= RHO - 1e-9, axis=0))
        assert result.fired == (int(met[0]) + 1 if len(met) else None)
        fired.append(result.fired)
    assert plain.fired is not None


@pytest.mark.parametrize("which", ["plain", "rejecting"])
def test_rho_is_looked_at_on_held_out_images_attacked_on_the_model_as_it_is(data, plain, rejecting, which):
    result = plain if which == "plain" else rejecting[0]
    dataset = kerasdef.datasets.as_dataset(data).resplit(0.2, seed=0).with_validation(0.05, seed=0)
    rows = stratified(dataset.y_valid, 200, derive(0, "valid"))
    x, y = dataset.x_valid[rows], dataset.y_valid[rows]
    attack = FGSM(eps=EPS) if which == "plain" else FGSM(eps=EPS, goal=Evade(10))
    left = []
    for model in (result.before, result.model):
        x_adv = attack(model, x, y, seed=derive(0, "rho", "fgsm"), progress=False)
        predicted = models.predict_logits(model, x_adv).argmax(axis=1)
        left.append(np.mean((predicted == y) | ((predicted == 10) & (which == "rejecting"))))
    assert result.history["rho_fgsm"][-1] == pytest.approx(left[1] - left[0])
    assert f"on {len(y)} held-out images" in " ".join(result.report.notes)


@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize(
    ("looks", "fired"),
    [
        # one attack is not enough, and the first time counts; as floats 0.35 - 0.25 and 0.3 - 0.2 are below 0.1
        ([(0.25, 0.2), (0.45, 0.25), (0.35, 0.3), (0.25, 0.2), (0.4, 0.4)], 2),
        ([(0.2, 0.2), (0.25, 0.25), (0.25, 0.2), (0.24, 0.3), (0.2, 0.2)], None),
    ],
)
def test_the_rule_needs_every_attack_and_counts_the_first_time(data, monkeypatch, looks, fired):
    given = iter([dict(zip(("fgsm", "again"), look, strict=True)) for look in looks])
    monkeypatch.setattr(recipe._Run, "not_fooled", lambda self, model: next(given))
    first = Copy()
    attacks = {"fgsm": first, "again": Copy()}
    result = kerasdef.train_iar(data, **settings(attacks=attacks, batch_size=60, iterations=32, epochs=1))
    assert result.fired == fired
    assert len(result.history["loss"]) == 4
    words = "did not fire" if fired is None else f"fired after round {fired} of 4"
    assert words in " ".join(result.report.notes)
    # rho is the accuracy of held-out images under attack after less that before
    for i, name in enumerate(attacks):
        assert result.history[f"rho_{name}"] == pytest.approx([look[i] - looks[0][i] for look in looks[1:]])
    assert result.history["val_robust_accuracy"] == [min(look) for look in looks[1:]]
    # every round has fresh images, made of other training images
    rounds = [(seed, x) for seed, x in first.asked if len(x) == 120]
    assert len({seed for seed, _ in rounds}) == len(rounds) == 4
    for (_, x), (_, z) in itertools.pairwise(rounds):
        assert not np.array_equal(x, z)


@dataclasses.dataclass(frozen=True)
class Copy:
    """An attack that changes nothing, and keeps what it was asked for."""

    asked: list = dataclasses.field(default_factory=list, compare=False)

    def get_config(self):
        return {}

    def __call__(self, model, x, y, *, seed=0, progress=None):
        self.asked.append((seed, x))
        return x


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_stop_ends_where_the_rule_fires_and_is_the_same_training_up_to_there(data, plain):
    stopped = kerasdef.train_iar(data, **settings(stop="rho"))
    rounds = len(stopped.history["loss"])
    assert rounds == stopped.fired == plain.fired
    assert rounds < len(plain.history["loss"]) == 5
    assert stopped.history == {k: v[:rounds] for k, v in plain.history.items()}


# -- both labels --------------------------------------------------------------------------------------------------


def test_adversarial_images_keep_their_class_or_are_labeled_k(data, rejecting, monkeypatch):
    _, given, _ = rejecting
    assert len(given) == 5
    unmoved = 0
    for ((clean, y), (noisy, y_noisy), (attacked, label)), _ in given:
        moved = np.any((attacked != clean).reshape(len(clean), -1), axis=1)
        unmoved += np.sum(~moved)
        np.testing.assert_array_equal(label, np.where(moved, 10, y))  # what nobody changed is not adversarial
        np.testing.assert_array_equal(y, y_noisy)
        assert len(clean) == len(noisy) == len(attacked) == 120
        assert noisy.min() >= 0
        assert noisy.max() <= 1
        inner = (clean > 0.4) & (clean < 0.6)
        assert np.std((noisy - clean)[inner]) == pytest.approx(0.1, rel=0.15)  # a few hundred values
        assert np.abs(attacked - clean).max() <= EPS + 1e-6  # float32
    assert unmoved > 0
    kept = []
    monkeypatch.setattr(recipe, "Shares", lambda parts, *args, **kwargs: kept.append(parts) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kerasdef.train_iar(data, **settings(epochs=1))
    (_, y), _, (_, label) = kept[0]
    np.testing.assert_array_equal(label, y)


def test_clean_and_noisy_images_share_one_weight_and_the_attacks_the_rest_and_labels_are_smoothed(rejecting):
    result, given, _ = rejecting
    assert all(weights == pytest.approx([0.2, 0.2, 0.6]) for _, weights in given)
    assert result.model.loss.label_smoothing == 0.2


def test_the_attacker_of_a_rejecting_classifier_wants_a_label_neither_true_nor_k(rejecting, plain):
    result, _, goals = rejecting
    report = result.report
    assert report.settings["attacks"] == {"fgsm": identity(FGSM(eps=EPS, goal=Evade(10)), "attacks")}
    assert plain.report.settings["attacks"] == {"fgsm": identity(FGSM(eps=EPS), "attacks")}
    assert goals == [Evade(10)] * 2
    clean = report.outcome("after", "clean", "adaptive")
    for attack in ("pgd", "margin_pgd"):
        o = report.outcome("after", attack, "adaptive")
        good = (o.predicted == o.y) | (o.predicted == 10)
        assert report.metrics("after", attack, "adaptive")["not_fooled"] == np.mean(good)
        right = good & (clean.predicted == clean.y)
        assert report.metrics("after", attack, "adaptive")["robust_accuracy"] == np.mean(right)
    assert report.metrics("after", "gray_fgsm")["detected"] > 0.3
    assert report.rejects("after") == 10
    assert "with the label 10" in " ".join(report.notes)


@pytest.mark.slow
def test_what_autoattack_doubts_stands_in_the_report(data, monkeypatch):
    def doubtful(self, model, x, y, **options):
        table = pd.DataFrame([{"attack": "apgd-ce", "attacked": len(x), "broken": 0, "seconds": 0.0}])
        flags, none = {"hidden": "the model hides its gradients"}, np.zeros(len(x), dtype="int64")
        return SequenceResult(x, none > 0, none, ("apgd-ce",), none - 1, table, flags)

    monkeypatch.setattr(AutoAttack, "run", doubtful)
    report = kerasdef.train_iar(data, **settings(autoattack=True, epochs=1, iterations=8)).report
    assert "the model hides its gradients" in report.flags
    assert len(set(report.flags)) == len(report.flags)
    assert report.attacks("adaptive", "after") == ["pgd", "margin_pgd", "autoattack"]


def test_a_classifier_of_true_labels_never_says_k(plain):
    for o in plain.report.outcomes:
        assert o.predicted.max() < 10


# -- the same again -----------------------------------------------------------------------------------------------


@pytest.mark.slow  # a run that was killed ends with the same weights, too: below
def test_the_same_seed_gives_the_same_weights_and_report(data, plain):
    again = kerasdef.train_iar(data, **settings())
    assert same(weights(again.model), weights(plain.model))
    assert again.report == plain.report
    assert again.history == plain.history


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_another_seed_gives_other_weights(data, plain):
    other_seed = kerasdef.train_iar(data, **settings(seed=1))
    assert not same(weights(other_seed.model), weights(plain.model))
    assert other_seed.history != plain.history


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_a_run_that_was_killed_in_several_rounds_ends_with_the_same_weights(data, plain, tmp_path):
    folder, state = tmp_path / "run", tmp_path / "run" / "unfinished" / "retrained" / "training.npz"
    before, done = 0.0, 0
    for stop_at in (1, 3, 5):  # the round in which it is killed
        attack = Watched(stop_at=stop_at - done)
        with pytest.raises(KeyboardInterrupt):
            kerasdef.train_iar(data, **settings(attacks={"fgsm": attack}, out=folder))
        done = stop_at - 1
        assert state.exists() == (stop_at > 1)
        assert not (folder / "report.json").exists()
        if stop_at > 1:
            with np.load(state) as file:
                spent = json.loads(str(file["meta"]))["seconds"]
            assert spent > before
            before = spent
    attack = Watched()
    again = kerasdef.train_iar(data, **settings(attacks={"fgsm": attack}, out=folder))
    assert len(attack.seeds) == 5 - done  # the rounds that were done are not done again
    assert same(weights(again.model), weights(plain.model))
    assert again.history == plain.history
    for attack in ("clean", "fgsm", "gray_fgsm"):
        found, wanted = (r.report.outcome("after", attack) for r in (again, plain))
        np.testing.assert_array_equal(found.predicted, wanted.predicted)
    assert again.report.phases["retraining"] > before
    assert not state.exists()
    assert not list(folder.rglob(".*"))  # nothing half written is left


def test_a_finished_run_is_read_and_not_repeated(data, run, monkeypatch):
    result, folder = run
    before = contents(folder / "pieces")
    monkeypatch.setattr(recipe, "fit", None)  # calling it would fail
    monkeypatch.setattr(recipe._Run, "retrain", None)
    again = kerasdef.train_iar(data, **settings(out=folder, **PAPERS))
    assert contents(folder / "pieces") == before
    assert again.report == result.report
    assert (again.fired, again.history) == (result.fired, result.history)
    for name in ("model", "before", "surrogate"):
        assert same(weights(getattr(again, name)), weights(getattr(result, name)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, r"seed=1 \(there: 0\)"),
        ({"adversarial_label": "reject"}, "adversarial_label="),
        ({"weight": 0.4}, "weight=0.4"),
        ({"stop": "rho"}, 'stop="rho"'),
        ({"attacks": {"fgsm": FGSM(eps=0.2)}, "batch_size": 45}, "attacks/"),
        ({"network": other}, "networks/"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_overwritten(data, run, changes, named):
    before = contents(run[1])
    given = PAPERS | changes
    with pytest.raises(ValueError, match="`out` must be a new folder") as error:
        kerasdef.train_iar(data, **settings(out=run[1], **given))
    assert re.search(named, str(error.value))
    assert contents(run[1]) == before


def test_the_folder_holds_the_report_and_two_exports_that_decide_as_the_classifier(data, run):
    result, folder = run
    assert result.out == folder
    assert all(path.exists() for path in result.files.values())
    assert {"report.json", "report.html", "model", "saved_model"} <= set(result.files)
    assert result.files["model"] == folder / "iar.keras"
    assert result.files["saved_model"] == folder / "saved_model"
    assert Report.load(folder) == result.report
    x = data[0][:50]
    loaded = keras.saving.load_model(folder / "iar.keras", compile=False)
    found = loaded(x)
    label = found["label"] if isinstance(found, dict) else keras.ops.convert_to_numpy(found).argmax(axis=1)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(label), result.predict(x))


# -- pieces of it -------------------------------------------------------------------------------------------------


class Beyond:
    """Stands for an attack without a radius: images moved by noise of a size of their own."""

    bounds = (0.0, 1.0)

    def __call__(self, model, x, y, *, seed=0, progress=None):
        rng = np.random.default_rng(seed)
        return np.clip(x + rng.uniform(0, 0.4, (len(x), 1, 1, 1)) * rng.normal(size=x.shape), 0, 1).astype("float32")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_within_brings_changes_beyond_the_ball_onto_it_and_leaves_the_others(norm, seed):
    x = np.random.default_rng(99).random((40, 6, 6, 1)).astype("float32")
    eps = {"l2": 1.0, "linf": 0.4, "l1": 6.0}[norm]
    whole = Beyond()(None, x, None, seed=seed)
    found = Within(Beyond(), eps, norm)(None, x, None, seed=seed)
    before, after = (_size(v - x, norm) for v in (whole, found))
    assert np.any(before > eps)
    assert np.any(before < eps)
    assert np.all(after <= eps * (1 + 1e-5))  # float32
    inside = before < eps * (1 - 1e-5)
    np.testing.assert_allclose(found[inside], whole[inside], atol=1e-6)
    np.testing.assert_allclose(after[~inside], eps, rtol=1e-4)
    assert found.min() >= 0
    assert found.max() <= 1


def _size(delta, norm):
    delta = np.abs(delta.reshape(len(delta), -1).astype("float64"))
    return {"l2": np.linalg.norm(delta, axis=1), "linf": delta.max(axis=1), "l1": delta.sum(axis=1)}[norm]


def test_the_attacks_are_the_papers_four_and_the_radius_of_carlini_and_wagner_goes_with_the_size():
    gray, large = default_attacks(0.1, 784), default_attacks(0.2, 4 * 784)
    assert list(gray) == BOXES
    assert [gray[k].eps for k in BOXES] == [0.1, 0.1, 0.1, 1.5]
    assert [large[k].eps for k in BOXES] == [0.2, 0.2, 0.2, 3.0]
    assert isinstance(gray["cw"].attack, CarliniWagner)


# -- what is refused ----------------------------------------------------------------------------------------------


def ten_outputs(input_shape, outputs, *, seed=0):
    return tiny(input_shape, 10, seed=seed)


def nothing(input_shape, outputs, *, seed=0):
    return None


@pytest.fixture
def refusal(refusal_of):
    return refusal_of(recipe, lambda data, **changes: kerasdef.train_iar(data, **settings(**changes)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"adversarial_label": "K"}, "`adversarial_label` must be one of"),
        ({"adversarial_label": "rejct"}, "Did you mean 'reject'"),
        ({"weight": 1.5}, "`weight` must be"),
        ({"weight": -0.1}, "`weight` must be"),
        ({"weight": float("nan")}, "`weight` must be"),
        ({"smoothing": 1.0}, "`smoothing` must be"),
        ({"smoothing": -0.1}, "`smoothing` must be"),
        ({"noise": -1}, "`noise` must be"),
        ({"iterations": 0}, "`iterations` must be a positive integer"),
        ({"iterations": 2.5}, "`iterations` must be a positive integer"),
        ({"batch_size": 46}, "`batch_size` must be a multiple of 3, the kinds of images. Received: batch_size=46"),
        ({"batch_size": 128, "attacks": None}, "`batch_size` must be a multiple of 6"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"round_size": 10}, "`round_size` must be at least 15. Received: round_size=10"),
        ({"round_size": 0}, "`round_size` must be a positive integer"),
        ({"stop": "early"}, "`stop` must be None or \"rho\". Received: stop='early'"),
        ({"iterations": 7}, "`iterations` must be at least 8, the batches of a round. Received: iterations=7"),
        ({"attacks": ("fgsm",)}, "`attacks` must map names to callables"),
        ({"attacks": {}}, "`attacks` must name at least one attack"),
        ({"attacks": {"fgsm": 0.3}}, "`attacks` must map names to callables. Received: 'fgsm': 0.3"),
        ({"attacks": {"a/b": FGSM()}}, "`attacks` must map names to callables. Received: 'a/b'"),
        ({"eps": 0}, "`eps` must be"),
        ({"eps": "much"}, "`eps` must be"),
        ({"epochs": 0}, "`epochs` must be a positive integer"),
        ({"learning_rate": 0}, "`learning_rate` must be"),
        ({"n_test": 0}, "`n_test` must be a positive integer"),
        ({"seed": -1}, "`seed` must be"),
        ({"network": "cnn1"}, "Did you mean 'cnn11'"),
        ({"surrogate": "target_dn"}, "Did you mean 'target_dnn'"),
        ({"attacks": {"clean": FGSM(eps=EPS)}}, "must not be 'clean' or 'pooled' or begin with 'gray_'. Received"),
        ({"attacks": {"gray_fgsm": FGSM(eps=EPS)}}, "must not be .* Received: 'gray_fgsm'"),
        ({"network": ten_outputs}, "`network` must be a keras.Model with 11 outputs. Received: .*10"),
        ({"surrogate": nothing}, "`surrogate` must be a keras.Model with 11 outputs. Received: NoneType"),
    ],
    ids=without_address,
)
def test_bad_settings_are_one_line_before_any_training(refusal, data, changes, said):
    message, left = refusal(data, **changes)
    assert re.search(said, message)
    assert "\n" not in message
    assert left == []


def test_rows_are_refused(refusal, data):
    x, y = data
    message, left = refusal((x.reshape(len(x), -1), y))
    assert "`data` must be images" in message
    assert left == []


@pytest.mark.slow  # Carlini and Wagner's attack on four models; attacks and robust training in other bounds: default
@pytest.mark.usefixtures("lean")
def test_data_in_other_bounds_is_the_same_data(data):
    x, y = data
    wide = kerasdef.Dataset.from_arrays(2 * x[:300] - 1, y[:300], 2 * x[300:330] - 1, y[300:330], bounds=(-1.0, 1.0))
    unit = kerasdef.Dataset.from_arrays(x[:300], y[:300], x[300:330], y[300:330])
    changes = {"attacks": None, "iterations": 6, "round_size": 30, "batch_size": 30, "epochs": 1, "n_test": 6}
    a = kerasdef.train_iar(unit, **settings(**changes))
    b = kerasdef.train_iar(wide, **settings(**changes | {"eps": 2 * EPS}))
    assert a.report.settings["eps"] == b.report.settings["eps"] == EPS
    for one, other_one in zip(weights(a.model), weights(b.model), strict=True):
        np.testing.assert_allclose(one, other_one, atol=1e-3)  # float32


def test_a_folder_with_other_files_is_refused(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose this")
    with pytest.raises(ValueError, match="holds other files"):
        kerasdef.train_iar(data, **settings(out=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


# -- the command line ---------------------------------------------------------------------------------------------


def test_each_option_of_the_command_arrives(monkeypatch, command):
    given = {}
    answer = SimpleNamespace(files={}, report=SimpleNamespace(table=lambda: "the table"))
    monkeypatch.setattr(recipe, "train", lambda data, **kwargs: given.update(kwargs, data=data) or answer)
    words = (
        "--dataset mnist --eps 1/4 --adversarial-label reject --weight 0.4 --smoothing 0.2 --noise 0.05 --iterations 9 "
        "--round-size 99 --stop rho --network eat1 --surrogate eat2 --epochs 3 --batch-size 12 --learning-rate 0.01 "
        "--n-test 8 --no-autoattack --seed 5 --out there"
    )
    status, out, err = command("train", "iar", *words.split())
    assert (status, out) == (0, "the table\n"), err
    assert str(given.pop("out")) == "there"
    wanted = {"data": "mnist", "eps": 0.25, "adversarial_label": "reject", "weight": 0.4, "smoothing": 0.2}
    wanted |= {"noise": 0.05, "iterations": 9, "round_size": 99, "stop": "rho", "network": "eat1"}
    wanted |= {"surrogate": "eat2", "epochs": 3, "batch_size": 12, "learning_rate": 0.01, "n_test": 8}
    assert given == wanted | {"autoattack": False, "seed": 5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--adversarial-label both", "`adversarial_label` must be one of"),
        ("--batch-size 100", "`batch_size` must be a multiple of 6"),
        ("--stop soon", '`stop` must be None or "rho"'),
        ("--eps wide", "`eps` must be a number or a fraction"),
        ("--network cnn1", "Did you mean 'cnn11'"),
    ],
)
def test_a_wrong_value_on_the_command_line_is_one_line_and_status_2(refused, tmp_path, words, said):
    assert said in refused("train", "iar", *words.split(), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("to", ["keras", "saved_model"])
def test_a_file_that_is_moved_says_whether_the_eleventh_label_rejects(data, run, rejecting, to, tmp_path):
    """It is an output either way; where adversarial images kept their class, it is one more wrong label."""
    for result, reject, goal in ((run[0], None, Misclassify()), (rejecting[0], 10, Evade(10))):
        name = f"{reject}{'.keras' if to == 'keras' else ''}"
        found = defenses.load(result.export(tmp_path / name, to=to))
        assert (found.classes, found.reject) == (10, reject)
        assert found.surface()[1] == goal
        decision = found.decide(data[0][:50])
        assert decision.probabilities.shape == (50, 11)
        np.testing.assert_array_equal(decision.label, result.predict(data[0][:50]))
        np.testing.assert_array_equal(decision.rejected, decision.label == 10 if reject else np.zeros(50, bool))


def test_a_run_folder_is_attacked_as_its_report_says(run):
    found = load_model(run[1])
    assert (found.defense.classes, found.defense.reject, found.defense.surface()[1]) == (10, None, Misclassify())
    attacked = kerasdef.attack(run[1], "digits", PGD(eps=0.3, steps=2), n=20, progress=False).report
    assert attacked.rejects(attacked.main) is run[0].report.rejects("after") is None
