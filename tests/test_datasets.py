"""Data sets: the arrays are what the files hold, and no split mixes what belongs together."""

import functools
import gzip
import hashlib
import http.server
import io
import os
import pickle
import re
import subprocess
import sys
import tarfile
import threading
import urllib.error
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from kerasdef import datasets
from kerasdef.datasets import DATASETS, Dataset, DatasetNotFound, as_dataset, load, readers, sources

IN_CI = ("mnist", "fashion_mnist")  # what CI provides; there a missing set is a failure, not a skip


def real(name):
    try:
        return load(name, download=False)
    except DatasetNotFound as error:
        if os.environ.get("CI") and name in IN_CI:
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without data: empty folders for KERASDEF_DATA, ./data and Keras' cache."""
    for name in ("data", "here", "keras"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("KERASDEF_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def numbered(n, classes=3, start=0):
    """Samples whose two values tell which they are, with unequal classes."""
    x = np.stack([np.arange(start, start + n) / 10000, np.zeros(n)], axis=1).astype("float32")
    return x, np.arange(n) % (classes + 1) % classes


def numbers(x):
    return np.rint(x[:, 0] * 10000).astype(int)


def sample(**changes):
    x, y = numbered(200)
    fields = {"name": "sample", "x_train": x, "y_train": y, "x_valid": x[:0], "y_valid": y[:0]}
    x, y = numbered(80, start=200)
    return Dataset(**{**fields, "x_test": x, "y_test": y, **changes})


def tracked(per_track=10, tracks=40):
    """40 tracks of 10 frames in 4 classes, and 100 test images without tracks."""
    groups = np.repeat(np.arange(tracks), per_track)
    x, _ = numbered(len(groups))
    x_test, _ = numbered(100, start=len(groups))
    return sample(x_train=x, y_train=groups % 4, x_test=x_test, y_test=np.arange(100) % 4, groups_train=groups)


def save(path, **changes):
    images = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype="uint8")
    labels = (np.arange(40) // 10 % 2).astype("uint8")
    arrays = {"x_train": images, "y_train": labels, "x_test": images[:12], "y_test": labels[:12], **changes}
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


# arrays


def test_uint8_is_divided_by_255_exactly_also_when_no_pixel_reaches_255():
    x = np.arange(250, dtype="uint8").reshape(10, 5, 5, 1)
    y = np.arange(10) % 2
    data = Dataset.from_arrays(x, y, x, y)
    assert data.x_train.dtype == np.float32
    np.testing.assert_array_equal(data.x_train, x.astype("float32") / np.float32(255))
    assert data.x_train.max() == np.float32(249) / np.float32(255)


def test_gray_images_get_a_channel_axis_and_rows_stay_rows():
    x, y = np.zeros((6, 28, 28)), np.arange(6) % 2
    assert Dataset.from_arrays(x, y, x, y).input_shape == (28, 28, 1)
    assert sample().input_shape == (2,)


def test_float32_arrays_are_not_copied():
    x, y = numbered(20)
    assert np.shares_memory(Dataset.from_arrays(x, y, x, y).x_train, x)


def test_sizes_and_repr_tell_what_is_inside():
    data = sample()
    assert (data.n_train, data.n_valid, data.n_test, data.classes) == (200, 0, 80, 3)
    assert repr(data) == (
        "Dataset(sample: 200 train, 0 valid, 80 test, shape (2,), 3 classes, bounds [0, 1], from arrays)"
    )
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": np.zeros(199, int)}, "`y_train` must have one label for each of the 200"),
        ({"y_train": np.zeros(200, int)}, "`y_train` must hold at least two classes"),
        ({"y_test": np.full(80, -1)}, "`y_test` must be at least 0"),
        ({"class_names": ("a", "b")}, "`y_train` must be at least 0 and below 2"),
        ({"class_names": ()}, "`y_train` must be at least 0 and below 0"),
        ({"x_test": np.zeros((80, 3), "float32")}, "`x_test` must hold samples of shape"),
        ({"x_train": np.full((200, 2), np.nan)}, "`x_train` must be finite"),
        ({"x_train": np.full((200, 2), 255.0)}, "`x_train` must lie in the bounds"),
        ({"x_test": np.zeros((0, 2))}, "`x_test` must be a non-empty array"),
        ({"x_train": np.zeros((200, 8, 0, 1))}, "`x_train` must be a non-empty array"),
        ({"x_valid": np.zeros((5, 2), "float32")}, "`y_valid` must have one label for each of the 5"),
        ({"bounds": (1, 0)}, "`bounds` must be a pair"),
        ({"groups_train": np.zeros(3, int)}, "`groups_train` must have one label for each of the 200"),
    ],
)
def test_invalid_arrays_are_named_in_the_error(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        sample(**changes)


# bounds, shapes, identity


@pytest.mark.parametrize("bounds", [(0, 1), (0, 255), (-1, 1)])
def test_uint8_images_are_mapped_from_0_to_255_onto_the_bounds(bounds):
    x, y = np.arange(256, dtype="uint8").reshape(16, 4, 4, 1), np.arange(16) % 2
    found = Dataset.from_arrays(x, y, x, y, bounds=bounds).x_train
    assert found.dtype == np.float32
    exact = bounds[0] + x / 255 * (bounds[1] - bounds[0])
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-7)  # float32
    assert (found.min(), found.max()) == bounds


