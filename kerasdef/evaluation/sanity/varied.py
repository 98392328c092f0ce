"""An attack with other settings, also where it stands inside of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kerasdef.attacks import Attack
from kerasdef.defenses.adaptive import Adaptive
from kerasdef.defenses.base import Defense

_ALSO = {"eps": ("eps", "radii"), "samples": ("samples", "draws")}  # names that a setting has in other attacks


def parts_of(attack: Attack) -> Iterator[Attack]:
    """The attack, and those that stand inside of it."""
    yield attack
    for field in dataclasses.fields(attack):
        value = getattr(attack, field.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if isinstance(inner, Attack):
                yield from parts_of(inner)


def varied(attack: Attack, name: str, change) -> Attack:
    """The attack with another value of a setting, wherever it or an attack inside of it has a value.

    Args:
        attack: The attack.
        name: Name of the setting.
        change: Function of the value that is there.
    """

    def inner(value):
        if isinstance(value, Attack):
            return varied(value, name, change)
        return tuple(map(inner, value)) if isinstance(value, tuple) else value

    changes = {}
    for field in dataclasses.fields(attack):
        value = getattr(attack, field.name)
        if field.name in _ALSO.get(name, (name,)):
            changes[field.name] = None if value is None else change(value)
        elif isinstance(value, Attack | tuple):
            changes[field.name] = inner(value)
    return dataclasses.replace(attack, **changes) if changes else attack


def has(attack: Attack, name: str) -> bool:
    """Whether the attack, or one inside of it, has a value of a setting."""
    return any(
        field.name in _ALSO.get(name, (name,)) and getattr(part, field.name) is not None
        for part in parts_of(attack)
        for field in dataclasses.fields(part)
    )


def aimed(attack: Attack, defense: Defense) -> Attack:
    """The attack with the goal against a defense; one that is made from its defense is made from this one."""
    if isinstance(attack, Adaptive):
        return dataclasses.replace(attack, defense=defense, base=None)
    return attack.with_goal(defense.surface()[1])
