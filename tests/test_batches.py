"""Mixing: how many adversarial samples a share is, and a stream that gives each sample once per epoch."""

import itertools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kerasdef import backend
from kerasdef.training import Mixture, adversarial_count


def numbered(*sizes):
    """Parts whose images carry their own position, counted through all parts, and whose label is its double."""
    starts = np.cumsum([0, *sizes])
    return [
        (np.arange(a, b, dtype="float32").reshape(-1, 1), 2 * np.arange(a, b)) for a, b in itertools.pairwise(starts)
    ]


def epoch(mixture):
    """Everything that one epoch yields: (x, y) of shapes (n, 1) and (n,)."""
    batches = [mixture[i] for i in range(len(mixture))]
    return np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


class Record(keras.callbacks.Callback):
    """Counts batches."""

    def __init__(self):
        super().__init__()
        self.batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self.batches += 1


@pytest.mark.parametrize(
    ("clean", "share", "wanted"), [(100, 0.5, 100), (85, 0.15, 15), (75, 0.25, 25), (60, 0.4, 40), (3, 0.25, 1)]
)
def test_the_adversarial_count_makes_up_the_share(clean, share, wanted):
    assert adversarial_count(clean, share) == wanted


@given(st.integers(1, 100_000), st.floats(0.01, 0.95))
def test_the_adversarial_count_is_the_nearest_whole_number(clean, share):
    count = adversarial_count(clean, share)
    assert abs(count * (1 - share) - clean * share) <= 0.5 + 1e-6 * clean  # half a sample, and rounding of floats


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(lambda sizes: sum(sizes) > 0),
    st.integers(0, 1000),
    st.integers(1, 12),
)
def test_an_epoch_yields_each_sample_exactly_once_with_its_label(sizes, seed, batch_size):
    batch_size = min(batch_size, sum(sizes))
    mixture = Mixture(numbered(*sizes), batch_size=batch_size, seed=seed)
    for _ in range(2):
        x, y = epoch(mixture)
        assert sorted(x[:, 0]) == list(range(sum(sizes)))
        np.testing.assert_array_equal(y, 2 * x[:, 0])
        mixture.on_epoch_end()


def test_all_batches_but_the_last_are_full():
    mixture = Mixture(numbered(5, 6), batch_size=4, seed=0)
    assert [len(mixture[i][0]) for i in range(len(mixture))] == [4, 4, 3]


def test_batches_are_float32_images_and_int32_labels():
    x, y = Mixture([(np.zeros((3, 2, 2, 1)), [0, 1, 2])], batch_size=2, seed=0)[0]
    assert (x.shape, x.dtype, y.shape, y.dtype) == ((2, 2, 2, 1), "float32", (2,), "int32")


def test_the_order_is_determined_by_the_seed_and_the_epoch():
    def orders(seed):
        mixture, found = Mixture(numbered(20, 20), batch_size=8, seed=seed), []
        for _ in range(3):
            found.append(epoch(mixture)[1].tolist())
            mixture.on_epoch_end()
        return found

    first = orders(3)
    assert first == orders(3)
    assert first != orders(4)
    assert len({tuple(order) for order in first}) == 3


def test_without_a_seed_the_order_is_that_of_the_arrays():
    mixture = Mixture(numbered(3, 4), batch_size=512)
    for _ in range(2):
        np.testing.assert_array_equal(epoch(mixture)[0][:, 0], np.arange(7))
        mixture.on_epoch_end()


def test_a_bootstrap_keeps_its_repetitions():
    rows = np.array([0, 0, 0, 5, 7, 7])
    mixture = Mixture(numbered(5, 5), batch_size=2, seed=1, rows=rows)
    x, y = epoch(mixture)
    assert sorted(x[:, 0]) == rows.tolist()
    np.testing.assert_array_equal(y, 2 * x[:, 0])
    assert len(mixture) == 3


