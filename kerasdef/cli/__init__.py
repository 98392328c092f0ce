"""The command `kerasdef`: arguments in, one call of the library, a table and paths out. No logic of its own.

Each command is a file, made from a settings class. TensorFlow is imported by the commands that need it, so help and
lists come at once.
"""

from __future__ import annotations

import difflib
import sys
from typing import Annotated, NoReturn

import typer

from kerasdef._version import __version__
from kerasdef.cli import attack, certify, evaluate, export, report, train
from kerasdef.cli import list as lists
from kerasdef.texts import shown

_Typed = typer.BadParameter.__base__  # what typer finds wrong in what was typed

app = typer.Typer(
    help="Adversarial robustness for Keras: train, judge and ship defended classifiers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(train.app, name="train")
app.command("attack")(attack.command)
app.command("certify")(certify.command)
app.command("evaluate")(evaluate.command)
app.command("export")(export.command)
app.command("report")(report.command)
app.add_typer(lists.app, name="list")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"kerasdef {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Adversarial robustness for Keras: train, judge and ship defended classifiers."""


def main() -> None:
    """Run the command; a wrong value, or a disk that does not take a file, is one line on stderr and exit status 2."""
    for word in sys.argv[1:]:
        if not _is_text(word):
            _refuse(f"What is typed must be text in UTF-8. Received: {word!r}")
    try:
        status = app(standalone_mode=False)
    except _Typed as error:
        if error.ctx is not None and type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(error.exit_code)
        _refuse(_said(error))
    except (ValueError, TypeError, OSError) as error:
        _refuse(str(error))
    except typer.Abort:
        _refuse("Aborted.")
    sys.exit(status or 0)


def _is_text(word: str) -> bool:
    """Whether what was typed can be written into a report; the name of a file may be any bytes."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse(text: str) -> NoReturn:
    print(f"Error: {shown(' '.join(text.split()))}", file=sys.stderr)
    sys.exit(2)


def _said(error) -> str:
    """What typer found, in the words of other errors."""
    option = getattr(error, "option_name", None)
    if option is None or not hasattr(error, "possibilities"):
        return error.format_message()
    near = difflib.get_close_matches(option, error.possibilities or (), n=1, cutoff=0.7)
    return f"No such option: {option}." + (f" Did you mean {near[0]!r}?" if near else "")
