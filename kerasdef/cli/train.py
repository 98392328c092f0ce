"""`kerasdef train`: a recipe for each paper, and a command for each method of robust training."""

from __future__ import annotations

import importlib
from typing import Any

import typer

from kerasdef.cli.options import command, described
from kerasdef.cli.start import load_backend, print_paths
from kerasdef.recipes.hybrid.settings import HybridSettings
from kerasdef.recipes.iar.settings import IARSettings
from kerasdef.recipes.mia.settings import MIASettings
from kerasdef.recipes.robust.settings import METHODS, MethodSettings, RobustSettings
from kerasdef.settings import names

app = typer.Typer(help="Train a defense, judge it and export it.", no_args_is_help=True)


def _run(recipe: str, *arguments, settings: dict[str, Any]) -> None:
    """Run a recipe, print its table and say where its files are."""
    load_backend()
    data = settings.pop("data")
    result = importlib.import_module(f"kerasdef.recipes.{recipe}.training").train(*arguments, data, **settings)
    print(result.report.table())
    print_paths(result.files)


def _recipe(name: str, cls, doc: str) -> None:
    app.command(name)(command(cls, lambda settings: _run(name, settings=settings), doc=doc))


def _method(name: str, own: type[MethodSettings]) -> None:
    doc = f"{own.summary()} {own.paper}".strip()
    if names(own):
        doc += f"\n\nSettings of its own, for --set:\n\n{described(own)}"
    app.command(name)(
        command(RobustSettings, lambda settings: _run("robust", name, settings=settings), doc=doc, own=own)
    )


_recipe(
    "mia", MIASettings, "Model Integration Approach: adversarial training in growing shares, bootstraps and a vote."
)
_recipe("iar", IARSettings, "Iterative adversarial retraining of an 11-class CNN. Afzal and Huzaifa, 2025")
_recipe(
    "hybrid",
    HybridSettings,
    "Hybrid defense: members trained in stages, a detector, an autoencoder, weights. Wen, Danso and Danso, 2025",
)
for _name, _own in METHODS.items():
    _method(_name, _own)
