"""Black-box attacks: what they ask of a model, how often, and that only its answers count."""

import dataclasses

import keras
import numpy as np
import pytest

from kerasdef import models
from kerasdef import random as draws
from kerasdef.attacks.black.gradient_free import NES, SPSA
from kerasdef.attacks.black.hop_skip_jump import HopSkipJump
from kerasdef.attacks.black.square import Square
from kerasdef.attacks.black.zoo import ZOO
from kerasdef.attacks.queries import Queries, QueryAttack, pieces
from kerasdef.attacks.wrappers.base import Targeted
from kerasdef.goals import Evade, Hit
from kerasdef.models import BlackBox
from kerasdef.testing import LinearOracle

SCORED = [
    Square(eps=0.1, queries=60),
    Square(eps=0.5, norm="l2", queries=60),
    NES(eps=0.1, pairs=4, queries=60),
    SPSA(eps=0.1, pairs=4, queries=60),
    ZOO(coordinates=4, binary_search_steps=2, learning_rate=0.5, queries=60),
]
DECIDED = [HopSkipJump(initial_queries=10, queries=60), HopSkipJump(norm="linf", initial_queries=10, queries=60)]
ATTACKS = SCORED + DECIDED


def name(attack):
    return f"{type(attack).__name__}-{type(getattr(attack, 'norm', None)).__name__}"


def softmax(z):
    z = np.exp(z - z.max(axis=1, keepdims=True))
    return z / z.sum(axis=1, keepdims=True)


class Counter:
    """A linear classifier that keeps every question."""

    def __init__(self, answer=lambda logits: logits, n=10, d=8, k=3):
        rng = np.random.default_rng(0)
        self.oracle = LinearOracle(rng.normal(size=(d, k)), 0.1 * rng.normal(size=k))
        self.x = rng.uniform(0.1, 0.9, (n, d)).astype("float32")
        self.y = self.oracle.logits(self.x).argmax(axis=1)
        self.y[-1] = (self.y[-1] + 1) % k  # wrong from the start
        self.answer, self.asked = answer, []

    def __call__(self, z):
        self.asked.append(np.array(z))
        return self.answer(self.oracle.logits(z))

    def run(self, attack, **options):
        return attack.run(self, self.x, self.y, progress=False, **options)


# -- counts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_a_callable_sees_exactly_the_queries_reported_and_no_point_beyond_the_bounds(attack):
    model = Counter()
    found = model.run(attack)
    asked = np.concatenate(model.asked)
    assert len(asked) == found.evaluations.sum()
    assert found.evaluations.max() <= attack.queries
    assert found.evaluations[-1] == 1  # wrong from the start: one look
    assert asked.dtype == np.float32
    assert asked.min() >= 0
    assert asked.max() <= 1
    np.testing.assert_array_equal(found.success, model.oracle.margin(found.x_adv, model.y) > 0)


@pytest.mark.parametrize("attack", SCORED[:4], ids=name)
def test_the_queries_of_every_sample_are_its_own(attack):
    model = Counter()
    found = model.run(dataclasses.replace(attack, eps=0.02))
    asked = np.concatenate(model.asked)
    # balls this small do not overlap, so the nearest input tells whose question it was
    owner = np.abs(asked[:, None] - model.x[None]).max(axis=2).argmin(axis=1)
    np.testing.assert_array_equal(np.bincount(owner, minlength=len(model.x)), found.evaluations)


@pytest.mark.parametrize("queries", [1, 2, 3, 25])
@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_no_budget_is_too_small_and_none_is_exceeded(attack, queries):
    model = Counter()
    found = model.run(dataclasses.replace(attack, queries=queries))
    assert found.evaluations.max() <= queries
    assert len(np.concatenate(model.asked)) == found.evaluations.sum()
    assert np.isfinite(found.x_adv).all()


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_a_budget_of_zero_is_an_error(attack):
    with pytest.raises(ValueError, match="Received: queries=0"):
        dataclasses.replace(attack, queries=0)


def test_questions_beyond_a_budget_are_not_asked():
    model = Counter(n=3)
    ask = Queries(BlackBox(model), Hit(), np.zeros(3, "int32"), budget=2)
    value, reached = ask(np.array([0, 1, 0, 0, 2]), model.x[[0, 1, 0, 0, 2]])
    assert np.isinf(value).tolist() == [False, False, False, True, False]
    assert not reached[3]
    assert ask.spent.tolist() == [2, 1, 1]
    assert len(np.concatenate(model.asked)) == 4
    assert np.isinf(ask(np.array([0]), model.x[:1])[0]).all()
    assert len(np.concatenate(model.asked)) == 4


