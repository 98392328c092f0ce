"""Poisoning by back-gradients: training samples that make the model they train fail on chosen targets.

References: Sanapala and Gondi, 2025 (short name "mia"), section 3.1: equations 3 to 5; Muñoz-González et al., 2017,
https://arxiv.org/abs/1708.08689 (section 3.2: gradients through a few steps of the training).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, losses, models
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import signs
from kerasdef.norms import L2
from kerasdef.runs import progress


@dataclass(frozen=True, eq=False)
class PoisonResult:
    """Poison samples, to be added to the training set.

    Args:
        x: Inputs of shape (p, ...).
        y: Labels of shape (p,): those of the training samples they began as.
        index: Which training samples these were, shape (p,).
        history: Loss of the targets after the unrolled training, before each round and after the last.
    """

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    history: tuple[float, ...]

    def __post_init__(self):
        check_fields(self)

    def added(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """A training set with the poison at its end."""
        return np.concatenate([x, self.x]), np.concatenate([y, self.y])


@dataclass(frozen=True)
class GMAPoisoning:
    """Gradient-based miniature attack (poisoning): moves added training samples so that the targets' loss rises.

    Each round trains the model a few steps of gradient descent on the training set and the poison, from the weights
    it has now, and follows the gradient of the targets' loss back through these steps to the poison inputs. Labels
    are kept. The paper's step, eta times the gradient, has no scale of its own (the gradient fades with the number of
    training samples): here the gradient of every sample is divided by its largest value first.

    Args:
        share: Poison samples as a share of the training set, above 0. They begin as copies of training samples.
        steps: Unrolled training steps. More look further ahead and are stronger, at a cost that grows with them.
        learning_rate: Learning rate of these steps. Where it is too high for the model, the history jumps up and down.
        eta: Crafting rate: largest change of any input value in a round, in input units.
        rounds: Number of rounds; each changes every poison sample once.
        batch_size: Training samples in each unrolled step, drawn anew in every round; the poison is always whole.
        bounds: Valid range of an input value, `(low, high)`; the data must lie in it, and the poison stays in it.

    Example:
    >>> poison = GMAPoisoning(share=0.1)(model, x_train, y_train, x_target, y_target)
    >>> model.fit(*poison.added(x_train, y_train))

    References: Sanapala and Gondi, 2025 (equations 3 to 5). The paper gives none of these numbers.
    """

    share: float = 0.1
    steps: int = 5
    learning_rate: float = 0.5
    eta: float = 0.1
    rounds: int = 20
    batch_size: int = 256
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self):
        check_fields(self)
        checks.real("share", self.share, low=0.0, open_low=True)
        checks.positive_int("steps", self.steps)
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)
        checks.real("eta", self.eta, low=0.0, open_low=True)
        checks.positive_int("rounds", self.rounds)
        checks.positive_int("batch_size", self.batch_size)
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))

    @checked
    def __call__(
        self,
        model: keras.Model,
        x_train: np.ndarray,
        y_train: np.ndarray,
        x_target: np.ndarray,
        y_target: np.ndarray,
        *,
        seed: int = 0,
        progress: bool | None = None,
    ) -> PoisonResult:
        """Craft poison samples; the model is read only.

        Args:
            model: A built Keras classifier, trained or not; layers with randomness and batch normalization are taken
                in inference mode.
            x_train: Training inputs of shape (n, ...).
            y_train: Their labels, of shape (n,).
            x_target: Inputs to be misclassified, of shape (m, ...).
            y_target: Their true labels, of shape (m,).
            seed: All randomness comes from it.
            progress: Show a bar; None shows it on a terminal and in notebooks.

        Raises:
            ValueError: The arrays do not fit the model, or each other.
        """
        view = models.logits_view(model)
        x_train, y_train = _checked("train", x_train, y_train, view, self.bounds)
        x_target, y_target = _checked("target", x_target, y_target, view, self.bounds)
        rng = np.random.default_rng(checks.non_negative_int("seed", seed))
        n = len(x_train)
        count = max(1, round(self.share * n))
        index = np.concatenate([rng.permutation(n) for _ in range(-(-count // n))])[:count]
        x, y = x_train[index], y_train[index]
        climb = backend.compiled(lambda *arrays: self._climb(view, *arrays), view)
        return self._craft(climb, x, y, index, (x_train, y_train), (x_target, y_target), rng, progress)

    def _craft(self, climb, x, y, index, train, target, rng, show) -> PoisonResult:
        n = len(train[0])
        size = (self.steps, min(self.batch_size, n))
        history, best = [], x
        with progress.bar(type(self).__name__, self.rounds, show=show) as tick:
            for i in range(self.rounds + 1):
                rows = np.stack([rng.permutation(n)[: size[1]] for _ in range(self.steps)])
                part = np.float32(len(x) / (n + len(x)))  # share of the poison in the training loss
                value, grad = climb(x, y, train[0][rows], train[1][rows], *target, part)
                if not i and not np.any(ops.convert_to_numpy(grad)):
                    signs.warn(
                        "The gradient of the targets' loss by the poison is exactly zero: the poison stays as it is. "
                        "The model may cut its gradients off, or be so sure of its answers that they vanish."
                    )
                history.append(float(value))
                if history[-1] >= max(history):
                    best = x
                if i < self.rounds:
                    x = self._moved(x, ops.convert_to_numpy(grad))
                    tick(1)
        return PoisonResult(best, y.astype("int64"), index, tuple(history))

    def _moved(self, x, grad):
        top = np.abs(grad).reshape(len(x), -1).max(axis=1).reshape((-1,) + (1,) * (x.ndim - 1))
        step = self.eta * grad / np.maximum(top, np.finfo("float32").tiny)
        return np.clip(x + step, *self.bounds).astype("float32")

    def _climb(self, view, x, y, x_batches, y_batches, x_target, y_target, part):
        """Loss of the targets after the unrolled steps, and its gradient by the poison inputs."""
        start = [ops.convert_to_tensor(v.value) for v in view.trainable_variables]

        def loss(weights, inputs, labels):
            with keras.StatelessScope(state_mapping=list(zip(view.trainable_variables, weights, strict=True))):
                logits = view(inputs, training=False)
            return ops.mean(losses.cross_entropy(ops.cast(logits, "float32"), labels))

        def after_training(poison):
            weights = start
            for k in range(self.steps):

                def trained(w, k=k):
                    return part * loss(w, poison[0], y) + (1.0 - part) * loss(w, x_batches[k], y_batches[k])

                _, grads = backend.value_and_grad(trained)(weights)
                weights = [w - self.learning_rate * g for w, g in zip(weights, grads, strict=True)]
            return loss(weights, x_target, y_target)

        value, (grad,) = backend.value_and_grad(after_training)([ops.convert_to_tensor(x)])
        return value, grad


@checked
def random_points(poison: PoisonResult, x_train: np.ndarray, *, bounds=(0.0, 1.0), seed: int = 0) -> PoisonResult:
    """Return the control of a poisoning: as many samples, moved as far (in L2) from the same places at random.

    Args:
        poison: What was crafted.
        x_train: The training inputs it began as.
        bounds: Valid range of an input value. A sample whose random direction meets the bounds before it has gone as
            far as its model stays there.
        seed: All randomness comes from it.
    """
    start = checks.images("x_train", x_train, limits=checks.bounds(bounds))[poison.index]
    direction = np.random.default_rng(seed).normal(size=start.shape)
    wide = (-1,) + (1,) * (start.ndim - 1)
    size = _size(poison.x - start)
    low, high = np.zeros(len(start)), np.full(len(start), 1e3 * (bounds[1] - bounds[0]))
    for _ in range(60):  # bisection: clipped points move on as the factor grows
        middle = (low + high) / 2
        short = _size(np.clip(start + direction * middle.reshape(wide), *bounds) - start) < size
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    x = np.clip(start + direction * low.reshape(wide), *bounds).astype("float32")
    return PoisonResult(x, poison.y, poison.index, ())


@dataclass(frozen=True)
class PoisoningEffect:
    """What poison does to a model that is trained on it.

    Args:
        clean: Accuracy on the targets of the model trained on the clean set.
        random: The same, trained with random points added.
        crafted: The same, trained with the crafted points added.
        points: Poison points.
        distance: Mean L2 distance of the crafted points from the samples they began as.
    """

    clean: float
    random: float
    crafted: float
    points: int
    distance: float

    def __post_init__(self):
        check_fields(self)


@checked
def poisoning_effect(
    train: Callable[[np.ndarray, np.ndarray], keras.Model],
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_target: np.ndarray,
    y_target: np.ndarray,
    *,
    attack: GMAPoisoning | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> PoisoningEffect:
    """Train three times, on the clean set, with random points and with crafted ones, and measure on the targets.

    Args:
        train: A function from arrays (x, y) to a model trained on them; the same arrays must give the same model.
        x_train: Training inputs of shape (n, ...).
        y_train: Their labels, of shape (n,).
        x_target: Inputs to be misclassified, of shape (m, ...).
        y_target: Their true labels, of shape (m,).
        attack: A `GMAPoisoning`, which crafts on the model that was trained on the clean set. None takes the default.
        seed: All randomness but that of `train` comes from it.
        progress: Show a bar; None shows it on a terminal and in notebooks.

    Example:
    >>> poisoning_effect(train, x, y, x_target, y_target, attack=GMAPoisoning(share=0.2))
    """
    attack = GMAPoisoning() if attack is None else attack
    clean = train(x_train, y_train)
    x_train, y_train = _checked("train", x_train, y_train, models.logits_view(clean), attack.bounds)
    x_target, y_target = _checked("target", x_target, y_target, models.logits_view(clean), attack.bounds)
    crafted = attack(clean, x_train, y_train, x_target, y_target, seed=seed, progress=progress)
    control = random_points(crafted, x_train, bounds=attack.bounds, seed=seed)

    def accuracy(model):
        return float(np.mean(models.predict_logits(model, x_target).argmax(axis=1) == y_target))

    return PoisoningEffect(
        accuracy(clean),
        accuracy(train(*control.added(x_train, y_train))),
        accuracy(train(*crafted.added(x_train, y_train))),
        len(crafted.x),
        float(_size(crafted.x - x_train[crafted.index]).mean()),
    )


def _size(delta: np.ndarray) -> np.ndarray:
    return ops.convert_to_numpy(L2().size(ops.convert_to_tensor(delta.astype("float32"))))


def _checked(name, x, y, view, bounds):
    x = checks.images(f"x_{name}", x, limits=bounds, shape=view.input_shape[1:])
    y = checks.labels(f"y_{name}", y, n=len(x), classes=view.output_shape[-1])
    return x, y.astype("int32")
