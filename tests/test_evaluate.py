"""Plans: images are made on whom they say, kept in a store, and judged by the defense's own decision."""

import keras
import numpy as np
import pytest
from keras import layers

from kerasdef.attacks import FGSM, PGD, AutoAttack, CarliniWagner, Cycled, Restarts, Square, Transfer, WorstOf
from kerasdef.datasets import Dataset
from kerasdef.defenses import RejectClass
from kerasdef.evaluation import Images, Plan, Planned, evaluate
from kerasdef.evaluation.judging import reach
from kerasdef.norms import L2, Linf
from kerasdef.runs import keeping
from kerasdef.runs.store import Store

EPS = 0.1


def linear(seed, outputs):
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(outputs)], name=f"linear{seed}")
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(size=(16, outputs)), np.zeros(outputs)])
    return model


@pytest.fixture(scope="module")
def net():
    """A linear model of three classes and one output for rejected images."""
    return linear(0, 4)


@pytest.fixture(scope="module")
def data(net):
    x = np.random.default_rng(1).random((40, 4, 4, 1), dtype="float32")
    y = keras.ops.convert_to_numpy(net(x))[:, :3].argmax(axis=1)  # some are rejected when clean
    return Dataset.from_arrays(x, y, x, y)


def test_an_attack_on_the_defense_has_its_goal_and_the_outcome_its_decision_norm_and_radius(net, data):
    defense, rows = RejectClass(net), np.arange(5, 35)
    plan = Plan("m", rows, adaptive={"pgd": Planned(PGD(eps=EPS, steps=5)), "l2": Planned(FGSM(norm="l2", eps=0.5))})
    found = evaluate(defense, data, plan, progress=False)
    clean, pgd, l2 = found.outcomes
    x, y = data.x_test[rows], data.y_test[rows]
    assert [(o.column, o.attack, o.norm) for o in found.outcomes] == [
        ("adaptive", "clean", None),
        ("adaptive", "pgd", "Linf"),
        ("adaptive", "l2", "L2"),
    ]
    model, goal = defense.surface()
    wanted = PGD(eps=EPS, steps=5, goal=goal)(model, x, y, progress=False)
    np.testing.assert_array_equal(found.images["adaptive", "pgd"], wanted)
    np.testing.assert_array_equal(pgd.predicted, defense.decide(wanted).label)
    np.testing.assert_array_equal(pgd.index, rows)
    np.testing.assert_allclose(pgd.score, defense.decide(wanted).score)
    np.testing.assert_allclose(pgd.radius, np.full(30, EPS), rtol=1e-6)
    moved = found.images["adaptive", "l2"] - x
    np.testing.assert_allclose(l2.distance, np.linalg.norm(moved.reshape(30, -1), axis=1), rtol=1e-5)
    assert {o.access for o in (clean, pgd, l2)} == {"gradients"}


def test_images_of_another_model_are_shown_and_do_not_count_as_attacks_on_this_one(net, data):
    other, rows = linear(7, 4), np.arange(20)
    made = np.clip(data.x_test[3:6] + 0.05, 0, 1)
    paper = {
        "gray": Planned(PGD(eps=EPS, steps=3), on=other),
        "white": Planned(PGD(eps=EPS, steps=3), on=net, access="gradients"),
        "made": Images(made, np.arange(3, 6), np.full(3, 0.05), "linf"),
    }
    found = evaluate(RejectClass(net), data, Plan("m", rows, paper=paper), progress=False)
    _, gray, white, ready = found.outcomes
    assert [o.column for o in found.outcomes] == ["paper"] * 4
    assert [o.access for o in (gray, white, ready)] == ["none", "gradients", "none"]
    wanted = PGD(eps=EPS, steps=3)(other, data.x_test[:20], data.y_test[:20], progress=False)
    np.testing.assert_array_equal(found.images["paper", "gray"], wanted)
    np.testing.assert_array_equal(ready.y, data.y_test[3:6])
    assert ready.distance.max() <= 0.05 + 1e-6


@pytest.mark.parametrize("folder", [True, False])
def test_pieces_are_kept_with_their_flags_and_found_again(net, data, tmp_path, monkeypatch, folder):
    attacks = {
        "auto": Planned(AutoAttack(version="custom", parts=("apgd-ce", "apgd-t"), eps=EPS)),
        "pgd": Planned(PGD(eps=EPS, steps=3), piece="shared", phase="attacks"),
    }
    plan, out = Plan("m", np.arange(12), adaptive=attacks), tmp_path / "run" if folder else None
    three = linear(0, 3)
    store = Store(out, {})
    with pytest.warns(UserWarning, match="With 3 classes"):
        found = evaluate(three, data, plan, store, progress=False)
    assert len(found.flags) == 1
    assert "With 3 classes" in found.flags[0]
    assert list(store.seconds) == ["attack adaptive/auto", "attacks"]
    assert list(found.results["adaptive", "auto"].table["attack"]) == ["apgd-ce", "apgd-t"]
    if not folder:
        return
    assert (out / "pieces" / "shared.npz").is_file()
    monkeypatch.setattr(AutoAttack, "run", None)  # calling them would fail
    monkeypatch.setattr(PGD, "__call__", None)
    again = evaluate(three, data, plan, Store(out, {}), progress=False)
    assert again.outcomes == found.outcomes
    assert again.flags == found.flags
    np.testing.assert_array_equal(
        again.results["adaptive", "auto"].broken_by, found.results["adaptive", "auto"].broken_by
    )


