"""What is attacked and shipped: views of a user's model, networks, blocks, export."""

from kerasdef.models.batches import pad as pad
from kerasdef.models.batches import padded_batches as padded_batches
from kerasdef.models.black_box import BlackBox as BlackBox
from kerasdef.models.bounds import float_input as float_input
from kerasdef.models.bounds import input_bounds as input_bounds
from kerasdef.models.fixed import fixed_draw as fixed_draw
from kerasdef.models.repair import Finding as Finding
from kerasdef.models.repair import Repaired as Repaired
from kerasdef.models.repair import repair as repair
from kerasdef.models.victim import Victim as Victim
from kerasdef.models.victim import WhiteBox as WhiteBox
from kerasdef.models.victim import predict_logits as predict_logits
from kerasdef.models.views import Untracked as Untracked
from kerasdef.models.views import as_logits as as_logits
from kerasdef.models.views import check_symbolic as check_symbolic
from kerasdef.models.views import gives_logits as gives_logits
from kerasdef.models.views import has_batch_norm as has_batch_norm
from kerasdef.models.views import logits_of as logits_of
from kerasdef.models.views import logits_view as logits_view
from kerasdef.models.views import named_views as named_views
from kerasdef.models.views import stack_logits as stack_logits
