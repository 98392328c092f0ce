"""`kerasdef attack`: attack a model and say what it withstands."""

from __future__ import annotations

import sys
from typing import Any

from kerasdef.cli import options
from kerasdef.cli.start import load_backend, print_paths
from kerasdef.recipes.settings import AttackSettings


def _run(settings: dict[str, Any]) -> None:
    load_backend()
    from kerasdef.models.served import is_saved_model, vet
    from kerasdef.recipes.attack import attack

    if is_saved_model(settings["model"]):
        if not settings["trust"]:
            vet(settings["model"])  # before the note, so that what is refused is one line
        print("Note: a SavedModel is a program. Its operations run on this machine.", file=sys.stderr)
    found = attack(**settings)
    print(found.text())
    print_paths(found.files)


command = options.command(AttackSettings, _run, doc="Attack a model and say what it withstands.")
