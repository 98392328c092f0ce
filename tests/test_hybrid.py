"""The runtime defense: what its parts do together, what it learns while it serves, and what is served of it."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasdef import backend
from kerasdef.attacks import PGD, Misclassify
from kerasdef.defenses import AdaptiveWeights, EvadeEnsemble, HybridDefense, Runtime
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.defenses.purifiers import BitDepth, Purifier
from kerasdef.models import Victim, predict_logits
from kerasdef.models.export import export, facts_of

SHAPE, K = (4, 4, 1), 3


@keras.saving.register_keras_serializable("tests")
class Counting(Purifier):
    """The identity, which tells how many images it has seen."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seen = []

    def purify(self, x):
        self.seen.append(x.shape[0])
        return x * 1.0


def member(seed):
    head = layers.Dense(K)
    model = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), head])
    head.set_weights([2 * np.random.default_rng(seed).normal(size=(16, K)), np.zeros(K)])
    return model


def images(n=60, seed=0):
    return np.random.default_rng(seed).random((n, *SHAPE)).astype("float32")


@pytest.fixture(scope="module")
def members():
    return [member(i) for i in range(3)]


@pytest.fixture
def detector(members):
    x = images(400, 1)
    return LogitDeviation(rate=0.1).fit(members, x, np.zeros(len(x), "int64"))


def shares(members, x):
    """Probabilities of the members, of shape (members, n, K), by NumPy."""
    z = np.stack([predict_logits(m, x) for m in members]).astype("float64")
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def test_the_answer_is_equation_7(members):
    x, weights = images(), AdaptiveWeights(3)
    weights.weight.assign([0.6, 0.3, 0.1])
    found = HybridDefense(members, weights=weights)(ops.convert_to_tensor(x))
    mean = np.tensordot([0.6, 0.3, 0.1], shares(members, x), axes=1)
    np.testing.assert_allclose(ops.convert_to_numpy(found["probabilities"]), mean, atol=1e-6)
    assert np.array_equal(ops.convert_to_numpy(found["label"]), mean.argmax(axis=1))


def test_what_the_detector_flags_is_rejected_and_nothing_else(members, detector):
    x = images(200)
    defense = HybridDefense(members, detector=detector)
    flagged = detector.flags(x)
    decision = defense.decide(x)
    assert 0 < flagged.sum() < len(x)
    assert np.array_equal(decision.rejected, flagged)
    assert np.array_equal(np.argsort(decision.score, kind="stable"), np.argsort(detector.scores(x), kind="stable"))
    answer = ops.convert_to_numpy(defense(ops.convert_to_tensor(x))["answer"])
    assert np.array_equal(answer, shares(members, x).mean(axis=0).argmax(axis=1))


def test_flagged_images_alone_are_repaired(members, detector):
    x = images(200)
    flagged = detector.flags(x)
    coarse = BitDepth(1)
    defense = HybridDefense(members, detector=detector, purifier=coarse, flagged="answered")
    repaired = ops.convert_to_numpy(coarse(ops.convert_to_tensor(x)))
    wanted = shares(members, np.where(flagged[:, None, None, None], repaired, x)).mean(axis=0)
    np.testing.assert_allclose(defense.decide(x).probabilities, wanted, atol=1e-5)
    assert not defense.decide(x).rejected.any()
    always = HybridDefense(members, purifier=coarse, repair="always")
    np.testing.assert_allclose(always.decide(x).probabilities, shares(members, repaired).mean(axis=0), atol=1e-5)


@pytest.mark.skipif(
    backend.NAME != "tensorflow", reason="with JAX shapes are fixed, and all images are repaired or none"
)
def test_images_that_are_not_flagged_do_not_pay(members, detector):
    x, counting = images(200), Counting()
    defense = HybridDefense(members, detector=detector, purifier=counting)
    flagged = detector.flags(x)
    counting.seen.clear()
    defense(ops.convert_to_tensor(x))
    assert counting.seen == [flagged.sum()]
    counting.seen.clear()
    defense(ops.convert_to_tensor(x[~flagged]))
    assert counting.seen == []


def test_the_first_member_answers_alone_where_it_is_sure_and_not_flagged(members):
    x = images(200)
    y = np.zeros(400, "int64")
    detector = LogitDeviation(rate=0.1).fit(members[0], images(400, 1), y)
    defense = HybridDefense(members, detector=detector, sure=0.8)
    each = shares(members, x)
    alone = (each[0].max(axis=1) >= 0.8) & ~detector.flags(x)
    assert 0.1 < alone.mean() < 0.9
    wanted = np.where(alone[:, None], each[0], each.mean(axis=0))
    found = ops.convert_to_numpy(defense(ops.convert_to_tensor(x))["probabilities"])[:, :K]
    np.testing.assert_allclose(found / found.sum(axis=1, keepdims=True), wanted, atol=1e-5)
    with pytest.raises(ValueError, match="at least two members"):
        HybridDefense(members[:1], sure=0.8)


