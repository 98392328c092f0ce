"""Docstrings of classes that share the arguments of another one."""

from __future__ import annotations

import re

_MARK = re.compile(r"^( *)Args: see `(\w+)`\.$", re.MULTILINE)


def arguments_of_base(cls: type) -> type:
    """Put the "Args:" of a base class in the place of the line "Args: see `Base`." of a class's docstring.

    So `help` of each class lists all its arguments, and their text stands in one place.
    """
    found = _MARK.search(cls.__doc__)
    base = next(c for c in cls.__mro__ if c.__name__ == found[2])
    block = re.search(r"^ *Args:\n(?:.*\S.*\n)+", base.__doc__, re.MULTILINE)[0]
    cls.__doc__ = cls.__doc__.replace(found[0], block.rstrip("\n"))
    return cls
