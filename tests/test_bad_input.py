"""No bad value comes through: every public callable, every parameter, every class of bad values.

A table says how each public callable is called well, and which parameters are free. Every annotated parameter is then
given values of classes that its annotation does not name. The rule: ValueError or TypeError of ours, which names the
parameter, before work starts. A new export without an entry in the table fails.
"""

import dataclasses
import inspect
import multiprocessing
import os
import tempfile
import time
import traceback
import typing
import warnings
from importlib import import_module
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kerasdef
from kerasdef import annotations, attacks, backend, goals, losses, norms
from kerasdef.attacks import FGSM, PGD
from kerasdef.attacks.by_name import make
from kerasdef.defenses import HybridDefense, Plain
from kerasdef.defenses.detectors import LogitDeviation
from kerasdef.evaluation import Outcome
from kerasdef.models.loading import read_keras
from kerasdef.recipes.base import fit
from kerasdef.recipes.hybrid.settings import HybridSettings
from kerasdef.recipes.iar.settings import IARSettings
from kerasdef.recipes.mia.settings import MIASettings
from kerasdef.recipes.robust.settings import METHODS, RobustSettings
from kerasdef.recipes.settings import AttackSettings, CertifySettings, EvaluateSettings
from kerasdef.training import Mixture, Stage

PACKAGES = (
    "kerasdef",
    *(f"kerasdef.{name}" for name in (*kerasdef._PACKAGES, "threat", "defenses.detectors")),
)
SLOWEST = 5.0  # seconds that a refusal may take
HOME = str(Path(kerasdef.__file__).parent)

RNG = np.random.default_rng(0)
X, Y = RNG.uniform(size=(6, 4)).astype("float32"), np.array([0, 1, 2, 0, 1, 2])


def net(outputs=3, activation=None):
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(outputs, activation=activation)])


class _Noise(keras.layers.Layer):
    """Draws random numbers when it is asked."""

    def __init__(self):
        super().__init__()
        self.generator = keras.random.SeedGenerator(0)

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.generator)


MODEL, OTHER = net(), net()
NOISY = keras.Sequential([keras.Input((4,)), _Noise(), keras.layers.Dense(3)])


class _Two(keras.Model):
    """A model of the wrong kind: a subclass that gives a dict."""

    def call(self, x):
        return {"a": x}


def _pass(x):
    return x


# -- the table: how each callable is called well, by its name; what has no argument that could be wrong is left out ---

