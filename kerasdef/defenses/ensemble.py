"""The goal against a weighted ensemble, perhaps behind a detector."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from keras import ops

from kerasdef import checks
from kerasdef.annotations import check_fields
from kerasdef.goals import CLIMBS, Evade, Goal, Misclassify, answered


@dataclass(frozen=True)
class EvadeEnsemble(Goal):
    """Goal against a weighted ensemble, perhaps behind a detector: a wrong label that is not flagged.

    It reads the outputs of `HybridDefense.surface()`, of shape (n, members, K), which are the logarithms of the
    weighted probabilities. Where a detector rejects there is one column more, of shape (n, members, K + 1): how far the
    score is above the threshold. The logits of the ensemble are then those of the K classes and, for "rejected", the
    largest of these plus this excess (Carlini and Wagner, 2017), which wins exactly where the detector flags.

    Args:
        reject: Index of the class of rejected inputs, which is K, or None where nothing is rejected.
        climbs: What the attacker raises: the loss of the "mean" probabilities, the mean of the losses of the single
            "members", or the sum of "both".
    """

    reject: int | None = None
    climbs: str = "both"

    def __post_init__(self):
        check_fields(self)
        checks.one_of("climbs", self.climbs, CLIMBS)
        self.check(checks.MOST_CLASSES)

    def check(self, classes):
        """The class of rejected inputs must be the last of the model's."""
        self._single.check(classes)

    @property
    def unwanted(self) -> int:
        """Number of classes that are no gain for the attacker."""
        return 1 if self.reject is None else 2

    @property
    def _single(self) -> Goal:
        return Misclassify() if self.reject is None else Evade(self.reject)

    def joint(self, logits):
        """Logits of the ensemble, of shape (n, K) or, with a class for "rejected", (n, K + 1)."""
        if self.reject is None:
            return ops.logsumexp(logits, axis=1)
        return _with_flag(ops.logsumexp(logits[:, :, :-1], axis=1), logits[:, 0, -1])

    def averaged(self, logits):
        """Outputs that stand for several draws: the logarithms of the mean probabilities, and the mean excess."""
        log_p = logits if self.reject is None else logits[..., :-1]
        log_p = ops.logsumexp(log_p, axis=1) - math.log(logits.shape[1])
        if self.reject is None:
            return log_p
        return ops.concatenate([log_p, ops.mean(logits[..., -1:], axis=1)], axis=-1)

    @property
    def variants(self) -> dict[str, Goal]:
        """Those that climb another of the three."""
        return {name: replace(self, climbs=name) for name in CLIMBS if name != self.climbs}

    def apart(self, logits, y):
        """The margin of the ensemble among the real classes, and the detector's excess."""
        return self._single.apart(self.joint(logits), y)

    def value(self, loss, logits, y):
        """Value of shape (n,) that the attacker raises."""
        mean = self._single.value(loss, self.joint(logits), y)
        if self.climbs == "mean" or logits.shape[1] == 1:
            return mean
        found = [self._single.value(loss, self._member(logits, i), y) for i in range(logits.shape[1])]
        members = sum(found) / len(found)
        return members if self.climbs == "members" else members + mean

    def merged(self, logits, y):
        """Logits of the ensemble in which any class but y is what the attacker wants."""
        return self._single.merged(self.joint(logits), y)

    def reached(self, logits, y):
        """The label of the ensemble is wrong, and nothing is flagged."""
        return ops.logical_and(answered(logits), self._single.reached(self.joint(logits), y))

    def _member(self, logits, i):
        own = logits[:, i]
        return own if self.reject is None else _with_flag(own[:, :-1], own[:, -1])


def _with_flag(z, excess):
    """Logits with a column for "rejected", which is the largest exactly where the excess is above 0."""
    return ops.concatenate([z, ops.max(z, axis=-1, keepdims=True) + ops.expand_dims(excess, -1)], axis=-1)
