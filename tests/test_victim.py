"""What an attack sees of any model: logits behind any nesting, gradients behind casts, draws for each sample."""

import keras
import numpy as np
import pytest
from helpers import quiet
from keras import layers, ops

from kerasdef import models
from kerasdef.attacks import PGD, CarliniWagner, Square
from kerasdef.defenses import as_defense
from kerasdef.models import Victim
from kerasdef.training.trainer import check_classifier


class Noise(layers.Layer):
    """Adds noise at inference as well."""

    def __init__(self, deviation=1.0):
        super().__init__()
        self.deviation, self.seeds = deviation, keras.random.SeedGenerator(0)

    def call(self, x):
        return x + self.deviation * keras.random.normal(ops.shape(x), seed=self.seeds)


def twins(digits_model, wrap):
    """A model made of a trained one, and the trained one itself."""
    return wrap(digits_model), digits_model


WRAPPED = {
    "softmax": lambda m: keras.Sequential([m, layers.Softmax()]),
    "nested softmax": lambda m: keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Rescaling(1.0), keras.Sequential([m, layers.Softmax()])]
    ),
    "three deep": lambda m: keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.Sequential(
                [keras.Input((8, 8, 1)), keras.Sequential([keras.Input((8, 8, 1)), m, layers.Activation("softmax")])]
            ),
            layers.Dropout(0.5),
            layers.Identity(),
        ]
    ),
    "functional around functional": lambda m: functional(functional(m, layers.Softmax()), layers.Reshape((10,))),
    "a function of keras.ops": lambda m: functional(m, ops.softmax),
    "subclassed": lambda m: Subclassed(m),
}


def functional(model, last):
    images = keras.Input((8, 8, 1))
    return keras.Model(images, last(model(images)))


class Subclassed(keras.Model):
    """A user's own class around a model of logits."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self(np.zeros((1, 8, 8, 1), "float32"))

    def call(self, x):
        return self.inner(x)


@pytest.mark.filterwarnings("ignore:The last layer of model:UserWarning")  # of a subclassed model nothing is known
@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_model_falls_as_the_bare_one(name, digits, digits_model):
    model, bare = twins(digits_model, WRAPPED[name])
    x, y = digits[2][:60], digits[3][:60]
    attack = PGD(eps=0.2, steps=10)
    np.testing.assert_allclose(quiet(attack, model, x, y), quiet(attack, bare, x, y), atol=1e-6)


def test_training_losses_know_a_nested_softmax(digits_model):
    assert not models.gives_logits(WRAPPED["nested softmax"](digits_model))
    assert models.gives_logits(keras.Sequential([keras.Input((8, 8, 1)), digits_model]))


def bytes_model(bare, dtype):
    """The digits' model for images of 0 to 255."""
    return keras.Sequential([keras.Input((8, 8, 1), dtype=dtype), layers.Rescaling(1 / 255), bare])


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("attack", [PGD(eps=0.15, steps=10), Square(eps=0.2, queries=50)])
def test_the_range_is_that_of_the_model_and_eps_that_of_the_data(dtype, attack, digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    whole = np.rint(x * 255).astype("uint8")
    model = bytes_model(digits_model, dtype)
    bare = quiet(attack, digits_model, whole.astype("float32") / 255, y)
    left = np.mean(models.predict_logits(digits_model, bare).argmax(axis=1) == y)
    assert left < 0.7  # there is something to be silent about
    for images in (whole, whole.astype("float32") / 255):  # bytes, and the same in the units of eps
        np.testing.assert_allclose(quiet(attack, model, images, y), bare, atol=2e-5)  # float32 around 255


def test_data_may_have_the_range_of_the_model(digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    model = bytes_model(digits_model, "uint8")
    near = quiet(PGD(eps=0.15, steps=10), digits_model, x, y)
    far = quiet(PGD(eps=0.15 * 255, steps=10, bounds=(0, 255)), model, x * 255, y)
    np.testing.assert_allclose(far / 255, near, atol=2e-5)  # float32 around 255


def test_bounds_can_be_said_where_no_layer_tells_them(digits, digits_model):
    images = keras.Input((8, 8, 1))
    model = keras.Model(images, digits_model(images * (1 / 15) * (1 / 17)))
    x, y = digits[2][:40], digits[3][:40]
    assert Victim.of(model).bounds is None
    found = quiet(PGD(eps=0.15, steps=10), Victim.of(model, bounds=(0, 255)), x, y)
    np.testing.assert_allclose(found, quiet(PGD(eps=0.15, steps=10), digits_model, x, y), atol=2e-5)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="sigmoid")]), "multi-label"),
        (lambda: keras.Sequential([keras.Input((4,)), layers.Dense(1, activation="softmax")]), "always 1"),
        (
            lambda: keras.Sequential(
                [keras.Input((4,)), layers.Embedding(9, 2), layers.GlobalAveragePooling1D(), layers.Dense(3)]
            ),
            "integer tokens",
        ),
    ],
)
def test_models_that_do_not_choose_among_classes_or_take_no_numbers_are_refused(model, message):
    with pytest.raises(ValueError, match=message):
        PGD(eps=0.1)(model(), np.zeros((2, 4), "float32"), np.zeros(2, "int64"))


