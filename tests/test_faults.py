"""Faults: outputs that would destroy something, two processes, damaged files, kills at any moment, full disks."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings

import keras
import numpy as np
import pytest
from helpers import Commands, at_once
from keras import layers

from kerasdef import models
from kerasdef.attacks import APGD, FAB, PGD, HopSkipJump, Restarts, Square, sequence
from kerasdef.evaluation import Outcome
from kerasdef.files import is_part, remove, write_text, write_whole
from kerasdef.models.export import export, export_run
from kerasdef.models.loading import read_keras
from kerasdef.models.served import FACTS, facts_of
from kerasdef.recipes.attack import attack as run_attack
from kerasdef.reporting import Report
from kerasdef.runs import keeping
from kerasdef.runs.cost import Cost
from kerasdef.runs.pieces import Damaged, read_piece, write_piece
from kerasdef.runs.store import RUN, Store
from kerasdef.training import AdversarialTraining, Mixture, Resume

TENSORFLOW = keras.backend.backend() == "tensorflow"


def contents(folder):
    """Every file in a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def linear():
    """A tiny classifier of the digits."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run as a training leaves it: settings, pieces, a report and a model."""
    folder = tmp_path_factory.mktemp("runs") / "fast"
    settings = {"recipe": "robust", "seed": 3}
    store = Store(folder, settings)
    store.get("model", lambda: ({"w": np.arange(5.0)}, {}), phase="training")
    report(settings).save(folder)
    export(linear(), folder / "model.keras", to="keras", facts={"run": settings})
    return folder


def report(settings, said=0):
    return Report([Outcome("m", "adaptive", "clean", np.zeros(4), np.full(4, said))], classes=2, settings=settings)


# -- where an output may be written ----------------------------------------------------------------


@pytest.mark.parametrize("to", ["saved_model", "keras"])
def test_an_export_replaces_no_file_of_the_users(finished, tmp_path, refused, to):
    run = shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "notes.keras").write_text("words")
    (tmp_path / "served").mkdir()
    for name in ("saved_model.pb", "thesis.txt"):
        (tmp_path / "served" / name).write_text("words")
    linear().save(tmp_path / "mine.keras")
    before = contents(tmp_path)
    places = [tmp_path / "notes.keras", tmp_path / "served", tmp_path / "mine.keras", run]
    places += [run / "model.keras"] if to == "saved_model" else []
    for place in places:
        said = refused("export", run, "--to", to, "--out", place)
        if to == "saved_model" or place.suffix == ".keras":
            assert "earlier export of the same kind and run" in said
        assert str(place) in said
    for place in ("/proc/x", tmp_path / "notes.keras" / "x"):
        assert str(place) in refused("export", run, "--to", "saved_model", "--out", f"{place}/y")
    said = refused("export", tmp_path / "mine.keras", "--to", "keras")  # onto itself
    assert "was not exported by kerasdef" in said
    assert contents(tmp_path) == before


@pytest.mark.skipif(not TENSORFLOW, reason="a SavedModel is written by TensorFlow")
def test_an_export_replaces_that_of_the_same_run_and_of_no_other(finished, tmp_path):
    model = linear()
    for to, name in (("saved_model", "served"), ("keras", "m.keras")):
        export(model, tmp_path / name, to=to, facts={"run": {"seed": (1, 2)}})
        export(model, tmp_path / name, to=to, facts={"run": {"seed": [1, 2]}})
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="is the export of another run"):
            export(model, tmp_path / name, to=to, facts={"run": {"seed": 2}})
        assert contents(tmp_path) == before
    (tmp_path / "served" / "notes.txt").write_text("words")
    with pytest.raises(ValueError, match=r"holds other files \(notes.txt\)"):
        export(model, tmp_path / "served", facts={"run": {"seed": [1, 2]}})
    run = shutil.copytree(finished, tmp_path / "run")
    for _ in range(2):
        export_run(run, to="keras")  # in its place
        export_run(run)


def test_the_report_of_an_attack_does_not_take_the_place_of_a_run(finished, tmp_path, refused):
    run = shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "attack.csv").write_text("words")
    before = contents(tmp_path)
    for place, what in ((run, "the run of a training"), (tmp_path / "mine", "other files")):
        said = refused("attack", run, "--attack", "fgsm", "--eps", "0.1", "--n", "20", "--out", place)
        assert what in said
        assert str(place) in said
    assert contents(tmp_path) == before


