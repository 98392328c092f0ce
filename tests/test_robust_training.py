"""Robust training on a few hundred digits: what each method returns, what it repeats, what it refuses."""

import dataclasses
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from typing import ClassVar

import keras
import numpy as np
import pandas as pd
import pytest
from helpers import Commands
from keras import layers

import kerasdef
import kerasdef.recipes.robust.report as robust_report
import kerasdef.recipes.robust.training as recipe
from kerasdef import models
from kerasdef.attacks import FGSM, AutoAttack
from kerasdef.attacks.sequence import SequenceResult
from kerasdef.datasets import as_dataset
from kerasdef.evaluation import Outcome
from kerasdef.models import networks
from kerasdef.recipes.robust.methods import METHODS as DOES
from kerasdef.recipes.robust.methods import method_of
from kerasdef.recipes.robust.settings import METHODS, RobustSettings
from kerasdef.reporting import Report
from kerasdef.settings import info
from kerasdef.training import AdversarialTraining

EPS = 0.1
SIZES = {"train": 256, "valid": 64}  # of the 320 digits: four batches of 64 and no part of one
SERVE = """
import sys
sys.modules["kerasdef"] = sys.modules["keras"] = None  # importing them raises
import numpy as np
import pandas as pd
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
found = loaded.signatures["serving_default"](images=tf.constant(np.load(sys.argv[2])))
np.savez(sys.argv[3], **{k: v.numpy() for k, v in found.items()})
"""


def glorot(seed):
    return keras.initializers.GlorotUniform(seed=seed)


def tiny(input_shape, outputs, *, seed=0):
    stack = [
        keras.Input(input_shape),
        layers.Flatten(),
        layers.Dense(32, activation="relu", kernel_initializer=glorot(2 * seed)),
        layers.Dense(outputs, kernel_initializer=glorot(2 * seed + 1)),
    ]
    return keras.Sequential(stack)


def tanh(input_shape, outputs, *, seed=0):
    """The same weights with another activation."""
    model = tiny(input_shape, outputs, seed=seed)
    model.layers[1].activation = keras.activations.tanh
    return model


def settings(**changes):
    common = {
        "network": tiny,
        "eps": EPS,
        "epochs": 2,
        "batch_size": 64,
        "learning_rate": 0.02,
        "valid_size": 0.2,
        "n_test": 32,
        "autoattack": False,
        "progress": False,
    }
    return {k: v for k, v in (common | changes).items() if v is not None}


def weights(model):
    return [np.array(w) for w in model.get_weights()]


