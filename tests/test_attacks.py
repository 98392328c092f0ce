"""Attacks: the contract of every exported one, closed forms on linear models, the promise of each setting."""

import dataclasses
import functools
import inspect
import warnings

import helpers
import keras
import numpy as np
import pytest
from helpers import WIDE, quiet, size
from keras import layers, ops

import kerasdef.attacks
from kerasdef import backend, losses, models
from kerasdef import random as draws
from kerasdef.attacks import (
    APGD,
    BIM,
    FAB,
    FGSM,
    FMN,
    MIM,
    NES,
    NIM,
    PGD,
    SPSA,
    ZOO,
    Attack,
    AutoAttack,
    CarliniWagner,
    CarliniWagnerLinf,
    Cycled,
    DeepFool,
    Evade,
    GradientAttack,
    HingePGD,
    HopSkipJump,
    OrthogonalPGD,
    Quantized,
    Restarts,
    SelectivePGD,
    Square,
    Targeted,
    Transfer,
    WorstOf,
    Wrapper,
)
from kerasdef.attacks.parts.directions import Momentum, Plain
from kerasdef.norms import L1, L2, Linf
from kerasdef.testing import LinearOracle, check_attack, linear_model

EXPORTED = [
    c
    for c in vars(kerasdef.attacks).values()
    if inspect.isclass(c) and issubclass(c, Attack) and not inspect.isabstract(c)
    if c not in (Targeted, Transfer)  # with targets, or a source of the same inputs: see test_wrappers.py
]
GRADIENT = [c for c in EXPORTED if issubclass(c, GradientAttack)]
SMALL = {  # settings that make a check quick, and those that have no default
    CarliniWagner: {"steps": 20, "binary_search_steps": 3, "initial_c": 1.0, "learning_rate": 0.1},
    CarliniWagnerLinf: {"steps": 8, "initial_c": 1.0, "largest_c": 4.0, "shrink": 0.7, "learning_rate": 0.05},
    FAB: {"steps": 8},
    FMN: {"steps": 10},
    APGD: {"steps": 8},
    **{c: {"steps": 8} for c in (BIM, MIM, NIM, PGD, GradientAttack, DeepFool, OrthogonalPGD, SelectivePGD)},
    HingePGD: {"steps": 4, "searches": 2},
    AutoAttack: {"version": "custom", "parts": ("apgd-ce",)},
    Square: {"queries": 30},
    NES: {"pairs": 4, "queries": 30},
    SPSA: {"pairs": 4, "queries": 30},
    HopSkipJump: {"initial_queries": 10, "queries": 60},
    ZOO: {"queries": 150, "coordinates": 8, "binary_search_steps": 2, "learning_rate": 0.1},
    Cycled: {"attack": PGD(steps=5), "radii": (0.1, 0.3)},
    Restarts: {"attack": PGD(steps=5), "count": 2},
    WorstOf: {"attacks": (FGSM(), PGD(steps=5))},
    Quantized: {"attack": PGD(steps=5)},
}
BALL = {c: {"norm": "linf", "eps": 0.3} for c in (Cycled, Restarts, WorstOf, Quantized)}  # that of what they wrap
WRAPPERS = [c for c in EXPORTED if issubclass(c, Wrapper) or c is WorstOf]
linear = functools.partial(helpers.linear, n=12, clear=0.0)


# -- the contract ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", [pytest.param(c, marks=pytest.mark.slow) if c in (AutoAttack, *BALL) else c for c in EXPORTED]
)
def test_every_exported_attack_keeps_the_contract(attack):
    check_attack(attack(**SMALL.get(attack, {})), **BALL.get(attack, {}))


def test_only_the_base_classes_are_abstract_so_that_no_attack_escapes_the_contract():
    abstract = {n for n, c in vars(kerasdef.attacks).items() if inspect.isabstract(c) and issubclass(c, Attack)}
    assert abstract == {"Attack", "StepAttack", "DetectorAttack", "QueryAttack", "GradientFreeAttack", "Wrapper"}


