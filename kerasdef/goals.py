"""What an attacker wants: another class, a chosen class, or any class that is neither the true one nor "adversarial".

A goal says how a loss is climbed (`value`) and when the attacker has won (`reached`), from logits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from keras import ops

from kerasdef import checks, losses
from kerasdef.annotations import check_fields

CLIMBS = ("both", "mean", "members")  # what is raised against several classifiers: the loss of their mean, their losses


@dataclass(frozen=True)
class Goal(ABC):
    """What the attacker wants of a sample with label y.

    Attributes:
        unwanted: Number of classes that are no gain for the attacker.
    """

    unwanted: ClassVar[int] = 1

    def check(self, classes: int) -> None:  # noqa: B027 - most goals have no class of their own
        """Raise a ValueError where the goal names a class that a model of so many classes does not have."""

    @abstractmethod
    def value(self, loss, logits, y):
        """Value of shape (n,) that the attacker raises; `loss` maps (logits, labels) to (n,)."""

    def merged(self, logits, y):
        """Logits of shape (n, classes) of which any but y is what the attacker wants.

        Attacks that go for one class after another take their order and their boundaries from these.
        """
        return logits

    def apart(self, logits, y):
        """What fools the classifier and what alarms the detector, of which only both together reach the goal.

        Returns:
            `(gap, alarm)` of shape (n,): the gap is positive where the real classes alone are decided as the attacker
            wants; the alarm is positive where the sample is rejected, and -1 everywhere where nothing rejects.
        """
        gap = self.value(losses.margin, logits, y)
        return gap, -ops.ones_like(gap)

    def joint(self, logits):
        """Logits of shape (n, classes) on which, or nearly on which, the model decides."""
        return logits

    def averaged(self, logits):
        """Outputs of shape (n, ...) that stand for several draws of a random model, of shape (n, draws, ...).

        They are the logarithms of the mean probabilities.
        """
        return mean_of_probabilities(logits)

    @property
    def variants(self) -> dict[str, Goal]:
        """Goals that are reached where this one is and climb something else, by what that is."""
        return {}

    def reached(self, logits, y):
        """Booleans of shape (n,): the attack has reached its goal. An output that is no answer reaches none."""
        return ops.logical_and(answered(logits), self.value(losses.margin, logits, y) > 0)


@dataclass(frozen=True)
class Misclassify(Goal):
    """Any class but y (untargeted)."""

    def value(self, loss, logits, y):
        """The loss of the true class."""
        return loss(logits, y)

    def reached(self, logits, y):
        """The label is not y; where logits tie, it is the first of them."""
        return ops.logical_and(answered(logits), _label(logits) != ops.cast(y, "int32"))


@dataclass(frozen=True)
class Hit(Goal):
    """The class y, which is a target here."""

    def value(self, loss, logits, y):
        """Minus the loss of the target class."""
        return -loss(logits, y)

    def reached(self, logits, y):
        """The label is y."""
        return ops.logical_and(answered(logits), _label(logits) == ops.cast(y, "int32"))


@dataclass(frozen=True)
class Evade(Goal):
    """Any class that is neither y nor the class of rejected inputs.

    Both unwanted classes count as one, with the larger of their logits for the margin and their joint probability
    for the cross-entropy.

    Args:
        reject: Index of the class that stands for "adversarial".
    """

    reject: int

    unwanted: ClassVar[int] = 2

    def __post_init__(self):
        check_fields(self)
        checks.non_negative_int("reject", self.reject)
        self.check(checks.MOST_CLASSES)

    def check(self, classes):
        """The class of rejected inputs must be one of the model's."""
        if self.reject >= classes:
            raise ValueError(f"`reject` must be one of the classes, 0 to {classes - 1}. Received: reject={self.reject}")

    def value(self, loss, logits, y):
        """The loss of the two unwanted classes, merged into column y."""
        joined = ops.maximum if loss is losses.margin else ops.logaddexp
        return loss(self._join(logits, y, joined), y)

    def merged(self, logits, y):
        """Logits in which y stands for both unwanted classes, with the larger of their logits."""
        return self._join(logits, y, ops.maximum)

    def apart(self, logits, y):
        """The margin among the real classes, and how far the rejecting one is above them."""
        y, rejected = ops.cast(y, "int32"), logits[..., self.reject]
        far = losses.FAR * ops.one_hot(ops.full_like(y, self.reject), logits.shape[-1], dtype=logits.dtype)
        real = logits - far
        alarm = rejected - ops.max(real, axis=-1)
        return ops.where(y == self.reject, -alarm, losses.margin(real, y)), alarm

    def reached(self, logits, y):
        """The label is neither y nor that of rejected inputs."""
        label = _label(logits)
        other = ops.logical_and(label != ops.cast(y, "int32"), label != self.reject)
        return ops.logical_and(answered(logits), other)

    def _join(self, logits, y, joined):
        k = logits.shape[-1]
        y = ops.cast(y, "int32")
        true, rejected = losses.pick(logits, y), logits[..., self.reject]
        both = ops.where(y == self.reject, true, joined(true, rejected))
        at_y = ops.one_hot(y, k, dtype=logits.dtype)
        far = ops.one_hot(ops.full_like(y, self.reject), k, dtype=logits.dtype) * losses.FAR
        far = far * (1.0 - at_y)  # a label that is the rejected class itself stays in its place
        return logits * (1.0 - at_y) + ops.expand_dims(both, -1) * at_y - far


def answered(logits):
    """Booleans of shape (n,): the outputs, of shape (n, ...), are an answer, that is, finite."""
    return ops.all(ops.isfinite(logits), axis=tuple(range(1, len(logits.shape))))


def mean_of_probabilities(logits):
    """Logarithms of mean probabilities, of shape (n, ..., classes), from logits of shape (n, several, ..., classes)."""
    return ops.logsumexp(ops.log_softmax(logits, axis=-1), axis=1) - math.log(logits.shape[1])


def _label(logits):
    """Decisions of shape (n,)."""
    return ops.cast(ops.argmax(logits, axis=-1), "int32")