def test_pieces_give_every_point_once_and_keep_to_their_size(monkeypatch):
    monkeypatch.setattr("kerasdef.attacks.queries._NUMBERS", 12)
    counts = np.array([3, 0, 5, 1])
    parts = list(pieces(counts, 4))
    assert max(len(owner) for owner, _ in parts) == 3
    pairs = [pair for owner, number in parts for pair in zip(owner.tolist(), number.tolist(), strict=True)]
    assert pairs == [(i, j) for i, count in enumerate(counts) for j in range(count)]


class Work(np.ndarray):
    """An array that counts the items that NumPy goes through in it and in what is made of it."""

    items = 0

    @classmethod
    def _plain(cls, values):
        return tuple(np.asarray(v) if isinstance(v, cls) else v for v in values)

    @classmethod
    def _counted(cls, values, found):
        cls.items += max((v.size for v in values if isinstance(v, np.ndarray)), default=0)
        return found.view(cls) if isinstance(found, np.ndarray) else found

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if out is not None:
            options["out"] = self._plain(out)
        seen = inputs[1:] if method == "at" else inputs  # that touches only the places that are named
        return self._counted(seen, getattr(ufunc, method)(*self._plain(inputs), **options))

    def __array_function__(self, function, types, inputs, options):
        return self._counted(inputs, super().__array_function__(function, types, inputs, options))


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Ladder(QueryAttack):
    """Asks for every sample again and again until its budget is spent; counts its own work."""

    def init(self, x, seeds, value):
        return {"done": np.zeros(len(x), dtype=bool).view(Work)}

    def round(self, ask, part):
        ask.spent = ask.spent.view(Work)
        ask(np.asarray(part["row"]), part["x"])


def test_the_work_grows_with_the_number_of_samples_and_not_with_its_square():
    found = {}
    for n in (40, 160):
        Work.items = 0
        model = Counter(n=n)
        result = Ladder(queries=6).run(model, model.x, model.oracle.logits(model.x).argmax(axis=1), batch_size=4)
        assert (result.evaluations == 6).all()
        found[n] = Work.items
    assert found[40] > 40
    assert found[160] < 5 * found[40]  # 4 and what is the same for any number


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_logits_probabilities_and_a_keras_model_give_the_same_answer(attack):
    model = Counter()
    logits = model.run(attack)
    shares = Counter(softmax).run(attack)
    keras_model = attack.run(model.oracle.model(), model.x, model.y, progress=False)
    # float32 logits against float64: a query in a thousand may fall the other way, far from these few
    np.testing.assert_allclose(shares.x_adv, logits.x_adv, atol=1e-3)
    np.testing.assert_allclose(keras_model.x_adv, logits.x_adv, atol=1e-3)
    np.testing.assert_array_equal(shares.success, logits.success)
    np.testing.assert_array_equal(keras_model.success, logits.success)
    np.testing.assert_array_equal(keras_model.evaluations, logits.evaluations)


@pytest.mark.parametrize("attack", DECIDED, ids=name)
def test_labels_are_enough_for_decision_based_attacks(attack):
    labels = Counter(lambda z: z.argmax(axis=1)).run(attack)
    np.testing.assert_array_equal(labels.x_adv, Counter().run(attack).x_adv)
    assert labels.success.all()


@pytest.mark.parametrize("attack", SCORED, ids=name)
def test_attacks_that_need_scores_refuse_labels_and_name_another(attack):
    with pytest.raises(ValueError, match="use HopSkipJump where labels are all there is"):
        Counter(lambda z: z.argmax(axis=1)).run(attack)


@pytest.mark.parametrize(
    ("answer", "received"),
    [
        (lambda z: z[:, :1], "shape=(10, 1)"),
        (lambda z: z[:-1], "shape=(9, 3)"),
        (lambda z: z[None], "shape=(1, 10, 3)"),
        (lambda z: np.array(["cat"] * len(z)), "for 10 samples"),
        (lambda z: z * np.nan, "30 of them"),
        (lambda z: -1 - z.argmax(axis=1), "minimum=-"),
        (lambda z: z.argmax(axis=1) + 0.5, "dtype=float64"),
    ],
)
def test_an_answer_of_another_kind_is_an_error_that_tells_what_came(answer, received):
    with pytest.raises(ValueError, match="Received") as error:
        Counter(answer).run(DECIDED[0])
    assert received in str(error.value)


def test_an_answer_that_changes_its_shape_on_the_way_is_an_error():
    model = Counter()
    model.answer = lambda z: z if len(model.asked) < 3 else z[:, :2]
    with pytest.raises(ValueError, match="the same for every batch"):
        model.run(SCORED[0])


def test_what_cannot_be_called_is_no_model():
    with pytest.raises(ValueError, match=r"keras\.Model, a callable or a Victim\. Received: model='resnet'"):
        SCORED[0]("resnet", np.zeros((1, 4), "float32"), [0])


def test_labels_out_of_range_are_an_error_for_callables_too():
    model = Counter()
    with pytest.raises(ValueError, match="`y` must be at least 0 and below 3"):
        SCORED[0](model, model.x, model.y + 1, progress=False)