HANDLES = "works on tensors inside of compiled programs, on what the library itself has checked"
RECORD = "a record that the library fills and returns"
TABLE = {
    # attacks
    "kerasdef.attacks.as_art": {"model": MODEL},
    "kerasdef.attacks.Targeted": {"attack": PGD()},
    "kerasdef.attacks.Cycled": {"attack": PGD(), "radii": (0.1,)},
    "kerasdef.attacks.Restarts": {"attack": PGD()},
    "kerasdef.attacks.WorstOf": {"attacks": (PGD(),)},
    "kerasdef.attacks.Quantized": {"attack": PGD()},
    "kerasdef.attacks.Transfer": {"source": MODEL, "attack": PGD()},
    "kerasdef.attacks.EOT": {"attack": PGD(), "samples": 2},
    "kerasdef.attacks.BPDA": {"layer": keras.layers.Identity()},
    "kerasdef.attacks.bpda": {"model": MODEL, "backward": {}},
    "kerasdef.attacks.BlackBox": {"function": _pass},
    "kerasdef.attacks.gma_analysis": {"model": MODEL, "x": X, "y": Y},
    "kerasdef.attacks.Evade": {"reject": 1},
    # data
    "kerasdef.datasets.Dataset": {
        "name": "d",
        "x_train": X,
        "y_train": Y,
        "x_valid": X,
        "y_valid": Y,
        "x_test": X,
        "y_test": Y,
    },
    "kerasdef.datasets.as_dataset": {"data": (X, Y)},
    "kerasdef.datasets.load": {"name": "digits"},
    # defenses
    "kerasdef.defenses.Plain": {"model": MODEL},
    "kerasdef.defenses.RejectClass": {"model": MODEL},
    "kerasdef.defenses.AdaptiveWeights": {"members": 2},
    "kerasdef.defenses.HybridDefense": {"members": [MODEL, OTHER]},
    "kerasdef.defenses.Runtime": {"defense": HybridDefense([MODEL])},
    "kerasdef.defenses.Smoothed": {"model": MODEL, "sigma": 0.1},
    "kerasdef.defenses.adaptive": {"defense": MODEL, "eps": 0.1},
    "kerasdef.defenses.Adaptive": {"defense": Plain(MODEL), "eps": 0.1},
    "kerasdef.defenses.Row": {"stage": "a", "on": "defense"},
    "kerasdef.defenses.as_defense": {"model": MODEL},
    "kerasdef.defenses.load": {"path": "nowhere"},
    "kerasdef.defenses.Voting": {"members": [MODEL, OTHER]},
    "kerasdef.defenses.voting_model": {"members": [MODEL, OTHER]},
    "kerasdef.defenses.bootstrap_indices": {"n": 4, "bootstraps": 2, "seed": 0},
    "kerasdef.defenses.detectors.AnyOf": {"detectors": [LogitDeviation()]},
    "kerasdef.defenses.detectors.Watching": {"network": MODEL, "detector": LogitDeviation()},
    # evaluation
    "kerasdef.evaluation.Outcome": {"model": "m", "column": "paper", "attack": "clean", "y": Y, "predicted": Y},
    "kerasdef.evaluation.Plan": {"model": "m", "rows": np.arange(3)},
    "kerasdef.evaluation.Planned": {"attack": PGD()},
    "kerasdef.evaluation.Images": {"x": X, "index": np.arange(6)},
    "kerasdef.evaluation.certified_accuracy": {"correct": Y > 0, "radius": X[:, 0]},
    "kerasdef.evaluation.auroc": {"clean_scores": X[:, 0], "adv_scores": X[:, 1]},
    "kerasdef.evaluation.tpr_at_fpr": {"clean_scores": X[:, 0], "adv_scores": X[:, 1], "fpr": 0.1},
    "kerasdef.evaluation.mcnemar": {"a": Y > 0, "b": Y > 1},
    "kerasdef.evaluation.four_numbers": {"defense": NOISY, "x": X, "y": Y, "x_adv": X},
    "kerasdef.evaluation.wilson": {"successes": 1, "n": 2},
    "kerasdef.evaluation.binarization": {"defense": Plain(MODEL), "attack": PGD(), "x": X, "y": Y},
    "kerasdef.evaluation.unbounded": {"defense": Plain(MODEL), "attack": PGD(), "x": X, "y": Y},
    "kerasdef.evaluation.monotone": {"defense": Plain(MODEL), "attack": PGD(), "x": X, "y": Y},
    "kerasdef.evaluation.self_check": {"defense": Plain(MODEL), "attack": PGD(), "x": X, "y": Y},
    # models
    "kerasdef.models.fixed_draw": {"model": NOISY, "draw": 1},
    "kerasdef.models.WhiteBox": {"model": MODEL},
    "kerasdef.models.predict_logits": {"model": MODEL, "x": X},
    "kerasdef.models.logits_view": {"model": MODEL},
    "kerasdef.models.stack_logits": {"models": [MODEL, OTHER]},
    "kerasdef.models.named_views": {"models": [MODEL, OTHER]},
    "kerasdef.models.pad": {"array": X, "size": 8},
    "kerasdef.models.repair": {"model": MODEL, "x": X},
    **{
        f"kerasdef.models.{name}": {"model": MODEL}
        for name in ("as_logits", "gives_logits", "has_batch_norm", "logits_of", "float_input", "input_bounds")
    },
    # norms
    "kerasdef.norms.Masked": {"norm": "l2", "mask": [1, 0]},
    "kerasdef.norms.Box": {"radii": [1.0, 2.0]},
    "kerasdef.norms.get": {"norm": "l2"},
    # poisoning
    "kerasdef.poisoning.poisoning_effect": {
        "train": _pass,
        "x_train": X,
        "y_train": Y,
        "x_target": X,
        "y_target": Y,
    },
    # reporting
    "kerasdef.reporting.Report": {"outcomes": [Outcome("m", "adaptive", "clean", Y, Y)], "classes": 3},
    "kerasdef.reporting.Section": {"name": "a", "title": "b"},
    # testing
    "kerasdef.testing.LinearOracle": {"weights": RNG.normal(size=(4, 3))},
    # training
    "kerasdef.training.AdversarialTraining": {"model": MODEL, "attack": PGD()},
    "kerasdef.training.NoiseTraining": {"model": MODEL, "sigma": 0.1},
    "kerasdef.training.FreeTraining": {"model": MODEL, "eps": 0.1, "batch_size": 2},
    "kerasdef.training.Distillation": {"model": MODEL},
    "kerasdef.training.RobustValidation": {"x": X, "y": Y, "attack": PGD()},
    "kerasdef.training.AttackStages": {"stages": [Stage(1, FGSM())]},
    "kerasdef.training.Stage": {"epochs": 1, "attack": PGD()},
    "kerasdef.training.Radius": {"points": ((0, 0.1), (1, 0.2))},
    "kerasdef.training.Reject": {"label": 1},
    "kerasdef.training.Resume": {"path": "nowhere"},
    "kerasdef.training.Mixture": {"parts": [(X, Y)]},
    "kerasdef.training.adversarial_count": {"clean": 4, "share": 0.5},
    "kerasdef.training.Shares": {"parts": [(X, Y)], "weights": (1.0,), "batch_size": 2, "classes": 3},
}
OPEN = {
    **{
        f"kerasdef.losses.{n}": HANDLES
        for n in ["pick", "best_other", "cross_entropy", "margin", "dlr", "dlr_targeted"]
    },
    "kerasdef.losses.get": "in test_losses_of_the_wrong_kind",
    "kerasdef.goals.answered": HANDLES,
    "kerasdef.goals.mean_of_probabilities": HANDLES,
    "kerasdef.losses.finite": HANDLES,
    "kerasdef.norms.per_sample": HANDLES,
    "kerasdef.norms.flatten": HANDLES,
    "kerasdef.training.adversarial_labels": HANDLES,
    "kerasdef.training.most_confusing": HANDLES,
    "kerasdef.models.Finding": RECORD,
    "kerasdef.models.Repaired": RECORD,
    "kerasdef.models.padded_batches": "an iterator of the library's loops",
    "kerasdef.models.Untracked": "holds models for Keras",
    "kerasdef.models.check_symbolic": "the check that others make of their models",
    "kerasdef.defenses.Defense": "an abstract class",
    "kerasdef.defenses.Decision": RECORD,
    "kerasdef.defenses.Certificates": RECORD,
    "kerasdef.defenses.Predictions": RECORD,
    "kerasdef.attacks.Result": RECORD,
    "kerasdef.attacks.SequenceResult": RECORD,
    "kerasdef.attacks.GMAAnalysis": RECORD,
    "kerasdef.poisoning.PoisonResult": RECORD,
    "kerasdef.poisoning.PoisoningEffect": RECORD,
    "kerasdef.datasets.Info": "a row of the table of data sets",
    "kerasdef.datasets.DatasetNotFound": "an error",
    "kerasdef.poisoning.random_points": "takes a record of the library",
    "kerasdef.defenses.Manifest": RECORD,
    "kerasdef.evaluation.Randomness": RECORD,
    "kerasdef.evaluation.FourNumbers": RECORD,
    "kerasdef.evaluation.Evaluation": RECORD,
    "kerasdef.evaluation.Binarization": RECORD,
    "kerasdef.evaluation.Monotone": RECORD,
    "kerasdef.evaluation.Unbounded": RECORD,
    "kerasdef.evaluation.SelfCheck": RECORD,
    "kerasdef.evaluation.evaluate": "takes a plan and a data set, which are checked",
    "kerasdef.evaluation.measure": "takes outcomes, which are checked",
    "kerasdef.testing.linear_model": "makes models for tests",
    "kerasdef.testing.check_attack": "runs an attack for seconds",
    "kerasdef.testing.check_defense": "runs a defense for seconds",
    "kerasdef.testing.check_detector": "runs a detector for seconds",
    "kerasdef.testing.check_norm": "in tests of norms",
    "kerasdef.testing.check_purifier": "runs a purifier for seconds",
    "kerasdef.defenses.Vote": "a layer of `Voting`, which checks",
    "kerasdef.attacks.from_art": "needs another library; in test_adapters",
    "kerasdef.attacks.from_cleverhans": "needs another library; in test_adapters",
    "kerasdef.gma_victims": "in test_victims",
    "kerasdef.attack": "AttackSettings is tried in its place",
    "kerasdef.evaluate": "EvaluateSettings is tried in its place",
    "kerasdef.certify": "CertifySettings is tried in its place",
}