def test_a_report_takes_the_place_of_its_own_only(finished, tmp_path):
    one = report({"seed": 1})
    for _ in range(2):
        one.save(tmp_path / "a")
    report({"seed": 1}, said=1).save(tmp_path / "a")  # judged again
    assert Report.load(tmp_path / "a") != one
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "report.csv").write_text("words")
    run = shutil.copytree(finished, tmp_path / "run")
    before = contents(tmp_path)
    for place in ("a", "b", "run"):
        with pytest.raises(ValueError, match="must be a new or empty folder, or one with an earlier report"):
            report({"seed": 2}).save(tmp_path / place)
    with pytest.raises(ValueError, match="which is a file"):
        one.save(tmp_path / "b" / "report.csv")
    assert contents(tmp_path) == before
    Report.load(run).save(run)


def test_a_folder_of_the_users_in_the_place_of_a_file_stays(tmp_path):
    one = report({"seed": 0})
    for name in ("report.html", "outcomes.npz", "run.json", "pieces/a.npz", "model.keras"):
        run = tmp_path / name.replace("/", "_")
        one.save(run)
        write_text(run / RUN, '{"seed": 0}')
        folder_of(run)
        remove(run / name)
        (run / name).mkdir()
        (run / name / "precious").write_text("words")
        with pytest.raises(ValueError, match=f"{run / name} must be a file: move the folder"):
            folder_of(run)
        if name.startswith(("report", "outcomes")):
            with pytest.raises(ValueError, match=f"{run / name} must be a file: move the folder"):
                one.save(run)
        with pytest.raises(IsADirectoryError, match=f"which no file replaces: move it elsewhere: '{run / name}'"):
            write_text(run / name, "other")
        assert contents(run / name) == {"precious": b"words"}
        assert not [p for p in run.rglob("*") if is_part(p)]


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    for name in ("pieces", "figures", "saved_model"):
        run = tmp_path / name
        folder_of(run)
        remove(run / name)
        (run / name).write_text("words")
        with pytest.raises(ValueError, match=f"{run / name} must be a folder: move the file"):
            folder_of(run)
    with pytest.raises(ValueError, match=f"{tmp_path / 'figures' / 'figures'} must be a folder: move the file"):
        report({}).save(tmp_path / "figures")


# -- two processes ---------------------------------------------------------------------------------


def _hold(folder, ready, settings):
    store = Store(folder, settings)
    ready.set()
    time.sleep(60)
    store.get("x", lambda: ({}, {}), phase="p")


def test_two_processes_do_not_work_in_one_folder_and_a_lock_ends_with_its_process(tmp_path):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "run", ready, {"seed": 0}))
    other.start()
    assert ready.wait(30)
    with pytest.raises(ValueError, match=rf"`out` must be .* in which process {other.pid} on .* is working"):
        Store(tmp_path / "run", {"seed": 0})
    other.kill()
    other.join()
    one, two = Store(tmp_path / "run", {"seed": 0}), Store(tmp_path / "run", {"seed": 0})  # parts of one process
    assert one.get("x", lambda: ({}, {"a": 1}), phase="p")[1]["a"] == 1
    assert two.get("x", lambda: pytest.fail("made again"), phase="p")[1]["a"] == 1