def same(found, wanted):
    return all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def contents(folder):
    """Bytes of every file."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Watch(keras.callbacks.Callback):
    """Counts fits and epochs; raises KeyboardInterrupt when an epoch begins, counted from 0."""

    def __init__(self, stop_at=None):
        super().__init__()
        self.stop_at, self.fits, self.epochs = stop_at, 0, 0

    def get_config(self):
        return {}  # where it stops does not change what is trained

    def on_train_begin(self, logs=None):
        self.fits += 1

    def on_epoch_begin(self, epoch, logs=None):
        self.epochs += 1
        if epoch == self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def lean(monkeypatch):
    """Runs that are about training: one attack judges what was trained."""
    monkeypatch.setattr(robust_report, "attacks_of", lambda eps, norm, bounds: {"fgsm": FGSM(eps=eps, bounds=bounds)})


@pytest.fixture(scope="module")
def data(digits):
    """Digits as (x_train, y_train, x_test, y_test)."""
    x, y, x_test, y_test = digits
    return x[:320], y[:320], x_test[:100], y_test[:100]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    """One run with a folder: (result, folder)."""
    folder = tmp_path_factory.mktemp("robust") / "run"
    return kerasdef.train_trades(data, **settings(out=folder, steps=3, callbacks=[Watch()])), folder


# -- every method -------------------------------------------------------------------------------------------------


def test_every_method_has_settings_what_it_does_and_a_function():
    assert set(DOES) == set(METHODS.values())
    for name in METHODS:
        function = getattr(kerasdef, f"train_{name}")
        assert function.__name__ == f"train_{name}"
        assert f"train_{name}" in dir(kerasdef)


@pytest.mark.parametrize("name", METHODS)
def test_the_function_of_a_method_shows_and_explains_the_common_and_its_own_settings(name):
    function = getattr(kerasdef, f"train_{name}")
    found = inspect.signature(function).parameters
    assert next(iter(found)) == "data"
    for cls in (RobustSettings, METHODS[name]):
        for field in dataclasses.fields(cls):
            assert found[field.name].default == field.default
            assert f"    {field.name}: {info(field).help[:40]}" in inspect.getdoc(function)
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in found.values())
    assert METHODS[name].summary() in function.__doc__


def test_the_function_of_all_methods_shows_the_common_settings():
    found = inspect.signature(kerasdef.train_robust).parameters
    assert list(found)[:2] == ["method", "data"]
    assert {f.name for f in dataclasses.fields(RobustSettings)} <= set(found)


FEW = {
    "pgd": {"steps": 2},
    "trades": {"steps": 2},
    "mart": {"steps": 2},
    "parseval": {"network": None, "learning_rate": 5e-3},
    "denoising": {"network": None, "learning_rate": 2e-3, "steps": 1},
    "free": {"replays": 2},
    "ensemble": {"sources": ("target_dnn",)},
    "multistage": {"epochs": 3},
    "distillation": {"temperature": 2.0, "epochs": 10, "learning_rate": 5e-3},
}  # the networks of two of them are the method


OFTEN = ("standard", "pgd", "free")  # the others run with `slow`; what most do is tested below too
EACH = {"standard": 1, "pgd": 2 + 1, "free": 2, "distillation": 1 + 1}  # gradients of an image in an epoch


@pytest.mark.parametrize("method", [m if m in OFTEN else pytest.param(m, marks=pytest.mark.slow) for m in METHODS])
def test_every_method_trains_and_is_judged_by_attacks_that_know_it(method, data):
    result = kerasdef.train_robust(method, data, **settings(**FEW.get(method, {})))
    report = result.report
    assert report.models == [method]
    assert report.attacks("adaptive", method) == ["fgsm", "pgd", "cw"]
    assert all(len(report.outcome(method, a, "adaptive")) == 32 for a in ("clean", "fgsm", "pgd", "cw"))
    assert report.outcome(method, "pgd", "adaptive").distance.max() <= EPS + 1e-6  # float32
    assert {report.metrics(method, a, "adaptive")["norm"] for a in ("fgsm", "pgd", "cw")} == {"Linf"}
    assert report.metrics(method, "pgd", "adaptive")["radius_max"] == pytest.approx(EPS)
    for name in ("loss", "val_loss", "val_robust_accuracy"):
        assert np.all(np.isfinite(result.history[name]))
        assert len(result.history[name]) == FEW.get(method, {}).get("epochs", 2)
    # those of the attack, one for each pass of the step, and the teacher's, in whole epochs
    if method in EACH:
        assert result.cost["gradients"] == SIZES["train"] * len(result.history["loss"]) * EACH[method]
    assert result.cost["gradients"] >= 2 * SIZES["train"]
    assert result.cost["seconds"] > 0
    assert result.cost["peak_bytes"] > 1e6
    assert result.score(*data[2:]) > 0.25  # chance: 0.1


LONGER = {"eps": 0.15, "epochs": 12, "n_test": 100}
ROBUST = ("pgd", "trades", "mart", "fast", "free", "bilateral", "ensemble", "multistage")


@pytest.fixture(scope="module")
def undefended(data):
    """Share of test images that a plain classifier gets right under PGD."""
    result = kerasdef.train_standard(data, **settings(**LONGER))
    return result.report.metrics("standard", "pgd", "adaptive")["robust_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ROBUST)
def test_what_a_method_trains_withstands_more_than_a_plain_classifier(method, data, undefended):
    result = kerasdef.train_robust(method, data, **settings(**FEW.get(method, {}) | LONGER))
    assert result.report.metrics(method, "pgd", "adaptive")["robust_accuracy"] > undefended + 0.1


# -- the same again -----------------------------------------------------------------------------------------------


def test_another_seed_gives_other_weights_and_another_report(run, data):
    result, _ = run  # that the same seed gives the same: see the run that was interrupted
    other = kerasdef.train_trades(data, **settings(steps=3, callbacks=[Watch()], seed=1))
    assert not same(weights(other.model), weights(result.model))
    assert other.report != result.report


@pytest.mark.usefixtures("lean")
def test_the_weights_are_those_of_the_epoch_that_withstood_most(data):
    found = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append((logs["val_robust_accuracy"], weights(self.model.model)))

    result = kerasdef.train_pgd(data, **settings(epochs=4, steps=2, callbacks=[Keep()]))
    counted = found[1:]  # the radius grows over the first fifth of the epochs
    best = max(range(3), key=lambda i: (counted[i][0], i))
    assert same(weights(result.model), counted[best][1])
    assert result.report.notes[-1] == f"The weights are those of epoch {best + 2} of 4."


@pytest.mark.slow
def test_what_autoattack_doubts_stands_in_the_report(data, monkeypatch):
    def doubtful(self, model, x, y, **options):
        table = pd.DataFrame([{"attack": "apgd-ce", "attacked": len(x), "broken": 0, "seconds": 0.0}])
        flags, none = {"hidden": "the model hides its gradients"}, np.zeros(len(x), dtype="int64")
        return SequenceResult(x, none > 0, none, ("apgd-ce",), none - 1, table, flags)

    monkeypatch.setattr(AutoAttack, "run", doubtful)
    report = kerasdef.train_fast(data, **settings(autoattack=True, epochs=1, n_test=8)).report
    assert report.flags == ["the model hides its gradients"]


@pytest.mark.slow
@pytest.mark.usefixtures("few_queries")
def test_autoattack_is_in_the_report_and_leaves_no_more_than_pgd(data, tmp_path):
    options = settings(steps=3, epochs=4, autoattack=True, n_test=20)
    result = kerasdef.train_pgd(data, **options, out=tmp_path / "run")
    assert list(result.report.attacks("adaptive")) == ["fgsm", "pgd", "cw", "autoattack"]
    left = {a: result.report.metrics("pgd", a, "adaptive")["robust_accuracy"] for a in ("pgd", "autoattack")}
    assert left["autoattack"] <= left["pgd"] + 1 / 20  # one image may depend on the random start
    again = kerasdef.train_pgd(data, **options, out=tmp_path / "run")
    assert again.report.metrics("pgd", "autoattack", "adaptive")["robust_accuracy"] == left["autoattack"]


# -- the folder ---------------------------------------------------------------------------------------------------


def test_the_folder_holds_the_report_and_two_exports(run):
    result, folder = run
    assert result.out == folder
    assert all(path.exists() for path in result.files.values())
    wanted = {"model", "saved_model", "report.json", "report.html", "report.csv"}
    assert wanted <= set(result.files)
    assert (folder / "model.keras").is_file()
    assert not (folder / "unfinished" / "model" / "training.npz").exists()  # the state of an unfinished training
    assert not list(folder.rglob(".*"))  # nothing half written is left
    assert Report.load(folder) == result.report
    assert Report.load(folder).costs == result.report.costs == {"trades": dict(result.cost)}


def test_the_saved_model_decides_as_the_classifier_without_keras_and_kerasdef(run, data, tmp_path):
    result, folder = run
    np.save(tmp_path / "x.npy", data[2])
    command = [sys.executable, "-c", SERVE, folder / "saved_model", tmp_path / "x.npy", tmp_path / "found.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "found.npz") as found:
        assert sorted(found.files) == ["is_valid", "label", "probabilities"]
        assert found["is_valid"].all()
        np.testing.assert_array_equal(found["label"], result.predict(data[2]))
        np.testing.assert_array_equal(found["probabilities"].argmax(axis=1), found["label"])
        np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-5)  # float32


def test_a_finished_run_is_read_and_not_repeated(run, data):
    result, folder = run
    before, watch = contents(folder / "pieces"), Watch()
    again = kerasdef.train_trades(data, **settings(out=folder, steps=3, callbacks=[watch]))
    assert watch.fits == 0
    assert contents(folder / "pieces") == before
    assert again.report == result.report
    assert again.cost == result.cost
    assert same(weights(again.model), weights(result.model))


def test_another_number_of_test_images_judges_again_and_trains_nothing(run, data, tmp_path):
    result, folder = run
    shutil.copytree(folder, tmp_path / "run")
    watch = Watch()
    other = kerasdef.train_trades(data, **settings(out=tmp_path / "run", steps=3, callbacks=[watch], n_test=20))
    assert watch.fits == 0
    assert len(other.report.outcome("trades", "pgd", "adaptive")) == 20
    assert same(weights(other.model), weights(result.model))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 1}, r"seed=1 \(there: 0\)"),
        ({"eps": 0.2}, r"eps=0.2 \(there: 0.1\)"),
        ({"steps": 4}, "method settings/steps=4"),
        ({"callbacks": []}, r"callbacks=\[\]"),
        ({"network": "target_dnn"}, "network="),
        ({"network": tanh}, "architecture="),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_overwritten(run, data, changes, named):
    before = contents(run[1])
    with pytest.raises(ValueError, match="`out` must be a new folder") as error:
        kerasdef.train_trades(data, **settings(**({"steps": 3, "callbacks": [Watch()]} | changes), out=run[1]))
    assert re.search(named, str(error.value))
    assert contents(run[1]) == before


def test_another_method_and_other_images_are_refused_in_the_same_folder(run, data):
    with pytest.raises(ValueError, match="method"):
        kerasdef.train_pgd(data, **settings(out=run[1], steps=3, callbacks=[Watch()]))
    x, y, x_test, y_test = data
    with pytest.raises(ValueError, match="fingerprint"):
        kerasdef.train_trades((1 - x, y, x_test, y_test), **settings(out=run[1], steps=3, callbacks=[Watch()]))


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on_and_ends_as_one_of_the_same_seed_that_was_not(run, data, tmp_path):
    result, _ = run
    stop = Watch(stop_at=1)
    with pytest.raises(KeyboardInterrupt):
        kerasdef.train_trades(data, **settings(out=tmp_path / "run", steps=3, callbacks=[stop]))
    assert not (tmp_path / "run" / "report.json").exists()
    watch = Watch()
    again = kerasdef.train_trades(data, **settings(out=tmp_path / "run", steps=3, callbacks=[watch]))
    assert same(weights(again.model), weights(result.model))
    assert again.report == result.report
    assert again.history == result.history


# -- a real kill --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_process_that_was_killed_and_started_again_ends_with_the_same_weights(tmp_path):
    words = "train fast --dataset digits --network target_dnn --n-train 400 --epochs 8 --batch-size 64 --n-test 16"
    folder = tmp_path / "run"
    words = [*words.split(), "--no-autoattack", "--out", folder]
    state = folder / "unfinished" / "model" / "training.npz"
    commands = Commands()
    process = commands.start(*words)
    while not state.exists() and not commands.ended(0.002):
        pass
    os.kill(process, signal.SIGKILL)
    assert commands.status() == -signal.SIGKILL
    with np.load(state) as kept:
        assert 0 < json.loads(str(kept["meta"]))["epoch"] < 8
    assert not (folder / "pieces" / "model.npz").exists()
    options = {
        "network": "target_dnn",
        "n_train": 400,
        "epochs": 8,
        "batch_size": 64,
        "n_test": 16,
        "autoattack": False,
    }
    whole = kerasdef.train_fast("digits", **options, progress=False)
    commands.run(*words)
    commands.close()
    with np.load(folder / "pieces" / "model.npz") as kept:
        history = json.loads(str(kept["meta"]))["history"]
        found = [kept[name] for name in sorted(kept.files) if name.startswith("w")]
    assert same(found, [keras.ops.convert_to_numpy(v) for v in whole.model.variables])
    assert history == whole.history
    assert Report.load(folder).results()["labels"] == whole.report.results()["labels"]


# -- your own model and data --------------------------------------------------------------------------------------


def own(head="logits", outputs=10, shape=(8, 8, 1), front=()):
    last = {"logits": None, "softmax": "softmax", "sigmoid": "sigmoid"}[head]
    stack = [
        keras.Input(shape),
        *front,
        layers.Flatten(),
        layers.Dense(32, activation="relu", kernel_initializer=glorot(1)),
        layers.Dense(outputs, activation=last, kernel_initializer=glorot(2)),
    ]
    return keras.Sequential(stack, name="own")


def binary(data):
    x, y, x_test, y_test = data
    return x, y % 2, x_test, y_test % 2


OWN_MODELS = {
    "softmax": lambda: own("softmax"),
    "one sigmoid": lambda: own("sigmoid", 1),
    "one logit": lambda: own(outputs=1),
    "rescaling and augmentation": lambda: own(
        front=(layers.Rescaling(2.0, -1.0), layers.RandomTranslation(0.1, 0.1, seed=3), layers.BatchNormalization())
    ),
}


@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k == "one logit" else k for k in OWN_MODELS]
)
def test_your_own_model_is_trained_in_place(kind, data):
    arrays = binary(data) if kind.startswith("one") else data
    model = OWN_MODELS[kind]()
    before = weights(model)
    result = kerasdef.train_trades(arrays, model=model, **settings(network=None, steps=2, epochs=4, eps=8 / 255))
    assert result.model is model
    assert not same(weights(model), before)
    classes = 2 if kind.startswith("one") else 10
    assert result.report.classes == classes
    assert result.score(*arrays[2:]) > (0.6 if classes == 2 else 0.3)
    assert result.history["loss"][-1] < result.history["loss"][0]
    for history in (result.history["accuracy"], result.history["val_accuracy"]):
        assert np.all((np.array(history) >= 0) & (np.array(history) <= 1))
    if classes == 2:  # a single output is counted right or wrong by its sign
        divided = as_dataset(arrays).with_validation(0.2, seed=0)
        epoch = int(result.report.notes[-1].split("epoch ")[1].split()[0])
        counted = result.history["val_accuracy"][epoch - 1]
        assert counted == pytest.approx(result.score(divided.x_valid, divided.y_valid))
    moved = models.predict_logits(model, arrays[2]).argmax(axis=1)  # in input space, without the augmentation
    np.testing.assert_array_equal(moved, result.predict(arrays[2]))


@pytest.mark.usefixtures("lean")
def test_the_teacher_of_your_own_model_is_a_twin_of_it(data):
    x, y, x_test, y_test = data
    rows = x.reshape(len(x), -1), y, x_test.reshape(len(x_test), -1), y_test  # no network of ours takes these
    model = own(shape=(64,))
    result = kerasdef.train_distillation(rows, model=model, **settings(network=None, epochs=8))
    assert result.model is model
    assert result.score(*rows[2:]) > 0.3
    assert result.cost["gradients"] == 2 * 8 * SIZES["train"]  # the teacher's too


@pytest.mark.usefixtures("lean")
def test_a_training_that_is_stopped_before_the_full_radius_returns_the_last_weights(data):
    found = []

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            found.append(weights(self.model.model))

    stop = keras.callbacks.EarlyStopping("val_robust_accuracy", mode="max", patience=0, min_delta=2.0)
    result = kerasdef.train_multistage(data, **settings(epochs=6, callbacks=[Keep(), stop]), shares=(1, 1, 1))
    assert len(found) == 2
    assert same(weights(result.model), found[-1])  # averaged ones, as they were validated
    assert result.report.notes[-1] == "The weights are those of epoch 2 of 2."


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize(("norm", "average", "wanted"), [(True, None, False), (True, True, True), (False, None, True)])
def test_weights_are_averaged_unless_statistics_of_batch_norm_would_not_fit_them(data, norm, average, wanted):
    stack = [
        keras.Input((8, 8, 1)),
        layers.Flatten(),
        *([layers.BatchNormalization()] if norm else []),
        layers.Dense(10),
    ]
    given = settings(network=None, epochs=1, n_test=8, average=average)
    result = kerasdef.train_fast(data, model=keras.Sequential(stack), **given)
    assert result.report.settings["average"] is wanted


@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        pytest.param(keras.losses.CategoricalFocalCrossentropy(), marks=pytest.mark.slow),
    ],
)
def test_a_compiled_model_of_yours_with_a_classification_loss_is_taken(data, loss):
    model = own("softmax")
    model.compile("sgd", loss)
    result = kerasdef.train_fast(data, model=model, **settings(network=None, epochs=1, n_test=8))
    assert result.model is model


def test_the_command_trains_a_model_and_data_of_your_own_and_the_run_can_be_attacked(data, tmp_path, command):
    own("softmax").save(tmp_path / "my.keras")
    np.savez(tmp_path / "my.npz", **dict(zip(("x_train", "y_train", "x_test", "y_test"), data, strict=True)))
    words = ["--model", tmp_path / "my.keras", "--dataset", tmp_path / "my.npz", "--eps", "8/255"]
    words += [
        "--epochs",
        "2",
        "--batch-size",
        "64",
        "--valid-size",
        "0.2",
        "--n-test",
        "16",
        "--no-autoattack",
        "--set",
        "steps=2",
        "--set",
        "beta=3",
    ]
    folder = tmp_path / "run"
    status, out, err = command("train", "trades", *words, "--out", folder)
    assert status == 0, err
    assert "Cost of training" in out
    assert str(folder / "saved_model") in out
    found = json.loads((folder / "run.json").read_text())
    assert found["method settings"] == {"ramp": 0.2, "awp": 0.0, "steps": 2, "beta": 3}
    assert found["eps"] == 8 / 255
    attack = ["attack", folder, "--dataset", tmp_path / "my.npz", "--attack", "fgsm", "--eps", "8/255"]
    status, out, err = command(*attack)
    assert status == 0, err
    assert "fgsm" in out.lower()

    changed = own("softmax")
    changed.set_weights([w + 1 for w in changed.get_weights()])
    changed.save(tmp_path / "my.keras")  # the run there began with other weights
    status, _, err = command("train", "trades", *words, "--out", folder)
    assert status == 2
    assert "differs in start=" in err


# -- stages -------------------------------------------------------------------------------------------------------


def common(**changes):
    return RobustSettings(**({"eps": 0.3, "epochs": 10, "batch_size": 64, "n_test": 10} | changes))


@pytest.mark.parametrize("epochs", [3, 4, 5, 7, 10, 11, 33])
@pytest.mark.parametrize("shares", [(0.2, 0.2, 0.6), (1, 1, 1), (0.9, 0.05, 0.05), (5, 5, 1)])
def test_the_epochs_of_the_stages_add_up_and_each_has_one_at_least(epochs, shares):
    stages = method_of("multistage", {"shares": shares}).stages(common(epochs=epochs))
    assert sum(stage.epochs for stage in stages) == epochs
    assert min(stage.epochs for stage in stages) >= 1
    assert [stage.attack.steps for stage in stages] == [2, 3, 5]
    np.testing.assert_allclose([stage.attack.parameters["eps"] for stage in stages], [0.1, 0.2, 0.3])


@pytest.mark.usefixtures("lean")
@pytest.mark.parametrize(("objective", "trained"), [("trades", 2), pytest.param("madry", 1, marks=pytest.mark.slow)])
def test_stages_train_with_their_steps_at_their_radius_and_cost_what_the_formula_says(data, objective, trained):
    radii, steps = (0.5, 1.0), (1, 4)
    seen = []

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            trainer = self.model
            seen.append(
                (trainer.attack.steps, float(keras.ops.convert_to_numpy(trainer.radius.at(trainer.batches - 1))))
            )

    options = settings(epochs=3, n_test=4, callbacks=[See()])
    result = kerasdef.train_multistage(data, **options, radii=radii, steps=steps, shares=(1, 2), objective=objective)
    assert [s for s, _ in seen] == [1, 4, 4]
    np.testing.assert_allclose([r for _, r in seen], [0.5 * EPS, EPS, EPS], rtol=1e-6)  # float32
    # APGD takes one gradient more than its steps; TRADES trains on the clean and on the attacked images
    assert result.cost["gradients"] == SIZES["train"] * (1 * (1 + 1 + trained) + 2 * (4 + 1 + trained))


# -- half precision -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_residual_net_trains_an_epoch_of_color_images_in_bfloat16_with_augmentation():
    rng = np.random.default_rng(0)
    x, y = rng.random((96, 32, 32, 3), dtype="float32"), np.arange(96) % 4
    policies = []

    def network(input_shape, outputs, *, seed=0):
        model = networks.preact_resnet18(input_shape, outputs, seed=seed, width=8)
        policies.append({layer.compute_dtype for layer in model.layers})
        return model

    options = settings(network=network, epochs=1, batch_size=32, valid_size=1 / 3, n_test=4, n_train=None, steps=1)
    arrays = x, y, x[:8], y[:8]
    result = kerasdef.train_pgd(arrays, **options, precision="bfloat16", augment=True)
    assert policies[0] == {"bfloat16"}
    assert {keras.backend.standardize_dtype(v.dtype) for v in result.model.trainable_variables} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"  # as before
    assert np.isfinite(result.history["loss"][0])
    assert len(result.report.outcome("pgd", "pgd", "adaptive")) == 4


# -- the report ---------------------------------------------------------------------------------------------------


def made_by_hand():
    y = np.array([0, 0, 0, 1, 1, 2])
    rows, far = np.arange(6), np.full(6, 0.1)
    said = {"clean": [0, 0, 1, 1, 1, 2], "fgsm": [0, 1, 1, 1, 0, 2], "pgd": [1, 1, 1, 1, 0, 0]}
    found = [Outcome("m", "adaptive", a, y, np.array(p), index=rows, distance=far) for a, p in said.items()]
    costs = {"m": {"gradients": 1_234_567.0, "seconds": 89.0, "peak_bytes": 512.0 * 2**20}}
    return Report(found, classes=3, class_names=["a", "b", "c"], dataset="hand", seed=0, costs=costs)


def test_the_table_by_class_counts_by_hand():
    found = made_by_hand().by_class("m").to_dict("list")
    assert found["class"] == ["a", "b", "c"]
    assert found["n"] == [3, 2, 1]
    np.testing.assert_allclose(found["clean"], [2 / 3, 1, 1])
    np.testing.assert_allclose(found["fgsm"], [1 / 3, 1 / 2, 1])
    np.testing.assert_allclose(found["pgd"], [0, 1 / 2, 0])


def test_costs_survive_the_disk_and_stand_in_the_table_and_on_the_page(tmp_path):
    report = made_by_hand()
    report.save(tmp_path)
    assert Report.load(tmp_path).costs == report.costs
    assert Report.load(tmp_path) == report
    for text in (report.table(), (tmp_path / "report.html").read_text(encoding="utf-8")):
        assert "1,234,567" in text
        assert "512" in text


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def refusal(refusal_of):
    return refusal_of(
        recipe.Run, lambda method, data, **changes: kerasdef.train_robust(method, data, **settings(**changes))
    )


def compiled(loss):
    model = own()
    model.compile("adam", loss)
    return model


def two_outputs():
    inputs = keras.Input((8, 8, 1))
    z = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(10)(z), layers.Dense(10)(z)])


NONE = {"network": None}
BAD = {
    "an unknown method": ("trade", {}, "Did you mean 'trades'"),
    "an unknown setting": ("trades", {"betta": 6.0}, "Did you mean 'beta'"),
    "a setting where there are none": ("standard", {"steps": 7}, "no settings"),
    "an unknown network": ("pgd", {"network": "cnn1"}, "Did you mean 'cnn11'"),
    "an unknown norm": ("pgd", {"norm": "l3"}, "`norm` must be one of"),
    "an unknown precision": ("pgd", {"precision": "bfloat"}, "Did you mean 'bfloat16'"),
    "a model and a network": ("pgd", {"model": own}, "`model` and `network` exclude each other"),
    "too few outputs": ("pgd", {**NONE, "model": lambda: own(outputs=9)}, "softmax or logits for 10 classes"),
    "too many outputs": ("pgd", {**NONE, "model": lambda: own(outputs=11)}, "softmax or logits for 10 classes"),
    "one output for ten classes": ("pgd", {**NONE, "model": lambda: own("sigmoid", 1)}, "logits for 10 classes"),
    "two outputs": ("pgd", {**NONE, "model": two_outputs}, "one output of shape"),
    "other inputs": ("pgd", {**NONE, "model": lambda: own(shape=(6, 6, 1))}, "must take inputs of shape"),
    "a model without weights": ("pgd", {**NONE, "model": lambda: keras.Sequential([layers.Dense(10)])}, "be built"),
    "no model": ("pgd", {**NONE, "model": lambda: 3}, "`model` must be a keras.Model"),
    "no file": ("pgd", {**NONE, "model": lambda: "missing.keras"}, "`model` must be a .keras file"),
    "a network that gives none": ("pgd", {"network": lambda s, k, seed=0: None}, "`model` must be a keras.Model"),
    "mse": ("pgd", {**NONE, "model": lambda: compiled("mse")}, "classification loss"),
    "mse as an object": (
        "pgd",
        {**NONE, "model": lambda: compiled(keras.losses.MeanSquaredError())},
        "classification loss",
    ),
    "no eps": ("pgd", {"eps": None}, "`eps` must be given for data other than"),
    "no eps for another norm": ("pgd", {"eps": None, "norm": "l2"}, "norms other than linf"),
    "bounds upside down": ("pgd", {"bounds": (255, 0)}, "`bounds` must be a pair"),
    "eps of 0": ("pgd", {"eps": 0.0}, "`eps` must be a finite number above 0"),
    "eps below 0": ("pgd", {"eps": -0.1}, "`eps` must be a finite number above 0"),
    "eps that is no number": ("pgd", {"eps": float("nan")}, "`eps` must be a finite number above 0"),
    "no epochs": ("pgd", {"epochs": 0}, "`epochs` must be a positive integer"),
    "a batch above n": ("pgd", {"batch_size": 300}, "`batch_size` must be at most the number of training images, 256"),
    "no rate": ("pgd", {"learning_rate": 0.0}, "`learning_rate` must be"),
    "too few to divide": ("pgd", {"n_train": 11}, "`n_train` must let images .* Received: n_train=11"),
    "too few held out": ("pgd", {"n_train": None, "valid_size": 1e-9}, "`valid_size` must let images"),
    "all for validation": ("pgd", {"valid_size": 1.0}, "`valid_size` must be a share"),
    "no test images": ("pgd", {"n_test": 0}, "`n_test` must be a positive integer"),
    "a seed below 0": ("pgd", {"seed": -1}, "`seed` must be"),
    "no steps": ("pgd", {"steps": 0}, "`steps` must be a positive integer"),
    "steps as a word": ("pgd", {"steps": "many"}, "`steps` must be a positive integer"),
    "beta below 0": ("trades", {"beta": -1.0}, "`beta` must be"),
    "a weight below 0": ("mart", {"weight": -1.0}, "`weight` must be"),
    "a ramp above 1": ("fast", {"ramp": 1.5}, "`ramp` must be"),
    "no replays": ("free", {"replays": 0}, "`replays` must be a positive integer"),
    "free in L2": ("free", {"norm": "l2"}, "`norm` must be 'linf' for free training"),
    "a temperature of 0": ("distillation", {"temperature": 0.0}, "`temperature` must be"),
    "a softmax to distill": (
        "distillation",
        {**NONE, "model": lambda: own("softmax")},
        "must give logits",
    ),
    "eps_y below 0": ("bilateral", {"eps_y": -1.0}, "`eps_y` must be"),
    "an unknown source": ("ensemble", {"sources": ("target_dn",)}, "Did you mean 'target_dnn'"),
    "radii that shrink": ("multistage", {"radii": (0.5, 0.3, 1.0)}, "`radii` must be shares of eps that grow to 1"),
    "radii that end below 1": ("multistage", {"radii": (0.1, 0.3, 0.9)}, "`radii` must be shares of eps that grow"),
    "radii that do not match": ("multistage", {"radii": (0.5, 1.0)}, "must have one value for each stage"),
    "no stages": ("multistage", {"radii": (), "steps": (), "shares": ()}, "must have one value for each stage"),
    "a stage without steps": ("multistage", {"steps": (0, 1, 2)}, "`steps` must be above 0"),
    "an attack unknown": ("multistage", {"attack": "apg"}, "Did you mean 'apgd'"),
    "an objective unknown": ("multistage", {"objective": "trade"}, "Did you mean 'trades'"),
    "fewer epochs than stages": ("multistage", {"epochs": 2}, "`epochs` must be at least 3"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_before_any_training(refusal, data, case):
    method, changes, match = BAD[case]
    changes = dict(changes)
    if "model" in changes:
        changes["model"] = changes["model"]()
    said, left = refusal(method, data, **changes)
    assert re.search(match, said)
    assert "\n" not in said
    assert left == []


def test_networks_that_cannot_take_the_images_are_refused_before_any_training(refusal):
    x, y = np.random.default_rng(0).random((320, 6, 6, 1), dtype="float32"), np.arange(320) % 4
    said, left = refusal("ensemble", (x, y), sources=("vgg7",))
    assert "`input_shape` of vgg7" in said
    assert left == []
    said, left = refusal("pgd", (x, y), network="cnn11")
    assert "`input_shape` of cnn11" in said
    assert left == []


@pytest.mark.slow
@pytest.mark.usefixtures("lean")
def test_data_in_other_bounds_is_the_same_data(data):
    x, y, x_test, y_test = data
    wide = kerasdef.Dataset.from_arrays(255 * x, y, 255 * x_test, y_test, bounds=(0, 255))
    unit = kerasdef.train_fast(data, **settings(epochs=1, n_test=8))
    found = kerasdef.train_fast(wide, **settings(epochs=1, n_test=8, eps=255 * EPS))
    assert found.report.settings["eps"] == pytest.approx(EPS)
    for a, b in zip(weights(found.model), weights(unit.model), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # float32


@pytest.mark.slow
def test_your_own_model_is_trained_and_attacked_in_the_bounds_of_the_data(data):
    x, y, x_test, y_test = data
    wide = kerasdef.Dataset.from_arrays(255 * x, y, 255 * x_test, y_test, bounds=(0, 255))
    model = own(front=(layers.Rescaling(1 / 255),))
    found = kerasdef.train_pgd(wide, model=model, **settings(network=None, epochs=4, n_test=16, eps=20.0))
    distance = found.report.outcome("pgd", "pgd", "adaptive").distance
    assert 1 < distance.max() <= 20 * (1 + 1e-5)  # float32
    assert found.report.settings["eps"] == 20
    assert np.mean(models.predict_logits(model, 255 * x_test).argmax(axis=1) == y_test) > 0.3


def test_augmentation_is_for_images(refusal):
    x, y = np.random.default_rng(0).random((320, 6), dtype="float32"), np.arange(320) % 4
    said, left = refusal("pgd", (x, y), augment=True)
    assert "`augment` is for images" in said
    assert left == []


def test_sources_with_other_inputs_are_refused():
    with pytest.raises(ValueError, match="`source` must be models of the inputs"):
        AdversarialTraining(own(), FGSM(eps=EPS), source=(own(shape=(6, 6, 1)),))


def test_a_folder_with_other_files_is_refused(refusal, data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("do not lose this")
    said, _ = refusal("pgd", data)
    assert "holds other files" in said
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


# -- the command --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pgd --dataset digitz", "digits"),
        ("pgd --eps much", "`eps` must be a number or a fraction"),
        ("pgd --eps 0", "`eps` must be a finite number above 0"),
        ("pgd --network cnn1", "Did you mean 'cnn11'"),
        ("pgd --precision half", "`precision` must be one of"),
        ("pgd --set stepz=3", "Did you mean 'steps'"),
        ("pgd --set steps", "`--set` must be name=value"),
        ("pgd --set steps=many", "`steps` must be a positive integer"),
        ("pgd --set seed=3", "`--set` is for the settings of the method. Received: seed"),
        ("pgd --set method=fast", "`--set` is for the settings of the method. Received: method"),
        ("pgd --set data=mnist", "`--set` is for the settings of the method. Received: data"),
        ("trades --set beta=-1", "`beta` must be"),
        ("multistage --epochs 2", "`epochs` must be at least 3"),
        ("multistage --set radii=(1,0.5,1)", "`radii` must be shares of eps that grow to 1"),
        ("multistage --set radii=1", "`radii` must be numbers"),
        ("pgd --model nowhere.keras", "`model` must be a .keras file"),
        ("pgd --dataset nowhere/images.npz", "images.npz"),
    ],
)
def test_a_wrong_value_is_one_line_and_status_2(refused, tmp_path, words, said):
    assert said in refused("train", *words.split(), "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_each_option_of_a_method_arrives(monkeypatch, command, digits, tmp_path):
    given, own = {}, tmp_path / "own.npz"
    np.savez(own, **dict(zip(("x_train", "y_train", "x_test", "y_test"), digits, strict=True)))

    class Table:
        files: ClassVar[dict] = {}
        report = type("R", (), {"table": staticmethod(lambda: "the table")})

    def train(method, data, **kwargs):
        given.update(kwargs, method=method, data=data)
        return Table

    monkeypatch.setattr("kerasdef.recipes.robust.training.train", train)
    words = (
        f"--dataset {own} --network cnn11 --eps 8/255 --norm l2 --epochs 3 --batch-size 16 --learning-rate 0.01 "
        "--weight-decay 0.1 --no-average --augment --precision bfloat16 --valid-size 0.1 --n-train 99 --n-test 9 "
        "--no-autoattack --set steps=3 --set awp=0.01 --seed 5 --out there"
    )
    status, out, err = command("train", "pgd", *words.split())
    assert (status, out) == (0, "the table\n"), err
    wanted = {"method": "pgd", "data": str(own), "network": "cnn11", "eps": 8 / 255, "norm": "l2", "epochs": 3}
    wanted |= {"batch_size": 16, "learning_rate": 0.01, "weight_decay": 0.1, "average": False, "augment": True}
    wanted |= {"precision": "bfloat16", "valid_size": 0.1, "n_train": 99, "n_test": 9, "autoattack": False}
    assert str(given.pop("out")) == "there"
    assert given == wanted | {"model": None, "bounds": None, "steps": 3, "awp": 0.01, "seed": 5}
