"""Training for randomized smoothing: on noisy images, and on images that fool the classifier under noise."""

from __future__ import annotations

import math

import keras
from keras import ops

from kerasdef import backend, checks, models
from kerasdef import random as draws
from kerasdef.annotations import checked
from kerasdef.attacks import StepAttack
from kerasdef.models import WhiteBox
from kerasdef.training.schedules import Radius
from kerasdef.training.trainer import Trainer, all_steps, check_attack, check_classifier

_REPLICA = 0x3C6EF35F  # any odd number: seeds are hashed
_STARTS = 1  # counter of the seeds of the attack's random starts; those of the noise are counted from 2


class _UnderNoise(WhiteBox):
    """A classifier as the attack of SmoothAdv sees it: the logarithm of its mean probabilities on noisy copies.

    Args:
        victim: The classifier.
        noise: Tensor of shape (n, copies, ...): the same noise for every step of the attack, as in the paper.
    """

    @classmethod
    def takes(cls, model) -> bool:
        """It is made here and nowhere else."""
        return False

    def __init__(self, victim: WhiteBox, noise):
        self.__dict__.update(victim.__dict__)
        self.noise = noise

    def facing(self, bounds) -> _UnderNoise:
        """It is made for data in the bounds of the attack, which are those of the model."""
        return self

    def logits(self, x, draw=None):
        """Logarithms of the mean probabilities, of shape (n, classes)."""
        copies = self.noise.shape[1]
        if draw is not None:  # a random model answers each copy with numbers of its own
            draw = draws.fold(ops.repeat(draw, copies), ops.tile(ops.arange(copies), ops.shape(draw)))
        many = super().logits(_noisy(x, self.noise), draw)
        many = ops.reshape(ops.log_softmax(many, axis=-1), (-1, copies, self.classes))
        return ops.logsumexp(many, axis=1) - math.log(copies)


def _noisy(x, noise):
    """Images of shape (n * copies, ...): each with its own noise, of shape (n, copies, ...)."""
    return ops.reshape(ops.expand_dims(x, 1) + noise, (-1, *noise.shape[2:]))