@pytest.mark.parametrize("attack", [c for c in EXPORTED if c not in WRAPPERS])
def test_every_exported_attack_has_defaults_and_shows_every_setting(attack):
    shown = repr(attack())
    assert shown.startswith(f"{attack.__name__}(")
    assert all(f"{f.name}=" in shown for f in dataclasses.fields(attack))
    assert hash(attack()) == hash(attack())


@pytest.mark.parametrize("attack", EXPORTED)
def test_every_exported_attack_has_a_source(attack):
    assert "References:" in attack.__doc__ or attack is GradientAttack or attack in WRAPPERS


@pytest.mark.parametrize("norm", [pytest.param(L2(), marks=pytest.mark.slow), L1()])
def test_the_contract_holds_in_other_norms(norm):
    check_attack(PGD(norm=norm, eps=1.0, steps=5))


def test_the_contract_catches_an_attack_that_leaves_its_ball():
    with pytest.raises(AssertionError, match="images: ball"):
        check_attack(BIM(eps=0.3, steps=3), norm="linf", eps=0.1)


def test_the_contract_catches_an_attack_that_returns_nan():
    @dataclasses.dataclass(frozen=True)
    class Wrong(FGSM):
        def judge(self, model, x, y, state):
            state = super().judge(model, x, y, state)
            return state | {"adv": state["adv"] * np.nan}

    with pytest.raises(AssertionError, match="images: finite"):
        check_attack(Wrong())


# -- closed forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [FGSM, BIM, PGD, MIM])
@pytest.mark.parametrize("norm", [Linf(), L2(), L1(density=1 / 6)])
def test_gradient_attacks_reach_the_closed_form_optimum(attack, norm):
    oracle, x, y = linear(2)
    eps = 0.5
    # on a sphere the angle shrinks by exp(-travel / eps): PGD's default travel of 2.5 leaves 1-2 %
    settings = {"relative_step": 10.0} if attack is PGD else {}
    attack = attack(eps=eps, norm=norm, early_stop=False, bounds=WIDE, **settings)
    found = quiet(attack, oracle.model(), x, y)
    start = oracle.margin(x, y)
    gain, best = oracle.margin(found, y) - start, oracle.largest_margin(x, y, eps, norm) - start
    assert (gain >= 0.999 * best).all()  # exp(-10) and float32
    assert (gain <= best + 1e-4).all()  # float32


def test_no_attack_beats_the_closed_form_for_four_classes():
    oracle, x, y = linear(4)
    for attack in (PGD(eps=0.4, loss="margin", bounds=WIDE), MIM(eps=0.4, bounds=WIDE)):
        found = quiet(dataclasses.replace(attack, early_stop=False), oracle.model(), x, y)
        best = oracle.largest_margin(x, y, 0.4)
        assert (oracle.margin(found, y) <= best + 1e-4).all()  # float32
        assert (oracle.margin(found, y) > oracle.margin(x, y)).all()


def test_cross_entropy_reaches_its_closed_form_too():
    oracle, x, y = linear(2)
    found = quiet(PGD(eps=0.3, early_stop=False, bounds=WIDE), oracle.model(), x, y)
    value = np.logaddexp(0, oracle.margin(found, y))
    np.testing.assert_allclose(value, oracle.largest_cross_entropy(x, y, 0.3), rtol=1e-4)  # float32


@pytest.mark.parametrize("norm", [Linf(), L2()])
def test_targeted_reaches_the_closed_form_of_the_target(norm):
    oracle, x, y = linear(2)
    attack = PGD(eps=0.5, norm=norm, relative_step=10.0, early_stop=False, bounds=WIDE)
    found = quiet(Targeted(attack, 1 - y), oracle.model(), x, y)
    # to raise the target's margin over the only other class is to raise the margin of the untargeted problem
    np.testing.assert_allclose(oracle.margin(found, y), oracle.largest_margin(x, y, 0.5, norm), atol=1e-3)


# a step of Adam moves an input by up to 5 * learning_rate here, so 0.004 resolves distances of 0.1 and more
CW = CarliniWagner(steps=250, binary_search_steps=8, initial_c=0.5, learning_rate=0.004, bounds=(-5.0, 5.0))


