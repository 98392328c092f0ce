"""A small net that learns what a defense answers near some images, to be attacked in its place."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import keras
import numpy as np
from keras import layers, ops

from kerasdef import backend, models, norms
from kerasdef import random as draws
from kerasdef.attacks.queries import on_rows
from kerasdef.defenses.adaptive.parts import Elsewhere
from kerasdef.models import Victim
from kerasdef.norms import Linf, Norm

_EPOCHS = 10  # of each round; few points are learned quickly
_BATCH = 64
_TEMPERED = 1e-3  # share of equal probabilities in what is taught: a defense that is sure teaches finite logits


@dataclass(frozen=True, eq=False, repr=False)
class Substitute(Elsewhere):
    """An attack on a net that is taught the probabilities of a defense on images and around them.

    The net is trained in rounds. In the first it sees images and random points of their balls; each further round adds
    what the attack makes of the images on the net as it is, with what the defense answers there.

    Args:
        data: Images of shape (n, ...) that the net learns from.
        labels: Their true classes of shape (n,).
        eps: Radius of the balls; a number, or one for each of the images.
        norm: Their norm.
        points: Random points in all, at least; each image has the same number.
        rounds: Rounds of training, at least 1.

    References: Papernot et al., 2017, https://arxiv.org/abs/1602.02697 (Algorithm 1). There the net is taught labels,
    and points are added along the signs of its gradients.
    """

    data: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), "float32"))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(1, "int32"))
    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)
    points: int = 2000
    rounds: int = 3

    def of_data(self, x: np.ndarray, y: np.ndarray) -> Substitute:
        """This attack with a net that learns from these images."""
        return dataclasses.replace(self, data=x, labels=y)

    def rows(self, index: np.ndarray, n: int) -> Substitute:
        """This attack for some of the samples; what the net learns from stays."""
        return dataclasses.replace(self, attack=self.attack.rows(index, n))

    def _run(self, model, x, y, batch_size, seed, show):
        net = self.learned(model, seed)
        return self.attack._run(self.attack._view(net), x, y, batch_size, seed, show)

    def learned(self, victim: Victim, seed: int) -> keras.Model:
        """The net, which gives logits of as many classes as the defense decides between."""
        x, y = self.data, np.asarray(self.labels, "int32")
        norm, times = norms.get(self.norm), -(-self.points // len(self.data))
        eps = np.broadcast_to(np.asarray(self.eps, "float32"), (len(x),))
        many, seeds = np.repeat(x, times, axis=0), draws.sample_seeds(seed, np.arange(len(x) * times))
        moved = many + on_rows(lambda s, e: norm.sample(s, x.shape[1:], e), seeds, np.repeat(eps, times))
        known = np.concatenate([x, np.clip(moved, *np.float32(self.bounds)).astype("float32")])
        taught = self._taught(victim, known)
        net = _net(x.shape[1:], taught.shape[1], self.bounds, seed)
        for i in range(self.rounds):
            order = np.random.default_rng([seed, i])
            rows = np.concatenate([order.permutation(len(known)) for _ in range(_EPOCHS)])
            net.fit(known[rows], taught[rows], batch_size=_BATCH, epochs=1, shuffle=False, verbose=0)
            if i + 1 < self.rounds:
                attack = dataclasses.replace(self.attack, eps=self.eps)
                new = attack._run(attack._view(net), x, y, 256, seed + i, False)[0]
                known, taught = np.concatenate([known, new]), np.concatenate([taught, self._taught(victim, new)])
        return net

    def _taught(self, victim: Victim, x: np.ndarray) -> np.ndarray:
        """Probabilities that the defense gives, of shape (n, classes)."""
        logits = on_rows(self.goal.joint, victim.predict(x))
        shares = ops.convert_to_numpy(ops.softmax(ops.convert_to_tensor(logits), axis=-1))
        shares = np.nan_to_num(shares, nan=1 / shares.shape[1])  # no answer
        return (1 - _TEMPERED) * shares + _TEMPERED / shares.shape[1]


def _net(shape: tuple[int, ...], outputs: int, bounds: tuple[float, float], seed: int) -> keras.Model:
    """A small convolutional net for images, and one of dense layers for anything else."""
    low, high = bounds
    glorot = [keras.initializers.GlorotUniform(seed=seed * 10 + i) for i in range(4)]
    convolutions = [
        layers.Conv2D(32, 3, padding="same", activation="relu", kernel_initializer=glorot[0]),
        layers.Conv2D(32, 3, strides=2, padding="same", activation="relu", kernel_initializer=glorot[1]),
    ]
    net = keras.Sequential(
        [
            keras.Input(shape),
            layers.Rescaling(2 / (high - low), -(high + low) / (high - low)),
            *(convolutions if len(shape) == 3 else []),
            layers.Flatten(),
            layers.Dense(128, activation="relu", kernel_initializer=glorot[2]),
            layers.Dense(outputs, kernel_initializer=glorot[3]),
        ],
        name="substitute",
    )
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    net.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=backend.jit())
    net.bounds = bounds
    return models.as_logits(net)
