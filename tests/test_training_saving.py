"""A trainer in a `.keras` file: loaded, it goes on as the one that was saved."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef.attacks import APGD, FGSM, PGD, Evade
from kerasdef.norms import L2
from kerasdef.training import (
    AdversarialTraining,
    Bilateral,
    Distillation,
    FreeTraining,
    Madry,
    Mart,
    Objective,
    Radius,
    Reject,
    Trades,
    most_confusing,
)


def data(n=32, d=6, k=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.2, 0.8, (n, d)).astype("float32"), rng.integers(0, k, n)


def dense(seed=0, activation=None):
    glorot = keras.initializers.GlorotUniform(seed=seed)
    return keras.Sequential([keras.Input((6,)), layers.Dense(4, activation=activation, kernel_initializer=glorot)])


def fit(trainer, epochs=1, **options):
    x, y = data()
    trainer.fit(x, y, batch_size=16, epochs=epochs, shuffle=False, verbose=0, **options)


def same_weights(a, b):
    for one, other in zip(a.get_weights(), b.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


TRAINERS = {
    "trades": lambda: AdversarialTraining(
        dense(), PGD(eps=0.1, steps=2), Trades(2.0), radius=Radius.ramp(0.1, 4), seed=3
    ),
    "softmax": lambda: AdversarialTraining(
        dense(activation="softmax"), APGD(eps=0.2, norm=L2(), steps=2), Mart(), awp=0.01
    ),
    "several": lambda: AdversarialTraining(dense(), (FGSM(eps=0.1), PGD(eps=0.1, steps=2, goal=Evade(3))), Reject(3)),
    "bilateral": lambda: AdversarialTraining(dense(), PGD(eps=0.1, steps=1, loss=most_confusing), Bilateral(None)),
    "free": lambda: FreeTraining(dense(), 0.1, batch_size=16, step_size=0.05),
    "distillation": lambda: Distillation(dense(), 5.0, dense(1, "softmax")),
}


SELDOM = ("bilateral", "several")  # what they add is saved as in the others


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SELDOM else n for n in TRAINERS])
def test_a_checkpoint_of_every_trainer_is_loaded_and_goes_on_as_the_one_that_was_saved(name, tmp_path):
    trainer = TRAINERS[name]()
    softmax = name == "softmax"
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=not softmax)
    trainer.compile(keras.optimizers.Adam(0.05), criterion, metrics=["accuracy"])
    fit(trainer, callbacks=[keras.callbacks.ModelCheckpoint(tmp_path / "ck_{epoch}.keras")])
    again = keras.saving.load_model(tmp_path / "ck_1.keras")
    assert type(again) is type(trainer)
    for setting in ("attack", "objective", "radius", "awp", "seed", "eps", "step_size", "temperature"):
        assert getattr(again, setting, None) == getattr(trainer, setting, None)
    same_weights(again, trainer)
    same_weights(again.model, trainer.model)
    for one in (trainer, again):
        fit(one)
    for one, other in zip(again.model.get_weights(), trainer.model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)  # two programs of float32
    assert ops.convert_to_numpy(again.optimizer.iterations) == 4


def test_the_teacher_of_a_distillation_is_saved_with_its_weights(tmp_path):
    teacher = dense()
    teacher.set_weights([w + 1 for w in teacher.get_weights()])
    trainer = Distillation(dense(), 5.0, teacher)
    trainer.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trainer.save(tmp_path / "trainer.keras")
    same_weights(keras.saving.load_model(tmp_path / "trainer.keras").settings()["teacher"], teacher)


def test_the_sources_of_the_attack_are_saved_with_their_weights(tmp_path):
    model, other = dense(), dense(7)
    other.set_weights([w + 1 for w in other.get_weights()])
    trainer = AdversarialTraining(model, FGSM(eps=0.1), source=(other, model))
    trainer.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    first, second = again.settings()["source"]
    same_weights(first, other)
    assert second is None  # its own model
    assert len(again.trainable_variables) == 2


@dataclasses.dataclass(frozen=True)
class Own(Objective):
    """An objective of a user's."""

    weight: float = 1.0

    def __call__(self, batch):
        return self.weight * batch.task("adversarial")


def own_loss(logits, y):
    return ops.sum(logits, axis=-1)


def test_classes_and_functions_of_ones_own_are_saved_where_keras_knows_them_and_otherwise_refused(tmp_path):
    trainer = AdversarialTraining(dense(), PGD(eps=0.1, steps=1, loss=own_loss), Own(0.5))
    known = keras.saving.get_custom_objects()
    with pytest.raises(ValueError, match=r"get_custom_objects\(\)\['own_loss'\] = own_loss before saving"):
        trainer.save(tmp_path / "trainer.keras")
    known["own_loss"] = own_loss
    known["Own"] = Own
    try:
        trainer.save(tmp_path / "trainer.keras")
        again = keras.saving.load_model(tmp_path / "trainer.keras")
    finally:
        del known["own_loss"], known["Own"]
    assert again.objective == Own(0.5)
    assert again.attack.loss is own_loss


def test_a_file_cannot_name_what_is_not_of_kerasdef_and_not_registered():
    config = AdversarialTraining(dense(), FGSM(), Madry()).get_config()
    for name in ("os:system", "kerasdef.training.saving:importlib.import_module", "nobody"):
        config["objective"] = {"settings_of": name, "fields": {}}
        with pytest.raises(ValueError, match="is not known"):
            AdversarialTraining.from_config(config)