def far(k):
    """A linear oracle with inputs that lie at least 0.1 from its decision boundary."""
    oracle, x, y = linear(k, n=24)
    keep = oracle.smallest_distance(x, y, "l2") > 0.1
    return oracle, x[keep], y[keep]


def test_carlini_wagner_reaches_the_smallest_distance():
    oracle, x, y = far(2)
    found = quiet(CW, oracle.model(), x, y)
    assert (oracle.margin(found, y) > 0).all()
    ratio = size(L2(), found - x) / oracle.smallest_distance(x, y, "l2")
    assert (ratio <= 1.02).all()  # 250 steps of Adam
    assert (ratio >= 1 - 1e-3).all()  # float32


def test_carlini_wagner_reaches_it_for_most_inputs_of_four_classes_and_never_beats_it():
    oracle, x, y = far(4)
    found = quiet(CW, oracle.model(), x, y)
    assert (oracle.margin(found, y) > 0).all()
    ratio = size(L2(), found - x) / oracle.smallest_distance(x, y, "l2")
    assert np.mean(ratio <= 1.02) > 0.7  # it follows the largest other logit: not always the nearest class
    assert (ratio >= 1 - 1e-3).all()  # float32


def test_carlini_wagner_finds_the_same_distance_from_a_huge_and_a_small_c():
    oracle, x, y = far(2)
    best = oracle.smallest_distance(x, y, "l2")
    for c, searches in ((1e3, 16), (1e-3, 12)):
        attack = dataclasses.replace(CW, initial_c=c, binary_search_steps=searches)
        ratio = size(L2(), quiet(attack, oracle.model(), x, y) - x) / best
        assert (ratio <= 1.05).all(), c  # 250 steps of Adam; without a search c = 1000 overshoots many times over


def test_carlini_wagner_works_when_all_logits_are_negative():
    oracle, x, y = far(2)
    below = LinearOracle(oracle.weights, oracle.bias - 1000.0)
    found = quiet(CW, below.model(), x, y)
    assert (oracle.margin(found, y) > -1e-3).all()  # logits near -1000 have four digits behind the point
    ratio = size(L2(), found - x) / oracle.smallest_distance(x, y, "l2")
    assert (ratio <= 1.05).all()  # 250 steps of Adam


def test_carlini_wagner_reaches_its_confidence():
    oracle, x, y = linear(3)
    attack = CarliniWagner(
        confidence=1.0,
        steps=150,
        binary_search_steps=6,
        initial_c=0.5,
        learning_rate=0.02,
        bounds=(-5.0, 5.0),
    )
    found = quiet(attack, oracle.model(), x, y)
    assert (oracle.margin(found, y) >= 1.0 - 1e-4).all()  # float32


# -- directions ------------------------------------------------------------------------------------


