"""Defenses as Keras layers and models: gradients flow through them, and they export as one SavedModel."""

from kerasdef.defenses.voting import EvadeVote as EvadeVote
from kerasdef.defenses.voting import Vote as Vote
from kerasdef.defenses.voting import attackable as attackable
from kerasdef.defenses.voting import bootstrap_indices as bootstrap_indices
from kerasdef.defenses.voting import voting_model as voting_model
