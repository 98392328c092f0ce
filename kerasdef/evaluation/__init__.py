"""Evaluation: what each model said of each image, and the report made of it."""

from kerasdef.evaluation.certified import certified_accuracy as certified_accuracy
from kerasdef.evaluation.measures import measure as measure
from kerasdef.evaluation.outcomes import COLUMNS as COLUMNS
from kerasdef.evaluation.outcomes import Outcome as Outcome
from kerasdef.evaluation.statistics import auroc as auroc
from kerasdef.evaluation.statistics import mcnemar as mcnemar
from kerasdef.evaluation.statistics import tpr_at_fpr as tpr_at_fpr
from kerasdef.evaluation.statistics import wilson as wilson

_LATER = {
    "Images": "plan",
    "Plan": "plan",
    "Planned": "plan",
    "evaluate": "judging",
    "Evaluation": "judging",
    "Binarization": "sanity.binarization",
    "binarization": "sanity.binarization",
    "Monotone": "sanity.trends",
    "Unbounded": "sanity.trends",
    "monotone": "sanity.trends",
    "unbounded": "sanity.trends",
    "SelfCheck": "sanity.check",
    "self_check": "sanity.check",
    "four_numbers": "randomness",
    "FourNumbers": "randomness",
    "Randomness": "randomness",
}


def __getattr__(name: str):
    """What needs Keras is imported when it is asked for: a report is read without."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(f"{__name__}.{_LATER[name]}"), name)
    globals()[name] = found
    return found
