"""Bagging and voting of Keras classifiers, and the attacker who sees all of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops
from sklearn.utils import check_random_state

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.defenses.base import NOBODY, OfMembers, check_members
from kerasdef.goals import CLIMBS, Evade, Goal, Misclassify, answered, mean_of_probabilities
from kerasdef.models.guard import argmax

_SEEDS = np.iinfo(np.int32).max  # scikit-learn draws the seeds of the members below this


@checked
def bootstrap_indices(n: int, bootstraps: int, seed: int) -> list[np.ndarray]:
    """Draw bootstrap samples with replacement, each of size n.

    The same draws as `sklearn.ensemble.BaggingClassifier(n_estimators=bootstraps, random_state=seed)` makes.

    Args:
        n: Size of the data.
        bootstraps: Number of samples.
        seed: Seed of the draws.

    Returns:
        `bootstraps` integer arrays of shape (n,).
    """
    checks.positive_int("n", n)
    checks.positive_int("bootstraps", bootstraps)
    checks.non_negative_int("seed", seed)
    seeds = check_random_state(seed % 2**32).randint(_SEEDS, size=bootstraps)
    return [check_random_state(int(s)).randint(0, n, n) for s in seeds]


def decide(logits):
    """Count hard votes, ties broken by the mean probability.

    Args:
        logits: Logits of the members, of shape (n, members, classes).

    Returns:
        `(label, votes, probabilities)` of shapes (n,), (n, classes) and (n, classes).
    """
    probabilities = ops.mean(ops.softmax(logits, axis=-1), axis=1)
    ballots = ops.one_hot(argmax(logits), logits.shape[-1], dtype="float32")
    votes = ops.sum(ballots, axis=1)
    label = argmax(
        ops.cast(votes, probabilities.dtype) + 0.5 * probabilities
    )  # less than one vote: decides between equals only
    return label, votes, probabilities


@keras.saving.register_keras_serializable(package="kerasdef")
class Vote(keras.layers.Layer):
    """Hard vote of several classifiers.

    Args:
        reject: Index of the class that stands for "adversarial", or None.

    Call arguments:
        logits: A list of tensors of shape (n, classes), one from each member.

    Returns:
        A dict: `label` (n,) int32; `is_adversarial` (n,) bool; `votes` (n, classes) int32; `probabilities`
        (n, classes) float32, the mean over the members.
    """

    @checked
    def __init__(self, reject: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.reject = None if reject is None else checks.non_negative_int("reject", reject)

    def call(self, logits):
        """Count the votes."""
        label, votes, probabilities = decide(ops.stack(logits, axis=1))
        label = ops.cast(label, "int32")
        return {
            "label": label,
            "is_adversarial": ops.equal(label, NOBODY if self.reject is None else self.reject),
            "votes": ops.cast(votes, "int32"),
            "probabilities": probabilities,
        }

    def compute_output_spec(self, logits):
        """Shapes and types of the outputs."""
        n, k = logits[0].shape
        return {
            "label": keras.KerasTensor((n,), dtype="int32"),
            "is_adversarial": keras.KerasTensor((n,), dtype="bool"),
            "votes": keras.KerasTensor((n, k), dtype="int32"),
            "probabilities": keras.KerasTensor((n, k), dtype="float32"),
        }

    def get_config(self):
        """Settings of the layer."""
        return {**super().get_config(), "reject": self.reject}


@keras.saving.register_keras_serializable(package="kerasdef")
class Voting(OfMembers):
    """Several classifiers that vote: the label with the most votes, ties decided by the mean probability.

    Called on a tensor it gives the outputs of `Vote`.

    Args:
        members: Built classifiers with the same input and output shapes; what stands behind their logits, such as a
            softmax, is left off.
        reject: Index of the class that stands for "adversarial", or None.
        bounds: `(low, high)`: range of the values that the members take. None takes what they say, else (0, 1).
        name: Name of the model.

    Raises:
        ValueError: No members, or members whose shapes or ranges differ.
    """

    @checked
    def __init__(
        self,
        members: Sequence[keras.Model],
        *,
        reject: int | None = None,
        bounds: tuple[float, float] | None = None,
        name: str = "vote",
    ):
        members = check_members(members)
        outputs = max(2, members[0].output_shape[-1])  # one sigmoid output stands for two classes
        if reject is not None and reject >= outputs:
            raise ValueError(f"`reject` must be below the number of outputs, {outputs}. Received: reject={reject}")
        classes = outputs if reject is None else outputs - 1
        facts = {"classes": classes, "reject": reject, "bounds": bounds}
        super().__init__(members, Vote(reject, name="decision"), stacked=True, name=name, **facts)

    def surface(self) -> tuple[keras.Model, Goal]:
        """The logits of all members, of shape (n, members, outputs), and the goal against their vote."""
        return self._attacked.models[0], EvadeVote(self.reject)

    def get_config(self):
        """Settings of the defense, its members among them."""
        return {**super().get_config(), "reject": self.reject}


@checked
def voting_model(members: Sequence[keras.Model], *, reject: int | None = None, name: str = "vote") -> Voting:
    """Join classifiers into one model from images to a decision; see `Voting`."""
    return Voting(members, reject=reject, name=name)


@dataclass(frozen=True)
class EvadeVote(Goal):
    """Goal against a vote: its decision is neither y nor the class of rejected inputs.

    The attacker sees every member, climbs the mean of the members' losses plus the loss of the averaged
    probabilities, in both of which y and the rejecting class count as one, and has won when the hard vote says so.
    Attack the model of `Voting.surface()` with it, whose outputs have the shape (n, members, classes).

    Args:
        reject: Index of the class that stands for "adversarial", or None where there is none.
        climbs: "both", or one of the two alone: "mean" (the averaged probabilities) or "members".
    """

    reject: int | None = None
    climbs: str = "both"

    def __post_init__(self):
        check_fields(self)
        checks.one_of("climbs", self.climbs, CLIMBS)
        self.check(checks.MOST_CLASSES)

    def check(self, classes):
        """The class of rejected inputs must be one of the model's."""
        self._single.check(classes)

    @property
    def unwanted(self) -> int:
        """Number of classes that are no gain for the attacker."""
        return 1 if self.reject is None else 2

    @property
    def _single(self) -> Goal:
        return Misclassify() if self.reject is None else Evade(self.reject)

    def value(self, loss, logits, y):
        """Value of shape (n,) that the attacker raises."""
        count = logits.shape[1]
        mean = 0.0 if self.climbs == "members" else self._single.value(loss, mean_of_probabilities(logits), y)
        if self.climbs == "mean":
            return mean
        return sum(self._single.value(loss, logits[:, i], y) for i in range(count)) / count + mean

    @property
    def variants(self) -> dict[str, Goal]:
        """The averaged probabilities alone, and the members alone."""
        return {name: dataclasses.replace(self, climbs=name) for name in CLIMBS if name != self.climbs}

    def joint(self, logits):
        """The logarithms of the averaged probabilities."""
        return mean_of_probabilities(logits)

    def apart(self, logits, y):
        """The gap and the alarm of the averaged probabilities."""
        return self._single.apart(mean_of_probabilities(logits), y)

    def merged(self, logits, y):
        """Logits of shape (n, classes) of the averaged probabilities, as the attacker sees them."""
        return self._single.merged(mean_of_probabilities(logits), y)

    def reached(self, logits, y):
        """The hard vote is for another class than y and the rejecting one."""
        label = ops.cast(decide(logits)[0], "int32")
        other = ops.logical_and(answered(logits), label != ops.cast(y, "int32"))
        return other if self.reject is None else ops.logical_and(other, label != self.reject)
