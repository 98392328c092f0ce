"""Export: what is written decides as the live model, runs without us, and replaces nothing unless it is right."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import kerasdef.models.export as module
from kerasdef import backend
from kerasdef.defenses import as_defense, load, voting_model

WRITE = "_write_saved_model" if backend.NAME == "tensorflow" else "_write_elsewhere"
SERVE = """
import sys
sys.modules["kerasdef"] = sys.modules["keras"] = None  # importing them raises
import numpy as np
import tensorflow as tf
loaded = tf.saved_model.load(sys.argv[1])
x = np.load(sys.argv[2])
found = {}
for name, images in (("serving_default", x.astype("float32") / np.float32(255)), ("serving_uint8", x)):
    for key, value in loaded.signatures[name](images=tf.constant(images)).items():
        found[f"{name}/{key}"] = value.numpy()
np.savez(sys.argv[3], **found)
"""


def build(seed, reject=3):
    def member(i):
        normal = keras.initializers.RandomNormal(stddev=2.0, seed=10 * seed + i)
        dense = keras.layers.Dense(4, kernel_initializer=normal)
        return keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten(), dense])

    return voting_model([member(i) for i in range(3)], reject=reject)


def outputs(model, x):
    return {k: keras.ops.convert_to_numpy(v) for k, v in model(x).items()}


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def model():
    return build(0)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    """The model as a SavedModel."""
    return module.export(model, tmp_path_factory.mktemp("export") / "deep" / "saved_model")


def test_a_saved_model_serves_both_signatures_without_kerasdef_and_keras(model, saved, tmp_path):
    x = np.random.default_rng(5).integers(0, 256, (37, 3, 3, 1)).astype("uint8")  # not the images of the own check
    np.save(tmp_path / "x.npy", x)
    command = [sys.executable, "-c", SERVE, str(saved), str(tmp_path / "x.npy"), str(tmp_path / "found.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    live = outputs(model, x.astype("float32") / np.float32(255))
    with np.load(tmp_path / "found.npz") as file:
        found = {k: file[k] for k in file.files}
    names = ("is_adversarial", "label", "probabilities", "votes")
    assert sorted(found) == [f"{s}/{n}" for s in ("serving_default", "serving_uint8") for n in names]
    for signature in ("serving_default", "serving_uint8"):
        for name in ("is_adversarial", "label", "votes"):
            np.testing.assert_array_equal(found[f"{signature}/{name}"], live[name])
            assert found[f"{signature}/{name}"].dtype == live[name].dtype
        np.testing.assert_allclose(found[f"{signature}/probabilities"], live["probabilities"], atol=1e-5)  # float32


def test_nothing_half_written_is_left(saved):
    assert [p.name for p in saved.parent.iterdir()] == ["saved_model"]


def test_a_keras_file_loads_in_safe_mode_and_decides_alike(model, tmp_path):
    path = module.export(model, tmp_path / "vote.keras", to="keras")
    assert path == tmp_path / "vote.keras"
    again = keras.saving.load_model(path, safe_mode=True)
    x = np.random.default_rng(1).random((20, 3, 3, 1), dtype="float32")
    live, found = outputs(model, x), outputs(again, x)
    for name, value in live.items():
        np.testing.assert_array_equal(found[name], value)


def test_a_second_export_replaces_the_first(tmp_path):
    x = np.random.default_rng(1).random((20, 3, 3, 1), dtype="float32")
    for seed in (1, 2):
        model = build(seed)
        module.export(model, tmp_path / "vote.keras", to="keras")
        again = keras.saving.load_model(tmp_path / "vote.keras")
        np.testing.assert_array_equal(outputs(again, x)["probabilities"], outputs(model, x)["probabilities"])


@pytest.mark.parametrize("name", ["vote", "vote.h5", "vote.keras.zip"])
def test_a_keras_file_of_another_name_is_an_error(model, tmp_path, name):
    with pytest.raises(ValueError, match=r"`path` must end in \.keras"):
        module.export(model, tmp_path / name, to="keras")
    assert not list(tmp_path.iterdir())


def test_an_unknown_format_is_an_error_that_names_the_nearest(model, tmp_path):
    with pytest.raises(ValueError, match=r"`to` must be one of .* Did you mean 'saved_model'"):
        module.export(model, tmp_path / "m", to="savedmodel")


def test_a_saved_model_of_other_weights_is_found_and_the_old_export_stays(model, saved, monkeypatch):
    before, real, other = contents(saved), getattr(module, WRITE), build(7)
    monkeypatch.setattr(module, WRITE, lambda _, *rest: real(other, *rest))
    with pytest.raises(RuntimeError, match="differs from the live model"):
        module.export(model, saved)
    assert contents(saved) == before


def test_a_keras_file_of_other_weights_is_found_and_the_old_export_stays(model, tmp_path, monkeypatch):
    path = module.export(model, tmp_path / "vote.keras", to="keras")
    before, other = path.read_bytes(), build(7)
    monkeypatch.setattr(model, "save", lambda part: other.save(part))
    with pytest.raises(RuntimeError, match="differs from the live model"):
        module.export(model, path, to="keras")
    assert path.read_bytes() == before


def test_a_comparison_with_nan_fails():
    live = {"probabilities": np.array([[0.2, 0.8]]), "label": np.array([1])}
    live |= {"is_adversarial": np.array([False]), "votes": np.array([[0, 3]])}
    module._compare(live, live, "A copy")
    with pytest.raises(RuntimeError, match="differs from the live model"):
        module._compare(live | {"probabilities": np.array([[np.nan, 0.8]])}, live, "A copy")


@pytest.mark.parametrize("name", ["label", "is_adversarial", "votes"])
def test_a_comparison_finds_another_decision(name):
    live = {"probabilities": np.array([[0.2, 0.8]]), "label": np.array([1])}
    live |= {"is_adversarial": np.array([False]), "votes": np.array([[0, 3]])}
    with pytest.raises(RuntimeError, match=f"differs from the live model in '{name}'"):
        module._compare(live | {name: 1 - live[name].astype(int)}, live, "A copy")


def test_a_folder_that_is_no_export_is_not_replaced(model, tmp_path):
    (tmp_path / "thesis.txt").write_text("do not lose this")
    with pytest.raises(ValueError, match="`path` must"):
        module.export(model, tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "do not lose this"


# -- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda p: p / "nowhere", lambda p: p, lambda p: p / "model.h5"])
def test_a_folder_without_a_model_is_an_error(tmp_path, make):
    with pytest.raises(ValueError, match="`run` must be the folder of a finished run"):
        module.export_run(make(tmp_path))


def test_the_defense_of_a_run_is_exported_beside_it_or_elsewhere(model, tmp_path):
    run = tmp_path / "run"
    module.export(model, run / "mia.keras", to="keras")
    assert module.export_run(run, to="keras") == {"keras": run / "mia.keras"}
    assert module.export_run(run, to="keras", out=tmp_path / "x.keras") == {"keras": tmp_path / "x.keras"}
    assert module.export_run(run / "mia.keras", to="keras") == {"keras": run / "mia.keras"}
    assert keras.saving.load_model(tmp_path / "x.keras").count_params() == model.count_params()


def test_every_defense_of_a_run_with_one_for_each_attack_is_exported(tmp_path):
    for seed, name in enumerate(("fgsm", "gma")):
        module.export(build(seed), tmp_path / "run" / name / "mia.keras", to="keras")
    found = module.export_run(tmp_path / "run", to="keras", out=tmp_path / "out")
    assert found == {name: tmp_path / "out" / name / "mia.keras" for name in ("fgsm", "gma")}
    assert all(path.is_file() for path in found.values())


# -- the range of a model -----------------------------------------------------------------------------------------


def of_range(name):
    """(model, range, a function from uint8 images to the logits that are right) for each way of saying a range."""
    normal = keras.initializers.RandomNormal(stddev=2.0, seed=1)
    head = [keras.layers.Flatten(), keras.layers.Dense(4, kernel_initializer=normal)]
    scale = [keras.layers.Rescaling(1 / 127.5, -1)]
    inputs = keras.Input((3, 3, 1), dtype="uint8" if name == "uint8" else "float32")
    tail = [*head] if name in ("given", "unit") else [*scale, *head]
    model = keras.Sequential([inputs, *tail])
    if name == "softmax":
        model = keras.Sequential([inputs, *tail, keras.layers.Softmax()])
    bounds = {"given": (-1.0, 3.0), "unit": (0.0, 1.0)}.get(name, (0.0, 255.0))

    def right(x):
        floats = bounds[0] + x.astype("float64") * (bounds[1] - bounds[0]) / 255
        seen = floats if name in ("given", "unit") else floats / 127.5 - 1
        kernel, bias = (keras.ops.convert_to_numpy(w) for w in head[1].weights)
        return seen.reshape(len(x), -1) @ kernel + bias

    return model, bounds, right


@pytest.mark.parametrize("name", ["unit", "given", "rescaling", "softmax", "uint8"])
def test_both_signatures_take_the_range_of_the_model(name, tmp_path):
    model, bounds, right = of_range(name)
    path = module.export(model, tmp_path / "saved", bounds=bounds if name == "given" else None)
    x = np.random.default_rng(5).integers(0, 256, (50, 3, 3, 1)).astype("uint8")
    wanted = np.exp(right(x) - right(x).max(axis=1, keepdims=True))
    wanted /= wanted.sum(axis=1, keepdims=True)
    assert len(np.unique(wanted.argmax(axis=1))) > 1
    floats = (bounds[0] + x * ((bounds[1] - bounds[0]) / 255)).astype("float32")
    for signature, images in (("serving_default", floats), ("serving_uint8", x)):
        found = module._serve(path, signature, images)
        np.testing.assert_allclose(found["probabilities"], wanted, atol=1e-4)  # float32
        np.testing.assert_array_equal(found["label"], wanted.argmax(axis=1))
    facts = module.facts_of(path)
    assert {k: facts[k] for k in ("kind", "classes", "reject")} == {"kind": "Plain", "classes": 4, "reject": None}
    assert tuple(facts["bounds"]) == bounds
    defense = load(path)
    assert defense.bounds == bounds
    np.testing.assert_array_equal(defense.decide(x).label, wanted.argmax(axis=1))
    np.testing.assert_array_equal(defense.decide(floats).label, wanted.argmax(axis=1))


def test_a_signature_of_another_range_is_found_though_noise_does_not_tell(tmp_path, monkeypatch):
    """A net that is sure of every image of uniform noise: for these both ranges give the same class."""
    kernel = np.full((9, 2), [3.0, -3.0], "float32")
    model = keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.layers[-1].set_weights([kernel, np.array([-0.1, 0.1], "float32")])
    x = np.random.default_rng(0).random((64, 3, 3, 1), dtype="float32")
    assert np.ptp(module._outputs(model, x, (0.0, 1.0))["probabilities"], axis=0).max() < 1e-4
    real = getattr(module, WRITE)
    monkeypatch.setattr(module, WRITE, lambda model, path, bounds: real(model, path, (0.0, 255.0)))
    with pytest.raises(RuntimeError, match="uint8 signature differs from the live model"):
        module.export(model, tmp_path / "saved")


def test_bounds_that_a_file_cannot_hold_or_a_defense_does_not_have_are_an_error(model, tmp_path):
    plain = of_range("given")[0]
    with pytest.raises(ValueError, match="`bounds` must be those that the model says, None"):
        module.export(plain, tmp_path / "a.keras", to="keras", bounds=(-1, 3))
    with pytest.raises(ValueError, match=r"`bounds` must be those that the model says, \(0.0, 1.0\)"):
        module.export(model, tmp_path / "a", bounds=(0, 255))
    module.export(as_defense(plain, bounds=(-1, 3)), tmp_path / "a.keras", to="keras")
    assert load(tmp_path / "a.keras").bounds == (-1.0, 3.0)


def test_a_model_that_answers_always_the_same_says_that_it_cannot_be_compared(tmp_path):
    model = keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten(), keras.layers.Dense(2)])
    model.layers[-1].set_weights([np.zeros((9, 2)), np.array([0.0, 1.0])])
    with pytest.warns(UserWarning, match="gives the same probabilities"):
        module.export(model, tmp_path / "a.keras", to="keras")


def test_a_vote_of_softmax_members_is_exported_and_decides_alike(tmp_path):
    def member(seed):
        normal = keras.initializers.RandomNormal(stddev=2.0, seed=seed)
        dense = keras.layers.Dense(4, kernel_initializer=normal, activation="softmax")
        return keras.Sequential([keras.Input((3, 3, 1)), keras.layers.Flatten(), dense])

    vote = voting_model([member(i) for i in range(3)], reject=3)
    x = np.random.default_rng(1).random((40, 3, 3, 1), dtype="float32")
    live = outputs(vote, x)
    for to, name in (("keras", "vote.keras"), ("saved_model", "vote")):
        found = load(module.export(vote, tmp_path / name, to=to)).decide(x)
        np.testing.assert_array_equal(found.label, live["label"])
        np.testing.assert_allclose(found.probabilities, live["probabilities"], atol=1e-5)
