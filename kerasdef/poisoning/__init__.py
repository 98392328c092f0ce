"""Attacks on training data, and what they cost the classifier that is trained on it."""

from kerasdef.poisoning.gma import GMAPoisoning as GMAPoisoning
from kerasdef.poisoning.gma import PoisoningEffect as PoisoningEffect
from kerasdef.poisoning.gma import PoisonResult as PoisonResult
from kerasdef.poisoning.gma import poisoning_effect as poisoning_effect
from kerasdef.poisoning.gma import random_points as random_points
