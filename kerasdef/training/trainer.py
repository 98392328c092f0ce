"""What all trainers share: a classifier that is checked, compiled as fits the device, and saved with its settings."""

from __future__ import annotations

import dataclasses

import keras

from kerasdef import backend, models
from kerasdef.attacks import StepAttack
from kerasdef.training import saving

_SEVERAL_LABELS = ("binarycrossentropy", "binaryfocalcrossentropy")  # with several outputs: a label for each of them


class Trainer(keras.Model):
    """A Keras model that trains another one, its `model`, in place.

    Attributes:
        model: The classifier that is trained: save, predict with and export it.
    """

    def compile(self, *args, jit_compile=None, **kwargs):
        """Compile as `keras.Model.compile` does; by default XLA is used on GPUs only, since it is slower on a CPU.

        Raises:
            ValueError: The loss is for several labels at once, and the model has several outputs.
        """
        super().compile(*args, jit_compile=backend.jit() if jit_compile is None else jit_compile, **kwargs)
        name = self.loss if isinstance(self.loss, str) else getattr(self.loss, "__name__", type(self.loss).__name__)
        outputs = self.model.output_shape[-1]
        if outputs > 1 and name.lower().replace("_", "") in _SEVERAL_LABELS:
            raise ValueError(
                "`loss` must be for classes of which one is right, such as SparseCategoricalCrossentropy. "
                f"Received: loss={name} for {outputs} outputs, which is for several labels at once"
            )

    def compile_from_config(self, config):
        """Compile a loaded trainer as it was when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def settings(self) -> dict:
        """Arguments that make this trainer again, by name."""
        raise NotImplementedError

    def beside(self) -> list:
        """Variables that are saved beside the weights of the trainer."""
        return []

    def save_own_variables(self, store):
        """Save the trainer's own weights, and what `beside` names."""
        super().save_own_variables(store)
        for i, variable in enumerate(self.beside()):
            store[f"beside{i}"] = keras.ops.convert_to_numpy(variable)

    def load_own_variables(self, store):
        """Load what `save_own_variables` saved."""
        for i, variable in enumerate(self.beside()):
            variable.assign(store[f"beside{i}"])
        names = [name for name in store.keys() if not name.startswith("beside")]  # noqa: SIM118 - not a dict
        super().load_own_variables({name: store[name] for name in names})

    def get_config(self) -> dict:
        """The settings as JSON values, for `.keras` files."""
        plain = {name: saving.encode(name, value) for name, value in self.settings().items()}
        return {"name": self.name, "dtype": keras.saving.serialize_keras_object(self.dtype_policy), **plain}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Make a trainer from what `get_config` returned."""
        config = dict(config)
        name, dtype = config.pop("name"), config.pop("dtype")
        settings = {key: saving.decode(value, custom_objects) for key, value in config.items()}
        return cls(**settings, name=name, dtype=keras.saving.deserialize_keras_object(dtype))


def check_classifier(model: keras.Model) -> None:
    """Refuse what no attack can be made on or what no trainer can train.

    Args:
        model: A built Sequential or functional classifier with one output of shape (n, classes): logits, or
            probabilities by a last softmax. A single output is a logit, or a probability by a last sigmoid.

    Raises:
        ValueError: The model is not built, is a subclass without symbolic outputs, has several outputs, gives several
            labels at once, or takes integers that stand for tokens.
    """
    backend.refuse_fork()
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    if model.built:
        models.check_symbolic(model)
    models.logits_view(model)


def check_bounds(name: str, bounds: tuple[float, float], model: keras.Model) -> None:
    """Refuse bounds that are not the range of the values that the model takes."""
    known = models.input_bounds(model)
    if known is not None and tuple(bounds) != known:
        raise ValueError(
            f"`{name}` must have the bounds of the values that the model takes, {known}. Received: bounds={bounds}"
        )


def check_attack(attack: StepAttack, model: keras.Model) -> None:
    """Refuse an attack that ends on the decision boundary, or that has other bounds than the model takes."""
    if attack.kind == "minimal":
        raise ValueError(
            "`attack` must look for the strongest image in a ball, such as PGD. "
            f"Received: {type(attack).__name__}, which looks for the smallest change and ends on the boundary"
        )
    check_bounds("attack", attack.bounds, model)


def all_steps(attack: StepAttack) -> StepAttack:
    """The attack with what only a call on arrays needs left out: it takes all its steps and ends at the last point."""
    known = {f.name for f in dataclasses.fields(attack)}
    return dataclasses.replace(attack, **{name: False for name in ("best", "early_stop") if name in known})
