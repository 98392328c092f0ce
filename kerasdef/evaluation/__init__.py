"""Evaluation: what each model said of each image, and the report made of it."""

from kerasdef.evaluation.measures import measure as measure
from kerasdef.evaluation.outcomes import COLUMNS as COLUMNS
from kerasdef.evaluation.outcomes import Outcome as Outcome
from kerasdef.evaluation.statistics import auroc as auroc
from kerasdef.evaluation.statistics import mcnemar as mcnemar
from kerasdef.evaluation.statistics import tpr_at_fpr as tpr_at_fpr
from kerasdef.evaluation.statistics import wilson as wilson
