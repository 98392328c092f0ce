"""Wrappers: what each makes of an attack, on models small enough to know the answer."""

import dataclasses
import warnings

import keras
import numpy as np
import pytest
from helpers import quiet, size
from keras import layers, ops

from kerasdef import losses, models
from kerasdef.attacks import BIM, FGSM, GMA, MIM, PGD, CarliniWagner, Cycled, Evade, GradientAttack, Hit, Targeted
from kerasdef.attacks.black.square import Square
from kerasdef.attacks.worst_of import Restarts, WorstOf
from kerasdef.attacks.wrappers.eot import EOT
from kerasdef.attacks.wrappers.quantized import Quantized, ball_of
from kerasdef.attacks.wrappers.transfer import Transfer
from kerasdef.models.bpda import BPDA, bpda
from kerasdef.norms import L1, L2, Box, Linf, Masked
from kerasdef.testing import LinearOracle, check_attack, linear_model

CW = CarliniWagner(steps=10, binary_search_steps=2, initial_c=1.0, learning_rate=0.1)


def wrong(model, x, y):
    return models.predict_logits(model, x).argmax(axis=1) != y


def margins(model, x, y):
    return ops.convert_to_numpy(losses.margin(models.predict_logits(model, x), y))


@pytest.fixture(scope="module")
def few(digits):
    """Forty test digits."""
    return digits[2][:40], digits[3][:40]


@pytest.fixture(scope="module")
def other_model(digits):
    """A dense model of the digits, to attack in place of the convolutional one."""
    x, y, _, _ = digits
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Flatten(),
            layers.Dense(32, activation="relu", kernel_initializer=keras.initializers.GlorotUniform(seed=5)),
            layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=6)),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    order = np.concatenate([np.random.default_rng(i).permutation(1400) for i in range(6)])
    model.fit(x[order], y[order], batch_size=50, epochs=1, shuffle=False, verbose=0)
    return model


# -- the contract ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wrapper_of_a_budget_attack_keeps_the_contract_in_l2():  # all of them in Linf: see test_attacks.py
    check_attack(Quantized(PGD(eps=0.5, steps=3, norm="l2")), norm="l2", eps=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [Restarts(CW, 2), WorstOf((CW, CW)), Quantized(CW)], ids=lambda a: type(a).__name__)
def test_wrappers_of_minimal_attacks_keep_the_contract(attack):
    assert attack.kind == "minimal"
    check_attack(attack, kind="minimal")


@pytest.mark.parametrize(
    "attack",
    [
        Restarts(PGD()),
        WorstOf((PGD(), BIM())),
        Quantized(PGD()),
        Cycled(PGD(), (0.1,)),
        Transfer(linear_model(np.eye(2)), PGD()),
    ],
    ids=lambda a: type(a).__name__,
)
def test_wrappers_are_hashable_show_their_settings_and_pass_goals_on(attack):
    assert hash(attack) == hash(attack)
    assert all(f"{f.name}=" in repr(attack) for f in dataclasses.fields(attack))
    aimed = attack.with_goal(Hit())
    assert aimed.goal == Hit()
    assert attack.goal != Hit()
    assert aimed.bounds == attack.bounds == (0.0, 1.0)


# -- Cycled ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [Linf(), L2()])
def test_cycled_gives_sample_i_radius_i_and_what_separate_runs_give(norm, digits_model, few):
    x, y = few[0][:10], few[1][:10]
    attack = BIM(norm=norm, steps=4, early_stop=False, eps=9.0)
    radii = (0.05, 0.2, 0.6)
    found = quiet(Cycled(attack, radii), digits_model, x, y)
    right = ~wrong(digits_model, x, y)
    for i, radius in enumerate(radii):
        alone = quiet(dataclasses.replace(attack, eps=radius), digits_model, x[i::3], y[i::3])
        np.testing.assert_allclose(found[i::3], alone, atol=1e-5)  # another batch size adds in another order
        assert (
            size(norm, found[i::3] - x[i::3])[right[i::3]].max() <= radius * (1 + 1e-5) + 1e-6
        )  # x + delta is rounded
    np.testing.assert_array_equal(Cycled(attack, radii).radii_of(5), [0.05, 0.2, 0.6, 0.05, 0.2])


# -- Restarts --------------------------------------------------------------------------------------


def test_one_restart_is_the_attack_itself(digits_model, few):
    attack = PGD(eps=0.1, steps=5)
    np.testing.assert_array_equal(
        quiet(Restarts(attack, 1), digits_model, *few, seed=3), quiet(attack, digits_model, *few, seed=3)
    )


