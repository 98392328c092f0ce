"""Robust training of a classifier by one of the known methods: settings, methods, judging."""

from kerasdef.recipes.robust.methods import METHODS as METHODS
from kerasdef.recipes.robust.result import Trained as Trained
from kerasdef.recipes.robust.training import train as train