def test_a_batch_larger_than_the_data_is_an_error():
    with pytest.raises(ValueError, match=r"`batch_size` must be at most the number of samples, 5\. Received.*=6"):
        Mixture(numbered(2, 3), batch_size=6, seed=0)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, True])
def test_a_batch_size_that_is_no_positive_integer_is_an_error(batch_size):
    with pytest.raises(ValueError, match=r"`batch_size` must be an? (positive )?integer\b.*Received: batch_size="):
        Mixture(numbered(4), batch_size=batch_size, seed=0)


def trained(seed):
    rng = np.random.default_rng(0)
    x = rng.random((60, 2), dtype="float32")
    y = (x[:, 0] > x[:, 1]).astype("int64")
    mixture = Mixture([(x[:40], y[:40]), (x[40:], y[40:])], batch_size=10, seed=seed)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.1), loss, metrics=["accuracy"], jit_compile=backend.jit())
    record = Record()
    history = model.fit(
        mixture, epochs=5, verbose=0, shuffle=False, callbacks=[record], validation_data=Mixture([(x, y)])
    )
    return model.get_weights(), history.history, record.batches


def test_fit_trains_on_a_mixture_and_two_fits_of_one_seed_agree():
    weights, history, batches = trained(0)
    assert batches == 5 * 6
    assert history["val_accuracy"][-1] > 0.9
    again, history_again, _ = trained(0)
    assert history == history_again
    for a, b in zip(weights, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(np.any(a != b) for a, b in zip(weights, trained(1)[0], strict=True))


def test_whole_batches_leave_the_rest_out_and_others_every_epoch():
    x, y = np.arange(10, dtype="float32")[:, None], np.arange(10)
    mixture = Mixture([(x, y)], batch_size=4, seed=0, whole=True)
    seen = []
    for _ in range(6):
        assert len(mixture) == 2
        seen.append(frozenset(int(v) for i in range(2) for v in mixture[i][1]))
        mixture.on_epoch_end()
    assert all(len(s) == 8 for s in seen)
    assert len(set(seen)) > 1


def test_repeats_show_every_batch_several_times_in_a_row():
    x, y = np.arange(8, dtype="float32")[:, None], np.arange(8)
    once, thrice = (Mixture([(x, y)], batch_size=4, seed=3, repeats=n) for n in (1, 3))
    assert len(thrice) == 3 * len(once)
    for i in range(6):
        np.testing.assert_array_equal(thrice[i][0], once[i // 3][0])


def test_shifted_images_are_windows_of_the_padded_ones_half_of_them_flipped():
    rng = np.random.default_rng(0)
    x = rng.random((200, 5, 6, 2)).astype("float32")
    mixture = Mixture([(x, np.arange(200))], batch_size=200, seed=1, shift=2)
    found, y = mixture[0]
    wide = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    flips = 0
    for image, label in zip(found, y, strict=True):
        windows = [wide[label, t : t + 5, c : c + 6] for t in range(5) for c in range(5)]
        plain = any(np.array_equal(image, w) for w in windows)
        turned = any(np.array_equal(image, w[:, ::-1]) for w in windows)
        assert plain or turned
        flips += turned
    assert 70 < flips < 130  # of 200, a chance of a half
    np.testing.assert_array_equal(mixture[0][0], found)  # the same draws for the same epoch and batch


def test_parts_without_a_label_for_each_sample_or_of_two_shapes_are_refused():
    (x, y), *_ = numbered(4)
    for parts in ([(x, y[:3])], [(x, -y - 1)], [(x, np.full(4, np.nan))]):
        with pytest.raises(ValueError, match="`parts` must"):
            Mixture(parts, batch_size=2, seed=0)
    with pytest.raises(ValueError, match="samples of one shape"):
        Mixture([(x, y), (np.repeat(x, 2, axis=1), y)], batch_size=2, seed=0)
    with pytest.raises(ValueError, match="`share` must be"):
        adversarial_count(5, 1.0)
