"""Free adversarial training: one backward pass moves the weights and the images."""

from __future__ import annotations

import keras
from keras import ops

from kerasdef import checks, models
from kerasdef.annotations import checked
from kerasdef.training.trainer import Trainer, check_bounds, check_classifier


@keras.saving.register_keras_serializable(package="kerasdef")
class FreeTraining(Trainer):
    """A classifier that is trained on perturbed images whose perturbation grows with the gradients of its training.

    A step costs what a step of plain training costs: the backward pass that moves the weights also gives the gradient
    of the images, by whose sign the perturbation moves. It belongs to a place in the batch and is carried over from
    batch to batch. So `fit` must show every batch several times in a row (paper: 8 for CIFAR-10), in as many times
    fewer epochs. In `fit`, loss and metrics are those of the perturbed images; in `evaluate`, of the clean ones. The
    classifier itself is trained in place: save, predict with and export `model`.

    Args:
        model: A built classifier with one output of shape (n, classes): logits, or probabilities by a last softmax.
        eps: Linf radius in input units (write `8 / 255`), at least 0.
        batch_size: Most samples that a batch has; a smaller batch uses the first places.
        step_size: Length of a step of the perturbation in input units, above 0. None: `eps` (as in the paper).
        bounds: Valid range of an input value.

    Raises:
        ValueError: The model is not built, has another output, or takes inputs of no fixed size.

    Example:
    >>> trainer = FreeTraining(model, 8 / 255, batch_size=128)
    >>> trainer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    >>> trainer.fit(batches_each_shown_eight_times, shuffle=False, epochs=2)

    References: Shafahi et al., 2019, https://arxiv.org/abs/1904.12843 (Algorithm 1).
    """

    @checked
    def __init__(
        self,
        model: keras.Model,
        eps: float,
        *,
        batch_size: int,
        step_size: float | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        **kwargs,
    ):
        super().__init__(**{"dtype": "float32"} | kwargs)  # the perturbation is too small for half precision
        check_classifier(model)
        shape = tuple(model.input_shape[1:])
        if None in shape:
            raise ValueError(f"`model` must take inputs of a fixed size. Received: input_shape={model.input_shape}")
        self.model = model
        self.eps = checks.real("eps", eps, low=0.0)
        self.step_size = self.eps
        if step_size is not None:
            self.step_size = checks.real("step_size", step_size, low=0.0, open_low=True)
        self.bounds = checks.bounds(bounds)
        check_bounds("bounds", self.bounds, model)
        self._inner = models.Untracked((models.float_input(model),))
        self.batch_size = checks.positive_int("batch_size", batch_size)
        # optimizers put the gradient of such a variable in its place instead of taking a step
        self.delta = self.add_weight(
            shape=(self.batch_size, *shape), initializer="zeros", name="delta", overwrite_with_gradient=True
        )
        self.built = True

    def compile(self, optimizer="rmsprop", *args, **kwargs):
        """Compile as `keras.Model.compile` does; by default XLA is used on GPUs only, since it is slower on a CPU.

        Raises:
            ValueError: The optimizer sums up gradients of several batches or averages weights.
        """
        super().compile(optimizer, *args, **kwargs)
        for name in ("gradient_accumulation_steps", "use_ema"):  # Keras would sum up or average the perturbation
            if getattr(self.optimizer, name, None):
                raise ValueError(f"`optimizer` must not have `{name}`. Received: {getattr(self.optimizer, name)}")

    def call(self, x, training=None):
        """Outputs of the classifier; in training mode those of the perturbed images."""
        return self._inner.models[0](self.perturb(x), training=True) if training else self.model(x, training=False)

    def settings(self) -> dict:
        """Arguments that make this trainer again, by name."""
        names = ("model", "eps", "batch_size", "step_size", "bounds")
        return {name: getattr(self, name) for name in names}

    def perturb(self, x):
        """Images with the perturbation of their places; the gradient that flows to `delta` is its next value.

        Args:
            x: Images of shape (n, ...), n at most `batch_size`.

        Returns:
            x_adv of the shape of x, within `bounds`.
        """
        if x.shape[0] is not None and x.shape[0] > self.batch_size:
            raise ValueError(f"A batch must have at most {self.batch_size} samples. Received: shape={x.shape}")

        @ops.custom_gradient
        def shifted(x, delta):
            n = ops.shape(x)[0]

            def back(upstream):
                moved = ops.clip(delta[:n] + self.step_size * ops.sign(upstream), -self.eps, self.eps)
                following = ops.concatenate([moved, delta[n:]], axis=0)
                return upstream, ops.reshape(following, self.delta.shape)

            return ops.clip(x + delta[:n], *self.bounds), back

        return shifted(ops.cast(x, "float32"), ops.copy(self.delta))  # a tensor: TensorFlow takes no variables here
