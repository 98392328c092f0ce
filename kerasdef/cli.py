"""The command `kerasdef`: arguments in, one call of the library, a table and paths out. No logic of its own.

TensorFlow is imported by the commands that need it, so help and lists come at once.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from kerasdef.catalog import ATTACKS, METHODS, MethodInfo

app = typer.Typer(
    help="Adversarial robustness for Keras: train, judge and ship defended classifiers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
train_app = typer.Typer(help="Train a defense, judge it, export it.", no_args_is_help=True)
list_app = typer.Typer(help="List what is there.", no_args_is_help=True)
app.add_typer(train_app, name="train")
app.add_typer(list_app, name="list")


Data = Annotated[str, typer.Option(help="digits, mnist, fashion_mnist, cifar10, gtsrb, or an .npz file.")]
Out = Annotated[Path | None, typer.Option(help="Folder for the run; a killed run goes on from there.")]
Seed = Annotated[int, typer.Option(help="All randomness comes from it.")]
Judged = Annotated[bool, typer.Option(help="Run the standard AutoAttack.")]


class Format(str, Enum):
    """What to export to."""

    saved_model = "saved_model"
    keras = "keras"


def _load_backend() -> None:
    """Import Keras and look for devices, without the notices that TensorFlow's C++ code prints at its start."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    kept, silent = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    sys.stderr.flush()
    os.dup2(silent, 2)
    try:
        from kerasdef import backend

        backend.has_gpu()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silent)


def _train(recipe: str, *arguments, **settings) -> None:
    """Run a recipe, print its table and say where its files are."""
    _load_backend()
    result = importlib.import_module(f"kerasdef.recipes.{recipe}").train(*arguments, **settings)
    print(result.report.table())
    _paths(result.files)


def _floats(text: str, name: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"`{name}` must be numbers separated by commas. Received: {text!r}") from None


def _fraction(text: str, name: str) -> float:
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"`{name}` must be a number or a fraction, such as 8/255. Received: {text!r}") from None


def _setting(text: str) -> tuple[str, object]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"`--set` must be name=value. Received: {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value  # a word


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


@train_app.command("mia")
def train_mia(
    dataset: Data = "digits",
    out: Out = None,
    per_attack: Annotated[bool, typer.Option(help="One defense for each attack, as in the paper's tables.")] = False,
    attacks: Annotated[str, typer.Option(help="Names separated by commas.")] = "gma,pgd,fgsm,cw",
    shares: Annotated[str, typer.Option(help="Growing shares of adversarial images.")] = "0.15,0.25,0.40,0.50",
    share: Annotated[float | None, typer.Option(help="The share to train the voters at; default: the rule's.")] = None,
    threshold: Annotated[float, typer.Option(help="Accuracy that the stop rule asks for.")] = 0.80,
    stop: Annotated[bool, typer.Option(help="End the cycles where the stop rule fires.")] = False,
    bootstraps: Annotated[int, typer.Option(help="Number of voters.")] = 3,
    target: Annotated[str, typer.Option(help="Network of the undefended target.")] = "target_dnn",
    members: Annotated[str, typer.Option(help="Networks of the EAT models.")] = "eat1,eat2,eat3",
    target_epochs: Annotated[int | None, typer.Option(help="Passes of the target.")] = None,
    eat_epochs: Annotated[int | None, typer.Option(help="Passes of an EAT cycle.")] = None,
    mia_epochs: Annotated[int | None, typer.Option(help="Passes of a voter.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Samples in a training batch.")] = None,
    learning_rate: Annotated[float, typer.Option(help="Of Adam.")] = 1e-3,
    test_size: Annotated[float, typer.Option(help="Share of the whole set held out for testing.")] = 0.30,
    valid_size: Annotated[float, typer.Option(help="Share of the rest held out for the stop rule.")] = 0.10,
    limit: Annotated[int, typer.Option(help="Most test images to judge on.")] = 4000,
    adaptive_limit: Annotated[int, typer.Option(help="Most test images for the adaptive attacks.")] = 500,
    adaptive_steps: Annotated[int, typer.Option(help="Steps of the adaptive attacks.")] = 100,
    seed: Seed = 0,
) -> None:
    """Model Integration Approach: adversarial training in growing shares, bootstraps, a vote."""
    epochs = {"target": target_epochs, "eat": eat_epochs, "mia": mia_epochs}
    settings = dict(
        attacks=_names(attacks),
        per_attack=per_attack,
        shares=_floats(shares, "shares"),
        share=share,
        threshold=threshold,
        stop=stop,
        bootstraps=bootstraps,
        target=target,
        members=_names(members),
        epochs={k: v for k, v in epochs.items() if v is not None},
        batch_size=batch_size,
        learning_rate=learning_rate,
        test_size=test_size,
        valid_size=valid_size,
        limit=limit,
        adaptive_limit=adaptive_limit,
        adaptive_steps=adaptive_steps,
        seed=seed,
        out=out,
    )
    _train("mia", dataset, **settings)


