"""`kerasdef report`: print the table of a finished run and write its report files again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kerasdef.cli import options
from kerasdef.cli.start import print_paths
from kerasdef.recipes.settings import ReportSettings


def _run(settings: dict[str, Any]) -> None:
    run: Path = settings["run"]
    from kerasdef.reporting import Report

    found = Report.load(run)
    print(found.table())
    print_paths(found.save(run))


command = options.command(
    ReportSettings, _run, doc="Print the table of a finished run and write its report files again."
)
