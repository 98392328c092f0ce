"""The command line: help for everything, one line for a wrong value, and each option arrives."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import kerasdef
import kerasdef.recipes.mia.training as recipe
from kerasdef import cli
from kerasdef.catalog import METHODS


def commands(command=None, path=()):
    """Every command and group as (words, click command)."""
    command = typer.main.get_command(cli.app) if command is None else command
    found = [(path, command)]
    for name, child in getattr(command, "commands", {}).items():
        found += commands(child, (*path, name))
    return found


COMMANDS = dict(commands())
LEAVES = [path for path, command in COMMANDS.items() if not getattr(command, "commands", {})]


# -- help ---------------------------------------------------------------------------------------------------------


def test_there_are_the_commands_that_we_know():
    found = {("train", "mia"), ("attack",), ("export",), ("report",), ("list", "attacks"), ("list", "datasets")}
    found |= {("train", "iar"), ("list", "methods")} | {("train", name) for name in METHODS}
    assert set(LEAVES) == found


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_help(path):
    assert COMMANDS[path].help
    done = CliRunner().invoke(cli.app, [*path, "--help"])
    assert done.exit_code == 0
    assert "Usage" in done.output


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_option_and_argument_has_help(path):
    for parameter in COMMANDS[path].params:
        assert parameter.help, f"{' '.join(path)}: {parameter.name}"


def test_list_datasets_names_every_data_set():
    from kerasdef.datasets import DATASETS

    done = CliRunner().invoke(cli.app, ["list", "datasets"], env={"COLUMNS": "200"})
    assert done.exit_code == 0
    for name in DATASETS:
        assert name in done.output


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_stands_in_the_readme(path):
    readme = Path(kerasdef.__file__).parents[1] / "README.md"
    assert readme.exists(), "README.md is missing"
    assert f"kerasdef {' '.join(path)}" in readme.read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [["--help"], ["train", "mia", "--help"], ["list", "datasets"]], ids=" ".join)
def test_help_and_lists_come_without_importing_a_framework(words):
    code = (
        "import atexit, runpy, sys\n"
        f"sys.argv = ['kerasdef', *{words!r}]\n"
        "atexit.register(lambda: print('imported:', sorted({'tensorflow', 'jax', 'keras'} & set(sys.modules))))\n"
        "runpy.run_module('kerasdef', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("imported: []")


# -- train mia ----------------------------------------------------------------------------------------------------


@pytest.fixture
def captured(monkeypatch):
    """What `train` is called with: a list of (data, keyword arguments)."""
    found = []

    def train(data, **kwargs):
        found.append((data, kwargs))
        return SimpleNamespace(
            report=SimpleNamespace(table=lambda: "the table"), files={"report.json": Path("x/report.json")}
        )

    monkeypatch.setattr(recipe, "train", train)
    return found


OPTIONS = {
    "--attacks": ("fgsm, gma", "attacks", ("fgsm", "gma")),
    "--shares": ("0.1,0.3", "shares", (0.1, 0.3)),
    "--share": ("0.4", "share", 0.4),
    "--threshold": ("0.7", "threshold", 0.7),
    "--bootstraps": ("5", "bootstraps", 5),
    "--target": ("vgg7", "target", "vgg7"),
    "--members": ("eat1,cnn11", "members", ("eat1", "cnn11")),
    "--batch-size": ("64", "batch_size", 64),
    "--learning-rate": ("0.01", "learning_rate", 0.01),
    "--test-size": ("0.2", "test_size", 0.2),
    "--valid-size": ("0.2", "valid_size", 0.2),
    "--limit": ("50", "limit", 50),
    "--adaptive-limit": ("20", "adaptive_limit", 20),
    "--adaptive-steps": ("7", "adaptive_steps", 7),
    "--seed": ("3", "seed", 3),
    "--out": ("runs/a", "out", Path("runs/a")),
    "--target-epochs": ("9", "epochs", {"target": 9}),
    "--eat-epochs": ("8", "epochs", {"eat": 8}),
    "--mia-epochs": ("7", "epochs", {"mia": 7}),
    "--per-attack": (None, "per_attack", True),
    "--stop": (None, "stop", True),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_of_train_mia_arrives(command, captured, option):
    text, name, wanted = OPTIONS[option]
    words = [option] if text is None else [option, text]
    status, out, _ = command("train", "mia", *words)
    assert status == 0
    assert "the table" in out
    assert "x/report.json" in out
    ((data, kwargs),) = captured
    assert data == "digits"
    assert kwargs[name] == wanted


def test_the_options_tested_are_all_there_are():
    there = {o for p in COMMANDS["train", "mia"].params for o in p.opts} - {"--help", "--dataset"}
    assert there == set(OPTIONS)


def test_the_data_set_arrives(command, captured):
    assert command("train", "mia", "--dataset", "mnist")[0] == 0
    assert captured[0][0] == "mnist"


def test_the_defaults_of_the_command_are_those_of_the_function(command, captured):
    import inspect

    defaults = {k: v.default for k, v in inspect.signature(REAL_TRAIN).parameters.items()}
    assert command("train", "mia")[0] == 0
    data, kwargs = captured[0]
    assert data == defaults["data"]
    for name, value in kwargs.items():
        assert value == defaults[name] or (name == "epochs" and value == {}), name


REAL_TRAIN = recipe.train


def test_paths_stand_below_each_other_and_figures_are_not_listed(capsys):
    cli._paths({"report.json": Path("a"), "figures/radii.png": Path("b"), "margins/saved_model": Path("c")})
    assert capsys.readouterr().out == "        report.json  a\nmargins/saved_model  c\n"
    cli._paths({})
    assert capsys.readouterr().out == ""


# -- wrong values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--dataset", "digitz"], "digits"),
        (["--attacks", "fgms"], "Did you mean 'fgsm'"),
        (["--attacks", ""], "`attacks` must name at least one"),
        (["--shares", "a,b"], "`shares` must be numbers separated by commas"),
        (["--shares", "0.5,0.2"], "`shares` must be shares that grow"),
        (["--share", "0.3"], "`share` must be None or one of"),
        (["--threshold", "2"], "`threshold` must be"),
        (["--seed", "-1"], "`seed` must be"),
        (["--members", "eat9"], "Did you mean 'eat"),
        (["--members", ","], "`members` must be one or more networks"),
        (["--eat-epochs", "0"], "must be a positive integer"),
        (["--dataset", "nowhere/images.npz"], "images.npz"),
    ],
    ids=" ".join,
)
def test_a_wrong_value_is_one_line_and_status_2(refused, tmp_path, words, said):
    assert said in refused("train", "mia", "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["report", "export"])
def test_a_run_that_is_not_there_is_one_line_and_status_2(refused, tmp_path, name):
    said = refused(name, tmp_path / "nowhere")
    assert "`run` must be the folder of a finished run" in said
    assert not list(tmp_path.iterdir())


def test_an_unknown_option_or_format_is_status_2_without_a_traceback(command, tmp_path):
    for words in (["train", "mia", "--speed", "9"], ["export", tmp_path, "--to", "pickle"], ["fly"]):
        status, _, err = command(*words)
        assert status == 2
        assert "Traceback" not in err


def test_the_command_as_a_process_says_one_line_and_ends_with_status_2(tmp_path):
    command = [sys.executable, "-m", "kerasdef", "report", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
