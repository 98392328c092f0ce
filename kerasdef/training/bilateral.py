"""Bilateral adversarial training: the image and the label of a sample are both moved against the model."""

from __future__ import annotations

from dataclasses import dataclass

from keras import ops

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.losses import FAR, best_other
from kerasdef.training.objectives import Batch, Objective


@checked
def most_confusing(logits, y):
    """Loss of shape (n,) of a targeted attack on the likeliest wrong class: its log-probability.

    `PGD(eps=8 / 255, steps=1, relative_step=1.0, loss=most_confusing)` is the attack of the paper: a random start and
    one step towards that class. It is the likeliest one at the point where the step begins; in the authors' code it is
    that of the clean image.

    References: Wang and Zhang, 2019, https://arxiv.org/abs/1811.10716 (section 4.2).
    """
    return best_other(logits, y) - ops.logsumexp(logits, axis=-1)


@checked
def adversarial_labels(logits, y, eps_y: float | None = 0.5, gamma: float = 0.01, ratio: float = 9.0):
    """Labels moved against the model: what the true class loses goes to the classes that the model finds unlikely.

    The loss grows fastest with the share of class k at the rate v_k = -log p_k. Every wrong class gets a part in
    proportion to v_k - v_MC + gamma, where v_MC is the smallest rate of a wrong class, the most confusing one.

    Args:
        logits: Logits of the clean images, of shape (n, classes).
        y: Class indices of shape (n,).
        eps_y: What the true class loses, in [0, 1]. None: for each sample as much as leaves it `ratio` times the
            largest other share (authors' code).
        gamma: Share of the most confusing class, above 0.
        ratio: Used where eps_y is None.

    Returns:
        Labels of shape (n, classes), rows of sum 1, through which no gradient flows.

    References: Wang and Zhang, 2019, https://arxiv.org/abs/1811.10716 (section 4.1).
    """
    true = ops.one_hot(ops.cast(y, "int32"), logits.shape[-1], dtype=logits.dtype)
    rate = -ops.log_softmax(logits, axis=-1)
    least = ops.min(rate + FAR * true, axis=-1, keepdims=True)
    parts = (rate - least + gamma) * (1.0 - true)
    others = parts / ops.sum(parts, axis=-1, keepdims=True)
    if eps_y is None:
        eps_y = 1.0 / (1.0 + ratio * ops.max(others, axis=-1, keepdims=True))
    return ops.stop_gradient((1.0 - eps_y) * true + eps_y * others)


@dataclass(frozen=True)
class Bilateral(Objective):
    """Cross-entropy of the adversarial images against adversarial labels; use it with the loss `most_confusing`.

    The labels come from the clean images in training mode, as the other objectives see them; the authors' code takes
    them in inference mode.

    Args:
        eps_y: What the true class loses, in [0, 1]. None: for each sample as much as leaves it `ratio` times the
            largest other share. With ten classes, 0.5 is the most that ratio 9 allows.
        gamma: Share of the most confusing class, above 0 (paper: 0.01).
        ratio: Used where eps_y is None, above 0 (paper: 9).

    Example:
    >>> attack = PGD(eps=8 / 255, steps=1, relative_step=1.0, loss=most_confusing)
    >>> trainer = AdversarialTraining(model, attack, Bilateral())

    References: Wang and Zhang, 2019, https://arxiv.org/abs/1811.10716 (section 4).
    """

    eps_y: float | None = 0.5
    gamma: float = 0.01
    ratio: float = 9.0

    def __post_init__(self):
        check_fields(self)
        if self.eps_y is not None:
            checks.real("eps_y", self.eps_y, low=0.0, high=1.0)
        checks.real("gamma", self.gamma, low=0.0, open_low=True)
        checks.real("ratio", self.ratio, low=0.0, open_low=True)

    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""
        labels = adversarial_labels(batch.clean, batch.y, self.eps_y, self.gamma, self.ratio)
        return batch.mean(-ops.sum(labels * ops.log_softmax(batch.adversarial, axis=-1), axis=-1)) + batch.penalty