def test_other_bounds_hold_the_same_samples_in_other_units():
    data = sample(class_names=("a", "b", "c"))
    wide = data.rescaled((-3, 5))
    assert (wide.bounds, wide.class_names) == ((-3.0, 5.0), data.class_names)
    np.testing.assert_allclose(wide.x_train, 8 * data.x_train - 3, rtol=1e-6)
    np.testing.assert_array_equal(wide.y_test, data.y_test)
    np.testing.assert_allclose(wide.rescaled((0, 1)).x_test, data.x_test, atol=1e-6)  # float32 of values up to 5
    assert data.rescaled((0, 1)) is data
    with pytest.raises(ValueError, match="`bounds` must be a pair"):
        data.rescaled((1, 0))


def test_pixels_of_0_to_255_are_the_uint8_values_whichever_way_they_are_reached():
    x, y = np.arange(256, dtype="uint8").reshape(16, 16), np.arange(16) % 2
    pixels = Dataset.from_arrays(x, y, x, y, bounds=(0, 255)).x_train
    np.testing.assert_array_equal(pixels, x)
    scaled = Dataset.from_arrays(x, y, x, y).rescaled((0, 255)).x_train
    np.testing.assert_allclose(scaled, x, rtol=1e-6)  # 1 / 255 is not a float32
    np.testing.assert_array_equal(np.rint(scaled), x)


def test_a_sample_may_have_any_shape_and_get_another():
    x, y = np.random.default_rng(0).random((12, 5, 6)).astype("float32"), np.arange(12) % 2
    series = Dataset("series", x, y, x[:0], y[:0], x, y)
    assert series.input_shape == (5, 6)
    assert series.resplit().input_shape == (5, 6)
    rows = Dataset.from_arrays(x, y, x, y).reshaped((30,)).with_validation(0.5)
    assert rows.input_shape == (30,)
    assert {r.tobytes() for r in np.concatenate([rows.x_train, rows.x_valid])} == {r.tobytes() for r in x}
    with pytest.raises(ValueError, match=r"as many values as a sample.*\(5, 6\).*Received: shape=\(7,\)"):
        series.reshaped((7,))


def test_a_fingerprint_tells_contents_apart_and_not_names():
    data = sample()
    assert data.fingerprint == sample(name="other", class_names=("a", "b", "c")).fingerprint
    x, y = data.x_train.copy(), data.y_train.copy()
    x[150, 0] += 1e-4
    y[150] = (y[150] + 1) % 3
    for other in (sample(x_train=x), sample(y_train=y), sample(bounds=(0, 2)), data.with_validation()):
        assert other.fingerprint != data.fingerprint