def test_smoothing_averages_probabilities_over_noisy_copies(members):
    x = images(3)
    defense = HybridDefense(members, sigma=0.2, draws=400, repair="always", seed=5)
    rng = np.random.default_rng(0)
    noisy = np.repeat(x, 4000, axis=0) + 0.2 * rng.normal(size=(12000, *SHAPE)).astype("float32")
    wanted = shares(members, noisy).mean(axis=0).reshape(3, 4000, K).mean(axis=1)
    # 400 draws: the error of a mean of numbers in [0, 1] is at most 0.5 / 20 in one standard deviation
    np.testing.assert_allclose(defense.decide(x).probabilities, wanted, atol=4 * 0.025)
    assert Victim.of(defense.surface()[0]).random


def test_the_goal_is_reached_where_the_answer_is_wrong_and_not_flagged(members, detector):
    x = images(200)
    y = np.random.default_rng(3).integers(0, K, len(x))
    for climbs in ("both", "mean", "members"):
        goal = EvadeEnsemble(K, climbs=climbs)
        defense = HybridDefense(members, detector=detector)
        decision = defense.decide(x)
        reached = ops.convert_to_numpy(goal.reached(predict_logits(defense.surface()[0], x), ops.convert_to_tensor(y)))
        assert np.array_equal(reached, (decision.label != y) & ~decision.rejected)


def test_an_attack_that_knows_the_detector_is_flagged_less_than_one_that_does_not(members, detector):
    x = images(100)
    defense = HybridDefense(members, detector=detector)
    surface, goal = defense.surface()
    plain = HybridDefense(members)
    y = plain.decide(x).label
    without, simple = plain.surface()
    blind = PGD(eps=0.5, steps=30, random_start=False, goal=simple)(without, x, y, progress=False)
    knowing = PGD(eps=0.5, steps=30, random_start=False, goal=goal)(surface, x, y, progress=False)
    fooled = [np.mean((d.label != y) & ~d.rejected) for d in map(defense.decide, (blind, knowing))]
    assert fooled[1] > fooled[0] + 0.1


def test_reliability_makes_the_weights():
    y = np.arange(10) % K
    predicted = np.stack([y, np.where(np.arange(10) < 5, y, (y + 1) % K), (y + 1) % K], axis=1)
    weights = AdaptiveWeights(3, floor=0.0).fit(predicted, y)
    np.testing.assert_allclose(weights.weight, [2 / 3, 1 / 3, 0], atol=1e-6)
    floored = AdaptiveWeights(3, floor=0.1).fit(predicted, y)
    np.testing.assert_allclose(floored.weight, 0.1 + 0.7 * np.array([2 / 3, 1 / 3, 0]), atol=1e-6)


def test_labels_move_the_weights_as_hedge_does(members):
    x = images(20)
    y = np.random.default_rng(0).integers(0, K, 20)
    defense = HybridDefense(members, weights=AdaptiveWeights(3, learning_rate=0.3, floor=0.0))
    found = defense.update(x, y)["weights"]
    loss = 1 - shares(members, x)[:, np.arange(20), y]
    wanted = np.exp(-0.3 * loss.sum(axis=1))
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-5)
    for _ in range(50):
        defense.update(x, y)
    floor = HybridDefense(members, weights=AdaptiveWeights(3, learning_rate=5.0, floor=0.05))
    floor.update(x, y)
    assert floor.weights_of_members.min() >= 0.05 - 1e-6
    assert floor.weights_of_members.sum() == pytest.approx(1, abs=1e-6)


def test_a_runtime_answers_learns_and_counts(members, detector):
    defense = HybridDefense(members, detector=detector)
    service = Runtime(defense)
    with pytest.raises(ValueError, match="must follow a `predict`"):
        service.update(np.zeros(3, "int64"))
    said = service.predict(images(50))
    before = service.state
    for bad in (np.zeros(49, "int64"), np.full(50, K), np.full(50, np.nan)):
        with pytest.raises(ValueError, match="`y`"):
            service.update(bad)
    assert service.state == before
    y = np.where(said.rejected, 0, said.label)
    service.update(y)
    assert service.state != before
    low, high = before["bound"]
    assert low <= service.state["threshold"] <= high
    metrics = service.metrics
    assert (metrics["requests"], metrics["images"], metrics["labeled"]) == (1, 50, 50)
    assert metrics["flagged"] == pytest.approx(said.rejected.mean())
    assert metrics["accuracy"] == pytest.approx(1 - said.rejected.mean())


