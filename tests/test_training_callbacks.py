"""Callbacks of adversarial training: what they log, keep and undo; a killed training ends like one that was not."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import backend
from kerasdef.attacks import APGD, FGSM, PGD
from kerasdef.training import (
    AdversarialTraining,
    AttackStages,
    BestRobust,
    Distillation,
    Madry,
    Mixture,
    OverfittingGuard,
    Radius,
    Resume,
    RobustValidation,
    Stage,
    Trades,
)

EPS = 0.1


def data(n=64, d=6, k=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.2, 0.8, (n, d)).astype("float32"), rng.integers(0, k, n)


def dense(seed=0, dropout=0.0):
    normal = [keras.initializers.RandomNormal(seed=seed + i) for i in range(2)]
    stack = [keras.Input((6,)), layers.Dense(8, activation="relu", kernel_initializer=normal[0])]
    stack += [layers.BatchNormalization(), layers.Dropout(dropout, seed=3)] if dropout else []
    return keras.Sequential([*stack, layers.Dense(4, kernel_initializer=normal[1])])


def loss():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def trainer_of(model, attack=None, objective=None, **options):
    trainer = AdversarialTraining(model, attack or PGD(eps=EPS, steps=2), objective, **options)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, 50), use_ema=True, ema_momentum=0.8)
    trainer.compile(optimizer, loss(), metrics=["accuracy"])
    return trainer


class Keep(keras.callbacks.Callback):
    """Keeps the weights of a model at the end of every epoch."""

    def __init__(self, kept):
        super().__init__()
        self.kept, self.seen = kept, []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.kept.get_weights())


class Logs(keras.callbacks.Callback):
    """Puts given numbers where robust validation would."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def on_epoch_end(self, epoch, logs=None):
        logs["val_robust_accuracy"] = self.values[epoch]


