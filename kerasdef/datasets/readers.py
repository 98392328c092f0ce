"""Readers of the file formats: packed `.npz`, Keras' cache, and the official GTSRB archives.

Each returns raw arrays by key (`x_train`, `y_train`, `x_test`, `y_test`, sometimes more); `Dataset` checks
them.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from rich.console import Console
from rich.progress import track

from kerasdef.archives import check_size, check_zip, open_npz, reading, tar_files

Arrays = dict[str, np.ndarray]

KEYS = ("x_train", "y_train", "x_test", "y_test")

OPTIONAL = ("x_valid", "y_valid", "class_names", "bounds", "groups_train", "groups_valid", "groups_test")

FASHION_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}
CIFAR_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
CIFAR_FOLDER = "cifar-10-batches-py"

GTSRB_SIZE = 32  # pixels; the side that small classifiers of this data set use
GTSRB_TRAIN = "GTSRB/Final_Training/Images"
GTSRB_TEST = "GTSRB/Final_Test/Images"
GTSRB_TEST_LABELS = "GT-final_test.csv"
GTSRB_PIXELS = 2**20  # the largest image of the official set has 266 x 232


def read_npz(path: Path) -> Arrays:
    """Return the arrays of an `.npz` file: `x_train`, `y_train`, `x_test`, `y_test` and those of `OPTIONAL`.

    `tracks_train` is another name for `groups_train`. Pickled objects are not read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not an `.npz`, is damaged, unpacks to more than the limit of `kerasdef.archives`, or
            lacks one of the four arrays.
    """
    wanted = f"the arrays {', '.join(KEYS)}"
    with open_npz(path, path, wanted) as packed:
        names = packed.files
        arrays = {key: packed[key] for key in (*KEYS, *OPTIONAL, "tracks_train") if key in names}
    missing = [key for key in KEYS if key not in names]
    if missing:
        raise ValueError(
            f"{path} must be an .npz file with {wanted}. "
            f"Received: missing {', '.join(missing)}; found {', '.join(names) or 'nothing'}"
        )
    if "tracks_train" in arrays:
        tracks = arrays.pop("tracks_train")
        arrays.setdefault("groups_train", tracks)
    if ("x_valid" in arrays) != ("y_valid" in arrays):
        raise ValueError(f"{path} must hold both x_valid and y_valid, or neither. Received: one of them")
    return arrays


def read_fashion(folder: Path) -> Arrays:
    """Return Fashion-MNIST from the four gzipped IDX files in `folder`. Errors are those of `read_idx`."""
    return {key: read_idx(folder / file) for key, file in FASHION_FILES.items()}


def read_idx(path: Path) -> np.ndarray:
    """Return the uint8 array of a gzipped IDX file.

    Raises:
        ValueError: The file is damaged or not an IDX file of bytes.
    """
    problem = f"{path} must be a gzipped IDX file of bytes. Received: one that is damaged or of another kind"
    with reading(problem), gzip.open(path) as stream:
        # header: two zero bytes, type 8 (uint8), number of dimensions, then each dimension as big-endian int32
        head = stream.read(4)
        if head[:3] != b"\x00\x00\x08":
            raise ValueError(f"it starts with {head!r}")
        shape = np.frombuffer(stream.read(4 * head[3]), ">u4", count=head[3]).tolist()
        check_size(path, math.prod(shape))
        return np.frombuffer(stream.read(math.prod(shape) + 1), np.uint8).reshape(shape)


def read_cifar10(path: Path) -> Arrays:
    """Return CIFAR-10 from its Python version: the folder `cifar-10-batches-py` or the tar that holds it.

    Raises:
        ValueError: A batch is missing or damaged.
    """
    problem = f"{path} must hold the CIFAR-10 batches of the Python version. Received: damaged or other ones"
    with reading(problem):
        if path.is_dir():
            batches = [_cifar_batch((path / name).read_bytes()) for name in CIFAR_BATCHES]
        else:
            with tarfile.open(path) as tar:
                found = dict(tar_files(tar, path))
                batches = [_cifar_batch(tar.extractfile(found[f"{CIFAR_FOLDER}/{n}"]).read()) for n in CIFAR_BATCHES]
    train, (x_test, y_test) = batches[:-1], batches[-1]
    return {
        "x_train": np.concatenate([x for x, _ in train]),
        "y_train": np.concatenate([y for _, y in train]),
        "x_test": x_test,
        "y_test": y_test,
    }


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler of containers and NumPy arrays that refuses to call anything else."""

    def find_class(self, module, name):
        """Return the few callables that rebuild an array; none of them allocates what a pickle asks for."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _reconstruct
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("numpy", "ndarray"):
            return name  # only an argument of `_reconstruct`
        raise pickle.UnpicklingError(f"a pickle that calls {module}.{name}")


def _reconstruct(*_) -> np.ndarray:
    return np.empty(0, "uint8")  # NumPy then sets shape and data, of which there must be as many bytes


def _cifar_batch(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    images = batch[b"data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images, np.asarray(batch[b"labels"])


def read_gtsrb(train: Path, test: Path, test_labels: Path) -> Arrays:
    """Return GTSRB from its three official archives: uint8 images of 32x32 pixels, and the training tracks.

    Each image is cropped to the region of interest of its table (upper left corner Roi.X1, Roi.Y1 up to,
    without, Roi.X2, Roi.Y2) and resized with Pillow's Lanczos filter. The first number of a training file
    name is the track inside its class: frames of one track show one physical sign. `groups_train` numbers the
    tracks of all classes.

    Args:
        train: GTSRB_Final_Training_Images.zip
        test: GTSRB_Final_Test_Images.zip
        test_labels: GTSRB_Final_Test_GT.zip

    Raises:
        ValueError: An archive is damaged or does not have the official layout.
    """
    x_train, y_train, tracks = _archive(train, _gtsrb_train)
    rows = _archive(test_labels, lambda archive: _table(archive, GTSRB_TEST_LABELS))
    x_test = _archive(test, lambda archive: _crops(archive, [(f"{GTSRB_TEST}/{r['Filename']}", r) for r in rows]))
    _, groups = np.unique(tracks, axis=0, return_inverse=True)
    return {
        "x_train": x_train,
        "y_train": y_train,
        "groups_train": groups.reshape(-1).astype("int32"),
        "x_test": x_test,
        "y_test": np.array([int(r["ClassId"]) for r in rows], "uint8"),
    }


def _gtsrb_train(archive: zipfile.ZipFile) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images, labels and (class, track in the class) of the training archive."""
    tables = sorted(n for n in archive.namelist() if n.startswith(f"{GTSRB_TRAIN}/") and n.endswith(".csv"))
    if not tables:
        raise ValueError(f"no table under {GTSRB_TRAIN}")
    rows = [(str(PurePosixPath(t).parent / r["Filename"]), r) for t in tables for r in _table(archive, t)]
    labels = np.array([int(r["ClassId"]) for _, r in rows], "uint8")
    tracks = [int(r["Filename"].split("_")[0]) for _, r in rows]
    return _crops(archive, rows), labels, np.column_stack([labels, tracks])


