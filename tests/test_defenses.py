"""Defenses: every exported one keeps the contract, files say what they are wherever they lie, models their range."""

import inspect
import json
import shutil
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import backend, defenses, models
from kerasdef.attacks import PGD, Evade, Misclassify
from kerasdef.defenses import Decision, Defense, EvadeVote, HybridDefense, Plain, RejectClass, Voting, as_defense, load
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.defenses.purifiers import Purifier
from kerasdef.models.bounds import from_pixels, input_bounds
from kerasdef.models.export import export, facts_of
from kerasdef.testing import check_defense

SHAPE = (4, 4, 1)


def dense(seed, outputs=4, *, before=(), activation=None, dtype="float32"):
    """A classifier of small images whose logits are far from each other."""
    head = layers.Dense(outputs, activation=activation)
    model = keras.Sequential([keras.Input(SHAPE, dtype=dtype), *before, layers.Flatten(), head])
    head.set_weights([np.random.default_rng(seed).normal(size=head.kernel.shape), np.zeros(outputs)])
    return model


def wrapped(model, depth=2):
    """The model inside as many functional models."""
    for _ in range(depth):
        inputs = keras.Input(SHAPE)
        model = keras.Model(inputs, model(inputs))
    return model


def noise(n=30, seed=0, high=1.0):
    return (high * np.random.default_rng(seed).random((n, *SHAPE))).astype("float32")


@keras.saving.register_keras_serializable("tests")
class Dim(Purifier):
    """Halves all values."""

    def purify(self, x):
        return 0.5 * x


def hybrid(**options):
    members = [dense(i) for i in range(2)]
    x = noise(100)
    detector = LogitDeviation(rate=0.2).fit(members, x, np.zeros(len(x), dtype="int64"))
    return HybridDefense(members, detector=detector, **options)


CASES = {
    "Plain": lambda: Plain(dense(0)),
    "Plain, one sigmoid output": lambda: Plain(dense(0, 1, activation="sigmoid")),
    "Plain, uint8 Input": lambda: Plain(dense(0, before=[layers.Rescaling(1 / 255)], dtype="uint8")),
    "HybridDefense": lambda: HybridDefense([dense(i) for i in range(2)]),
    "HybridDefense, detector and purifier": lambda: hybrid(purifier=Dim()),
    "HybridDefense, flagged images are answered": lambda: hybrid(purifier=Dim(), flagged="answered"),
    "HybridDefense, a purifier alone": lambda: HybridDefense([dense(0)], purifier=Dim(), repair="always"),
    "HybridDefense, the first member first": lambda: HybridDefense([dense(i) for i in range(2)], sure=0.7),
    "HybridDefense, with noise": lambda: hybrid(sigma=0.1, draws=2),
    "RejectClass": lambda: RejectClass(dense(0, 5)),
    "RejectClass, of a softmax that does not reject": lambda: RejectClass(
        dense(0, 5, activation="softmax"), rejects=False, bounds=(-1, 2)
    ),
    "Voting": lambda: Voting([dense(i) for i in range(3)], reject=3),
    "Voting, of softmax members without a reject class": lambda: Voting(
        [dense(i, activation="softmax") for i in range(3)]
    ),
    "Voting, of nested members that take 0 to 255": lambda: Voting(
        [wrapped(dense(i, before=[layers.Rescaling(1 / 127.5, -1)])) for i in range(2)], reject=3
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_defense_keeps_the_contract(name):
    check_defense(CASES[name](), saved_model=backend.NAME == "tensorflow" or name in ("RejectClass", "Voting"))


def test_every_exported_defense_is_among_them():
    exported = {
        name
        for name, value in vars(defenses).items()
        if inspect.isclass(value) and issubclass(value, Defense) and value is not Defense
    }
    assert exported == {name.split(",")[0] for name in CASES}


@keras.saving.register_keras_serializable("tests")
class Forgetful(RejectClass):
    """Its file does not say that it does not reject."""

    def get_config(self):
        config = super().get_config()
        del config["rejects"]
        return config


@keras.saving.register_keras_serializable("tests")
class Modest(RejectClass):
    """Has its attacker go for the label that rejects."""

    def surface(self):
        return super().surface()[0], Misclassify()


@keras.saving.register_keras_serializable("tests")
class Torn(RejectClass):
    """Decides otherwise than it answers."""

    def decide(self, x, **options):
        return _other(super().decide(x, **options))


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (lambda: Torn(dense(0, 5)), "a call decides as `decide`"),
        (lambda: Modest(dense(0, 5)), "the goal is reached"),
        (lambda: Forgetful(dense(0, 5), rejects=False), "keras: what is written decides alike"),
        (lambda: Plain(dense(0, before=[layers.Rescaling(0.0)])), "gradients flow"),
    ],
)
@pytest.mark.filterwarnings("ignore:The model .* gives the same probabilities")
def test_the_contract_finds_what_is_wrong(make, clause):
    with pytest.raises(AssertionError, match=clause):
        check_defense(make())


