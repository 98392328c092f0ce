"""Known data sets: what they are called, where they are looked for, and where they are downloaded from."""

from __future__ import annotations

import http.client
import os
import urllib.request
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kerasdef import checks
from kerasdef.annotations import checked
from kerasdef.datasets import downloads, readers
from kerasdef.datasets.dataset import Dataset, with_channels
from kerasdef.datasets.readers import Arrays
from kerasdef.datasets.splits import hold_out
from kerasdef.files import write_whole

FOLDER_VARIABLE = "KERASDEF_DATA"

GTSRB_URL = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
# SHA-256 as pinned by torchvision (torchvision/prototype/datasets/_builtin/gtsrb.py) for the two archives it shares
# with us. That of the training images stands beside these two in a published table of all three, of 276,294,756 bytes,
# which is the length that the server tells; others give the MD5 f33fd80ac59bff73c82d25ab499e03a3 for the same file.
GTSRB_ARCHIVES = {
    "GTSRB_Final_Training_Images.zip": "d32ac4b5fa9a1cbd1994768413902e8193599d9434cf0a8eb9cfd00a6d3a290c",
    "GTSRB_Final_Test_Images.zip": "48ba6fab7e877eb64eaf8de99035b0aaecfbc279bee23e35deca4ac1d0a837fa",
    "GTSRB_Final_Test_GT.zip": "f94e5a7614d75845c74c04ddb26b8796b9e483f43541dd95dd5b726504e16d6d",
}

DIGIT_NAMES = tuple(str(i) for i in range(10))
FASHION_NAMES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

Found = tuple[Arrays, str]  # arrays by key, and where they came from


class DatasetNotFound(FileNotFoundError):
    """A data set is not on this machine and was not, or could not be, downloaded."""


@dataclass(frozen=True)
class Info:
    """What is known about a named data set without loading it.

    Args:
        title: Full name.
        samples: Training and test samples of the official set.
        shape: Shape of one sample as loaded.
        classes: Number of classes.
        license: License or terms, as given by the authors.
        url: Home page.
        class_names: Names in the order of the labels; empty where the set has none.
        reader: Returns the set from a place on this machine other than NAME.npz, or None.
        fetch: Downloads the set and returns it; None for a bundled one.
    """

    title: str
    samples: int
    shape: tuple[int, ...]
    classes: int
    license: str
    url: str
    class_names: tuple[str, ...]
    reader: Callable[[], Found | None]
    fetch: Callable[[], Found] | None


@checked
def load(name: str | Path = "digits", *, download: bool = True) -> Dataset:
    """Return a data set by name, or from an `.npz` file.

    A named set is looked for as NAME.npz in the folder of the environment variable KERASDEF_DATA, then in
    `data/` under the current folder, then in Keras' cache; only then is it downloaded. `digits` is bundled
    with scikit-learn.

    Args:
        name: A key of `DATASETS`, or the path of an `.npz` with x_train, y_train, x_test, y_test and
            optionally x_valid, y_valid, class_names, bounds, groups_train (or tracks_train), groups_valid,
            groups_test.
        download: Whether a set that is not on this machine may be downloaded.

    Raises:
        DatasetNotFound: The set is not here and was not downloaded; the message lists the places.
        ValueError: The name is unknown, or a file is damaged, incomplete or holds invalid data.
    """
    if isinstance(name, Path) or (isinstance(name, str) and name.lower().endswith(".npz")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise DatasetNotFound(f"There is no data set file {path.absolute()}")
        return _from_npz(path.stem, path)
    info = DATASETS[checks.one_of("name", name, DATASETS)]
    if info.fetch is None:
        return _dataset(name, *info.reader())
    for folder in _folders():
        if (folder / f"{name}.npz").is_file():
            return _from_npz(name, folder / f"{name}.npz")
    found = info.reader()
    if found is None and not download:
        raise DatasetNotFound(_where_we_looked(name, "It was not downloaded because download=False."))
    if found is None:
        try:
            found = info.fetch()
        except (OSError, http.client.HTTPException) as error:
            raise DatasetNotFound(_where_we_looked(name, f"The download failed: {error}.")) from error
    return _dataset(name, *found)


@checked
def as_dataset(data: str | Path | Dataset | tuple) -> Dataset:
    """Return `data` as a `Dataset`.

    Args:
        data: A `Dataset`; a name or path for `load`; `(x_train, y_train, x_test, y_test)`, also in pairs as
            `keras.datasets` returns them; or `(x, y)`, of which a stratified 30 % (seed 0) becomes the test
            split. Labels are class indices or one-hot rows. Other bounds than (0, 1), groups and names are given to
            `Dataset` itself.

    Raises:
        ValueError: `data` is none of these, or its arrays are invalid.
        DatasetNotFound: See `load`.
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, str | Path):
        return load(data)
    if isinstance(data, tuple | list) and len(data) == 4:
        return Dataset.from_arrays(*data)
    if isinstance(data, tuple | list) and len(data) == 2:
        if all(isinstance(pair, tuple) and len(pair) == 2 for pair in data):
            return Dataset.from_arrays(*data[0], *data[1])
        x = np.asarray(data[0])
        y = np.asarray(data[1])
        found = checks.labels("y", y, n=len(x) if x.ndim else None)
        checks.several_classes("y", found)
        train, test = hold_out(found, 0.30)
        return Dataset.from_arrays(x[train], y[train], x[test], y[test])
    received = f"{type(data).__name__} of length {len(data)}" if isinstance(data, tuple | list) else repr(data)
    raise ValueError(
        "`data` must be a name, a path to an .npz file, a Dataset, (x, y) or "
        f"(x_train, y_train, x_test, y_test). Received: {received}"
    )


def _folders() -> list[Path]:
    """Return the folders where NAME.npz is looked for, in order; the first is where downloads go."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    here = Path.cwd() / "data"
    return [Path(chosen).expanduser().absolute(), here] if chosen else [here]


def _keras_cache() -> Path:
    return Path(os.environ.get("KERAS_HOME") or "~/.keras").expanduser() / "datasets"


def _where_we_looked(name: str, reason: str) -> str:
    places = [str(folder / f"{name}.npz") for folder in _folders()]
    if FOLDER_VARIABLE not in os.environ:
        places.insert(0, f"{FOLDER_VARIABLE} (not set)")
    places += [str(_folders()[0] / archive) for archive in GTSRB_ARCHIVES] if name == "gtsrb" else [str(_keras_cache())]
    return (
        f"The data set {name!r} was not found. Looked for: {'; '.join(places)}. {reason} "
        f"Offline: put {name}.npz with the arrays x_train, y_train, x_test, y_test (uint8 images and labels) "
        f"in {_folders()[0]}, or in another folder and set {FOLDER_VARIABLE} to it. "
        "'digits' needs no download."
    )


def _from_npz(name: str, path: Path) -> Dataset:
    try:
        return _dataset(name, readers.read_npz(path), str(path))
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path}: {text}") from error