def test_where_there_are_no_locks_a_run_goes_on(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", none)
    Store(tmp_path / "run", {}).get("x", lambda: ({}, {"a": 1}), phase="p")
    assert Store(tmp_path / "run", {}).get("x", lambda: pytest.fail("made again"), phase="p")[1]["a"] == 1


def _put(folder, number, barrier):
    def write(part):
        part.mkdir()
        for i in range(5):
            (part / str(i)).write_text(str(number))

    barrier.wait()
    for _ in range(40):
        write_whole(folder / "served", write)


def test_processes_that_write_one_folder_at_once_leave_a_whole_one(tmp_path):
    others = at_once(3, _put, tmp_path)
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["served"]
    assert len({p.read_text() for p in (tmp_path / "served").iterdir()}) == 1
    assert len(list((tmp_path / "served").iterdir())) == 5


# -- damage ----------------------------------------------------------------------------------------


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {"cut": cut, "empty": lambda data: b"", "flipped": flipped, "words": lambda data: b"words" * 9}


def folder_of(tmp_path, seed=0):
    """A run of two pieces: what is made, in a list."""
    made = []

    def make(name):
        made.append(name)
        return {"x": np.full(500, float(ord(name) + seed))}, {}

    store = Store(tmp_path, {"seed": seed})
    found = {name: store.get(name, lambda name=name: make(name), phase="p")[0]["x"] for name in "ab"}
    return found, made


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_piece_is_named_and_made_again(tmp_path, kind):
    whole, _ = folder_of(tmp_path / "run")
    path = tmp_path / "run" / "pieces" / "a.npz"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.warns(UserWarning, match=rf"{path} is damaged.*: it is made again\.$"):
        found, made = folder_of(tmp_path / "run")
    assert made == ["a"]
    for name in "ab":
        np.testing.assert_array_equal(found[name], whole[name])
    assert folder_of(tmp_path / "run")[1] == []


def test_pieces_of_other_names_and_runs_are_not_taken_for_ones_own(tmp_path):
    whole, _ = folder_of(tmp_path / "run")
    pieces = tmp_path / "run" / "pieces"
    for a, b in (("a", "c"), ("b", "a"), ("c", "b")):
        (pieces / f"{a}.npz").rename(pieces / f"{b}.npz")
    with pytest.warns(UserWarning, match="of another part of this one: it is made again"):
        found, made = folder_of(tmp_path / "run")
    assert made == ["a", "b"]
    np.testing.assert_array_equal(found["a"], whole["a"])
    folder_of(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "pieces" / "a.npz", pieces / "a.npz")
    with pytest.warns(UserWarning, match="is of another run"):
        found, made = folder_of(tmp_path / "run")
    assert made == ["a"]
    np.testing.assert_array_equal(found["a"], whole["a"])


@pytest.mark.parametrize("kind", ["cut", "empty", "words"])
def test_a_damaged_record_is_made_again_where_the_pieces_tell_and_refused_by_name_where_not(tmp_path, kind):
    folder_of(tmp_path / "run")
    record = tmp_path / "run" / RUN
    whole = record.read_bytes()
    record.write_bytes(DAMAGE[kind](whole))
    with pytest.raises(ValueError, match=rf"whose {RUN} is damaged, .*: take another folder"):
        Store(tmp_path / "run", {"seed": 1})
    with pytest.warns(UserWarning, match=rf"{record} is damaged: it is made again"):
        assert folder_of(tmp_path / "run")[1] == []
    assert record.read_bytes() == whole
    shutil.rmtree(tmp_path / "run" / "pieces")
    record.write_bytes(DAMAGE[kind](whole))
    with pytest.raises(ValueError, match=rf"whose {RUN} is damaged"):
        folder_of(tmp_path / "run")


def test_a_process_that_died_while_it_wrote_the_record_does_not_block_its_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".run.0123456789abcdef.part.json").write_text('{"see')
    assert folder_of(tmp_path / "run")[1] == ["a", "b"]


def test_a_model_beside_a_damaged_record_is_refused_by_name(tmp_path, refused):
    linear().save(tmp_path / "m.keras")
    (tmp_path / RUN).write_text("")
    said = refused("attack", tmp_path / "m.keras", "--attack", "fgsm", "--eps", "0.1")
    assert str(tmp_path / RUN) in said


@pytest.mark.parametrize("kind", ["cut", "empty"])
def test_a_damaged_export_in_its_run_is_made_again_and_elsewhere_it_stays(tmp_path, kind):
    formats = {"model.keras": "keras"} | ({"saved_model": "saved_model"} if TENSORFLOW else {})
    run, facts = tmp_path / "run", {"run": {"seed": 0}}
    store = Store(run, {"seed": 0})
    for name, to in formats.items():
        for place in (run / name, tmp_path / name):
            export(linear(), place, to=to, facts=facts)
            damaged = place if to == "keras" else place / FACTS
            damaged.write_bytes(DAMAGE[kind](damaged.read_bytes()))
        with pytest.warns(UserWarning, match=f"{run / name} is damaged: it is made again"):
            export(linear(), run / name, to=to, facts=facts)
        assert facts_of(run / name)["run"] == facts["run"]
        before = contents(tmp_path)
        with pytest.raises(ValueError, match="is damaged, or was not exported by kerasdef"):
            export(linear(), tmp_path / name, to=to, facts=facts)
        assert contents(tmp_path) == before
    (run / "notes.keras").write_text("words")
    linear().save(run / "mia.keras")
    for name in ("notes.keras", "mia.keras"):  # of the user's
        with pytest.raises(ValueError, match="was not exported by kerasdef"):
            export(linear(), run / name, to="keras", facts=facts)
    del store


