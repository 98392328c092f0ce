"""What an annotation says of a value, checked where the value is given: one mechanism for settings and parameters.

An annotation tells the kind of a value, and this file refuses every other kind: a word for a switch, a list for a
number, complex numbers in an array. What a kind leaves open, such as a range, is checked by `kerasdef.checks`
afterwards. Nothing here imports Keras.

- `bool`, `int`, `float`, `str`, `Path`: that, and NumPy's scalars of it. A bool is no number, and numbers are finite
  and within those of float32.
- `np.ndarray`: what NumPy makes an array of numbers or booleans of, with at least one axis. `Tensor`: also a tensor.
- `tuple[float, ...]`: a tuple, a list or an array of shape (n,); `Sequence[X]`: a tuple or a list of them;
  `Mapping[K, V]`: a mapping.
- `Count`: a positive integer.
- `Callable`: what can be called. Any other class: its instances. `Any`, or nothing: not checked.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import inspect
import numbers
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np

from kerasdef import checks

_F = TypeVar("_F", bound=Callable)
_SHOWN = reprlib.Repr()
_SHOWN.maxstring = _SHOWN.maxother = _SHOWN.maxlong = 120


Count = Annotated[int, checks.positive_int]


class Tensor:
    """In annotations: an array, or a tensor of the backend, of numbers or booleans."""


def shown(value: Any) -> str:
    """A value in an error: in a line, and cut where it is long."""
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"<array of shape {value.shape} and dtype {value.dtype}>"
    return " ".join(_SHOWN.repr(value).split())


def finite(value: Any) -> bool:
    """Whether a value is a number, no bool, and finite as a float32 is."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_)
    return bool(number and -checks.LARGEST <= value <= checks.LARGEST)  # NaN is neither


def check(name: str, value: Any, kind: Any) -> None:
    """Raise ValueError unless a value is of a kind.

    Args:
        name: What the value is called in the error.
        value: The value.
        kind: An annotation.
    """
    if typing.get_origin(kind) is typing.Annotated:
        kind.__metadata__[0](name, value)
    elif not fits(value, kind):
        raise ValueError(f"`{name}` must be {words(kind)}. Received: {name}={shown(value)}")


def check_fields(instance: Any) -> None:
    """Raise ValueError unless the fields of a dataclass are of the kinds that their annotations tell."""
    for name, kind in kinds(type(instance)).items():
        check(name, getattr(instance, name), kind)


def checked(function: _F) -> _F:
    """Give a function whose arguments are of the kinds that its annotations tell, or else a ValueError is raised."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments
        for name, kind in _parameter_kinds(function).items():
            if name in given and given[name] is not signature.parameters[name].default:
                check(name, given[name], kind)
        return function(*args, **kwargs)

    call.__signature__ = signature  # Keras reads the parameters of layers without following wrappers
    return call


# -- what fits ----------------------------------------------------------------------------------------------------


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the kind that an annotation tells."""
    if typing.get_origin(kind) is Annotated:
        kind = kind.__origin__
    if kind in (Any, inspect.Parameter.empty, object) or isinstance(kind, str | TypeVar):
        return True
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, part) for part in inner)
    if kind in _SIMPLE:
        return _SIMPLE[kind][1](value)
    if origin is tuple:
        return _fits_tuple(value, inner)
    if origin in (list, collections.abc.Sequence):
        several = isinstance(value, collections.abc.Sequence) and not isinstance(value, str | bytes | bytearray)
        return several and all(fits(v, inner[0]) for v in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if (origin or kind) in (Callable, collections.abc.Callable):
        return callable(value)
    if origin is type:
        return isinstance(value, type)
    return isinstance(value, origin or kind)


def _fits_tuple(value, inner: tuple) -> bool:
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim == 1 else None
    if not isinstance(value, tuple | list):
        return False
    if len(inner) == 2 and inner[1] is ...:
        return all(fits(v, inner[0]) for v in value)
    return len(value) == len(inner) and all(map(fits, value, inner))


def _is_array(value) -> bool:
    if isinstance(value, str | bytes | Mapping) or value is None or np.isscalar(value):
        return False
    try:
        array = np.asarray(value)
    except Exception:  # lists of several lengths, and what says it is an array and is none: NumPy raises what it likes
        return False
    return array.ndim > 0 and array.dtype.kind in "biuf"


def _is_tensor(value) -> bool:
    symbolic = hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.ndarray | np.generic)
    return symbolic or _is_array(value)


_SIMPLE: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda v: isinstance(v, bool | np.bool_)),
    int: ("an integer", lambda v: isinstance(v, numbers.Integral) and not isinstance(v, bool | np.bool_)),
    float: ("a finite number", finite),
    str: ("a string", lambda v: isinstance(v, str)),
    Path: ("a path", lambda v: isinstance(v, Path)),
    type(None): ("None", lambda v: v is None),
    None: ("None", lambda v: v is None),
    dict: ("a dict", lambda v: isinstance(v, Mapping)),
    Mapping: ("a dict", lambda v: isinstance(v, Mapping)),
    tuple: ("a tuple", lambda v: isinstance(v, tuple | list)),
    collections.abc.Sequence: (
        "a list",
        lambda v: isinstance(v, collections.abc.Sequence) and not isinstance(v, str | bytes),
    ),
    np.ndarray: ("an array of numbers of shape (n, ...)", _is_array),
    Tensor: ("an array or a tensor of numbers", _is_tensor),
}
_MANY = {bool: "booleans", int: "integers", float: "finite numbers", str: "strings", np.ndarray: "arrays"}


def words(kind: Any) -> str:
    """What an annotation asks for, in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        parts = list(dict.fromkeys(words(part) for part in inner))
        return " or ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    if kind in _SIMPLE:
        return _SIMPLE[kind][0]
    if origin is tuple and not (len(inner) == 2 and inner[1] is ...):
        return f"{len(inner)} values: {', '.join(words(part).removeprefix('a ') for part in inner)}"
    if origin in (tuple, list, collections.abc.Sequence):
        return f"a tuple or list of {_MANY.get(inner[0], f'which each is {words(inner[0])}')}"
    if origin in (dict, Mapping):
        return "a dict"
    if (origin or kind) in (Callable, collections.abc.Callable):
        return "a callable"
    if origin is type:
        return "a class"
    name = (origin or kind).__name__
    if (origin or kind).__module__.partition(".")[0] == "keras":
        return f"a keras.{name}"
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


# -- which kinds --------------------------------------------------------------------------------------------------


def _resolved(annotation: Any, module: str) -> Any:
    """An annotation as it stands in a module; a name that is known only inside a function is not checked."""
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, vars(sys.modules[module]))
    except NameError:
        return Any


@functools.cache
def kinds(cls: type) -> dict[str, Any]:
    """The kinds of the fields of a dataclass, by name."""
    found = {}
    for owner in reversed(cls.__mro__):
        for name, annotation in vars(owner).get("__annotations__", {}).items():
            found[name] = _resolved(annotation, owner.__module__)
    return {f.name: found.get(f.name, f.type) for f in dataclasses.fields(cls)}


@functools.cache
def _parameter_kinds(function: Callable) -> dict[str, Any]:
    single = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        p.name: _resolved(p.annotation, function.__module__)
        for p in inspect.signature(function).parameters.values()
        if p.kind not in single and p.annotation is not inspect.Parameter.empty
    }
