"""The Model Integration Approach (Sanapala and Gondi, 2025): settings, training, judging."""

from kerasdef.recipes.mia.result import MIA as MIA
from kerasdef.recipes.mia.result import MIAEach as MIAEach
from kerasdef.recipes.mia.training import train as train
