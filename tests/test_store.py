"""The store of a run: pieces once, judging again where asked, the same run by content, seeds and costs."""

import keras
import numpy as np
import pytest
from helpers import at_once
from keras import layers

from kerasdef import losses
from kerasdef.attacks import PGD, sequence
from kerasdef.datasets import Dataset
from kerasdef.models import networks
from kerasdef.runs.cost import total
from kerasdef.runs.pieces import read_piece, restore, weights_piece, write_piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import EARLIER, Store
from kerasdef.training.state import read_state, write_state


def test_a_piece_is_made_once_and_found_with_every_bit(tmp_path):
    made = []

    def make():
        made.append(1)
        return {"x": np.float32([0.1, np.nan]), "y": np.zeros((0, 2), "int64")}, {"note": "a", "loss": 0.1}

    for _ in range(2):
        arrays, meta = Store(tmp_path / "run", {"seed": 0}).get("deep/piece", make, phase="p")
        assert arrays["x"].tobytes() == np.float32([0.1, np.nan]).tobytes()
        assert arrays["y"].shape == (0, 2)
        assert (meta["note"], meta["loss"]) == ("a", 0.1)
    assert len(made) == 1
    assert (tmp_path / "run" / "pieces" / "deep" / "piece.npz").is_file()


def test_without_a_folder_a_piece_is_made_each_time_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store, made = Store(None, {"anything": object()}), []
    for _ in range(2):
        store.get("x", lambda: (made.append(1) or {}, {}), phase="p")
    assert len(made) == 2
    assert store.path("x") is None
    assert not list(tmp_path.iterdir())


def test_a_piece_that_depends_on_more_is_made_again_for_other_values(tmp_path):
    made = []
    for given in ({"rows": (1, 2)}, {"rows": (1, 2)}, {"rows": (1, 3)}, {}):
        store = Store(tmp_path / "run", {})
        store.get("x", lambda given=given: (made.append(given) or {}, {}), phase="p", given=given)
    assert made == [{"rows": (1, 2)}, {"rows": (1, 3)}, {}]


def test_the_state_of_an_unfinished_piece_is_removed_when_it_is_finished(tmp_path):
    store = Store(tmp_path / "run", {"steps": 1}, judging=("steps",))
    other = Store(tmp_path / "run", {"steps": 2}, judging=("steps",))
    assert store.path("a") == other.path("a")
    assert store.path("a", judging=True) != other.path("a", judging=True)
    for path in (store.path("a"), store.path("b"), store.path("a", judging=True)):
        write_piece(path / "state.npz", {}, {})
    store.get("a", lambda: ({}, {}), phase="p")
    assert not store.path("a").exists()
    assert store.path("a", judging=True).exists()
    store.get("a", lambda: ({}, {}), phase="p", judging=True)
    assert not store.path("a", judging=True).exists()
    assert store.path("b").exists()


def test_seconds_of_earlier_processes_count(tmp_path):
    store = Store(tmp_path / "run", {})
    store.get("x", lambda: ({}, {EARLIER: 100.0}), phase="p")
    assert 100.0 <= store.seconds["p"] < 101.0


def test_the_innermost_setting_that_differs_is_named(tmp_path):
    Store(tmp_path / "run", {"attacks": {"pgd": PGD(eps=0.1), "bim": PGD(eps=0.1, steps=2)}, "n": 1})
    with pytest.raises(ValueError, match=r"differs in attacks/pgd/eps=0.2 \(there: 0.1\)$"):
        Store(tmp_path / "run", {"attacks": {"pgd": PGD(eps=0.2), "bim": PGD(eps=0.1, steps=2)}, "n": 1})


def test_arrays_that_differ_beyond_a_thousand_values_are_another_run(tmp_path):
    x = np.zeros(5000)
    Store(tmp_path / "run", {"x": x})
    Store(tmp_path / "run", {"x": x.copy()})
    x[2500] = 1.0
    with pytest.raises(ValueError, match="differs in x/digest="):
        Store(tmp_path / "run", {"x": x})


def test_settings_that_cannot_be_read_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="`attack` must be made of things whose content can be read"):
        Store(tmp_path / "run", {"attack": object()})
    assert not (tmp_path / "run").exists()


def _write(folder, number, barrier):
    barrier.wait()
    for _ in range(50):
        write_piece(folder / "x.npz", {"x": np.full(2000, number)}, {"number": number})


