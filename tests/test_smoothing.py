"""Randomized smoothing: on a linear classifier everything is known, and a file of certificates goes on."""

import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops
from scipy import stats

import kerasdef
from kerasdef.checks import NOBODY
from kerasdef.defenses import HybridDefense, RejectClass, Smoothed, Voting
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.defenses.smoothing import image_seeds, largest_radius, lower_bound, p_values, radii
from kerasdef.evaluation import certified_accuracy, wilson
from kerasdef.recipes import certify as recipe
from kerasdef.reporting.certified import certified_figure
from kerasdef.runs.rows import Rows

SIGMA = 0.25
SIZE = 16
DIRECTION = np.random.default_rng(1).normal(size=SIZE)
DIRECTION /= np.linalg.norm(DIRECTION)


def linear(scale=5.0, bounds=None):
    """A classifier whose label is 1 where (x - 0.5) * DIRECTION is above 0: its distance is its certified radius."""
    first = [] if bounds is None else [keras.layers.Rescaling(1 / (bounds[1] - bounds[0]))]
    model = keras.Sequential([keras.Input((SIZE,)), *first, keras.layers.Dense(2)])
    kernel = np.stack([np.zeros(SIZE), scale * DIRECTION], axis=1)
    model.layers[-1].set_weights([kernel.astype("float32"), (-0.5 * kernel.sum(axis=0)).astype("float32")])
    return model


def at(distances):
    """Images at these signed distances from the boundary of `linear`, inside [0, 1]."""
    return (0.5 + np.asarray(distances)[:, None] * DIRECTION).astype("float32")


@pytest.fixture(scope="module")
def smoothed():
    return Smoothed(linear(), SIGMA)


# -- the numbers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "alpha"), [(100, 0.001), (1000, 0.05), (10, 0.3)])
def test_bounds_and_radii_are_those_of_scipy(n, alpha):
    hits = np.arange(n + 1)
    exact = [stats.binomtest(int(k), n, alternative="greater").proportion_ci(1 - alpha, "exact").low for k in hits]
    found = lower_bound(hits, n, alpha)
    np.testing.assert_allclose(found, exact, atol=1e-9)  # scipy solves for it to about 1e-12
    wanted = [SIGMA * stats.norm.ppf(p) if p > 0.5 else 0.0 for p in exact]
    np.testing.assert_allclose(radii(found, SIGMA), wanted, atol=1e-8)
    assert found[-1] == pytest.approx(alpha ** (1 / n))
    assert largest_radius(n, alpha, SIGMA) == pytest.approx(max(0.0, SIGMA * stats.norm.ppf(alpha ** (1 / n))))


def test_the_test_of_abstention_is_scipys_binomial_test():
    first = np.array([0, 5, 50, 61, 99, 100, 40])
    second = np.array([0, 5, 50, 39, 1, 0, 2])
    wanted = [stats.binomtest(int(a), int(a + b)).pvalue if a + b else 1.0 for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(p_values(first, second), wanted, rtol=1e-12)


def test_what_is_returned_fits_together(smoothed):
    x = at(np.linspace(-0.5, 0.5, 21))
    found = smoothed.certify(x, n=200, n0=20, progress=False)
    assert found.counts.shape == (21, 2)
    np.testing.assert_array_equal(found.counts.sum(axis=1), 200)
    bound = lower_bound(found.counts[np.arange(21), found.guess], 200, 0.001)
    np.testing.assert_array_equal(found.bound, bound)
    np.testing.assert_array_equal(found.radius, radii(bound, SIGMA))
    np.testing.assert_array_equal(found.label, np.where(bound > 0.5, found.guess, NOBODY))
    said = smoothed.predict(x, n=50, progress=False)
    np.testing.assert_array_equal(said.counts.sum(axis=1), 50)
    np.testing.assert_array_equal(said.label, np.where(said.p_value <= 0.001, said.counts.argmax(axis=1), NOBODY))


# -- a linear classifier ------------------------------------------------------------------------------------------


def test_noisy_copies_get_a_label_as_often_as_the_normal_distribution_says(smoothed):
    d = np.linspace(-0.5, 0.5, 11)
    n = 20_000
    share = smoothed.certify(at(d), n=n, progress=False).counts[:, 1] / n
    p = stats.norm.cdf(d / SIGMA)
    assert np.all(np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / n) + 1e-6)  # 11 times 7e-6 of chance