@pytest.mark.parametrize("kind", ["float32", "int64", "bool"])
def test_one_hot_labels_are_class_indices(kind):
    x, y = numbered(100)
    rows = np.eye(5, dtype=kind)[y]
    data = as_dataset((x, rows))
    plain = as_dataset((x, y))
    np.testing.assert_array_equal(data.y_train, plain.y_train)
    np.testing.assert_array_equal(data.x_test, plain.x_test)
    assert (data.classes, plain.classes) == (5, 3)  # the rows tell of classes without a sample
    assert as_dataset((x, rows, x[:9], rows[:9])).y_test.tolist() == y[:9].tolist()
    several = rows.copy()
    several[3] = True
    for wrong in (several, np.where(several == 1, 0.5, 0.0)):
        with pytest.raises(ValueError, match="one-hot rows, with one 1 in each"):
            as_dataset((x, wrong))


# splits


def test_resplit_holds_every_sample_exactly_once_with_its_label():
    data = sample().with_validation(0.2, seed=1)
    new = data.resplit(0.30, seed=3)
    found = np.concatenate([numbers(new.x_train), numbers(new.x_test)])
    assert sorted(found) == list(range(280))
    label = dict(zip(numbers(data.x_train), data.y_train, strict=True))
    label |= dict(zip(numbers(data.x_valid), data.y_valid, strict=True))
    label |= dict(zip(numbers(data.x_test), data.y_test, strict=True))
    assert [label[i] for i in found] == np.concatenate([new.y_train, new.y_test]).tolist()
    assert new.n_valid == 0


def test_resplit_of_more_samples_than_are_copied_at_a_time_keeps_labels_with_inputs():
    x, y = np.arange(20_000, dtype="float32").reshape(-1, 1) / 20_000, np.arange(20_000) % 3
    new = sample(x_train=x[:9001], y_train=y[:9001], x_valid=x[9001:9500], y_valid=y[9001:9500],
                 x_test=x[9500:], y_test=y[9500:]).resplit()  # fmt: skip
    found = np.rint(20_000 * np.concatenate([new.x_train, new.x_test])[:, 0]).astype(int)
    assert sorted(found) == list(range(20_000))
    np.testing.assert_array_equal(found % 3, np.concatenate([new.y_train, new.y_test]))


def test_resplit_is_70_to_30_in_every_class():
    new = sample().resplit()
    assert new.n_test == 84
    held, kept = np.bincount(new.y_test), np.bincount(new.y_train)
    assert np.all(np.abs(held - 0.3 * (held + kept)) <= 1)


@pytest.mark.parametrize("make", [sample, tracked])
@pytest.mark.parametrize("method", ["resplit", "with_validation"])
def test_splits_are_determined_by_the_seed(make, method):
    first, again, other = (getattr(make(), method)(seed=seed) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.x_train, again.x_train)
    np.testing.assert_array_equal(first.y_train, again.y_train)
    assert not np.array_equal(first.x_train, other.x_train)


@pytest.mark.parametrize("seed", range(5))
def test_no_track_is_on_both_sides_however_often_the_set_is_split(seed):
    data = tracked()
    track = dict(zip(numbers(data.x_train), data.groups_train, strict=True))
    # twice, with validation in between: tracks must survive in the test and validation splits too
    new = data.resplit(seed=seed).with_validation(0.2, seed).resplit(seed=seed + 1).with_validation(0.2, seed)
    sides = [{track[i] for i in numbers(x) if i in track} for x in (new.x_train, new.x_valid, new.x_test)]
    assert all(sides)
    assert sum(len(s) for s in sides) == len(set.union(*sides)) == 40
    found = np.concatenate([numbers(new.x_train), numbers(new.x_valid), numbers(new.x_test)])
    assert sorted(found) == list(range(500))


