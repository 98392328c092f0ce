"""Training: how adversarial data is mixed in."""

from kerasdef.training.augmentation import Mixture as Mixture
from kerasdef.training.augmentation import adversarial_count as adversarial_count
