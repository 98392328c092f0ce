"""Detectors: layers that score how adversarial an input looks."""

from kerasdef.defenses.detectors.any_of import AnyOf as AnyOf
from kerasdef.defenses.detectors.art import ARTDetector as ARTDetector
from kerasdef.defenses.detectors.base import Detector as Detector
from kerasdef.defenses.detectors.conv_filter_statistics import ConvFilterStatistics as ConvFilterStatistics
from kerasdef.defenses.detectors.disagreement import Disagreement as Disagreement
from kerasdef.defenses.detectors.feature_squeezing import FeatureSqueezing as FeatureSqueezing
from kerasdef.defenses.detectors.kernel_density import KernelDensity as KernelDensity
from kerasdef.defenses.detectors.logit_deviation import LogitDeviation as LogitDeviation
from kerasdef.defenses.detectors.mahalanobis import Mahalanobis as Mahalanobis
from kerasdef.defenses.detectors.watching import Watching as Watching
