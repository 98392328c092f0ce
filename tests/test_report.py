"""The report: every number by hand on ten images, and what is written to disk."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasdef.evaluation import Outcome, wilson
from kerasdef.evaluation.statistics import share_interval
from kerasdef.reporting import Report, Section, results
from kerasdef.reporting import figures as plots

K = 3
Y = [0, 1, 2, 0]


def small(**changes) -> Report:
    """A target and a voting model on four images: three classes, 3 is adversarial."""
    paper = [
        Outcome("target", "paper", "clean", Y, [0, 1, 2, 1]),
        Outcome("target", "paper", "fgsm", Y, [1, 1, 0, 1], distance=[1, 2, 3, 4], norm="L2"),
        Outcome("target", "paper", "gma", Y, [0, 1, 0, 1], radius=[0.1, 0.1, 0.3, 0.3], norm="Linf"),
        Outcome("mia", "paper", "clean", Y, [0, 1, 3, 0], score=[0.1, 0.2, 0.9, 0.3]),
        Outcome("mia", "paper", "fgsm", Y, [3, 3, 0, 0], score=[0.8, 0.95, 0.15, 0.25]),
        Outcome("mia", "paper", "gma", Y, [3, 3, 3, 1], [0.8, 0.95, 0.99, 0.05], [0.1, 0.1, 0.3, 0.3]),
    ]
    adaptive = [
        Outcome("mia", "adaptive", "margin", [0, 1], [1, 3], score=[0.1, 0.6], index=[0, 1]),
        Outcome("mia", "adaptive", "votes", [1, 2], [0, 2], score=[0.1, 0.3], index=[1, 2]),
    ]
    values = {"classes": K, "reject": K, "class_names": ["a", "b", "c"], "dataset": "toy", "seed": 3}
    values |= {
        "phases": {"train": 1.5},
        "settings": {"eps": 8 / 255, "cycles": (0.15, 0.25), "bad": math.nan},
    }
    return Report(paper + adaptive, **(values | changes))


@pytest.fixture(scope="module")
def full() -> Report:
    x = np.random.default_rng(0).random((3, 8, 8, 1), dtype="float32")
    curves = {
        "loss": [1.0, math.nan],
        "accuracy": [0.5, 0.7],
        "val_accuracy": [0.4, 0.6],
        "val_loss": [2.0, 1.0],
    }
    examples = {
        "images": x,
        "attacks": {"fgsm": x / 2},
        "labels": [0, 1, 2],
        "predicted": {"fgsm": [1, 3, 0]},
    }
    names = ["<script>alert(1)</script>", "b & c", 'd"e']
    history = {"eat1/cycle1": curves, "voter1": {"loss": [1.0], "accuracy": [0.5]}}
    return small(history=history, examples=examples, class_names=names, notes=["<b>note</b>"], flags=["weak"])


@pytest.fixture(scope="module")
def saved(full, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return folder, full.save(folder)


# Outcomes


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"y": [], "predicted": []}, "non-empty"),
        ({"predicted": [0]}, "one label for each of the 2 samples"),
        ({"score": [1.0]}, r"`score` must have one value for each of the 2 samples. Received: shape=\(1,\)"),
        ({"score": [1.0, math.nan]}, "`score` must be finite"),
        ({"index": [0, 1, 2]}, "`index` must have one label"),
        ({"column": "papper"}, "Did you mean 'paper'"),
        ({"model": ""}, "`model` must be a non-empty string"),
        ({"y": [0, -1]}, "`y` must be at least 0"),
    ],
)
def test_an_outcome_refuses_what_does_not_fit(changes, text):
    with pytest.raises(ValueError, match=text):
        Outcome(**({"model": "m", "column": "paper", "attack": "fgsm", "y": [0, 1], "predicted": [0, 1]} | changes))


def test_outcomes_are_equal_by_what_they_hold():
    a, b = (Outcome("m", "paper", "fgsm", [0, 1], [1, 1], score=[0.1, 0.2]) for _ in range(2))
    assert a == b
    assert a != Outcome("m", "paper", "fgsm", [0, 1], [1, 1])
    assert a.index.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("outcomes", "changes", "text"),
    [
        ([], {}, "`outcomes` must be a non-empty list"),
        ([("m", "paper", "fgsm")] * 2, {}, "each model, column and attack once"),
        ([("m", "paper", "pooled")], {}, "`attack` must be another name"),
        ([("m", "paper", "fgsm")], {"reject": 1}, "`reject` must be None or classes=3"),
        ([("m", "paper", "fgsm")], {"class_names": ["a"]}, "`class_names` must be 3 names"),
        ([("m", "paper", "fgsm")], {"settings": {"f": print}}, "`settings` must hold numbers"),
        ([("m", "paper", "fgsm")], {"classes": 2, "reject": None}, "below 2"),
        ([("m", "paper", "fgsm")], {"examples": {"images": []}}, "`examples` must have"),
    ],
)
def test_a_report_refuses_what_does_not_fit(outcomes, changes, text):
    outcomes = [Outcome(*names, [0, 2], [0, 2]) for names in outcomes]
    with pytest.raises(ValueError, match=text):
        Report(outcomes, **({"classes": K, "reject": K} | changes))


# Numbers


def test_every_metric_of_a_rejecting_model_by_hand():
    row = small().metrics("mia", "fgsm")
    assert (row["n"], row["n_clean"]) == (4, 4)
    assert row["clean_accuracy"] == 0.75  # the rejected one is wrong
    assert (row["clean_accuracy_low"], row["clean_accuracy_high"]) == wilson(3, 4)
    assert row["false_alarms"] == 0.25
    assert row["adversarial_accuracy"] == 0.25
    assert row["detected"] == 0.5
    assert row["fooled"] == 0.25
    assert row["not_fooled"] == 0.75
    assert (row["not_fooled_low"], row["not_fooled_high"]) == wilson(3, 4)
    assert row["accuracy"] == 5 / 8
    images = share_interval([1, 1, 0, 1, 1, 1, 0, 0], [0, 1, 2, 3] * 2)  # each image is there clean and attacked
    assert (row["accuracy_low"], row["accuracy_high"]) == images != wilson(5, 8)
    assert row["detection_accuracy"] == 5 / 8
    # wanted 0120 3333, given 0130 3300: F1 of 0 is 4/6, of 1 is 1, of 2 is 0, of 3 is 4/7
    assert row["macro_f1"] == pytest.approx((2 / 3 + 1 + 0 + 4 / 7) / 4)
    assert row["tpr_at_1_fpr"] == row["tpr_at_5_fpr"] == 0.25  # above 0.9
    assert row["auroc"] == pytest.approx((3 + 4 + 1 + 2) / 16)  # clean scores below 0.8, 0.95, 0.15, 0.25
    assert math.isnan(row["median_distance"])


def test_accuracy_and_detection_accuracy_are_not_the_same():
    # a clean image with a wrong class is no detection error
    outcomes = [
        Outcome("mia", "paper", "clean", [0, 1], [1, 1], score=[0.0, 0.0]),
        Outcome("mia", "paper", "fgsm", [0, 1], [3, 3], score=[1.0, 1.0]),
    ]
    row = Report(outcomes, classes=K, reject=K).metrics("mia", "fgsm")
    assert row["accuracy"] == 0.75
    assert row["detection_accuracy"] == row["auroc"] == row["tpr_at_1_fpr"] == 1.0


def test_a_model_without_reject_class_has_no_detection_columns():
    row = small().metrics("target", "fgsm")
    names = ["detected", "false_alarms", "detection_accuracy", "detection_accuracy_low", "auroc", "tpr_at_1_fpr"]
    assert all(math.isnan(row[name]) for name in names)
    assert row["clean_accuracy"] == 0.75
    assert row["adversarial_accuracy"] == 0.25
    assert row["fooled"] == 0.75
    assert row["accuracy"] == 0.5  # the right label of an attacked image is its true class
    assert (row["median_distance"], row["norm"]) == (2.0, "L2")  # of 1 and 3; the last image was wrong before
    assert math.isnan(small().mean_detection_accuracy("target"))


def test_the_paper_column_is_never_called_robust():
    report = small()
    frame = report.frame()
    names = ["robust_accuracy", "robust_accuracy_low", "robust_accuracy_high"]
    assert frame[frame.column == "paper"][names].isna().all(axis=None)
    assert frame[frame.column == "adaptive"][names].notna().all(axis=None)
    assert math.isnan(report.worst_case("mia", "paper")["robust_accuracy"])
    assert report.by_radius("gma")["robust_accuracy"].isna().all()


def test_pooled_rows_count_clean_images_once():
    row = small().metrics("mia", "pooled")
    assert (row["n"], row["n_images"], row["n_clean"]) == (8, 4, 4)
    assert (row["fooled"], row["not_fooled"]) == (0.25, 0.5)  # two of eight, and those are two images
    assert row["detected"] == 5 / 8
    assert row["detection_accuracy"] == (3 + 5) / 12
    assert small().mean_detection_accuracy("mia") == pytest.approx((5 / 8 + 6 / 8) / 2)


def test_the_frame_has_a_row_for_each_column_model_and_attack():
    frame = small().frame()
    found = list(zip(frame.column, frame.model, frame.attack, strict=True))
    both = [(m, a) for m in ("target", "mia") for a in ("clean", "fgsm", "gma", "pooled")]
    expected = [("paper", m, a) for m, a in both]
    assert found == expected + [("adaptive", "mia", a) for a in ("margin", "votes", "pooled")]
    clean = frame.iloc[0]
    assert (clean.n, clean.n_clean, clean.clean_accuracy) == (0, 4, 0.75)
    assert math.isnan(clean.accuracy)


def test_adaptive_rows_use_the_clean_versions_of_the_images_that_were_attacked():
    row = small().metrics("mia", "margin", "adaptive")
    assert (row["n"], row["n_clean"]) == (2, 2)
    assert row["clean_accuracy"] == 1.0
    assert row["robust_accuracy"] == 0.5
    assert row["detection_accuracy"] == 3 / 4  # images 0 and 1, clean and attacked
    assert row["accuracy"] == 3 / 4
    assert math.isnan(row["auroc"])  # nobody attacked the score
    assert math.isnan(row["tpr_at_1_fpr"])


def test_a_report_can_be_told_which_models_reject(tmp_path):
    outcomes = [
        Outcome("plain", "adaptive", "pgd", [0, 1], [2, 1]),  # a stray label that means nothing there
        Outcome("guarded", "adaptive", "pgd", [0, 1], [0, 1]),  # rejects nothing here
    ]
    told = Report(outcomes, classes=2, reject=2, rejecting=["guarded"])
    assert (told.rejects("plain"), told.rejects("guarded")) == (None, 2)
    assert told.metrics("plain", "pgd", "adaptive")["not_fooled"] == 0.5
    assert math.isnan(told.metrics("plain", "pgd", "adaptive")["robust_accuracy"])  # no clean answers are known
    assert told.metrics("guarded", "pgd", "adaptive")["detected"] == 0.0
    guessed = Report(outcomes, classes=2, reject=2)
    assert (guessed.rejects("plain"), guessed.rejects("guarded")) == (2, None)
    told.save(tmp_path)
    assert Report.load(tmp_path) == told != guessed
    with pytest.raises(ValueError, match="Did you mean 'plain'"):
        Report(outcomes, classes=2, reject=2, rejecting=["plan"])


def test_robust_accuracy_wants_the_clean_image_answered_rightly():
    # right and robust, right and fooled, rejected when clean and when attacked, wrong when clean and then rejected
    outcomes = [
        Outcome("m", "adaptive", "clean", [0, 0, 1, 1], [0, 0, 3, 2]),
        Outcome("m", "adaptive", "pgd", [0, 0, 1, 1], [3, 1, 3, 3]),
        Outcome("m", "adaptive", "fgsm", [1, 0], [3, 0], index=[2, 0]),
    ]
    report = Report(outcomes, classes=3, reject=3)
    row = report.metrics("m", "pgd", "adaptive")
    assert (row["clean_accuracy"], row["not_fooled"], row["robust_accuracy"]) == (0.5, 0.75, 0.25)
    assert (row["robust_accuracy_low"], row["robust_accuracy_high"]) == wilson(1, 4)
    both = report.worst_case("m")
    assert (both["n_images"], both["clean_accuracy"], both["not_fooled"], both["robust_accuracy"]) == (2, 0.5, 1, 0.5)
    for text in (report.table(), report.html({})):
        assert "not fooled" in text
        assert "robust accuracy" in text


def test_robust_accuracy_of_a_model_that_does_not_reject_is_what_was_not_fooled():
    # attacks leave images alone that are wrong from the start: they count as broken either way
    outcomes = [
        Outcome("m", "adaptive", "clean", [0, 0, 1], [0, 0, 2]),
        Outcome("m", "adaptive", "pgd", [0, 0, 1], [0, 1, 2]),
    ]
    row = Report(outcomes, classes=3).metrics("m", "pgd", "adaptive")
    assert row["robust_accuracy"] == row["not_fooled"] == pytest.approx(1 / 3)


labels = st.integers(0, 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), labels, labels, labels, st.booleans()), min_size=1, max_size=12))
def test_robust_accuracy_is_never_above_clean_accuracy_nor_above_what_was_not_fooled(images):
    y, clean, pgd, fgsm, met = (np.array(column) for column in zip(*images, strict=True))
    index = np.arange(len(y))
    outcomes = [Outcome("m", "adaptive", "clean", y, clean), Outcome("m", "adaptive", "pgd", y, pgd)]
    if met.any():  # an attack that meets fewer images, each at two radii
        rows = np.repeat(index[met], 2)
        said = np.where(np.arange(len(rows)) % 2, fgsm[rows], pgd[rows])
        radius = np.resize([0.1, 0.2], len(rows))
        outcomes.append(Outcome("m", "adaptive", "fgsm", y[rows], said, radius=radius, index=rows))
    report = Report(outcomes, classes=3, reject=3)
    rows = [report.metrics("m", name, "adaptive") for name in (*report.attacks("adaptive"), "pooled")]
    for row in [*rows, report.worst_case("m"), *report.by_radius("pgd", "adaptive").to_dict("records")]:
        assert row["robust_accuracy"] <= row["not_fooled"]
        assert row["robust_accuracy"] <= row.get("clean_accuracy", 1.0)


def test_distances_are_those_of_the_images_that_an_attack_broke():
    y = [0, 0, 0, 0]
    outcomes = [
        Outcome("m", "adaptive", "clean", y, [0, 0, 0, 1]),
        Outcome("m", "adaptive", "l2", y, [1, 1, 0, 1], distance=[1.0, 2.0, 9.0, 0.0], norm="L2"),
        Outcome("m", "adaptive", "linf", y, [0, 0, 0, 1], distance=[0.1, 0.1, 0.1, 0.0], norm="Linf", radius=[0.1] * 4),
    ]
    report = Report(outcomes, classes=2)
    l2, linf, all_of_them = (report.metrics("m", name, "adaptive") for name in ("l2", "linf", "pooled"))
    assert (l2["norm"], l2["median_distance"]) == ("L2", 1.5)  # not the one that stands, nor the one wrong before
    assert linf["norm"] == "Linf"
    assert math.isnan(linf["median_distance"])  # it broke none
    assert (linf["radius_min"], linf["radius_max"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert all_of_them["norm"] is None
    assert math.isnan(all_of_them["median_distance"])  # norms are not mixed
    assert "1.5 L2" in report.table()
    assert "1.5 L2" in report.html({})


@pytest.mark.parametrize(
    ("access", "text"),
    [
        (("gradients", "gradients"), "knows the whole defense and attacks it end to end"),
        (("scores", "scores"), "sees the scores of the whole defense, not its gradients"),
        (("labels", "labels"), "sees the labels of the whole defense and nothing else"),
        (("none", "none"), "sees nothing of the defense"),
        (("gradients", "scores"), "b without its gradients"),
    ],
)
def test_the_adaptive_column_says_what_its_attackers_saw(access, text):
    outcomes = [Outcome("m", "adaptive", "clean", [0], [0])]
    outcomes += [Outcome("m", "adaptive", name, [0], [0], access=a) for name, a in zip("ab", access, strict=True)]
    report = Report(outcomes, classes=2)
    for shown in (report.table(), report.html({})):
        shown = " ".join(shown.split())
        assert text in shown
        assert ("knows the whole defense and" in shown) == (access == ("gradients", "gradients"))


def test_a_table_of_radii_is_measured_once_and_nobody_can_change_the_one_that_is_kept(monkeypatch):
    report, calls = small(), []
    real = results.measure
    monkeypatch.setattr(results, "measure", lambda *a: calls.append(1) or real(*a))
    frame = report.by_radius("gma")
    frame["n"] = -1
    measured = len(calls)
    assert (report.by_radius("gma")["n"] > 0).all()
    assert 0 < measured == len(calls)


def test_by_radius_splits_the_attack():
    frame = small().by_radius("gma")
    assert list(zip(frame.model, frame.radius, frame.n, frame.not_fooled, strict=True)) == [
        ("target", 0.1, 2, 1.0),
        ("target", 0.3, 2, 0.0),
        ("mia", 0.1, 2, 1.0),
        ("mia", 0.3, 2, 0.5),
    ]
    assert frame.detected.tolist()[2:] == [1.0, 0.5]
    assert len(small().by_radius("fgsm")) == 0


def test_worst_case_breaks_an_image_if_any_attack_does():
    found = small().worst_case("mia", "paper")
    assert (found["n_images"], found["attacks"], found["not_fooled"]) == (4, 2, 0.5)  # images 2 (fgsm) and 3 (gma)
    assert (found["not_fooled_low"], found["not_fooled_high"]) == wilson(2, 4)
    found = small().worst_case("mia", "adaptive")
    assert (found["n_images"], found["robust_accuracy"]) == (1, 0.0)  # only image 1 met both, and "votes" broke it
    with pytest.raises(ValueError, match="must have attacks on the model 'target'"):
        small().worst_case("target", "adaptive")


def test_worst_case_counts_an_image_at_several_radii_once():
    o = Outcome("m", "adaptive", "gma", [0, 0, 1, 1], [0, 1, 1, 1], radius=[1, 2, 1, 2], index=[0, 0, 1, 1])
    found = Report([Outcome("m", "adaptive", "clean", [0, 1], [0, 1]), o], classes=2).worst_case("m")
    assert (found["n_images"], found["robust_accuracy"]) == (2, 0.5)


def test_compare_pairs_by_image_whatever_the_order():
    outcomes = [
        Outcome("mia", "paper", "fgsm", [0, 1, 2], [3, 3, 0], score=[1, 1, 0], index=[5, 6, 7]),
        Outcome("target", "paper", "fgsm", [2, 0, 1], [2, 1, 0], index=[7, 5, 9]),
    ]
    found = Report(outcomes, classes=K, reject=K, main="mia").compare("target", attack="fgsm")
    assert found == {"n": 2, "a_only": 1, "b_only": 1, "p_value": 1.0, "difference": 0.0}


def test_compare_takes_the_model_that_the_report_is_about():
    outcomes = [Outcome(m, "adaptive", "pgd", [0, 1], p) for m, p in (("plain", [1, 1]), ("trades", [0, 1]))]
    found = Report(outcomes, classes=2).compare("plain", attack="pgd", column="adaptive")
    assert (found["a_only"], found["b_only"]) == (1, 0)


def test_compare_on_clean_images_does_not_count_a_rejection_as_right():
    found = small().compare("target", attack="clean")
    assert (found["n"], found["a_only"], found["b_only"]) == (4, 1, 1)


def test_compare_refuses_images_it_cannot_pair():
    twice = Outcome("a", "paper", "fgsm", [0, 0], [0, 0], index=[1, 1])
    once = Outcome("b", "paper", "fgsm", [1], [0], index=[1])
    with pytest.raises(ValueError, match="twice for 'a'"):
        Report([twice, once], classes=2).compare("b", "a", "fgsm")
    once_more = Outcome("a", "paper", "fgsm", [0], [0], index=[1])
    with pytest.raises(ValueError, match="different true classes"):
        Report([once_more, once], classes=2).compare("b", "a", "fgsm")


def test_a_wrong_name_is_answered_with_the_right_one():
    with pytest.raises(ValueError, match="Did you mean 'fgsm'"):
        small().metrics("mia", "fgms")
    with pytest.raises(ValueError, match="`model` must be one of target, mia"):
        small().metrics("vgg", "fgsm")


# For readers


def test_short_tables_leave_out_what_the_recipe_hides():
    outcomes = [Outcome(m, "paper", "fgsm", [0], [0]) for m in ("target", "voter", "mia")]
    report = Report(outcomes, classes=2, main="target", hidden=["voter"])
    assert report.main == "target"
    assert report.shown == ["target", "mia"]
    assert "voter" not in report.table()
    assert "voter" in report.html({})
    assert Report(outcomes, classes=2).main == "mia"  # no name means anything: the last one
    assert Report(outcomes, classes=2).shown == ["target", "voter", "mia"]
    with pytest.raises(ValueError, match="must not hold the main model"):
        Report(outcomes, classes=2, hidden=["mia"])
    with pytest.raises(ValueError, match="`hidden` must be one of"):
        Report(outcomes, classes=2, hidden=["voters"])


def test_a_section_is_shown_and_kept_with_its_table_and_figure(tmp_path):
    drawn = plots.learning_curves({"m": {"loss": [1.0, 0.5]}}, "loss")
    rows = [{"detector": "<b>", "threshold": 0.25, "found": 3}, {"detector": "b", "threshold": None, "found": 4}]
    section = Section("thresholds", "Thresholds", "One for each detector.", rows, drawn)
    report = small(sections=[section])
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded == report
    for text in (report.table(), loaded.table()):
        assert re.search(r"Thresholds. One for each detector.", text)
        assert re.search(r"<b>\s+0.25\s+3\n", text)
    assert (tmp_path / "figures" / "section_thresholds.png").read_bytes() == loaded.sections[0].png()
    page = loaded.html({})
    assert page.count("data:image/png;base64,") == 1
    assert "&lt;b&gt;</td><td>0.25</td><td>3</td>" in page
    small().save(tmp_path)
    assert not (tmp_path / "figures" / "section_thresholds.png").exists()
    with pytest.raises(ValueError, match="different names"):
        small(sections=[section, section])
    with pytest.raises(ValueError, match="the same keys"):
        Section("a", "A", rows=[{"x": 1}, {"y": 1}])


def test_the_table_shows_both_columns_side_by_side():
    text = small(flags=["too few images"]).table()
    assert re.search(r"as the paper did it\s+adaptive", text)
    assert re.search(r"fooled, each attack\s+25\.0\s+50\.0", text)
    assert re.search(r"not fooled, all attacks\s+50\.0 \[15\.0, 85\.0\]\s+0\.0", text)
    assert re.search(r"robust accuracy, all attacks\s+-\s+0\.0 \[", text)
    assert "[30.1, 95.4]" in text  # 3 of 4
    assert "Flag: too few images" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 110
    assert "target" in text
    assert "target" not in small().table(["mia"])
    assert "robust" not in text[text.index("Attacked, true class") : text.index("Models (adaptive)")]


def test_a_report_without_reject_class_has_a_table_and_a_page():
    outcomes = [
        Outcome("plain", "paper", "clean", [0, 1], [0, 1]),
        Outcome("plain", "adaptive", "pgd", [0, 1], [0, 0]),
    ]
    report = Report(outcomes, classes=2)
    text = report.table()
    assert report.main == "plain"
    assert "detected" not in text
    assert "50.0 [9.5, 90.5]" in text
    assert "not measured" in text
    page = report.html()
    assert "one label that means" not in page
    assert "macro F1" not in page


def test_tabular_data_with_clean_outcomes_only_still_reports(tmp_path):
    report = Report([Outcome("m", "paper", "clean", [0, 1], [0, 1])], classes=2, dataset="tabular")
    assert "not measured" in report.table()
    files = report.save(tmp_path)
    assert not any(name.startswith("figures/") for name in files)
    assert Report.load(tmp_path) == report


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (8, 8)])
def test_the_example_grid_takes_images_of_any_kind(shape):
    x = np.zeros((2, *shape))
    examples = {"images": x, "attacks": {"fgsm": x + 0.5}, "labels": [0, 1], "predicted": {"fgsm": [1, 2]}}
    figure = plots.example_grid(examples, ["a", "b"])
    labels = [ax.get_xlabel() for ax in figure.axes]
    assert labels[:2] == ["a", "b"]
    assert labels[2].startswith("→ b\nL∞ 0.5, L2")
    assert labels[3].startswith("→ adversarial\n")


def test_examples_are_shown_in_the_range_of_the_data():
    x = np.array([0.0, 51.0, 255.0, 102.0]).reshape(1, 2, 2, 1)
    examples = {"images": x, "attacks": {"fgsm": x}, "labels": [0], "predicted": {"fgsm": [1]}}
    report = small(examples=examples, bounds=(0, 255))
    figure, _ = plots.draw_all(report)["examples"]
    for ax in figure.axes:
        np.testing.assert_allclose(ax.images[0].get_array().ravel(), [0, 0.2, 1, 0.4])


def test_figures_say_what_they_show():
    report = small()
    drawn = plots.draw_all(report)
    names = {"paper_vs_adaptive", "before_after", "success_rates", "detection_roc", "radius_paper"}
    assert drawn.keys() == names <= plots.NAMES
    for figure, caption in drawn.values():
        assert figure.get_suptitle().startswith("toy: ")
        assert caption.endswith(".")
    heights = [b.get_height() for b in drawn["paper_vs_adaptive"][0].axes[0].patches]
    assert heights == [0.5, 0.75, 0.25, 0.0, 0.25, 0.25]  # detected, true class, fooled; fgsm and gma each


# On disk


def test_a_loaded_report_is_the_saved_one(full, saved):
    folder, files = saved
    loaded = Report.load(folder)
    assert loaded == full
    assert loaded.results() == full.results()
    assert (loaded.phases, loaded.versions, loaded.machine) == (full.phases, full.versions, full.machine)
    assert loaded.flags == ["weak"]
    assert loaded.settings == {"eps": 8 / 255, "cycles": [0.15, 0.25], "bad": None}
    np.testing.assert_array_equal(loaded.examples["attacks"]["fgsm"], full.examples["attacks"]["fgsm"])
    assert loaded.examples["predicted"]["fgsm"].tolist() == [1, 3, 0]
    pd.testing.assert_frame_equal(loaded.frame(), full.frame())
    assert all(path.is_file() for path in files.values())
    assert {
        "report.json",
        "report.csv",
        "report.html",
        "outcomes.npz",
        "figures/examples.png",
    } <= files.keys()
    assert not list(folder.rglob("*.tmp"))


def test_one_changed_label_makes_another_report():
    other = small()
    other.outcomes[1] = Outcome("target", "paper", "fgsm", Y, [1, 1, 1, 1], distance=[1, 2, 3, 4])
    assert other.metrics("target", "fgsm")["not_fooled"] == small().metrics("target", "fgsm")["not_fooled"]
    assert other != small()
    assert other.results() != small().results()


def test_json_has_null_where_a_number_is_unknown(saved):
    text = (saved[0] / "report.json").read_text()
    assert "NaN" not in text
    record = json.loads(text)
    assert record["schema"] == 2
    assert record["metrics"][0]["accuracy"] is None
    assert record["phases"] == {"train": 1.5}
    head = {"model": "target", "column": "paper", "norm": None, "access": "gradients", "n": 4}
    assert record["outcomes"]["list"][0] == head | {"attack": "clean", "radii": None}
    assert record["outcomes"]["list"][2] == head | {"attack": "gma", "norm": "Linf", "radii": [0.1, 0.3]}


def test_the_csv_is_the_frame(full, saved):
    pd.testing.assert_frame_equal(pd.read_csv(saved[0] / "report.csv"), full.frame(), check_dtype=False)


def test_results_are_free_of_times_versions_and_machine():
    slow = small(phases={"train": 99.0}, versions={"keras": "0"}, machine={"cpus": 1})
    assert slow.results() == small().results()
    assert not {"phases", "versions", "machine", "created"} & slow.results().keys()
    assert small(seed=4).results() != small().results()
    assert json.loads(json.dumps(slow.results())) == slow.results()


def test_the_page_needs_no_network_and_escapes_names(saved):
    page = (saved[0] / "report.html").read_text()
    assert all(uri.startswith("data:image/png;base64,") for uri in re.findall(r'src="([^"]*)"', page))
    assert not re.search(r"<(script|link|iframe)|@import|url\(|https?://", page)
    assert "&lt;b&gt;note&lt;/b&gt;" in page
    evil = small(class_names=["<i>", "b", "c"], dataset="<script>x</script>", settings={"k": "<img src=x>"}).html({})
    assert "<script" not in evil
    assert "<img" not in evil


def test_loading_checks_that_the_files_belong_together(full, tmp_path):
    with pytest.raises(ValueError, match=r"must hold a report.json"):
        Report.load(tmp_path)
    small().save(tmp_path)
    record = json.loads((tmp_path / "report.json").read_text())
    (tmp_path / "outcomes.npz").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"outcomes.npz that belongs"):
        Report.load(tmp_path)
    (tmp_path / "report.json").write_text(json.dumps(record | {"schema": 1}))
    with pytest.raises(ValueError, match="`schema` must be 2"):
        Report.load(tmp_path)


def test_the_package_imports_without_a_deep_learning_framework():
    code = "import sys, kerasdef.evaluation; print({'keras', 'tensorflow', 'jax'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
