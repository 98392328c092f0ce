"""`kerasdef list`: what there is by name."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Column, Table

from kerasdef.catalog import ATTACKS
from kerasdef.recipes.robust.settings import METHODS
from kerasdef.settings import words

app = typer.Typer(help="List what there is by name.", no_args_is_help=True)


@app.command()
def attacks() -> None:
    """List the attacks that are known by name."""
    name = Column("name", min_width=max(map(len, ATTACKS)))  # what the command line wants, whole
    table = Table(name, "norms", "access", "kind", "paper")
    for name, about in ATTACKS.items():
        table.add_row(name, ", ".join(about.norms), about.access, about.kind, about.paper)
    Console().print(table)


@app.command()
def methods() -> None:
    """List the ways to train a robust classifier."""
    table = Table("name", "what it does", "settings", "paper")
    for name, own in METHODS.items():
        table.add_row(name, own.summary(), words(own), own.paper)
    Console().print(table)


@app.command()
def datasets() -> None:
    """List the data sets that are known by name."""
    from kerasdef.datasets import DATASETS

    table = Table("name", "title", "images", "shape", "classes", "license")
    for name, about in DATASETS.items():
        table.add_row(
            name, about.title, f"{about.samples:,}", "x".join(map(str, about.shape)), str(about.classes), about.license
        )
    Console().print(table)
