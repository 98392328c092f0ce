"""One process for a folder: a lock that ends with its process, however that ends."""

from __future__ import annotations

import errno
import os
import socket
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: files are whole there as well, but two processes may do the same work
    fcntl = None

LOCK = ".lock"  # in the folder; it stays there, and says nothing where no process holds it
_HELD: weakref.WeakValueDictionary[Path, Lock] = weakref.WeakValueDictionary()
_TAKEN = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class Lock:
    """A folder that belongs to this process as long as the object lives; see `hold`."""

    def __init__(self, folder: Path):
        self.folder = folder
        if fcntl is None:
            return
        try:
            file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:  # what is written there next says why
            return
        self._close = weakref.finalize(self, os.close, file)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _TAKEN:  # some network file systems have no locks
                return
            who = os.read(file, 200).decode(errors="replace").strip() or "another process"
            self._close()
            raise BlockingIOError(error.errno, who, str(folder)) from None
        text = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        try:
            os.ftruncate(file, 0)
            os.pwrite(file, text, 0)
        except OSError:  # a full disk: the lock holds without a name
            pass


def hold(name: str, folder: Path) -> Lock:
    """Take a folder for this process; parts of one process share it.

    Args:
        name: Name of the setting, for the error.
        folder: An existing folder.

    Raises:
        ValueError: Another process works in it.
    """
    place = folder.resolve()
    lock = _HELD.get(place)
    if lock is None:
        try:
            lock = _HELD[place] = Lock(place)
        except BlockingIOError as error:
            raise ValueError(
                f"`{name}` must be a folder that no other process works in: wait for it to end, or take another "
                f"folder. Received: {name}={str(folder)!r}, in which {error.strerror} is working"
            ) from None
    return lock


def held(folder: Path) -> bool:
    """Whether this process has taken a folder."""
    return folder.resolve() in _HELD
