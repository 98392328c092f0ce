"""Training: how adversarial data is mixed in, and adversarial training as a Keras model."""

from kerasdef.datasets.batches import Mixture as Mixture
from kerasdef.datasets.batches import adversarial_count as adversarial_count
from kerasdef.training.adversarial import AdversarialTraining as AdversarialTraining
from kerasdef.training.bilateral import Bilateral as Bilateral
from kerasdef.training.bilateral import adversarial_labels as adversarial_labels
from kerasdef.training.bilateral import most_confusing as most_confusing
from kerasdef.training.callbacks import AttackStages as AttackStages
from kerasdef.training.callbacks import BestRobust as BestRobust
from kerasdef.training.callbacks import OverfittingGuard as OverfittingGuard
from kerasdef.training.callbacks import Resume as Resume
from kerasdef.training.callbacks import RobustValidation as RobustValidation
from kerasdef.training.distillation import Distillation as Distillation
from kerasdef.training.free import FreeTraining as FreeTraining
from kerasdef.training.objectives import Madry as Madry
from kerasdef.training.objectives import Mart as Mart
from kerasdef.training.objectives import Mixed as Mixed
from kerasdef.training.objectives import Objective as Objective
from kerasdef.training.objectives import Pairing as Pairing
from kerasdef.training.objectives import Reject as Reject
from kerasdef.training.objectives import Trades as Trades
from kerasdef.training.retraining import Shares as Shares
from kerasdef.training.schedules import Radius as Radius
from kerasdef.training.schedules import Stage as Stage
from kerasdef.training.smoothing import NoiseTraining as NoiseTraining
