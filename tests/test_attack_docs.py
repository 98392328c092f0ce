"""The docstring of every exported attack lists its settings: `help(PGD)` answers by itself."""

import dataclasses
import inspect
import re

import pytest

from kerasdef import attacks

CLASSES = {
    name: cls
    for name, cls in vars(attacks).items()
    if inspect.isclass(cls) and issubclass(cls, attacks.GradientAttack | attacks.GradientFreeAttack)
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_docstring_lists_every_setting_once(name):
    cls = CLASSES[name]
    listed = re.findall(
        r"^ {4}(\w+): ", re.search(r"Args:\n((?: {4}.*\n)+)", inspect.getdoc(cls) + "\n")[1], re.MULTILINE
    )
    settings = [f.name for f in dataclasses.fields(cls) if f.name != "direction" or cls is attacks.GradientAttack]
    assert set(settings) <= set(listed)
    assert len(listed) == len(set(listed))
