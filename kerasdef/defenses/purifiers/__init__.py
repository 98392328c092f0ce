"""Purifiers: layers that take perturbations out of images, each with its backward rule."""

from kerasdef.defenses.purifiers.ape_gan import APEGAN as APEGAN
from kerasdef.defenses.purifiers.autoencoder import DenoisingAutoencoder as DenoisingAutoencoder
from kerasdef.defenses.purifiers.base import Purifier as Purifier
from kerasdef.defenses.purifiers.bit_depth import BitDepth as BitDepth
from kerasdef.defenses.purifiers.filters import GaussianBlur as GaussianBlur
from kerasdef.defenses.purifiers.filters import Median as Median
from kerasdef.defenses.purifiers.filters import TotalVariation as TotalVariation
from kerasdef.defenses.purifiers.jpeg import JPEG as JPEG
