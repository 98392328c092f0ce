"""Square: closed forms on linear models, the shapes of its steps, and no weaker than ART's."""

import dataclasses
import functools

import helpers
import keras
import numpy as np
import pytest
from helpers import WIDE
from helpers import quiet_run as quiet

from kerasdef import models
from kerasdef.attacks import PGD
from kerasdef.attacks.black import square
from kerasdef.attacks.black.square import Square, _bumps, as_image, window
from kerasdef.norms import Linf
from kerasdef.testing import check_attack

linear = functools.partial(helpers.linear, n=16, d=12, clear=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("norm", "eps", "restarts"), [("linf", 0.2, 3), ("l2", 0.8, 1), ("l2", 0.8, 3), ("l1", 2.0, 3)]
)
def test_square_keeps_the_contract(norm, eps, restarts):  # in Linf, without restarts: see test_attacks.py
    check_attack(Square(eps=eps, norm=norm, queries=30, restarts=restarts), norm=norm, eps=eps)


def test_in_linf_square_reaches_the_closed_form_optimum():
    oracle, x, y = linear(2)
    eps = 0.9 * oracle.smallest_distance(x, y, "linf")  # nothing falls, so every query is spent
    found = quiet(Square(eps=eps, queries=600, bounds=WIDE), oracle.model(), x, y)
    assert (found.evaluations == 600).all()
    # single features move at the end, and the optimum is a corner: it is found exactly
    np.testing.assert_allclose(oracle.margin(found.x_adv, y), oracle.largest_margin(x, y, eps), atol=1e-4)


def test_every_sample_may_have_a_radius_of_its_own():
    oracle, x, y = linear(2)
    share = np.linspace(0.8, 1.2, len(x)).astype("float32")
    eps = share * oracle.smallest_distance(x, y, "linf")
    found = quiet(Square(eps=tuple(eps.tolist()), queries=600, bounds=WIDE), oracle.model(), x, y)
    assert np.all(np.abs(found.x_adv - x).max(axis=1) <= eps + 1e-5)  # float32 around inputs near 1
    np.testing.assert_array_equal(found.success, share > 1)  # none of the shares is 1


def test_in_linf_square_finds_what_pgd_finds():
    oracle, x, y = linear(4)
    pgd = PGD(eps=0.2, loss="margin", bounds=WIDE).run(oracle.model(), x, y, progress=False)
    found = quiet(Square(eps=0.2, queries=1000, bounds=WIDE), oracle.model(), x, y)
    assert 0 < pgd.success.sum() < len(x)  # the test means something
    assert (found.success >= pgd.success).all()


def test_in_l2_square_comes_close_to_the_closed_form_and_never_beats_it():
    oracle, x, y = linear(2)
    eps = 0.9 * oracle.smallest_distance(x, y, "l2")
    found = quiet(Square(eps=eps, norm="l2", queries=1500, bounds=WIDE), oracle.model(), x, y)
    start, best = oracle.margin(x, y), oracle.largest_margin(x, y, eps, "l2")
    share = (oracle.margin(found.x_adv, y) - start) / (best - start)
    assert share.min() > 0.75  # windows of three features cannot shape every direction
    assert (oracle.margin(found.x_adv, y) <= best + 1e-4).all()  # float32


def test_every_point_in_linf_is_a_corner_clipped_to_the_bounds(digits, digits_model):
    x, y, asked, margins = digits[2][:1], digits[3][:1], [], []

    def model(z):
        logits = models.predict_logits(digits_model, z)
        asked.append(z[0])
        margins.append(np.delete(logits[0], y[0]).max() - logits[0, y[0]])
        return logits

    quiet(Square(eps=0.02, queries=80), model, x, y)
    assert len(asked) == 80
    corners = np.concatenate([np.clip(x + s * np.float32(0.02), 0, 1) for s in (-1, 1)])
    assert np.isclose(np.stack(asked[1:])[:, None], corners[None], atol=1e-7).any(axis=1).all()
    up = np.sign(asked[1] - x[0])
    assert not np.logical_and((up > 0).any(axis=0), (up < 0).any(axis=0)).any()  # stripes stand upright
    best = 1
    for i in range(2, 80):
        assert np.any(asked[i] != asked[best])  # no query is wasted
        best = i if margins[i] > margins[best] else best


@pytest.mark.parametrize(
    ("rescale", "queries", "last"),
    [(True, 1001, 512), *(pytest.param(False, *last, marks=pytest.mark.slow) for last in ((2003, 64), (5001, 128)))],
)
def test_the_squares_shrink_over_the_budget_or_over_the_queries_of_the_paper(monkeypatch, rescale, queries, last):
    shares = []

    def move(self, x, now, eps, seeds, share, bounds):
        shares.append(share)
        return now

    monkeypatch.setattr(type(square._MOVES[Linf]), "move", move)
    x = np.full((1, 4, 4, 1), 0.5, dtype="float32")
    quiet(
        Square(eps=0.1, queries=queries, rescale=rescale),
        lambda z: np.tile([1.0, 0.0], (len(z), 1)),
        x,
        np.zeros(1, int),
    )
    assert shares[0] == 0.8
    assert shares[-1] == 0.8 / last
    assert rescale or shares[998] == 0.8 / 16


