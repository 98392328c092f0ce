"""Validators: good values come back in one form, bad ones raise with the value received."""

import numpy as np
import pytest

from kerasdef import checks


@pytest.mark.parametrize("value", [0, -1, 1.5, "3", None, True, float("nan")])
def test_positive_int_refuses(value):
    with pytest.raises(ValueError, match=r"`steps` must be a positive integer\. Received: steps="):
        checks.positive_int("steps", value)


def test_integers_come_back_as_python_ints():
    assert type(checks.positive_int("n", np.int64(3))) is int
    assert checks.non_negative_int("n", 0) == 0
    with pytest.raises(ValueError, match="Received: n=-1"):
        checks.non_negative_int("n", -1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "1", None, True])
def test_real_refuses(value):
    with pytest.raises(ValueError, match="Received: share="):
        checks.real("share", value, low=0.0, high=1.0)


def test_real_takes_the_ends_unless_open():
    assert checks.real("a", 0, low=0.0, high=1.0) == 0.0
    assert checks.real("a", np.float32(1), low=0.0, high=1.0) == 1.0
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        checks.real("a", 0.0, low=0.0, high=1.0, open_low=True)


def test_radius_is_a_float_or_a_tuple_of_floats():
    assert checks.radius("eps", 8 / 255) == 8 / 255
    assert checks.radius("eps", [0, 1]) == (0.0, 1.0)
    assert checks.radius("eps", np.float32([0.5])) == (0.5,)
    assert hash(checks.radius("eps", np.ones(3))) == hash((1.0, 1.0, 1.0))


@pytest.mark.parametrize("value", [-0.1, np.nan, np.inf, [], [[0.1]], [0.1, -0.1], [0.1, np.nan]])
def test_radius_refuses(value):
    with pytest.raises(ValueError, match="Received: eps="):
        checks.radius("eps", value)


@pytest.mark.parametrize("value", [(1, 0), (0, 0), (0,), 3, "ab", (0, np.inf), (np.nan, 1)])
def test_bounds_refuse(value):
    with pytest.raises(ValueError, match="Received: bounds="):
        checks.bounds(value)


def test_one_of_names_the_nearest_choice():
    with pytest.raises(ValueError, match=r"Received: loss='margn'. Did you mean 'margin'\?"):
        checks.one_of("loss", "margn", ["margin", "cross_entropy"])


def test_uint8_images_are_scaled_by_the_range_of_their_type():
    x = checks.images("x", np.array([[0, 51, 255]], dtype="uint8"))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.float32([[0, 0.2, 1]]))
    dark = checks.images("x", np.array([[0, 1]], dtype="uint8"))
    assert dark.max() == np.float32(1 / 255)


def test_float_noise_beyond_the_bounds_is_clipped():
    x = checks.images("x", np.array([[1 + 1e-7, -3e-8, 0.5]]))
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.float32([[1, 0, 0.5]]))


@pytest.mark.parametrize(
    "x",
    [
        np.array([[1.001]]),
        np.array([[-0.001]]),
        np.array([[np.nan]]),
        np.array([[np.inf]]),
        np.zeros((0, 3)),
        np.zeros(3),
        np.zeros((2, 3), dtype="int64"),
    ],
)
def test_images_refuse(x):
    with pytest.raises(ValueError, match=r"^`x` must .* Received: "):
        checks.images("x", x)


def test_images_of_another_shape_are_an_error():
    with pytest.raises(ValueError, match=r"samples of shape \(4,\). Received: shape=\(2, 3\)"):
        checks.images("x", np.zeros((2, 3)), shape=(4,))


def test_uint8_images_are_mapped_onto_the_bounds():
    x = np.array([[0, 51, 255]], dtype="uint8")
    np.testing.assert_allclose(checks.images("x", x, limits=(-1.0, 1.0)), [[-1, -0.6, 1]], atol=1e-7)  # float32
    np.testing.assert_array_equal(checks.images("x", x, limits=(0.0, 255.0)), x)


def test_the_tolerance_is_in_proportion_to_the_bounds():
    rounded = np.float32([[0, 255.0001]])  # 254.9999... in single precision
    assert checks.images("x", rounded, limits=(0.0, 255.0)).max() == 255
    for low, high in ((0.0, 255.0), (0.0, 1.0)):
        with pytest.raises(ValueError, match="must lie in the bounds"):
            checks.images("x", np.array([[high + 1e-5 * (high - low)]]), limits=(low, high))


def test_labels_come_back_flat_and_int64():
    for y in ([0, 2], np.array([[0], [2]]), np.array([0.0, 2.0]), np.array([0, 2], dtype="uint8")):
        found = checks.labels("y", y, n=2, classes=3)
        assert found.dtype == np.int64
        np.testing.assert_array_equal(found, [0, 2])


def test_one_hot_labels_become_indices():
    np.testing.assert_array_equal(checks.labels("y", np.eye(3)[[2, 0]], n=2, classes=3), [2, 0])


@pytest.mark.parametrize(
    "y",
    [
        [0, 3],
        [-1, 0],
        [0.5, 1],
        [0],
        [[1, 1], [0, 1]],
        [[0, 0], [0, 1]],
        [[0.5, 0.5], [0, 1]],
        np.zeros((2, 1, 2)),
        [np.nan, 0],
        ["a", "b"],
    ],
)
def test_labels_refuse(y):
    with pytest.raises(ValueError, match=r"^`y` must .* Received: "):
        checks.labels("y", y, n=2, classes=3)


def test_one_class_is_not_enough():
    checks.several_classes("y", np.array([0, 1]))
    with pytest.raises(ValueError, match=r"only class \[2\]"):
        checks.several_classes("y", np.array([2, 2]))


def test_shares_must_grow():
    assert checks.growing_shares("shares", [0.1, 0.5]) == (0.1, 0.5)
    for bad in ([], [0.5, 0.1], [0.0, 0.5], [0.5, 1.0], 0.5, ["a"]):
        with pytest.raises(ValueError, match="Received: shares="):
            checks.growing_shares("shares", bad)


def test_a_label_far_beyond_any_number_of_classes_is_refused_and_a_number_of_a_sample_is_not():
    with pytest.raises(
        ValueError, match=r"`y` must be at least 0 and below 1000000\. Received: minimum=0, maximum=100000000"
    ):
        checks.labels("y", [0, 10**8])
    assert checks.labels("rows", [0, 10**8], classes=None).tolist() == [0, 10**8]
    assert checks.labels("predicted", [-1, 2], least=checks.NOBODY).tolist() == [-1, 2]
    with pytest.raises(ValueError, match="at least -1"):
        checks.labels("predicted", [-2], least=checks.NOBODY)
