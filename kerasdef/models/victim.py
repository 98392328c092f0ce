"""What an attack sees of the model under attack: logits in the units of the data, whatever the model is."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks
from kerasdef import random as draws
from kerasdef.annotations import checked
from kerasdef.models import views
from kerasdef.models.batches import pad, padded_batches
from kerasdef.models.bounds import input_bounds

_FORWARD: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_RANDOM: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_LOOKED_AT = 8  # inputs on which two draws of a model are compared


class Victim(ABC):
    """A classifier as attacks see it.

    Make one with `Victim.of(model)`; attacks do so themselves. The one reason to do it by hand is a model whose range
    of input values cannot be seen in its first layers: `Victim.of(model, bounds=(0, 255))`.

    Attributes:
        access: What the model gives: "gradients" (a Keras model), "scores" or "labels" (a callable).
        classes: Number of classes.
        input_shape: Shape of one input, or None where it is not known.
        random: Whether the model draws random numbers when it answers.
    """

    access: str
    classes: int
    input_shape: tuple[int, ...] | None
    random: bool = False
    _kinds: ClassVar[list[type[Victim]]] = []

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        Victim._kinds.append(cls)

    @classmethod
    @abstractmethod
    def takes(cls, model) -> bool:
        """Whether this kind of victim is made of such a model."""

    @staticmethod
    @checked
    def of(
        model: keras.Model | Callable | Victim,
        *,
        bounds: tuple[float, float] | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> Victim:
        """Return a model as attacks see it.

        Args:
            model: A built Keras classifier, a callable from arrays to logits, probabilities or labels, or a `Victim`,
                which is returned as it is.
            bounds: Range of the numbers that the model itself takes. None: what its first layers tell (integer inputs
                of 8 bits or a first `Rescaling` by about 1/255 take 0 to 255), else the range of the data.
            shape: Shape of one input, for subclassed models, which do not tell it.

        Raises:
            ValueError: The model cannot be attacked; the message says why.
        """
        backend.refuse_fork()
        if isinstance(model, Victim):
            return model
        for kind in Victim._kinds:
            if kind.takes(model):
                return kind(model, bounds=bounds, shape=shape)
        raise ValueError(f"`model` must be a keras.Model or a callable. Received: {type(model).__name__}")

    @abstractmethod
    def facing(self, bounds: tuple[float, float]) -> Victim:
        """This victim for data in a range: it maps them onto the range that the model takes."""

    def rows(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Some rows of an array; what is known of the array stays known of them."""
        return x[index]

    @abstractmethod
    def facts(self) -> dict:
        """What tells this victim from others: the model and how data are mapped onto its range."""

    @abstractmethod
    def predict(self, x: np.ndarray, *, batch_size: int = 512, seed: int = 0) -> np.ndarray:
        """Logits of shape (n, classes) for an array.

        Args:
            x: Array of shape (n, ...), float32, in the units of the data.
            batch_size: Most samples at a time.
            seed: Chooses the draws of a random model, each sample's by its position in x.
        """


