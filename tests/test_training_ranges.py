"""The range of the values belongs to the model: training attacks behind the cast of uint8 images, in their units."""

import keras
import numpy as np
import pytest
from keras import layers

import kerasdef
from kerasdef.attacks import FGSM, PGD
from kerasdef.recipes.robust import report
from kerasdef.training import AdversarialTraining, FreeTraining, Trades

EPS = 0.1


def network(kind):
    """The same net for images in [0, 1], for those in [0, 255], and for those of uint8."""
    first = [] if kind == "unit" else [layers.Rescaling(1 / 255)]
    glorot = [keras.initializers.GlorotUniform(seed=i) for i in range(2)]
    net = [layers.Flatten(), layers.Dense(32, activation="relu", kernel_initializer=glorot[0])]
    net += [layers.Dense(10, kernel_initializer=glorot[1])]
    return keras.Sequential([keras.Input((8, 8, 1), dtype="uint8" if kind == "uint8" else "float32"), *first, *net])


def images(digits, kind):
    x, y, x_test, y_test = digits
    scale = 1 if kind == "unit" else 255
    x, x_test = (np.round(v * 255) / 255 * scale for v in (x, x_test))
    return x.astype("uint8" if kind == "uint8" else "float32"), y, x_test.astype("float32"), y_test


def compiled(trainer):
    criterion = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(3e-3), criterion, metrics=["accuracy"])
    return trainer


def trained(digits, kind, make):
    """Robust accuracy of the net after adversarial training, measured on its float twin, and its weights."""
    x, y, x_test, y_test = images(digits, kind)
    scale = 1 if kind == "unit" else 255
    model = network(kind)
    options = {"eps": EPS * scale, "bounds": (0, scale)}
    compiled(make(model, options)).fit(x, y, batch_size=50, epochs=3, shuffle=False, verbose=0)
    twin = network("unit")
    twin.set_weights(model.get_weights())
    found = PGD(eps=EPS, steps=10).run(twin, x_test / scale, y_test, progress=False)
    return 1 - found.success.mean(), model.get_weights()


@pytest.mark.slow
def test_models_of_uint8_images_end_as_robust_as_their_float_twins(digits):
    def adversarial(model, options):
        return AdversarialTraining(model, PGD(**options, steps=3), Trades(2.0))

    found = {kind: trained(digits, kind, adversarial) for kind in ("unit", "float", "uint8")}
    np.testing.assert_allclose(found["uint8"][0], found["unit"][0], atol=0.03)
    np.testing.assert_allclose(found["float"][0], found["unit"][0], atol=0.03)
    plain = network("unit")
    x, y, x_test, y_test = images(digits, "unit")
    compiled(plain).fit(x, y, batch_size=50, epochs=3, shuffle=False, verbose=0)
    undefended = 1 - PGD(eps=EPS, steps=10).run(plain, x_test, y_test, progress=False).success.mean()
    assert found["uint8"][0] > undefended + 0.1


def test_free_training_of_uint8_images_moves_their_float_twin(digits):
    def free(model, options):
        return FreeTraining(model, **options, batch_size=50)

    found = {kind: trained(digits, kind, free) for kind in ("unit", "uint8")}
    np.testing.assert_allclose(found["uint8"][0], found["unit"][0], atol=0.03)


def refuse_other_bounds(model):
    for make in (lambda: AdversarialTraining(model, PGD(eps=EPS)), lambda: FreeTraining(model, EPS, batch_size=8)):
        with pytest.raises(ValueError, match=r"\(0.0, 255.0\).*Received: bounds=\(0.0, 1.0\)"):
            make()


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_bounds_that_are_not_the_range_of_the_model_are_refused_and_both_are_named(kind):
    refuse_other_bounds(network(kind))
    trainer = AdversarialTraining(network(kind), FGSM(eps=8, bounds=(0, 255)))
    with pytest.raises(ValueError, match=r"\(0.0, 255.0\).*Received: bounds=\(0.0, 1.0\)"):
        trainer.attack = FGSM(eps=EPS)


@pytest.mark.parametrize("kind", ["float", "uint8"])
def test_the_range_of_a_model_inside_another_counts(kind):
    outer = keras.Input((8, 8, 1), dtype="uint8" if kind == "uint8" else "float32")
    refuse_other_bounds(keras.Sequential([outer, network(kind)]))


def test_a_model_that_does_not_tell_its_range_takes_the_bounds_of_the_attack():
    trainer = AdversarialTraining(network("unit"), FGSM(eps=EPS, bounds=(-1, 1)))
    assert trainer.attack.bounds == (-1, 1)


@pytest.mark.slow
def test_recipes_train_a_softmax_inside_another_model_on_probabilities_not_on_logits(digits, monkeypatch):
    monkeypatch.setattr(report, "attacks_of", lambda eps, norm, bounds: {"fgsm": FGSM(eps=eps, bounds=bounds)})
    x, y, x_test, y_test = (v[:300] for v in digits)
    found = []
    for nested in (False, True):
        base = network("unit")
        model = keras.Sequential([keras.Input((8, 8, 1)), *base.layers, layers.Softmax()])
        if nested:
            model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1.0), model])
        options = {"epochs": 2, "eps": EPS, "n_test": 20, "autoattack": False, "steps": 2}
        kerasdef.train_robust("pgd", (x, y, x_test, y_test), model=model, **options)
        found.append(base.get_weights())
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # two graphs of float32


def test_a_trainer_of_uint8_images_is_saved(digits, tmp_path):
    x, y, _, _ = images(digits, "uint8")
    trainer = compiled(AdversarialTraining(network("uint8"), FGSM(eps=EPS * 255, bounds=(0, 255))))
    trainer.fit(x[:100], y[:100], batch_size=50, verbose=0)
    trainer.save(tmp_path / "trainer.keras")
    again = keras.saving.load_model(tmp_path / "trainer.keras")
    for a, b in zip(again.model.get_weights(), trainer.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