def test_mim_differs_from_bim_with_momentum_and_equals_it_without(digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    settings = {"eps": 0.2, "steps": 8, "step_size": 0.05, "early_stop": False, "best": False}
    bim = quiet(BIM(**settings), digits_model, x, y)
    assert not np.allclose(quiet(MIM(**settings), digits_model, x, y), bim, atol=1e-3)
    # a gradient divided by its L1 norm has the same signs
    np.testing.assert_array_equal(quiet(MIM(direction=Momentum(decay=0.0), **settings), digits_model, x, y), bim)


def test_momentum_sums_normalized_gradients():
    rule = Momentum(decay=0.5)
    first, second = np.float32([[1.0, -3.0]]), np.float32([[2.0, 2.0]])
    move, memory = rule.update(ops.convert_to_tensor(first), rule.init(ops.convert_to_tensor(first)))
    move, _ = rule.update(ops.convert_to_tensor(second), memory)
    np.testing.assert_allclose(ops.convert_to_numpy(move), [[0.5 * 0.25 + 0.5, -0.5 * 0.75 + 0.5]], rtol=1e-6)


def test_plain_has_no_memory():
    assert Plain().init(None) == {}


# -- radii, starts, pools --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [Linf(), L2()])
def test_every_row_keeps_to_its_own_radius_and_equals_a_separate_call(norm, digits, digits_model):
    x, y = digits[2][:12], digits[3][:12]
    eps = np.linspace(0, 0.6, 12)
    attack = BIM(eps=eps, norm=norm, steps=5, early_stop=False)
    found = quiet(attack, digits_model, x, y)
    assert (size(norm, found - x) <= eps * (1 + 1e-5) + 1e-6).all()  # x + delta is rounded
    for i in (0, 4, 11):
        alone = quiet(dataclasses.replace(attack, eps=eps[i]), digits_model, x[i : i + 1], y[i : i + 1])
        np.testing.assert_allclose(found[i], alone[0], atol=1e-5)  # another batch size adds in another order


def test_radii_of_another_length_are_an_error(digits, digits_model):
    with pytest.raises(ValueError, match=r"`eps` must be .* 5 samples. Received: 3 values"):
        quiet(BIM(eps=[0.1, 0.2, 0.3]), digits_model, digits[2][:5], digits[3][:5])


@pytest.mark.parametrize("attack", GRADIENT)
def test_a_radius_of_zero_is_the_identity(attack, digits, digits_model):
    x, y = digits[2][:8], digits[3][:8]
    np.testing.assert_array_equal(quiet(attack(eps=0.0), digits_model, x, y), x)


def test_starts_come_from_the_seed_of_the_sample_not_from_its_batch():
    flat = linear_model(np.zeros((6, 3)), [1.0, 0.0, 0.0])  # no gradient: the start is what comes back
    x = np.full((9, 6), 0.5, dtype="float32")
    y = np.zeros(9, dtype="int64")
    attack = PGD(eps=0.25, steps=2)
    whole = quiet(attack, flat, x, y, seed=3)
    for batch in (1, 4, 9):
        np.testing.assert_array_equal(quiet(attack, flat, x, y, seed=3, batch_size=batch), whole)
    np.testing.assert_array_equal(quiet(attack, flat, x[:4], y[:4], seed=3), whole[:4])
    assert not np.any(np.all(quiet(attack, flat, x, y, seed=4) == whole, axis=1))
    assert len(np.unique(whole[:, 0])) == 9


def test_samples_that_leave_early_are_adversarial_and_the_others_took_all_steps(digits, digits_model):
    x, y = digits[2][:60], digits[3][:60]
    attack = BIM(eps=0.15, steps=20)
    early = quiet(attack, digits_model, x, y, batch_size=8)
    late = quiet(dataclasses.replace(attack, early_stop=False), digits_model, x, y, batch_size=8)
    wrong = [models.predict_logits(digits_model, z).argmax(axis=1) != y for z in (early, late)]
    np.testing.assert_array_equal(*wrong)
    assert 0 < wrong[0].sum() < 60  # the test means something
    np.testing.assert_allclose(early[~wrong[0]], late[~wrong[0]], atol=1e-5)  # kernels of other batch sizes


def test_a_permutation_of_the_inputs_permutes_the_answer_and_nothing_else(digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    order = np.random.default_rng(0).permutation(40)
    attack = BIM(eps=0.2, steps=20)
    found = quiet(attack, digits_model, x, y, batch_size=8)
    moved = quiet(attack, digits_model, x[order], y[order], batch_size=8)
    np.testing.assert_allclose(moved, found[order], atol=1e-5)  # kernels of other batch sizes


def test_the_best_iterate_is_at_least_as_good_as_the_last(digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    attack = BIM(eps=0.1, steps=7, step_size=0.2, early_stop=False)  # steps that jump across the ball

    def judged(z):
        logits = models.predict_logits(digits_model, z)
        loss = losses.cross_entropy(ops.convert_to_tensor(logits), ops.convert_to_tensor(y))
        return logits.argmax(axis=1) != y, ops.convert_to_numpy(loss)

    best, last = (judged(quiet(dataclasses.replace(attack, best=b), digits_model, x, y)) for b in (True, False))
    assert (best[0] >= last[0]).all()
    same = best[0] == last[0]
    assert (best[1][same] >= last[1][same] - 1e-4).all()  # float32


def test_the_attack_gets_stronger_with_its_radius(digits, digits_model):
    x, y = digits[2][:100], digits[3][:100]
    right = [
        np.mean(models.predict_logits(digits_model, quiet(PGD(eps=e, steps=10), digits_model, x, y)).argmax(1) == y)
        for e in (0.0, 0.05, 0.1, 0.4)
    ]
    assert right[0] > 0.85
    assert right == sorted(right, reverse=True)
    assert right[-1] < 0.1


def test_perturb_inside_a_compiled_function_equals_the_call(digits, digits_model):
    x, y = digits[2][:30], digits[3][:30]
    right = models.predict_logits(digits_model, x).argmax(axis=1) == y
    x, y = x[right], y[right].astype("int32")
    attack = PGD(eps=0.1, steps=5, early_stop=False)
    inside = backend.compiled(lambda a, b, s: attack.perturb(digits_model, a, b, s), digits_model)
    found = ops.convert_to_numpy(inside(x, y, draws.sample_seeds(0, np.arange(len(x)))))
    called = quiet(attack, digits_model, x, y, batch_size=len(x))
    np.testing.assert_allclose(found, called, atol=1e-5)  # fused differently: float32 noise


def test_a_call_does_not_depend_on_calls_before_it(digits, digits_model):
    x, y = digits[2][:10], digits[3][:10]
    first = quiet(PGD(eps=0.1, steps=5), digits_model, x, y)
    quiet(PGD(eps=0.3, steps=5), digits_model, x, y)  # shares the compiled program
    np.testing.assert_array_equal(quiet(PGD(eps=0.1, steps=5), digits_model, x, y), first)


# -- labels and targets ----------------------------------------------------------------------------


def test_without_labels_the_attack_says_so_and_moves_away_from_the_predictions(digits, digits_model):
    x = digits[2][:10]
    with pytest.warns(UserWarning, match="`y` was not given"):
        found = quiet(FGSM(eps=0.1), digits_model, x, None)
    predicted = models.predict_logits(digits_model, x).argmax(axis=1)
    np.testing.assert_array_equal(found, quiet(FGSM(eps=0.1), digits_model, x, predicted))


def test_labels_make_no_warning(digits, digits_model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet(FGSM(eps=0.1), digits_model, digits[2][:10], digits[3][:10])
    assert not [w for w in caught if issubclass(w.category, UserWarning)]


def test_a_target_equal_to_the_label_is_an_error(digits, digits_model):
    x, y = digits[2][:5], digits[3][:5]
    targets = (y + 1) % 10
    targets[2] = y[2]
    with pytest.raises(ValueError, match="Received: 1 equal to `y`"):
        quiet(Targeted(FGSM(), targets), digits_model, x, y)


@pytest.mark.parametrize("targets", ["second_best", "least_likely", "random"])
def test_targeted_attacks_hit_the_class_they_choose(targets, digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    wrapped = Targeted(PGD(eps=1.0, steps=30), targets)
    logits = models.predict_logits(digits_model, x)
    chosen = wrapped._choose(logits, y, 0)
    assert (chosen != y).all()
    if targets == "least_likely":
        rank = logits.copy()
        rank[np.arange(20), y] = np.inf
        np.testing.assert_array_equal(chosen, rank.argmin(axis=1))
    hit = models.predict_logits(digits_model, quiet(wrapped, digits_model, x, y)).argmax(axis=1) == chosen
    assert hit.mean() >= 0.9


def test_evading_a_rejecting_model_avoids_the_rejected_class(digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    keep = (y != 8) & (models.predict_logits(digits_model, x).argmax(axis=1) == y)
    x, y = x[keep], y[keep]
    found = quiet(PGD(eps=0.5, steps=20, goal=Evade(8)), digits_model, x, y)
    predicted = models.predict_logits(digits_model, found).argmax(axis=1)
    assert np.mean((predicted != y) & (predicted != 8)) > 0.9


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("eps", -0.1),
        ("eps", float("nan")),
        ("eps", [0.1, -1.0]),
        ("steps", 0),
        ("steps", 2.5),
        ("step_size", 0.0),
        ("step_size", -1.0),
        ("relative_step", 0.0),
        ("norm", "l3"),
        ("loss", "margn"),
        ("bounds", (1.0, 0.0)),
    ],
)
def test_a_setting_outside_its_range_is_an_error_with_the_value_received(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}="):
        GradientAttack(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("confidence", -1.0),
        ("steps", 0),
        ("binary_search_steps", 0),
        ("initial_c", 0.0),
        ("learning_rate", float("nan")),
    ],
)
def test_carlini_wagner_checks_its_settings(name, value):
    with pytest.raises(ValueError, match=f"Received: {name}="):
        CarliniWagner(**{name: value})


def test_an_unknown_norm_names_the_nearest():
    with pytest.raises(ValueError, match="Did you mean 'linf'"):
        PGD(norm="linff")


def test_targeted_checks_its_settings():
    with pytest.raises(ValueError, match="Received: attack='pgd'"):
        Targeted("pgd")
    with pytest.raises(ValueError, match="Did you mean 'second_best'"):
        Targeted(PGD(), "secondbest")


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"seed": -1}, {"seed": 1.5}])
def test_options_of_the_call_are_checked(option, digits, digits_model):
    with pytest.raises(ValueError, match=f"Received: {next(iter(option))}="):
        quiet(FGSM(), digits_model, digits[2][:2], digits[3][:2], **option)