def test_the_radius_is_close_to_the_distance_where_there_are_many_draws(smoothed):
    d = np.array([0.1, 0.2, 0.3, 0.4])
    found = smoothed.certify(at(d), n=20_000, progress=False)
    np.testing.assert_array_equal(found.label, 1)
    assert np.all(found.radius < d)
    assert np.all(found.radius > 0.9 * d)


def test_a_radius_is_beyond_the_distance_no_more_often_than_alpha_allows():
    m, alpha = 500, 0.05
    rng = np.random.default_rng(0)
    d = rng.uniform(-0.5, 0.5, m)
    away = rng.normal(size=(m, SIZE))
    away -= np.outer(away @ DIRECTION, DIRECTION)  # along the boundary nothing changes
    x = at(d) + 0.02 * away.astype("float32")
    found = Smoothed(linear(), SIGMA).certify(x, n=100, n0=20, alpha=alpha, progress=False)
    wrong = (found.label != NOBODY) & ((found.label != (d > 0)) | (found.radius > np.abs(d)))
    assert wrong.sum() <= stats.binom.ppf(1 - 1e-4, m, alpha)
    assert wrong.sum() > 0  # otherwise the bound would not be as tight as it may be
    assert np.mean(found.label == (d > 0)) > 0.7


def test_it_abstains_at_the_boundary_and_nowhere_far_from_it(smoothed):
    x = at([1e-3, -1e-3, 0.5, -0.5])
    found = smoothed.certify(x, n=1000, progress=False)
    assert found.label.tolist() == [NOBODY, NOBODY, 1, 0]
    np.testing.assert_array_equal(found.radius[:2], 0.0)
    assert smoothed.predict(x, progress=False).label.tolist() == [NOBODY, NOBODY, 1, 0]


# -- what an answer does not depend on ----------------------------------------------------------------------------


def test_an_answer_depends_neither_on_the_batch_size_nor_on_the_other_images(smoothed):
    x = at(np.linspace(-0.3, 0.3, 9))
    whole = smoothed.certify(x, n=150, n0=30, progress=False)
    order = np.random.default_rng(0).permutation(9)
    for batch_size, index in ((1, np.arange(9)), (700, order), (100, np.array([4])), (5000, order[:5])):
        part = smoothed.certify(x[index], n=150, n0=30, batch_size=batch_size, progress=False)
        for field in dataclasses.fields(part):
            np.testing.assert_array_equal(getattr(part, field.name), getattr(whole, field.name)[index])
    other = smoothed.certify(x, n=150, n0=30, seed=1, progress=False)
    assert not np.array_equal(other.counts, whole.counts)


def test_every_image_has_noise_of_its_own():
    x = np.random.default_rng(0).uniform(size=(1000, SIZE)).astype("float32")
    seeds = image_seeds(x, 0)
    assert len(np.unique(seeds)) == 1000
    np.testing.assert_array_equal(image_seeds(x[::-1], 0), seeds[::-1])
    assert not np.array_equal(image_seeds(x, 1), seeds)


def test_uint8_images_and_data_of_another_range_are_certified_in_their_units():
    d = np.array([-0.4, -0.3, 0.3, 0.4])  # far enough that no noise turns the label
    pixels = np.round(255 * at(d)).astype("uint8")
    model = linear(bounds=(0, 255))
    in_pixels = Smoothed(model, 255 * SIGMA).certify(pixels, n=200, progress=False)
    in_unit = Smoothed(model, SIGMA, bounds=(0.0, 1.0)).certify(pixels, n=200, progress=False)
    np.testing.assert_array_equal(in_pixels.label, in_unit.label)
    # the images have other bytes in other units, and so other noise: the same within the chance of 200 draws
    share = np.abs(in_pixels.counts - in_unit.counts) / 200
    assert share.max() < 0.25
    assert in_pixels.radius.max() > 20
    np.testing.assert_allclose(in_pixels.radius / 255, in_unit.radius, atol=0.15)