SERVED = """
import sys
sys.modules["kerasdef"] = sys.modules["keras"] = None
import numpy as np, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
data = np.load(sys.argv[2])
x, y = tf.constant(data["x"]), tf.constant(data["y"])
predict, update = model.signatures["serving_default"], model.signatures["update"]
before = {k: v.numpy() for k, v in predict(images=x).items()}
try:
    update(images=x, labels=y[:-1])
    raise SystemExit("labels of another length were taken")
except tf.errors.InvalidArgumentError:
    pass
after = {k: v.numpy() for k, v in predict(images=x).items()}
assert all(np.array_equal(before[k], after[k]) for k in before)
nothing = update(images=tf.fill(x.shape, float("nan")), labels=y)
moved = update(images=x, labels=y)
last = {k: v.numpy() for k, v in predict(images=x).items()}
np.savez(sys.argv[3], before=before["probabilities"], after=last["probabilities"], first=nothing["weights"],
         still=nothing["threshold"],
         weights=moved["weights"], threshold=moved["threshold"])
"""


def test_a_served_defense_predicts_updates_and_predicts(members, detector, tmp_path):
    defense = HybridDefense(members, detector=detector, purifier=BitDepth(2))
    x = images(40)
    y = np.random.default_rng(0).integers(0, K, 40)
    export(defense, tmp_path / "served")
    np.savez(tmp_path / "data.npz", x=x, y=y)
    command = [
        sys.executable,
        "-c",
        SERVED,
        str(tmp_path / "served"),
        str(tmp_path / "data.npz"),
        str(tmp_path / "out.npz"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(found["before"], defense.decide(x).probabilities, atol=1e-5)
    np.testing.assert_allclose(found["first"], np.full(3, 1 / 3), atol=1e-6)  # images of NaN teach nothing
    assert found["still"] == np.float32(detector.threshold)
    detector.threshold.assign(float(detector.span[1]))
    here = defense.update(x, y)
    np.testing.assert_allclose(found["weights"], here["weights"], atol=1e-5)
    assert np.abs(found["after"] - found["before"]).max() > 1e-4


@pytest.mark.skipif(backend.NAME != "tensorflow", reason="ONNX is written with the TensorFlow backend")
def test_onnx_runtime_decides_as_the_live_defense(members, detector, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    defense = HybridDefense(members, detector=detector, purifier=BitDepth(2))
    file = export(defense, tmp_path / "defense.onnx", to="onnx")  # compares the two itself
    x = images(30, 7)
    x[0] = np.nan
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    found = dict(zip(names, session.run(names, {"images": x}), strict=True))
    assert (found["label"][0], found["is_adversarial"][0]) == (K, True)
    assert np.array_equal(found["label"][1:], defense.decide(x[1:]).label)
    assert facts_of(file)["kind"] == "HybridDefense"
    export(defense, file, to="onnx")  # in the place of an earlier one
    with pytest.raises(ValueError, match="must draw no random numbers"):
        export(HybridDefense(members, sigma=0.1, repair="always"), tmp_path / "noisy.onnx", to="onnx")
    dropping = keras.Sequential([keras.Input(SHAPE), layers.Flatten(), layers.Dropout(0.5), layers.Dense(K)])
    export(HybridDefense([dropping]), tmp_path / "dropping.onnx", to="onnx")  # it draws in training only
    (tmp_path / "other.onnx").write_bytes(b"mine")
    with pytest.raises(ValueError, match="was not exported by kerasdef"):
        export(defense, tmp_path / "other.onnx", to="onnx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"detector": LogitDeviation()}, "must be fitted"),
        ({"sigma": -1.0}, "`sigma`"),
        ({"draws": 0}, "`draws`"),
        ({"repair": "never"}, "`repair`"),
        ({"flagged": "ignored"}, "`flagged`"),
        ({"weights": AdaptiveWeights(2)}, "`weights` must be for 3 members"),
        ({"purifier": BitDepth(4, bounds=(0, 255))}, "`purifier` must have the bounds"),
    ],
)
def test_parts_that_do_not_fit_are_refused(members, options, words):
    with pytest.raises(ValueError, match=words):
        HybridDefense(members, **options)


def test_a_detector_is_for_the_members_that_it_was_fitted_for(members, detector):
    with pytest.raises(ValueError, match="the models that the detector was fitted for"):
        HybridDefense(members[:2], detector=detector)
    assert EvadeEnsemble().unwanted == Misclassify().unwanted
