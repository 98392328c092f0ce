"""Files that are there whole or not at all: where a process is killed, a disk is full, or two write at once.

What cannot be written is an `OSError` that names the file that was wanted, not the half-written one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PART = ".part"  # in the name of what is half written
_ABANDONED = 3600.0  # seconds after which a half-written file is taken for that of a process that was killed
_TRIES = 10  # a folder is put in place by two renames, between which another process may put its own
_UNWRITTEN = "ENOSPC EDQUOT EFBIG EROFS EIO EMFILE ENFILE EACCES EPERM ENOTDIR EEXIST EISDIR ENOENT ENAMETOOLONG"
_FASTER = {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST}  # of a folder that another process has put or taken away
_CODES = {getattr(errno, name) for name in _UNWRITTEN.split() if hasattr(errno, name)}


def write_whole(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Write a file or a folder under another name and move it into place: it is there whole or not at all.

    Several processes may write the same path at once; the last one to finish wins.

    Args:
        path: What to write; its folder is made where it does not exist, and what is there is replaced, a folder by a
            folder only. A link stays one, and what it leads to is replaced.
        write: Writes to the path that it is given, which ends in the same suffix. If it raises, nothing is left.

    Returns:
        The path.

    Raises:
        OSError: It could not be written; the error names the path.
    """
    path = Path(path)
    target = path.resolve() if path.is_symlink() else path
    part = target.with_name(f".{target.stem}.{secrets.token_hex(8)}{PART}{target.suffix}")
    with naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        try:
            write(part)
            _put(part, target)
        finally:
            with contextlib.suppress(OSError):  # the disk, or what was raised before, is what is to be told
                remove(part)
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file in UTF-8, whole or not at all."""
    return write_whole(path, lambda part: part.write_bytes(text.encode()))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an error of the disk the name of what was to be written, where it names nothing or a half-written file."""
    try:
        yield
    except OSError as error:
        other = error.filename is not None and PART not in str(error.filename)
        if error.errno not in _CODES or other:
            raise
        raise OSError(
            error.errno, f"{error.strerror or os.strerror(error.errno)}, so it could not be written", str(path)
        ) from error


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it; what does not exist is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_part(path: Path) -> bool:
    """Whether a file is what a process that was killed has left, or one is writing now."""
    return path.name.startswith(".") and PART in path.name


def _put(part: Path, path: Path) -> None:
    """Move what was written into place; a folder is replaced by a folder only, and not by a rename."""
    for left in reversed(range(_TRIES)):
        old = part.with_name(f"{part.name}.old")
        try:
            if path.is_dir():
                if not part.is_dir():
                    what = "There is a folder, which no file replaces: move it elsewhere"
                    raise IsADirectoryError(errno.EISDIR, what, str(path))
                os.replace(path, old)
            os.replace(part, path)
            return
        except OSError as error:
            if not left or error.errno not in _FASTER:
                if old.exists() and not path.exists():
                    os.replace(old, path)  # what was there stays
                raise
        finally:
            remove(old)


def _sweep(path: Path) -> None:
    """Remove what processes that were killed while they wrote this path have left."""
    for part in path.parent.glob(f".{glob.escape(path.stem)}.*{PART}{glob.escape(path.suffix)}*"):
        try:
            if time.time() - part.stat().st_mtime > _ABANDONED:
                remove(part)
        except FileNotFoundError:  # another process was faster
            continue
