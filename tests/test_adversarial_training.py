"""Adversarial training: one step by hand, what Keras offers works, each objective is its formula."""

import dataclasses
import time
import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import backend
from kerasdef.attacks import (
    APGD,
    FAB,
    FGSM,
    FMN,
    MIM,
    PGD,
    CarliniWagner,
    CarliniWagnerLinf,
    DeepFool,
    GradientAttack,
)
from kerasdef.training import (
    AdversarialTraining,
    FreeTraining,
    Madry,
    Mart,
    Mixed,
    Objective,
    Pairing,
    Radius,
    Reject,
    Stage,
    Trades,
)
from kerasdef.training.objectives import Batch, kl_divergence

EPS = 0.1
OBJECTIVES = [Madry(), Mixed(0.3), Trades(2.0), Mart(3.0), Pairing(0.5), Reject(9)]


def loss(from_logits=True, **options):
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits, **options)


def dense(k=4, d=6, seed=0, activation=None, noise=None, penalty=None):
    rng = np.random.default_rng(seed)
    stack = [keras.Input((d,)), layers.Dense(k, activation=activation, kernel_regularizer=penalty)]
    model = keras.Sequential(stack if noise is None else [stack[0], noise, stack[1]])
    model.layers[-1].set_weights([rng.normal(size=(d, k)).astype("float32"), rng.normal(size=k).astype("float32")])
    return model


def data(n=32, d=6, k=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.2, 0.8, (n, d)).astype("float32"), rng.integers(0, k, n)


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


# -- closed form -----------------------------------------------------------------------------------


def test_one_step_of_fgsm_training_is_the_step_worked_out_by_hand():
    model = dense()
    x, y = data()
    w, b = (v.astype("float64") for v in model.layers[-1].get_weights())
    rate, one_hot = 0.5, np.eye(4)[y]

    slope = (softmax(x @ w + b) - one_hot) @ w.T  # of the cross-entropy by x
    x_adv = np.clip(x + EPS * np.sign(slope), 0, 1)
    error = (softmax(x_adv @ w + b) - one_hot) / len(x)
    wanted = w - rate * x_adv.T @ error, b - rate * error.sum(axis=0)

    trainer = AdversarialTraining(model, FGSM(eps=EPS))
    trainer.compile(keras.optimizers.SGD(rate), loss())
    trainer.fit(x, y, batch_size=len(x), epochs=1, verbose=0)
    for found, value in zip(model.layers[-1].get_weights(), wanted, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-5)  # float32


def objective_by_hand(objective, clean, adv, y, k):
    """Value of each objective from its formula, in float64."""
    p, q, rows = softmax(clean), softmax(adv), np.arange(len(y))

    def ce(probabilities, labels=y):
        return -np.log(probabilities[rows, labels]).mean()

    kl = np.sum(p * np.log(p / q), axis=1)
    other = q.copy()
    other[rows, y] = 0
    boosted = -np.log(q[rows, y]) - np.log(1 - other.max(axis=1))
    return {
        Madry: lambda: ce(q),
        Mixed: lambda: 0.3 * ce(p) + 0.7 * ce(q),
        Trades: lambda: ce(p) + 2.0 * kl.mean(),
        Mart: lambda: (boosted + 3.0 * kl * (1 - p[rows, y])).mean(),
        Pairing: lambda: 0.5 * (ce(p) + ce(q)) + 0.5 * np.mean(np.square(clean - adv).mean(axis=1)),
        Reject: lambda: 0.5 * ce(p) + 0.5 * ce(q, np.full_like(y, k - 1)),
    }[type(objective)]()


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
def test_every_objective_is_its_formula(objective):
    rng = np.random.default_rng(2)
    k = 10
    clean, adv = rng.normal(size=(20, k)), rng.normal(size=(20, k))
    y = rng.integers(0, k - 1, 20)
    outputs = {"clean": clean.astype("float32"), "adversarial": adv.astype("float32")}
    batch = Batch(
        y=ops.convert_to_tensor(y.astype("int32")),
        clean=ops.convert_to_tensor(outputs["clean"]),
        adversarial=ops.convert_to_tensor(outputs["adversarial"]),
        task=lambda name, labels=None: loss()(y if labels is None else labels, outputs[name]),
        mean=ops.mean,
        penalty=0.0,
    )
    np.testing.assert_allclose(float(objective(batch)), objective_by_hand(objective, clean, adv, y, k), rtol=1e-4)


