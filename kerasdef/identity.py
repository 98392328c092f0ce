"""What tells one value from another: a digest of its content.

`identity` turns a setting into JSON values that are the same in every process and differ where the content does.
A `repr` does neither: addresses change, and long arrays are cut.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import inspect
import json
import math
import sys
import types
from collections.abc import Mapping
from pathlib import PurePath

import numpy as np

UNKNOWN = "unknown content"  # key of what `identity` says of a value whose content cannot be read
_LONG = 64  # more numbers than these are named by their digest
_SHORT = 16  # hexadecimal digits of a digest inside an identity
_KNOWN = {*sys.stdlib_module_names, "kerasdef", "keras", "numpy", "scipy", "sklearn", "tensorflow", "jax", "jaxlib"}
_NO_SETTINGS = {"_model", "params", "validation_data"}  # what training gives to a Keras callback
_LEFT_OUT = {"seed", "shared_object_id", "build_config", "compile_config"}  # parts of a configuration that say nothing


def digest(*values) -> str:
    """SHA-256, in hexadecimal, of the content of values: arrays, numbers, strings, bytes, None, and nests of these.

    Lists and tuples count alike, dicts count without their order, and a number counts by its value. Arrays count by
    their type, their shape and every item.

    Raises:
        ValueError: A value is of another kind.
    """
    found = hashlib.sha256()
    for value in values:
        _feed(found, value)
    return found.hexdigest()


def _feed(found, value) -> None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool):
        found.update(f"{value};".encode())
    elif isinstance(value, int | float):
        whole = math.isfinite(value) and value == int(value)
        found.update(f"n{int(value) if whole else value!r};".encode())
    elif isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        found.update(f"{type(value).__name__}{len(data)};".encode() + data)
    elif isinstance(value, Mapping):
        found.update(f"dict{len(value)};".encode())
        for key, inner in sorted((digest(k), digest(v)) for k, v in value.items()):
            found.update(f"{key}{inner}".encode())
    elif isinstance(value, list | tuple):
        found.update(f"list{len(value)};".encode())
        for inner in value:
            _feed(found, inner)
    elif _is_array(value):
        array = np.asarray(value)
        if array.dtype.hasobject:
            _feed(found, array.tolist())
            return
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        found.update(f"array{array.dtype.name}{array.shape};".encode())
        found.update(array.reshape(-1).view("uint8"))
    else:
        raise ValueError(f"`values` must be arrays, numbers, strings or nests of them. Received: {type(value)}")


def _is_array(value) -> bool:
    """Whether a value is an array, a tensor or a variable of any framework."""
    return hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape")


def identity(value, name: str, *, strict: bool = True):
    """JSON values that tell a setting from every other by its content, the same in every process.

    Arrays and weights count by a digest of all their items. Frozen dataclasses, such as attacks, count by their class
    and their fields; Keras models by their architecture and their weights; other objects by their class and the
    settings that their `get_config` tells, or else by the attributes that have the names of their arguments. A
    function counts by its module, its qualified name and, unless it belongs to a library, a digest of its code: what
    it does, its constants, defaults and closure, and the functions, classes and constants of its module that it uses.

    Args:
        value: What to identify.
        name: Name of the setting, for the error.
        strict: Whether content that cannot be read is an error. If not, the identity says so under `UNKNOWN`, and
            a `Store` with a folder refuses it.

    Raises:
        ValueError: The content of something in `value` cannot be read. The error says what to do.
    """
    reader = _Reader(name, strict)
    found = reader.of(value)
    return {UNKNOWN: reader.unread[0], "found": found} if reader.unread else found


def refuse_unknown(found, name: str) -> None:
    """Raise where `identity` has met content that it could not read.

    Raises:
        ValueError: See `identity`.
    """
    if isinstance(found, Mapping):
        if UNKNOWN in found:
            raise ValueError(_unreadable(name, found[UNKNOWN]))
        for key, value in found.items():
            refuse_unknown(value, f"{name}/{key}" if name else str(key))
    elif isinstance(found, list):
        for value in found:
            refuse_unknown(value, name)


def _unreadable(name: str, kind: str) -> str:
    return (
        f"`{name}` must be made of things whose content can be read, so that a run knows itself when it goes on. Give "
        "the object an attribute `digest`, a string that changes whenever what it does changes, or a method "
        f"`get_config` that returns its settings. Received: {kind}"
    )


def architecture(model) -> str:
    """Digest of the layers of a Keras model and of how they are joined, without names, seeds and weights."""
    return digest(_Reader("model", strict=False).layers(model))


def _known(thing) -> bool:
    """Whether a class or a function belongs to a library, so that its name says what it does."""
    return (getattr(thing, "__module__", None) or "builtins").split(".")[0] in _KNOWN


def _full_name(thing) -> str:
    module = getattr(thing, "__module__", None) or "builtins"
    module = "kerasdef" if module.split(".")[0] == "kerasdef" else module  # files may move
    return f"{module}.{getattr(thing, '__qualname__', thing.__class__.__qualname__)}"


class _Reader:
    """Reads the content of one setting; remembers what it has met, so that things may hold each other."""

    def __init__(self, name: str, strict: bool):
        self.name, self.strict = name, strict
        self.unread: list[str] = []  # kinds of objects whose content could not be read
        self.met: dict = {}  # by id: the object, so that its id stays its own, and what was found

    def of(self, value):
        """JSON values for a value."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, enum.Enum):
            return {"class": self.class_name(type(value)), "name": value.name}
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else str(value)
        if isinstance(value, bytes | bytearray):
            return {"bytes": digest(bytes(value))[:_SHORT]}
        if isinstance(value, PurePath | np.dtype | complex | range | slice | type(Ellipsis)):
            return str(value)
        if isinstance(value, Mapping):
            if all(isinstance(k, str) for k in value):
                return {k: self.of(v) for k, v in value.items()}
            return {"items": sorted(([self.of(k), self.of(v)] for k, v in value.items()), key=json.dumps)}
        if isinstance(value, list | tuple):
            return self.sequence(value)
        if isinstance(value, set | frozenset):
            return {"set": sorted((self.of(v) for v in value), key=json.dumps)}
        if isinstance(value, types.ModuleType):
            return {"module": value.__name__}
        if _is_array(value) and not isinstance(value, type):
            array = np.asarray(value)
            return {"array": list(array.shape), "type": array.dtype.name, "digest": digest(array)[:_SHORT]}
        return self.remembered(value)

    def sequence(self, values):
        """Items one by one, or the digest of many numbers."""
        if len(values) > _LONG and all(isinstance(v, bool | int | float | np.generic) for v in values):
            return {"values": len(values), "digest": digest(values)[:_SHORT]}
        return [self.of(v) for v in values]

    def remembered(self, value):
        """Something with a name of its own; where it is met again within itself, that name stands for it."""
        if id(value) in self.met:
            return self.met[id(value)][1]
        self.met[id(value)] = (value, {"again": _full_name(value if isinstance(value, type) else type(value))})
        if isinstance(value, type):
            found = {"class": self.class_name(value)}
        elif isinstance(getattr(value, "digest", None), str):
            found = {"class": _full_name(type(value)), "digest": value.digest}
        elif isinstance(value, types.FunctionType):
            found = {"function": self.function_name(value)}
        elif isinstance(value, types.MethodType):
            found = {"method": value.__func__.__qualname__, "of": self.of(value.__self__)}
        elif isinstance(value, functools.partial):
            found = {"partial": self.of(value.func), "args": self.of(value.args), "keywords": self.of(value.keywords)}
        elif isinstance(value, types.BuiltinFunctionType | np.ufunc):
            found = {"function": f"{getattr(value, '__module__', None)}.{value.__name__}"}
        elif hasattr(value, "__wrapped__"):  # a compiled function
            found = self.of(value.__wrapped__)
        elif dataclasses.is_dataclass(value):
            fields = {f.name: self.of(getattr(value, f.name)) for f in dataclasses.fields(value)}
            found = {"class": self.class_name(type(value)), **fields}
        elif _is_layer(value):
            found = {"class": self.class_name(type(value)), "layers": digest(self.layers(value))[:_SHORT]}
            found["weights"] = digest([_array(v) for v in value.variables if not _is_seed(v)])[:_SHORT]
        else:
            found = self.object(value)
        self.met[id(value)] = (value, found)
        return found

    def object(self, value):
        """Class and settings of an object."""
        kind = type(value)
        settings = self.settings(value)
        if settings is None:
            if self.strict:
                raise ValueError(_unreadable(self.name, _full_name(kind)))
            self.unread.append(_full_name(kind))
            return {"class": _full_name(kind)}
        return {"class": self.class_name(kind), "settings": settings}

    def settings(self, value):
        """What an object says of itself, or what its attributes tell; None where neither does."""
        if callable(getattr(value, "get_config", None)):
            try:
                return self.of(value.get_config())
            except NotImplementedError:
                pass
        try:
            arguments = list(inspect.signature(type(value).__init__).parameters.values())[1:]
        except (TypeError, ValueError):
            return None
        names = [a.name for a in arguments if a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
        found = {}
        for name in names:
            for attribute in (name, f"_{name}"):
                if hasattr(value, attribute):
                    found[name] = self.of(getattr(value, attribute))
                    break
        library = type(value).__module__.split(".")[0]
        if (len(found) == len(names) and (names or not arguments)) or library == "keras":
            return found
        if (library != "kerasdef" and _known(type(value))) or not hasattr(value, "__dict__"):
            return None
        return {k: self.of(v) for k, v in vars(value).items() if k not in _NO_SETTINGS}

    def layers(self, model):
        """Configuration of a Keras model or layer, without the names that Keras may choose and without seeds."""
        inner = list(_inner(model))
        own = {type(layer) for layer in [model, *inner] if not _known(type(layer))}
        classes = sorted(self.class_name(kind) for kind in own)
        try:
            return [classes, self.configuration(model)]
        except NotImplementedError:  # a layer in it does not say how it was made
            return [classes, [self.layer(layer) for layer in inner]]

    def layer(self, layer):
        """Class, shapes of the weights, and configuration of a layer as far as it tells it."""
        try:
            config = self.configuration(layer)
        except NotImplementedError:
            config = {}
        return [type(layer).__name__, [list(w.shape) for w in layer.weights], config]

    def configuration(self, layer):
        """What a layer says of itself."""
        config = layer.get_config()
        return self.of(_anonymous(config, {config.get("name"): "#"}))

    def class_name(self, kind: type) -> str:
        """Module and qualified name of a class; with a digest of its code where it belongs to no library."""
        name = _full_name(kind)
        if _known(kind):
            return name
        if ("class", id(kind)) not in self.met:
            self.met["class", id(kind)] = (kind, name)
            code = {}
            for base in kind.__mro__:
                if not _known(base):
                    code[_full_name(base)] = {k: m for k, v in vars(base).items() if (m := self.member(k, v))}
            self.met["class", id(kind)] = (kind, f"{name}@{digest(code)[:_SHORT]}")
        return self.met["class", id(kind)][1]

    def member(self, name: str, value):
        """What an attribute of a class says of what the class does; None where that is nothing."""
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        if isinstance(value, property):
            return [self.member(name, part) for part in (value.fget, value.fset)]
        if isinstance(value, types.FunctionType):
            generated = value.__code__.co_filename == "<string>"  # by dataclasses, from fields that count themselves
            return None if generated else self.function_name(value)
        hidden = name.startswith("__") or not _is_constant(value)
        return None if hidden else [self.of(value)]

    def function_name(self, function: types.FunctionType) -> str:
        """Module and qualified name of a function; with a digest of its code unless a library's name says it all."""
        name = _full_name(function)
        if _known(function) and "<" not in name:
            return name
        if ("code", id(function)) not in self.met:
            self.met["code", id(function)] = (function, name)
            cells = [_content(cell) for cell in function.__closure__ or ()]
            used = {}
            for word in sorted(_words(function.__code__)):
                value = function.__globals__.get(word)
                own = isinstance(value, types.FunctionType | type) and not _known(value)
                if own or (word in function.__globals__ and _is_constant(value)):
                    used[word] = self.of(value)
            parts = [_code(function.__code__, function.__doc__), used]
            parts += [self.of(v) for v in (function.__defaults__, function.__kwdefaults__, cells)]
            self.met["code", id(function)] = (function, f"{name}@{digest(parts)[:_SHORT]}")
        return self.met["code", id(function)][1]


def _is_constant(value) -> bool:
    """Whether a value of a module or a class is one that does not change while the program runs."""
    if isinstance(value, tuple):
        return all(_is_constant(v) for v in value)
    return value is None or isinstance(value, bool | int | float | str | bytes | np.ndarray | np.generic)


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return "empty"


def _words(code: types.CodeType) -> set[str]:
    """Names that some code, and what is defined within it, looks up."""
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return set(code.co_names).union(*map(_words, inner))


def _code(code: types.CodeType, text: str | None = None) -> list:
    """What some code does, without its docstring, its file and its lines."""
    constants = []
    for value in code.co_consts:
        if isinstance(value, types.CodeType):
            constants.append(_code(value))
        elif isinstance(value, frozenset):
            constants.append(sorted(map(repr, value)))
        else:
            value = None if isinstance(value, str) and value == text else value
            constants.append(f"{type(value).__name__} {value!r}")
    flags = code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE)
    arguments = [code.co_argcount, code.co_kwonlyargcount, code.co_posonlyargcount, flags]
    return [code.co_code, list(code.co_names), list(code.co_freevars), list(code.co_cellvars), arguments, constants]