@keras.saving.register_keras_serializable(package="kerasdef")
class NoiseTraining(Trainer):
    """A classifier that is trained on images under Gaussian noise, so that it can be smoothed with that noise.

    Without an attack this is the data augmentation of Cohen et al. With one it is SmoothAdv of Salman et al.: the
    attack raises the cross-entropy of the mean of the probabilities over the noisy copies, and the classifier is
    trained on the same copies, with the same noise, moved to where the attack ends. The noise is not clipped, as in
    `kerasdef.defenses.Smoothed`. The classifier itself is trained in place: predict with, smooth and export `model`.

    In `fit`, `loss` is that of the noisy copies, and `noisy_accuracy` is the share of them that is labeled right. The
    metrics of `compile`, such as `accuracy`, and all names with `val_` are those of the clean images.

    Args:
        model: A built classifier with one output of shape (n, classes): logits, or probabilities by a last softmax.
        sigma: The standard deviation of the noise in input units, above 0.
        attack: A `StepAttack` such as `PGD(eps=0.5, norm="l2", steps=2)`. None: the images are not moved.
        copies: Noisy copies of each image, at least 1 (Salman et al.: 1 to 8).
        radius: A `Radius` that takes the place of the attack's eps while training goes on. None keeps the attack's.
        seed: The seed of the noise and of the attack's random starts.

    Raises:
        ValueError: sigma is not above 0, the model is no classifier of images of a fixed size, the attack looks for
            the smallest change or has other bounds than the model, or there is a radius without an attack.

    Example:
    >>> trainer = NoiseTraining(model, 0.25, attack=PGD(eps=0.5, norm="l2", steps=2), copies=2)
    >>> trainer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> trainer.fit(x, y, batch_size=128, epochs=10)
    >>> Smoothed(model, 0.25).certify(x_test)

    References: Cohen et al., 2019, https://arxiv.org/abs/1902.02918 (section 3.3); Salman et al., 2019,
    https://arxiv.org/abs/1906.04584 (equation 6, Pseudocode 1).
    """

    @checked
    def __init__(
        self,
        model: keras.Model,
        sigma: float,
        *,
        attack: StepAttack | None = None,
        copies: int = 1,
        radius: Radius | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_classifier(model)
        self.model = model
        self.sigma = checks.real("sigma", sigma, low=0.0, open_low=True)
        self.copies = checks.positive_int("copies", copies)
        self.seed = checks.non_negative_int("seed", seed)
        self.shape = tuple(model.input_shape[1:])
        if None in self.shape:
            raise ValueError(f"`model` must take images of a fixed size. Received: input_shape={model.input_shape}")
        if attack is not None:
            check_attack(attack, model)
        if radius is not None and (attack is None or "eps" not in attack.parameters):
            raise ValueError(f"`radius` is for attacks that have an `eps`. Received: attack={attack!r}")
        self.attack, self.radius = attack, radius
        self._climbing = None if attack is None else all_steps(attack)
        twin = models.float_input(model)
        self._inner = models.Untracked((twin, models.logits_view(twin)))
        self.to_logits = models.logits_of(model)
        models.Victim.of(self._inner.models[1])  # finds out whether it is random here, where variables have values
        self.batches = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="batches")
        self.draws = keras.random.SeedGenerator(self.seed % 2**32)
        self.noisy_accuracy = keras.metrics.Mean("noisy_accuracy")
        self._trains = False
        self.built = True

    @property
    def gradients_per_image(self) -> float:
        """Gradients that one training image costs: those of the attack and of the step, each for every copy."""
        steps = 0 if self.attack is None else self.attack.steps_in_all * self.attack.samples
        return float(self.copies * (steps + 1))

    def call(self, x, training=None):
        """Outputs of the classifier on the clean images, in inference mode: training uses those on noisy ones."""
        return self.model(x, training=False)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The compiled loss of the noisy copies in training; that of the clean images in evaluation."""
        self._trains = bool(training)
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        labels = y if len(y.shape) == 1 else ops.argmax(y, axis=-1) if y.shape[-1] > 1 else y[:, 0]
        labels = ops.cast(labels, "int32")
        copies = self.noisy_copies(x, labels)
        self.batches.assign_add(1)
        outputs = self._inner.models[0](copies, training=True)
        said = ops.cast(ops.argmax(self.to_logits(outputs), axis=-1), "int32")
        self.noisy_accuracy.update_state(ops.cast(said == ops.repeat(labels, self.copies, axis=0), "float32"))
        weights = None if sample_weight is None else ops.repeat(sample_weight, self.copies, axis=0)
        return super().compute_loss(None, ops.repeat(y, self.copies, axis=0), outputs, weights, training)

    def get_metrics_result(self):
        """Return the metrics; in evaluation there is no noise, and no number of it."""
        found = super().get_metrics_result()
        if not self._trains:
            found.pop(self.noisy_accuracy.name, None)
        return found

    def noisy_copies(self, x, y):
        """The images that a batch is trained on.

        Args:
            x: Images of shape (n, ...).
            y: Class indices of shape (n,).

        Returns:
            Tensor of shape (n * copies, ...): the copies of an image, moved by the attack if there is one, stand next
            to each other. No gradient flows through it.
        """
        x, n = ops.cast(x, "float32"), ops.shape(x)[0]
        seeds = keras.random.randint((n,), 0, 2**31 - 1, dtype="int32", seed=self.draws)
        seeds = ops.cast(seeds + _REPLICA * backend.replica(), "uint32")  # replicas share the generator
        own = [draws.fold(seeds, _STARTS + 1 + i) for i in range(self.copies)]
        noise = self.sigma * ops.stack([draws.normal(s, self.shape) for s in own], axis=1)
        if self.attack is not None:
            numbers = None
            if self.radius is not None:
                numbers = {"eps": ops.broadcast_to(self.radius.at(self.batches), ops.shape(y)[:1])}
            view = self._inner.models[1]
            with backend.constant(view):
                victim = _UnderNoise(models.Victim.of(view).facing(self.attack.bounds), noise)
                x = self._climbing.perturb(victim, x, y, draws.fold(seeds, _STARTS), numbers)
        return ops.stop_gradient(_noisy(x, noise))

    def settings(self) -> dict:
        """Arguments that make this trainer again, by name."""
        return {name: getattr(self, name) for name in ("model", "sigma", "attack", "copies", "radius", "seed")}

    def beside(self) -> list:
        """What is saved beside the weights: the generator of the noise."""
        return [self.draws.state]
