"""Adversarial training as a Keras model: `compile()` and `fit()`, and everything that works with them."""

from __future__ import annotations

import dataclasses

import keras
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.attacks import StepAttack
from kerasdef.training.objectives import Batch, Madry, Objective, kl_divergence


class AdversarialTraining(keras.Model):
    """A classifier that is trained on adversarial images made while it trains.

    It overrides `compute_loss` and nothing else of the training loop, so callbacks, `sample_weight`, `tf.data`, mixed
    precision and `tf.distribute` work as for any Keras model. The classifier itself is trained in place: save, predict
    with and export `model`.

    The attack sees the classifier in inference mode (BatchNorm and Dropout included) and in input space: preprocessing
    layers inside the model are part of what is attacked.

    Args:
        model: A built classifier with one output of shape (n, classes): logits, or probabilities by a last softmax.
        attack: A `StepAttack` such as `PGD`; all its steps are taken for every image, and the last point is used.
        objective: An `Objective`; `Madry()` by default.
        source: Other classifiers of the same inputs, on which the attack is made instead; one is drawn for every batch
            (ensemble adversarial training). None: the model itself.
        seed: Of the attack's random starts.

    Raises:
        ValueError: The model is not built, has another output, or the attack has no steps.

    Example:
    >>> trainer = AdversarialTraining(model, PGD(eps=0.3, steps=7), Trades(beta=6.0))
    >>> trainer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> trainer.fit(x, y, batch_size=128, epochs=10)
    """

    def __init__(
        self,
        model: keras.Model,
        attack: StepAttack,
        objective: Objective | None = None,
        *,
        source: tuple[keras.Model, ...] | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not isinstance(attack, StepAttack):
            raise ValueError(f"`attack` must be an attack that takes steps, such as PGD. Received: attack={attack!r}")
        self.objective = Madry() if objective is None else objective
        if not isinstance(self.objective, Objective):
            raise ValueError(f"`objective` must be an Objective. Received: objective={objective!r}")
        self.model = model
        self.view = models.logits_view(model)
        self.to_logits = models.logits_of(model)
        self.attack = _for_training(attack, self.objective)
        self.source = tuple(models.logits_view(m) for m in source) if source else None
        for other in self.source or ():
            if other.input_shape != model.input_shape:
                raise ValueError(
                    f"`source` must be models of the inputs {model.input_shape}. Received: {other.input_shape}"
                )
        self.draws = keras.random.SeedGenerator(checks.non_negative_int("seed", seed))
        self.built = True

    def compile(self, *args, jit_compile=None, **kwargs):
        """As `keras.Model.compile`; by default XLA is used on GPUs only, since it is slower on a CPU."""
        super().compile(*args, jit_compile=backend.jit() if jit_compile is None else jit_compile, **kwargs)

    def call(self, x, training=None):
        """Outputs of the classifier; in training mode only where the objective uses the clean images."""
        return self.model(x, training=bool(training) and self.objective.needs_clean)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The objective in training; the compiled loss of the clean images in evaluation."""
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        labels = self._labels(y)
        x_adv = self.perturb(x, labels)
        outputs = {"clean": y_pred, "adversarial": self.model(x_adv, training=True)}

        def task(name, other=None):
            target = y if other is None else self._like(y, other)
            return keras.Model.compute_loss(self, x, target, outputs[name], sample_weight, training)

        def mean(values):
            return ops.mean(values if sample_weight is None else values * ops.cast(sample_weight, values.dtype))

        return self.objective(
            Batch(
                y=labels,
                clean=self.to_logits(y_pred) if self.objective.needs_clean else None,
                adversarial=self.to_logits(outputs["adversarial"]),
                task=task,
                mean=mean,
                penalty=sum(self.losses) if self.losses else 0.0,
            )
        )

    def perturb(self, x, y):
        """Adversarial images for a batch, on the model as it is or on one of `source`.

        Args:
            x: Images of shape (n, ...).
            y: Class indices of shape (n,).

        Returns:
            x_adv of the shape of x, through which no gradient flows.
        """
        n = ops.shape(x)[0]
        seeds = keras.random.randint((n,), 0, 2**31 - 1, dtype="int32", seed=self.draws)
        if not self.source:
            return self._perturb(self.view, x, y, seeds)
        which = keras.random.randint((), 0, len(self.source), dtype="int32", seed=self.draws)
        branches = [lambda m=m: self._perturb(m, x, y, seeds) for m in self.source]
        return ops.switch(which, branches)

    def _perturb(self, view, x, y, seeds):
        with backend.constant(view):
            if self.objective.climbs == "clean":
                y = ops.stop_gradient(backend.evaluate(view, x, -1))
            return self.attack.perturb(view, ops.cast(x, "float32"), y, seeds)

    def _labels(self, y):
        """Class indices of shape (n,) from those, from a column of them, or from one-hot rows."""
        if len(y.shape) == 2:
            y = ops.argmax(y, axis=-1) if y.shape[-1] > 1 else y[:, 0]
        return ops.cast(y, "int32")

    def _like(self, y, labels):
        """Class indices in the form that `y` has."""
        if len(y.shape) == 2 and y.shape[-1] > 1:
            return ops.one_hot(labels, y.shape[-1], dtype=y.dtype)
        return ops.cast(ops.reshape(labels, ops.shape(y)), y.dtype)


def _for_training(attack: StepAttack, objective: Objective) -> StepAttack:
    """The attack with what only a call on arrays needs left out, and with the loss that the objective asks for."""
    known = {f.name for f in dataclasses.fields(attack)}
    changes = {name: False for name in ("best", "early_stop") if name in known}
    if objective.climbs == "clean":
        # at x itself the divergence has no gradient: start beside it
        changes |= {"loss": kl_divergence, "random_start": True}
    missing = set(changes) - known
    if missing:
        raise ValueError(
            f"`attack` must have the settings {', '.join(sorted(changes))} with {type(objective).__name__}, as PGD "
            f"has. Received: attack={attack!r}"
        )
    return dataclasses.replace(attack, **changes)
