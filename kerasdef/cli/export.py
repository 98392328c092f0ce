"""`kerasdef export`: write a trained defense in a format that other programs read."""

from __future__ import annotations

from typing import Any

from kerasdef.cli import options
from kerasdef.cli.start import load_backend, print_paths
from kerasdef.recipes.settings import ExportSettings


def _run(settings: dict[str, Any]) -> None:
    load_backend()
    from kerasdef.models.export import export_run

    print_paths(export_run(**settings))


_DOC = "Export a trained defense, read it back and compare it with the live model."
command = options.command(ExportSettings, _run, doc=_DOC)