def _dataset(name: str, arrays: Arrays, source: str) -> Dataset:
    """Return the raw arrays as a `Dataset`, with the class names and tracks that they lack."""
    arrays = {key: with_channels(value) if key.startswith("x_") else value for key, value in arrays.items()}
    labels = np.asarray(arrays["y_train"])
    known = DATASETS[name].class_names if name in DATASETS else ()
    names = np.ravel(arrays["class_names"]).tolist() if "class_names" in arrays else None
    if names is None and known and labels.size and np.issubdtype(labels.dtype, np.integer):
        names = known if labels.max() < len(known) else None
    groups = arrays.get("groups_train")
    if groups is None and name == "gtsrb":
        groups = readers.infer_tracks(labels.reshape(-1))
        if groups is None:
            warnings.warn(
                f"The tracks of {source} are unknown, so frames of one sign may be on both sides of a split "
                "and a validation score is too high. Add an array `groups_train`, one track number for each "
                "training image.",
                UserWarning,
                stacklevel=4,
            )
    empty = np.empty((0, *arrays["x_train"].shape[1:]), "float32")
    return Dataset(
        name,
        arrays["x_train"],
        labels,
        arrays.get("x_valid", empty),
        arrays.get("y_valid", np.empty(0, "int64")),
        arrays["x_test"],
        arrays["y_test"],
        class_names=names,
        bounds=tuple(np.ravel(arrays["bounds"]).tolist()) if "bounds" in arrays else (0.0, 1.0),
        source=source,
        groups_train=groups,
        groups_valid=arrays.get("groups_valid"),
        groups_test=arrays.get("groups_test"),
    )