# -- what may be smoothed -----------------------------------------------------------------------------------------


def test_a_rejected_copy_counts_for_the_label_that_rejects():
    three = keras.Sequential([keras.Input((SIZE,)), keras.layers.Dense(3)])
    kernel = np.stack([np.zeros(SIZE), -5 * DIRECTION, 5 * DIRECTION], axis=1)
    three.layers[0].set_weights([kernel.astype("float32"), (-0.5 * kernel.sum(axis=0)).astype("float32") - [9, 0, 0]])
    smoothed = Smoothed(RejectClass(three), SIGMA)
    found = smoothed.certify(at([0.4, -0.4]), n=500, progress=False)
    assert found.counts.shape == (2, 3)
    assert found.label.tolist() == [2, 1]  # 2 stands for "adversarial" here
    assert np.all(found.radius > 0.3)


def test_of_a_vote_the_decision_is_smoothed():
    members = [linear(), linear(-5.0), linear(2.0)]  # two against one
    found = Smoothed(Voting(members), SIGMA).certify(at([0.3, -0.3]), n=500, progress=False)
    alone = Smoothed(linear(), SIGMA).certify(at([0.3, -0.3]), n=500, progress=False)
    np.testing.assert_array_equal(found.counts[:, :2], alone.counts)


def test_of_a_runtime_defense_the_decision_is_smoothed_flags_and_all(digits, digits_model):
    x, y, x_test, _ = digits
    detector = LogitDeviation(rate=0.2).fit([digits_model], x[:400], y[:400], valid=x[400:800])
    defense = HybridDefense([digits_model], detector=detector)
    sigma, n = 0.1, 200
    found = Smoothed(defense, sigma).certify(x_test[:4], n=n, n0=10, progress=False).counts
    noise = np.random.default_rng(0).normal(size=(4, n, 8, 8, 1)).astype("float32")
    noisy = (x_test[:4, None] + sigma * noise).reshape(-1, 8, 8, 1)
    label = ops.convert_to_numpy(defense.answer(defense.surface()[0](ops.convert_to_tensor(noisy)))["label"])
    wanted = np.stack([np.bincount(row, minlength=11) for row in label.reshape(4, n)])
    assert found.shape == (4, 11)
    assert wanted[:, 10].sum() > 0  # some are flagged
    assert np.abs(found - wanted).max() < 5 * np.sqrt(2 * n / 4)  # two samples of n draws each


def test_noise_is_not_clipped():
    inputs = keras.Input((SIZE,))
    beyond = ops.max(ops.abs(inputs - 0.5), axis=-1, keepdims=True) - 0.5  # above 0 outside of [0, 1]
    model = keras.Model(inputs, keras.layers.Activation("linear")(ops.concatenate([-beyond, beyond], axis=-1)))
    found = Smoothed(model, 1.0).certify(np.full((1, SIZE), 0.5, "float32"), n=100, progress=False)
    assert found.label.tolist() == [1]


def test_an_answer_that_is_not_finite_counts_for_no_label():
    inputs = keras.Input((SIZE,))
    z = ops.log(ops.sum((inputs - 0.5) * DIRECTION.astype("float32"), axis=-1, keepdims=True))  # NaN on one side
    model = keras.Model(inputs, keras.layers.Activation("linear")(ops.concatenate([z, z - 1.0], axis=-1)))
    found = Smoothed(model, SIGMA).certify(at([0.0, 0.3, -0.3]), n=500, progress=False)
    share = found.counts[:, 0] / 500
    np.testing.assert_allclose(share, stats.norm.cdf(np.array([0.0, 0.3, -0.3]) / SIGMA), atol=0.1)
    np.testing.assert_array_equal(found.counts[:, 1], 0)
    assert found.label.tolist() == [NOBODY, 0, NOBODY]