def _other(found: Decision) -> Decision:
    label = (found.label + 1) % 5
    return Decision(label, label == 4, found.score, found.probabilities)


# -- files --------------------------------------------------------------------------------------------------------

NEW_PROCESS = """
import sys
import numpy as np
import keras
from kerasdef.models.export import export_run
export_run(sys.argv[1], to="keras", out=sys.argv[3])  # before anything of the defenses was imported
import kerasdef.defenses
found = keras.saving.load_model(sys.argv[1], safe_mode=True)
again = kerasdef.defenses.load(sys.argv[3])
x = np.load(sys.argv[2])
np.testing.assert_array_equal(found.decide(x).label, again.decide(x).label)
print(type(found).__name__, found.classes, found.reject, found.bounds, found.surface()[1], *found.decide(x).label)
"""


def test_a_keras_file_that_is_moved_alone_says_what_it_is_in_a_new_process(tmp_path):
    defense = RejectClass(dense(0, 5, before=[layers.Rescaling(1 / 255)]))
    export(defense, tmp_path / "run" / "iar.keras", to="keras", facts={"run": {"dataset": "digits", "seed": 3}})
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(tmp_path / "run" / "iar.keras", tmp_path / "elsewhere" / "other.keras")
    shutil.rmtree(tmp_path / "run")
    np.save(tmp_path / "x.npy", noise(high=255))
    command = [sys.executable, "-c", NEW_PROCESS, str(moved), str(tmp_path / "x.npy"), str(tmp_path / "out.keras")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    label = " ".join(map(str, defense.decide(noise(high=255)).label))
    assert done.stdout.strip() == f"RejectClass 4 4 (0.0, 255.0) {Evade(4)} {label}"
    assert facts_of(moved)["run"] == {"dataset": "digits", "seed": 3}
    assert defenses.loading.load_model(moved).settings == {"dataset": "digits", "seed": 3}


def test_a_plain_classifier_is_saved_plain_with_its_run(tmp_path):
    model = dense(0)
    export(model, tmp_path / "a.keras", to="keras", facts={"run": {"seed": 3}})
    again = keras.saving.load_model(tmp_path / "a.keras", safe_mode=True)
    assert type(again) is keras.Sequential
    np.testing.assert_array_equal(again(noise()), model(noise()))
    assert defenses.loading.load_model(tmp_path / "a.keras").settings == {"seed": 3}
    with zipfile.ZipFile(tmp_path / "a.keras") as file:
        assert "kerasdef" not in json.dumps(json.loads(file.read("config.json")))


def test_a_member_that_was_compiled_with_a_loss_of_ones_own_does_not_keep_a_file_from_loading(tmp_path):
    model = dense(0)
    model.compile("adam", lambda y, z: ops.mean(z))
    Voting([model, dense(1)]).save(tmp_path / "vote.keras")
    assert load(tmp_path / "vote.keras").surface()[1] == EvadeVote(None)


def test_whether_the_last_label_rejects_is_in_the_file(tmp_path):
    for rejects in (True, False):
        defense = RejectClass(dense(0, 5), rejects=rejects)
        for to, name in (("keras", "a.keras"), ("saved_model", "a")):
            again = load(export(defense, tmp_path / name, to=to))
            assert (again.classes, again.reject) == (4, 4 if rejects else None)
            assert again.surface()[1] == (Evade(4) if rejects else Misclassify())
            assert again.decide(noise()).probabilities.shape == (30, 5)
            assert again.decide(noise()).rejected.any() == rejects


def test_as_defense_takes_models_defenses_and_callables():
    plain = as_defense(dense(0))
    assert type(plain) is Plain
    assert as_defense(plain) is plain
    labels = as_defense(lambda x: np.zeros(len(x), int))
    assert labels.decide(noise()).label.tolist() == [0] * 30
    scores = as_defense(lambda x: np.tile([0.0, 2.0, 1.0], (len(x), 1)))
    np.testing.assert_allclose(
        scores.decide(noise()).probabilities[0], np.exp([-2, 0, -1]) / np.exp([-2, 0, -1]).sum(), rtol=1e-6
    )
    with pytest.raises(ValueError, match="`bounds` must be those of the defense"):
        as_defense(plain, bounds=(0, 255))
    with pytest.raises(ValueError, match="`model` must be a Keras model or a callable"):
        as_defense(3)
    with pytest.raises(ValueError, match="one input and one output"):
        as_defense(two_heads())


def two_heads():
    inputs = keras.Input(SHAPE)
    flat = layers.Flatten()(inputs)
    return keras.Model(inputs, [layers.Dense(2)(flat), layers.Dense(3)(flat)])


def test_a_model_that_says_nothing_takes_the_range_of_the_data(tmp_path):
    said = dense(0, before=[layers.Rescaling(1 / 255)])
    for model, wanted in ((dense(0), (-1, 3)), (said, (0, 255)), (lambda x: np.zeros(len(x), int), (-1, 3))):
        assert defenses.loading.load_model(model, bounds=(-1, 3)).defense.bounds == wanted
    x = noise()
    wanted = Plain(said).decide(255 * x)
    found = defenses.loading.load_model(said, bounds=(0, 1)).defense.decide(x, bounds=(0, 1))
    np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=1e-5)
    with pytest.raises(ValueError, match=r"`x` must lie in the bounds \[0, 1\]"):
        Plain(said).decide(255 * x, bounds=(0, 1))