def _anonymous(config, names: Mapping):
    """A configuration of Keras with places instead of the names of layers, which Keras counts up in a process."""
    if isinstance(config, Mapping):
        layers = config.get("layers")
        if isinstance(layers, list | tuple):
            own = [layer["config"].get("name") for layer in layers if isinstance(layer, Mapping) and "config" in layer]
            names = {**names, config.get("name"): "#", **{name: f"#{i}" for i, name in enumerate(own)}}
        return {k: _anonymous(v, names) for k, v in config.items() if k not in _LEFT_OUT}
    if isinstance(config, list | tuple):
        return [_anonymous(v, names) for v in config]
    if isinstance(config, str):
        return names.get(config, config)
    return config


def _inner(layer):
    """Yield the layers of a model, and those of the models in it."""
    for part in getattr(layer, "layers", ()):
        yield part
        yield from _inner(part)


def _is_layer(value) -> bool:
    keras = sys.modules.get("keras")  # without it there are no layers
    return keras is not None and isinstance(value, keras.layers.Layer)


def _is_seed(variable) -> bool:
    from kerasdef import backend

    return backend.is_seed(variable)  # moves on whenever a random model is asked


def _array(variable) -> np.ndarray:
    import keras

    return keras.ops.convert_to_numpy(variable)