def public() -> dict[str, typing.Callable]:
    """Every public callable of the package once, by the first name under which it is found."""
    found, seen = {}, set()
    for package in (*PACKAGES[1:], PACKAGES[0]):
        module = import_module(package)
        names = getattr(module, "__all__", None) or {*dir(module), *getattr(module, "_LATER", ())}
        names = sorted(n for n in names if not n.startswith("_"))
        for name in names:
            value = getattr(module, name)
            ours = getattr(value, "__module__", "").startswith("kerasdef")
            if callable(value) and ours and id(value) not in seen:
                seen.add(id(value))
                found[f"{package}.{name}"] = value
    return {name: value for name, value in found.items() if name.split(".")[-1] not in ("checked", "check_fields")}


PUBLIC = public()
OPEN |= {n: "its settings class is tried in its place" for n in PUBLIC if n.startswith("kerasdef.train_")}
OWN = {
    "attack": AttackSettings,
    "certify": CertifySettings,
    "robust": RobustSettings,
    "mia": MIASettings,
    "iar": IARSettings,
    **METHODS,
}
OWN |= {"hybrid": HybridSettings, "evaluate": EvaluateSettings}
SETTINGS = {f"settings of {name}": cls for name, cls in OWN.items()}
TABLE["settings of attack"] = TABLE["settings of certify"] = {"model": "m.keras"}
FINISHED = Path(tempfile.mkdtemp())  # the folder of a run, as far as settings look
(FINISHED / "report.json").write_text("{}")
TABLE["settings of evaluate"] = {"run": FINISHED}