def test_members_of_different_ranges_are_an_error():
    with pytest.raises(ValueError, match="`members` must take values of the same range"):
        Voting([dense(0), dense(1, before=[layers.Rescaling(1 / 255)])])


# -- bounds -------------------------------------------------------------------------------------------------------


def divided():
    inputs = keras.Input(SHAPE)
    return keras.Model(inputs, layers.Dense(3)(layers.Flatten()(inputs / 255.0)))


RANGES = {
    "nothing said": (lambda: dense(0), None),
    "Rescaling(1/255)": (lambda: dense(0, before=[layers.Rescaling(1 / 255)]), (0.0, 255.0)),
    "Rescaling(1/127.5, -1)": (lambda: dense(0, before=[layers.Rescaling(1 / 127.5, -1)]), (0.0, 255.0)),
    "Rescaling(2, -1)": (lambda: dense(0, before=[layers.Rescaling(2, -1)]), None),
    "behind a flip": (lambda: dense(0, before=[layers.RandomFlip(), layers.Rescaling(1 / 255)]), (0.0, 255.0)),
    "not the first": (lambda: dense(0, before=[layers.Conv2D(1, 3), layers.Rescaling(1 / 255)]), None),
    "uint8": (lambda: dense(0, before=[layers.Rescaling(1 / 255)], dtype="uint8"), (0.0, 255.0)),
    "nested": (lambda: wrapped(dense(0, before=[layers.Rescaling(1 / 255)]), 3), (0.0, 255.0)),
    "nested uint8": (lambda: wrapped(dense(0, dtype="uint8"), 1), (0.0, 255.0)),
    "in a Sequential": (
        lambda: keras.Sequential([keras.Input(SHAPE), dense(0, before=[layers.Rescaling(1 / 255)])]),
        (0.0, 255.0),
    ),
    "x / 255": (divided, (0.0, 255.0)),
    "a defense": (lambda: Plain(dense(0), bounds=(-1, 1)), (-1.0, 1.0)),
    "the surface of a defense": (lambda: Plain(dense(0), bounds=(-1, 1)).surface()[0], (-1.0, 1.0)),
    "a model around a defense's": (lambda: wrapped(Plain(dense(0), bounds=(0, 255)).surface()[0], 1), (0.0, 255.0)),
}


@pytest.mark.parametrize("name", RANGES)
def test_the_range_that_a_model_takes_is_read_off_the_model(name):
    make, wanted = RANGES[name]
    assert input_bounds(make()) == wanted


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_of_uint8_has_gradients_behind_the_cast_and_the_same_answers(nested):
    base = dense(0, before=[layers.Rescaling(1 / 255)], dtype="uint8")
    model = keras.Sequential([keras.Input(SHAPE, dtype="uint8"), base]) if nested else base
    pixels = np.random.default_rng(0).integers(0, 256, (40, *SHAPE)).astype("uint8")
    wanted = ops.convert_to_numpy(model(pixels))
    found = models.logits_view(model)
    np.testing.assert_allclose(found(pixels.astype("float32")), wanted, atol=1e-5)
    defense = Plain(model)
    surface, goal = defense.surface()
    y = wanted.argmax(axis=1)
    x_adv = PGD(eps=60, steps=10, goal=goal, bounds=defense.bounds)(
        surface, pixels.astype("float32"), y, progress=False
    )
    assert np.mean(defense.decide(x_adv).label == y) < 0.5
    assert np.mean(ops.convert_to_numpy(model(np.rint(x_adv).astype("uint8"))).argmax(axis=1) == y) < 0.5


def test_uint8_is_mapped_linearly_and_floats_are_left_alone():
    pixels = np.array([[0, 51, 255]], "uint8")
    np.testing.assert_array_equal(from_pixels(pixels, (0, 255)), [[0, 51, 255]])
    np.testing.assert_allclose(from_pixels(pixels, (-1, 1)), [[-1, -0.6, 1]], atol=1e-6)
    np.testing.assert_array_equal(from_pixels(pixels, (0, 1)), pixels.astype("float32") / np.float32(255))
    assert from_pixels(noise(), (0, 255)).max() < 1