@pytest.fixture(scope="module")
def noisy():
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((6,)), Noise(), layers.Dense(3)])
    model.layers[-1].set_weights([rng.normal(size=(6, 3)), rng.normal(size=3)])
    return model


def test_a_model_is_random_where_its_answers_are(noisy):
    drops = keras.Sequential([keras.Input((6,)), layers.Dropout(0.5), layers.Dense(3)])
    assert not Victim.of(drops).random  # only in training
    assert Victim.of(noisy).random


def test_draws_belong_to_samples_not_to_batches(noisy):
    x = np.random.default_rng(1).uniform(size=(40, 6)).astype("float32")
    victim = Victim.of(noisy)
    whole = victim.predict(x)
    np.testing.assert_allclose(victim.predict(x, batch_size=7), whole, rtol=1e-5, atol=1e-6)  # float32
    np.testing.assert_allclose(victim.predict(x[:3]), whole[:3], rtol=1e-5, atol=1e-6)
    assert not np.isclose(victim.predict(x, seed=1), whole).any()
    same = np.repeat(x[:1], 50, axis=0)
    assert len(np.unique(victim.predict(same), axis=0)) == 50  # one draw for each sample
    spread = victim.predict(np.repeat(x[:1], 4000, axis=0)).std(axis=0)
    np.testing.assert_allclose(spread, np.linalg.norm(noisy.layers[-1].get_weights()[0], axis=0), rtol=0.06)  # 5 sigma


def test_judging_a_random_model_leaves_it_alone_and_gives_the_same_each_time(noisy):
    x = np.random.default_rng(1).uniform(size=(10, 6)).astype("float32")
    before = [np.array(v) for v in noisy.variables]
    first = Victim.of(noisy).predict(x)
    for old, new in zip(before, noisy.variables, strict=True):
        np.testing.assert_array_equal(old, np.array(new))
    noisy(x)  # the user's own call moves the states on
    np.testing.assert_array_equal(Victim.of(noisy).predict(x), first)


def test_an_attack_on_a_random_model_does_not_depend_on_the_batch(noisy):
    x = np.random.default_rng(1).uniform(size=(24, 6)).astype("float32")
    y = np.zeros(24, "int64")
    attack = PGD(eps=0.3, steps=5, samples=2)
    whole = quiet(attack, noisy, x, y)
    np.testing.assert_allclose(quiet(attack, noisy, x, y, batch_size=5), whole, atol=1e-6)
    np.testing.assert_array_equal(quiet(attack, noisy, x, y), whole)


def test_one_lucky_draw_is_no_success():
    model = keras.Sequential([keras.Input((1,)), Noise(), layers.Dense(2)])
    model.layers[-1].set_weights([np.array([[1.0, -1.0]]), np.array([1.0, -1.0])])  # right where x + noise > -1: 84 %
    x, y = np.full((60, 1), 0.0, "float32"), np.zeros(60, "int64")
    found = PGD(eps=0.1, steps=20, samples=4, bounds=(-1, 1)).run(model, x, y, progress=False)
    assert not found.success.any()  # at x = -0.1 the class still stands in 82 % of the draws
    found = PGD(eps=0.9, steps=20, samples=4, bounds=(-5, 5)).run(model, x - 0.9, y, progress=False)
    assert found.success.mean() > 0.9  # at x = -1.8 it falls in 79 % of the draws, and so in most of 21


