"""Recipes: a paper's whole procedure as one call, every number with its source."""

from kerasdef.recipes.mia import MIA, MIAEach
from kerasdef.recipes.mia import train as train_mia

__all__ = ["MIA", "MIAEach", "train_mia"]
