"""`kerasdef evaluate`: judge the defense of a finished run."""

from __future__ import annotations

from typing import Any

from kerasdef.cli import options
from kerasdef.cli.start import load_backend, print_paths
from kerasdef.recipes.settings import EvaluateSettings


def _run(settings: dict[str, Any]) -> None:
    load_backend()
    from kerasdef.recipes.evaluate import evaluate

    found = evaluate(**settings)
    print(found.report.table())
    print_paths(found.files)


command = options.command(EvaluateSettings, _run, doc="Judge the defense of a finished run, and each of its members.")
