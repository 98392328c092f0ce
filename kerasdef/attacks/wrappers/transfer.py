"""Transfer: what fools one model is shown to another."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef.annotations import checked
from kerasdef.attacks.base import Attack
from kerasdef.attacks.wrappers.base import Wrapper
from kerasdef.models import Victim
from kerasdef.threat import ThreatModel


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

    @checked
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

    @property
    def threat(self) -> ThreatModel:
        """Threat model: of the model under attack nothing is known."""
        knows = "nothing of the model: the attack is made on another one"
        return dataclasses.replace(self.attack.threat, access="black box", knows=knows)

    def _view(self, model):
        victim, source = Victim.of(model).facing(self.bounds), self._source()
        if victim.access != "gradients":
            victim.widen(source.classes)  # columns of a model that gives labels
            return victim
        shapes = [(v.input_shape, v.classes) for v in (source, victim)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                "`source` must have the inputs and classes of the model. "
                f"Received: {shapes[0]} for the source, {shapes[1]} for the model"
            )
        return victim

    def _source(self) -> Victim:
        return self.attack._view(self.source)

    def _climbs(self):
        return (None,)  # nothing is climbed on the model under attack

    def _signs(self, victim, x, y):
        """What hides weaknesses: of the model, and of the source on which the attack is made."""
        of_source = self.attack._signs(self._source(), x, y)
        told = {f"source_{name}": f"Of the source of the transfer: {text}" for name, text in of_source.items()}
        return super()._signs(victim, x, y) | told

    def _accept(self, victim, y):
        victim.widen(self._source().classes)

    def _success(self, victim, x_adv, y):
        if victim.access == "gradients":
            return super()._success(victim, x_adv, y)
        return ops.convert_to_numpy(self.goal.reached(victim.predict(x_adv), y))

    def _run(self, model, x, y, batch_size, seed, show):
        wrong = self._success(model, x, y)
        found, spent = self.attack._run(self._source(), x, y, batch_size, seed, show)
        if found.shape != x.shape:
            raise ValueError(f"`attack` must return one image for one. Received: {self.attack!r}")
        return np.where(wrong.reshape((-1,) + (1,) * (x.ndim - 1)), x, found), spent