class Shaken(keras.layers.Layer):
    """Adds noise of its own in every call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(0)
        self.built = True

    def call(self, x):
        return x + 0.25 * keras.random.normal(ops.shape(x), seed=self.generator)


def test_a_random_model_draws_anew_for_each_copy():
    inner = linear()
    model = keras.Sequential([keras.Input((SIZE,)), Shaken(), inner.layers[-1]])
    d = np.array([0.1, 0.3])
    found = [Smoothed(model, SIGMA).certify(at(d), n=2000, batch_size=b, progress=False) for b in (100, 1000)]
    np.testing.assert_array_equal(found[0].counts, found[1].counts)
    p = stats.norm.cdf(d / np.hypot(SIGMA, 0.25))  # both noises together
    np.testing.assert_allclose(found[0].counts[:, 1] / 2000, p, atol=4.5 * np.sqrt(0.25 / 2000))


# -- bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0, 0.0, -0.1])
def test_sigma_must_be_above_0(sigma):
    with pytest.raises(ValueError, match=r"`sigma` must be a finite number above 0\. Received: sigma="):
        Smoothed(linear(), sigma)


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("certify", {"n": 9}, "`n` must be at least 10 for alpha=0.001"),
        ("certify", {"n": 0}, "`n` must be a positive integer"),
        ("certify", {"n0": 0}, "`n0` must be a positive integer"),
        ("certify", {"alpha": 1.0}, "`alpha` must be a share"),
        ("certify", {"seed": -1}, "`seed` must be an integer of at least 0"),
        ("certify", {"batch_size": 0}, "`batch_size` must be a positive integer"),
        ("predict", {"n": 10}, "`n` must be at least 11 for alpha=0.001"),
    ],
)
def test_numbers_that_allow_no_answer_are_refused(smoothed, method, options, said):
    with pytest.raises(ValueError, match=said):
        getattr(smoothed, method)(at([0.1]), **options)


def test_the_least_n_is_the_least_that_gives_an_answer(smoothed):
    x = at([0.5])
    assert smoothed.certify(x, n=10, progress=False).label.tolist() == [1]
    assert smoothed.predict(x, n=11, progress=False).label.tolist() == [1]


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (at([0.1]) * np.nan, "`x` must be finite"),
        (at([0.1]) + 2, "`x` must lie in the bounds"),
        (at([0.1])[:, :3], "`x` must hold samples of shape"),
        (np.empty((0, SIZE), "float32"), "`x` must be a non-empty array"),
    ],
)
def test_images_of_the_wrong_kind_are_refused(smoothed, x, said):
    with pytest.raises(ValueError, match=said):
        smoothed.certify(x)


# -- certified accuracy -------------------------------------------------------------------------------------------


def test_certified_accuracy_counts_right_labels_whose_radius_reaches():
    correct, radius = np.array([1, 1, 0, 1]), np.array([0.3, 0.5, 0.9, 0.0])
    found = certified_accuracy(correct, radius, [0.0, 0.3, 0.4, 0.6])
    assert found["certified_accuracy"].tolist() == [0.75, 0.5, 0.25, 0.0]
    assert [tuple(row) for row in found[["low", "high"]].to_numpy()] == [wilson(k, 4) for k in (3, 2, 1, 0)]
    figure = certified_figure({"a": (correct, radius), "b": (~correct.astype(bool), radius)}, title="t")
    line = figure.axes[0].lines[0]
    for r, share in ((0.1, 0.5), (0.4, 0.25), (0.95, 0.0)):  # at a radius the step that ends at or after it
        place = np.searchsorted(line.get_xdata(), r)
        if place < len(line.get_xdata()):
            assert line.get_ydata()[place] == share


@pytest.mark.parametrize(
    ("correct", "radius", "asked", "said"),
    [
        ([1, 2], [0.1, 0.1], [0.0], "`correct` must be booleans"),
        ([1, 0], [0.1], [0.0], "`radius` must be numbers of at least 0"),
        ([1, 0], [0.1, np.inf], [0.0], "`radius` must be numbers of at least 0"),
        ([1, 0], [0.1, 0.1], [-1.0], "`radii` must be numbers of at least 0"),
    ],
)
def test_certified_accuracy_refuses_what_does_not_fit(correct, radius, asked, said):
    with pytest.raises(ValueError, match=said):
        certified_accuracy(np.array(correct), np.array(radius), asked)


# -- rows in a file -----------------------------------------------------------------------------------------------

AB = {"a": int, "b": float}


def test_whole_rows_are_found_again_and_a_part_of_one_is_dropped(tmp_path):
    path = tmp_path / "t.tsv"
    rows = Rows(path, AB)
    assert rows.found == []
    rows.append([{"a": 1, "b": 0.1}, {"a": 2, "b": 1e-7}])
    whole = path.read_bytes()
    path.write_bytes(whole + b"3\t0.")
    again = Rows(path, AB)
    assert again.found == [{"a": 1, "b": 0.1}, {"a": 2, "b": 1e-7}]
    assert path.read_bytes() == whole
    path.write_bytes(b"a\t")  # killed while it wrote the head
    assert Rows(path, AB).found == []
    assert path.read_bytes() == b"a\tb\n"


def test_a_damaged_row_and_what_follows_are_made_again(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_bytes(b"a\tb\n1\t0.5\nx\t0.5\n3\t0.5\n")
    with pytest.warns(UserWarning, match="damaged in row 2"):
        assert Rows(path, AB).found == [{"a": 1, "b": 0.5}]
    assert path.read_bytes() == b"a\tb\n1\t0.5\n"
    with pytest.warns(UserWarning, match="damaged in row 1"):
        assert Rows(path, AB, fits=lambda place, row: row["a"] == place).found == []


@pytest.mark.parametrize("content", [b"something else", b"a\tc\n1\t2\n", b"\xff\n"])
def test_a_file_of_something_else_stays(tmp_path, content):
    path = tmp_path / "t.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="must be a table with the columns a, b"):
        Rows(path, AB)
    assert path.read_bytes() == content


# -- kerasdef certify ---------------------------------------------------------------------------------------------

FAST = {"draws": 100, "n0": 20, "n": 12, "progress": False}


def table(folder):
    return pd.read_csv(folder / "certificates.tsv", sep="\t")


@pytest.fixture
def by_few(monkeypatch):
    """Rows are written for every five images."""
    monkeypatch.setattr(recipe, "_AT_ONCE", 5 * 120)


@pytest.mark.usefixtures("by_few")
def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_rows(digits, digits_model, tmp_path, monkeypatch):
    data = digits[2:]
    whole = kerasdef.certify(digits_model, data, **FAST, out=tmp_path / "whole")
    certify, calls = Smoothed.certify, []

    def killed(self, x, **options):
        calls.append(len(x))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return certify(self, x, **options)

    monkeypatch.setattr(Smoothed, "certify", killed)
    with pytest.raises(KeyboardInterrupt):
        kerasdef.certify(digits_model, data, **FAST, out=tmp_path / "killed")
    path = tmp_path / "killed" / "certificates.tsv"
    path.write_bytes(path.read_bytes()[:-3])  # of the last of ten rows a part
    calls.clear()
    again = kerasdef.certify(digits_model, data, **FAST, out=tmp_path / "killed")
    assert calls == [3]
    found, wanted = (table(tmp_path / name) for name in ("killed", "whole"))
    assert list(found) == ["idx", "label", "predict", "radius", "correct", "time"]
    pd.testing.assert_frame_equal(found.drop(columns="time"), wanted.drop(columns="time"))
    pd.testing.assert_frame_equal(again.certified, whole.certified)
    assert again.report == whole.report


def test_the_rows_are_those_of_certify_and_the_report_says_what_they_say(digits, digits_model, tmp_path):
    x, y = digits[2:]
    run = kerasdef.certify(digits_model, (x, y), **FAST, out=tmp_path / "run")
    wanted = Smoothed(digits_model, 0.25).certify(x[:12], n=100, n0=20, progress=False)
    rows = table(tmp_path / "run")
    np.testing.assert_array_equal(rows["idx"], np.arange(12))
    np.testing.assert_array_equal(rows["label"], y[:12])
    np.testing.assert_array_equal(rows["predict"], wanted.label)
    np.testing.assert_array_equal(rows["radius"], wanted.radius)
    np.testing.assert_array_equal(rows["correct"], wanted.label == y[:12])
    assert run.accuracy == np.mean(wanted.label == y[:12])
    assert run.abstained == np.mean(wanted.label == NOBODY)
    for row in run.certified.to_dict("records"):
        share = np.mean((wanted.label == y[:12]) & (wanted.radius >= row["radius"]))
        assert row["certified_accuracy"] == pytest.approx(share)
    assert run.certified["radius"].tolist() == [0.0, 0.125, 0.25, 0.375]  # the largest is 0.373 for 100 draws
    report = kerasdef.Report.load(tmp_path / "run")
    assert report == run.report
    assert (tmp_path / "run" / "figures" / "section_certified.png").is_file()
    assert "certified accuracy" in run.text()


def test_more_images_of_the_same_are_certified_later_and_other_settings_are_refused(digits, digits_model, tmp_path):
    data, folder = digits[2:], tmp_path / "run"
    kerasdef.certify(digits_model, data, **FAST, out=folder)
    first = (folder / "certificates.tsv").read_bytes()
    assert len(kerasdef.certify(digits_model, data, **FAST | {"n": 15}, out=folder).table) == 15
    assert (folder / "certificates.tsv").read_bytes().startswith(first)
    assert len(kerasdef.certify(digits_model, data, **FAST | {"n": 5}, out=folder).table) == 5
    kept = (folder / "certificates.tsv").read_bytes()
    for change in ({"sigma": 0.5}, {"draws": 200}, {"seed": 1}, {"alpha": 0.01}):
        with pytest.raises(ValueError, match="`out` must be a new folder, or one of a run with the same settings"):
            kerasdef.certify(digits_model, data, **FAST | change, out=folder)
    with pytest.raises(ValueError, match=r"differs in .*data"):
        kerasdef.certify(digits_model, (data[0][::-1], data[1][::-1]), **FAST, out=folder)
    assert (folder / "certificates.tsv").read_bytes() == kept


def test_a_folder_of_something_else_is_refused(digits, digits_model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="one of an earlier certification"):
        kerasdef.certify(digits_model, digits[2:], **FAST, out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"draws": 9}, "`draws` must be at least 10 for alpha=0.001"),
        ({"n": 10**6}, "`n` must be at most the number of test images"),
        ({"sigma": 0.0}, "`sigma` must be a finite number above 0"),
        ({"alpha": 0.0}, "`alpha` must be a share"),
    ],
)
def test_settings_that_give_nothing_are_refused(digits, digits_model, change, said):
    with pytest.raises(ValueError, match=said):
        kerasdef.certify(digits_model, digits[2:], **FAST | change)


def test_the_command_certifies_a_file_and_says_where_its_rows_are(digits_model, tmp_path, command, refused):
    digits_model.save(tmp_path / "model.keras")
    words = ["certify", tmp_path / "model.keras", "--sigma", "0.25", "--n", "10", "--draws", "50", "--n0", "10"]
    status, out, _ = command(*words, "--out", tmp_path / "run")
    assert status == 0
    assert "certified accuracy" in out
    assert str(tmp_path / "run" / "certificates.tsv") in out
    assert len(table(tmp_path / "run")) == 10
    assert "`draws` must be at least 10" in refused(*words[:-3], "5")


@pytest.mark.slow
def test_an_exported_file_that_gives_outputs_only_is_refused(digits, digits_model, tmp_path):
    from kerasdef.models.export import export

    export(digits_model, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"`model` must be a Keras model, such as the \.keras file"):
        kerasdef.certify(tmp_path / "saved", digits[2:], **FAST)