def test_the_best_point_of_all_restarts_is_returned(digits, digits_model):
    x, y = digits[2][:40], digits[3][:40]
    attack = Square(eps=0.05, queries=90)
    assert quiet(dataclasses.replace(attack, restarts=3), digits_model, x, y).evaluations.max() == 90
    margins = []

    def model(z):
        logits = models.predict_logits(digits_model, z)
        margins.append(np.delete(logits[0], y[0]).max() - logits[0, y[0]])
        return logits

    found = quiet(dataclasses.replace(attack, eps=0.01, restarts=4), model, x[:1], y[:1])
    assert len(margins) == 90
    best = models.predict_logits(digits_model, found.x_adv)[0]
    assert np.delete(best, y[0]).max() - best[y[0]] == pytest.approx(max(margins), abs=1e-4)  # float32


def test_more_queries_never_hurt(digits, digits_model):
    x, y = digits[2][:60], digits[3][:60]
    left = [1 - quiet(Square(eps=0.12, queries=q), digits_model, x, y).success.mean() for q in (1, 20, 300)]
    assert left[0] > 0.85
    assert left[0] > left[1] > left[2]


def test_tables_signals_and_color_images_are_images():
    assert as_image((7,)) == (1, 7, 1)
    assert as_image((5, 7)) == (5, 7, 1)
    assert as_image((5, 7, 3)) == (5, 7, 3)
    assert as_image((2, 5, 7, 3)) == (2, 35, 3)


def test_a_window_covers_its_share():
    assert window(0.25, 8, 8) == (4, 4)
    assert window(0.5, 1, 40) == (1, 20)
    assert window(0.5, 40, 1) == (20, 1)
    assert window(1e-6, 8, 8) == (1, 1)
    assert window(1.0, 8, 8) == (8, 8)


@pytest.mark.parametrize("sides", [(1, 1), (1, 2), (2, 1), (3, 3), (5, 5), (4, 7), (7, 4)])
def test_bumps_have_norm_1_and_two_signs(sides):
    bumps = _bumps(*sides)
    assert bumps.shape == sides
    assert np.linalg.norm(bumps) == pytest.approx(1.0, abs=1e-6)  # float32
    if max(sides) > 1:
        assert bumps.min() < 0 < bumps.max()


def test_color_images_are_attacked_in_every_channel():
    model = keras.Sequential([keras.Input((6, 6, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    x = np.random.default_rng(0).uniform(0.3, 0.7, (4, 6, 6, 3)).astype("float32")
    y = models.predict_logits(model, x).argmax(axis=1)
    for norm, eps in (("linf", 0.01), ("l2", 0.05), ("l1", 0.1)):
        delta = quiet(Square(eps=eps, norm=norm, queries=40), model, x, y).x_adv - x
        assert np.abs(delta).max(axis=(1, 2)).min() > 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("eps", -0.1), ("norm", "l3"), ("p_init", 0.0), ("p_init", 1.5), ("restarts", 0), ("queries", 1.5)],
)
def test_square_checks_its_settings(setting, value):
    with pytest.raises(ValueError, match=f"Received: {setting}="):
        Square(**{setting: value})


def test_radii_of_another_length_are_an_error(digits, digits_model):
    with pytest.raises(ValueError, match=r"`eps` must be .* 5 samples. Received: 3 values"):
        quiet(Square(eps=[0.1, 0.2, 0.3]), digits_model, digits[2][:5], digits[3][:5])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="one backend is enough for ART")
def test_square_is_no_weaker_than_art(digits, digits_model):
    from art.attacks.evasion import SquareAttack
    from art.estimators.classification import BlackBoxClassifierNeuralNetwork

    x, y = digits[2][:100], digits[3][:100]
    right = models.predict_logits(digits_model, x).argmax(axis=1) == y
    x, y = x[right], y[right]

    def answer(z):
        return models.predict_logits(digits_model, np.asarray(z, dtype="float32"))

    classifier = BlackBoxClassifierNeuralNetwork(answer, (8, 8, 1), 10, clip_values=(0, 1), channels_first=False)
    keras.utils.set_random_seed(0)  # ART draws from the global generator
    theirs = SquareAttack(classifier, norm=np.inf, eps=0.15, max_iter=200, p_init=0.8, nb_restarts=1, verbose=False)
    left = np.mean(answer(theirs.generate(x, np.eye(10)[y])).argmax(axis=1) == y)
    found = quiet(Square(eps=0.15, queries=200), digits_model, x, y)
    assert 1 - found.success.mean() <= left + 0.02  # two samples of a hundred