def _table(archive: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(archive.read(name).decode("utf-8-sig")), delimiter=";"))


def _crops(archive: zipfile.ZipFile, rows: list[tuple[str, dict[str, str]]]) -> np.ndarray:
    from PIL import Image

    size = (GTSRB_SIZE, GTSRB_SIZE)
    out = np.empty((len(rows), *size, 3), "uint8")
    title = f"Reading {Path(archive.filename).name}"
    for i, (name, row) in enumerate(track(rows, title, console=Console(stderr=True), transient=True)):
        roi = tuple(int(row[f"Roi.{side}"]) for side in ("X1", "Y1", "X2", "Y2"))
        with Image.open(io.BytesIO(archive.read(name)), formats=["PPM"]) as image:  # no other decoder is let in
            if image.width * image.height > GTSRB_PIXELS:
                raise ValueError(f"{name} of size {image.size}, more than {GTSRB_PIXELS} pixels")
            if not (0 <= roi[0] < roi[2] <= image.width and 0 <= roi[1] < roi[3] <= image.height):
                raise ValueError(f"{name} of size {image.size} with the region of interest {roi}")
            # crop, not resize(box=roi): the latter lets the filter reach pixels outside of the box
            out[i] = np.asarray(image.convert("RGB").crop(roi).resize(size, Image.Resampling.LANCZOS))
    return out


def _archive(path: Path, read: Callable[[zipfile.ZipFile], object]):
    problem = f"{path} must be an official GTSRB archive. Received: one that is damaged or of another kind"
    with reading(problem), zipfile.ZipFile(path) as archive:
        check_zip(archive)
        return read(archive)


def infer_tracks(y: np.ndarray) -> np.ndarray | None:
    """Return groups for a packed GTSRB training set without tracks, or None where they cannot be known.

    Frames of one track are stored together: 30 in the official set, 10 in sets that keep every third frame.
    If the labels are constant in each run of that length, image i is taken to be of group i // length. The
    longer run is tried first: if it is wrong, it joins tracks of one class, which is harmless; the shorter
    would cut them.

    Args:
        y: Class indices of shape (n,), in the order of the file.
    """
    for length in (30, 10):
        if len(y) and len(y) % length == 0:
            runs = np.reshape(y, (-1, length))
            if np.all(runs == runs[:, :1]):
                return np.arange(len(y)) // length
    return None