def needs(function) -> bool:
    """Whether a callable has an argument without a default."""
    single = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return any(p.default is inspect.Parameter.empty and p.kind not in single for p in parameters)


def called() -> dict[str, dict]:
    """The callables that are tried, with arguments that are good."""
    free = {n: {} for n, f in PUBLIC.items() if n not in OPEN and not needs(f) and not inspect.isabstract(f)}
    return free | {name: {} for name in SETTINGS} | TABLE


CALLED = called()


def test_every_public_callable_has_an_entry():
    missing = [n for n, f in PUBLIC.items() if n not in CALLED and n not in OPEN and not inspect.isabstract(f)]
    assert not missing, f"give these an entry in TABLE, or say in OPEN why not: {missing}"
    assert not [n for n in (*TABLE, *OPEN) if n not in PUBLIC | SETTINGS], "there are no such callables"


# -- bad values by class ------------------------------------------------------------------------------------------

BAD = {
    "word": st.sampled_from(["no", "", "yes", "0.1", "lïnf", "\x1b[31m"]),
    "bool": st.booleans(),
    "none": st.none(),
    "bytes": st.sampled_from([b"", b"linf"]),
    "complex": st.sampled_from([1j, complex(0.1, 0.0), np.complex64(1)]),
    "dict": st.sampled_from([{}, {"a": 1}, {1: None}]),
    "list": st.sampled_from([[], ["a"], [None], [[1], [1, 2]], [object()]]),
    "object": st.builds(object),
    "nan": st.sampled_from([float("nan"), float("inf"), -float("inf"), np.float32("nan")]),
    "huge": st.sampled_from([10**30, -(10**30), 10**400, 1e300]),
    "fraction": st.floats(0.05, 0.95),
    "negative": st.integers(-(10**9), -1),
    "array": st.sampled_from(
        [np.empty((0, 4)), np.array([None, 1], object), np.array(1.0), X * np.nan, X.astype("complex64"), X.astype(str)]
    ),
    "callable": st.sampled_from([len, dict, print, object.__init__]),
    "model": st.sampled_from([_Two(), keras.Sequential(), net(1, "softmax"), keras.layers.Identity()]),
    "class": st.sampled_from([PGD, norms.L2, goals.Misclassify, int]),
    "module": st.just(np),
}