def test_a_long_list_of_radii_does_not_flood_the_repr():
    assert "<1000 values>" in repr(PGD(eps=np.ones(1000)))
    assert "eps=0.3" in repr(PGD(eps=0.3))


def test_the_default_step_follows_the_radius():
    oracle, x, y = linear(2)
    for eps in (0.01, 1.0):
        found = quiet(BIM(eps=eps, steps=7, early_stop=False, bounds=WIDE), oracle.model(), x, y)
        np.testing.assert_allclose(size(Linf(), found - x), eps, rtol=1e-3)  # float32 around inputs near 1


# -- models that hide their gradient ---------------------------------------------------------------


def sure(activation=None):
    """A classifier whose logits are 300 times too large: behind its softmax no gradient is left."""
    oracle, x, y = linear(3, n=30)
    keep = oracle.margin(x, y) < -0.3
    oracle = LinearOracle(oracle.weights * 300, oracle.bias * 300)
    inputs = keras.Input((6,))
    outputs = layers.Dense(3, activation=activation)(inputs)
    model = keras.Model(inputs, outputs)
    model.layers[-1].set_weights([oracle.weights, oracle.bias])
    return oracle, model, x[keep], y[keep]


def test_the_logits_view_recovers_the_gradient_behind_a_softmax():
    _, model, x, y = sure("softmax")

    def loss(z):
        return keras.losses.sparse_categorical_crossentropy(y, model(z)), ()

    grad = ops.convert_to_numpy(backend.gradient(loss)(ops.convert_to_tensor(x))[2])
    assert np.all(grad == 0)  # what a naive attack sees: Keras cuts probabilities off at 1e-7, beyond what rounds to 1
    found = quiet(PGD(eps=1.0, loss="margin", bounds=WIDE), model, x, y)
    assert (models.predict_logits(model, found).argmax(axis=1) != y).all()


