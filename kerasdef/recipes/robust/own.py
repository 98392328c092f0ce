"""What the settings of methods of robust training have in common. Imports no Keras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from kerasdef import checks
from kerasdef.recipes import settings as common
from kerasdef.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class MethodSettings(Settings):
    """The settings of a method of its own.

    Attributes:
        paper: Where the method comes from.
        usual_epochs: Its usual number of passes over a large data set.
        networks: Its usual network for images without color and for color ones.
        averages: Whether weights can be averaged while it trains.
    """

    paper: ClassVar[str] = ""
    usual_epochs: ClassVar[int] = 10
    networks: ClassVar[tuple[str, str]] = ("cnn11", "preact_resnet18")
    averages: ClassVar[bool] = True

    @classmethod
    def summary(cls) -> str:
        """What the method does, in a sentence."""
        return cls.__doc__.splitlines()[0]


@dataclass(frozen=True, kw_only=True)
class WithRadius(MethodSettings):
    """The settings of a method whose radius grows at first."""

    ramp: float = setting(
        0.2,
        check=common.unit,
        help="The share of the epochs, from 0 to 1, over which the radius grows from 0 to eps.",
    )
    awp: float = setting(
        0.0, check=common.at_least_0, help="The relative size of adversarial weight perturbations; 0 for none."
    )


def steps(default: int, source: str) -> Any:
    """The field for the steps of the attack in training."""
    return setting(
        default,
        check=checks.positive_int,
        source=source,
        help="The number of gradient steps of the attack in training.",
    )
