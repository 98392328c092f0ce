"""Settings as JSON values and back: dataclasses by class and fields, so that a `.keras` file holds its trainer."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import numbers

import keras
import numpy as np

_OWN = "kerasdef."


def encode(name: str, value):
    """Return a setting as JSON values.

    Args:
        name: What to call the setting in an error.
        value: A number, a string, None, an array, a Keras object, a dataclass, a function, or a tuple, list or dict of
            such values.

    Raises:
        ValueError: A class or function is neither of kerasdef nor known to Keras (`keras.saving.get_custom_objects`).
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, np.ndarray):
        return {"array": value.tolist(), "dtype": str(value.dtype)}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [encode(name, v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[k, encode(name, v)] for k, v in value.items()]}
    if isinstance(value, keras.layers.Layer):
        return {"keras": keras.saving.serialize_keras_object(value)}
    if inspect.isfunction(value) or inspect.isclass(value):
        return {"named": _name_of(name, value)}
    if dataclasses.is_dataclass(value):
        fields = {f.name: encode(name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"settings_of": _name_of(name, type(value)), "fields": fields}
    raise ValueError(f"`{name}` must be made of plain values and dataclasses to be saved. Received: {name}={value!r}")


def decode(value, custom_objects=None):
    """Return the setting that `encode` was given."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.asarray(value["array"], dtype=value["dtype"])
    for kind in (tuple, list):
        if kind.__name__ in value:
            return kind(decode(v, custom_objects) for v in value[kind.__name__])
    if "dict" in value:
        return {k: decode(v, custom_objects) for k, v in value["dict"]}
    if "keras" in value:
        return keras.saving.deserialize_keras_object(value["keras"], custom_objects=custom_objects)
    if "named" in value:
        return _named(value["named"], custom_objects)
    cls = _named(value["settings_of"], custom_objects)
    if not dataclasses.is_dataclass(cls):
        raise ValueError(f"The file names {value['settings_of']!r} as a class of settings, which it is not")
    return cls(**{k: decode(v, custom_objects) for k, v in value["fields"].items()})


def _name_of(name: str, value) -> str:
    """A name by which a class or function is found again."""
    if value.__module__.startswith(_OWN) and "<" not in value.__qualname__:
        return f"{value.__module__}:{value.__qualname__}"
    registered = keras.saving.get_registered_name(value)
    if keras.saving.get_registered_object(registered) is not value:
        raise ValueError(
            f"`{name}` must be made of classes and functions that can be found again: write "
            f"keras.saving.get_custom_objects()[{value.__name__!r}] = {value.__name__} before saving and before "
            f"loading. Received: {value.__module__}.{value.__qualname__}"
        )
    return registered


def _named(name: str, custom_objects=None):
    """The class or function of a name: of kerasdef itself, or one that Keras knows. Nothing else."""
    module, _, inside = name.partition(":")
    if inside and module.startswith(_OWN):
        found = importlib.import_module(module)
        for part in inside.split("."):
            found = getattr(found, part)
        if found.__module__.startswith(_OWN):
            return found
    found = keras.saving.get_registered_object(name, custom_objects=custom_objects)
    if found is None:
        raise ValueError(
            f"{name!r} is not known: put it into keras.saving.get_custom_objects() before loading, or pass it in "
            "`custom_objects`"
        )
    return found
