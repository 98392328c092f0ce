"""What the runtime defense does with images before it answers: detect, purify, smooth, weigh."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kerasdef import backend
from kerasdef import random as draws_of
from kerasdef.defenses.base import Members


class Stages(keras.layers.Layer):
    """Algorithm 1 without its last line: images to the weighted answers of the members, and the detector's excess.

    Args:
        members: The classifiers.
        detector: A detector that is attached to them, or None.
        purifier: A purifier, or None.
        sigma: Standard deviation of the smoothing noise.
        draws: Number of noisy copies that are averaged where sigma is above 0.
        weights: Weights of the members.
        always: Whether every image is repaired; otherwise those that are flagged.
        rejects: Whether the excess is the last column of the outputs.
        sure: Probability from which on the first member answers alone, or None.

    Call arguments:
        x: Images of shape (n, ...).

    Returns:
        Tensor of shape (n, members, K) or, if it rejects, (n, members, K + 1): log(w_i p_i), and the excess.
    """

    def __init__(self, members, detector, purifier, *, sigma, draws, weights, always, rejects, seed, sure, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.members = Members(members, name="members")
        self.detector, self.purifier, self.weighted = detector, purifier, weights
        self.sigma, self.draws, self.always, self.rejects, self.sure = sigma, draws, always, rejects, sure
        self.seeds = keras.random.SeedGenerator(seed) if sigma > 0 else None
        self.built = True

    @property
    def repairs(self) -> bool:
        """Whether anything is done to an image before it is answered."""
        return self.purifier is not None or self.sigma > 0

    def watched(self, x):
        """Logarithms of the members' probabilities, (n, members, K), and the detector's excess, (n,), or None."""
        first = self.members.of(x, slice(None) if self.sure is None else slice(1))
        logits = ops.stack(first, axis=1)
        log_p, excess = ops.log_softmax(logits, axis=-1), None
        if self.detector is not None:
            excess = self.detector.excess(x, logits)
        return log_p if self.sure is None else self._joined(x, log_p, excess), excess

    def _joined(self, x, first, excess):
        """Logarithms of all members' probabilities where the first is unsure or flagged, else its own for all."""
        rest = len(self.members.members) - 1
        unsure = ops.max(first, axis=(1, 2)) < np.log(self.sure)
        unsure = unsure if excess is None else ops.logical_or(unsure, excess > 0)

        def all_of_them(x, first):
            others = ops.stack(self.members.of(x, slice(1, None)), axis=1)
            return ops.concatenate([first, ops.log_softmax(others, axis=-1)], axis=1)

        return backend.on_rows(unsure, all_of_them, (x, first), ops.repeat(first, rest + 1, axis=1))

    def parts(self, x):
        """Logarithms of the members' probabilities after the repair, (n, members, K), and the excess, (n,), or None."""
        log_p = excess = None
        if self.detector is not None or not (self.repairs and self.always):
            log_p, excess = self.watched(x)
        if self.repairs and self.always:
            log_p = self._repaired(x, *self._noise(x))
        elif self.repairs and excess is not None:
            log_p = backend.on_rows(excess > 0, self._repaired, (x, *self._noise(x)), log_p)
        return log_p, excess

    def call(self, x):
        """Detect, repair, answer."""
        log_p, excess = self.parts(x)
        answer = self.weighted(log_p)
        if not self.rejects:
            return answer
        excess = ops.broadcast_to(ops.reshape(excess, (-1, 1, 1)), ops.shape(answer[:, :, :1]))
        return ops.concatenate([answer, excess], axis=-1)

    def _noise(self, x):
        """A seed for each image, of shape (n,), where there is noise."""
        if self.seeds is None:
            return ()
        state = ops.cast(ops.reshape(self.seeds.next(), (-1,)), "uint32")
        first = draws_of.fold(state[:1], ops.cast(state[1:2], "int32"))
        count = ops.shape(x)[0]
        return (draws_of.fold(ops.broadcast_to(first, (count,)), ops.arange(count, dtype="int32")),)

    def _repaired(self, x, seeds=None):
        """Logarithms of the members' probabilities after the repair."""
        x = x if self.purifier is None else self.purifier(x)
        if seeds is None:
            return ops.log_softmax(ops.stack(self.members(x), axis=1), axis=-1)
        shape = tuple(x.shape[1:])
        noise = draws_of.normal(seeds, (self.draws, *shape))
        copies = ops.reshape(ops.expand_dims(x, 1) + self.sigma * noise, (-1, *shape))
        log_p = ops.log_softmax(ops.stack(self.members(copies), axis=1), axis=-1)
        log_p = ops.reshape(log_p, (-1, self.draws, *log_p.shape[1:]))
        return ops.logsumexp(log_p, axis=1) - np.log(self.draws)

    def compute_output_spec(self, x):
        """Shape and type of the output."""
        members = self.members.compute_output_spec(x)
        shape = (x.shape[0], len(members), members[0].shape[-1] + self.rejects)
        return keras.KerasTensor(shape, dtype="float32")
