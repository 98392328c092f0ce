"""Recipes: a paper's whole procedure as one call, every number with its source."""

from kerasdef.recipes.mia import MIA as MIA
from kerasdef.recipes.mia import MIAEach as MIAEach
