"""Settings as data: each field of a frozen dataclass carries its default, its check, its help and its source.

Signatures, docstrings, options of the command line, lists and the record of a run are made from these fields, so a
number or a sentence is written once. Nothing here imports Keras.
"""

from __future__ import annotations

import dataclasses
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kerasdef import annotations, checks

_WIDTH = 116  # of docstrings
_INDENT = " " * 8  # of an argument in them


@dataclass(frozen=True)
class Info:
    """What a field says beside its default.

    Args:
        help: What the setting means, in whole sentences.
        python: What only callers in Python can pass, in sentences that follow the help.
        check: Called as `check(name, value)`; returns the value in its final form or raises ValueError. None takes
            everything. The default None is never checked: it means that the value follows from the data.
        source: Where the default comes from, such as "paper, table 2".
        option: Name of the option of the command line; "" makes one of the field's name, None keeps it off the command
            line.
        read: Turns the text of an option into the value, called as `read(name, text)`; None for numbers, words, paths
            and switches.
        parts: Options of the command line that make a dict of the field: help by key.
        argument: Whether the command line takes it without the name of an option.
        last: Whether it stands behind the other settings.
        record: Whether the results depend on it, so that it stands in the record of a run.
    """

    help: str
    python: str = ""
    check: Callable[[str, Any], Any] | None = None
    source: str = ""
    option: str | None = ""
    read: Callable[[str, str], Any] | None = None
    parts: Mapping[str, str] | None = None
    argument: bool = False
    last: bool = False
    record: bool = True

    @property
    def text(self) -> str:
        """The help with the source of the default."""
        return f"{self.help} Default: {self.source}." if self.source else self.help

    @property
    def doc(self) -> str:
        """The help for callers in Python."""
        return f"{self.text} {self.python}".rstrip()


def setting(default: Any = dataclasses.MISSING, **info) -> Any:
    """A field of a `Settings`; the keywords are those of `Info`."""
    return dataclasses.field(default=default, metadata={"setting": Info(**info)})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that are checked, each on its own and then together.

    Raises:
        ValueError: A value is not what its check asks for.
    """

    def __post_init__(self):
        kinds = annotations.kinds(type(self))
        for field in dataclasses.fields(self):
            value, check = getattr(self, field.name), info(field).check
            value = value.item() if isinstance(value, np.generic) else value  # records are JSON
            if check is not None and not (value is None and field.default is None):
                value = check(field.name, value)
            elif check is None:
                annotations.check(field.name, value, kinds[field.name])
            object.__setattr__(self, field.name, value)
        self.check_together()

    def check_together(self) -> None:
        """Raise ValueError unless the settings fit each other."""

    @classmethod
    def of(cls, given: Mapping[str, Any], also: Sequence[str] = ()) -> Settings:
        """The settings given by name, and the defaults of the others.

        Args:
            given: Values by name. The error of a wrong name tells the nearest right one.
            also: Names that are settings too, but of another class.
        """
        known = names(cls) or ["(none: there are no settings of its own)"]
        for name in given:
            checks.one_of("settings", name, [*known, *also])
        return cls(**given)

    def record(self) -> dict[str, Any]:
        """The settings that the results depend on."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if info(f).record}


def info(field: dataclasses.Field) -> Info:
    """What a field says beside its default."""
    return field.metadata["setting"]


def fields(*classes: type[Settings]) -> list[dataclasses.Field]:
    """The fields of classes as they are shown; one that two of them have is that of the later class."""
    found = {f.name: f for cls in classes for f in dataclasses.fields(cls)}
    return sorted(found.values(), key=lambda f: info(f).last)


def names(cls: type[Settings]) -> list[str]:
    """Names of the settings of a class."""
    return [f.name for f in dataclasses.fields(cls)]


def words(cls: type[Settings]) -> str:
    """All settings of a class with their defaults, as the command line takes them: "steps=7, ramp=0.2"."""
    return ", ".join(f"{f.name}={plain(f.default)}" for f in dataclasses.fields(cls))


def plain(value: Any) -> str:
    """A default as one types it."""
    if isinstance(value, tuple):
        return f"({','.join(repr(v) if isinstance(v, str) else plain(v) for v in value)})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def takes(*classes: type[Settings], more: bool = False) -> Callable[[Callable], Callable]:
    """Give a function that ends in keywords of any name the signature and the arguments' help of settings classes.

    Parameters that the function names itself keep their place; the others follow as keywords. A line that says only
    "{settings}" in the docstring is replaced by a paragraph for each setting.

    Args:
        classes: The classes; a setting that two of them have is that of the later one.
        more: Whether the function takes keywords beyond these.
    """

    def decorate(function: Callable) -> Callable:
        own = inspect.signature(function)
        first = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        open_end = [p for p in own.parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD and more]
        places = {p.name: i for i, p in enumerate(first)}
        shown = sorted(fields(*classes), key=lambda f: places.get(f.name, len(places)))
        rest = [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=_default(f), annotation=f.type)
            for f in shown
            if f.name not in places
        ]
        function.__signature__ = own.replace(parameters=[*first, *rest, *open_end])
        if function.__doc__:
            paragraphs = map(_paragraph, shown)
            function.__doc__ = function.__doc__.replace(f"{_INDENT}{{settings}}", "\n".join(paragraphs))
        return function

    return decorate


def _default(field: dataclasses.Field) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _paragraph(field: dataclasses.Field) -> str:
    """A setting as an entry under "Args:"."""
    text = f"{field.name}: {info(field).doc}"
    return textwrap.fill(text, _WIDTH, initial_indent=_INDENT, subsequent_indent=f"{_INDENT}    ")
