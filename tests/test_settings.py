"""Settings as data: fields check themselves, show themselves in signatures and docstrings, and make the record."""

import dataclasses
import inspect
import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest

from kerasdef import checks
from kerasdef.settings import Settings, info, names, setting, takes, words


@dataclass(frozen=True, kw_only=True)
class Own(Settings):
    """Settings of a test."""

    steps: int = setting(7, check=checks.positive_int, source="the paper", help="The number of steps.")
    eps: float | None = setting(None, check=partial(checks.real, low=0.0), help="The radius.", python="Also an array.")
    out: str | None = setting(None, record=False, help="The folder.")

    def check_together(self):
        """Steps need a radius."""
        if self.steps > 10 and self.eps is None:
            raise ValueError("`eps` must be given for many steps. Received: eps=None")


def test_values_are_checked_each_and_together():
    assert Own(steps=3).steps == 3
    with pytest.raises(ValueError, match=r"`steps` must be a positive integer\. Received: steps=0"):
        Own(steps=0)
    with pytest.raises(ValueError, match="`steps` must be a positive integer"):
        Own(steps=None)  # None is a value only where it is the default
    with pytest.raises(ValueError, match="for many steps"):
        Own(steps=11)


def test_a_wrong_name_is_told_with_the_nearest_right_one():
    with pytest.raises(ValueError, match=r"Received: settings=.stesp.\. Did you mean 'steps'"):
        Own.of({"stesp": 3})
    with pytest.raises(ValueError, match="Did you mean 'epochs'"):
        Own.of({"epoch": 3}, also=("epochs",))


def test_the_record_holds_what_results_depend_on_as_json():
    own = Own(steps=np.int64(3), eps=np.float32(0.5), out="there")
    assert json.loads(json.dumps(own.record())) == {"steps": 3, "eps": 0.5}


def test_a_function_shows_the_settings_in_its_signature_and_its_help():
    @takes(Own)
    def run(model, out="here", **settings):
        """Do it.

        Args:
            model: The model.
        {settings}
        """
        return out, settings

    found = inspect.signature(run).parameters
    assert list(found) == ["model", "out", "steps", "eps"]
    assert found["steps"].default == 7
    assert found["steps"].kind is inspect.Parameter.KEYWORD_ONLY
    assert run.__doc__.count("steps: The number of steps. Default: the paper.") == 1
    assert "eps: The radius. Also an array." in run.__doc__
    assert run(0, steps=3) == ("here", {"steps": 3})


def test_names_and_words():
    assert names(Own) == ["steps", "eps", "out"]
    assert words(Own) == "steps=7, eps=None, out=None"
    assert info(dataclasses.fields(Own)[0]).text == "The number of steps. Default: the paper."