@train_app.command("iar")
def train_iar(
    dataset: Data = "digits",
    out: Out = None,
    eps: Annotated[str | None, typer.Option(help="Linf radius of FGSM, PGD and BIM, such as 0.1.")] = None,
    adversarial_label: Annotated[str, typer.Option(help="true: their class; reject: the eleventh.")] = "true",
    weight: Annotated[float, typer.Option(help="Of the clean and noisy images in the loss.")] = 0.5,
    smoothing: Annotated[float, typer.Option(help="Label smoothing.")] = 0.1,
    noise: Annotated[float, typer.Option(help="Standard deviation of the Gaussian noise.")] = 0.1,
    iterations: Annotated[int, typer.Option(help="Batches of retraining at most.")] = 3000,
    round_size: Annotated[int, typer.Option(help="Training images that a round attacks.")] = 2048,
    stop: Annotated[str | None, typer.Option(help="rho: end where the paper's rule fires.")] = None,
    network: Annotated[str, typer.Option(help="Name of the network.")] = "cnn11",
    surrogate: Annotated[str, typer.Option(help="Network of the gray-box attacker.")] = "target_dnn",
    epochs: Annotated[int | None, typer.Option(help="Passes over the clean images before.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a batch of retraining.")] = 126,
    learning_rate: Annotated[float, typer.Option(help="Of Adam at the start.")] = 1e-3,
    n_test: Annotated[int, typer.Option(help="Most test images to judge on.")] = 1000,
    autoattack: Judged = True,
    seed: Seed = 0,
) -> None:
    """Iterative adversarial retraining of an 11-class CNN. Afzal and Huzaifa, 2025"""
    settings = dict(
        eps=None if eps is None else _fraction(eps, "eps"),
        adversarial_label=adversarial_label,
        weight=weight,
        smoothing=smoothing,
        noise=noise,
        iterations=iterations,
        round_size=round_size,
        stop=stop,
        network=network,
        surrogate=surrogate,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        n_test=n_test,
        autoattack=autoattack,
        seed=seed,
        out=out,
    )
    _train("iar", dataset, **settings)


def _training_command(name: str, info: MethodInfo):
    """The command of one method of robust training; all have the same options."""

    def command(
        dataset: Data = "digits",
        out: Out = None,
        model: Annotated[Path | None, typer.Option(help="Your own classifier, a .keras file, to go on from.")] = None,
        network: Annotated[str | None, typer.Option(help="Name of a network; default: the method's.")] = None,
        eps: Annotated[str | None, typer.Option(help="Radius in input units, such as 8/255 or 0.3.")] = None,
        norm: Annotated[str, typer.Option(help="linf, l2 or l1.")] = "linf",
        epochs: Annotated[int | None, typer.Option(help="Passes over the training images.")] = None,
        batch_size: Annotated[int | None, typer.Option(help="Images in a batch.")] = None,
        learning_rate: Annotated[float, typer.Option(help="Of Adam at the start.")] = 1e-3,
        weight_decay: Annotated[float, typer.Option(help="Decoupled weight decay.")] = 0.0,
        average: Annotated[
            bool | None, typer.Option(help="Average the weights over about an epoch; default: not with BatchNorm.")
        ] = None,
        augment: Annotated[bool | None, typer.Option(help="Shift and flip images; default: CIFAR-10 only.")] = None,
        precision: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
        valid_size: Annotated[float, typer.Option(help="Share of the training images held out.")] = 0.05,
        n_train: Annotated[int | None, typer.Option(help="Training images to use; default: all.")] = None,
        n_test: Annotated[int, typer.Option(help="Most test images to attack.")] = 1000,
        autoattack: Judged = True,
        settings: Annotated[
            list[str] | None, typer.Option("--set", help="A setting of the method, as name=value; may be given again.")
        ] = None,
        seed: Seed = 0,
    ) -> None:
        given = dict(
            model=model,
            network=network,
            eps=None if eps is None else _fraction(eps, "eps"),
            norm=norm,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            average=average,
            augment=augment,
            precision=precision,
            valid_size=valid_size,
            n_train=n_train,
            n_test=n_test,
            autoattack=autoattack,
            seed=seed,
            out=out,
        )
        for text in settings or ():
            key, value = _setting(text)
            if key in given or key in ("method", "data"):
                raise ValueError(f"`--set` is for the settings of the method. Received: {key}")
            given[key] = value
        _train("robust", name, dataset, **given)

    own = f"\n\nFor --set: {info}." if info.settings else ""
    command.__doc__ = f"{info.summary} {info.paper}".strip() + own
    train_app.command(name)(command)


