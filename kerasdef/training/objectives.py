"""What adversarial training minimizes: objectives over the clean and the adversarial images of a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from keras import ops

from kerasdef import checks
from kerasdef.annotations import check_fields
from kerasdef.losses import pick


@dataclass(frozen=True, eq=False)
class Batch:
    """What an objective sees of a batch.

    Args:
        y: Class indices of shape (n,).
        clean: Logits of the clean images, of shape (n, classes); None unless the objective needs them.
        adversarial: Logits of the adversarial images.
        task: Maps "clean" or "adversarial", and labels or None for those of the batch, to the compiled loss: a scalar,
            weighted as `fit` was told, regularization included.
        mean: Weighted mean of values of shape (n,), divided by the number of replicas, as the compiled loss is.
        penalty: Regularization losses of the model: a scalar, divided in the same way.
    """

    y: object
    clean: object
    adversarial: object
    task: Callable
    mean: Callable
    penalty: object


def kl_divergence(logits, others):
    """KL divergence from softmax(others) to softmax(logits), of shape (n,): the sum of p log(p / q), p of `others`."""
    log_q, log_p = ops.log_softmax(logits, axis=-1), ops.log_softmax(others, axis=-1)
    return ops.sum(ops.exp(log_p) * (log_p - log_q), axis=-1)


@dataclass(frozen=True)
class Objective(ABC):
    """A rule from a batch to the scalar that training minimizes.

    Attributes:
        needs_clean: Whether the clean images go through the model in training mode. Otherwise they only feed the
            metrics, in inference mode, and do not move BatchNorm.
        climbs: What the attack maximizes. "label" is its own loss at the true label. "clean" is the KL divergence from
            the model's outputs on the clean images; the attack then gets these logits in the place of the labels.
    """

    needs_clean: ClassVar[bool] = True
    climbs: ClassVar[str] = "label"

    @abstractmethod
    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""

    def right(self, logits, y):
        """Booleans of shape (n,): the adversarial images whose label is the one that is trained for."""
        return ops.cast(ops.argmax(logits, axis=-1), "int32") == y


@dataclass(frozen=True)
class Madry(Objective):
    """The loss of the adversarial images alone.

    References: Madry et al., 2018, https://arxiv.org/abs/1706.06083 (equation 2.1).
    """

    needs_clean: ClassVar[bool] = False

    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""
        return batch.task("adversarial")


@dataclass(frozen=True)
class Mixed(Objective):
    """A weighted sum of the losses of the clean and the adversarial images.

    Args:
        weight: Weight of the loss of the clean images, in [0, 1]; the rest is that of the adversarial ones.

    References: Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572 (section 6, with weight 0.5).
    """

    weight: float = 0.5

    def __post_init__(self):
        check_fields(self)
        checks.real("weight", self.weight, low=0.0, high=1.0)

    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""
        return self.weight * batch.task("clean") + (1.0 - self.weight) * batch.task("adversarial")


@dataclass(frozen=True)
class Trades(Objective):
    """The loss of the clean images, and beta times the divergence of the outputs on the adversarial ones from theirs.

    Args:
        beta: Weight of the divergence, at least 0 (paper: 6; 1 / lambda there).

    References: Zhang et al., 2019, https://arxiv.org/abs/1901.08573 (equation 5, Algorithm 1).
    """

    climbs: ClassVar[str] = "clean"
    beta: float = 6.0

    def __post_init__(self):
        check_fields(self)
        checks.real("beta", self.beta, low=0.0)

    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""
        return batch.task("clean") + self.beta * batch.mean(kl_divergence(batch.adversarial, batch.clean))


@dataclass(frozen=True)
class Mart(Objective):
    """Boosted cross-entropy of the adversarial images, and a divergence that counts where the model is unsure.

    Args:
        weight: Weight of the divergence, at least 0 (paper: lambda = 5).

    References: Wang et al., 2020, https://openreview.net/forum?id=rklOg6EFwS (equation 11).
    """

    weight: float = 5.0

    def __post_init__(self):
        check_fields(self)
        checks.real("weight", self.weight, low=0.0)

    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""
        log_p = ops.log_softmax(batch.adversarial, axis=-1)
        hidden = ops.one_hot(batch.y, log_p.shape[-1], dtype=log_p.dtype) * -1e9
        other = ops.exp(ops.max(log_p + hidden, axis=-1))  # probability of the likeliest wrong class
        boosted = -pick(log_p, batch.y) - ops.log(ops.maximum(1.0 - other, 1e-7))
        unsure = 1.0 - ops.exp(pick(ops.log_softmax(batch.clean, axis=-1), batch.y))
        divergence = kl_divergence(batch.adversarial, batch.clean)
        return batch.mean(boosted + self.weight * divergence * unsure) + batch.penalty


@dataclass(frozen=True)
class Pairing(Objective):
    """Adversarial logit pairing: half the losses of clean and of adversarial images, and the logits' squared distance.

    Its published robustness did not hold against more steps; it is here to be compared with.

    Args:
        weight: Weight of the mean squared distance, at least 0 (paper: 0.5).

    References: Kannan et al., 2018, https://arxiv.org/abs/1803.06373 (equation 2); Engstrom et al., 2018,
    https://arxiv.org/abs/1807.10272.
    """

    weight: float = 0.5

    def __post_init__(self):
        check_fields(self)
        checks.real("weight", self.weight, low=0.0)

    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""
        gap = ops.mean(ops.square(batch.adversarial - batch.clean), axis=-1)
        return 0.5 * (batch.task("clean") + batch.task("adversarial")) + self.weight * batch.mean(gap)


@dataclass(frozen=True)
class Reject(Objective):
    """Clean images keep their class, adversarial ones get the class of rejected inputs.

    Args:
        label: Index of that class.
        weight: Weight of the loss of the clean images, in [0, 1]; the rest is that of the adversarial ones.
    """

    label: int
    weight: float = 0.5

    def __post_init__(self):
        check_fields(self)
        checks.non_negative_int("label", self.label)
        checks.real("weight", self.weight, low=0.0, high=1.0)

    def __call__(self, batch: Batch):
        """Return the loss of a batch: a scalar."""
        outputs = batch.adversarial.shape[-1]
        if self.label >= outputs:
            raise ValueError(f"`label` must be an output of the model, below {outputs}. Received: label={self.label}")
        rejected = batch.task("adversarial", ops.full_like(batch.y, self.label))
        return self.weight * batch.task("clean") + (1.0 - self.weight) * rejected

    def right(self, logits, y):
        """Booleans of shape (n,): the adversarial images that are rejected or keep their class."""
        label = ops.cast(ops.argmax(logits, axis=-1), "int32")
        return ops.logical_or(label == y, label == self.label)