class Stop(keras.callbacks.Callback):
    """Ends the process, as far as a test can: after some batches of an epoch."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.now = (epoch, batch), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.now, batch) == self.at:
            raise KeyboardInterrupt


# -- robust validation -----------------------------------------------------------------------------


def test_robust_validation_logs_the_accuracy_under_attack_for_other_callbacks():
    x, y = data()
    model = dense()
    trainer = trainer_of(model)
    attack = PGD(eps=EPS, steps=3)
    stop = keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=0, min_delta=2.0)
    watch = [RobustValidation(x, y, attack, seed=5), stop]
    history = trainer.fit(x, y, batch_size=16, epochs=4, callbacks=watch, verbose=0).history
    assert len(history["val_robust_accuracy"]) == 2  # nothing improves by 2, so patience ends after the second
    before = model.get_weights()
    trainer = AdversarialTraining(model, PGD(eps=EPS, steps=2))
    trainer.compile(keras.optimizers.SGD(0.1), loss())
    trainer.fit(x, y, batch_size=16, epochs=1, callbacks=watch[:1], verbose=0)
    wanted = 1 - attack.run(model, x, y, seed=5, progress=False).success.mean()
    assert trainer.history.history["val_robust_accuracy"] == [pytest.approx(wanted)]
    assert any(np.abs(a - b).max() > 0 for a, b in zip(before, model.get_weights(), strict=True))


def test_robust_validation_measures_a_single_step_too():
    x, y = data()
    model = dense()
    trainer = AdversarialTraining(model, PGD(eps=EPS, steps=2))
    trainer.compile("sgd", loss())
    watch = [RobustValidation(x, y, PGD(eps=EPS, steps=5), single=FGSM(eps=EPS), seed=5)]
    found = trainer.fit(x, y, batch_size=16, epochs=1, callbacks=watch, verbose=0).history
    for name, attack in (("robust", PGD(eps=EPS, steps=5)), ("single_step", FGSM(eps=EPS))):
        wanted = 1 - attack.run(model, x, y, seed=5, progress=False).success.mean()
        assert found[f"val_{name}_accuracy"] == [pytest.approx(wanted)]
    with pytest.raises(ValueError, match="`single` must be an Attack or None"):
        RobustValidation(x, y, FGSM(eps=EPS), single="fgsm")


def test_a_classifier_of_ones_own_is_measured_whole_whatever_its_attributes_are_called():
    x, y = data()
    model = dense()
    model.model = "a part of it"
    model.compile("sgd", loss(), jit_compile=backend.jit())
    found = model.fit(x, y, epochs=1, callbacks=[RobustValidation(x, y, FGSM(eps=EPS)), BestRobust()], verbose=0)
    assert 0 <= found.history["val_robust_accuracy"][0] <= 1


def test_robust_validation_warns_once_of_what_its_attack_is_blind_to():
    x, _ = data()
    model = dense()
    model.layers[-1].set_weights([1e7 * w for w in model.layers[-1].get_weights()])
    y = model.predict(x, verbose=0).argmax(axis=1)
    model.compile(keras.optimizers.SGD(0.0), loss(), jit_compile=backend.jit())
    for labels, words in ((y, "exactly zero"), ((y + 1) % 4, "only 0.0% of the clean images right")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(x, y, epochs=2, callbacks=[RobustValidation(x, labels, FGSM(eps=EPS))], verbose=0)
        said = [str(w.message) for w in caught if w.filename == __file__]
        assert len(said) == 1
        assert words in said[0]


# -- guard and best weights ------------------------------------------------------------------------


def test_the_guard_goes_back_to_the_last_good_epoch_and_takes_more_steps():
    x, y = data()
    model = dense()
    trainer = trainer_of(model, PGD(eps=EPS, steps=1, relative_step=1.25))
    kept = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            moments = [v for v in trainer.optimizer.variables if "iteration" not in v.path]
            kept.append([*model.get_weights(), *(ops.convert_to_numpy(v) for v in moments)])

    guard = OverfittingGuard(drop=0.2)
    watch = [Logs([0.5, 0.6, 0.1, 0.55]), Keep(), guard, Keep()]
    trainer.fit(x, y, batch_size=16, epochs=4, callbacks=watch, verbose=0)
    before, after, at_collapse, undone = kept[2], kept[3], kept[4], kept[5]
    for a, b in zip(after, undone, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.abs(a - b).max() > 0 for a, b in zip(at_collapse, undone, strict=True))
    assert len(before) == len(after)
    assert guard.collapses == [2]
    assert trainer.attack.steps == guard.steps == 2
    assert trainer.attack.relative_step == 2.5


@pytest.mark.slow
@pytest.mark.parametrize("scaled", [False, True])
def test_schedules_end_where_training_ends_though_the_guard_went_back(scaled):
    x, y = data()
    trainer = AdversarialTraining(dense(), PGD(eps=EPS, steps=1), radius=Radius.ramp(EPS, 16))
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(0.02, 16))
    trainer.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, loss())
    guard = OverfittingGuard()
    watch = [Logs([0.5, 0.6, 0.1, 0.55]), guard]
    trainer.fit(x, y, batch_size=16, epochs=4, callbacks=watch, verbose=0)
    assert guard.collapses == [2]
    assert int(ops.convert_to_numpy(optimizer.iterations)) == 16
    assert float(ops.convert_to_numpy(optimizer.learning_rate)) == pytest.approx(0.0, abs=1e-6)
    assert float(ops.convert_to_numpy(trainer.radius.at(trainer.batches))) == pytest.approx(EPS)


@pytest.mark.slow  # that the guard acts on a collapse is tested below
def test_single_step_training_overfits_to_its_step_and_less_so_with_the_guard(digits):
    """One step without a random start at a large radius: the overfitting is real, not simulated."""
    x, y, x_test, y_test = digits
    robust = {}
    for guarded in (False, True):
        glorot = [keras.initializers.GlorotUniform(seed=i) for i in range(3)]
        model = keras.Sequential(
            [
                keras.Input((8, 8, 1)),
                layers.Conv2D(16, 3, activation="relu", kernel_initializer=glorot[0]),
                layers.Flatten(),
                layers.Dense(128, activation="relu", kernel_initializer=glorot[1]),
                layers.Dense(10, kernel_initializer=glorot[2]),
            ]
        )
        attack = PGD(eps=0.25, steps=1, relative_step=1.0, random_start=False)
        trainer = AdversarialTraining(model, attack, Madry())
        trainer.compile(keras.optimizers.Adam(3e-3), loss(), jit_compile=backend.jit())
        watch = [RobustValidation(x_test, y_test, PGD(eps=0.25, steps=10), single=FGSM(eps=0.25))]
        watch += [OverfittingGuard(gap=0.1, start=2)] if guarded else []
        found = trainer.fit(x, y, batch_size=50, epochs=15, verbose=0, callbacks=watch, shuffle=False).history
        robust[guarded] = found["val_robust_accuracy"][-1]
        if guarded:
            assert watch[1].raises
            assert trainer.attack.steps > 1
        else:
            assert found["val_single_step_accuracy"][-1] > robust[False] + 0.15
    assert robust[True] > robust[False] + 0.08


def test_the_guard_takes_more_steps_where_one_step_runs_away_and_goes_on_from_there():
    x, y = data()
    model = dense()
    trainer = trainer_of(model, PGD(eps=EPS, steps=1))
    seen = []

    class Single(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["val_single_step_accuracy"] = [0.9, 0.9, 0.65, 0.9, 0.9][epoch]
            seen.append((trainer.attack.steps, model.get_weights()))

    guard = OverfittingGuard(gap=0.1, most=3, start=1)
    watch = [Logs([0.5, 0.6, 0.6, 0.6, 0.6]), Single(), guard]
    trainer.fit(x, y, batch_size=16, epochs=5, callbacks=watch, verbose=0)
    assert guard.raises == [1, 3]  # not before the start, not without a gap, not above the most
    assert [steps for steps, _ in seen] == [1, 1, 2, 2, 3]
    assert guard.collapses == []


def test_best_robust_puts_the_last_weights_back_where_no_epoch_counted():
    x, y = data()
    model = dense()
    keep = Keep(model)
    trainer = trainer_of(model)  # averages its weights
    trainer.compile(keras.optimizers.SGD(0.1, use_ema=True), loss())
    stop = keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=0)
    best = BestRobust(start=9)
    watch = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True), Logs([0.9, 0.8, 0.7, 0.6]), keep, best, stop]
    trainer.fit(x, y, batch_size=16, epochs=4, callbacks=watch, verbose=0)
    assert (len(keep.seen), best.epoch) == (2, None)
    for a, b in zip(model.get_weights(), keep.seen[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_best_robust_puts_the_weights_of_the_best_epoch_back():
    x, y = data()
    model = dense()
    keep = Keep(model)
    best = BestRobust(start=1)
    watch = [Logs([0.9, 0.3, 0.5, 0.4]), keep, best]
    trainer_of(model).fit(x, y, batch_size=16, epochs=4, callbacks=watch, verbose=0)
    assert (best.epoch, best.best) == (2, 0.5)  # 0.9 is before the start
    for a, b in zip(model.get_weights(), keep.seen[2], strict=True):
        np.testing.assert_array_equal(a, b)


# -- stages ----------------------------------------------------------------------------------------


def test_stages_change_attack_and_cost_as_their_epochs_begin():
    x, y = data()
    stages = (Stage(1, APGD(eps=0.05, steps=2)), Stage(2, APGD(eps=EPS, steps=4)))
    trainer = trainer_of(dense(), stages[0].attack, Trades(1.0))
    seen = []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append((trainer.attack.steps, trainer.gradients_per_image))

    trainer.fit(x, y, batch_size=16, epochs=3, callbacks=[AttackStages(stages), See()], verbose=0)
    # a run of APGD takes one gradient more than its steps; TRADES trains on clean and attacked images
    assert seen == [(2, 5.0), (4, 7.0), (4, 7.0)]


def test_the_radius_grows_with_the_batches_trained_on():
    x, y = data(16)
    trainer = trainer_of(dense(), FGSM(eps=9.0), radius=Radius(((0, 0.0), (4, 0.2))))
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    for batches, wanted in ((0, 0.0), (1, 0.05), (2, 0.1), (9, 0.2)):
        trainer.batches.assign(batches)
        found = np.abs(ops.convert_to_numpy(trainer.perturb(*tensors)) - x).max()
        assert found == pytest.approx(wanted, abs=1e-6)
    trainer.batches.assign(0)
    trainer.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert int(ops.convert_to_numpy(trainer.batches)) == 4


# -- resume ----------------------------------------------------------------------------------------


def run(path=None, stop=None, epochs=4):
    """A training with everything that has a state: dropout, averages, a guard, a schedule, best weights."""
    x, y = data(80)
    model = dense(dropout=0.3)
    trainer = trainer_of(model, PGD(eps=EPS, steps=1), Trades(1.0), radius=Radius.ramp(EPS, 8), seed=4)
    mixture = Mixture([(x, y)], batch_size=16, seed=7)
    watch = [keras.callbacks.SwapEMAWeights(swap_on_epoch=True), RobustValidation(x, y, FGSM(eps=EPS))]
    watch += [Logs([0.9, 0.2, 0.8, 0.7]), OverfittingGuard(), BestRobust()]  # a collapse in the second epoch
    watch += [Resume(path, mixture, watch, seconds=1e6)] if path else []  # at the ends of epochs only
    watch += [stop] if stop else []
    history = trainer.fit(mixture, epochs=epochs, callbacks=watch, shuffle=False, verbose=0)
    return [*model.get_weights(), *(ops.convert_to_numpy(v) for v in trainer.optimizer.variables)], history.history


@pytest.mark.slow
def test_a_training_killed_anywhere_again_and_again_ends_with_the_same_weights(tmp_path):
    wanted, history = run()
    path = tmp_path / "state.npz"
    for at in ((0, 2), (1, 0), (2, 3), (3, 4)):
        with pytest.raises(KeyboardInterrupt):
            run(path, Stop(*at))
        assert path.exists() == (at[0] > 0)
    found, again = run(path)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)
    assert again == history


def test_early_stopping_goes_on_counting_after_a_kill(tmp_path):
    x, y = data(80)

    def run(path, stop=None):
        model = dense()
        trainer = trainer_of(model, seed=4)
        mixture = Mixture([(x, y)], batch_size=16, seed=7)
        early = keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=2, restore_best_weights=True)
        watch = [Logs([0.5, 0.9, 0.6, 0.7, 0.95, 0.95]), early]
        watch.append(Resume(path, mixture, watch))
        watch += [stop] if stop else []
        history = trainer.fit(mixture, epochs=6, callbacks=watch, shuffle=False, verbose=0).history
        return model.get_weights(), len(history["loss"])

    wanted, epochs = run(tmp_path / "whole.npz")
    assert epochs == 4  # the best is in the second epoch, then two without a better one
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.npz", Stop(2, 3))
    found, again = run(tmp_path / "killed.npz")
    assert again == epochs
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_a_fit_that_was_interrupted_goes_on_in_the_same_process_with_the_same_order(tmp_path):
    x, y = data(80)
    results = []
    for interrupted in (False, True):
        model = dense()
        trainer = trainer_of(model, seed=4)
        mixture = Mixture([(x, y)], batch_size=16, seed=7)
        watch = [Resume(tmp_path / f"{interrupted}.npz", mixture)]
        if interrupted:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit(mixture, epochs=4, callbacks=[*watch, Stop(2, 1)], shuffle=False, verbose=0)
        trainer.fit(mixture, epochs=4, callbacks=watch, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_state_of_another_model_is_refused(tmp_path):
    x, y = data()
    path = tmp_path / "state.npz"
    trainer_of(dense()).fit(x, y, batch_size=16, epochs=2, callbacks=[Resume(path)], verbose=0)
    other = keras.Sequential([keras.Input((6,)), layers.Dense(4)])
    with pytest.raises(ValueError, match="of a training of the same model"):
        trainer_of(other).fit(x, y, epochs=2, callbacks=[Resume(path)], verbose=0)


# -- weights that are moved, distillation ----------------------------------------------------------


def test_weight_perturbations_are_the_step_worked_out_by_hand():
    x, y = data(16)
    rng = np.random.default_rng(0)
    w = rng.normal(size=(6, 4))
    model = keras.Sequential([keras.Input((6,)), layers.Dense(4, use_bias=False)])
    model.set_weights([w.astype("float32")])

    def slope(weights):  # of the mean cross-entropy by the weights; eps 0 leaves the images as they are
        z = np.exp(x @ weights)
        return x.T @ (z / z.sum(axis=1, keepdims=True) - np.eye(4)[y]) / len(x)

    grad = slope(w)
    moved = w + 0.3 * np.linalg.norm(w) * grad / np.linalg.norm(grad)
    trainer = AdversarialTraining(model, FGSM(eps=0.0), Madry(), awp=0.3)
    trainer.compile(keras.optimizers.SGD(0.5), loss())
    trainer.fit(x, y, batch_size=16, epochs=1, verbose=0)
    np.testing.assert_allclose(model.get_weights()[0], w - 0.5 * slope(moved), atol=1e-5)  # float32
    assert trainer.gradients_per_image == 1 + 2


def test_weight_perturbations_let_batch_normalization_move_and_nothing_else_change():
    x, y = data(32)
    model = dense(dropout=0.2)
    trainer = AdversarialTraining(model, FGSM(eps=0.0), Trades(1.0), awp=0.01)
    trainer.compile(keras.optimizers.SGD(0.0), loss())
    before = {v.path: ops.convert_to_numpy(v) for v in model.variables}
    trainer.fit(x, y, batch_size=32, epochs=1, verbose=0)
    for v in model.variables:
        moved = np.abs(ops.convert_to_numpy(v).astype("float64") - before[v.path]).max() > 0
        assert moved == ("moving" in v.path or "seed" in v.path), v.path


@pytest.mark.slow
def test_weight_perturbations_move_batch_normalization_as_often_as_training_without_them():
    x, y = data(32)
    found = []
    for awp in (0.0, 0.01):
        model = keras.Sequential([keras.Input((6,)), layers.BatchNormalization(momentum=0.9), layers.Dense(4)])
        trainer = AdversarialTraining(model, PGD(eps=0.0, steps=1), Trades(1.0), awp=awp)  # eps 0: the clean images
        trainer.compile(keras.optimizers.SGD(0.0), loss())
        trainer.fit(x, y, batch_size=32, epochs=1, verbose=0)
        found.append(np.array(model.layers[0].moving_mean))
    np.testing.assert_allclose(found[0], (1 - 0.9**2) * x.mean(axis=0), rtol=1e-4)  # clean and adversarial
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)


def test_one_of_several_attacks_is_drawn_for_every_batch():
    x, y = data(16)
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    trainer = AdversarialTraining(dense(), (FGSM(eps=0.05), FGSM(eps=0.1)))
    sizes = {round(float(np.abs(ops.convert_to_numpy(trainer.perturb(*tensors)) - x).max()), 3) for _ in range(20)}
    assert sizes == {0.05, 0.1}
    assert trainer.gradients_per_image == 2


def test_models_to_attack_are_not_trained():
    x, y = data(32)
    model, other = dense(), dense(seed=5)
    trainer = AdversarialTraining(model, FGSM(eps=EPS), source=(other, model))
    trainer.compile(keras.optimizers.Adam(0.1, weight_decay=0.1), loss())
    before = other.get_weights()
    trainer.fit(x, y, batch_size=8, epochs=1, verbose=0)
    assert len(trainer.trainable_variables) == len(model.trainable_variables)
    for a, b in zip(other.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_distillation_learns_the_teachers_probabilities_at_the_temperature():
    x, y = data(32)
    teacher, model = dense(seed=5), dense()
    temperature = 3.0
    z, t = model.predict(x, verbose=0).astype("float64"), teacher.predict(x, verbose=0).astype("float64")

    def log_softmax(v):
        return v - np.log(np.exp(v).sum(axis=1, keepdims=True))

    wanted = -np.mean(np.sum(np.exp(log_softmax(t / temperature)) * log_softmax(z / temperature), axis=1))
    for source, value in ((teacher, wanted), (None, -np.mean(log_softmax(z / temperature)[np.arange(32), y]))):
        trainer = Distillation(model, temperature, source)
        trainer.compile(keras.optimizers.SGD(0.0), loss())
        found = trainer.fit(x, y, batch_size=32, epochs=1, verbose=0).history["loss"][0]
        assert found == pytest.approx(value, rel=1e-4)
        assert trainer.evaluate(x, y, verbose=0) == pytest.approx(-np.mean(log_softmax(z)[np.arange(32), y]), rel=1e-4)


# -- bad input -------------------------------------------------------------------------------------


def test_bad_arguments_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="`attack` must be an Attack"):
        RobustValidation(x, y, "pgd")
    with pytest.raises(ValueError, match="put RobustValidation before it"):
        trainer_of(dense()).fit(x, y, callbacks=[BestRobust()], verbose=0)
    with pytest.raises(ValueError, match="put RobustValidation before it"):
        trainer_of(dense()).fit(x, y, callbacks=[OverfittingGuard()], verbose=0)
    with pytest.raises(ValueError, match="is for an AdversarialTraining with PGD"):
        trainer_of(dense(), APGD(eps=EPS, steps=2)).fit(x, y, callbacks=[OverfittingGuard()], verbose=0)
    with pytest.raises(ValueError, match="`stages` must be one or more Stage"):
        AttackStages([])
    with pytest.raises(ValueError, match="must give logits"):
        Distillation(keras.Sequential([keras.Input((6,)), layers.Dense(4, activation="softmax")]))
    with pytest.raises(ValueError, match="`radius` must be a Radius"):
        AdversarialTraining(dense(), FGSM(), radius=0.3)
    with pytest.raises(ValueError, match="`awp` must be a finite number"):
        AdversarialTraining(dense(), FGSM(), awp=-1)
