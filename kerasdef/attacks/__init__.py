"""Attacks: settings in a frozen dataclass, pure functions inside, one call on arrays."""

from kerasdef.attacks.base import Attack as Attack
from kerasdef.attacks.base import Result as Result
from kerasdef.attacks.carlini_wagner import CarliniWagner as CarliniWagner
from kerasdef.attacks.engine import StepAttack as StepAttack
from kerasdef.attacks.gma import GMA as GMA
from kerasdef.attacks.gma import gma_analysis as gma_analysis
from kerasdef.attacks.goals import Evade as Evade
from kerasdef.attacks.goals import Goal as Goal
from kerasdef.attacks.goals import Hit as Hit
from kerasdef.attacks.goals import Misclassify as Misclassify
from kerasdef.attacks.gradient import BIM as BIM
from kerasdef.attacks.gradient import FGSM as FGSM
from kerasdef.attacks.gradient import MIM as MIM
from kerasdef.attacks.gradient import PGD as PGD
from kerasdef.attacks.gradient import GradientAttack as GradientAttack
from kerasdef.attacks.wrappers import Cycled as Cycled
from kerasdef.attacks.wrappers import Targeted as Targeted
from kerasdef.attacks.wrappers import Wrapper as Wrapper
