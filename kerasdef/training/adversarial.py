"""Adversarial training as a Keras model: `compile()` and `fit()`, and everything that works with them."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.annotations import checked
from kerasdef.attacks import Goal, Misclassify, StepAttack, signs
from kerasdef.training.objectives import Batch, Madry, Objective, kl_divergence
from kerasdef.training.schedules import Radius
from kerasdef.training.trainer import Trainer, all_steps, check_attack, check_classifier

_LOOK = 100  # batches between two looks at what the attack may be blind to: one more gradient each time
_REPLICA = 0x3C6EF35F  # any odd number: seeds are hashed
_TINY = 1e-12  # keeps a direction finite where all gradients are zero


@dataclass(frozen=True)
class _Climb(Goal):
    """A loss as high as it gets; in training nobody asks who has won, and y need not be labels."""

    def value(self, loss, logits, y):
        return loss(logits, y)

    def reached(self, logits, y):
        return ops.zeros(ops.shape(logits)[:1], dtype="bool")


@keras.saving.register_keras_serializable(package="kerasdef")
class AdversarialTraining(Trainer):
    """A classifier that is trained on adversarial images made while it trains.

    It overrides `compute_loss` and nothing else of the training loop, so callbacks, `sample_weight`, `tf.data`, mixed
    precision and `tf.distribute` work as for any Keras model. The classifier itself is trained in place: predict with
    and export `model`. A trainer that was saved, by `ModelCheckpoint` for example, is loaded by
    `keras.saving.load_model` after `import kerasdef.training`, with its attack, its optimizer and its `model`.

    What `fit` shows: `loss` is the objective, on adversarial images. The metrics of `compile`, such as `accuracy`, are
    those of the clean images. `adversarial_accuracy` is the share of the adversarial images that the model labels
    right while it trains. `val_loss` and the other names with `val_` are those of the clean images alone: for the
    accuracy under attack on held-out images put `RobustValidation` into the callbacks.

    The attack sees the classifier in inference mode (BatchNorm and Dropout included) and in input space: preprocessing
    layers inside the model are part of what is attacked. A model of uint8 images is attacked and trained behind the
    cast to integers, which has no gradient. Every hundred batches the trainer looks whether the attack may be blind,
    and `fit` warns if the gradients of many images are zero, if the model gives probabilities that cannot be looked
    through, or if the trained model labels few of the clean images right.

    Args:
        model: A built classifier with one output of shape (n, classes): logits, or probabilities by a last softmax.
        attack: A `StepAttack` such as `PGD` or `APGD`; all its steps are taken for every image. A sequence of attacks
            means that one of them is drawn for every batch. It may be assigned anew between epochs. Attacks that look
            for the smallest change, such as `CarliniWagner`, are refused: their images end on the decision boundary.
        objective: An `Objective`; `Madry()` by default.
        radius: A `Radius` that takes the place of the attack's eps while training goes on. None keeps the attack's.
        awp: Size of adversarial weight perturbations relative to the weights, at least 0 (paper: 0.005 to 0.01). The
            loss is taken where weights are moved to make it worse, which costs one more pass forward and back.
        source: Other classifiers of the same inputs, on which the attack is made instead; one is drawn for every batch
            (ensemble adversarial training); `model` itself may be among them. None attacks the model itself.
        seed: Seed of the attack's random starts, an integer of at least 0.

    Raises:
        ValueError: The model is not a classifier of one label that is built, or takes tokens; the attack takes no
            steps, looks for the smallest change, or has other bounds than the values that the model takes.

    References: Madry et al., 2018, https://arxiv.org/abs/1706.06083 (equation 2.1); for `source` Tramer et al., 2018,
    https://arxiv.org/abs/1705.07204; for `awp` Wu et al., 2020, https://arxiv.org/abs/2004.05884 (Algorithm 1).

    Example:
    >>> trainer = AdversarialTraining(model, PGD(eps=0.3, steps=7), Trades(beta=6.0))
    >>> trainer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> trainer.fit(x, y, batch_size=128, epochs=10)
    """

    @checked
    def __init__(
        self,
        model: keras.Model,
        attack: StepAttack | Sequence[StepAttack],
        objective: Objective | None = None,
        *,
        radius: Radius | None = None,
        awp: float = 0.0,
        source: tuple[keras.Model | None, ...] | None = None,
        seed: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.objective = Madry() if objective is None else objective
        if not isinstance(self.objective, Objective):
            raise ValueError(f"`objective` must be an Objective. Received: objective={objective!r}")
        check_classifier(model)
        self.model = model
        twin = models.float_input(model)
        self._inner = models.Untracked((twin, models.logits_view(twin)))
        self.to_logits = models.logits_of(model)
        self.attack = attack
        if radius is not None and not isinstance(radius, Radius):
            raise ValueError(f"`radius` must be a Radius or None. Received: radius={radius!r}")
        if radius is not None and not all("eps" in a.parameters for a in self._attacks):
            raise ValueError(f"`radius` is for attacks that have an `eps`. Received: attack={attack!r}")
        self.radius = radius
        self.awp = checks.real("awp", awp, low=0.0)
        self._sources = models.Untracked(tuple(model if m is None else m for m in source or ()))
        self.source = models.Untracked(tuple(models.logits_view(models.float_input(m)) for m in self._sources.models))
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
        for view in (self.view, *self.source.models):
            models.Victim.of(view)  # finds out whether it is random here, where variables have values
        self.batches = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="batches")
        # sums over the batches of an epoch that were looked at: images, gradients of zero, probabilities, right labels
        self.looks = self.add_weight(shape=(4,), initializer="zeros", trainable=False, name="looks")
        self.seed = checks.non_negative_int("seed", seed)
        self.draws = keras.random.SeedGenerator(self.seed % 2**32)
        self.withstood = keras.metrics.Mean("adversarial_accuracy")
        self._trains = False
        self.built = True

    @property
    def view(self) -> keras.Model:
        """The classifier as the attack sees it: logits, from float images."""
        return self._inner.models[1]

    @property
    def attack(self) -> StepAttack | tuple[StepAttack, ...]:
        """What makes the adversarial images; assigned, it holds from the next epoch on."""
        return self._attacks[0] if len(self._attacks) == 1 else self._attacks

    @attack.setter
    def attack(self, attack):
        attacks = (attack,) if isinstance(attack, StepAttack) else tuple(attack) if _is_several(attack) else ()
        if not attacks or not all(isinstance(a, StepAttack) for a in attacks):
            raise ValueError(f"`attack` must be an attack that takes steps, such as PGD. Received: attack={attack!r}")
        for a in attacks:
            check_attack(a, self.model)
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

    def fit(self, *args, **kwargs):
        """Train as `keras.Model.fit` does, and warn where the attack was blind."""
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        given = bound.arguments.get("callbacks") or []
        if isinstance(given, keras.callbacks.CallbackList):
            given.append(_Looks())
        else:
            bound.arguments["callbacks"] = [*(given if isinstance(given, list | tuple) else [given]), _Looks()]
        return super().fit(*bound.args, **bound.kwargs)

    def call(self, x, training=None):
        """Outputs of the classifier; in training mode only where the objective uses these very outputs."""
        return self.model(x, training=bool(training) and self.objective.needs_clean and not self.awp)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The objective in training; the compiled loss of the clean images in evaluation."""
        self._trains = bool(training)
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        labels = self._labels(y)
        self._look(x, labels)
        x_adv = self.perturb(x, labels)
        self.batches.assign_add(1)
        if not self.awp:
            return self._objective(x_adv, y, labels, y_pred, sample_weight)
        with self._moved(x, x_adv, y, labels, sample_weight):
            y_pred = self.model(x, training=self.objective.needs_clean)
            return self._objective(x_adv, y, labels, y_pred, sample_weight)

    def get_metrics_result(self):
        """Return the metrics; nothing is attacked in evaluation, which shows no number of it."""
        found = super().get_metrics_result()
        if not self._trains:
            found.pop(self.withstood.name, None)
        return found

    def _look(self, x, labels):
        """Look at the first batch of an epoch, and at every hundredth, for what the attack may be blind to."""
        x = ops.cast(x, "float32")

        def call(images):
            return models.Victim.of(self.view).logits(images)

        def look():
            with backend.constant(self.view):
                logits, reached, zero, _ = signs.look_at(
                    lambda z: backend.evaluate(self.view, z), x, labels, Misclassify()
                )
            zero = ops.logical_and(zero, ops.logical_not(reached))
            sums = ops.abs(ops.sum(logits, axis=-1) - 1.0) < 1e-4
            likely = ops.logical_and(sums, ops.all(logits >= 0, axis=-1))
            found = [ops.ones_like(zero), zero, likely, ops.logical_not(reached)]
            return ops.stack([ops.sum(ops.cast(v, "float32")) for v in found])

        due = ops.logical_or(self.looks[0] == 0, self.batches % _LOOK == 0)
        self.looks.assign_add(ops.cond(due, look, lambda: ops.zeros((4,), dtype="float32")))

    def _objective(self, x_adv, y, labels, y_pred, sample_weight, count=True):
        """The objective of a batch; `y_pred` are the outputs on the clean images."""
        outputs = {"clean": y_pred, "adversarial": self._inner.models[0](x_adv, training=True)}
        adversarial = self.to_logits(outputs["adversarial"])
        if count:
            self.withstood.update_state(ops.cast(self.objective.right(adversarial, labels), "float32"))

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
                adversarial=adversarial,
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
        known = (*self.model.variables, *self.withstood.variables)  # a scope must know them all
        others = [(v, v.value) for v in known if id(v) not in moving]

        def value(tensors):
            with keras.StatelessScope(state_mapping=[*others, *zip(kernels, tensors, strict=True)]):
                y_pred = self.model(x, training=self.objective.needs_clean)
                return self._objective(x_adv, y, labels, y_pred, sample_weight, count=False)

        now = [v.value for v in kernels]
        _, grads = backend.value_and_grad(value)([ops.stop_gradient(v) for v in now])
        moved = []
        for kernel, grad in zip(now, grads, strict=True):
            size = ops.norm(ops.reshape(kernel, (-1,))) / (ops.norm(ops.reshape(grad, (-1,))) + _TINY)
            moved.append(kernel + ops.stop_gradient(self.awp * size * grad))
        rest = [*self.model.non_trainable_variables, *self.withstood.variables]
        with keras.StatelessScope(state_mapping=[*others, *zip(kernels, moved, strict=True)]) as scope:
            yield
        for variable in rest:  # statistics of BatchNorm, seeds of Dropout, the metric
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

    def settings(self) -> dict:
        """Arguments that make this trainer again, by name; its own model among the sources is named by None."""
        own = tuple(None if m is self.model else m for m in self._sources.models)
        return {
            "model": self.model,
            "attack": self.attack,
            "objective": self.objective,
            "radius": self.radius,
            "awp": self.awp,
            "source": own or None,
            "seed": self.seed,
        }

    def beside(self) -> list:
        """What is saved beside the weights: the random starts, and the sources' weights, which are not trained here."""
        return [self.draws.state, *(v for m in self._sources.models if m is not self.model for v in m.weights)]

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


