"""Defensive distillation: a classifier that learns at a high temperature from another one's probabilities."""

from __future__ import annotations

import keras
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.annotations import checked
from kerasdef.training.trainer import Trainer, check_classifier


@keras.saving.register_keras_serializable(package="kerasdef")
class Distillation(Trainer):
    """Trains a classifier at a temperature, from labels or from the probabilities of a teacher.

    The classifier itself stays as it is: used without a temperature, its logits are far apart, which hides gradients
    from attacks that go through a softmax. This is no robustness: attacks on the logits break it (Carlini and Wagner,
    2017), as the reports of kerasdef show.

    Args:
        model: A built classifier that gives logits of shape (n, classes); trained in place.
        temperature: Divides the logits in training, above 0 (paper: 20 on MNIST, up to 100).
        teacher: A classifier of the same inputs, trained at the same temperature. None: the labels are learned, as the
            teacher does.

    References: Papernot et al., 2016, https://arxiv.org/abs/1511.04508 (section IV).
    """

    @checked
    def __init__(self, model: keras.Model, temperature: float = 20.0, teacher: keras.Model | None = None, **kwargs):
        super().__init__(**kwargs)
        check_classifier(model)
        if models.logits_view(model) is not model:
            raise ValueError(f"`model` must give logits, without a last softmax. Received: model={model.name!r}")
        self.model = model
        self.temperature = checks.real("temperature", temperature, low=0.0, open_low=True)
        self._teacher = models.Untracked((teacher,))
        self.teacher = models.Untracked(() if teacher is None else (models.logits_view(teacher),))
        self.built = True

    def settings(self) -> dict:
        """Arguments that make this trainer again, by name."""
        return {"model": self.model, "temperature": self.temperature, "teacher": self._teacher.models[0]}

    def beside(self) -> list:
        """What is saved beside the weights: those of the teacher, which is not trained here."""
        return [] if self._teacher.models[0] is None else self._teacher.models[0].weights

    def call(self, x, training=None):
        """Logits of the classifier, without the temperature."""
        return self.model(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """Cross-entropy at the temperature in training; the compiled loss in evaluation."""
        if not training:
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        tempered = y_pred / self.temperature
        if not self.teacher.models:
            return super().compute_loss(x, y, tempered, sample_weight, training)
        (teacher,) = self.teacher.models
        wanted = ops.softmax(ops.stop_gradient(backend.evaluate(teacher, x)) / self.temperature)
        values = -ops.sum(wanted * ops.log_softmax(ops.cast(tempered, "float32")), axis=-1)
        if sample_weight is not None:
            values = values * ops.cast(ops.reshape(sample_weight, (-1,)), values.dtype)
        return (ops.mean(values) + (sum(self.model.losses) if self.model.losses else 0.0)) / backend.replicas()