def test_more_restarts_break_no_fewer_and_leave_the_others_no_weaker(digits_model, digits):
    x, y = digits[2][:150], digits[3][:150]
    attack = PGD(eps=0.15, steps=1, step_size=0.01)  # so weak that the start matters
    found = [quiet(Restarts(attack, k), digits_model, x, y) for k in (1, 4, 12)]
    fell = [wrong(digits_model, z, y) for z in found]
    assert fell[0].sum() < fell[2].sum()
    for before, after, fell_before, fell_after in zip(found, found[1:], fell, fell[1:], strict=False):
        np.testing.assert_array_equal(after[fell_before], before[fell_before])  # the first success stays
        gain = margins(digits_model, after, y) - margins(digits_model, before, y)
        assert (gain[~fell_after] >= -1e-5).all()  # float32
        assert (gain[~fell_after] > 1e-3).any()


def test_restarts_count_the_evaluations_of_the_samples_that_still_stand(digits_model, few):
    x, y = few
    attack = PGD(eps=0.08, steps=4)
    runs = [Restarts(attack, k).run(digits_model, x, y, progress=False) for k in (1, 3)]
    stood = ~runs[0].success
    assert 0 < stood.sum() < len(x)
    np.testing.assert_array_equal(runs[1].evaluations[~stood], runs[0].evaluations[~stood])
    np.testing.assert_array_equal(runs[1].evaluations[~runs[1].success], 12)


def test_a_sample_draws_the_same_restarts_whoever_has_fallen_before_it(digits_model, few):
    x, y = few
    attack = Restarts(PGD(eps=0.08, steps=3), 3)
    whole = quiet(attack, digits_model, x, y)
    shown = np.where((np.arange(40) < 20)[:, None, None, None], 0.5, x).astype("float32")  # others in the first places
    np.testing.assert_allclose(quiet(attack, digits_model, shown, y)[20:], whole[20:], atol=1e-5)  # other batches


