"""The MIA recipe on a few hundred digits: what it returns, what it repeats, what it refuses."""

import dataclasses
import json
import re
import shutil
import time
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from helpers import without_address

import kerasdef.recipes.mia.training as recipe
from kerasdef import defenses, models
from kerasdef.attacks import FGSM, GMA
from kerasdef.datasets import as_dataset
from kerasdef.defenses import bootstrap_indices
from kerasdef.recipes.mia import report
from kerasdef.runs.pieces import restore, weights_piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store
from kerasdef.training import adversarial_count

SHARES = (0.2, 0.4)
FITS = 1 + 2 * len(SHARES) + 3  # target, two members in each cycle, three voters


def _dense(input_shape, outputs, seed, units):
    def glorot(i):
        return keras.initializers.GlorotUniform(seed=2 * seed + i)

    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(units, activation="relu", kernel_initializer=glorot(0)),
            keras.layers.Dense(outputs, kernel_initializer=glorot(1)),
        ]
    )


def narrow(input_shape, outputs, *, seed=0):
    return _dense(input_shape, outputs, seed, 24)


def wide(input_shape, outputs, *, seed=0):
    return _dense(input_shape, outputs, seed, 32)


def loose(input_shape, outputs, *, seed=0):
    """With a random state, which a resumed run has to take up."""
    stack = wide(input_shape, outputs, seed=seed).layers
    inputs = keras.Input(input_shape)
    return keras.Sequential([inputs, *stack[:2], keras.layers.Dropout(0.1, seed=seed), stack[2]])


def named(input_shape, outputs, *, seed=0):
    model = narrow(input_shape, outputs, seed=seed)
    return keras.Sequential([keras.Input(input_shape), *model.layers], name="named")