def test_a_split_by_track_is_stratified_to_within_half_a_track_per_class():
    new = tracked().resplit(0.30)
    held, kept = np.bincount(new.y_test), np.bincount(new.y_train)
    assert np.all(np.abs(held - 0.3 * (held + kept)) <= 5)


def test_validation_moves_a_stratified_tenth_and_leaves_test_alone():
    data = sample()
    new = data.with_validation(0.1)
    assert (new.n_train, new.n_valid) == (180, 20)
    assert sorted(np.concatenate([numbers(new.x_train), numbers(new.x_valid)])) == list(range(200))
    assert np.all(np.abs(np.bincount(new.y_valid) - 0.1 * np.bincount(data.y_train)) <= 1)
    assert new.x_test is data.x_test
    with pytest.raises(ValueError, match="must be empty"):
        new.with_validation()


@pytest.mark.parametrize("n", [3, 17, 100, 199, 200])
def test_subset_keeps_class_shares_to_within_one_sample(n):
    data = sample()
    new = data.subset(n_train=n, n_test=8)
    assert (new.n_train, new.n_test) == (n, 8)
    assert len(set(numbers(new.x_train))) == n
    share = n * np.bincount(data.y_train) / 200
    assert np.all(np.abs(np.bincount(new.y_train, minlength=3) - share) < 1)
    np.testing.assert_array_equal(new.x_train, data.subset(n_train=n).x_train)


def test_subset_keeps_the_tracks_of_its_samples():
    data = tracked()
    new = data.subset(n_train=50)
    np.testing.assert_array_equal(new.groups_train, data.groups_train[numbers(new.x_train)])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.resplit(1.0), "`test_size` must be a share"),
        (lambda d: d.resplit(0), "`test_size` must be a share"),
        (lambda d: d.with_validation(float("nan")), "`size` must be a share"),
        (lambda d: d.resplit(seed=-1), "`seed` must be"),
        (lambda d: d.subset(n_train=0), "`n_train` must be a positive integer"),
        (lambda d: d.subset(n_train=1), "`n_train` must leave at least two classes"),
        (lambda d: d.subset(n_test=81), "`n_test` must be at most the 80"),
        (lambda d: d.subset(seed=0.5), "`seed` must be"),
    ],
)
def test_invalid_split_arguments_are_named_in_the_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample())


def test_a_class_with_one_sample_cannot_be_stratified():
    y = np.r_[np.zeros(199, int), 1]
    with pytest.raises(ValueError, match=r"at least two samples of every class.*class \[1\]"):
        sample(y_train=y).with_validation()
    with pytest.raises(ValueError, match="at least two groups"):
        sample(groups_train=numbered(200)[1]).with_validation()


# names and files


def test_digits_are_divided_by_16_and_split_70_to_30():
    data = load()
    assert (data.name, data.source, data.input_shape) == ("digits", "bundled with scikit-learn", (8, 8, 1))
    assert (data.n_train, data.n_test) == (1257, 540)
    assert set(np.unique(data.x_train * 16)) == set(range(17))


def test_the_registry_agrees_with_what_is_loaded():
    info, data = DATASETS["digits"], load("digits")
    assert info.samples == data.n_train + data.n_test
    assert (info.shape, info.classes, info.class_names) == (data.input_shape, data.classes, data.class_names)
    assert list(DATASETS) == ["digits", "mnist", "fashion_mnist", "cifar10", "gtsrb"]
    assert all(len(i.class_names) == i.classes for i in DATASETS.values())


def test_nothing_imports_tensorflow_or_keras():
    code = "import sys, kerasdef.datasets as d; d.load('digits'); print({'tensorflow', 'keras'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("wrong", ["mnits", "MNIST"])
def test_an_unknown_name_is_an_error_with_the_nearest_right_one(wrong):
    message = "`name` must be one of digits, mnist" + (".*Did you mean 'mnist'" if wrong == "mnits" else "")
    with pytest.raises(ValueError, match=message):
        load(wrong)


