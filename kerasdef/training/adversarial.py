"""Adversarial training as a Keras model: `compile()` and `fit()`, and everything that works with them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import keras
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.attacks import Goal, StepAttack
from kerasdef.training.objectives import Batch, Madry, Objective, kl_divergence
from kerasdef.training.schedules import Radius

_REPLICA = 0x3C6EF35F  # any odd number: seeds are hashed
_TINY = 1e-12  # keeps a direction finite where all gradients are zero


@dataclass(frozen=True)
class _Climb(Goal):
    """A loss as high as it gets; in training nobody asks who has won, and y need not be labels."""

    def value(self, loss, logits, y):
        return loss(logits, y)

    def reached(self, logits, y):
        return ops.zeros(ops.shape(logits)[:1], dtype="bool")


class AdversarialTraining(keras.Model):
    """A classifier that is trained on adversarial images made while it trains.

    It overrides `compute_loss` and nothing else of the training loop, so callbacks, `sample_weight`, `tf.data`, mixed
    precision and `tf.distribute` work as for any Keras model. The classifier itself is trained in place: save, predict
    with and export `model`.

    The attack sees the classifier in inference mode (BatchNorm and Dropout included) and in input space: preprocessing
    layers inside the model are part of what is attacked.

    Args:
        model: A built classifier with one output of shape (n, classes): logits, or probabilities by a last softmax.
        attack: A `StepAttack` such as `PGD` or `APGD`; all its steps are taken for every image. Several: one drawn for
            every batch. It may be assigned anew between epochs.
        objective: An `Objective`; `Madry()` by default.
        radius: A `Radius` that takes the place of the attack's eps while training goes on. None: the attack's.
        awp: Size of adversarial weight perturbations relative to the weights, at least 0 (paper: 0.005 to 0.01): the
            loss is taken where weights are moved to make it worse. Costs one more pass forward and back.
        source: Other classifiers of the same inputs, on which the attack is made instead; one is drawn for every batch
            (ensemble adversarial training); `model` itself may be among them. None: the model itself.
        seed: Of the attack's random starts.

    Raises:
        ValueError: The model is not built, has another output, or the attack has no steps.

    References: Madry et al., 2018, https://arxiv.org/abs/1706.06083 (equation 2.1); for `source` Tramer et al., 2018,
    https://arxiv.org/abs/1705.07204; for `awp` Wu et al., 2020, https://arxiv.org/abs/2004.05884 (Algorithm 1).

    Example:
    >>> trainer = AdversarialTraining(model, PGD(eps=0.3, steps=7), Trades(beta=6.0))
    >>> trainer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> trainer.fit(x, y, batch_size=128, epochs=10)
    """

    def __init__(
        self,
        model: keras.Model,
        attack: StepAttack | Sequence[StepAttack],
        objective: Objective | None = None,
        *,
        radius: Radius | None = None,
        awp: float = 0.0,
        source: tuple[keras.Model, ...] | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.objective = Madry() if objective is None else objective
        if not isinstance(self.objective, Objective):
            raise ValueError(f"`objective` must be an Objective. Received: objective={objective!r}")
        self.model = model
        self.view = models.logits_view(model)
        self.to_logits = models.logits_of(model)
        self.attack = attack
        if radius is not None and not isinstance(radius, Radius):
            raise ValueError(f"`radius` must be a Radius or None. Received: radius={radius!r}")
        if radius is not None and not all("eps" in a.parameters for a in self._attacks):
            raise ValueError(f"`radius` is for attacks that have an `eps`. Received: attack={attack!r}")
        self.radius = radius
        self.awp = checks.real("awp", awp, low=0.0)
        self.source = models.Untracked(tuple(models.logits_view(m) for m in source or ()))
        for other in self.source.models:
            if other.input_shape != model.input_shape:
                raise ValueError(
                    f"`source` must be models of the inputs {model.input_shape}. Received: {other.input_shape}"
                )
            if other.output_shape[-1] != self.view.output_shape[-1]:
                raise ValueError(
                    f"`source` must be models of {self.view.output_shape[-1]} classes. "
                    f"Received: outputs of shape {other.output_shape}"
                )
        self.batches = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="batches")
        self.draws = keras.random.SeedGenerator(checks.non_negative_int("seed", seed))
        self.built = True

    @property
    def attack(self) -> StepAttack | tuple[StepAttack, ...]:
        """What makes the adversarial images; assigned, it holds from the next epoch on."""
        return self._attacks[0] if len(self._attacks) == 1 else self._attacks

    @attack.setter
    def attack(self, attack):
        attacks = (attack,) if isinstance(attack, StepAttack) else tuple(attack) if _is_several(attack) else ()
        if not attacks or not all(isinstance(a, StepAttack) for a in attacks):
            raise ValueError(f"`attack` must be an attack that takes steps, such as PGD. Received: attack={attack!r}")
        self._attacks = attacks
        self._climbing = tuple(_for_training(a, self.objective) for a in attacks)
        if getattr(self, "train_function", None) is not None:
            self.make_train_function(force=True)

    @property
    def gradients_per_image(self) -> float:
        """Gradients that one training image costs: those of the attack, and one for each pass of the training step."""
        steps = [a.steps_in_all * a.samples for a in self._climbing]
        passes = (2 if self.objective.needs_clean else 1) * (2 if self.awp else 1)
        return sum(steps) / len(steps) + passes

    def compile(self, *args, jit_compile=None, **kwargs):
        """As `keras.Model.compile`; by default XLA is used on GPUs only, since it is slower on a CPU."""
        super().compile(*args, jit_compile=backend.jit() if jit_compile is None else jit_compile, **kwargs)

    def call(self, x, training=None):
        """Outputs of the classifier; in training mode only where the objective uses these very outputs."""
        return self.model(x, training=bool(training) and self.objective.needs_clean and not self.awp)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The objective in training; the compiled loss of the clean images in evaluation."""
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        labels = self._labels(y)
        x_adv = self.perturb(x, labels)
        self.batches.assign_add(1)
        if not self.awp:
            return self._objective(x_adv, y, labels, y_pred, sample_weight)
        with self._moved(x, x_adv, y, labels, sample_weight):
            y_pred = self.model(x, training=self.objective.needs_clean)
            return self._objective(x_adv, y, labels, y_pred, sample_weight)

    def _objective(self, x_adv, y, labels, y_pred, sample_weight):
        """The objective of a batch; `y_pred` are the outputs on the clean images."""
        outputs = {"clean": y_pred, "adversarial": self.model(x_adv, training=True)}

        def task(name, other=None):
            target = y if other is None else self._like(y, other)
            return keras.Model.compute_loss(self, None, target, outputs[name], sample_weight, True)

        def mean(values):
            if sample_weight is not None:
                values = values * ops.cast(ops.reshape(sample_weight, (-1,)), values.dtype)
            return ops.mean(values) / backend.replicas()

        return self.objective(
            Batch(
                y=labels,
                clean=self.to_logits(y_pred) if self.objective.needs_clean else None,
                adversarial=self.to_logits(outputs["adversarial"]),
                task=task,
                mean=mean,
                penalty=sum(self.losses) / backend.replicas() if self.losses else 0.0,
            )
        )

    @contextlib.contextmanager
    def _moved(self, x, x_adv, y, labels, sample_weight):
        """Kernels moved up the gradient of the objective by `awp` times their norm; what else changes stays so."""
        kernels = [v for v in self.model.trainable_variables if len(v.shape) > 1]
        moving = {id(v) for v in kernels}
        others = [(v, v.value) for v in self.model.variables if id(v) not in moving]  # a scope must know them all

        def value(tensors):
            with keras.StatelessScope(state_mapping=[*others, *zip(kernels, tensors, strict=True)]):
                y_pred = self.model(x, training=self.objective.needs_clean)
                return self._objective(x_adv, y, labels, y_pred, sample_weight)

        now = [v.value for v in kernels]
        _, grads = backend.value_and_grad(value)([ops.stop_gradient(v) for v in now])
        moved = []
        for kernel, grad in zip(now, grads, strict=True):
            size = ops.norm(ops.reshape(kernel, (-1,))) / (ops.norm(ops.reshape(grad, (-1,))) + _TINY)
            moved.append(kernel + ops.stop_gradient(self.awp * size * grad))
        rest = self.model.non_trainable_variables
        with keras.StatelessScope(state_mapping=[*others, *zip(kernels, moved, strict=True)]) as scope:
            yield
        for variable in rest:  # statistics of BatchNorm, seeds of Dropout
            found = scope.get_current_value(variable)
            if found is not None:
                variable.assign(found)

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
        seeds = seeds + _REPLICA * backend.replica()  # replicas share the generator
        seen = self.source.models or (self.view,)
        pairs = [(view, attack) for view in seen for attack in self._climbing]
        if len(pairs) == 1:
            return self._perturb(*pairs[0], x, y, seeds)
        which = keras.random.randint((), 0, len(pairs), dtype="int32", seed=self.draws)
        branches = [lambda pair=pair: self._perturb(*pair, x, y, seeds) for pair in pairs]
        return ops.switch(which, branches)

    def _perturb(self, view, attack, x, y, seeds):
        numbers = None
        if self.radius is not None:
            numbers = {"eps": ops.broadcast_to(self.radius.at(self.batches), ops.shape(y)[:1])}
        with backend.constant(view):
            if self.objective.climbs == "clean":
                y = ops.stop_gradient(models.Victim.of(view).logits(x))
            return attack.perturb(view, ops.cast(x, "float32"), y, seeds, numbers)

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


def _is_several(attack) -> bool:
    return isinstance(attack, Sequence) and not isinstance(attack, str)


def _for_training(attack: StepAttack, objective: Objective) -> StepAttack:
    """The attack with what only a call on arrays needs left out, and with the loss that the objective asks for."""
    known = {f.name for f in dataclasses.fields(attack)}
    changes = {name: False for name in ("best", "early_stop") if name in known}
    if objective.climbs == "clean":
        if "loss" not in known:
            raise ValueError(
                f"`attack` must have a setting `loss` with {type(objective).__name__}, as PGD and APGD have. "
                f"Received: attack={attack!r}"
            )
        changes |= {"loss": kl_divergence, "goal": _Climb()}
        if "random_start" in known:  # at x itself the divergence has no gradient: start beside it
            changes["random_start"] = True
    return dataclasses.replace(attack, **changes)