def test_the_margin_climbs_on_every_sample_where_the_cross_entropy_is_flat():
    oracle, model, x, y = sure()
    settings = {"eps": 0.05, "early_stop": False, "bounds": WIDE}
    flat = losses.cross_entropy(model(ops.convert_to_tensor(x)), ops.convert_to_tensor(y.astype("int32")))
    assert (ops.convert_to_numpy(flat) == 0).any()  # float32 cannot tell the loss of a sure sample from 0
    blind = quiet(BIM(**settings), model, x, y)
    moved = quiet(BIM(loss="margin", **settings), model, x, y)
    assert (oracle.margin(moved, y) > oracle.margin(x, y)).all()
    assert (oracle.margin(moved, y) >= oracle.margin(blind, y) - 1e-3).all()  # 1e-3 of margins of hundreds: rounding


def test_dropout_and_batch_normalization_are_attacked_in_inference_mode():
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.BatchNormalization(),
            layers.Dropout(0.9, seed=0),
            layers.Dense(2),
        ]
    )
    oracle, x, y = linear(2)
    model.layers[-1].set_weights([oracle.weights, oracle.bias])
    model.layers[0].set_weights([np.ones(6), np.zeros(6), np.zeros(6), np.full(6, 1.0 - 1e-3)])  # the identity
    settings = {"eps": 0.5, "early_stop": False, "bounds": WIDE}
    before = [np.array(v) for v in model.variables]
    found = quiet(BIM(**settings), model, x, y)
    np.testing.assert_allclose(found, quiet(BIM(**settings), oracle.model(), x, y), atol=1e-5)  # float32
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(np.array(variable), value)


