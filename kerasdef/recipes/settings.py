"""Settings that several recipes and commands share, and the sizes that follow from the data. Imports no Keras."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kerasdef import annotations, checks
from kerasdef.settings import Settings, setting

SMALL = 10_000  # below this many training images: batches of 32, and epochs by optimizer steps
BATCH = {"small": 32, "large": 128}  # hybrid paper: 128; mia and iar name none

positive = partial(checks.real, low=0.0, open_low=True)
at_least_0 = partial(checks.real, low=0.0)
unit = partial(checks.real, low=0.0, high=1.0)


def switch(name: str, value) -> bool:
    """Return `value` as True or False."""
    annotations.check(name, value, bool)
    return bool(value)


def pair(name: str, value) -> tuple[float, float]:
    """Return `value` as bounds."""
    return checks.bounds(value)


def sequence(name: str, value) -> tuple:
    """Return `value`, a list, as a tuple."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise ValueError(f"`{name}` must be a list. Received: {name}={value!r}")
    return tuple(value)


def _callbacks(name: str, value) -> tuple:
    """Return a list of Keras callbacks as a tuple."""
    import keras  # help needs the fields, and no Keras

    value = sequence(name, value)
    for one in value:
        if not isinstance(one, keras.callbacks.Callback):
            raise ValueError(f"`{name}` must be a list of keras.callbacks.Callback. Received: {annotations.shown(one)}")
    return value


def _finished(name: str, value) -> Path:
    """Return the folder of a finished run."""
    annotations.check(name, value, str | Path)
    if not (Path(value) / "report.json").is_file():
        raise ValueError(
            f"`{name}` must be the folder of a finished run (with a report.json). Received: {name}={str(value)!r}"
        )
    return Path(value)


# -- how the command line reads a value ---------------------------------------------------------------------------


def fraction(name: str, text: str) -> float:
    """A number or a fraction, such as 8/255."""
    try:
        above, slash, below = text.partition("/")
        value = float(above) / float(below if slash else 1)
        if not math.isfinite(value):
            raise ValueError
        return value
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"`{name}` must be a number or a fraction, such as 8/255. Received: {text!r}") from None


