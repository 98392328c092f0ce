"""kerasdef: adversarial robustness for Keras.

Public names load on first use, so `import kerasdef` does not import TensorFlow.
"""

import importlib

from kerasdef._version import __version__ as __version__
from kerasdef.recipes.robust.settings import METHODS as _METHODS

_PUBLIC = {
    "load_dataset": "kerasdef.datasets",
    "Dataset": "kerasdef.datasets",
    "Report": "kerasdef.reporting.report",
    "adaptive": "kerasdef.defenses.adaptive:adaptive",
    "attack": "kerasdef.recipes.attack:attack",
    "certify": "kerasdef.recipes.certify:certify",
    "evaluate": "kerasdef.recipes.evaluate:evaluate",
    "gma_victims": "kerasdef.recipes.victims:gma_victims",
    "train_hybrid": "kerasdef.recipes.hybrid.training:train",
    "train_iar": "kerasdef.recipes.iar.training:train",
    "train_mia": "kerasdef.recipes.mia.training:train",
    "train_robust": "kerasdef.recipes.robust.training:train",
    **{f"train_{name}": f"kerasdef.recipes.robust.training:train_{name}" for name in _METHODS},
}
_PACKAGES = (
    "attacks",
    "datasets",
    "defenses",
    "evaluation",
    "goals",
    "losses",
    "models",
    "norms",
    "poisoning",
    "recipes",
    "reporting",
    "runs",
    "testing",
    "training",
)

__all__ = sorted(["__version__", *_PUBLIC, *_PACKAGES])


def __getattr__(name: str):
    if name in _PUBLIC:
        module, _, attribute = _PUBLIC[name].partition(":")
        return getattr(importlib.import_module(module), attribute or name)
    if name in _PACKAGES:
        return importlib.import_module(f"kerasdef.{name}")
    raise AttributeError(f"module 'kerasdef' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
