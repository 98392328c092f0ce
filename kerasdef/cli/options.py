"""Makes the options of a command from a settings class, and settings from what was typed."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kerasdef.settings import Info, Settings, fields, info, plain

_KINDS = {"bool": bool, "int": int, "float": float, "str": str, "Path": Path}
_NUMBERS = {int: "INTEGER", float: "FLOAT"}
SET = "--set"


def command(cls: type[Settings], run: Callable[[dict[str, Any]], None], *, doc: str, own: type[Settings] | None = None):
    """A function for typer: an option or argument for each field of a settings class.

    Args:
        cls: The settings of the command.
        run: Called with the settings by name, checked.
        doc: The help of the command.
        own: A second class, whose settings are given with `--set`.
    """

    hidden = {f.name for c in (cls, own) if c is not None for f in fields(c) if info(f).option is None}

    def function(**typed) -> None:
        given = _given(cls, typed)
        if own is not None:
            extra = _assigned(typed.get(_parameter(SET)))
            for name in extra:
                if name in given or name in hidden or name in ("method", "data"):
                    raise ValueError(f"`--set` is for the settings of the method. Received: {name}")
            given |= extra
        run(given)

    parameters = [p for field in _shown(cls) for p in _parameters(field)]
    if own is not None:
        text = "A setting of the method's own as name=value; may be given again."
        parameters.append(_option(_parameter(SET), list[str] | None, None, SET, text))
    function.__signature__ = inspect.Signature(parameters)
    function.__annotations__ = {p.name: p.annotation for p in parameters}
    function.__doc__ = doc
    return function


def described(cls: type[Settings]) -> str:
    """The settings of a class for the help of a command, a paragraph each."""
    lines = (f"{f.name}={plain(f.default)}: {info(f).text}" for f in dataclasses.fields(cls))
    return "\n\n".join(lines)


def _shown(cls: type[Settings]) -> list[dataclasses.Field]:
    """The fields that the command line has: arguments first."""
    found = [f for f in fields(cls) if info(f).option is not None]
    return sorted(found, key=lambda f: not info(f).argument)


def _parameters(field: dataclasses.Field) -> list[inspect.Parameter]:
    """The parameters of a field: one, or one for each part."""
    about = info(field)
    if about.parts is not None:
        return [_option(f"{part}_{field.name}", int | None, None, "", text) for part, text in about.parts.items()]
    if about.argument:
        kind = Annotated[_kind(field), typer.Argument(help=about.text)]
        return [inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)]
    if about.option == SET:
        return [_option(_parameter(SET), list[str] | None, None, SET, about.text)]
    kind, default = _kind(field), field.default
    if about.read is not None:
        kind, default = str, None if default is None else _typed(default)
    optional = kind | None if field.default is None else kind
    return [_option(_parameter(about.option) or field.name, optional, default, about.option, about.text)]


def _option(name: str, kind: Any, default: Any, option: str, text: str) -> inspect.Parameter:
    shown = {}
    for number, metavar in _NUMBERS.items():  # read here, so that what is no number is told as any wrong value is
        if kind in (number, number | None):
            kind, default, shown = str | None, None if default is None else str(default), {"metavar": metavar}
    declared = typer.Option(option, help=text, **shown) if option else typer.Option(help=text, **shown)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declared]
    )


def _parameter(option: str) -> str:
    """The name of the parameter of an option."""
    return {SET: "assigned"}.get(option, option.lstrip("-").replace("-", "_"))


def _kind(field: dataclasses.Field) -> type:
    """The type that typer reads: the first one in the annotation that it knows."""
    return next((_KINDS[part] for part in field.type.split(" | ") if part in _KINDS), str)


def _typed(value: Any) -> str:
    """A default as one types it on the command line."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _given(cls: type[Settings], typed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by name, read and checked; those that the command line does not have are left out."""
    values = {field.name: _value(field, typed) for field in _shown(cls)}
    checked = cls(**values)
    return {name: getattr(checked, name) for name in values}


def _value(field: dataclasses.Field, typed: Mapping[str, Any]) -> Any:
    about: Info = info(field)
    if about.parts is not None:
        found = {part: _number(f"{part}_{field.name}", typed[f"{part}_{field.name}"], int) for part in about.parts}
        return {part: value for part, value in found.items() if value is not None}
    value = typed[_parameter(about.option) or field.name]
    if about.option == SET:
        return _assigned(value)
    if about.read is not None and value is not None:
        return about.read(field.name, value)
    return _number(field.name, value, _kind(field))


def _number(name: str, text: Any, kind: type) -> Any:
    """The number that an option of numbers has as text; the value of any other option as it is."""
    if kind not in _NUMBERS or text is None:
        return text
    try:
        return kind(text)
    except ValueError:
        wanted = {int: "an integer", float: "a finite number"}[kind]
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={text!r}") from None


def _assigned(texts: Sequence[str] | None) -> dict[str, Any]:
    """Values by name from texts such as "steps=7"."""
    found = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"`--set` must be name=value. Received: {text!r}")
        if name in found:
            raise ValueError(f"`{name}` must be given once. Received: {text!r} after {name}={found[name]!r}")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found[name] = value  # a word, or more than Python reads
    return found