def test_as_dataset_takes_names_paths_datasets_and_arrays(tmp_path):
    x, y = numbered(100)
    data = as_dataset((x, y))
    assert (data.n_train, data.n_test) == (70, 30)
    assert sorted(np.concatenate([numbers(data.x_train), numbers(data.x_test)])) == list(range(100))
    assert as_dataset(data) is data
    assert as_dataset((x, y, x[:9], y[:9])).n_test == as_dataset(((x, y), (x[:9], y[:9]))).n_test == 9
    assert as_dataset("digits").name == "digits"
    assert as_dataset(save(tmp_path / "mine.npz")).name == as_dataset(str(tmp_path / "mine.npz")).name == "mine"
    for wrong in ((x, y, x), 3, None):
        with pytest.raises(ValueError, match="`data` must be"):
            as_dataset(wrong)


def test_an_npz_gives_its_arrays_names_bounds_groups_and_validation(tmp_path):
    x, y = numbered(40)
    changes = {
        "x_train": x * 100,
        "y_train": y,
        "x_test": -x,
        "y_test": y,
        "x_valid": x[:4],
        "y_valid": y[:4],
    }
    extra = {"class_names": np.array(["a", "b", "c"]), "bounds": [-1, 1], "tracks_train": np.arange(40)}
    data = load(save(tmp_path / "mine.npz", **changes, **extra))
    np.testing.assert_array_equal(data.x_train, x * 100)
    assert (data.class_names, data.bounds, data.n_valid) == (("a", "b", "c"), (-1.0, 1.0), 4)
    assert data.groups_train.tolist() == list(range(40))
    assert data.source == str(tmp_path / "mine.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_test": None}, "missing y_test; found x_train, y_train, x_test"),
        ({"y_train": np.array([{}] * 40)}, "Object arrays cannot be loaded"),
        ({"x_valid": np.zeros((3, 4, 4, 3))}, "both x_valid and y_valid"),
        ({"y_train": np.zeros(40, int)}, "at least two classes"),
    ],
)
def test_an_invalid_npz_is_named_with_what_is_wrong(tmp_path, changes, message):
    path = save(tmp_path / "bad.npz", **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(caught.value).count(str(path)) == 1


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut"])
def test_a_file_that_is_no_npz_is_named(tmp_path, content):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.npz must be an \.npz file with the arrays x_train"):
        load(path)


def test_damaged_content_of_an_npz_is_an_error(tmp_path):
    path = save(tmp_path / "bad.npz")
    content = bytearray(path.read_bytes())
    content[500] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad.npz must be an .npz file.*CRC"):
        load(path)


def test_a_missing_path_is_not_found(tmp_path):
    with pytest.raises(DatasetNotFound, match=r"gone\.npz"):
        load(tmp_path / "gone.npz")


def test_the_folder_of_the_variable_comes_before_data_here_and_keras_cache(bare):
    places = [bare / "keras/datasets", bare / "here/data", bare / "data"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        save(place / "mnist.npz")
        assert load("mnist", download=False).source == str(place / "mnist.npz")
    assert load("mnist").class_names == tuple("0123456789")


def test_fashion_mnist_is_read_from_the_cache_of_keras(bare):
    folder = bare / "keras/datasets/fashion-mnist"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype="uint8")
    labels = np.array([0, 9, 1, 2, 9, 0], "uint8")
    for split in ("train", "t10k"):
        head = b"\0\0\x08\x03" + np.array(images.shape, ">i4").tobytes()
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + images.tobytes()))
        head = b"\0\0\x08\x01" + np.array(labels.shape, ">i4").tobytes()
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + labels.tobytes()))
    data = load("fashion_mnist", download=False)
    np.testing.assert_array_equal(data.x_train[..., 0], images / np.float32(255))
    assert [data.class_names[i] for i in data.y_test[:2]] == ["T-shirt/top", "ankle boot"]
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x01\0\0\0\x09short"))
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte\.gz must be a gzipped IDX file"):
        load("fashion_mnist", download=False)


