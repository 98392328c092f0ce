"""What commands do around a call of the library: start TensorFlow without its notices, and print paths."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from kerasdef import texts

_NVIDIA = Path("/dev/nvidiactl")  # there where a driver is loaded


def load_backend() -> None:
    """Import Keras and look for devices, without the notices that TensorFlow's C++ code prints at its start.

    What was printed is shown where the start fails, and where the machine has an NVIDIA GPU that is not found.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _captured() as show:
        from kerasdef import backend

        if not backend.has_gpu() and _NVIDIA.exists():
            show()


def print_paths(files: Mapping[str, Path]) -> None:
    """Print where files are, one a line; figures are in the report, and in its folder."""
    shown = {k: v for k, v in files.items() if not k.startswith("figures/")}
    width = max([12, *map(len, shown)])
    for name, path in shown.items():
        print(f"{name:>{width}}  {texts.shown(str(path))}")


@contextlib.contextmanager
def _captured() -> Iterator:
    """Keep what native code writes to stderr; yields a call that shows it in the end, as an exception does too."""
    wanted = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: wanted.append(True)
        except BaseException:
            wanted.append(True)
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            if wanted:
                sys.stderr.write(file.read().decode(errors="replace"))
                sys.stderr.flush()