def test_a_minimal_attack_sees_the_same_model(digits, digits_model):
    x, y = digits[2][:10], digits[3][:10]
    attack = CarliniWagner(steps=30, binary_search_steps=2)
    found = quiet(attack, WRAPPED["nested softmax"](digits_model), x, y)
    np.testing.assert_allclose(found, quiet(attack, digits_model, x, y), atol=1e-4)  # two hundred steps of float32


X = np.random.default_rng(0).uniform(0.1, 0.9, (6, 2, 2, 1)).astype("float32")


def typed(dtype):
    images = keras.Input((2, 2, 1), dtype=dtype)
    return keras.Model(images, layers.Dense(3)(layers.Flatten()(ops.cast(images, "float32"))))


@pytest.mark.parametrize("dtype", ["bool", "int32", "int8", "uint16"])
def test_only_uint8_of_the_types_that_are_not_floats_is_attacked(dtype):
    """What lies between the values of another type is nothing that the model can be shown."""
    nested = keras.Sequential([keras.Input((2, 2, 1)), typed(dtype)])
    for model in (typed(dtype), nested):
        with pytest.raises(ValueError, match=rf"or images of uint8\. Received: model=.*an Input of {dtype}"):
            Victim.of(model)
    assert Victim.of(typed("uint8")).view.inputs[0].dtype == "float32"


class Rewritten(keras.Model):
    """A user's own class whose logits go through a function."""

    def __init__(self, function):
        super().__init__()
        self.function, self.flat, self.dense = function, layers.Flatten(), layers.Dense(3)
        self.dense.build((None, 4))
        self.built = True

    def call(self, x):
        return self.function(self.dense(self.flat(x)))


def test_a_dict_of_outputs_is_refused():
    images = keras.Input((2, 2, 1))
    functional = keras.Model(images, {"a": layers.Dense(3)(layers.Flatten()(images))})
    sequential = keras.Sequential([images, functional])
    y = np.zeros(6, "int64")
    for model in (functional, sequential, Rewritten(lambda z: {"a": z})):
        for attack in (PGD(eps=0.1, steps=1), Square(eps=0.1, queries=2)):
            with pytest.raises(ValueError, match=r"one output of shape .* which gives a dict of 'a'"):
                attack(model, X, y)
    for take in (as_defense, check_classifier):
        with pytest.raises(ValueError, match="which gives a dict of 'a'"):
            take(functional)


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason():
    def numpy_inside(z):
        raise NotImplementedError("Cannot convert a symbolic tensor\nto a number")

    with pytest.raises(ValueError, match=r"must be traceable: .* NotImplementedError: Cannot convert"):
        PGD(eps=0.1, steps=1)(Rewritten(numpy_inside), X, np.zeros(6, "int64"))
    with pytest.raises(ValueError, match="must be traceable"):
        Victim.of(Rewritten(lambda z: ops.convert_to_tensor(np.asarray(z))), shape=(2, 2, 1))


def test_models_of_any_size_are_attacked():
    images = keras.Input((None, None, 1))
    dense = layers.Dense(2)
    model = keras.Model(images, dense(layers.GlobalAveragePooling2D()(images)))
    dense.set_weights([np.float32([[1, -1]]), np.float32([-1, 1])])  # class 0 where the mean is above 1
    for x in (X, np.repeat(X, 2, axis=1)):
        for attack in (PGD(eps=1.5, steps=5, bounds=(0, 3)), Square(eps=1.5, queries=50, bounds=(0, 3))):
            found = attack.run(model, x, np.ones(6, "int64"), progress=False)
            assert found.success.all()
            assert (found.x_adv.mean(axis=(1, 2, 3)) > 1).all()
    with pytest.raises(ValueError, match=r"samples of shape \(None, None, 1\)"):
        PGD(eps=0.1)(model, X[..., 0], np.ones(6, "int64"))
    with pytest.raises(ValueError, match=r"samples of shape \(None, None, 1\)"):
        PGD(eps=0.1)(model, np.repeat(X, 3, axis=-1), np.ones(6, "int64"))


def test_logits_of_no_images_are_an_empty_array_and_a_batch_has_a_size():
    model = typed("float32")
    assert models.predict_logits(model, X[:0]).shape == (0, 3)
    assert models.predict_logits(Victim.of(lambda z: np.zeros((len(z), 2))), X[:0]).shape == (0, 2)
    for size in (0, -1):
        with pytest.raises(ValueError, match="`batch_size` must be a positive integer"):
            models.predict_logits(model, X, batch_size=size)