class Watch(keras.callbacks.Callback):
    """Counts fits and epochs; raises KeyboardInterrupt when fit number `stop_at` begins."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.fits, self.epochs = stop_at, 0, 0

    def get_config(self):
        return {}  # where it stops does not change what is trained

    def on_train_begin(self, logs=None):
        self.fits += 1
        if self.fits == self.stop_at:
            raise KeyboardInterrupt

    def on_epoch_end(self, epoch, logs=None):
        self.epochs += 1


def settings(**changes):
    common = {
        "attacks": {"fgsm": FGSM(eps=0.2), "gma": GMA(steps=2)},
        "shares": SHARES,
        "target": wide,
        "members": (narrow, loose),
        "epochs": {"target": 10, "eat": 2, "mia": 2},
        "learning_rate": 5e-3,
        "batch_size": 20,
        "adaptive_steps": 3,
        "limit": 60,
        "adaptive_limit": 20,
        "callbacks": [Watch()],
        "progress": False,
    }
    return common | changes


def quick(**changes):
    """Settings where only the course of a run matters."""
    few = {"epochs": {"target": 6, "eat": 1, "mia": 1}, "adaptive_steps": 1, "limit": 30, "adaptive_limit": 10}
    return settings(**few) | changes


def quickest(**changes):
    """Settings where only the stop rule matters: one attack makes the sets."""
    return quick(attacks={"fgsm": FGSM(eps=0.2)}) | changes


def contents(folder):
    """Bytes and time of change of every file."""
    return {
        p.relative_to(folder).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns)
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def lean(monkeypatch):
    """Runs that are about training: one adaptive attack judges the vote."""
    attacks = report.Judge.adaptive_attacks
    monkeypatch.setattr(report.Judge, "adaptive_attacks", lambda self, n: {"pgd": attacks(self, n)["pgd"]})


@pytest.fixture(scope="module")
def data(digits):
    """The first 400 digits as (x, y)."""
    x, y, _, _ = digits
    return x[:400], y[:400]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """One run with a folder: (result, folder, watch, what `fit` was given)."""
    folder, watch, given = tmp_path_factory.mktemp("mia") / "run", Watch(), []
    real = recipe.fit

    def fit(model, mixture, **kwargs):
        given.append((kwargs["title"], mixture))
        return real(model, mixture, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "fit", fit)
        result = recipe.train(data, **settings(callbacks=[watch], out=folder))
    return result, folder, watch, given


def _divided(x, y, saved):
    joined = as_dataset((x, y)).resplit(saved["test_size"], seed=saved["seed"])
    return joined.with_validation(saved["valid_size"], seed=saved["seed"])


# -- what comes back ----------------------------------------------------------------------------------------------


def test_a_piece_gives_every_weight_back_also_beyond_a_thousand():
    many = [keras.Variable(float(i)) for i in range(1100)]
    model = SimpleNamespace(variables=many)
    piece = weights_piece(model, {})
    for variable in many:
        variable.assign(-1.0)
    restore(model, piece)
    assert [float(keras.ops.convert_to_numpy(v)) for v in many] == list(range(1100))


def test_the_model_says_label_adversarial_votes_and_probabilities_as_predict_does(run, data):
    result, x = run[0], data[0][:50]
    found = {k: keras.ops.convert_to_numpy(v) for k, v in result.model(x).items()}
    assert sorted(found) == ["is_adversarial", "label", "probabilities", "votes"]
    np.testing.assert_array_equal(found["label"], result.predict(x))
    np.testing.assert_array_equal(found["is_adversarial"], found["label"] == result.reject)
    np.testing.assert_array_equal(found["votes"].sum(axis=1), 3)
    np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-5)  # float32
    assert result.reject == 10
    assert len(result.members) == 3


def test_the_score_is_the_accuracy_of_predict(run, data):
    x, y = data
    assert run[0].score(x, y) == np.mean(run[0].predict(x) == y)
    assert run[0].score(x, y) > 0.5  # chance: 0.09


def test_the_report_holds_every_model_in_both_columns(run):
    report = run[0].report
    eat = [f"{role}/cycle{c}" for c in (1, 2) for role in ("eat1", "eat2")]
    assert report.models == ["target", *eat, "voter1", "voter2", "voter3", "mia"]
    assert report.attacks("paper") == ["fgsm", "gma"]
    assert report.attacks("adaptive", "mia") == ["pgd", "margin_pgd", "gma"]
    assert list(run[0].history) == report.models[:-1]
    assert [len(h["loss"]) for h in run[0].history.values()] == [10] + [2] * 7
    assert len(report.outcome("mia", "clean")) == 60
    assert len(report.outcome("mia", "pgd", "adaptive")) == 20


def test_custom_callbacks_are_called_in_every_fit(run):
    _, _, watch, _ = run
    assert (watch.fits, watch.epochs) == (FITS, 10 + 7 * 2)


def test_the_folder_holds_pieces_report_and_two_exports(run):
    result, folder, _, _ = run
    assert result.out == folder
    assert all(path.exists() for path in result.files.values())
    assert {"report.json", "report.html", "model", "saved_model"} <= set(result.files)
    assert not list(folder.rglob(".*"))  # nothing half written is left


@pytest.mark.parametrize("key", ["model", "saved_model"])
def test_an_export_that_is_moved_decides_as_the_vote(run, data, key, tmp_path):
    result, _, _, _ = run
    source = result.files[key]
    moved = tmp_path / f"moved{source.suffix}"
    (shutil.copytree if source.is_dir() else shutil.copy)(source, moved)
    found = defenses.load(moved)
    assert (found.classes, found.reject) == (result.reject, result.reject)
    decision = found.decide(data[0][:60])
    np.testing.assert_array_equal(decision.label, result.predict(data[0][:60]))
    np.testing.assert_array_equal(decision.rejected, decision.label == result.reject)
    if key == "model":
        assert found.surface()[1] == defenses.EvadeVote(result.reject)


# -- the sets and the shares --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fgsm", "gma"])
@pytest.mark.parametrize("part", ["train", "valid", "test"])
def test_the_sets_hold_moved_images_within_the_ball_that_the_target_gets_right(run, data, name, part):
    result, folder, _, _ = run
    divided = _divided(*data, json.loads((folder / "run.json").read_text()))
    x, y = getattr(divided, f"x_{part}"), getattr(divided, f"y_{part}")
    with np.load(folder / "pieces" / "sets" / f"{name}-{part}.npz") as file:
        found = {k: file[k] for k in file.files}
    meta = json.loads(str(found["meta"]))
    clean = x[found["index"]]
    np.testing.assert_array_equal(found["y"], y[found["index"]])
    np.testing.assert_array_equal(models.predict_logits(result.target, clean).argmax(axis=1), found["y"])
    delta = (found["x"] - clean).reshape(len(clean), -1)
    moved = np.abs(delta).max(axis=1)
    assert np.all(moved > 0)
    assert np.all(moved <= found["radius"] + 1e-6)  # float32
    assert found["x"].min() >= 0
    assert found["x"].max() <= 1
    assert meta["asked"] == len(clean) + meta["wrong"] + meta["unmoved"]


def test_every_eat_model_sees_the_share_of_adversarial_images_that_was_asked_for(run):
    titles = [(title, mixture) for title, mixture in run[3] if title.startswith("eat")]
    assert len(titles) == 4
    for title, mixture in titles:
        share = SHARES[int(title.split("cycle")[1][0]) - 1]
        y = np.concatenate([y for _, y in mixture.parts])
        assert np.sum(y == 10) == adversarial_count(np.sum(y != 10), share)
        assert f"{share:.0%}" in title


def test_the_attacks_have_equal_parts_in_the_share(run):
    for title, mixture in run[3]:
        if title.startswith("eat"):
            _, fgsm, gma = (len(x) for x, _ in mixture.parts)
            assert fgsm - gma in (0, 1)


def test_each_voter_trains_on_its_bootstrap(run):
    voters = [mixture for title, mixture in run[3] if title.startswith("voter")]
    n = sum(len(x) for x, _ in voters[0].parts)
    for mixture, rows in zip(voters, bootstrap_indices(n, 3, derive(0, "", "bootstrap")), strict=True):
        np.testing.assert_array_equal(mixture.rows, rows)


# -- the stop rule ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_a_threshold_of_one_never_fires_and_the_report_says_so(data):
    result = recipe.train(
        data, **quickest(threshold=1.0, members=(named,), shares=SHARES[:1])
    )  # three voters of one name
    assert len(result.members) == 3
    assert (result.fired, result.share) == (False, SHARES[0])
    assert "The stop rule did not fire at any share." in result.report.flags


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_a_threshold_of_zero_fires_in_the_first_cycle_and_stop_ends_there(data):
    watch = Watch()
    result = recipe.train(data, **quickest(threshold=0.0, stop=True, callbacks=[watch]))
    assert (result.fired, result.share) == (True, SHARES[0])
    assert "eat1/cycle1" in result.history
    assert "eat1/cycle2" not in result.history
    assert watch.fits == 1 + 2 + 3
    assert not result.report.flags


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_voters_go_on_from_the_cycle_in_which_the_rule_fired_though_later_ones_were_trained(data, monkeypatch):
    real, before, after, shares = recipe.fit, {}, {}, {}

    def fit(model, mixture, **kwargs):
        title = kwargs["title"]
        labels = np.concatenate([y for _, y in mixture.parts])
        before[title], shares[title] = model.get_weights(), np.mean(labels == 10)
        history = real(model, mixture, **kwargs)
        after[title] = model.get_weights()
        return history

    monkeypatch.setattr(recipe, "fit", fit)
    result = recipe.train(data, **quickest(threshold=0.0))
    assert (result.fired, result.share) == (True, SHARES[0])
    assert "eat1/cycle2 (40% adversarial)" in after
    for voter, role in (("voter1", "eat1"), ("voter2", "eat2"), ("voter3", "eat1")):
        start, found = after[f"{role}/cycle1 (20% adversarial)"], before[f"{voter} ({role})"]
        assert all(np.array_equal(a, b) for a, b in zip(start, found, strict=True))
        assert shares[f"{voter} ({role})"] == shares[f"{role}/cycle1 (20% adversarial)"]
    assert shares["eat1/cycle1 (20% adversarial)"] < shares["eat1/cycle2 (40% adversarial)"]


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_a_share_of_ones_own_wins_over_the_rule(data):
    result = recipe.train(data, **quickest(threshold=0.0, share=SHARES[1]))
    assert (result.fired, result.share) == (True, SHARES[1])
    assert "fired in cycle 1, at a share of 20%" in result.report.notes[0]
    assert "The voters were trained at 40%" in result.report.notes[0]


# -- the same again -----------------------------------------------------------------------------------------------


@pytest.mark.slow  # that the same seed gives the same: see the run that was killed
def test_another_seed_gives_another_report(run, data):
    other = recipe.train(data, **settings(seed=1))
    assert other.report.results()["labels"] != run[0].report.results()["labels"]
    assert other.out is None


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was_and_ends_with_the_same_report(run, data, tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        recipe.train(data, **settings(callbacks=[Watch(stop_at=5)], out=folder))
    before = contents(folder / "pieces")
    assert {"target.npz", "eat1/cycle2.npz"} <= set(before)
    assert "eat2/cycle2.npz" not in before
    watch = Watch()
    result = recipe.train(data, **settings(callbacks=[watch], out=folder))
    assert watch.fits == FITS - 4
    after = contents(folder / "pieces")
    assert {name: after[name] for name in before} == before
    assert result.report.results() == run[0].report.results()


def test_a_finished_run_is_read_and_not_repeated(run, data):
    result, folder, _, _ = run
    before, watch = contents(folder / "pieces"), Watch()
    again = recipe.train(data, **settings(callbacks=[watch], out=folder))
    assert watch.fits == 0
    assert contents(folder / "pieces") == before
    assert again.report == result.report


def test_numbers_of_numpy_are_numbers(data, tmp_path):
    numbers = {"seed": np.int64(0), "threshold": np.float32(0.5), "limit": np.int32(30), "bootstraps": np.int64(2)}
    with pytest.raises(KeyboardInterrupt):  # the settings are written when the first fit begins
        recipe.train(data, **quick(callbacks=[Watch(stop_at=1)], out=tmp_path / "run", **numbers))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["threshold"] == 0.5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed=1"),
        ({"threshold": 0.5}, "threshold=0.5"),
        ({"shares": (0.3,)}, "shares="),
        ({"attacks": {"fgsm": FGSM(eps=0.1)}}, "attacks/"),
        ({"target": narrow}, "networks/"),
        ({"per_attack": True}, "per_attack=true"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_overwritten(run, data, change, named):
    folder = run[1]
    before = contents(folder)
    with pytest.raises(ValueError, match="`out` must be a new folder") as error:
        recipe.train(data, **settings(out=folder, **change))
    assert named in str(error.value)
    assert contents(folder) == before


def test_other_images_in_the_same_folder_are_refused(run, data):
    x, y = data
    saved = json.loads((run[1] / "run.json").read_text())
    valid = _divided(x, y, saved).x_valid[0]
    only_one = np.where(np.all(x == valid, axis=(1, 2, 3), keepdims=True), 1 - x, x)  # it serves for validation
    for images in (1 - x, only_one):
        with pytest.raises(ValueError, match="fingerprint"):
            recipe.train((images, y), **settings(out=run[1]))


def test_a_folder_with_other_files_is_refused(data, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose this")
    with pytest.raises(ValueError, match="holds other files"):
        recipe.train(data, **quick(out=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="which is a file"):
        recipe.train(data, **quick(out=tmp_path / "file"))


@pytest.mark.slow
def test_other_adaptive_attacks_keep_what_was_trained_and_judge_again(run, data, tmp_path):
    result, folder, _, _ = run
    shutil.copytree(folder, tmp_path / "run")
    before, watch = contents(tmp_path / "run" / "pieces"), Watch()
    changes = {"adaptive_steps": 2, "adaptive_limit": 15}
    other = recipe.train(data, **settings(callbacks=[watch], out=tmp_path / "run", **changes))
    after = contents(tmp_path / "run" / "pieces")
    assert watch.fits == 0
    assert set(after) == set(before)
    assert {n for n in after if after[n] != before[n]} == {f"adaptive/{n}.npz" for n in ("pgd", "margin_pgd", "gma")}
    assert len(other.report.outcome("mia", "pgd", "adaptive")) == 15
    assert other.report.notes[-1] == "The adaptive attacks ran on 15 test images, 2 steps."
    assert changes.items() <= other.report.settings.items()
    back = recipe.train(data, **settings(out=tmp_path / "run"))
    assert back.report.results() == result.report.results()


@pytest.mark.slow
def test_per_attack_gives_one_defense_for_each_attack(data, tmp_path):
    folder, watch = tmp_path / "run", Watch()
    few = {"shares": SHARES[:1], "members": (narrow,), "bootstraps": 2}
    result = recipe.train(data, **quick(per_attack=True, callbacks=[watch], out=folder, **few))
    assert watch.fits == 1 + 2 * (1 + 2)  # one target for both
    assert list(result.parts) == ["fgsm", "gma"]
    assert result.report.models == ["target", "mia-fgsm", "mia-gma"]
    for name, part in result.parts.items():
        assert part.report.attacks("paper") == [name]
        assert result.files[f"{name}/model"] == folder / name / "mia.keras"
        assert result.files[f"{name}/saved_model"] == folder / name / "saved_model"
    assert all(path.exists() for path in result.files.values())
    fgsm, gma = (part.report.phases for part in result.parts.values())
    assert result.report.phases["target"] == fgsm["target"] == gma["target"]
    for phase, seconds in result.report.phases.items():
        if phase != "target":
            assert seconds == fgsm.get(phase, 0) + gma.get(phase, 0)


# -- pieces -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pieces(tmp_path):
    """A function that opens one folder with some settings and gets a trained and a judging piece: (pieces, made)."""

    def opened(**changes):
        found, made = Store(tmp_path / "run", {"seed": 0, "steps": 5, **changes}, judging=("steps",)), []

        def make(name):
            made.append(name)
            return {"x": np.zeros(1)}, {}

        found.get("trained", lambda: make("trained"), phase="train")
        found.get("judged", lambda: make("judged"), phase="judge", judging=True)
        return found, made

    return opened


def test_a_judging_piece_is_made_again_for_other_settings_of_judging_and_only_it(pieces):
    assert pieces()[1] == ["trained", "judged"]
    assert pieces()[1] == []
    assert pieces(steps=6)[1] == ["judged"]
    assert pieces(steps=6)[1] == []
    assert pieces(steps=5)[1] == ["judged"]
    with pytest.raises(ValueError, match=r"differs in seed=1 \(there: 0\)"):
        pieces(seed=1, steps=7)


@pytest.mark.parametrize("folder", [None, "run"])
def test_a_piece_made_within_another_counts_once_and_is_not_lost_when_the_other_is_found(tmp_path, folder):
    where = None if folder is None else tmp_path / folder
    for again in range(1 if folder is None else 2):
        found = Store(where, {"seed": 0})

        def teacher():
            time.sleep(0.2)
            return {"x": np.zeros(1)}, {}

        def student(found=found):
            found.get("teacher", teacher, phase="teacher")
            time.sleep(0.1)
            return {"x": np.zeros(1)}, {}

        start = time.perf_counter()
        found.get("student", student, phase="student")
        if not again:
            whole = time.perf_counter() - start
        assert set(found.seconds) == {"teacher", "student"}
        assert found.seconds["teacher"] >= 0.2
        assert 0.1 <= found.seconds["student"] < 0.2
        assert sum(found.seconds.values()) <= whole


def test_each_second_counts_once(pieces, tmp_path):
    whole, _ = pieces()
    before = whole.seconds
    assert list(before) == ["train", "judge"]
    part = whole.branch()
    part.get("trained", None, phase="train")
    assert part.seconds == before
    part.get("more", lambda: ({}, {}), phase="train")
    assert whole.seconds == before
    assert part.seconds["train"] == before["train"] + part.times["more"][1] > before["train"]


# -- what is refused ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Short:
    """An attack that returns fewer images than it was given."""

    def __call__(self, model, x, y, *, seed=0, progress=None):
        return x[:-1]


def test_an_attack_that_loses_images_is_an_error(data):
    with pytest.raises(ValueError, match="'short' must return one image for each"):
        recipe.train(data, **quick(attacks={"short": Short()}))


@pytest.fixture
def refusal(refusal_of):
    return refusal_of(recipe, lambda data, **changes: recipe.train(data, **quick(**changes)))


def _with_nan(x):
    x = x.copy()
    x[3, 2, 2, 0] = np.nan
    return x


BAD_DATA = {
    "negative labels": (lambda x, y: (x, y - 1), "at least 0"),
    "fractions as labels": (lambda x, y: (x, y + 0.5), "must be integers"),
    "several labels": (lambda x, y: (x, np.eye(10)[y] + np.eye(10)[y - 1]), "one-hot rows"),
    "fewer labels than images": (lambda x, y: (x, y[:-1]), "one label for each"),
    "images in 0 to 255": (lambda x, y: (x * 255, y), r"must lie in|within|bounds|\[0"),
    "images below 0": (lambda x, y: (x - 0.5, y), r"must lie in|within|bounds|\[0"),
    "integers as images": (lambda x, y: ((x * 16).astype("int64"), y), "float"),
    "text as images": (lambda x, y: (x.astype(str), y), "array of numbers"),
    "NaN": (lambda x, y: (_with_nan(x), y), "NaN|finite"),
    "no images": (lambda x, y: (x[:0], y[:0]), "must"),
    "one class only": (lambda x, y: (x[y == 3], y[y == 3]), "two classes"),
    "a lone member of a class": (lambda x, y: (x[:100], np.where(np.arange(100) == 0, 11, y[:100] % 3)), "two samples"),
    "one array": (lambda x, y: (x,), "`data` must be"),
    "another type": (lambda x, y: 7, "`data` must be"),
    "an unknown name": (lambda x, y: "digit", "digits"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_is_refused_before_any_training(refusal, data, case):
    change, match = BAD_DATA[case]
    said, left = refusal(change(*data))
    assert re.search(match, said)
    assert left == []


def eleven_outputs(input_shape, outputs, *, seed=0):
    return wide(input_shape, 11, seed=seed)


def ten_outputs(input_shape, outputs, *, seed=0):
    return wide(input_shape, 10, seed=seed)


def other_input(input_shape, outputs, *, seed=0):
    return wide((28, 28, 1), outputs, seed=seed)


def nothing(input_shape, outputs, *, seed=0):
    return None


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"shares": (0.4, 0.2)}, "`shares` must be shares that grow"),
        ({"shares": (0.2, 0.2)}, "`shares` must be shares that grow"),
        ({"shares": (0.5, 1.0)}, "`shares` must be shares that grow"),
        ({"shares": (0.0, 0.5)}, "`shares` must be shares that grow"),
        ({"shares": ()}, "`shares` must be shares that grow"),
        ({"shares": 0.5}, "`shares` must be shares that grow"),
        ({"share": 0.3}, "`share` must be None or one of"),
        ({"threshold": 2}, "`threshold` must be"),
        ({"threshold": -0.1}, "`threshold` must be"),
        ({"threshold": float("nan")}, "`threshold` must be"),
        ({"seed": -1}, "`seed` must be"),
        ({"seed": 1.5}, "`seed` must be"),
        ({"bootstraps": 0}, "`bootstraps` must be a positive integer"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
        ({"batch_size": 10_000}, "`batch_size` must be at most the number of training images"),
        ({"learning_rate": 0.0}, "`learning_rate` must be"),
        ({"test_size": 1.0}, "`test_size` must be a share"),
        ({"valid_size": 0}, "`valid_size` must be a share"),
        ({"limit": 0}, "`limit` must be a positive integer"),
        ({"limit": 1}, "`limit` must be at least the number of classes among the test images, 10"),
        ({"shares": (1e-9, 0.5)}, "`shares` must each give at least one image of every attack"),
        ({"shares": (1e-9,)}, "`shares` must each give at least one image of every attack"),
        ({"adaptive_limit": 0}, "`adaptive_limit` must be a positive integer"),
        ({"adaptive_steps": 0}, "`adaptive_steps` must be a positive integer"),
        ({"epochs": {"eat": 0}}, r"`epochs\['eat'\]` must be a positive integer"),
        ({"epochs": {"eats": 1}}, "Did you mean 'eat'"),
        ({"attacks": ()}, "`attacks` must name at least one"),
        ({"attacks": {}}, "`attacks` must name at least one"),
        ({"attacks": ("fgms",)}, "Did you mean 'fgsm'"),
        ({"attacks": {"clean": FGSM()}}, "identifiers"),
        ({"attacks": {"a/b": FGSM()}}, "identifiers"),
        ({"attacks": {"fgsm": 0.3}}, "`attacks`"),
        ({"members": ()}, "`members` must be one or more networks"),
        ({"members": [None]}, "`members` must be one or more networks"),
        ({"members": ("eat4",)}, "Did you mean 'eat"),
        ({"target": "target_dn"}, "Did you mean 'target_dnn'"),
        ({"target": eleven_outputs}, "'target' must be a keras.Model with 10 outputs"),
        ({"members": (narrow, ten_outputs)}, "'eat2' must be a keras.Model with 11 outputs"),
        ({"members": (other_input,)}, "'eat1' must take inputs of shape"),
        ({"members": (nothing,)}, "'eat1' must be a keras.Model"),
    ],
    ids=without_address,
)
def test_bad_settings_are_refused_before_any_training(refusal, data, changes, match):
    said, left = refusal(data, **changes)
    assert re.search(match, said)
    assert left == []
