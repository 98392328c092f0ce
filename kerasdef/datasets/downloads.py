"""Downloads: whole files or none, with the digest that is expected."""

from __future__ import annotations

import hashlib
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from kerasdef.files import write_whole

TIMEOUT = 30  # seconds without an answer before a download counts as failed
BLOCK = 1 << 20  # bytes read at a time


def fetch(url: str, path: Path, sha256: str) -> Path:
    """Download `url` to `path` with a progress bar and return `path`.

    The content goes to another file, which takes its place only when it is complete and has the right digest,
    so an interrupted download leaves nothing that looks whole.

    Args:
        url: Address to read.
        path: File to write; its folder is made if need be.
        sha256: Expected digest.

    Raises:
        OSError: The address cannot be read, or the connection ended early.
        ValueError: The digest is not the expected one.
    """
    request = urllib.request.Request(url, headers={"User-Agent": "kerasdef"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
        length = response.headers.get("Content-Length")
        total = int(length) if length else None

        def write(part: Path) -> None:
            with open(part, "wb") as out:
                received = _copy(response, out, path.name, total)
            if total is not None and received != total:
                raise OSError(f"{url} ended after {received} of {total} bytes")
            check_digest(part, sha256, url)

        return write_whole(path, write)


def _copy(response, out, title: str, total: int | None) -> int:
    received = 0
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=total)
        while block := response.read(BLOCK):
            out.write(block)
            received += len(block)
            progress.update(task, completed=received)
    return received


def check_digest(path: Path, sha256: str, what: str | Path) -> None:
    """Raise a ValueError unless the file `path`, called `what` in the error, has this SHA-256."""
    found = _digest(path)
    if found != sha256.lower():
        raise ValueError(f"{what} must have the SHA-256 {sha256}. Received: {found}")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