def test_a_change_beyond_the_radius_does_not_count(net, data):
    attack = CarliniWagner(steps=40, binary_search_steps=2, initial_c=1.0, learning_rate=0.05)
    far = Plan("m", np.arange(20), adaptive={"cw": Planned(attack, standing=True)})
    free = evaluate(linear(0, 3), data, far, progress=False).outcomes[-1]
    assert free.radius is None
    eps = float(np.median(free.distance[free.distance > 0]))
    near = Plan("m", np.arange(20), adaptive={"cw": Planned(attack, standing=True, within=eps)})
    bound = evaluate(linear(0, 3), data, near, progress=False).outcomes[-1]
    assert bound.distance.max() <= eps
    assert 0 < (bound.distance > 0).sum() < (free.distance > 0).sum()
    np.testing.assert_allclose(bound.radius, eps, rtol=1e-6)


@pytest.mark.parametrize(
    ("attack", "norm", "radius"),
    [
        (PGD(eps=0.2), Linf(), [0.2, 0.2, 0.2]),
        (PGD(eps=(0.1, 0.2, 0.3)), Linf(), [0.1, 0.2, 0.3]),
        (Cycled(FGSM(norm="l2"), (1.0, 2.0)), L2(), [1.0, 2.0, 1.0]),
        (Restarts(PGD(eps=0.2), 2), Linf(), [0.2, 0.2, 0.2]),  # its own norm only compares minimal attacks
        (WorstOf((PGD(eps=0.2), FGSM(eps=0.2))), Linf(), [0.2, 0.2, 0.2]),
        (WorstOf((PGD(eps=0.2), FGSM(eps=0.3))), None, None),
        (CarliniWagner(), L2(), None),
        (len, None, None),
    ],
    ids=["pgd", "each", "cycled", "restarts", "worst", "mixed", "minimal", "function"],
)
def test_norm_and_radius_of_an_attack(attack, norm, radius):
    found = reach(attack, 3)
    assert type(found[0]) is type(norm) or isinstance(attack, CarliniWagner)
    assert (found[1] is None) == (radius is None)
    if radius is not None:
        np.testing.assert_allclose(found[1], radius, rtol=1e-6)


def test_what_an_attacker_sees_is_told(net, data):
    black = Square(eps=EPS, queries=3)
    attacks = {"square": Planned(black), "transfer": Planned(Transfer(linear(7, 4), PGD(eps=EPS, steps=2)))}
    found = evaluate(RejectClass(net), data, Plan("m", np.arange(6), adaptive=attacks), progress=False)
    assert [o.access for o in found.outcomes[1:]] == ["scores", "none"]


@pytest.mark.parametrize(
    ("rows", "attacks", "text"),
    [
        ([], {}, "`rows` must name test images"),
        ([1, 1], {}, "`rows` must name test images, each once"),
        ([1], {"clean": Planned(PGD())}, "must not be 'clean'"),
        ([1], {"pgd": PGD()}, "`adaptive` must map names to Planned or Images"),
    ],
)
def test_a_plan_refuses_what_does_not_fit(rows, attacks, text):
    with pytest.raises(ValueError, match=text):
        Plan("m", np.array(rows, dtype="int64"), adaptive=attacks)


def test_the_state_of_an_attack_is_kept_while_it_runs(net, data, tmp_path, monkeypatch):
    written, real = [], keeping.Keeper.write

    def write(self, *args, **options):
        written.append(self.path)
        return real(self, *args, **options)

    monkeypatch.setattr(keeping.Keeper, "write", write)
    plan = Plan("m", np.arange(20), adaptive={"pgd": Planned(PGD(eps=EPS, steps=3))})
    evaluate(RejectClass(net), data, plan, Store(tmp_path / "run", {}), progress=False)
    assert written
    assert all(path.is_relative_to(tmp_path / "run" / "unfinished") for path in written)


def test_images_that_are_not_there_are_refused_before_work(net, data):
    beyond = Images(data.x_test[:2], np.array([0, 40]))
    for plan in (Plan("m", [40]), Plan("m", [0, 1], adaptive={"mine": beyond})):
        with pytest.raises(ValueError, match="`plan` must name some of the 40 test images"):
            evaluate(RejectClass(net), data, plan, progress=False)
    for wrong in ({"count": -1}, {"within": -1.0}, {"seed": -1}, {"batch_size": 0}, {"access": "all"}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}` must be"):
            Planned(FGSM(), **wrong)
