"""Files that are there whole or not at all, and the identity of what a run depends on."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import keras
import numpy as np
import pytest
from keras import layers

from kerasdef import losses
from kerasdef.attacks import FGSM, GMA, PGD
from kerasdef.files import write_whole
from kerasdef.identity import UNKNOWN, architecture, digest, identity, refuse_unknown
from kerasdef.models import networks

# -- writing --------------------------------------------------------------------------------------


def test_a_writer_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "new" / "x.txt"
    write_whole(path, lambda part: part.write_text("one"))

    def fails(part):
        part.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fails)
    assert path.read_text() == "one"
    assert list(path.parent.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """The first has written half when the second writes all: neither file may hold parts of both."""
    path, half, go = tmp_path / "x.npz", threading.Event(), threading.Event()

    def slow(part):
        with open(part, "wb") as out:
            out.write(b"a" * 10)
            half.set()
            assert go.wait(10)
            out.write(b"a" * 10)

    first = threading.Thread(target=write_whole, args=(path, slow))
    first.start()
    assert half.wait(10)
    write_whole(path, lambda part: part.write_bytes(b"b" * 20))
    assert path.read_bytes() == b"b" * 20
    go.set()
    first.join()
    assert path.read_bytes() == b"a" * 20
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    for text in ("one", "two"):

        def write(part, text=text):
            part.mkdir()
            (part / text).write_text(text)

        write_whole(tmp_path / "model", write)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["two"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_killed_processes_have_left_is_removed_and_what_others_write_now_is_not(tmp_path):
    for name in (".x.abc.part.npz", ".x.def.part.npz", ".y.abc.part.npz"):
        (tmp_path / name).write_text("half")
    for name in (".x.abc.part.npz", ".y.abc.part.npz"):
        os.utime(tmp_path / name, (time.time() - 7200, time.time() - 7200))
    write_whole(tmp_path / "x.npz", lambda part: part.write_text("whole"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [".x.def.part.npz", ".y.abc.part.npz", "x.npz"]


# -- digests --------------------------------------------------------------------------------------


def test_a_digest_is_of_the_content():
    x = np.arange(5000.0)
    changed = x.copy()
    changed[2500] += 1  # a `repr` leaves the middle out
    assert repr(x) == repr(changed)
    same = [x, x[:], np.asfortranarray(x), x.astype(">f8"), keras.ops.convert_to_tensor(x, "float64")]
    assert len({digest(v) for v in same}) == 1
    values = [x, changed, x.reshape(50, 100), x.astype("float32"), [1, [2]], [[1], 2], "1", 1, b"1", None, True, ["1"]]
    values += [
        {"a": 1, "b": 2},
        {"a": 2, "b": 1},
        np.array(["a", "b"]),
        np.zeros(0),
        np.zeros((0, 2)),
        1.5,
        float("inf"),
    ]
    assert len({digest(v) for v in values}) == len(values)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest(1, 2) == digest(np.int64(1), 2.0)
    with pytest.raises(ValueError, match="`values` must be arrays"):
        digest(object())


# -- identities -----------------------------------------------------------------------------------


def made(scale, power=2):
    def loss(logits, y):
        return scale * losses.margin(logits, y) ** power

    return loss


@dataclasses.dataclass(frozen=True)
class Noise:
    eps: float = 0.1

    def __call__(self, model, x, y, *, seed=0, progress=None):
        return x + self.eps


class Stateful:
    def __init__(self, eps):
        self.eps, self.calls = eps, 0

    def __call__(self, model, x, y, *, seed=0, progress=None):
        self.calls += 1
        return x


class Renamed:
    """Keeps its argument under another name."""

    def __init__(self, eps):
        self.radius = eps


class Counter(keras.callbacks.Callback):
    def __init__(self, patience=1, weights=None):
        super().__init__()
        self.patience, self.weights, self.seen = patience, weights, 0


def of(value):
    found = identity(value, "x")
    json.dumps(found, allow_nan=False)
    return found


LONG = np.linspace(0, 1, 2000)
OTHER = np.where(np.arange(2000) == 1000, 0.7, LONG)


@pytest.fixture(scope="module")
def seen():
    """What was found so far."""
    return {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: made(1.0),
        lambda: made(2.0),
        lambda: made(1.0, 3),
        lambda: lambda z, y: z,
        lambda: lambda z, y: z + 1,
        lambda: lambda z, y, k=1: z,
        lambda: lambda z, y, k=2: z,
        lambda: PGD(eps=0.1),
        lambda: PGD(eps=0.2),
        lambda: FGSM(eps=0.1),
        lambda: PGD(eps=LONG),
        lambda: PGD(eps=OTHER),
        lambda: PGD(eps=0.1, loss=made(1.0)),
        lambda: PGD(eps=0.1, loss=made(2.0)),
        lambda: PGD(eps=0.1, loss=losses.margin),
        lambda: GMA(),
        lambda: GMA(radii=(0.1, 0.2)),
        lambda: Noise(),
        lambda: Noise(0.2),
        lambda: Stateful(0.1),
        lambda: Stateful(0.2),
        lambda: Renamed(0.1),
        lambda: Renamed(0.2),
        lambda: Counter(),
        lambda: Counter(2),
        lambda: Counter(1, LONG),
        lambda: Counter(1, OTHER),
        lambda: keras.callbacks.EarlyStopping(patience=1),
        lambda: keras.callbacks.EarlyStopping(patience=2),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 3),
        lambda: functools.partial(made, 1.0),
        lambda: functools.partial(made, 2.0),
        lambda: networks.NETWORKS["target_dnn"],
        lambda: networks.NETWORKS["eat1"],
        lambda: Noise().__call__,
        lambda: [1, 2],
        lambda: {"a": {1, 2}},
        lambda: {1: "a"},
        lambda: float("inf"),
    ],
)
def test_what_is_made_again_is_the_same_and_what_differs_in_content_is_not(make, seen):
    found = of(make())
    assert found == of(make())
    text = json.dumps(found)
    assert text not in seen, seen[text]
    seen[text] = make


def test_the_settings_of_an_attack_can_be_read():
    found = of(FGSM(eps=0.1))
    assert found["class"] == "kerasdef.FGSM"
    assert found["eps"] == 0.1
    assert found["norm"] == {"class": "kerasdef.Linf"}


def test_use_does_not_change_an_object():
    attack, callback = Stateful(0.1), keras.callbacks.EarlyStopping(patience=1)
    before = of([attack, callback])
    attack(None, np.zeros(1), None)
    model = keras.Sequential([keras.Input((2,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.zeros((4, 2)), np.zeros(4), validation_split=0.5, verbose=0, callbacks=[callback])
    assert of([attack, callback]) == before


def small(units=3, activation="relu", wiring="straight"):
    first, second = layers.Dense(units, activation), layers.Dense(units)
    inputs = keras.Input((3,))
    hidden = first(inputs)
    return keras.Model(inputs, layers.Add()([second(hidden), hidden if wiring == "straight" else inputs]))


def test_a_model_is_known_by_its_layers_their_joints_and_its_weights_and_not_by_its_names():
    models = [small(), small(units=3, activation="tanh"), small(wiring="skip")]
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
    twin = small()  # Keras gives its layers other names
    twin.set_weights(models[0].get_weights())
    assert [layer.name for layer in twin.layers] != [layer.name for layer in models[0].layers]
    assert of(twin) == of(models[0])
    assert len({json.dumps(of(m)) for m in models}) == 3
    assert len({architecture(m) for m in models}) == 3
    twin.layers[1].kernel.assign(twin.layers[1].kernel + 1e-6)
    assert of(twin) != of(models[0])
    assert architecture(twin) == architecture(models[0])
    nested = [keras.Sequential([keras.Input((3,)), m]) for m in models]
    assert len({architecture(m) for m in nested}) == 3


def test_a_random_model_stays_the_same_when_it_is_asked():
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5), layers.Dense(2)])
    before = of(model)
    model(np.ones((1, 3), "float32"), training=True)
    assert of(model) == before


class Own(layers.Layer):
    def __init__(self, factor):
        super().__init__()
        self.factor = np.asarray(factor)

    def call(self, z):
        return z * self.factor


def test_a_model_whose_layers_do_not_say_how_they_were_made_has_an_identity():
    model = keras.Sequential([keras.Input((3,)), Own(2.0), layers.Dense(2)])
    assert of(model) == of(model)


SCRIPT = """
import json
from kerasdef.identity import identity
{body}
def loss(logits, y):
    return SCALE * helper(logits)
