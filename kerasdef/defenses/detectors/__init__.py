"""Detectors: layers that score how adversarial an input looks."""

from kerasdef.defenses.detectors.base import Detector as Detector
from kerasdef.defenses.detectors.logit_deviation import LogitDeviation as LogitDeviation