def python2_batch(rows, labels):
    """The pickle that Python 2 and NumPy 1 write, as in the published files, opcode by opcode."""

    def string(text):
        return b"T" + len(text).to_bytes(4, "little") + text

    dtype = b"cnumpy\ndtype\n" + string(b"u1") + b"K\0K\1\x87R(K\3" + string(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
    state = b"(K\1K" + bytes([len(rows)]) + b"M\x00\x0c\x86" + dtype + b"K\0tb\x89" + string(rows.tobytes()) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + string(b"b") + b"\x87R" + state
    numbers = b"](" + b"".join(b"K" + bytes([i]) for i in labels) + b"e"
    return b"\x80\2}(" + string(b"data") + array + string(b"labels") + numbers + b"u."


@pytest.mark.parametrize("packed", [False, True])
def test_cifar10_is_read_from_the_cache_of_keras(bare, packed):
    folder = bare / "keras/datasets/cifar-10-batches-py"
    folder.mkdir(parents=True)
    rows = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype="uint8")
    for name in readers.CIFAR_BATCHES:
        (folder / name).write_bytes(python2_batch(rows, [0, 1, 2, 9]))
    if packed:
        with tarfile.open(bare / "keras/datasets/cifar-10-batches-py-target_archive", "w:gz") as tar:
            tar.add(folder, "cifar-10-batches-py")
        (folder / "test_batch").unlink()  # an unpacked folder that is incomplete is passed over
    data = load("cifar10", download=False)
    assert (data.n_train, data.n_test, data.classes) == (20, 4, 10)
    np.testing.assert_array_equal(data.x_test[1, 2, 5], rows[1].reshape(3, 32, 32)[:, 2, 5] / np.float32(255))


def test_a_cifar_batch_that_calls_anything_is_refused(tmp_path):
    for name in readers.CIFAR_BATCHES:
        (tmp_path / name).write_bytes(pickle.dumps(os.getcwd, protocol=2))
    with pytest.raises(ValueError, match="a pickle that calls"):
        readers.read_cifar10(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_offline_one_error_says_where_we_looked_and_what_to_do(bare, monkeypatch, name):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DatasetNotFound, match="no route to host") as caught:
        load(name)
    text = str(caught.value)
    for place in (bare / f"data/{name}.npz", bare / f"here/data/{name}.npz", bare / "keras/datasets"):
        assert str(place) in text
    assert f"Offline: put {name}.npz with the arrays x_train, y_train, x_test, y_test" in text


def test_a_download_by_keras_gives_channels_last_whatever_keras_is_set_to(bare, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype="uint8")
    y = np.array([[0], [1], [2], [9]], "uint8")
    cifar10 = SimpleNamespace(load_data=lambda: ((x, y), (x, y)))
    stub = SimpleNamespace(datasets=SimpleNamespace(cifar10=cifar10))
    monkeypatch.setitem(sys.modules, "keras", stub)
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kwargs: io.BytesIO())
    data = load("cifar10")
    np.testing.assert_array_equal(data.x_test, x.transpose(0, 2, 3, 1) / np.float32(255))
    assert (data.y_train.tolist(), data.source) == ([0, 1, 2, 9], "keras.datasets.cifar10")