for _name, _info in METHODS.items():
    _training_command(_name, _info)


@app.command("attack")
def attack_model(
    model: Annotated[Path, typer.Argument(help="A .keras file, the folder of a run, or a SavedModel (black box).")],
    dataset: Data = "digits",
    attack: Annotated[str, typer.Option(help="A name of `kerasdef list attacks`.")] = "autoattack",
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1; default: the attack's.")] = None,
    eps: Annotated[str | None, typer.Option(help="Radius in input units, such as 8/255 or 0.3.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Another setting, as name=value; may be given again.")
    ] = None,
    n: Annotated[int | None, typer.Option(help="Number of test images; default: all.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images that are worked on at a time.")] = 256,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the result; a killed run goes on from there.")] = None,
) -> None:
    """Attack a model and say what it withstands."""
    values = dict(_setting(text) for text in settings or ())
    radius = None if eps is None else _fraction(eps, "eps")
    _load_backend()
    from kerasdef.recipes.attack import attack as run

    found = run(
        model,
        dataset,
        attack,
        norm=norm,
        eps=radius,
        settings=values,
        n=n,
        batch_size=batch_size,
        seed=seed,
        out=out,
    )
    print(found.text())
    _paths(found.files)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or a .keras file.")],
    to: Annotated[Format, typer.Option(help="saved_model or keras.")] = Format.saved_model,
    out: Annotated[Path | None, typer.Option(help="Where to write; default: into the run's folder.")] = None,
) -> None:
    """Export a trained defense, read it back and compare it with the live model."""
    _load_backend()
    from kerasdef.models.export import export_run

    _paths(export_run(run, to=to.value, out=out))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a run.")]) -> None:
    """Print the table of a finished run and write its report files again."""
    from kerasdef.reporting import Report

    if not (run / "report.json").is_file():
        raise ValueError(f"`run` must be the folder of a finished run (with a report.json). Received: run={str(run)!r}")
    found = Report.load(run)
    print(found.table())
    _paths(found.save(run))


@list_app.command("attacks")
def list_attacks() -> None:
    """The attacks that are known by name."""
    name = Column("name", min_width=max(map(len, ATTACKS)))  # what the command line wants, whole
    table = Table(name, "norms", "access", "kind", "paper")
    for name, info in ATTACKS.items():
        table.add_row(name, ", ".join(info.norms), info.access, info.kind, info.paper)
    Console().print(table)


@list_app.command("methods")
def list_methods() -> None:
    """The ways to train a robust classifier."""
    table = Table("name", "what it does", "settings", "paper")
    for name, info in METHODS.items():
        table.add_row(name, info.summary, str(info), info.paper)
    Console().print(table)


@list_app.command("datasets")
def list_datasets() -> None:
    """The data sets that are known by name."""
    from kerasdef.datasets import DATASETS

    table = Table("name", "title", "images", "shape", "classes", "license")
    for name, info in DATASETS.items():
        table.add_row(
            name, info.title, f"{info.samples:,}", "x".join(map(str, info.shape)), str(info.classes), info.license
        )
    Console().print(table)


def _paths(files: dict[str, Path]) -> None:
    shown = {k: v for k, v in files.items() if not k.startswith("figures/")}  # in the report, and in its folder
    width = max([12, *map(len, shown)])
    for name, path in shown.items():
        print(f"{name:>{width}}  {path}")


def main() -> None:
    """Run the command; a wrong value is one line on stderr and exit status 2."""
    try:
        app()
    except (ValueError, FileNotFoundError) as error:
        print(f"Error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