def test_a_label_that_a_callable_never_gave_is_no_error():
    model = Counter(lambda z: z.argmax(axis=1), k=2)
    found = DECIDED[0](model, model.x, np.full(10, 7), progress=False)
    np.testing.assert_array_equal(found, model.x)  # all wrong from the start


def test_evading_works_with_labels_alone():
    model = Counter(lambda z: z.argmax(axis=1))
    found = model.run(dataclasses.replace(DECIDED[0], goal=Evade(4)))
    assert found.success.all()


def test_without_labels_the_predictions_are_taken_and_asked_for_once():
    model = Counter()
    with pytest.warns(UserWarning, match="`y` was not given"):
        found = SCORED[0].run(model, model.x, progress=False)
    assert len(np.concatenate(model.asked)) == found.evaluations.sum()
    assert (found.evaluations > 1).all()


def test_targeted_attacks_work_on_keras_models(digits, digits_model):
    x, y = digits[2][:8], digits[3][:8]
    found = Targeted(Square(eps=0.6, queries=400)).run(digits_model, x, y, progress=False)
    assert found.success.mean() > 0.5
    logits = models.predict_logits(digits_model, x)
    logits[np.arange(8), y] = -np.inf
    after = models.predict_logits(digits_model, found.x_adv).argmax(axis=1)
    np.testing.assert_array_equal(found.success, after == logits.argmax(axis=1))


# -- independence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", ATTACKS, ids=name)
def test_the_answer_does_not_depend_on_the_batch_size_or_on_other_samples(attack, digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    whole = attack.run(digits_model, x, y, progress=False, seed=5)
    for size in (3, 20):
        again = attack.run(digits_model, x, y, progress=False, seed=5, batch_size=size)
        np.testing.assert_array_equal(again.x_adv, whole.x_adv)
        np.testing.assert_array_equal(again.evaluations, whole.evaluations)
    np.testing.assert_array_equal(attack(digits_model, x[:7], y[:7], progress=False, seed=5), whole.x_adv[:7])
    assert not np.array_equal(attack(digits_model, x, y, progress=False, seed=6), whole.x_adv)


def test_a_random_model_draws_anew_for_every_query_and_is_not_changed():
    class Noise(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.seeds = keras.random.SeedGenerator(0)

        def call(self, z):
            return z + keras.random.normal(keras.ops.shape(z), seed=self.seeds)

    model = keras.Sequential([keras.Input((8,)), Noise(), keras.layers.Dense(3)])
    before = [np.array(v) for v in model.variables]
    x = np.full((4, 8), 0.5, dtype="float32")
    ask = Queries(models.Victim.of(model), Hit(), np.zeros(4, "int32"), budget=10)
    first, second = (ask(np.arange(4), x)[0] for _ in range(2))
    assert (first != second).all()
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)


def test_branches_of_a_seed_are_uniform_and_differ_for_every_counter():
    seeds = draws.sample_seeds(0, np.arange(200))
    drawn = draws.branch(seeds[:, None], np.arange(500)[None, :])
    assert drawn.shape == (200, 500)
    assert len(np.unique(drawn)) > 0.9999 * drawn.size  # 100,000 of 2**32: about one pair by chance
    unit = draws.unit(drawn).astype("float64")
    assert abs(unit.mean() - 0.5) < 5 * np.sqrt(1 / 12 / unit.size)
    assert 0 < unit.min() < unit.max() < 1
    assert abs(np.corrcoef(unit[:, :-1].ravel(), unit[:, 1:].ravel())[0, 1]) < 5 / np.sqrt(unit.size)
    np.testing.assert_array_equal(draws.branch(seeds, 3), drawn[:, 3])
    same = keras.ops.convert_to_numpy(draws.uniform(keras.ops.convert_to_tensor(seeds), (4, 5)))
    np.testing.assert_array_equal(draws.uniform_array(seeds, (4, 5)), same)
    assert not np.array_equal(draws.branch(seeds, 3, 4), draws.branch(seeds, 4, 3))


def test_normal_arrays_have_mean_0_variance_1_and_kurtosis_3_and_do_not_repeat():
    drawn = draws.normal_array(draws.sample_seeds(0, np.arange(1000)), (3, 67)).astype("float64")
    assert drawn.shape == (1000, 3, 67)  # an odd number: the last pair is halved
    n = drawn.size
    assert abs(drawn.mean()) < 5 / np.sqrt(n)
    assert abs(np.mean(drawn**2) - 1) < 5 * np.sqrt(2 / n)
    assert abs(np.mean(drawn**4) - 3) < 5 * np.sqrt(96 / n)
    flat = drawn.reshape(1000, -1)
    assert abs(np.corrcoef(flat[:, :100].ravel(), flat[:, 101:].ravel())[0, 1]) < 5 / np.sqrt(n / 2)