# -- training, killed within an epoch --------------------------------------------------------------


class Kill(BaseException):
    """Stands for SIGKILL: nothing catches it."""


class KillAt(keras.callbacks.Callback):
    def __init__(self, at):
        super().__init__()
        self.left = at

    def on_train_batch_begin(self, batch, logs=None):
        self.left -= 1
        if self.left < 0:
            raise Kill


def train(path, digits, *extra, epochs=3):
    """A trainer with random parts, metrics and an averaged optimizer; returns what a training leaves."""
    keras.utils.set_random_seed(1)
    net = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dropout(0.3, seed=2), layers.Dense(10)])
    trainer = AdversarialTraining(net, PGD(eps=0.1, steps=2))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trainer.compile(keras.optimizers.Adam(0.01, use_ema=True), loss, metrics=["accuracy"], jit_compile=False)
    data = Mixture([(digits[0][:120], digits[1][:120])], batch_size=10, seed=4)
    swap = keras.callbacks.SwapEMAWeights(swap_on_epoch=True)
    cost = Cost(120)
    resume = Resume(path, data, [cost, swap], seconds=1e-9)
    callbacks = [*extra, cost, swap, resume]
    history = trainer.fit(data, epochs=epochs, shuffle=False, callbacks=callbacks, verbose=0).history
    return net.get_weights(), history, cost.gradients


@pytest.fixture
def every_step(monkeypatch):
    """States are written whenever one may be."""
    monkeypatch.setattr(keeping, "COST", 0.0)
    monkeypatch.setattr(keeping, "SECONDS", 0.0)
    monkeypatch.setattr(keeping, "CHUNK", 0.0)


def test_a_training_killed_within_its_epochs_ends_with_the_same_weights(digits, tmp_path, every_step):
    whole = train(tmp_path / "whole.npz", digits)
    again, trained = None, 0
    for at in [5, 3, 17, 40]:  # steps that each process trains before it is killed
        if again is None:
            with contextlib.suppress(Kill):
                before = (
                    read_piece(tmp_path / "x.npz")[1] if (tmp_path / "x.npz").exists() else {"epoch": 0, "steps": 0}
                )
                again = train(tmp_path / "x.npz", digits, KillAt(before["steps"] + at))
                trained += 1
    assert again is not None  # 36 steps in all: they get on although no epoch of 12 was whole at first
    for one, two in zip(whole[0], again[0], strict=True):
        np.testing.assert_array_equal(one, two)
    assert whole[1] == again[1]
    assert whole[2] == again[2]


def test_a_state_that_is_damaged_or_anothers_is_set_aside(digits, tmp_path, every_step):
    path = tmp_path / "x.npz"
    with contextlib.suppress(Kill):
        train(path, digits, KillAt(5))
    data = cut(path.read_bytes())
    path.write_bytes(data)
    with pytest.warns(UserWarning, match=rf"{path} is damaged.*It is now named x.npz.damaged, and the training begins"):
        train(path, digits, epochs=1)
    assert (tmp_path / "x.npz.damaged").read_bytes() == data
    np.savez(path, mine=np.arange(3))
    with pytest.warns(UserWarning, match=r"now named x.npz.damaged1"):
        train(path, digits, epochs=1)
    with np.load(tmp_path / "x.npz.damaged1") as found:
        assert found.files == ["mine"]


# -- attacks, killed within a block ----------------------------------------------------------------