def test_processes_that_write_one_piece_at_once_leave_a_whole_one(tmp_path):
    others = at_once(2, _write, tmp_path)
    seen = 0
    while any(other.is_alive() for other in others) or not seen:
        if (tmp_path / "x.npz").exists():
            arrays, meta = read_piece(tmp_path / "x.npz")
            assert (arrays["x"] == meta["number"]).all()
            seen += 1
    assert [other.exitcode for other in others] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_a_piece_gives_every_weight_back(tmp_path):
    model = keras.Sequential([keras.Input((3,)), layers.Dropout(0.5), layers.Dense(2)])
    piece = weights_piece(model, {"loss": [1.0]})
    before = [keras.ops.convert_to_numpy(v) for v in model.variables]
    for variable in model.variables:
        variable.assign(variable + keras.ops.ones_like(variable))
    restore(model, piece)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_the_state_of_a_training_is_given_back_and_that_of_another_model_refused(tmp_path):
    def compiled(units):
        model = keras.Sequential([keras.Input((3,)), layers.Dense(units)])
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        return model

    model = compiled(2)
    model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
    write_state(tmp_path / "deep" / "state.npz", model, {"epoch": 1}, {"own": np.arange(3)})
    other = compiled(2)
    meta, arrays = read_state(tmp_path / "deep" / "state.npz", other)
    assert meta == {"epoch": 1}
    np.testing.assert_array_equal(arrays["own"], np.arange(3))
    for found, wanted in zip(other.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.array(found), np.array(wanted))
    with pytest.raises(ValueError, match="of the same model"):
        read_state(tmp_path / "deep" / "state.npz", compiled(3))


# -- attacks, seeds, costs, data ------------------------------------------------------------------


def test_an_attack_with_a_loss_of_ones_own_goes_on_and_one_with_another_loss_does_not(digits, digits_model, tmp_path):
    x, y = digits[2][:30], digits[3][:30]

    def attack(factor):
        def loss(logits, y):
            return factor * losses.margin(logits, y)

        return {"pgd": PGD(eps=0.1, steps=2, loss=loss)}

    found = sequence.run(attack(1.0), digits_model, x, y, out=tmp_path / "run", progress=False)
    again = sequence.run(attack(1.0), digits_model, x, y, out=tmp_path / "run", progress=False)
    np.testing.assert_array_equal(found.x_adv, again.x_adv)
    with pytest.raises(ValueError, match="differs in attacks/pgd/loss/function="):
        sequence.run(attack(-1.0), digits_model, x, y, out=tmp_path / "run", progress=False)


def test_seeds_of_any_size_stay_in_the_range_of_the_backends_and_differ():
    found = [derive(seed, i, j) for seed in (0, 1, 2**31, 10**12) for i in range(20) for j in range(20)]
    assert len(set(found)) == len(found)
    assert all(0 <= value < 2**31 for value in found)
    assert derive(0, "a", 1) == derive(0, "a", 1)


@pytest.mark.parametrize("seed", [2**31 - 1, 10**12])
def test_networks_can_be_built_from_large_seeds(seed):
    one, again = (networks.build("target_dnn", (8, 8, 1), 3, seed=s) for s in (seed, seed))
    other = networks.build("target_dnn", (8, 8, 1), 3, seed=seed - 1)
    same = [np.array_equal(a, b) for a, b in zip(one.get_weights(), again.get_weights(), strict=True)]
    assert all(same)
    assert not np.array_equal(one.get_weights()[0], other.get_weights()[0])


def test_blocks_of_a_sequence_have_seeds_within_the_range(digits, digits_model, monkeypatch):
    seeds = []
    real = PGD._result
    monkeypatch.setattr(PGD, "_result", lambda self, *a: seeds.append(a[4]) or real(self, *a))
    monkeypatch.setattr(sequence, "BLOCK", 10)
    x, y = digits[2][:40], digits[3][:40]
    parts = {name: PGD(eps=0.001, steps=1) for name in "abc"}
    sequence.run(parts, digits_model, x, y, seed=2**31 - 1, progress=False)
    assert len(seeds) == len(set(seeds)) >= 9
    assert max(seeds) < 2**31


def test_costs_add_up_and_memory_is_the_largest():
    costs = [
        {"gradients": 1.0, "seconds": 2.0, "peak_bytes": 5.0},
        {"gradients": 1.0, "seconds": 1.0, "peak_bytes": 3.0},
    ]
    assert total(costs) == {"gradients": 2.0, "seconds": 3.0, "peak_bytes": 5.0}


def test_the_fingerprint_of_a_data_set_is_of_every_sample_label_and_group():
    rng = np.random.default_rng(0)
    x, y = rng.random((40, 6), "float32"), np.arange(40) % 2
    one = Dataset.from_arrays(x[:30], y[:30], x[30:], y[30:])
    assert one.fingerprint == Dataset.from_arrays(x[:30].copy(), y[:30], x[30:], y[30:], name="other").fingerprint
    changed, labels = x.copy(), y.copy()
    changed[35, 5] += 1e-3
    labels[35] = 1 - labels[35]
    others = [
        Dataset.from_arrays(changed[:30], y[:30], changed[30:], y[30:]),
        Dataset.from_arrays(x[:30], labels[:30], x[30:], labels[30:]),
        one.resplit(0.3),
    ]
    assert len({d.fingerprint for d in [one, *others]}) == 4
