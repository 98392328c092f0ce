"""Training: how adversarial data is mixed in, and adversarial training as a Keras model."""

from kerasdef.training.adversarial import AdversarialTraining as AdversarialTraining
from kerasdef.training.augmentation import Mixture as Mixture
from kerasdef.training.augmentation import adversarial_count as adversarial_count
from kerasdef.training.objectives import Madry as Madry
from kerasdef.training.objectives import Mart as Mart
from kerasdef.training.objectives import Mixed as Mixed
from kerasdef.training.objectives import Objective as Objective
from kerasdef.training.objectives import Pairing as Pairing
from kerasdef.training.objectives import Reject as Reject
from kerasdef.training.objectives import Trades as Trades
