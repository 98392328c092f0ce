"""The command line: help for everything, one line for a wrong value, and each option arrives."""

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

import kerasdef
import kerasdef.recipes.mia.training as recipe
from kerasdef import backend, cli, settings
from kerasdef.cli import start
from kerasdef.recipes.hybrid.settings import HybridSettings
from kerasdef.recipes.iar.settings import IARSettings
from kerasdef.recipes.mia.settings import MIASettings
from kerasdef.recipes.robust.settings import METHODS, RobustSettings
from kerasdef.recipes.settings import (
    AttackSettings,
    CertifySettings,
    EvaluateSettings,
    ExportSettings,
    ReportSettings,
)


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
    found = {
        ("train", "mia"),
        ("attack",),
        ("certify",),
        ("evaluate",),
        ("export",),
        ("report",),
        ("list", "attacks"),
        ("list", "datasets"),
    }
    found |= {("train", "iar"), ("train", "hybrid"), ("list", "methods")} | {("train", name) for name in METHODS}
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


@pytest.mark.parametrize(
    "words",
    [["--help"], ["--version"], ["train", "mia", "--help"], ["train", "pgd", "--help"], ["list", "datasets"]],
    ids=" ".join,
)
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


# -- options are made from settings -------------------------------------------------------------------------------

CLASSES = {
    ("attack",): AttackSettings,
    ("certify",): CertifySettings,
    ("export",): ExportSettings,
    ("report",): ReportSettings,
}
CLASSES |= {("train", "mia"): MIASettings, ("train", "iar"): IARSettings}
CLASSES |= {("train", "hybrid"): HybridSettings, ("evaluate",): EvaluateSettings}
CLASSES |= {("train", name): RobustSettings for name in METHODS}


@pytest.mark.parametrize("path", CLASSES, ids=" ".join)
def test_every_option_and_argument_comes_from_a_field_and_says_what_it_says(path):
    fields = {f.name: settings.info(f) for f in dataclasses.fields(CLASSES[path])}
    wanted = {}
    for name, about in fields.items():
        if about.parts is not None:
            wanted |= {f"--{part}-{name}": text for part, text in about.parts.items()}
        elif about.argument:
            wanted[name] = about.text
        elif about.option is not None:
            wanted[about.option or f"--{name.replace('_', '-')}"] = about.text
    found = {p.opts[0]: p.help for p in COMMANDS[path].params if p.name != "help"}
    if path[0] == "train" and path[1] in METHODS:
        del found["--set"]
    assert found == wanted


@pytest.mark.parametrize("name", METHODS)
def test_the_help_of_a_method_says_what_its_own_settings_mean(name):
    said = " ".join(COMMANDS["train", name].help.split())
    assert METHODS[name].summary() in said
    for field in dataclasses.fields(METHODS[name]):
        assert f"{field.name}={settings.plain(field.default)}: {settings.info(field).help}" in said


def test_help_is_made_of_whole_sentences():
    texts = [p.help for path in LEAVES for p in COMMANDS[path].params]
    texts += [settings.info(f).text for own in METHODS.values() for f in dataclasses.fields(own)]
    for text in texts:
        assert text[0].isupper() or text.startswith('"rho"'), text
        assert text.endswith("."), text
        assert not text.startswith("Of "), text


def test_version_is_printed():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"kerasdef {kerasdef.__version__}\n")


def test_list_methods_shows_the_settings_of_each_method():
    done = CliRunner().invoke(cli.app, ["list", "methods"], env={"COLUMNS": "400"})
    for name, own in METHODS.items():
        (row,) = [line for line in done.output.splitlines() if line.split()[1:2] == [name]]
        assert own.summary() in row
        assert own.paper in row
        assert all(f"{f.name}={settings.plain(f.default)}" in row for f in dataclasses.fields(own))


# -- the start of TensorFlow --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [True, False])
def test_what_native_code_says_is_shown_when_the_start_fails_and_only_then(monkeypatch, capfd, fails):
    def has_gpu():
        os.write(2, b"CUDA_ERROR_NO_DEVICE\n")
        if fails:
            raise RuntimeError("no start")
        return True

    monkeypatch.setattr(backend, "has_gpu", has_gpu)
    if fails:
        with pytest.raises(RuntimeError, match="no start"):
            start.load_backend()
    else:
        start.load_backend()
    assert capfd.readouterr().err == ("CUDA_ERROR_NO_DEVICE\n" if fails else "")


def test_a_gpu_that_is_not_found_is_not_silent(monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(backend, "has_gpu", lambda: os.write(2, b"CUDA_ERROR\n") == 0)
    monkeypatch.setattr(start, "_NVIDIA", tmp_path)  # a driver is loaded
    start.load_backend()
    assert capfd.readouterr().err == "CUDA_ERROR\n"


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
    defaults = {k: v.default for k, v in inspect.signature(REAL_TRAIN).parameters.items()}
    assert command("train", "mia")[0] == 0
    data, kwargs = captured[0]
    assert data == defaults["data"]
    for name, value in kwargs.items():
        assert value == defaults[name] or (name == "epochs" and value == {}), name


REAL_TRAIN = recipe.train


def test_paths_stand_below_each_other_and_figures_are_not_listed(capsys):
    start.print_paths({"report.json": Path("a"), "figures/radii.png": Path("b"), "margins/saved_model": Path("c")})
    assert capsys.readouterr().out == "        report.json  a\nmargins/saved_model  c\n"
    start.print_paths({})
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack", "m.keras", "--bounds", "255,0"], "`bounds` must be a pair (low, high) with low < high"),
        (["attack", "m.keras", "--bounds", "0;255"], "`bounds` must be numbers separated by commas"),
        (["train", "pgd", "--bounds", "3"], "`bounds` must be a pair"),
        (["export", "runs/a", "--to", "pickle"], "`to` must be one of saved_model, keras"),
        (["evaluate", "runs/none"], "`run` must be the folder of a finished run"),
        (["train", "hybrid", "--steps", "2.5,3,5"], "`steps` must be integers separated by commas"),
        (["train", "hybrid", "--radii", "0.5,1"], "one value for each stage"),
        (["train", "hybrid", "--epochs", "2"], "`epochs` must be at least 3"),
        (["train", "hybrid", "--rate", "1"], "`rate` must be"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_wrong_value_is_refused_before_a_framework_is_imported(refused, monkeypatch, words, said):
    monkeypatch.setattr(start, "load_backend", lambda: pytest.fail("work began"))
    assert said in refused(*words)


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


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("attack", "m.keras", "--eps"), "--eps"),
        (("train", "fast", "--out"), "--out"),
        (("attack", "m.keras", "--eps", "1e400"), "`eps` must be a number or a fraction, such as 8/255"),
        (("attack", "m.keras", "--eps", "8/0"), "`eps` must be a number or a fraction, such as 8/255"),
        (("attack", "m.keras", "--eps", "0.1", "--set", "steps=" + "-" * 20_000), "m.keras"),
        (("train", "fast", "--set", "callbacks=[1]"), "`--set` is for the settings of the method. Received: callbacks"),
        (("attack", "s\udcff.keras"), "What is typed must be text in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(refused, words, text):
    assert text in refused(*words)