class Attack:
    norms = ("linf", "l2", {{"a", "b", "c"}} and 3)
    def __init__(self, eps): self.eps = eps
    def __call__(self, model, x, y, seed=0, progress=None):
        return x if "linf" in {{"linf", "l2", "l1"}} else super().__repr__()
print(json.dumps(identity([loss, Attack(0.1), lambda z: loss(z, 0)], "x"), sort_keys=True))
"""


def test_a_custom_loss_is_the_same_in_another_process_and_another_where_what_it_uses_differs(tmp_path):
    bodies = {
        "one": "SCALE = 2.0\ndef helper(z):\n    'A text.'\n    return z",
        "again": "# a comment\n\nSCALE = 2.0\ndef helper(z):\n    'Another text.'\n    return z",
        "constant": "SCALE = 3.0\ndef helper(z):\n    'A text.'\n    return z",
        "helper": "SCALE = 2.0\ndef helper(z): return -z",
    }
    running = {}
    for i, (name, body) in enumerate(bodies.items()):
        command = [sys.executable, "-c", textwrap.dedent(SCRIPT).format(body=body)]
        env = {**os.environ, "PYTHONHASHSEED": str(i + 1)}
        running[name] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
    found = {name: process.communicate()[0] for name, process in running.items()}
    assert all(process.returncode == 0 for process in running.values())
    assert found["again"] == found["one"]
    assert len(set(found.values())) == 3


def test_what_cannot_be_read_is_refused_with_what_to_do():
    lock = threading.Lock()

    def loss(z, y):
        with lock:
            return z

    for value in (lock, [lock], np.random.default_rng(0), loss, PGD(eps=0.1, loss=loss), open(os.devnull)):  # noqa: SIM115
        with pytest.raises(ValueError, match=r"`attacks` must be .* an attribute `digest`.* `get_config`"):
            identity(value, "attacks")
        found = identity(value, "attacks", strict=False)
        assert UNKNOWN in found
        with pytest.raises(ValueError, match=r"`attacks` must be .* Received: "):
            refuse_unknown({"attacks": found}, "")
    loss.digest = "version 1"
    assert of(loss)["digest"] == "version 1"


def test_an_object_may_say_itself_what_it_is():
    class Told:
        def __init__(self, path):
            self.handle = threading.Lock()
            self.path = path

        def get_config(self):
            return {"path": self.path}

    assert of(Told("a")) == of(Told("a"))
    assert of(Told("a")) != of(Told("b"))


def test_things_that_hold_each_other_have_an_identity():
    class Node:
        def __init__(self, other=None):
            self.other = other

    one = Node()
    one.other = Node(one)
    assert of(one) == of(one)
