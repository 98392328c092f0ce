"""Archives from outside: the sizes that they declare are checked before anything is unpacked, and damage is named."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

LIMIT = 2 * 2**30  # bytes; the largest data set that is known here, MNIST as float32, has 0.2 GiB
LIMIT_VARIABLE = "KERASDEF_MAX_UNPACKED"  # raises it, in bytes
_REASON = 150  # characters of it in an error


class TooLarge(ValueError):
    """What unpacks to more than the limit."""


@contextlib.contextmanager
def reading(problem: str) -> Iterator[None]:
    """Turn whatever the content of a file from outside makes its readers raise into one ValueError.

    A damaged file may end a reader in any place, so there is no list of what it may raise. `TooLarge` and errors of the
    disk stay what they are; the latter have a number, and not that of a place in front of the file.

    Args:
        problem: What is wrong with the file, with its name; the reason follows after a colon.
    """
    try:
        yield
    except TooLarge:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        raise ValueError(f"{problem}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The first line of what an error says, without what Keras puts before it, such as a whole configuration."""
    text = str(error).rpartition("Exception encountered: ")[2].strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= _REASON else f"{line[:_REASON]}..."


@contextlib.contextmanager
def open_npz(source: Path | BinaryIO, name: str | Path, holds: str = "arrays") -> Iterator[np.lib.npyio.NpzFile]:
    """Open an .npz file as `np.load` does, without pickles, after a look at the sizes that it declares.

    Only what reads it belongs into the `with` block: an error there counts as damage.

    Args:
        source: A path, or a stream of bytes that can be read from any place.
        name: What to call the file in an error.
        holds: What it is to hold, in words.

    Raises:
        ValueError: It is damaged or of another kind, unpacks to more than the limit, or an array declares another size
            than there are bytes.
        OSError: There is no such file, or the disk fails.
    """
    with reading(f"{name} must be an .npz file with {holds}. Received: one that is damaged or of another kind"):
        with zipfile.ZipFile(source) as archive:
            check_zip(archive)
            for member in archive.infolist():
                with archive.open(member) as stream:
                    if member.filename.endswith(".npy") or stream.peek(6).startswith(np.lib.format.MAGIC_PREFIX):
                        _check_header(stream, member)
        if not isinstance(source, Path):
            source.seek(0)
        with np.load(source, allow_pickle=False) as arrays:
            yield arrays


def check_zip(archive: zipfile.ZipFile) -> None:
    """Raise a ValueError where the members of a zip declare more bytes than the limit."""
    packed = sum(member.compress_size for member in archive.infolist())
    check_size(archive.filename or "The archive", sum(member.file_size for member in archive.infolist()), packed)


def tar_files(tar: tarfile.TarFile, name: str | Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield path and entry of each ordinary file of a tar; links and devices are left out.

    Raises:
        ValueError: The entries so far declare more bytes than the limit; they have not been unpacked yet.
    """
    total = 0
    for member in tar:
        total += member.size
        check_size(name, total)
        if member.isfile():
            yield member.name, member


def check_size(name: str | Path, size: int, packed: int = 0) -> None:
    """Raise where something unpacks to more than the limit.

    Args:
        name: What is unpacked, for the error.
        size: Bytes that it declares.
        packed: Bytes that it takes up now: what does not grow is not refused, however large it is.

    Raises:
        TooLarge: It would. The error says how the limit is raised.
    """
    limit = _limit()
    if size > max(limit, packed):
        raise TooLarge(
            f"{name} unpacks to {size / 2**30:.1f} GiB, more than the limit of {limit / 2**30:.1f} GiB. If you trust "
            f"it, set the environment variable {LIMIT_VARIABLE} to a larger number of bytes"
        )


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "")
    if text and not text.isdecimal():
        raise ValueError(f"`{LIMIT_VARIABLE}` must be a number of bytes. Received: {LIMIT_VARIABLE}={text!r}")
    return int(text) if text else LIMIT


def _check_header(stream: BinaryIO, member: zipfile.ZipInfo) -> None:
    """Raise unless an array has as many bytes as its header says: NumPy allocates them before it reads."""
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{member.filename} is of the version {version} of the format, which is not read")
    shape, _, dtype = readers[version](stream)
    wanted, there = math.prod(shape) * dtype.itemsize, member.file_size - stream.tell()
    if not dtype.hasobject and wanted != there:  # objects are pickles, which NumPy refuses
        raise ValueError(f"{member.filename} declares {wanted} bytes of data and holds {there}")
