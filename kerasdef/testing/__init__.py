"""Contracts that anyone can run on their own attack, norm, defense, detector or purifier, and linear models of known
optimum.

A contract raises `AssertionError` and names the clause that failed. None of this needs a test runner.
"""

from kerasdef.testing.attacks import LinearOracle as LinearOracle
from kerasdef.testing.attacks import check_attack as check_attack
from kerasdef.testing.attacks import linear_model as linear_model
from kerasdef.testing.defenses import check_defense as check_defense
from kerasdef.testing.detectors import check_detector as check_detector
from kerasdef.testing.norms import check_norm as check_norm
from kerasdef.testing.purifiers import check_purifier as check_purifier