def test_restarts_of_a_minimal_attack_keep_the_smallest_change():
    rng = np.random.default_rng(0)
    oracle = LinearOracle(rng.normal(size=(6, 3)))
    x = rng.uniform(-1, 1, (10, 6)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    one = dataclasses.replace(CW, bounds=(-9.0, 9.0), binary_search_steps=1)
    attacks = [dataclasses.replace(one, initial_c=c / 18**2) for c in (0.2, 0.5, 2.0)]  # lengths are in spans of 18
    found = [quiet(a, oracle.model(), x, y) for a in attacks]
    sizes = np.where([wrong(oracle.model(), z, y) for z in found], [size(L2(), z - x) for z in found], np.inf)
    assert len(set(sizes.argmin(axis=0))) > 1  # no attack is the best everywhere
    best = quiet(WorstOf(attacks), oracle.model(), x, y)
    np.testing.assert_allclose(size(L2(), best - x), sizes.min(axis=0), rtol=1e-5)  # float32


def test_targeted_stands_outside_and_is_judged_by_its_target(digits_model, few):
    x, y = few
    found = Targeted(Restarts(PGD(eps=0.15, steps=4), 3), (y + 1) % 10).run(digits_model, x, y, progress=False)
    np.testing.assert_array_equal(found.success, ~wrong(digits_model, found.x_adv, (y + 1) % 10))
    assert 0 < found.success.sum() < len(x)
    for wrapper in (Restarts, Quantized):
        with pytest.raises(ValueError, match="`Targeted` must stand outside"):
            wrapper(Restarts(Targeted(PGD())) if wrapper is Quantized else Targeted(PGD()))


# -- WorstOf ---------------------------------------------------------------------------------------


def test_the_worst_of_two_attacks_breaks_what_either_breaks(digits_model, digits):
    x, y = digits[2][:200], digits[3][:200]
    left = np.zeros((8, 8, 1))
    left[:, :4] = 1
    attacks = tuple(BIM(eps=0.25, steps=5, norm=Masked("linf", mask)) for mask in (left, 1 - left))
    single = [wrong(digits_model, quiet(a, digits_model, x, y), y) for a in attacks]
    assert (single[0] & ~single[1]).any()
    assert (single[1] & ~single[0]).any()
    both = WorstOf(attacks).run(digits_model, x, y, progress=False)
    np.testing.assert_array_equal(both.success, single[0] | single[1])
    np.testing.assert_array_equal(both.success, wrong(digits_model, both.x_adv, y))
    assert both.x_adv.shape == x.shape


def test_targets_in_turn_break_no_fewer_than_each_alone(digits_model, few):
    x, y = few
    attacks = [Targeted(PGD(eps=0.1, steps=5), (y + k) % 10) for k in (1, 4)]
    alone = [wrong(digits_model, quiet(a, digits_model, x, y), y) for a in attacks]
    found = wrong(digits_model, quiet(WorstOf(attacks), digits_model, x, y), y)
    assert (found >= (alone[0] | alone[1])).all()


@pytest.mark.parametrize(
    ("attacks", "what"),
    [
        ((PGD(), PGD(goal=Evade(1))), "goal"),
        ((PGD(), PGD(bounds=(-1.0, 1.0))), "bounds"),
        ((PGD(), CW), "kind"),
        ((), "one or more"),
        ((PGD(), "pgd"), "of which each is an Attack"),
    ],
)
def test_attacks_that_do_not_belong_together_are_an_error(attacks, what):
    with pytest.raises(ValueError, match=rf"`attacks` must .*{what}.* Received:"):
        WorstOf(attacks)


def test_attacks_that_return_several_images_for_one_cannot_be_wrapped(digits_model, few):
    with pytest.raises(ValueError, match="one image for one"):
        quiet(Restarts(GMA(mode="all"), 2), digits_model, few[0][:2], few[1][:2])


@pytest.mark.parametrize(
    "wrap", [lambda a: Restarts(a, 3), lambda a: WorstOf((a, a)), lambda a: Targeted(Restarts(a, 2))]
)
def test_queries_to_a_callable_are_counted_to_the_last(wrap, digits_model, few):
    x, y = few[0][:12], few[1][:12]
    seen = []

    def model(z):
        seen.append(len(z))
        return models.predict_logits(digits_model, np.asarray(z))

    attack = wrap(Square(eps=0.15, queries=25))
    found, wanted = (attack.run(m, x, y, progress=False) for m in (model, digits_model))
    np.testing.assert_array_equal(found.success, wanted.success)
    np.testing.assert_array_equal(found.evaluations, wanted.evaluations)
    assert sum(seen) == found.evaluations.sum() > 25 * 12 / 2


# -- EOT -------------------------------------------------------------------------------------------


def test_eot_reaches_the_attack_through_its_wrappers():
    attack = EOT(WorstOf((Restarts(PGD(), 2), Cycled(MIM(), (0.1,)))), 7)
    assert [a.attack.samples for a in attack.attacks] == [7, 7]
    assert EOT(CW, 3) == dataclasses.replace(CW, samples=3)


def test_eot_is_an_error_where_there_is_no_gradient_to_average():
    with pytest.raises(ValueError, match="must average its gradients"):
        EOT(GMA(), 3)
    with pytest.raises(ValueError, match="`samples` must be a positive integer"):
        EOT(PGD(), 0)


class Noise(layers.Layer):
    """Noise that is there in inference mode too, so strong that one draw tells little of the gradient."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator(5)

    def call(self, x):
        return x + 2.0 * keras.random.normal(ops.shape(x), seed=self.generator)


@pytest.mark.slow
def test_averaged_gradients_are_stronger_against_a_random_model():
    rng = np.random.default_rng(0)
    model = keras.Sequential([keras.Input((8,)), Noise(), layers.Dense(16, activation="tanh"), layers.Dense(2)])
    clean = keras.Sequential([keras.Input((8,)), *model.layers[1:]])
    model.layers[-2].set_weights([rng.normal(size=(8, 16)).astype("float32"), np.zeros(16, "float32")])
    model.layers[-1].set_weights([rng.normal(size=(16, 2)).astype("float32"), np.zeros(2, "float32")])
    x = rng.uniform(0, 1, (30, 8)).astype("float32")
    y = models.predict_logits(clean, x).argmax(axis=1)
    attack = BIM(eps=0.3, steps=4, best=False, early_stop=False)

    def gain(samples):
        return np.mean(margins(clean, quiet(EOT(attack, samples), model, x, y), y) - margins(clean, x, y))

    assert gain(16) > gain(1) + 0.3  # of margins of about 5


# -- BPDA ------------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable("kerasdef_tests")
class Steps(layers.Layer):
    """Rounds to multiples of 1/4: a gradient of 0 everywhere."""

    def call(self, x):
        return ops.round(x * 4.0) / 4.0


def stepped(layer):
    oracle = LinearOracle(np.random.default_rng(1).normal(size=(6, 3)))
    model = keras.Sequential([keras.Input((6,)), layer, layers.Dense(3, name="head")])
    model.layers[-1].set_weights([oracle.weights, oracle.bias])
    x = np.random.default_rng(2).uniform(0, 1, (20, 6)).astype("float32")
    return oracle, model, x, models.predict_logits(model, x).argmax(axis=1)


def test_bpda_shows_the_layer_exactly_and_gives_the_gradient_of_the_other():
    _, hard, x, y = stepped(Steps())
    _, soft, _, _ = stepped(BPDA(Steps()))
    np.testing.assert_array_equal(models.predict_logits(hard, x), models.predict_logits(soft, x))
    attack = BIM(eps=0.5, steps=5)
    assert not wrong(hard, quiet(attack, hard, x, y), y).any()  # nothing to climb
    assert wrong(hard, quiet(attack, soft, x, y), y).mean() > 0.5


def test_bpda_climbs_the_gradient_of_the_layer_that_stands_in():
    double = layers.Dense(6, use_bias=False, kernel_initializer=keras.initializers.Identity(-2.0))
    oracle, model, x, y = stepped(BPDA(Steps(), double))
    keep = ~wrong(model, x, y)
    grad = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    grad.layers[-1].set_weights([-2.0 * oracle.weights, oracle.bias])
    attack = FGSM(eps=0.01, loss=lambda logits, y: logits[:, 1] - logits[:, 0], bounds=(-9.0, 9.0))
    moved = quiet(attack, model, x[keep], y[keep]) - x[keep]
    direction = -2.0 * np.sign(oracle.weights[:, 1] - oracle.weights[:, 0])
    np.testing.assert_array_equal(np.sign(moved), np.broadcast_to(np.sign(direction), moved.shape))


def test_bpda_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match="`backward` must give the shape that `layer` gives"):
        BPDA(layers.Dense(3))(np.zeros((2, 6), "float32"))
    with pytest.raises(ValueError, match=r"`layer` must be a keras\.Layer"):
        BPDA(lambda x: x)


def test_bpda_is_saved_and_loaded(tmp_path):
    _, model, x, _ = stepped(BPDA(layers.Dense(6, activation="sigmoid"), layers.Dense(6)))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(models.predict_logits(loaded, x), models.predict_logits(model, x))
    assert [w.shape for w in loaded.layers[0].weights] == [w.shape for w in model.layers[0].weights]


def test_the_view_by_bpda_shares_its_weights_and_leaves_the_model_alone():
    _, model, x, y = stepped(Steps(name="steps"))
    view = bpda(model, {"steps": None})
    assert view.layers[-1] is model.layers[-1]
    assert wrong(model, quiet(BIM(eps=0.5, steps=5), view, x, y), y).mean() > 0.5
    assert type(model.layers[0]) is Steps
    inputs = keras.Input((6,))
    hidden = Steps(name="steps")(inputs)
    functional = keras.Model(inputs, layers.Dense(3, name="head")(layers.Add()([inputs, hidden])))
    seen = bpda(functional, {"steps": layers.Identity()})
    np.testing.assert_array_equal(models.predict_logits(seen, x), models.predict_logits(functional, x))
    assert seen.get_layer("head") is functional.get_layer("head")
    with pytest.raises(ValueError, match="Did you mean 'steps'"):
        bpda(model, {"step": None})


# -- Transfer --------------------------------------------------------------------------------------


def test_transfer_shows_what_fools_the_source_and_returns_what_the_model_gets_wrong(digits, digits_model, other_model):
    x = digits[2]
    y = models.predict_logits(other_model, x).argmax(axis=1)  # so that the source has nothing wrong
    attack = MIM(eps=0.25, steps=10, early_stop=False)
    before = wrong(digits_model, x, y)
    assert before.any()
    result = Transfer(other_model, attack).run(digits_model, x, y, progress=False)
    np.testing.assert_array_equal(result.x_adv[~before], quiet(attack, other_model, x, y)[~before])
    np.testing.assert_array_equal(result.x_adv[before], x[before])
    np.testing.assert_array_equal(result.success, wrong(digits_model, result.x_adv, y))
    assert result.success.mean() > before.mean() + 0.2
    assert Transfer(other_model, attack).access == "black box"
    assert size(Linf(), result.x_adv - x).max() <= 0.25 * (1 + 1e-5) + 1e-6  # x + delta is rounded


@pytest.mark.parametrize("kind", ["logits", "probabilities", "labels"])
def test_transfer_takes_any_callable_and_asks_for_labels_only(kind, digits, digits_model, other_model):
    x, y = digits[2][:60], digits[3][:60]

    def model(z):
        logits = models.predict_logits(digits_model, np.asarray(z))
        if kind == "labels":
            return logits.argmax(axis=1)
        return logits if kind == "logits" else ops.convert_to_numpy(ops.softmax(logits))

    attack = Transfer(other_model, BIM(eps=0.2, early_stop=False))
    seen, wanted = (attack.run(m, x, y, progress=False) for m in (model, digits_model))
    np.testing.assert_array_equal(seen.x_adv, wanted.x_adv)
    np.testing.assert_array_equal(seen.success, wanted.success)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        guessed = quiet(attack, model, x, None)
    assert np.any(guessed != x)


def test_transfer_from_a_source_of_another_shape_is_an_error(digits_model, few):
    attack = Transfer(linear_model(np.zeros((64, 10))), PGD())
    with pytest.raises(ValueError, match="`source` must have the inputs and classes"):
        quiet(attack, digits_model, *few)
    with pytest.raises(ValueError, match=r"`source` must be a keras\.Model"):
        Transfer("model", PGD())
    with pytest.raises(ValueError, match=r"a keras\.Model, a callable or a Victim"):
        quiet(attack, 3, *few)


# -- Quantized -------------------------------------------------------------------------------------


def on_levels(x, levels=256):
    return np.abs(x * (levels - 1) - np.rint(x * (levels - 1))).max() < 1e-4  # float32 times 255


@pytest.mark.parametrize("norm", [Linf(), L2(), L1()])
@pytest.mark.parametrize("levels", [256, 17])
def test_quantized_images_lie_on_the_levels_and_in_the_ball(norm, levels, digits_model, digits):
    x, y = np.rint(digits[2][:60] * 16) / np.float32(16), digits[3][:60]
    x = (np.rint(x * (levels - 1)) / (levels - 1)).astype("float32")
    eps = {Linf: 0.2, L2: 1.0, L1: 5.0}[type(norm)]
    attack = PGD(eps=eps, norm=norm, steps=10)
    found = quiet(Quantized(attack, levels), digits_model, x, y)
    assert on_levels(found, levels)
    assert not on_levels(quiet(attack, digits_model, x, y), levels)
    assert size(norm, found - x).max() <= eps * (1 + 1e-5) + 2e-6  # x + delta is rounded
    assert 0.0 <= found.min() <= found.max() <= 1.0


def test_quantizing_keeps_what_naive_rounding_loses(digits, digits_model):
    x, y = digits[2][:200], digits[3][:200]
    attack = PGD(eps=1.2, norm="l2", steps=10)
    whole = attack.run(digits_model, x, y, progress=False)
    naive = (np.rint(whole.x_adv * 16) / 16).astype("float32")
    inside = size(L2(), naive - x) <= 1.2 * (1 + 1e-5)
    kept = whole.success & inside & wrong(digits_model, naive, y)
    found = Quantized(attack, 17).run(digits_model, x, y, progress=False)
    np.testing.assert_array_equal(found.success, wrong(digits_model, found.x_adv, y))
    assert found.success.mean() > kept.mean() + 0.1


def test_other_roundings_save_what_the_nearest_spoils(digits, digits_model):
    x, y = digits[2][:60], digits[3][:60]
    whole = quiet(CW, digits_model, x, y)
    nearest = (np.rint(whole * 16) / 16).astype("float32")
    spoiled = wrong(digits_model, whole, y) & ~wrong(digits_model, nearest, y)
    found = [Quantized(CW, 17, tries=k).run(digits_model, x, y, progress=False).success for k in (0, 8)]
    assert spoiled.sum() > 5
    assert spoiled.sum() > (spoiled & ~found[0]).sum() >= (spoiled & ~found[1]).sum()


def test_roundings_do_not_depend_on_the_batch_size(digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    attack = Quantized(BIM(eps=0.1, steps=5, step_size=0.013), 17)
    whole = quiet(attack, digits_model, x, y)
    moved = np.any(quiet(attack, digits_model, x, y, batch_size=7) != whole, axis=(1, 2, 3))
    assert moved.mean() <= 0.05  # float noise may cross the middle between two levels


def test_a_minimal_attack_that_rounding_spoils_comes_back_unchanged(digits, digits_model):
    x, y = digits[2][:20], digits[3][:20]
    result = Quantized(CW, 17, tries=0).run(digits_model, x, y, progress=False)
    assert on_levels(result.x_adv, 17)
    np.testing.assert_array_equal(result.x_adv[~result.success], x[~result.success])
    assert result.success.any()


def test_the_ball_is_found_through_wrappers():
    for attack, wanted in (
        (Restarts(PGD(eps=0.2)), 0.2),
        (Targeted(PGD(eps=0.2)), 0.2),
        (WorstOf((PGD(eps=0.2), BIM(eps=0.2))), 0.2),
        (Cycled(PGD(), (0.1, 0.3)), [0.1, 0.3, 0.1]),
        (GMA(), GMA().radii_of(3)),
        (PGD(eps=[0.1, 0.2, 0.3]), [0.1, 0.2, 0.3]),
    ):
        norm, eps = ball_of(attack, 3)
        assert norm == Linf()
        np.testing.assert_allclose(eps, np.broadcast_to(wanted, 3))
    assert ball_of(CW, 3) is None
    attack = WorstOf((PGD(eps=0.2), PGD(eps=0.3)))
    with pytest.raises(ValueError, match="no single ball"):
        Quantized(attack)
    assert ball_of(Quantized(attack, norm="linf", eps=0.3), 1)[1] == [0.3]
    with pytest.raises(ValueError, match="`levels` must be at least 2"):
        Quantized(PGD(), levels=1)
    with pytest.raises(ValueError, match="given together"):
        Quantized(PGD(), eps=0.1)


# -- masks and boxes -------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [FGSM, BIM, PGD, MIM])
@pytest.mark.parametrize("norm", [Linf(), L2(), L1(density=1 / 4)])
def test_masked_features_never_move_and_the_others_reach_their_optimum(attack, norm):
    rng = np.random.default_rng(3)
    oracle = LinearOracle(rng.normal(size=(6, 2)), [0.1, 0.0])
    x = rng.uniform(-1, 1, (12, 6)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    mask = np.array([1, 0, 1, 1, 0, 1])
    part = LinearOracle(oracle.weights * mask[:, None])  # what the movable features can do
    settings = {"relative_step": 10.0} if attack is PGD else {}
    settings |= {"eps": 0.5, "early_stop": False, "bounds": (-50.0, 50.0)}
    found = quiet(attack(norm=Masked(norm, mask), **settings), oracle.model(), x, y)
    np.testing.assert_array_equal(found[:, mask == 0], x[:, mask == 0])
    gain = oracle.margin(found, y) - oracle.margin(x, y)
    best = part.largest_margin(x, y, 0.5, norm) - part.margin(x, y)
    assert (gain >= 0.999 * best).all()  # exp(-10) and float32
    assert (gain <= best + 1e-4).all()  # float32


@pytest.mark.parametrize("attack", [FGSM, BIM, PGD, MIM])
def test_a_box_gives_every_feature_its_own_radius_and_reaches_the_optimum(attack):
    rng = np.random.default_rng(4)
    oracle = LinearOracle(rng.normal(size=(5, 2)))
    x = rng.uniform(-1, 1, (12, 5)).astype("float32")
    y = oracle.logits(x).argmax(axis=1)
    radii = np.array([0.5, 0.0, 2.0, 0.1, 1.0], dtype="float32")
    attack = attack(norm=Box(radii), eps=0.3, early_stop=False, bounds=(-50.0, 50.0))
    found = quiet(attack, oracle.model(), x, y)
    np.testing.assert_array_equal(found[:, 1], x[:, 1])
    slope = oracle.weights[:, 1 - y] - oracle.weights[:, y]
    best = 0.3 * np.abs(slope * radii[:, None]).sum(axis=0)
    # PGD ends where its steps, longer than the way that is left, are clipped: at the corner too
    np.testing.assert_allclose(oracle.margin(found, y) - oracle.margin(x, y), best, rtol=1e-4)  # float32


def test_a_patch_attack_changes_the_patch_only(digits, digits_model):
    x, y = digits[2][:60], digits[3][:60]
    patch = np.zeros((8, 8, 1))
    patch[2:6, 2:6] = 1
    for norm in (Masked("linf", patch), Masked("l2", patch), Box(patch)):
        attack = PGD(eps=1.0, norm=norm, steps=20)
        found = quiet(attack, digits_model, x, y)
        np.testing.assert_array_equal(found * (1 - patch), x * (1 - patch))
        assert wrong(digits_model, found, y).sum() > wrong(digits_model, x, y).sum() + 20
        assert hash(attack) == hash(dataclasses.replace(attack, eps=1.0))
        assert isinstance(attack, GradientAttack)
