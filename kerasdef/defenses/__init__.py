"""Defenses as Keras models: gradients flow through them, they say how they are attacked, and they export whole."""

import kerasdef.models.blocks  # noqa: F401  registers the layers, so that .keras files load in safe mode
from kerasdef.defenses.adaptive import Adaptive as Adaptive
from kerasdef.defenses.adaptive import adaptive as adaptive
from kerasdef.defenses.base import Decision as Decision
from kerasdef.defenses.base import Defense as Defense
from kerasdef.defenses.base import Plain as Plain
from kerasdef.defenses.base import RejectClass as RejectClass
from kerasdef.defenses.base import as_defense as as_defense
from kerasdef.defenses.ensemble import EvadeEnsemble as EvadeEnsemble
from kerasdef.defenses.hybrid import HybridDefense as HybridDefense
from kerasdef.defenses.loading import load as load
from kerasdef.defenses.manifest import Manifest as Manifest
from kerasdef.defenses.manifest import Row as Row
from kerasdef.defenses.runtime import Runtime as Runtime
from kerasdef.defenses.smoothing import Certificates as Certificates
from kerasdef.defenses.smoothing import Predictions as Predictions
from kerasdef.defenses.smoothing import Smoothed as Smoothed
from kerasdef.defenses.voting import EvadeVote as EvadeVote
from kerasdef.defenses.voting import Vote as Vote
from kerasdef.defenses.voting import Voting as Voting
from kerasdef.defenses.voting import bootstrap_indices as bootstrap_indices
from kerasdef.defenses.voting import voting_model as voting_model
from kerasdef.defenses.weights import AdaptiveWeights as AdaptiveWeights