# -- results and random models ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        PGD(eps=0.1, steps=20),
        FGSM(eps=0.1),
        CarliniWagner(steps=60, binary_search_steps=2, initial_c=1.0),
        Targeted(PGD(eps=0.1, steps=20)),
    ],
)
def test_run_tells_success_and_the_gradients_it_took(digits, digits_model, attack):
    _, _, x, y = digits
    found = attack.run(digits_model, x[:60], y[:60], progress=False)
    np.testing.assert_array_equal(found.x_adv, quiet(attack, digits_model, x[:60], y[:60]))
    before = models.predict_logits(digits_model, x[:60]).argmax(axis=1)
    after = models.predict_logits(digits_model, found.x_adv).argmax(axis=1)
    if isinstance(attack, Targeted):
        logits = models.predict_logits(digits_model, x[:60])
        logits[np.arange(60), y[:60]] = -np.inf
        np.testing.assert_array_equal(found.success, after == logits.argmax(axis=1))
        assert found.success.any()
        return
    np.testing.assert_array_equal(found.success, after != y[:60])
    assert np.all(found.evaluations[before != y[:60]] == 0)
    most = attack.steps_in_all
    assert np.all(found.evaluations[before == y[:60]] >= 1)
    assert found.evaluations.max() <= most
    assert np.all(found.evaluations[~found.success] == most) or isinstance(attack, CarliniWagner)


class _Noise(layers.Layer):
    """Gaussian noise that is also there in inference mode: a random defense."""

    def __init__(self, scale, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale
        self.generator = keras.random.SeedGenerator(5)

    def call(self, x):
        return x + self.scale * keras.random.normal(ops.shape(x), seed=self.generator)


def noisy(scale):
    rng = np.random.default_rng(3)
    model = keras.Sequential([keras.Input((6,)), _Noise(scale), layers.Dense(3)])
    model.layers[-1].set_weights([rng.normal(size=(6, 3)).astype("float32"), np.zeros(3, "float32")])
    return model


def test_every_sample_step_and_draw_of_a_random_model_has_noise_of_its_own():
    model, attack = noisy(0.1), PGD(eps=0.1)
    victim = models.Victim.of(model)
    x = np.full((2, 6), 0.5, "float32")

    def draw(attack, moves):
        state = {"seed": np.array([3, 4], "uint32"), "moves": np.full(2, moves, "int32")}
        found = attack.gradient(
            victim, lambda call, z: ((logits := call(z))[:, 0], (logits,)), ops.convert_to_tensor(x), state
        )
        return ops.convert_to_numpy(found[1][0])

    assert len({row.tobytes() for moves in range(3) for row in draw(attack, moves)}) == 6
    logits = draw(dataclasses.replace(attack, samples=64), 0)
    sigma = 0.1 * np.linalg.norm(model.layers[-1].get_weights()[0], axis=0)
    exact = x @ model.layers[-1].get_weights()[0]
    # five standard errors of a mean over 64 draws
    assert np.all(np.abs(logits - exact) <= 5 * sigma / 8)


def test_an_attack_on_a_random_model_leaves_its_seeds_alone():
    model = noisy(0.1)
    x = np.random.default_rng(0).uniform(0, 1, (20, 6)).astype("float32")
    y = models.predict_logits(model, x).argmax(axis=1)
    before = [np.array(v) for v in model.variables]
    PGD(eps=0.1, steps=5, samples=4)(model, x, y, progress=False)
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.array(new))
