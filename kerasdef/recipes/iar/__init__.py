"""Iterative adversarial retraining (Afzal and Huzaifa, 2025): settings, training, judging."""

from kerasdef.recipes.iar.result import IAR as IAR
from kerasdef.recipes.iar.training import train as train