def test_the_divergence_is_zero_only_between_equals_and_never_negative():
    rng = np.random.default_rng(0)
    a, b = (ops.convert_to_tensor(rng.normal(size=(50, 5)).astype("float32")) for _ in range(2))
    assert np.all(ops.convert_to_numpy(kl_divergence(a, b)) > 0)
    np.testing.assert_allclose(ops.convert_to_numpy(kl_divergence(a, a)), 0.0, atol=1e-6)


# -- what it does to the model ---------------------------------------------------------------------


WITH_REJECT = [*OBJECTIVES[:5], Reject(3)]


@pytest.mark.parametrize("objective", WITH_REJECT, ids=lambda o: type(o).__name__)
def test_every_objective_trains_and_a_softmax_head_equals_logits(objective):
    x, y = data(64)
    results = []
    for head in (None, "softmax"):
        model = dense(activation=head)
        trainer = AdversarialTraining(model, PGD(eps=0.05, steps=3), objective, seed=3)
        trainer.compile(keras.optimizers.SGD(0.1), loss(head is None))
        before = [np.array(w) for w in model.get_weights()]
        trainer.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0)
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(before, model.get_weights(), strict=True))
        results.append(model.get_weights())
    if isinstance(objective, Pairing):
        return  # logits are known up to a constant only behind a softmax
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)  # two graphs, eight steps of float32


