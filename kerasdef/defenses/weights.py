"""Weights of an ensemble that follow how reliable its members are."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.annotations import checked


@keras.saving.register_keras_serializable(package="kerasdef")
class AdaptiveWeights(keras.layers.Layer):
    """Weights w_i of members, by which their probabilities are averaged: sum over i of w_i p_i(y|x).

    They begin equal. `fit` makes them the share of reliability that each member has on validation data; `update` moves
    them by multiplicative weights when true labels arrive: a member that was wrong on a sample is multiplied by
    exp(-learning_rate), one that was half sure by the root of that. No weight falls below the floor, so a member that
    was wrong for a while comes back.

    Args:
        members: Number of members, at least 1.
        learning_rate: How fast one label moves the weights; at least 0.
        floor: Least weight of a member, from 0 to below 1 / members. None is 0.1 / members.

    Attributes:
        weight: Variable of shape (members,): the weights, which sum to 1.

    Call arguments:
        log_p: Logarithms of the members' probabilities, of shape (n, members, classes).

    Returns:
        log(w_i p_i), of the same shape.

    References: Wen, Danso and Danso, 2025 (equation 7); Freund and Schapire, 1997 (Hedge); Herbster and Warmuth, 1998
    (a share for everyone).
    """

    @checked
    def __init__(self, members: int, *, learning_rate: float = 0.05, floor: float | None = None, **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.members = checks.positive_int("members", members)
        self.learning_rate = checks.real("learning_rate", learning_rate, low=0.0)
        self.floor = 0.1 / members if floor is None else checks.real("floor", floor, low=0.0)
        if self.floor * members >= 1:
            raise ValueError(f"`floor` must be below 1 / members, {1 / members:g}. Received: floor={floor}")
        equal = keras.initializers.Constant(1.0 / members)
        self.weight = self.add_weight(shape=(members,), initializer=equal, trainable=False, name="weight")
        self.built = True

    def call(self, log_p):
        """Weigh the members."""
        weight = ops.stop_gradient(ops.convert_to_tensor(self.weight))
        return log_p + ops.reshape(ops.log(weight), (1, self.members, 1))

    @checked
    def fit(self, predicted: np.ndarray, y: np.ndarray) -> AdaptiveWeights:
        """Make the weights proportional to the members' accuracy on validation data, clean and attacked.

        Args:
            predicted: Labels that the members gave, integers of shape (n, members).
            y: True labels of shape (n,).

        Raises:
            ValueError: Shapes that do not fit, or no member that is ever right.
        """
        predicted = np.asarray(predicted)
        if predicted.ndim != 2 or predicted.shape[1] != self.members:
            raise ValueError(f"`predicted` must have the shape (n, {self.members}). Received: shape={predicted.shape}")
        y = checks.labels("y", y, n=len(predicted))
        right = np.mean(predicted == y[:, None], axis=0)
        if not right.sum() > 0:
            raise ValueError(f"`predicted` must be right for some samples. Received: none of {len(y)} by any member")
        self.weight.assign(self._kept(right / right.sum()))
        return self

    def update(self, log_p, y, counts) -> None:
        """Move the weights by samples whose true labels are known; eagerly or within a program.

        Args:
            log_p: Logarithms of the members' probabilities, of shape (n, members, classes).
            y: True labels, an integer tensor of shape (n,).
            counts: How much each sample counts, of shape (n,): 1, or 0 for one that teaches nothing.
        """
        true = ops.expand_dims(ops.one_hot(ops.cast(y, "int32"), log_p.shape[-1], dtype="float32"), 1)
        loss = 1.0 - ops.sum(ops.exp(log_p) * true, axis=-1)  # from 0 to 1, of shape (n, members)
        total = ops.log(self.weight) - self.learning_rate * ops.sum(ops.expand_dims(counts, 1) * loss, axis=0)
        self.weight.assign(self._kept(ops.softmax(total)))

    def _kept(self, weight):
        """Weights that sum to 1, none below the floor."""
        return self.floor + (1.0 - self.members * self.floor) * weight

    def compute_output_shape(self, input_shape):
        """The shape of the probabilities."""
        return input_shape

    def get_config(self):
        """Settings of the layer."""
        own = {"members": self.members, "learning_rate": self.learning_rate, "floor": self.floor}
        return {**super().get_config(), **own}