def test_without_download_nothing_is_fetched(bare, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", None)
    for name in ("mnist", "gtsrb"):
        with pytest.raises(DatasetNotFound, match="download=False"):
            load(name, download=False)


# GTSRB


def ppm(color, box, size=(50, 40)):
    """An image that is gray but for a box of one color."""
    image = Image.new("RGB", size, (128, 128, 128))
    image.paste(color, box)
    stream = io.BytesIO()
    image.save(stream, "PPM")
    return stream.getvalue()


BOX = (5, 6, 44, 35)
COLUMNS = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"


def row(file, label):
    return f"{file};50;40;{';'.join(map(str, BOX))};{label}\n"


@pytest.fixture
def official(tmp_path):
    """Archives of the official layout: 3 classes of 2 tracks of 4 frames, and 6 test images."""
    folder = tmp_path / "official"
    folder.mkdir()
    train, test, truth = (folder / name for name in sources.GTSRB_ARCHIVES)
    with zipfile.ZipFile(train, "w") as archive:
        for label in range(3):
            place = f"GTSRB/Final_Training/Images/{label:05d}"
            files = [f"{track:05d}_{frame:05d}.ppm" for track in range(2) for frame in range(4)]
            archive.writestr(f"{place}/GT-{label:05d}.csv", COLUMNS + "".join(row(f, label) for f in files))
            for i, file in enumerate(files):
                archive.writestr(f"{place}/{file}", ppm((80 * label, i, 255), BOX))
    with zipfile.ZipFile(test, "w") as archive:
        for i in range(6):
            archive.writestr(f"GTSRB/Final_Test/Images/{i:05d}.ppm", ppm((i, 0, 0), BOX))
    with zipfile.ZipFile(truth, "w") as archive:
        archive.writestr("GT-final_test.csv", COLUMNS + "".join(row(f"{i:05d}.ppm", i % 3) for i in range(6)))
    return folder


@pytest.fixture
def served(official, bare, monkeypatch):
    """The archives behind a local server, with their digests pinned."""
    handler = functools.partial(QuietHandler, directory=str(official))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        digests = {n: hashlib.sha256((official / n).read_bytes()).hexdigest() for n in sources.GTSRB_ARCHIVES}
        monkeypatch.setattr(sources, "GTSRB_URL", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(sources, "GTSRB_ARCHIVES", digests)
        yield bare / "data"
        server.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    promised = 0  # bytes more than are sent

    def send_header(self, name, value):
        super().send_header(name, str(int(value) + self.promised) if name == "Content-Length" else value)

    def log_message(self, *args):
        pass


def test_gtsrb_is_downloaded_cropped_to_its_sign_and_kept(served):
    data = load("gtsrb")
    assert (data.n_train, data.n_test, data.classes, data.input_shape) == (24, 6, 43, (32, 32, 3))
    # each crop is of one color: the gray frame around the region of interest is gone
    expected = np.array([(80 * (i // 8), i % 8, 255) for i in range(24)], "float32") / np.float32(255)
    np.testing.assert_array_equal(data.x_train, np.broadcast_to(expected[:, None, None], data.x_train.shape))
    np.testing.assert_array_equal(data.x_test[:, 0, 0, 0], np.arange(6, dtype="float32") / np.float32(255))
    assert data.y_test.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.groups_train.tolist() == [i // 4 for i in range(24)]  # track 0 of class 1 is not track 0 of class 0
    again = load("gtsrb", download=False)
    assert again.source == data.source == str(served / "gtsrb.npz")
    np.testing.assert_array_equal(again.x_train, data.x_train)
    np.testing.assert_array_equal(again.groups_train, data.groups_train)
    assert not list(served.glob("*.part"))


@pytest.mark.parametrize("name", sources.GTSRB_ARCHIVES)
def test_archives_that_lie_there_are_read_only_with_the_pinned_digest(served, official, name):
    load("gtsrb")
    (served / "gtsrb.npz").unlink()
    assert load("gtsrb", download=False).n_train == 24
    (served / "gtsrb.npz").unlink()
    (served / name).write_bytes((official / name).read_bytes() + b"!")
    with pytest.raises(ValueError, match=f"{name} must have the SHA-256 {sources.GTSRB_ARCHIVES[name]}"):
        load("gtsrb")


def test_the_digest_of_every_archive_of_gtsrb_is_pinned():
    assert len(sources.GTSRB_ARCHIVES) == 3
    assert all(re.fullmatch("[0-9a-f]{64}", digest or "") for digest in sources.GTSRB_ARCHIVES.values())


def test_a_download_with_the_wrong_digest_is_an_error_and_leaves_no_file(served, monkeypatch):
    name = "GTSRB_Final_Test_GT.zip"
    monkeypatch.setitem(sources.GTSRB_ARCHIVES, name, "0" * 64)
    with pytest.raises(ValueError, match=f"{name} must have the SHA-256 000"):
        load("gtsrb")
    assert not list(served.glob(f"{name}*"))


def test_a_download_that_ends_early_is_an_error_and_leaves_no_file(served, monkeypatch):
    monkeypatch.setattr(QuietHandler, "promised", 9)
    with pytest.raises(DatasetNotFound, match=r"ended after \d+ of \d+ bytes"):
        load("gtsrb")
    assert not list(served.iterdir())


def test_gtsrb_offline_tells_which_archives_were_looked_for(served, official):
    (official / "GTSRB_Final_Test_Images.zip").unlink()
    with pytest.raises(DatasetNotFound, match="The download failed: HTTP Error 404") as caught:
        load("gtsrb")
    assert str(served / "GTSRB_Final_Test_Images.zip") in str(caught.value)
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("damage", ["member", "table", "image", "region"])
def test_an_archive_without_the_official_layout_is_named(official, damage):
    paths = [official / name for name in sources.GTSRB_ARCHIVES]
    outside = COLUMNS + "00000.ppm;50;40;5;5;51;35;0\n"
    which, content = {
        "member": (0, {}),
        "table": (2, {"GT-final_test.csv": "a;b\n1;2\n"}),
        "image": (1, {f"GTSRB/Final_Test/Images/{i:05d}.ppm": "no image" for i in range(6)}),
        "region": (2, {"GT-final_test.csv": outside}),
    }[damage]
    with zipfile.ZipFile(paths[which], "w") as archive:
        for name, text in content.items():
            archive.writestr(name, text)
    with pytest.raises(ValueError, match=r"GTSRB_Final.*must be an official GTSRB archive"):
        readers.read_gtsrb(*paths)


@pytest.mark.parametrize(("labels", "run"), [(np.arange(40) // 10 % 2, 10), (np.arange(90) // 30, 30)])
def test_tracks_of_a_packed_gtsrb_are_the_runs_it_was_stored_in(bare, labels, run):
    x = np.zeros((len(labels), 4, 4, 3), "uint8")
    save(bare / "data/gtsrb.npz", x_train=x, y_train=labels)
    assert load("gtsrb").groups_train.tolist() == (np.arange(len(labels)) // run).tolist()


def test_a_gtsrb_whose_tracks_cannot_be_known_is_loaded_with_a_warning(bare):
    save(bare / "data/gtsrb.npz", y_train=np.arange(40) % 2)
    with pytest.warns(UserWarning, match="tracks of .*gtsrb.npz are unknown"):
        assert load("gtsrb").groups_train is None


# real data


@pytest.mark.data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_sets_have_the_published_sizes(name):
    data, info = real(name), DATASETS[name]
    assert (data.n_train, data.n_test) == (60000, 10000)
    assert (data.input_shape, data.classes, data.class_names) == (info.shape, info.classes, info.class_names)
    assert (data.x_train.min(), data.x_train.max()) == (0.0, 1.0)
    if name == "fashion_mnist":
        assert np.all(np.bincount(data.y_test) == 1000)
    new = data.resplit()
    assert (new.n_train, new.n_test) == (49000, 21000)


@pytest.mark.data
def test_real_gtsrb_is_split_by_track():
    data = real("gtsrb")
    assert data.groups_train is not None
    new = data.resplit().with_validation()
    splits = [set(new.groups_train), set(new.groups_valid), set(new.groups_test)]
    assert sum(map(len, splits)) == len(set.union(*splits))
    assert new.n_train + new.n_valid + new.n_test == data.n_train + data.n_test
    assert abs(new.n_test / (data.n_train + data.n_test) - 0.30) < 0.01
    assert abs(new.n_valid / (new.n_train + new.n_valid) - 0.10) < 0.01


def test_every_public_name_is_there():
    assert all(hasattr(datasets, name) for name in datasets.__all__)
    assert datasets.load_dataset is datasets.load