def test_adversarial_training_makes_a_model_more_robust(digits):
    x, y, x_test, y_test = digits
    robust = {}
    for name in ("plain", "adversarial"):
        keras.utils.set_random_seed(0)
        stack = [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
        model = keras.Sequential(stack)
        trained = model if name == "plain" else AdversarialTraining(model, PGD(eps=0.15, steps=5))
        trained.compile(keras.optimizers.Adam(3e-3), loss(), jit_compile=backend.jit())
        trained.fit(x, y, batch_size=50, epochs=6, verbose=0)
        robust[name] = 1 - PGD(eps=0.15, steps=20).run(model, x_test, y_test, progress=False).success.mean()
    assert robust["adversarial"] > robust["plain"] + 0.2


def test_the_attack_sees_batch_normalization_in_inference_mode_and_moves_it_once():
    x, y = data(32)
    noise = layers.BatchNormalization(momentum=0.9)
    for objective, images in ((Madry(), 1), (Mixed(), 2)):
        model = dense(noise=noise.__class__(momentum=0.9))
        trainer = AdversarialTraining(model, FGSM(eps=0.0), objective)  # eps 0: the images are the clean ones
        trainer.compile(keras.optimizers.SGD(0.0), loss())
        trainer.fit(x, y, batch_size=32, epochs=1, verbose=0)
        wanted = (1 - 0.9**images) * x.mean(axis=0)  # from 0, one update for each pass in training mode
        np.testing.assert_allclose(np.array(model.layers[0].moving_mean), wanted, rtol=1e-4)


def images_by_hand(model, x, y, scale=1.0, shift=0.0):
    """FGSM on a linear model of `scale * x + shift`, in float64."""
    w, b = (v.astype("float64") for v in model.layers[-1].get_weights())
    slope = (softmax((scale * x + shift) @ w + b) - np.eye(4)[y]) @ w.T * scale
    assert np.abs(slope).min() > 1e-6  # or float32 may see another sign
    return np.clip(x + EPS * np.sign(slope), 0, 1)


def test_dropout_is_off_while_the_attack_looks():
    x, y = data(16)
    model = dense(noise=layers.Dropout(0.9))
    trainer = AdversarialTraining(model, FGSM(eps=EPS))
    found = ops.convert_to_numpy(trainer.perturb(ops.convert_to_tensor(x), ops.convert_to_tensor(y)))
    np.testing.assert_allclose(found, images_by_hand(model, x, y), atol=1e-6)


def test_the_attack_uses_the_moving_statistics_of_batch_normalization():
    x, y = data(16)
    model = dense(noise=layers.BatchNormalization(epsilon=0.0))
    model.layers[0].moving_mean.assign(np.full(6, 0.9))  # far from those of the batch, 0.5 and 0.03
    model.layers[0].moving_variance.assign(np.full(6, 4.0))
    trainer = AdversarialTraining(model, FGSM(eps=EPS))
    found = ops.convert_to_numpy(trainer.perturb(ops.convert_to_tensor(x), ops.convert_to_tensor(y)))
    np.testing.assert_allclose(found, images_by_hand(model, x, y, scale=0.5, shift=-0.45), atol=1e-6)


def test_images_stay_in_the_ball_and_other_seeds_give_other_images():
    x, y = data(16)
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    found = []
    for seed in (0, 0, 1):
        trainer = AdversarialTraining(dense(), PGD(eps=EPS, steps=2), seed=seed)
        found.append(ops.convert_to_numpy(trainer.perturb(*tensors)))
        again = ops.convert_to_numpy(trainer.perturb(*tensors))
        assert np.abs(again - found[-1]).max() > 1e-3  # the next batch has starts of its own
    assert np.abs(np.stack(found) - x).max() <= EPS + 1e-6
    np.testing.assert_array_equal(found[0], found[1])
    assert np.abs(found[0] - found[2]).max() > 1e-3


def test_ensemble_training_attacks_the_sources_in_turn():
    x, y = data(16)
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    sources = (dense(seed=5), dense(seed=6))
    trainer = AdversarialTraining(dense(), FGSM(eps=EPS), source=sources)
    wanted = [
        ops.convert_to_numpy(FGSM(eps=EPS).perturb(m, *tensors, np.zeros(16, "int32"))).round(5).tobytes()
        for m in sources
    ]
    met = {ops.convert_to_numpy(trainer.perturb(*tensors)).round(5).tobytes() for _ in range(20)}
    assert met == set(wanted)


# -- a normal Keras citizen ------------------------------------------------------------------------


def fitted(y, *, x=None, **options):
    x = data(32)[0] if x is None else x
    model = dense()
    trainer = AdversarialTraining(model, FGSM(eps=EPS), Trades(1.0), seed=1)
    one_hot = y.ndim == 2 and y.shape[1] > 1
    criterion = keras.losses.CategoricalCrossentropy(from_logits=True) if one_hot else loss()
    trainer.compile(keras.optimizers.SGD(0.5), criterion, metrics=["accuracy"])
    history = trainer.fit(x, y, batch_size=16, epochs=2, shuffle=False, verbose=0, **options)
    return model.get_weights(), history.history


def test_labels_may_be_indices_a_column_or_one_hot_rows():
    _, y = data(32)
    wanted, history = fitted(y)
    assert set(history) == {"loss", "accuracy", "adversarial_accuracy"}
    for form in (y[:, None], np.eye(4, dtype="float32")[y], y.astype("float32")):
        for a, b in zip(fitted(form)[0], wanted, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


def test_sample_weights_and_class_weights_count():
    _, y = data(32)
    weights = np.ones(32, dtype="float32")
    without = fitted(y)[0]
    for a, b in zip(fitted(y, sample_weight=weights)[0], without, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    weights[y == 0] = 0.0
    by_sample, by_class = fitted(y, sample_weight=weights)[0], fitted(y, class_weight={0: 0.0, 1: 1, 2: 1, 3: 1})[0]
    for a, b in zip(by_sample, by_class, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(by_sample, without, strict=True))


@pytest.mark.parametrize("objective", WITH_REJECT, ids=lambda o: type(o).__name__)
def test_the_weighted_loss_is_the_formula_with_every_sample_weighted(objective):
    x, y = data(8)
    y = np.minimum(y, 2)  # class 3 is that of rejected images
    weights = np.random.default_rng(0).uniform(0, 2, 8).astype("float32")
    wanted = 0.0
    model = dense()
    w, b = (v.astype("float64") for v in model.layers[-1].get_weights())
    x_adv = np.clip(x + np.linspace(-EPS, EPS, 6), 0, 1).astype("float32")
    for i in range(8):
        one = slice(i, i + 1)
        wanted += weights[i] * objective_by_hand(objective, x[one] @ w + b, x_adv[one] @ w + b, y[one], 4) / 8
    for form in (weights, weights[:, None]):
        trainer = AdversarialTraining(dense(), PGD(eps=EPS, steps=1), objective)
        trainer.perturb = lambda x, y: x + np.linspace(-EPS, EPS, 6).astype("float32")
        trainer.compile(keras.optimizers.SGD(0.0), loss(), run_eagerly=True)
        found = trainer.fit(x, y, sample_weight=form, batch_size=8, epochs=1, verbose=0).history["loss"][0]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_rejected_images_keep_the_form_of_the_labels():
    _, y = data(32)
    results = []
    for form in (y, y[:, None], np.eye(4, dtype="float32")[y]):
        model = dense()
        trainer = AdversarialTraining(model, FGSM(eps=EPS), Reject(3))
        one_hot = form.ndim == 2 and form.shape[1] > 1
        trainer.compile("sgd", keras.losses.CategoricalCrossentropy(from_logits=True) if one_hot else loss())
        trainer.fit(data(32)[0], form, batch_size=16, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.skipif(backend.NAME != "tensorflow", reason="tf.data is TensorFlow's")
def test_a_tf_dataset_with_weights_and_a_ragged_last_batch_trains_as_arrays_do():
    import tensorflow as tf

    x, y = data(40)
    weights = np.random.default_rng(0).uniform(0, 2, 40).astype("float32")
    results = []
    for kind in ("arrays", "tf.data"):
        model = dense()
        trainer = AdversarialTraining(model, PGD(eps=EPS, steps=2), Trades(1.0), seed=1)
        trainer.compile(keras.optimizers.SGD(0.5), loss())
        if kind == "arrays":
            trainer.fit(x, y, sample_weight=weights, batch_size=16, epochs=2, shuffle=False, verbose=0)
        else:
            trainer.fit(tf.data.Dataset.from_tensor_slices((x, y, weights)).batch(16), epochs=2, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_evaluate_and_predict_are_those_of_the_model():
    x, y = data(32)
    model = dense()
    trainer = AdversarialTraining(model, FGSM(eps=EPS), Trades())
    trainer.compile("sgd", loss(), metrics=["accuracy"])
    model.compile("sgd", loss(), metrics=["accuracy"], jit_compile=backend.jit())
    np.testing.assert_allclose(trainer.evaluate(x, y, verbose=0), model.evaluate(x, y, verbose=0), rtol=1e-5)
    np.testing.assert_allclose(trainer.predict(x, verbose=0), model.predict(x, verbose=0), rtol=1e-5)


def test_callbacks_weight_averages_and_mixed_precision_work(tmp_path):
    x, y = data(64)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = keras.Sequential([keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(4)])
    finally:
        keras.config.set_dtype_policy("float32")
    trainer = AdversarialTraining(model, PGD(eps=EPS, steps=2), Trades())
    trainer.compile(keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), loss(), steps_per_execution=2)
    path = tmp_path / "best.weights.h5"
    callbacks = [
        keras.callbacks.ModelCheckpoint(path, save_weights_only=True, monitor="val_loss", save_best_only=True),
        keras.callbacks.EarlyStopping("val_loss", patience=0, min_delta=100.0),  # nothing improves by 100
    ]
    history = trainer.fit(x, y, validation_data=(x, y), batch_size=16, epochs=5, callbacks=callbacks, verbose=0)
    assert len(history.history["loss"]) == 2
    assert np.all(np.isfinite(history.history["loss"]))
    assert path.exists()


@pytest.mark.slow
def test_regularization_is_counted_once():
    x, y = data(32)
    for objective in WITH_REJECT:
        values = []
        for strength in (0.0, 0.1):
            model = dense(penalty=keras.regularizers.L2(strength))
            trainer = AdversarialTraining(model, FGSM(eps=EPS), objective)
            trainer.compile(keras.optimizers.SGD(0.0), loss())
            values.append(trainer.fit(x, y, batch_size=32, epochs=1, verbose=0).history["loss"][0])
        penalty = 0.1 * np.sum(np.square(dense().layers[-1].get_weights()[0]))
        np.testing.assert_allclose(values[1] - values[0], penalty, rtol=1e-3)


@pytest.mark.parametrize("attack", [PGD(eps=EPS, steps=5), APGD(eps=EPS, steps=5), MIM(eps=EPS, steps=5)])
def test_a_loop_finds_the_images_of_unrolled_steps(attack, monkeypatch):
    x, y = data(16)
    found = []
    for limit in (64, 4):
        monkeypatch.setattr(backend, "_LONG", limit)
        trainer = AdversarialTraining(dense(), attack)
        program = backend.compiled(trainer.perturb, trainer.view)
        found.append(ops.convert_to_numpy(program(ops.convert_to_tensor(x), ops.convert_to_tensor(y.astype("int32")))))
    assert np.abs(found[0] - x).max() > EPS / 2
    np.testing.assert_allclose(*found, atol=1e-6)  # float32


def test_a_thousand_steps_are_trained_on_in_seconds():
    x, y = data(16)
    trainer = AdversarialTraining(dense(), PGD(eps=EPS, steps=1000))
    trainer.compile("sgd", loss())
    begun = time.monotonic()
    assert np.isfinite(trainer.fit(x, y, batch_size=16, epochs=1, verbose=0).history["loss"][0])
    assert time.monotonic() - begun < 60  # unrolled it takes minutes to build


def test_the_names_tell_clean_from_adversarial_numbers_and_callbacks_find_those_they_know():
    x, y = data(64)
    model = dense()
    wrong = AdversarialTraining(model, PGD(eps=EPS, steps=5), Mixed())
    wrong.compile(keras.optimizers.SGD(0.0), loss(), metrics=["accuracy"])
    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=0, min_delta=9.0)
    options = {"validation_data": (x, y), "callbacks": [stop], "verbose": 0, "batch_size": 64}
    found = wrong.fit(x, y, epochs=3, **options).history
    assert set(found) == {"loss", "accuracy", "adversarial_accuracy", "val_loss", "val_accuracy"}
    assert len(found["loss"]) == 2
    labels = model.predict(x, verbose=0).argmax(axis=1)
    assert found["accuracy"] == found["val_accuracy"] == [pytest.approx(np.mean(labels == y))] * 2
    assert found["adversarial_accuracy"][0] < found["accuracy"][0]
    assert set(wrong.evaluate(x, y, verbose=0, return_dict=True)) == {"loss", "accuracy"}
    for objective, most in ((Madry(), 0.9), (Reject(3), 1.0)):  # rejected images withstand as well
        trainer = AdversarialTraining(model, FGSM(eps=0.0), objective)
        trainer.compile(keras.optimizers.SGD(0.0), loss())
        share = trainer.fit(x, y, batch_size=64, epochs=1, verbose=0).history["adversarial_accuracy"]
        right = (labels == y) | (labels == 3) if isinstance(objective, Reject) else labels == y
        assert share == [pytest.approx(right.mean())]
        assert share[0] < most


# -- what an attack may be blind to ----------------------------------------------------------------


def signs_of(model, x, y, epochs=1, rate=0.0, **options):
    """What a training warns of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = AdversarialTraining(model, FGSM(eps=EPS))
        trainer.compile(keras.optimizers.SGD(rate), loss())
        trainer.fit(x, y, epochs=epochs, batch_size=32, verbose=0, **options)
    return [str(w.message) for w in caught if w.category is UserWarning and w.filename == __file__]


def test_training_warns_once_of_zero_gradients_with_their_share():
    model, (x, _) = dense(), data(64)
    model.layers[-1].set_weights([1e5 * w for w in model.layers[-1].get_weights()])
    y = model.predict(x, verbose=0).argmax(axis=1)
    said = signs_of(model, x, y, epochs=3, validation_data=(x, y))
    assert len(said) == 1
    assert "for 100% of the images" in said[0]


def test_training_warns_of_probabilities_that_cannot_be_looked_through():
    class Squash(layers.Layer):
        def call(self, z):
            return ops.softmax(z)

    x, _ = data(64)
    model = keras.Sequential([dense(), Squash()])
    y = model.predict(x, verbose=0).argmax(axis=1)
    assert any("probabilities" in text for text in signs_of(model, x, y))


def test_training_warns_at_its_end_of_a_model_that_labels_few_clean_images_right():
    model, (x, _) = dense(), data(64)
    y = model.predict(x, verbose=0).argmax(axis=1)
    assert signs_of(model, x, y) == []
    said = signs_of(model, x, (y + 1) % 4, epochs=2)
    assert len(said) == 1
    assert "only 0.0% of the clean images right" in said[0]


# -- bad input -------------------------------------------------------------------------------------


def subclassed():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.last = layers.Dense(4)

        def call(self, x):
            return self.last(x)

    model = Own()
    model(np.zeros((1, 6), "float32"))
    return model


@dataclasses.dataclass(frozen=True, repr=False)
class FixedRadius(FGSM):
    """A step whose radius cannot change."""

    @property
    def parameters(self):
        return {}


@pytest.mark.parametrize("loss_of", ["binary_crossentropy", keras.losses.BinaryCrossentropy(from_logits=True)])
def test_several_labels_at_once_are_refused_by_the_head_or_by_the_loss(loss_of):
    base = dense(activation="sigmoid")
    nested = keras.Sequential([keras.Input((6,)), layers.Rescaling(1.0), base])
    for model in (base, nested):
        for make in (lambda m: AdversarialTraining(m, FGSM()), lambda m: FreeTraining(m, EPS, batch_size=8)):
            with pytest.raises(ValueError, match="a multi-label head of 4 sigmoids"):
                make(model)
    with pytest.raises(ValueError, match="for 4 outputs, which is for several labels at once"):
        AdversarialTraining(dense(), FGSM()).compile("sgd", loss_of)
    AdversarialTraining(dense(k=1), FGSM()).compile("sgd", loss_of)  # one output: two classes


def test_models_of_tokens_are_refused():
    for dtype in ("int32", "float32"):
        embedded = [layers.Embedding(20, 3), layers.GlobalAveragePooling1D(), layers.Dense(4)]
        model = keras.Sequential([keras.Input((6,), dtype=dtype), *embedded])
        nested = keras.Sequential([keras.Input((6,), dtype=dtype), model])
        for one in (model, nested):
            with pytest.raises(ValueError, match="begins with an Embedding of integer tokens"):
                AdversarialTraining(one, FGSM())


def test_bad_arguments_are_refused():
    model = dense()
    with pytest.raises(ValueError, match="`attack` must be a StepAttack or a tuple or list"):
        AdversarialTraining(model, "pgd")
    with pytest.raises(ValueError, match="`objective` must be an Objective"):
        AdversarialTraining(model, FGSM(), "trades")
    with pytest.raises(ValueError, match="`source` must be models of the inputs"):
        AdversarialTraining(model, FGSM(), source=(dense(d=7),))
    with pytest.raises(ValueError, match="`source` must be models of 4 classes"):
        AdversarialTraining(model, FGSM(), source=(dense(k=5),))
    with pytest.raises(ValueError, match="`radius` is for attacks that have an `eps`"):
        AdversarialTraining(model, FixedRadius(), radius=Radius.ramp(0.1, 4))
    for minimal in (CarliniWagner(), CarliniWagnerLinf(), DeepFool(), FMN()):
        with pytest.raises(
            ValueError, match=rf"strongest image in a ball, such as PGD. Received: {type(minimal).__name__}"
        ):
            AdversarialTraining(model, minimal)
        with pytest.raises(ValueError, match="strongest image in a ball"):
            AdversarialTraining(model, (FGSM(), minimal))
    with pytest.raises(ValueError, match="`attack` must have an `eps`"):
        Stage(1, CarliniWagner(steps=2))
    trainer = AdversarialTraining(model, FGSM(), Reject(4))
    trainer.compile("sgd", loss())
    with pytest.raises(ValueError, match="`label` must be an output of the model, below 4"):
        trainer.fit(*data(8), verbose=0)
    with pytest.raises(ValueError, match="must be a Sequential or functional model"):
        AdversarialTraining(subclassed(), FGSM())
    with pytest.raises(ValueError, match="must have a setting `loss`"):
        AdversarialTraining(model, FAB(eps=EPS, steps=2), Trades())
    with pytest.raises(ValueError, match="must be built"):
        AdversarialTraining(keras.Sequential([layers.Dense(3)]), FGSM())
    for objective, settings in ((Trades, {"beta": -1}), (Mixed, {"weight": 2}), (Mart, {"weight": float("nan")})):
        with pytest.raises(ValueError, match="must be a finite number"):
            objective(**settings)
    assert issubclass(Madry, Objective)
    assert dataclasses.is_dataclass(GradientAttack)
