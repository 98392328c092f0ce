"""The hybrid recipe on a few hundred digits: what it trains, what it counts, what it repeats, what it refuses."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import layers

import kerasdef
import kerasdef.recipes.evaluate as evaluating
import kerasdef.recipes.hybrid.report as judging
import kerasdef.recipes.hybrid.training as recipe
from kerasdef import defenses, models
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.evaluation import Outcome, mcnemar, tpr_at_fpr
from kerasdef.recipes import accounting
from kerasdef.recipes.accounting import Shown
from kerasdef.recipes.hybrid import detecting
from kerasdef.recipes.hybrid.settings import DETECTORS, HybridSettings
from kerasdef.recipes.robust.training import Run
from kerasdef.reporting import Report, Section
from kerasdef.runs.seeds import derive

EPS = 0.1


def dense(units, seed, input_shape, outputs):
    def glorot(i):
        return keras.initializers.GlorotUniform(seed=2 * seed + i)

    stack = [
        keras.Input(input_shape),
        layers.Flatten(),
        layers.Dense(units, activation="relu", kernel_initializer=glorot(0)),
        layers.Dense(outputs, kernel_initializer=glorot(1)),
    ]
    return keras.Sequential(stack, name="dense")


def narrow(input_shape, outputs, *, seed=0):
    return dense(24, seed, input_shape, outputs)


def wide(input_shape, outputs, *, seed=0):
    return dense(32, seed, input_shape, outputs)


def settings(**changes):
    common = {
        "members": (narrow, wide),
        "undefended": wide,
        "eps": EPS,
        "epochs": 6,
        "radii": (1.0,),
        "steps": (2,),
        "shares": (1.0,),
        "batch_size": 40,
        "learning_rate": 0.01,
        "detectors": ("class_deviation", "disagreement"),
        "autoencoder_epochs": 1,
        "valid_size": 0.25,
        "rate": 0.1,
        "n_test": 40,
        "adaptive_limit": 12,
        "adaptive_steps": 4,
        "autoattack": False,
        "compare": False,
        "progress": False,
    }
    return common | changes


@pytest.fixture(scope="module", autouse=True)
def lean():
    """Every part of an attack is compiled for every model, so few stand for all."""
    with pytest.MonkeyPatch.context() as patch:
        attacks = judging.paper_attacks
        few = ("fgsm", "cw")
        patch.setattr(judging, "paper_attacks", lambda *a, **k: {n: v for n, v in attacks(*a, **k).items() if n in few})
        patch.setattr(judging, "QUICK", ("apgd-margin",))
        patch.setattr(evaluating, "attacker", functools.partial(accounting.attacker, parts=("apgd-margin",)))
        yield


@pytest.fixture(scope="module")
def data(digits):
    """480 digits for training, and 120 others."""
    x, y, x_test, y_test = digits
    return x[:480], y[:480], x_test[:120], y_test[:120]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """One run with a folder: (result, folder)."""
    folder = tmp_path_factory.mktemp("hybrid") / "run"
    return kerasdef.train_hybrid(data, **settings(out=folder)), folder


@pytest.fixture(scope="module")
def parts(data):
    """The same run before it begins: its data, as they are divided."""
    return recipe._run_of(HybridSettings.of({"data": data, **settings()}))


def section(report, name):
    (found,) = (s for s in report.sections if s.name == name)
    return found


# -- what is trained ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_member_is_what_the_robust_recipe_trains_in_stages_with_its_seed(run, parts):
    result, _ = run
    same = ("eps", "epochs", "batch_size", "learning_rate", "autoattack", "radii", "steps", "shares")
    options = {name: settings()[name] for name in same}
    seed = derive(0, "member2")
    alone = kerasdef.train_multistage(parts.choosing, network=wide, seed=seed, n_test=12, progress=False, **options)
    for ours, theirs in zip(result.members[1].get_weights(), alone.model.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)  # float32
    assert result.report.costs["member2"]["gradients"] == alone.cost["gradients"]
    assert not np.allclose(result.members[1].get_weights()[-1], result.undefended.get_weights()[-1])


@pytest.mark.slow
def test_the_threshold_is_that_of_images_that_nothing_else_has_seen(run, parts):
    model, held = run[0].model, parts.calibrating
    assert len(held) == 60
    assert len(parts.choosing.x_valid) == 60
    assert not set(map(bytes, held)) & set(map(bytes, parts.choosing.x_valid))
    assert model.detector.flags(held).sum() == 60 - np.ceil(61 * 0.9)  # split conformal: a score of these


@pytest.mark.slow
def test_the_weights_follow_the_accuracy_on_clean_and_attacked_validation_images(run, parts):
    result, folder = run
    d = parts.choosing
    with np.load(folder / "pieces" / "sets" / "valid.npz") as file:
        x_adv = file["x"]
    assert np.abs(x_adv - d.x_valid).max() <= EPS + 1e-6
    right = [
        [np.mean(models.predict_logits(m, x).argmax(1) == d.y_valid) for x in (d.x_valid, x_adv)]
        for m in result.members
    ]
    rows = section(result.report, "members").rows
    np.testing.assert_allclose([[r["validation, clean"], r["validation, attacked"]] for r in rows], right, atol=1e-6)
    share = np.sum(right, axis=1) / np.sum(right)
    np.testing.assert_allclose([r["weight"] for r in rows], 0.05 + 0.9 * share, atol=1e-5)  # floor: 0.1 / 2
    assert np.mean(right, axis=0)[1] < np.mean(right, axis=0)[0]


@pytest.mark.slow
def test_all_parts_are_in_the_defense(run):
    result, _ = run
    model = result.model
    assert [m.name for m in model.members] == ["dense", "dense"]
    assert model.detector.network is result.undefended
    assert [type(d).__name__ for d in model.detector.detector.detectors] == ["LogitDeviation", "Disagreement"]
    assert type(model.purifier).__name__ == "DenoisingAutoencoder"
    assert model.reject == 10
    assert list(result.history) == ["undefended", "member1", "member2"]
    assert all(len(h["loss"]) == 6 for h in result.history.values())


@pytest.mark.slow
def test_what_it_says_and_what_its_files_say_is_the_same(run, data):
    result, folder = run
    x, y = data[2], data[3]
    label = result.predict(x)
    assert result.score(x, y) == np.mean(label == y) > 0.5  # chance: 0.1
    for key in ("model", "saved_model"):
        np.testing.assert_array_equal(defenses.load(result.files[key]).decide(x).label, label)
    kept = defenses.load(folder / "undefended" / "model.keras")
    np.testing.assert_allclose(
        kept.decide(x).probabilities.argmax(1), models.predict_logits(result.undefended, x).argmax(1)
    )


# -- how it is judged ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_model_stands_in_both_columns_and_the_members_met_the_same_attacks(run):
    report = run[0].report
    assert report.models == ["undefended", "member1", "member2", "ensemble", "hybrid"]
    assert report.main == "hybrid"
    assert report.attacks("paper") == ["fgsm", "cw", "base-fgsm", "base-cw"]
    for name in ("member1", "member2", "ensemble", "hybrid"):
        assert report.attacks("adaptive", name) == ["adaptive"]
        assert len(report.outcome(name, "adaptive", "adaptive")) == 12
    assert report.outcome("undefended", "fgsm").access == "gradients"
    assert report.outcome("hybrid", "fgsm").access == "none"
    assert report.outcome("member1", "base-fgsm").access == "gradients"
    assert report.outcome("hybrid", "base-fgsm").access == "none"
    assert report.rejecting == ["hybrid"]
    assert len(report.outcome("hybrid", "fgsm")) == 40
    assert len(report.outcome("hybrid", "base-fgsm")) == 12
    np.testing.assert_allclose(report.outcome("hybrid", "fgsm").radius, EPS, rtol=1e-6)
    assert report.outcome("hybrid", "cw").radius is None


@pytest.mark.slow
def test_the_account_holds_the_numbers_of_the_report(run, data):
    result, _ = run
    report, account = result.report, section(result.report, "accounting")
    said = {row["what"]: (row["%"], row["images"]) for row in account.rows}
    clean = report.clean("hybrid")
    flagged = np.mean(clean.predicted == 10)
    assert said["clean images flagged"][0].startswith(f"{100 * flagged:.1f} [")
    x, y = data[2][clean.index], data[3][clean.index]
    answers = keras.ops.convert_to_numpy(result.model(x)["answer"])
    assert said["clean accuracy, flagged images are answered too"] == (f"{100 * np.mean(answers == y):.1f}", 40)
    worst = report.worst_case("hybrid")["robust_accuracy"]
    assert said["adaptive: right and not broken by any attack"][0].startswith(f"{100 * worst:.1f} [")
    alone = max(report.worst_case(m)["robust_accuracy"] for m in ("member1", "member2"))
    (best,) = (v for k, v in said.items() if k.startswith("best member alone"))
    assert best[0].startswith(f"{100 * alone:.1f} [")
    assert sum(k.startswith("transfer from the base") for k in said) == 2


@pytest.mark.slow
def test_the_manifest_says_what_each_part_of_the_attack_broke(run):
    report = run[0].report
    rows = section(report, "manifest").rows
    broke = sum(row["broke"] or 0 for row in rows)
    o, clean = report.outcome("hybrid", "adaptive", "adaptive"), report.clean("hybrid", "adaptive")
    wrong = (clean.predicted != clean.y) & (clean.predicted != 10)
    fooled = (o.predicted != o.y) & (o.predicted != 10)
    assert broke + np.sum(wrong[:12]) == fooled.sum()
    assert {"detector Watching", "purifier DenoisingAutoencoder", "apgd-margin"} <= {row["stage"] for row in rows}
    assert any("left out" in row["not_attacked"] for row in rows)


@pytest.mark.slow
def test_the_cost_of_a_prediction_is_shown_and_is_no_result(run):
    report = run[0].report
    cost = section(report, "latency")
    assert {row["batch"] for row in cost.rows} == {1, 256}
    assert all(float(row["defense, ms an image"]) > 0 for row in cost.rows)
    assert "latency" in {s["name"] for s in report.record()["sections"]}
    assert "latency" not in {s["name"] for s in report.results()["sections"]}
    assert "Cost of a prediction" in report.table()
    assert "Cost of a prediction" in report.html({})


def by_hand():
    """A defense of three classes that rejects, and a member, on six images under two attacks."""
    y, index = np.array([0, 0, 1, 1, 2, 2]), np.arange(6)
    said = {
        ("hybrid", "clean"): [0, 0, 1, 1, 3, 2],
        ("hybrid", "a"): [3, 1, 1, 1, 3, 2],
        ("hybrid", "b"): [3, 0, 1, 0, 3, 3],
        ("member1", "clean"): [0, 0, 1, 1, 2, 0],
        ("member1", "a"): [1, 0, 1, 1, 2, 0],
        ("member1", "b"): [0, 0, 1, 0, 0, 0],
    }
    found = [Outcome(m, "adaptive", a, y, np.array(p), index=index) for (m, a), p in said.items()]
    return Report(found, classes=3, reject=3, rejecting=["hybrid"], main="hybrid")


def test_what_stands_is_right_when_clean_and_broken_by_no_attack():
    report = by_hand()
    index, good = accounting.standing(report, "hybrid")
    np.testing.assert_array_equal(index, np.arange(6))
    np.testing.assert_array_equal(good, [True, False, True, False, False, True])
    member = accounting.standing(report, "member1")[1]
    np.testing.assert_array_equal(member, [False, True, True, False, False, False])
    assert good.mean() == report.worst_case("hybrid")["robust_accuracy"]
    rows = accounting.accounting(report, members=["member1"]).rows
    assert rows[-2]["%"].startswith("33.3 [")
    p = mcnemar(good, member)["p_value"]
    assert rows[-1] == {
        "what": f"the defense adds nothing that can be told from chance (+16.7 points), p = {p:.2g} (McNemar)",
        "%": "+16.7",
        "images": 6,
    }


def test_detection_counts_what_fooled_its_source_above_thresholds_of_clean_scores():
    clean = np.arange(100) / 100
    scores = np.array([0.995, 0.97, 0.92, 0.5, 2.0])
    shown = {"a": Shown("m", scores, np.array([True, True, True, True, False]))}
    (row,) = accounting.detection(clean, shown).rows
    assert (row["attacked"], row["fooled it"]) == (5, 4)
    assert [row[f"detected at {r} FPR"] for r in ("1%", "5%", "10%")] == ["25.0", "50.0", "75.0"]
    assert row["AUROC"] == f"{np.mean([(clean < s).mean() + 0.5 * (clean == s).mean() for s in scores[:4]]) * 100:.1f}"


def test_only_images_that_were_right_before_count_as_fooled():
    y, index = np.array([0, 1, 2]), np.arange(3)
    before = Outcome("m", "paper", "clean", y, np.array([0, 0, 2]), index=index)
    after = Outcome("m", "paper", "a", y[1:], np.array([0, 1]), index=index[1:])
    np.testing.assert_array_equal(accounting.succeeded(before, after), [False, True])


@pytest.mark.slow
def test_other_detectors_stand_beside_on_the_same_images(run, parts):
    result, d = run[0], parts.data
    x = d.x_test
    x_adv = np.clip(x + EPS * np.sign(0.5 - x), 0, 1).astype("float32")
    names = ("logit_deviation", "disagreement")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detecting, "DETECTORS", {n: DETECTORS[n] for n in names})
        among = d, parts.calibrating, x_adv, result.undefended, result.members
        rows = detecting.compared(*among, x, {"a": x_adv, "none": x_adv[:0]}, names)
    assert [(r["detector"], r["watching"]) for r in rows] == [
        (name, w) for name in (*names, "logit_deviation + disagreement") for w in ("no", "yes")
    ]
    alone = LogitDeviation(rate=0.05).fit(result.members, d.x_train, d.y_train, valid=parts.calibrating)
    found = tpr_at_fpr(alone.scores(x), alone.scores(x_adv), 0.05)
    assert (rows[0]["a"], rows[0]["none"]) == (f"{100 * found:.1f}", "-")


# -- it goes on, and is the same ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_what_is_there_and_ends_the_same(run, data, tmp_path, monkeypatch):
    result, _ = run
    trained, real, stop = [], Run.trained, {"at": "member2"}

    def watched(self, model, pieces, piece="model"):
        if piece == stop["at"]:
            raise KeyboardInterrupt
        trained.append(piece)
        return real(self, model, pieces, piece)

    monkeypatch.setattr(Run, "trained", watched)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        kerasdef.train_hybrid(data, **settings(out=folder))
    assert trained == ["undefended", "member1"]
    stop["at"] = None
    again = kerasdef.train_hybrid(data, **settings(out=folder))
    assert trained == ["undefended", "member1", "member2"]
    assert again.report == result.report
    np.testing.assert_array_equal(again.predict(data[2]), result.predict(data[2]))
    once_more = kerasdef.train_hybrid(data, **settings(out=folder, n_test=20))
    assert trained == ["undefended", "member1", "member2"]  # judging alone was made again
    assert len(once_more.report.clean("hybrid")) == 20


# -- choices ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_without_detector_and_autoencoder_it_is_an_ensemble(data):
    changes = {"detectors": "none", "autoencoder_epochs": 0, "epochs": 3, "adaptive_steps": 1, "n_test": 20}
    result = kerasdef.train_hybrid(data, **settings(**changes))
    assert (result.model.detector, result.model.purifier, result.model.reject) == (None, None, None)
    report = result.report
    assert report.rejecting == []
    assert "detection" not in {s.name for s in report.sections}
    np.testing.assert_array_equal(report.clean("hybrid").predicted, report.clean("ensemble").predicted)
    assert "clean images flagged" not in {row["what"] for row in section(report, "accounting").rows}


# -- what is refused ----------------------------------------------------------------------------------------------


BAD = {
    "an unknown network": ({"members": ("cnn1",)}, "Did you mean 'cnn11'"),
    "no members": ({"members": ()}, "`members` must be one or more networks"),
    "an unknown detector": ({"detectors": "logit"}, "`detectors` must be one of"),
    "disagreement of one network": (
        {"detectors": "disagreement", "watch": False, "members": narrow},
        "where one network is watched alone",
    ),
    "a rate for more images than are held out": ({"rate": 0.01}, "needs at least 99 images"),
    "fewer epochs than stages": ({"epochs": 1, "radii": (0.5, 1.0), "steps": (1, 1), "shares": (1, 1)}, "at least 2"),
    "stages that do not fit": ({"radii": (0.5, 1.0)}, "one value for each stage"),
    "radii that do not grow": ({"radii": (0.5, 0.3, 1.0), "steps": (1, 1, 1), "shares": (1, 1, 1)}, "grow to 1"),
    "no radius": ({"eps": None}, "`eps` must be given"),
    "a radius below 0": ({"eps": -0.1}, "`eps` must be"),
    "a negative sigma": ({"sigma": -1.0}, "`sigma` must be"),
    "no draws": ({"draws": 0}, "`draws` must be"),
    "an unknown end of flagged images": ({"flagged": "lost"}, "`flagged` must be one of"),
    "a batch larger than the data": ({"batch_size": 1000}, "`batch_size` must be at most"),
    "a network with other outputs": ({"undefended": lambda s, k, seed=0: wide(s, 9)}, "must be a keras.Model with 10"),
    "an unknown setting": ({"sigmas": 0.1}, "Did you mean 'sigma'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_before_work_starts(data, refusal_of, case):
    changes, said = BAD[case]
    refusal = refusal_of(Run, kerasdef.train_hybrid)
    text, left = refusal(data, **settings(**changes))
    assert said in text
    assert left == []


def test_data_that_are_no_images_are_refused(refusal_of):
    x, y = np.random.default_rng(0).random((60, 5), dtype="float32"), np.arange(60) % 3
    text, _ = refusal_of(Run, kerasdef.train_hybrid)((x, y), **settings())
    assert "`data` must be images" in text


# -- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.slow
def test_evaluate_judges_the_defense_of_a_run_and_each_member(run, data, tmp_path):
    _, folder = run
    options = {"n": 16, "steps": 3, "autoattack": False, "progress": False}
    found = kerasdef.evaluate(folder, data, adaptive=True, out=tmp_path / "judged", **options)
    report = found.report
    assert report.models == ["member1", "member2", "hybrid"]
    assert report.attacks("paper", "hybrid") == ["fgsm", "pgd", "cw"]
    assert {len(o) for o in report.outcomes} == {16}
    assert found.defense.reject == report.reject == 10
    np.testing.assert_allclose(report.outcome("hybrid", "adaptive", "adaptive").radius, EPS, rtol=1e-6)
    assert json.loads((tmp_path / "judged" / "report.json").read_text())["main"] == "hybrid"
    plain = kerasdef.evaluate(folder, data, eps=0.05, **options).report
    assert plain.models == ["hybrid"]
    assert plain.attacks("adaptive") == []
    assert "Nothing here speaks of robustness" in " ".join(plain.notes)
    assert np.nanmax(plain.outcome("hybrid", "pgd").radius) == pytest.approx(0.05)


@pytest.mark.slow
def test_the_commands_of_a_run(command, refused, run, data, tmp_path):
    _, folder = run
    np.savez(tmp_path / "d.npz", x_train=data[0], y_train=data[1], x_test=data[2], y_test=data[3])
    status, out, err = command(
        "evaluate", folder, "--dataset", tmp_path / "d.npz", "--n", 10, "--steps", 2, "--adaptive", "--no-autoattack"
    )
    assert status == 0, err
    assert "What hybrid is worth" in out
    status, out, err = command("export", folder, "--to", "keras", "--out", tmp_path / "moved.keras")
    assert status == 0, err
    assert defenses.load(tmp_path / "moved.keras").reject == 10
    assert "`n` must be" in refused("evaluate", folder, "--n", 0)


@pytest.mark.slow
def test_train_hybrid_from_the_command_line(command, data, tmp_path):
    np.savez(tmp_path / "d.npz", x_train=data[0], y_train=data[1], x_test=data[2], y_test=data[3])
    words = ["--dataset", tmp_path / "d.npz", "--out", tmp_path / "run", "--members", "target_dnn", "--undefended"]
    words += ["target_dnn", "--eps", "1/10", "--epochs", 3, "--batch-size", 120, "--valid-size", 0.25, "--rate", 0.1]
    words += [
        "--autoencoder-epochs",
        0,
        "--n-test",
        20,
        "--adaptive-limit",
        4,
        "--adaptive-steps",
        1,
        "--no-autoattack",
    ]
    status, out, err = command("train", "hybrid", *words, "--steps", "1,1,1")
    assert status == 0, err
    assert "What hybrid is worth" in out
    assert Report.load(tmp_path / "run").settings["steps"] == [1, 1, 1]


def test_a_section_of_times_says_so(tmp_path):
    rows = [{"what": "a", "ms": 1.5}]
    timed, other = (Section("times", "Times", rows=r, timing=True) for r in (rows, [{"what": "a", "ms": 2.5}]))
    first, second = by_hand(), by_hand()
    first.sections.append(timed)
    second.sections.append(other)
    assert first == second
    first.save(tmp_path)
    assert Report.load(tmp_path).sections == [timed]