class WhiteBox(Victim):
    """A Keras classifier: logits with gradients.

    Args:
        model: A built Keras classifier.
        bounds: As in `Victim.of`.
        shape: As in `Victim.of`.

    Attributes:
        view: The Keras model of logits that is evaluated; it shares the weights of `model`.
        bounds: Range of the numbers that the model takes, or None for that of the data.
    """

    access = "gradients"

    @classmethod
    def takes(cls, model) -> bool:
        """Keras models."""
        return isinstance(model, keras.Model)

    @checked
    def __init__(
        self,
        model: keras.Model,
        *,
        bounds: tuple[float, float] | None = None,
        shape: tuple[int, ...] | None = None,
    ):
        self.view = views.logits_view(model, shape)
        self.bounds = input_bounds(model) if bounds is None else checks.bounds(bounds)
        self.map: tuple[float, float] | None = None  # factor and offset from the data to the model
        self.input_shape = tuple(self.view.input_shape[1:])
        self.classes = self.view.output_shape[-1]
        if self.view not in _RANDOM:  # found out now, by two draws: inside a program there are no values to compare
            _RANDOM[self.view] = self._draws_numbers()

    @property
    def random(self) -> bool:
        """Whether the model draws random numbers when it answers."""
        return _RANDOM[self.view]

    def _draws_numbers(self) -> bool:
        count = len(backend.seed_variables(self.view))
        if not count:
            return False
        if None in self.input_shape:
            return True
        low, high = self.bounds or (0.0, 1.0)
        x = np.random.default_rng(0).uniform(low, high, (_LOOKED_AT, *self.input_shape)).astype("float32")
        with backend.eagerly():
            found = [self._drawn(ops.convert_to_tensor(x), np.full(_LOOKED_AT, i, "uint32")) for i in (1, 2)]
            return not np.array_equal(*map(ops.convert_to_numpy, found))

    def facing(self, bounds: tuple[float, float]) -> WhiteBox:
        """This victim for data in a range."""
        if self.bounds is None or self.bounds == bounds:
            found = None
        else:
            (low, high), (from_low, from_high) = self.bounds, bounds
            factor = (high - low) / (from_high - from_low)
            found = factor, low - factor * from_low
        return self._with(self.view, found)

    def facts(self) -> dict:
        """The Keras model of logits, and the map onto its range."""
        return {"model": self.view, "map": self.map}

    def in_data_units(self) -> keras.Model:
        """A Keras model of logits that takes numbers in the units of the data."""
        if self.map is None:
            return self.view
        images = keras.Input(self.input_shape)
        return views.as_logits(keras.Model(images, self.view(keras.layers.Rescaling(*self.map)(images))))

    def _with(self, view: keras.Model, found: tuple[float, float] | None) -> WhiteBox:
        other = object.__new__(WhiteBox)
        other.__dict__.update(self.__dict__, view=view, map=found)
        return other

    def weak(self) -> Callable[[], WhiteBox]:
        """A function that returns this victim while its model lives: programs must not keep it alive."""
        reference, found = weakref.ref(self.view), self.map
        facts = {k: v for k, v in self.__dict__.items() if k != "view"}

        def back() -> WhiteBox:
            other = object.__new__(WhiteBox)
            other.__dict__.update(facts, view=reference(), map=found)
            return other

        return back

    def logits(self, x, draw=None):
        """Logits of a batch, with gradients; may be traced.

        Args:
            x: Tensor of shape (n, ...), in the units of the data.
            draw: Tensor of shape (n,), uint32, that chooses the draws of a random model, each sample for itself.

        Returns:
            Tensor of shape (n, classes), float32.
        """
        if self.map is not None:
            x = x * self.map[0] + self.map[1]
        if not self.random:
            return backend.evaluate(self.view, x)
        return self._drawn(x, ops.zeros(ops.shape(x)[:1], "uint32") if draw is None else draw)

    def _drawn(self, x, draw):
        count = len(backend.seed_variables(self.view))
        return backend.evaluate_drawn(self.view, x, [draws.bits(draw, (2,), salt=1 + i) for i in range(count)])

    def predict(self, x: np.ndarray, *, batch_size: int = 512, seed: int = 0) -> np.ndarray:
        """Logits of shape (n, classes) for an array."""
        if not len(x):
            return np.empty((0, *self.view.output_shape[1:]), dtype="float32")
        kept = _FORWARD.setdefault(self.view, {})
        if self.map not in kept:
            back = self.weak()
            kept[self.map] = backend.compiled(lambda z, draw: back().logits(z, draw), self.view)
        forward, found = kept[self.map], None
        size = min(batch_size, max(8, 1 << (len(x) - 1).bit_length()))  # few sizes: few traces
        drawn = draws.sample_seeds(seed, np.arange(len(x)))
        for part in padded_batches(len(x), size):
            out = ops.convert_to_numpy(forward(pad(x[part], size), pad(drawn[part], size)))
            if found is None:
                found = np.empty((len(x), *out.shape[1:]), dtype="float32")
            found[part] = out[: part.stop - part.start]
        return found


def mean_logits(victim: WhiteBox, x, draw, count: int):
    """Logits of a batch, averaged over some draws of a random model; those of any other model as they are.

    Args:
        victim: The classifier.
        x: Tensor of shape (n, ...).
        draw: Tensor of shape (n,), uint32.
        count: Draws of each sample.
    """
    if not victim.random:
        return victim.logits(x)
    many = draws.fold(ops.repeat(draw, count), ops.tile(ops.arange(count), ops.shape(draw)))
    logits = victim.logits(ops.repeat(x, count, axis=0), many)
    return ops.mean(ops.reshape(logits, (-1, count, *logits.shape[1:])), axis=1)


@checked
def predict_logits(model: keras.Model | Victim, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
    """Logits of shape (n, classes) of a classifier on an array of numbers as the model takes them."""
    checks.positive_int("batch_size", batch_size)
    return Victim.of(model).predict(x, batch_size=batch_size)