def numbers(name: str, text: str) -> tuple[float, ...]:
    """Numbers separated by commas."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"`{name}` must be numbers separated by commas. Received: {text!r}") from None


def several(name: str, text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _parts(name: str, value) -> tuple[str, ...] | None:
    """Return names of groups of parts; the attack itself knows which there are."""
    if value is None:
        return None
    value = (value,) if isinstance(value, str) else sequence(name, value)
    if not value or not all(isinstance(part, str) for part in value):
        raise ValueError(f"`{name}` must name groups of parts, or be None. Received: {name}={annotations.shown(value)}")
    return tuple(value)


# -- fields that recipes share ------------------------------------------------------------------------------------


def dataset(python: str) -> Any:
    """The field for the data set."""
    return setting(
        "digits",
        option="--dataset",
        record=False,
        help='The data set: a name ("digits", "mnist", "fashion_mnist", "cifar10" or "gtsrb") or the path of an .npz '
        "file.",
        python=python,
    )


def callbacks() -> Any:
    """The field for Keras callbacks."""
    return setting((), option=None, record=False, check=_callbacks, help="Keras callbacks, passed to every `fit`.")


def learning_rate(falls: bool = True) -> Any:
    """The field for the rate of the optimizer."""
    end = " at the start; it falls as a cosine to zero." if falls else "."
    return setting(1e-3, check=positive, help=f"The learning rate of the optimizer Adam{end}")


def judged(default: int = 1000) -> Any:
    """The field for the number of test images."""
    return setting(default, check=checks.positive_int, help="The largest number of test images to attack and judge on.")


def autoattack() -> Any:
    """The field for the standard AutoAttack."""
    return setting(
        True,
        check=switch,
        help="Whether the standard AutoAttack is run on the trained model too, which takes minutes on 1,000 images.",
    )


# -- settings -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """What every command that makes a run takes."""

    data: str | Path | Any = dataset("Also a `Dataset`, or arrays (x, y) or (x_train, y_train, x_test, y_test).")
    out: Path | str | None = setting(
        None,
        last=True,
        record=False,
        help="The folder for the run: its state, its report and what it exports. A run that was killed goes on from "
        "there and ends with the same result.",
    )
    seed: int = setting(
        0, last=True, check=checks.non_negative_int, help="The number that all randomness is drawn from."
    )
    progress: bool | None = setting(
        None,
        option=None,
        last=True,
        record=False,
        help="Whether progress bars are shown; None shows them on a terminal and in notebooks.",
    )


@dataclass(frozen=True, kw_only=True)
class AttackSettings(RunSettings):
    """What `kerasdef attack` takes."""

    data: str | Path | Any = dataset(
        "Also a `Dataset`, or arrays (x, y), which are all attacked, or (x_train, y_train, x_test, y_test)."
    )
    model: Path | Any = setting(
        argument=True,
        record=False,
        help="The model to attack: a .keras file, the folder of a run, or the folder of a SavedModel, which is "
        "attacked as a black box.",
        python="Also a built Keras classifier or a callable from images to scores or labels.",
    )
    attack: str | Any = setting(
        "autoattack",
        help="The name of an attack, see `kerasdef list attacks`.",
        python="Also an `Attack`, which has norm, eps and settings of its own.",
    )
    norm: str | None = setting(
        None, help='The norm of the change: "linf", "l2" or "l1". The default is that of the attack.'
    )
    eps: float | None = setting(
        None,
        read=fraction,
        help="The radius in units of the data, such as 8/255 or 0.3. Attacks that look for the smallest change do not "
        "need it: with it, a larger change does not count.",
    )
    bounds: tuple[float, float] | None = setting(
        None,
        check=pair,
        read=numbers,
        help="The range LOW,HIGH of the values that the model itself takes, such as 0,255. By default it is read off "
        "the model's first layers, or else is that of the data.",
    )
    settings: Mapping | None = setting(
        None,
        option="--set",
        help="Another setting of the attack by its name, on the command line as name=value; may be given again.",
    )
    n: int | None = setting(
        None, check=checks.positive_int, help="The number of test images to attack. By default all are attacked."
    )
    batch_size: int = setting(
        256, check=checks.positive_int, record=False, help="The number of images that are worked on at a time."
    )
    trust: bool = setting(
        False,
        check=switch,
        record=False,
        help="Whether a SavedModel may have operations that touch files, processes, Python or the network. A "
        "SavedModel is a program, and its operations run on this machine.",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings(RunSettings):
    """What `kerasdef evaluate` takes."""

    run: Path | str = setting(
        argument=True, record=False, check=_finished, help="The folder of a finished run, whose defense is judged."
    )
    data: str | Path | Any = setting(
        None,
        option="--dataset",
        record=False,
        help='The data set: a name such as "digits" or the path of an .npz file. By default that of the run, whose '
        "test images are used.",
        python="Also a `Dataset` or arrays, as the recipes take them.",
    )
    adaptive: bool = setting(
        False,
        check=switch,
        help="Whether the defense is also attacked by one who knows all of it, and each of its members alone as "
        "strongly. Only that says how robust it is.",
    )
    n: int = setting(200, check=checks.positive_int, help="The largest number of test images to judge on.")
    eps: float | None = setting(
        None,
        check=positive,
        read=fraction,
        help="The Linf radius in units of the data, such as 8/255 or 0.3. By default that of the run.",
    )
    steps: int = setting(100, check=checks.positive_int, help="The number of steps of the adaptive attacks.")
    parts: Sequence[str] | str | None = setting(
        None,
        check=_parts,
        read=several,
        help="The groups of parts of the adaptive attack that are run, as `kerasdef.adaptive` names them, on the "
        "command line separated by commas. By default all; fewer make a weaker attack, and the manifest says so.",
    )
    autoattack: bool = setting(
        True,
        check=switch,
        help="Whether the standard AutoAttack is one of the attacks that are made on the undefended model.",
    )


@dataclass(frozen=True, kw_only=True)
class CertifySettings(RunSettings):
    """What `kerasdef certify` takes."""

    data: str | Path | Any = dataset(
        "Also a `Dataset`, or arrays (x, y), of which all are certified, or (x_train, y_train, x_test, y_test)."
    )
    model: Path | Any = setting(
        argument=True,
        record=False,
        help="The model to smooth: a .keras file, or the folder of a run. Of a defense the decision is smoothed. An "
        "exported SavedModel cannot be smoothed, since it refuses values beyond its bounds.",
        python="Also a built Keras classifier.",
    )
    sigma: float = setting(
        0.25,
        check=positive,
        help="The standard deviation of the noise in units of the data; a model that was trained with the same noise "
        "certifies most.",
        source="Cohen et al., 2019, who take 0.12 to 1.0",
    )
    n: int | None = setting(
        None, check=checks.positive_int, help="The number of test images to certify. By default all are certified."
    )
    draws: int = setting(
        10_000,
        check=checks.positive_int,
        help="The number of noisy copies of each image that its radius follows from. Ten times as many, as in the "
        "paper, certify larger radii.",
    )
    n0: int = setting(
        100,
        check=checks.positive_int,
        source="the paper's 100",
        help="The number of other noisy copies of each image that its label is guessed from.",
    )
    alpha: float = setting(
        0.001,
        check=checks.share,
        source="the paper's 0.001",
        help="The probability, for each image, that its certificate is wrong.",
    )
    bounds: tuple[float, float] | None = setting(
        None,
        check=pair,
        read=numbers,
        help="The range LOW,HIGH of the values that the model itself takes, such as 0,255. By default it is read off "
        "the model's first layers, or else is that of the data.",
    )
    batch_size: int = setting(
        512, check=checks.positive_int, record=False, help="The number of noisy images that are worked on at a time."
    )


@dataclass(frozen=True, kw_only=True)
class ExportSettings(Settings):
    """What `kerasdef export` takes."""

    run: Path = setting(argument=True, help="The folder of a finished run, or a .keras file.")
    to: str = setting(
        "saved_model",
        check=partial(checks.one_of, choices=("saved_model", "keras", "onnx")),
        help='The format: "saved_model" for a SavedModel, "keras" for a .keras file, "onnx" for ONNX Runtime.',
    )
    out: Path | None = setting(None, help="Where to write. By default into the folder of the run.")


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What `kerasdef report` takes."""

    run: Path = setting(
        argument=True,
        check=_finished,
        help="The folder of a finished run.",
    )


# -- sizes that follow from the data ------------------------------------------------------------------------------


def usual_batch(n: int) -> int:
    """Images in a batch for n training images."""
    return BATCH["small" if n < SMALL else "large"]


def enough_epochs(usual: int, steps: int, n: int, batch_size: int) -> int:
    """The usual epochs, or on small sets as many as make that many optimizer steps."""
    return usual if n >= SMALL else max(usual, math.ceil(steps / max(1, n // batch_size)))
