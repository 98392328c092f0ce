"""Transfer: what fools one model is shown to another."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef import checks, models
from kerasdef.attacks.base import Attack
from kerasdef.attacks.queries import BlackBox, predict
from kerasdef.attacks.wrappers.base import Wrapper


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Transfer(Wrapper):
    """An attack made on a model of one's own and shown to the model under attack, of which nothing is known.

    When called, the model is a Keras classifier or any function from arrays to logits, probabilities or labels. What
    it gets wrong from the start comes back unchanged, and so does what the source gets wrong. Evaluations are those
    on the source; the model is asked for nothing.

    Args:
        source: The model that it is made on: a built Keras classifier of the same inputs and classes.
        attack: Any attack. One that takes all its steps transfers better: `early_stop=False`.

    Example:
    >>> x_adv = Transfer(source, MIM(eps=8 / 255, early_stop=False))(model, x, y)

    References: Papernot et al., 2016, https://arxiv.org/abs/1605.07277 (section 2.2).
    """

    source: keras.Model

    def __init__(self, source: keras.Model, attack: Attack):  # the source first: it is attacked before the model
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "attack", attack)
        self.__post_init__()

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.source, keras.Model):
            raise ValueError(f"`source` must be a keras.Model. Received: {type(self.source).__name__}")

    @property
    def access(self) -> str:
        """What is needed of the model under attack."""
        return "black box"

    def _view(self, model):
        source = models.logits_view(self.source)
        if not isinstance(model, keras.Model):
            if not callable(model):
                raise ValueError(f"`model` must be a keras.Model or a callable. Received: {type(model).__name__}")
            view = model if isinstance(model, BlackBox) else BlackBox(model)
            view.classes = max(view.classes, source.output_shape[-1])  # columns of a model that gives labels
            return view
        view = models.logits_view(model)
        shapes = [(v.input_shape[1:], v.output_shape[-1]) for v in (source, view)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "`source` must have the inputs and classes of the model. "
                f"Received: {shapes[0]} for the source, {shapes[1]} for the model"
            )
        return view

    def _prepare(self, model, x, y):
        if isinstance(model, keras.Model):
            return super()._prepare(model, x, y)
        view, source = self._view(model), models.logits_view(self.source)
        x = checks.images("x", x, limits=self.bounds, shape=source.input_shape[1:])
        if y is None:
            warnings.warn(
                "`y` was not given: the attack moves away from the model's own predictions, not from true labels.",
                UserWarning,
                stacklevel=3,
            )
            y = predict(view, x).argmax(axis=1)
        y = checks.labels("y", y, n=len(x), classes=source.output_shape[-1])
        return view, x, y.astype("int32")

    def _success(self, model, x_adv, y):
        logits = models.outputs(model, x_adv) if isinstance(model, keras.Model) else predict(model, x_adv)
        return ops.convert_to_numpy(self.goal.reached(logits, y))

    def _run(self, model, x, y, batch_size, seed, show):
        wrong = self._success(model, x, y)
        found, spent = self.attack._run(self.attack._view(self.source), x, y, batch_size, seed, show)
        if found.shape != x.shape:
            raise ValueError(f"`attack` must return one image for one. Received: {self.attack!r}")
        return np.where(wrong.reshape((-1,) + (1,) * (x.ndim - 1)), x, found), spent
