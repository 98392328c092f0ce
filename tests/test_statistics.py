"""Intervals, paired tests and detector curves against closed forms and published values."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasdef.evaluation.statistics import auroc, mcnemar, share_interval, threshold_at_fpr, tpr_at_fpr, wilson

scores = st.lists(st.floats(-5, 5, width=16), min_size=1, max_size=30).map(np.array)


def test_wilson_gives_the_published_interval():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    # Newcombe, 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)


def test_wilson_without_successes_is_the_closed_form():
    z2 = 1.959963984540054**2
    assert wilson(0, 50)[1] == pytest.approx(z2 / (50 + z2))
    assert wilson(50, 50)[0] == pytest.approx(50 / (50 + z2))


def test_wilson_of_nothing_is_unknown():
    assert all(math.isnan(v) for v in wilson(0, 0))


@pytest.mark.parametrize(("args", "text"), [((3, 2), "at most n=2"), ((-1, 2), "successes"), ((1, 2, 1.0), "level")])
def test_wilson_refuses_what_is_no_share(args, text):
    with pytest.raises(ValueError, match=text):
        wilson(*args)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_wilson_holds_the_share_and_shrinks_with_n(n, share):
    k = round(share * n)
    low, high = wilson(k, n)
    wide_low, wide_high = wilson(k, n, level=0.99)
    more_low, more_high = wilson(4 * k, 4 * n)
    assert -1e-12 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1 + 1e-12
    assert wide_high - wide_low > high - low > more_high - more_low


def test_an_interval_counts_an_image_under_four_attacks_once():
    rng = np.random.default_rng(0)
    good, image = rng.random(100) < 0.7, np.arange(100)
    assert share_interval(good, image) == wilson(int(good.sum()), 100)
    low, high = share_interval(np.tile(good, 4), np.tile(image, 4))  # four attacks that all find the same
    assert (low, high) == pytest.approx(wilson(int(good.sum()), 100), abs=0.02)
    narrow = wilson(4 * int(good.sum()), 400)
    assert high - low > 1.8 * (narrow[1] - narrow[0])
    assert share_interval(np.tile(good, 4), np.tile(image, 4)) == (low, high)  # seeded


def test_an_interval_over_images_is_the_bootstrap_of_scipy():
    rng = np.random.default_rng(1)
    image = np.repeat(np.arange(60), rng.integers(1, 4, 60))
    good = rng.random(len(image)) < rng.random(60)[image]  # some images are harder
    rows, right = np.bincount(image), np.bincount(image, weights=good)
    wanted = scipy.stats.bootstrap(
        (right, rows), lambda a, b, axis: a.sum(axis) / b.sum(axis), paired=True, method="percentile", rng=2
    ).confidence_interval
    assert share_interval(good, image) == pytest.approx((wanted.low, wanted.high), abs=0.01)


def test_an_interval_of_images_that_are_all_alike_is_not_a_point():
    assert share_interval(np.ones(40), np.repeat(np.arange(10), 4)) == wilson(10, 10)
    assert share_interval(np.zeros(40), np.repeat(np.arange(10), 4)) == wilson(0, 10)
    with pytest.raises(ValueError, match="`good` and `image` must be non-empty"):
        share_interval([], [])


def test_mcnemar_counts_the_coin_tosses():
    a = np.array([1] * 8 + [0] * 1 + [1] * 5 + [0] * 6, dtype=bool)
    b = np.array([0] * 8 + [1] * 1 + [1] * 5 + [0] * 6, dtype=bool)
    found = mcnemar(a, b)
    # two-sided, 1 head or fewer of 9 tosses: 2 * (1 + 9) / 2**9
    assert found == {
        "n": 20,
        "a_only": 8,
        "b_only": 1,
        "p_value": pytest.approx(20 / 512),
        "difference": 7 / 20,
    }


def test_mcnemar_of_a_model_with_itself_sees_no_difference():
    a = np.array([True, False, True])
    assert mcnemar(a, a) == {"n": 3, "a_only": 0, "b_only": 0, "p_value": 1.0, "difference": 0.0}


@pytest.mark.parametrize(("a", "b"), [([], []), ([True], [True, False])])
def test_mcnemar_refuses_unpaired_answers(a, b):
    with pytest.raises(ValueError, match="`a` and `b` must be"):
        mcnemar(a, b)


def test_tpr_at_fpr_by_hand():
    clean = np.arange(100.0)
    adv = np.array([98.5, 97.0, 50.0, 200.0])
    assert threshold_at_fpr(clean, 0.01) == 98.0  # only the score 99 is above
    assert tpr_at_fpr(clean, adv, 0.01) == 0.5
    assert tpr_at_fpr(clean, adv, 0.05) == 0.75
    assert tpr_at_fpr(clean, adv, 0.0) == 0.25
    assert tpr_at_fpr(clean, adv, 1.0) == 1.0


def test_tpr_at_fpr_gives_nothing_for_a_constant_detector():
    assert tpr_at_fpr(np.ones(10), np.ones(5), 0.05) == 0.0


@settings(max_examples=40, deadline=None)
@given(scores, st.floats(0, 1))
def test_the_false_positive_rate_is_never_exceeded(clean, fpr):
    threshold = threshold_at_fpr(clean, fpr)
    assert np.mean(clean > threshold) <= fpr + 1e-9
    lower = clean[clean < threshold]  # the threshold is the lowest that keeps the rate
    if len(lower):
        assert np.mean(clean > lower.max()) > fpr - 1e-9


@settings(max_examples=30, deadline=None)
@given(scores, scores)
def test_auroc_is_the_share_of_ordered_pairs(clean, adv):
    pairs = np.mean((adv[:, None] > clean) + 0.5 * (adv[:, None] == clean))
    assert auroc(clean, adv) == pytest.approx(pairs)
    assert auroc(adv, clean) == pytest.approx(1 - pairs)


@pytest.mark.parametrize("bad", [[], [np.nan], [[1.0]]])
def test_scores_must_be_finite_and_flat(bad):
    with pytest.raises(ValueError, match="`clean_scores` must be"):
        auroc(bad, [1.0])
