"""The attacker that follows from a defense."""

from kerasdef.defenses.adaptive.attack import Adaptive as Adaptive
from kerasdef.defenses.adaptive.attack import adaptive as adaptive