def _bundled_digits() -> Found:
    """Return scikit-learn's digits, 70:30 stratified by seed 0, divided by 16: the range of their format."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = (bunch.images / 16).astype("float32")
    train, test = hold_out(bunch.target, 0.30)
    arrays = {
        "x_train": x[train],
        "y_train": bunch.target[train],
        "x_test": x[test],
        "y_test": bunch.target[test],
    }
    return arrays, "bundled with scikit-learn"


def _cached_mnist() -> Found | None:
    path = _keras_cache() / "mnist.npz"
    return (readers.read_npz(path), str(path)) if path.is_file() else None


def _cached_fashion() -> Found | None:
    folder = _keras_cache() / "fashion-mnist"
    if not all((folder / file).is_file() for file in readers.FASHION_FILES.values()):
        return None
    return readers.read_fashion(folder), str(folder)


def _cached_cifar10() -> Found | None:
    inner = readers.CIFAR_FOLDER
    # unpacked and packed, as the Keras 3 versions and Keras 2 name them, and under the name of the original
    places = [
        *(f"{inner}-target/{inner}", f"{inner}_extracted/{inner}", f"{inner}/{inner}", inner),
        *(f"{inner}-target_archive", f"{inner}.tar.gz", "cifar-10-python.tar.gz"),
    ]
    for path in (_keras_cache() / place for place in places):
        if path.is_file() or all((path / batch).is_file() for batch in readers.CIFAR_BATCHES):
            return readers.read_cifar10(path), str(path)
    return None


def _keras_download(module: str, origin: str) -> Found:
    """Return the arrays of `keras.datasets.<module>`, which downloads them to Keras' cache."""
    with urllib.request.urlopen(origin, timeout=downloads.TIMEOUT):
        pass  # offline, a URLError at once; Keras would be imported first and then raise a bare Exception
    import keras

    (x_train, y_train), (x_test, y_test) = getattr(keras.datasets, module).load_data()
    if x_train.ndim == 4 and x_train.shape[1] == 3:  # keras.config.image_data_format() is channels_first
        x_train, x_test = (np.moveaxis(x, 1, -1) for x in (x_train, x_test))
    arrays = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    return arrays, f"keras.datasets.{module}"


def _download_mnist() -> Found:
    return _keras_download("mnist", "https://storage.googleapis.com/tensorflow/tf-keras-datasets/mnist.npz")


def _download_fashion() -> Found:
    file = readers.FASHION_FILES["y_test"]
    return _keras_download("fashion_mnist", f"https://storage.googleapis.com/tensorflow/tf-keras-datasets/{file}")


def _download_cifar10() -> Found:
    return _keras_download("cifar10", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz")


def _local_gtsrb() -> Found | None:
    """Return GTSRB from its three archives if they lie together in one of the folders."""
    for folder in _folders():
        if all((folder / name).is_file() for name in GTSRB_ARCHIVES):
            return _pack_gtsrb(folder)
    return None


def _download_gtsrb() -> Found:
    folder = _folders()[0]
    for name, sha256 in GTSRB_ARCHIVES.items():
        if not (folder / name).is_file():
            downloads.fetch(GTSRB_URL + name, folder / name, sha256)
    return _pack_gtsrb(folder)


def _pack_gtsrb(folder: Path) -> Found:
    """Verify and read the archives in `folder`, and keep the result there as gtsrb.npz."""
    for name, sha256 in GTSRB_ARCHIVES.items():
        downloads.check_digest(folder / name, sha256, folder / name)
    arrays = readers.read_gtsrb(*(folder / name for name in GTSRB_ARCHIVES))
    path = folder / "gtsrb.npz"
    write_whole(path, lambda part: np.savez(part, **arrays))
    return arrays, str(path)


DATASETS: dict[str, Info] = {
    "digits": Info(
        title="Digits of scikit-learn (UCI optical recognition of handwritten digits, test part)",
        samples=1797,
        shape=(8, 8, 1),
        classes=10,
        license="CC BY 4.0",
        url="https://archive.ics.uci.edu/dataset/80",
        class_names=DIGIT_NAMES,
        reader=_bundled_digits,
        fetch=None,
    ),
    "mnist": Info(
        title="MNIST handwritten digits",
        samples=70000,
        shape=(28, 28, 1),
        classes=10,
        license="commonly given as CC BY-SA 3.0",
        url="http://yann.lecun.com/exdb/mnist/",
        class_names=DIGIT_NAMES,
        reader=_cached_mnist,
        fetch=_download_mnist,
    ),
    "fashion_mnist": Info(
        title="Fashion-MNIST articles of clothing",
        samples=70000,
        shape=(28, 28, 1),
        classes=10,
        license="MIT",
        url="https://github.com/zalandoresearch/fashion-mnist",
        class_names=FASHION_NAMES,
        reader=_cached_fashion,
        fetch=_download_fashion,
    ),
    "cifar10": Info(
        title="CIFAR-10 small color images",
        samples=60000,
        shape=(32, 32, 3),
        classes=10,
        license="none given; the authors ask for a citation",
        url="https://www.cs.toronto.edu/~kriz/cifar.html",
        class_names=CIFAR10_NAMES,
        reader=_cached_cifar10,
        fetch=_download_cifar10,
    ),
    "gtsrb": Info(
        title="German Traffic Sign Recognition Benchmark",
        samples=51839,
        shape=(32, 32, 3),
        classes=43,
        license="free for research; the authors ask for a citation",
        url="https://benchmark.ini.rub.de/gtsrb_dataset.html",
        class_names=tuple(str(i) for i in range(43)),
        reader=_local_gtsrb,
        fetch=_download_gtsrb,
    ),
}