ATTACKS = {
    "pgd": PGD(eps=0.05, steps=12),
    "apgd": APGD(eps=0.05, steps=8, restarts=2),
    "fab": FAB(eps=0.05, steps=6, restarts=2),
    "restarts": Restarts(PGD(eps=0.02, steps=4), 3),
    "square": Square(eps=0.05, queries=25),
    "hop_skip_jump": HopSkipJump(queries=200),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_killed_again_and_again_gets_on_and_ends_with_the_same(
    name, digits, digits_model, tmp_path, monkeypatch, every_step
):
    x, y = digits[2][:40], digits[3][:40].astype("int32")
    parts = {name: ATTACKS[name]}
    options = {"progress": False, "seed": 5, "batch_size": 16}
    whole = sequence.run(parts, digits_model, x, y, **options)
    real, left, written = keeping.Keeper.write, [0], []

    def write(self, *args, **kwargs):
        real(self, *args, **kwargs)
        written.append(self.path)
        left[0] -= 1
        if left[0] <= 0:
            raise Kill

    monkeypatch.setattr(keeping.Keeper, "write", write)
    rng, kills, found = random.Random(1), 0, None
    while found is None:
        left[0] = rng.randint(1, 6)
        try:
            found = sequence.run(parts, digits_model, x, y, out=tmp_path / "run", **options)
        except Kill:
            kills += 1
        assert kills < 400
    assert kills >= 2
    for field in ("x_adv", "broken_by", "evaluations"):
        np.testing.assert_array_equal(getattr(found, field), getattr(whole, field))
    assert not list((tmp_path / "run").rglob("loop*"))


def test_a_state_of_other_images_is_not_taken_up(digits, digits_model, tmp_path, every_step, monkeypatch):
    attack, wanted = PGD(eps=0.05, steps=6), None
    real = keeping.Keeper.write

    def write(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Kill

    for first, count in ((0, 30), (50, 30)):
        x, y = digits[2][first : first + count], digits[3][first : first + count]
        wanted = attack(digits_model, x, y, progress=False)
        if first == 0:
            monkeypatch.setattr(keeping.Keeper, "write", write)
            with contextlib.suppress(Kill), keeping.kept(tmp_path / "s"):
                attack(digits_model, x, y, progress=False)
            monkeypatch.setattr(keeping.Keeper, "write", real)
    assert list((tmp_path / "s").glob("loop0001.npz"))
    with keeping.kept(tmp_path / "s"):
        np.testing.assert_array_equal(attack(digits_model, x, y, progress=False), wanted)


def test_the_clock_is_looked_at_often_and_states_that_take_long_are_written_seldom(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(keeping.time, "monotonic", lambda: now[0])
    pace = keeping.Pace(1.0)
    for cost, due in ((0.01, 1.0), (0.5, 10.0), (5.0, keeping.LONGEST)):
        with pace.writing():
            now[0] += cost
        now[0] += due - 0.01
        assert not pace.due()
        now[0] += 0.02
        assert pace.due()
    with keeping.kept(tmp_path):
        keep = keeping.Keeper("work")
    taken = []
    for count in keep.chunks(1000):
        taken.append(count)
        now[0] += (30.0 if len(taken) == 1 else 0.1) * count  # the first step is compiled
    assert sum(taken) == 1000
    assert max(taken[1:]) * 0.1 <= keeping.CHUNK + 1e-6


# -- disks -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def full(size):
    """No file of this process may grow beyond a size, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_the_path_is_named_what_was_finished_is_kept_and_the_run_goes_on(tmp_path):
    made = []

    def run():
        store = Store(tmp_path / "run", {})
        for name, size in (("small", 10), ("large", 50_000)):
            arrays = {"x": np.random.default_rng(0).random(size)}
            store.get(name, lambda name=name, arrays=arrays: (made.append(name) or arrays, {}), phase="p")

    with full(20_000), pytest.raises(OSError, match=r"could not be written: '.*run/pieces/large\.npz'$") as error:
        run()
    assert "\n" not in str(error.value)
    assert not [p for p in (tmp_path / "run").rglob("*") if ".part" in p.name]
    run()
    assert made == ["small", "large", "large"]


@pytest.mark.slow
def test_an_attack_on_a_full_disk_keeps_no_state_and_says_so_and_ends_with_one_line(tmp_path, refused, every_step):
    linear().save(tmp_path / "m.keras")
    words = ["attack", tmp_path / "m.keras", "--attack", "pgd", "--eps", "0.1", "--n", "300", "--out", tmp_path / "out"]
    with full(12_000), pytest.warns(UserWarning, match="until this part is over its state is not kept"):
        said = refused(*words)
    assert str(tmp_path / "out") in said
    assert "could not be written" in said
    found = run_attack(tmp_path / "m.keras", "digits", "pgd", eps=0.1, n=300, out=tmp_path / "out", progress=False)
    assert found.files["result"].is_file()


@pytest.mark.parametrize("to", ["keras", "saved_model"])
def test_an_export_that_does_not_fit_names_the_path_and_leaves_what_was_there(tmp_path, to):
    if to == "saved_model" and not TENSORFLOW:
        pytest.skip("a SavedModel is written by TensorFlow")
    path = tmp_path / ("m.keras" if to == "keras" else "served")
    export(linear(), path, to=to)
    before = contents(tmp_path)
    with full(3000), pytest.raises(OSError, match=rf"could not be written: '{path}'"):
        export(linear(), path, to=to)
    assert contents(tmp_path) == before


def test_a_model_whose_weights_cannot_be_unpacked_is_named(tmp_path):
    export(linear(), tmp_path / "m.keras", to="keras", facts={"run": {}})
    with full(3000), pytest.raises(OSError, match=rf"File too large, so its weights .*: '{tmp_path}/m\.keras'"):
        read_keras(tmp_path / "m.keras")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root mounts a file system")
def test_a_small_file_system_and_one_that_is_read_only(tmp_path):
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        store = Store(place / "run", {})
        store.get("small", lambda: ({}, {}), phase="p")
        big = {"x": np.random.default_rng(0).random(20_000)}
        with pytest.raises(OSError, match=r"No space left on device, so it could not be written: '.*large\.npz'"):
            store.get("large", lambda: (big, {}), phase="p")
        store.get("small", lambda: pytest.fail("made again"), phase="p")
        del store  # a file that is open for writing keeps a disk writable
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        store = Store(place / "run", {})
        with pytest.raises(OSError, match=r"Read-only file system, so it could not be written: '.*other\.npz'"):
            store.get("other", lambda: ({}, {}), phase="p")
        with pytest.raises(ValueError, match=r"`out` must be a folder that can be written to. .*Read-only"):
            Store(place / "new", {})
    finally:
        del store
        subprocess.run(["umount", "-l", place], check=True)


def test_folders_that_cannot_be_made_are_refused_before_work(tmp_path, refused):
    linear().save(tmp_path / "m.keras")
    (tmp_path / "notes.txt").write_text("words")
    for place in ("/proc/x", tmp_path / "notes.txt", tmp_path / "notes.txt" / "x"):
        for words in (
            ("attack", tmp_path / "m.keras", "--attack", "fgsm", "--eps", "0.1", "--n", "20"),
            ("train", "fast", "--n-train", "300", "--epochs", "1"),
        ):
            said = refused(*words, "--out", place)
            assert "`out` must be a folder" in said
            assert str(place) in said
    assert (tmp_path / "notes.txt").read_text() == "words"


def test_errors_of_the_network_and_of_other_files_keep_their_names(tmp_path):
    def missing(part):
        (tmp_path / "other.txt").read_text()

    with pytest.raises(FileNotFoundError, match=r"other\.txt"):
        write_whole(tmp_path / "x.npz", missing)

    def away(part):
        raise ConnectionResetError(104, "Connection reset by peer")

    with pytest.raises(ConnectionResetError, match=r"reset by peer$"):
        write_whole(tmp_path / "x.npz", away)
    (tmp_path / "real.txt").write_text("one")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    write_text(tmp_path / "link.txt", "two")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "two"


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path, monkeypatch):
    write_piece(tmp_path / "x.npz", {}, {})

    def none(*_, **__):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(np, "load", none)
    with pytest.raises(OSError, match="Too many open files") as error:
        read_piece(tmp_path / "x.npz")
    assert not isinstance(error.value, Damaged)


# -- real kills ------------------------------------------------------------------------------------


def command(*words):
    return [sys.executable, "-m", "kerasdef", *map(str, words)]


def ended_after_kills(commands, words, out, kills, seconds):
    """Run a command that is killed at random moments of its work, until that was often enough: where it then ended."""
    rng, killed, ended = random.Random(kills), 0, []
    while killed < kills:
        process = commands.start(*words, "--out", out / str(len(ended)))
        if not commands.ended(rng.uniform(0.0, seconds)):
            os.kill(process, signal.SIGKILL)
        status = commands.status()
        assert status in (0, -signal.SIGKILL)
        if status == 0:  # before it could be killed: it begins anew, elsewhere
            ended.append(out / str(len(ended)))
        killed += status != 0
    commands.run(*words, "--out", out / str(len(ended)))
    return [*ended, out / str(len(ended))]


def told(folder):
    """What a report says, without times."""
    record = json.loads((folder / "report.json").read_text())
    for name in ("phases", "costs", "machine", "versions"):
        record.pop(name)
    for section in record["sections"]:
        for row in section.get("rows") or ():
            row.pop("seconds", None)
    return record


@pytest.fixture(scope="module")
def commands():
    found = Commands()
    yield found
    found.close()


# kills of each command; 20 or more for evidence, as many as the gate has time for by default
KILLS = int(os.environ.get("KERASDEF_KILLS", "4"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "attack"])
def test_kills_at_random_moments_end_with_the_same_report(kind, tmp_path, commands):
    if kind == "train":
        words = ["train", "fast", "--n-train", "400", "--epochs", "15", "--n-test", "50", "--no-autoattack"]
    else:
        linear().save(tmp_path / "m.keras")
        words = ["attack", tmp_path / "m.keras", "--attack", "square", "--eps", "0.05", "--set", "queries=2000"]
    began = time.monotonic()
    commands.run(*words, "--out", tmp_path / "whole")
    seconds = time.monotonic() - began
    for folder in ended_after_kills(commands, words, tmp_path / "killed", KILLS, seconds):
        assert told(folder) == told(tmp_path / "whole")


@pytest.mark.slow
def test_with_few_open_files_a_command_works_or_ends_with_one_line(tmp_path):
    linear().save(tmp_path / "m.keras")
    words = command("attack", tmp_path / "m.keras", "--attack", "fgsm", "--eps", "0.1", "--out", tmp_path / "out")

    def few():
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    done = subprocess.run(words, capture_output=True, text=True, preexec_fn=few)
    lines = [line for line in done.stderr.splitlines() if line.startswith(("Error", "Traceback"))]
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 2)
    assert len(lines) == (done.returncode == 2)


def test_a_callable_is_asked_the_same_when_a_run_goes_on(digits, digits_model, tmp_path, monkeypatch, every_step):
    """A callable is told apart by what it does; queries that were spent before a kill count once."""
    x, y = digits[2][:20], digits[3][:20]

    def serve(images):
        return models.predict_logits(digits_model, images)

    serve.digest = "the digits"
    parts = {"square": Square(eps=0.05, queries=15)}
    whole = sequence.run(parts, serve, x, y, progress=False)
    real = keeping.Keeper.write

    def write(self, *args, **kwargs):
        real(self, *args, **kwargs)
        raise Kill

    for i in range(3):
        monkeypatch.setattr(keeping.Keeper, "write", write)
        with pytest.raises(Kill):
            sequence.run(parts, serve, x, y, progress=False, out=tmp_path / "run")
        assert i < 3
    monkeypatch.setattr(keeping.Keeper, "write", real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sequence.run(parts, serve, x, y, progress=False, out=tmp_path / "run")
    np.testing.assert_array_equal(found.x_adv, whole.x_adv)
    np.testing.assert_array_equal(found.evaluations, whole.evaluations)


def test_where_the_last_step_of_a_write_fails_the_folder_that_was_there_stays(tmp_path, monkeypatch):
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "mine").write_text("earlier")
    real = os.replace

    def replace(one, other):
        if str(other).endswith("served") and ".old" not in str(one):
            raise OSError(errno.EIO, "Input/output error")
        real(one, other)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="served"):
        write_whole(tmp_path / "served", lambda part: part.mkdir())
    assert [p.name for p in tmp_path.iterdir()] == ["served"]
    assert (tmp_path / "served" / "mine").read_text() == "earlier"