class _Looks(keras.callbacks.Callback):
    """Warns at the end of an epoch of what `AdversarialTraining` saw when it looked."""

    def __init__(self):
        super().__init__()
        self.said: set[str] = set()

    def on_epoch_begin(self, epoch, logs=None):
        """Begin to count anew."""
        self.model.looks.assign(np.zeros(4, "float32"))

    def on_epoch_end(self, epoch, logs=None):
        """Tell of gradients of zero and of probabilities that are taken for logits, each once."""
        n, zero, likely, right = self._counts()
        found = signs.zero_gradients(zero / right) if right else {}
        self._say(found | ({"softmax_output": signs.SOFTMAX} if n and likely == n else {}))

    def on_train_end(self, logs=None):
        """Tell of a model that has not learned its data."""
        n, _, _, right = self._counts()
        self._say(signs.low_accuracy(right / n, 1 / self.model.view.output_shape[-1], int(n)) if n else {})

    def _counts(self) -> list[float]:
        return ops.convert_to_numpy(self.model.looks).tolist()

    def _say(self, found: dict[str, str]) -> None:
        for name in found.keys() - self.said:
            self.said.add(name)
            signs.warn(found[name])


def _is_several(attack) -> bool:
    return isinstance(attack, Sequence) and not isinstance(attack, str)


def _for_training(attack: StepAttack, objective: Objective) -> StepAttack:
    """The attack with what only a call on arrays needs left out, and with the loss that the objective asks for."""
    attack, known, changes = all_steps(attack), {f.name for f in dataclasses.fields(attack)}, {}
    if objective.climbs == "clean":
        if "loss" not in known:
            raise ValueError(
                f"`attack` must have a setting `loss` with {type(objective).__name__}, as PGD and APGD have. "
                f"Received: attack={attack!r}"
            )
        changes = {"loss": kl_divergence, "goal": _Climb()}
        if "random_start" in known:  # at x itself the divergence has no gradient: start beside it
            changes["random_start"] = True
    return dataclasses.replace(attack, **changes)
