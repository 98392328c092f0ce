"""`kerasdef certify`: smooth a model and say within which radii its labels are certain."""

from __future__ import annotations

from typing import Any

from kerasdef.cli import options
from kerasdef.cli.start import load_backend, print_paths
from kerasdef.recipes.settings import CertifySettings


def _run(settings: dict[str, Any]) -> None:
    load_backend()
    from kerasdef.recipes.certify import certify

    found = certify(**settings)
    print(found.text())
    print_paths(found.files)


command = options.command(
    CertifySettings, _run, doc="Smooth a model with noise and say within which radii its labels are certain."
)