def may_take(kind, value) -> bool:
    """Whether the annotation of a parameter leaves a value open; what it refuses must be refused."""
    return annotations.fits(value, kind)


def kinds_of(name: str) -> dict:
    function = (PUBLIC | SETTINGS)[name]
    if dataclasses.is_dataclass(function):
        return annotations.kinds(function)
    inner = function.__init__ if inspect.isclass(function) else function
    inner = inspect.unwrap(inner)
    return dict(annotations._parameter_kinds(inner))


CALLS = [(name, parameter) for name in CALLED for parameter in kinds_of(name)]


def ours(error: Exception, raised: list) -> bool:
    """Whether an error was raised in a file of the package, or by Python for arguments that do not bind."""
    return raised[-1].filename.startswith(HOME) or "bind" in raised[-1].name


def ending(name: str, parameter: str, value) -> str | None:
    """Call with one bad value: what is wrong with how it ended, or None."""
    function, start = (PUBLIC | SETTINGS)[name], time.perf_counter()
    kind = kinds_of(name)[parameter]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            function(**{**CALLED[name], parameter: value})
    except (ValueError, TypeError) as error:
        if not ours(error, traceback.extract_tb(error.__traceback__)):
            return f"foreign {type(error).__name__}: {str(error)[:100]}"
        if not may_take(kind, value) and f"`{parameter}`" not in str(error) and f"`{parameter}[" not in str(error):
            return f"does not name it: {str(error)[:150]}"
    except Exception as error:
        return f"foreign {type(error).__name__}: {str(error)[:100]}"
    else:
        if not may_take(kind, value):
            return "accepted"
    spent = time.perf_counter() - start
    return f"took {spent:.0f} s" if spent > SLOWEST else None


# what a good value of these would begin to do takes longer than a test may: only values of a wrong kind are tried
LONG = (
    "kerasdef.attacks.gma_analysis",
    "kerasdef.poisoning.poisoning_effect",
    *(f"kerasdef.evaluation.{name}" for name in ("binarization", "unbounded", "monotone", "self_check")),
)


def tried(call: tuple[str, str], value) -> bool:
    """Whether a value is bad for this parameter, and so the call is to be made."""
    name, parameter = call
    return not (name in LONG and may_take(kinds_of(name)[parameter], value))


def check(call, value):
    if tried(call, value):
        wrong = ending(*call, value)
        assert wrong is None, f"{call[0]}({call[1]}={annotations.shown(value)}): {wrong}"


