"""What purifiers that are networks share: the network, its settings, checks of data, losses in one unit."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod

import keras
import numpy as np
from keras import layers

from kerasdef import checks
from kerasdef.annotations import checked
from kerasdef.defenses.purifiers.base import Purifier
from kerasdef.runs import progress


class LearnedPurifier(Purifier):
    """A network from images to images, with its own gradient.

    The network answers in inference mode, also while what stands behind it is trained.

    Args:
        network: A Keras model from images within the bounds to images of the same shape; None builds one for the
            shape of the first images.
        seed: Seed of the initial weights of a network that is built.
        bounds: `(low, high)`: range of the values of the images.

    Call arguments:
        x: Images of shape (n, height, width, channels).

    Raises:
        ValueError: The network is not a built model from images to images of one shape, or is given other images.
    """

    @checked
    def __init__(
        self,
        network: keras.Model | None = None,
        *,
        seed: int = 0,
        bounds: tuple[float, float] = (0.0, 1.0),
        **kwargs,
    ):
        super().__init__(bounds=bounds, **kwargs)
        if network is not None and not (network.built and _symmetric(network)):
            raise ValueError(
                "`network` must be a built model from images to images of one shape. "
                f"Received: network={network.name!r}"
            )
        self.network = network
        self.seed = checks.non_negative_int("seed", seed)

    @abstractmethod
    def _network(self, shape: tuple[int, int, int]) -> keras.Model:
        """The network for images of this shape."""

    def build(self, input_shape):
        """Build the network, or check that the images are those of the one that was given."""
        shape = tuple(input_shape[1:])
        if self.network is None:
            if len(shape) != 3 or None in shape:
                raise ValueError(
                    f"`x` must hold images of shape (n, height, width, channels). Received: shape={tuple(input_shape)}"
                )
            self.network = self._network(shape)
        elif not _fits(shape, self._shape):
            raise ValueError(
                f"`x` must hold images of the shape that the network takes, {self._shape}. "
                f"Received: shape={tuple(input_shape)}"
            )

    def purify(self, x):
        """What the network makes of the images."""
        return self.network(x, training=False)

    def get_config(self):
        """Settings of the purifier, with the network without its weights."""
        network = None if self.network is None else keras.saving.serialize_keras_object(self.network)
        return {**super().get_config(), "network": network, "seed": self.seed}

    @classmethod
    def from_config(cls, config):
        """Purifier from its settings."""
        network = copy.deepcopy(config["network"])  # Keras empties what it reads
        return cls(**{**config, "network": network and keras.saving.deserialize_keras_object(network)})

    def _ready(self, name: str, x: np.ndarray) -> np.ndarray:
        """Images that are checked; the network is built for the first."""
        shape = None if self.network is None else self._shape
        x = checks.images(name, x, limits=self.bounds, shape=shape)
        if not self.built:
            self.build((None, *x.shape[1:]))
        return x

    @property
    def _shape(self) -> tuple:
        return tuple(self.network.input_shape[1:])

    def _unit(self, x: np.ndarray) -> np.ndarray:
        """Images mapped onto [0, 1], where losses are taken, so that the range changes no step of a training."""
        low, high = self.bounds
        return ((x - low) / (high - low)).astype("float32")

    def _to_unit(self) -> layers.Layer:
        """A layer that maps images onto [0, 1]."""
        low, high = self.bounds
        return layers.Rescaling(1 / (high - low), -low / (high - low))


def _symmetric(network: keras.Model) -> bool:
    shapes = [getattr(network, name, None) for name in ("input_shape", "output_shape")]
    return len(shapes[0] or ()) == 4 and shapes[0] == shapes[1] and isinstance(shapes[0][0], int | None)


def _fits(found: tuple, wanted: tuple) -> bool:
    """Whether images of a shape can be given to a network, which may leave sides open."""
    return len(found) == len(wanted) and all(b in (None, a) for a, b in zip(found, wanted, strict=True))


def pairs(x: np.ndarray, x_adv: np.ndarray, x_adv_clean: np.ndarray | None) -> np.ndarray:
    """The clean image of each attacked one: those that are given, or the rows of x."""
    clean = x if x_adv_clean is None else x_adv_clean
    if len(clean) != len(x_adv):
        name = "x" if x_adv_clean is None else "x_adv_clean"
        raise ValueError(
            f"`{name}` must hold the clean image of each of the {len(x_adv)} attacked ones. Received: {len(clean)}"
        )
    return clean


def shuffled(n: int, batch_size: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Rows of n samples in random order, in batches; what does not fill a last batch waits for another epoch."""
    order = rng.permutation(n)
    size = min(batch_size, n)
    return [order[i : i + size] for i in range(0, n - size + 1, size)]


def told(advance, logs: dict[str, float]) -> None:
    """Move a bar on by a batch, and stop a training whose loss is no number any more."""
    if not all(math.isfinite(value) for value in logs.values()):
        raise ValueError(f"The training diverged; a smaller `learning_rate` may help. Received: {logs}")
    advance(1, progress.numbers(logs))
