"""Models and attacks between kerasdef, ART and cleverhans (TensorFlow)."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks.base import Attack
from kerasdef.goals import Goal, Hit, Misclassify
from kerasdef.models import Victim
from kerasdef.runs import progress


@checked
def as_art(model: keras.Model, bounds: tuple[float, float] = (0.0, 1.0)):
    """Return a model as a classifier of ART: an `art.estimators.classification.TensorFlowV2Classifier`.

    ART sees the logits, whatever the model's last layer is, and a loss that is made for logits.

    Args:
        model: A built Keras classifier.
        bounds: Valid range of an input value.

    Raises:
        ValueError: Keras does not run on TensorFlow.

    Example:
    >>> x_adv = art.attacks.evasion.AutoProjectedGradientDescent(as_art(model), eps=0.3).generate(x, y)
    """
    _needs_tensorflow("as_art")
    bounds = checks.bounds(bounds)
    return _classifier(Victim.of(model).facing(bounds).in_data_units(), bounds)


def _classifier(view: keras.Model, bounds: tuple[float, float]):
    """A model of logits as a classifier of ART."""
    from art.estimators.classification import TensorFlowV2Classifier

    return TensorFlowV2Classifier(
        model=view,
        nb_classes=view.output_shape[-1],
        input_shape=view.input_shape[1:],
        loss_object=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        clip_values=bounds,
    )


@checked
def from_art(attack: type, *, kind: str = "budget", bounds: tuple[float, float] = (0.0, 1.0), **settings) -> Attack:
    """Return an evasion attack of ART as an attack of kerasdef.

    Args:
        attack: A class of `art.attacks.evasion` that is made from a classifier and settings.
        kind: "budget" or "minimal", see `Attack`.
        bounds: Valid range of an input value.
        **settings: Settings of the class. `batch_size` is that of the call unless it is given, `verbose` is off;
            `targeted` is the goal's affair.

    Raises:
        ValueError: A setting that the class does not have; a goal it cannot take; a backend that is not TensorFlow.

    Example:
    >>> attack = from_art(art.attacks.evasion.AutoProjectedGradientDescent, eps=0.3, eps_step=0.05)
    >>> x_adv = attack(model, x, y)
    """
    return _FromArt(attack, settings, kind=kind, bounds=bounds)


@checked
def from_cleverhans(
    function: Callable, *, kind: str = "budget", bounds: tuple[float, float] = (0.0, 1.0), **settings
) -> Attack:
    """Return an attack of cleverhans as an attack of kerasdef.

    Args:
        function: A function of `cleverhans.tf2.attacks`, called as `function(model_fn, x, **settings)`. It is given
            the labels and the bounds where it takes them. Cleverhans 4.0's own `carlini_wagner_l2` and `spsa` do not
            run with Keras 3.
        kind: "budget" or "minimal", see `Attack`.
        bounds: Valid range of an input value.
        **settings: Settings of the function; `y`, `targeted`, `clip_min` and `clip_max` are set from the call.

    Raises:
        ValueError: A setting that the function does not have; a goal it cannot take; a backend that is not TensorFlow.

    Example:
    >>> attack = from_cleverhans(projected_gradient_descent, eps=0.3, eps_iter=0.03, nb_iter=40, norm=np.inf)
    >>> x_adv = attack(model, x, y)
    """
    return _FromCleverhans(function, settings, kind=kind, bounds=bounds)


@dataclass(frozen=True, eq=False, repr=False)
class _Adapter(Attack):
    """An attack of another library.

    What the model gets wrong from the start is not shown to it; what it returns is clipped to the bounds, and an input
    for which it returns NaN stays as it is. It does not tell its evaluations: they are given as 0.
    """

    peer: Callable
    settings: dict
    kind: str = "budget"
    bounds: tuple[float, float] = (0.0, 1.0)
    goal: Goal = field(default_factory=Misclassify)
    reserved: ClassVar[tuple[str, ...]] = ()
    maker: ClassVar[str] = ""

    def __post_init__(self):
        check_fields(self)
        _needs_tensorflow(self.maker)
        checks.one_of("kind", self.kind, ("budget", "minimal"))
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        for name in self.settings:
            if name in self.reserved:
                raise ValueError(
                    f"`{name}` is set by the call, not as a setting. Received: {name}={self.settings[name]!r}"
                )
            if not self._open:
                checks.one_of("settings", name, [n for n in self._names if n not in self.reserved])
        if not isinstance(self.goal, Misclassify) and not (isinstance(self.goal, Hit) and self._takes("targeted")):
            raise ValueError(f"`goal` must be one that {self.peer.__name__} can take. Received: goal={self.goal!r}")

    @property
    def _names(self) -> list[str]:
        """Names of the settings that the peer takes."""
        return list(self._parameters)

    @property
    def _parameters(self) -> dict:
        return dict(inspect.signature(self.peer).parameters)

    @property
    def _open(self) -> bool:
        """The peer takes any name (and passes it on)."""
        return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in self._parameters.values())

    def _takes(self, name: str) -> bool:
        return self._open or name in self._names

    def _run(self, model, x, y, batch_size, seed, show):
        out, right = np.array(x), np.flatnonzero(~np.asarray(self._wrong(model, x, y)))
        with backend.seeded(seed), progress.bar(self.peer.__name__, len(right), show=show) as tick:
            for part in models.padded_batches(len(right), batch_size):
                rows = right[part]
                found = np.clip(np.asarray(self._attack(model, x[rows], y[rows], batch_size)), *self.bounds)
                good = np.isfinite(found).all(axis=tuple(range(1, x.ndim)))
                out[rows[good]] = found[good]
                tick(len(rows))
        return out, np.zeros(len(x), dtype="int64")

    def _wrong(self, model, x, y):
        return ops.convert_to_numpy(self.goal.reached(model.predict(x), y))

    def __repr__(self) -> str:
        settings = self.settings | {"kind": self.kind, "bounds": self.bounds, "goal": self.goal}
        return f"{self.maker}({self.peer.__name__}, {', '.join(f'{k}={v!r}' for k, v in settings.items())})"


@dataclass(frozen=True, eq=False, repr=False)
class _FromArt(_Adapter):
    """An evasion attack of ART; see `from_art`."""

    reserved: ClassVar[tuple[str, ...]] = ("targeted", "estimator", "classifier")
    maker: ClassVar[str] = "from_art"

    def _attack(self, model, x, y, batch_size):
        settings = {"batch_size": batch_size, "verbose": False, "targeted": isinstance(self.goal, Hit)}
        settings = {k: v for k, v in settings.items() if self._takes(k)} | self.settings
        return self.peer(_classifier(model.in_data_units(), self.bounds), **settings).generate(x, y)


@dataclass(frozen=True, eq=False, repr=False)
class _FromCleverhans(_Adapter):
    """An attack of cleverhans; see `from_cleverhans`."""

    reserved: ClassVar[tuple[str, ...]] = ("model_fn", "x", "y", "targeted", "clip_min", "clip_max")
    maker: ClassVar[str] = "from_cleverhans"

    def _attack(self, model, x, y, batch_size):
        low, high = self.bounds
        targeted = isinstance(self.goal, Hit)
        settings = {"y": ops.convert_to_tensor(y), "targeted": targeted, "clip_min": low, "clip_max": high}
        settings = {k: v for k, v in settings.items() if self._takes(k)} | self.settings
        return self.peer(model.logits, ops.convert_to_tensor(x), **settings)


def _needs_tensorflow(name: str) -> None:
    if backend.NAME != "tensorflow":
        raise ValueError(f"`{name}` needs the TensorFlow backend. Received: backend={backend.NAME!r}")