OPTIONS = {"derandomize": True, "deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
VALUES = st.sampled_from(sorted(BAD)).flatmap(lambda kind: BAD[kind])


@settings(max_examples=1500, **OPTIONS)
@given(st.sampled_from(CALLS), VALUES)
def test_a_bad_value_is_refused_by_name_before_work_starts(call, value):
    check(call, value)


@pytest.mark.slow
@settings(max_examples=10_000, **OPTIONS)
@given(st.sampled_from(CALLS), VALUES)
def test_ten_thousand_bad_values_are_refused(call, value):
    check(call, value)


def a_dict(model):
    inputs = keras.Input((4,))
    return keras.Model(inputs, {"a": model(inputs), "b": model(inputs)})


@pytest.mark.parametrize(
    ("x", "y", "named"),
    [
        ((X, Y), None, "`x`"),
        (X, [0, 1, 2, 0, 1, float("inf")], "`y`"),
        (X, [0, 1, 2, 0, 1, 1e300], "`y`"),
        (X, np.array([10**18] * 6), "`y`"),
        (X, ["a"] * 6, "`y`"),
        (X.astype("complex64"), Y, "`x`"),
        ([[0.1], [0.1, 0.2]], Y, "`x`"),
        (None, Y, "`x`"),
    ],
)
def test_data_of_the_wrong_kind_are_refused_by_name(x, y, named):
    with pytest.raises(ValueError, match=named):
        FGSM(eps=0.1)(MODEL, x, y)


@pytest.mark.parametrize(
    "model", [_Two(), a_dict(MODEL), net(1, "softmax"), np, "model", lambda x: np.ones((6, 3)) * 1j]
)
def test_models_of_the_wrong_kind_are_refused(model):
    with pytest.raises(ValueError, match=r"model|Keras") as error:
        attacks.Square(eps=0.1, queries=3)(model, X, Y)
    assert ours(error.value, traceback.extract_tb(error.value.__traceback__))


@pytest.mark.parametrize("loss", [len, dict, print, lambda logits, y: 1.0, lambda logits, y: logits])
def test_losses_of_the_wrong_kind_are_refused(loss):
    with pytest.raises(ValueError, match="`loss` must be a function"):
        losses.get(loss)(X, Y)


def test_a_callable_cannot_write_into_its_input():
    def writes(x):
        x[:] = 0
        return np.eye(3)[np.zeros(len(x), int)]

    x = X.copy()
    attacks.Square(eps=0.1, queries=3)(writes, x, Y)
    np.testing.assert_array_equal(x, X)


def test_a_batch_larger_than_the_data_needs_no_more_room():
    assert max(backend.sizes(10**9, 100)) < 200


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_forked_process_is_told_where_it_would_wait_forever():
    FGSM(eps=0.1)(MODEL, X, Y)  # the backend has started in this process

    def child(end):
        try:
            FGSM(eps=0.1)(MODEL, X, Y)
            end.send("done")
        except RuntimeError as error:
            end.send(str(error))

    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
    process.start()
    said = here.recv() if here.poll(30) else "hangs"
    process.kill()
    process.join()
    assert "was forked" in said


def test_a_truncated_file_is_named_as_damaged(tmp_path):
    path = tmp_path / "model.keras"
    MODEL.save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"model\.keras.*damaged"):
        read_keras(path)


def test_training_that_diverges_says_where(tmp_path):
    data = np.concatenate([X] * 20), np.concatenate([Y] * 20)
    model = net()
    model.layers[0].kernel.assign(np.full((4, 3), np.nan, "float32"))
    with pytest.raises(ValueError, match=r"diverged.*epoch 1, batch 1"):
        fit(model, Mixture([data], batch_size=8, seed=0), epochs=1, title="a", show=False)


def test_a_small_part_is_not_told_of_as_test_size():
    data = kerasdef.load_dataset("digits").subset(n_train=100)
    with pytest.raises(ValueError, match="sample of each of the 10 classes") as error:
        data.with_validation(0.05, seed=0)
    assert "test_size" not in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["attack", "m.keras", "--n", "x"], "`n` must be an integer. Received: n='x'"),
        (["attack", "m.keras", "--batch-sise", "3"], "Did you mean '--batch-size'?"),
        (["attack", "m.keras", "--zzzz", "3"], "No such option: --zzzz."),
        (["attack"], "Missing argument"),
        (["train", "pgd", "--set", "steps=1", "--set", "steps=2"], "`steps` must be given once"),
        (["train", "pgd", "--set", "ramp=no"], "`ramp` must be a finite number"),
    ],
)
def test_what_is_typed_wrong_is_one_line(refused, words, said):
    line = refused(*words)
    assert said in line
    assert ("Did you mean" in line) == ("Did you mean" in said)


def test_eps_is_given_once():
    with pytest.raises(ValueError, match="`eps` must be given once"):
        make("pgd", eps=0.1, settings={"eps": 0.2})


@pytest.mark.parametrize("augment", ["no", "yes", 1, "false"])
def test_words_are_no_switches(augment):
    with pytest.raises(ValueError, match="`augment` must be True or False"):
        RobustSettings(augment=augment)
