"""What is attacked and shipped: views of a user's model, networks, blocks, export."""

from kerasdef.models.victim import Untracked as Untracked
from kerasdef.models.victim import architecture as architecture
from kerasdef.models.victim import as_logits as as_logits
from kerasdef.models.victim import gives_logits as gives_logits
from kerasdef.models.victim import has_batch_norm as has_batch_norm
from kerasdef.models.victim import logits_of as logits_of
from kerasdef.models.victim import logits_view as logits_view
from kerasdef.models.victim import named_views as named_views
from kerasdef.models.victim import outputs as outputs
from kerasdef.models.victim import pad as pad
from kerasdef.models.victim import padded_batches as padded_batches
from kerasdef.models.victim import predict_logits as predict_logits
from kerasdef.models.victim import stack_logits as stack_logits
