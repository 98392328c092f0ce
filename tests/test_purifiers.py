"""Purifiers: each keeps the contract, is what its reference says, and hides no gradient from an attack."""

import functools
import inspect
import io

import keras
import numpy as np
import pytest
from keras import layers, ops
from PIL import Image
from scipy import fft, ndimage, optimize

from kerasdef import backend, models
from kerasdef.attacks import PGD
from kerasdef.defenses import purifiers
from kerasdef.defenses.purifiers import (
    APEGAN,
    JPEG,
    BitDepth,
    DenoisingAutoencoder,
    GaussianBlur,
    Median,
    Purifier,
    TotalVariation,
)
from kerasdef.defenses.purifiers.ape_gan import generator
from kerasdef.defenses.purifiers.autoencoder import denoiser
from kerasdef.defenses.purifiers.jpeg import CHROMA, DCT, LUMA, quantization_table
from kerasdef.models.export import export
from kerasdef.testing import check_purifier

BOUNDS = {"unit": (0.0, 1.0), "pixels": (0.0, 255.0), "signed": (-1.0, 1.0)}


def numpy(tensor):
    return ops.convert_to_numpy(tensor)


def of(purifier, x):
    return numpy(purifier(ops.convert_to_tensor(x)))


def scaled(x, bounds):
    return (bounds[0] + (bounds[1] - bounds[0]) * x).astype("float32")


def random(shape, seed=0):
    return np.random.default_rng(seed).random(shape).astype("float32")


def some(shape, bounds, seed=0):
    """Images for a training of a few steps, and the same with noise."""
    x = ndimage.gaussian_filter(random((24, *shape), seed), (0, 1, 1, 0))
    noisy = np.clip(x + 0.1 * np.random.default_rng(1).normal(size=x.shape), 0, 1)
    return scaled(x, bounds), scaled(noisy, bounds)


@functools.cache  # as below: several tests look at what a training of seconds made
def autoencoder(bounds, shape):
    x, noisy = some(shape, bounds)
    made = DenoisingAutoencoder(denoiser(shape, bounds=bounds, width=8), bounds=bounds)
    return made.fit(x, x_adv=noisy, epochs=2, batch_size=16, progress=False)


@functools.cache
def ape_gan(bounds, shape):
    x, noisy = some(shape, bounds)
    network = generator(shape, bounds=bounds, width=8)
    return APEGAN(network, bounds=bounds).fit(noisy, x, epochs=2, batch_size=12, progress=False)


CASES = {
    "Median": lambda b, _: Median(bounds=b),
    "Median, 3x3": lambda b, _: Median(3, bounds=b),
    "GaussianBlur": lambda b, _: GaussianBlur(0.7, bounds=b),
    "TotalVariation": lambda b, _: TotalVariation(steps=4, bounds=b),  # all steps are alike, and take long to compile
    "BitDepth": lambda b, _: BitDepth(3, bounds=b),
    "JPEG": lambda b, _: JPEG(bounds=b),
    "JPEG, of all chrominance": lambda b, _: JPEG(30, subsampling="4:4:4", bounds=b),
    "DenoisingAutoencoder": autoencoder,
    "APEGAN": ape_gan,
}
GIVEN = [("unit", (10, 9, 1)), ("pixels", (9, 10, 3))]  # signed ones are in the test of ranges
NETWORKS = ("DenoisingAutoencoder", "APEGAN")


def with_each(values, fast=1):
    """A name of CASES and each of the values; of a network, those after the first `fast` are slow."""
    for name in CASES:
        for i, value in enumerate(values):
            value = value if isinstance(value, tuple) else (value,)
            marks = pytest.mark.slow if i >= fast and name in NETWORKS else ()
            yield pytest.param(name, *value, marks=marks, id=f"{name}, {value[0]}")


@pytest.mark.parametrize(("name", "bounds", "shape"), with_each(GIVEN))
def test_every_purifier_keeps_the_contract(name, bounds, shape):
    check_purifier(CASES[name](BOUNDS[bounds], shape), shape=shape)


def test_every_exported_purifier_is_among_them():
    exported = {
        name
        for name, value in vars(purifiers).items()
        if inspect.isclass(value) and issubclass(value, Purifier) and value is not Purifier
    }
    assert exported == {name.split(",")[0] for name in CASES}


@pytest.mark.parametrize(("name", "bounds"), with_each(["pixels", "signed"], fast=0))
def test_a_purifier_does_the_same_in_any_range(name, bounds):
    shape, x = (9, 10, 3), random((4, 9, 10, 3), 5)
    x = np.round(x * 255) / 255 if name.startswith("JPEG") else x  # levels, which no range rounds otherwise
    plain = of(CASES[name](BOUNDS["unit"], shape), x.astype("float32"))
    found = of(CASES[name](BOUNDS[bounds], shape), scaled(x, BOUNDS[bounds]))
    # float32, and a training of four steps, whose rounding grows
    tolerance = 2e-3 if name in NETWORKS else 1e-5
    low, high = BOUNDS[bounds]
    np.testing.assert_allclose((found - low) / (high - low), plain, atol=tolerance)


@keras.saving.register_keras_serializable("tests")
class Leaky(BitDepth):
    """Says that its gradient is its own, which is 0."""

    exact = True
    rule = "exact"


@keras.saving.register_keras_serializable("tests")
class Social(Purifier):
    """Looks at the other images."""

    def purify(self, x):
        return x - ops.mean(x, axis=0, keepdims=True) * (0.1 if x.shape[0] != 1 else 0.2)


@keras.saving.register_keras_serializable("tests")
class Untold(Purifier):
    """Is not exact, and does not say what it is."""

    exact = False

    def purify(self, x):
        return ops.round(x)


@keras.saving.register_keras_serializable("tests")
class Far(Untold):
    """Has something else stand in for it."""

    rule = "its negative"

    def near(self, x):
        return 5.0 - x


@keras.saving.register_keras_serializable("tests")
class ForgetfulBlur(GaussianBlur):
    """Does not note its width."""

    def get_config(self):
        config = super().get_config()
        del config["sigma"]
        return config


@keras.saving.register_keras_serializable("tests")
class Crooked(GaussianBlur):
    """Calls a gradient its own that is another's."""

    def call(self, x):
        found = self.purify(x)
        return ops.stop_gradient(found) + x - ops.stop_gradient(x)


@pytest.mark.parametrize(
    ("purifier", "clause"),
    [
        (Leaky(3), "gradients flow"),
        (Social(), "the same in a batch of"),
        (Untold(), "rule: says what stands in"),
        (Far(), "`near` is near"),
        (ForgetfulBlur(0.5), "settings make it again"),
        (Crooked(1.0), "exact gradients are the slopes"),
    ],
)
def test_the_contract_finds_what_is_wrong(purifier, clause):
    with pytest.raises(AssertionError, match=clause):
        check_purifier(purifier)


# -- filters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3])
def test_the_median_is_that_of_scipy(size):
    x = random((3, 7, 6, 2))
    wanted = ndimage.median_filter(x, size=(1, size, size, 1), mode="reflect")  # as Xu et al. call it
    np.testing.assert_array_equal(of(Median(size), x), wanted)


@pytest.mark.parametrize("sigma", [0.4, 1.0, 5.0])
def test_the_blur_is_that_of_scipy(sigma):
    x = random((3, 7, 6, 2))
    wanted = ndimage.gaussian_filter(x.astype("float64"), (0, sigma, sigma, 0), mode="nearest")
    np.testing.assert_allclose(of(GaussianBlur(sigma), x), wanted, atol=1e-6)


def variation(z, smoothing):  # in float64: in float32 a solver by differences stops halfway
    down, right = np.zeros_like(z), np.zeros_like(z)
    down[:-1], right[:, :-1] = z[1:] - z[:-1], z[:, 1:] - z[:, :-1]
    return np.sqrt(down**2 + right**2 + smoothing**2).sum()


def test_total_variation_comes_near_the_minimum_of_its_objective():
    x, weight, smoothing = random((5, 6)).astype("float64"), 0.1, 0.02

    def objective(z):
        z = z.reshape(x.shape)
        return np.square(z - x).sum() / 2 + weight * variation(z, smoothing)

    best = optimize.minimize(objective, x.ravel(), method="L-BFGS-B", options={"maxfun": 10**5, "ftol": 1e-14}).x
    way, rate = np.linalg.norm(best - x.ravel()), 1 - 1 / np.sqrt(1 + 8 * weight / smoothing)
    left = {}
    for steps in (3, 10, 30, 40, 100):
        layer = TotalVariation(weight, smoothing=smoothing, steps=steps)
        found = of(layer, x[None, :, :, None].astype("float32")).ravel().astype("float64")
        # Nesterov, theorem 2.2.3, for a function whose second derivative is at least 1
        bound = rate**steps * (objective(x) - objective(best) + way**2 / 2)
        assert objective(found) - objective(best) <= bound
        left[steps] = np.linalg.norm(found - best) / way
    assert left[30] == pytest.approx(0.03, abs=0.005)  # as its docstring says
    assert left[40] < 0.01
    assert left[100] < 1e-4  # what the solver, and float32, reach: 1e-6


def test_total_variation_keeps_the_mean_and_constant_images():
    x = 0.25 + 0.5 * random((3, 6, 7, 2))
    found = of(TotalVariation(0.3), x)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), x.mean(axis=(1, 2)), atol=1e-6)
    assert np.all(found.std(axis=(1, 2)) < 0.7 * x.std(axis=(1, 2)))
    plain = np.full((1, 6, 7, 1), 0.3, "float32")
    np.testing.assert_allclose(of(TotalVariation(0.3), plain), plain, atol=1e-7)


# -- bit depth and JPEG --------------------------------------------------------------------------------------------


def test_bit_depth_rounds_to_levels_that_hold_both_bounds():
    x = np.array([[0.0, 0.49, 0.51, 1.0]], "float32")
    np.testing.assert_array_equal(of(BitDepth(1), x), [[0, 0, 1, 1]])
    x = random((1, 50))
    np.testing.assert_allclose(of(BitDepth(3), x), np.round(x * 7) / 7, atol=1e-6)
    np.testing.assert_array_equal(of(BitDepth(8, bounds=(0, 255)), np.arange(256.0)[None]), np.arange(256.0)[None])


def pillow(x, quality, subsampling):
    """Images from 0 to 255 written and read by Pillow."""
    found = []
    for image in x.astype("uint8"):
        file = io.BytesIO()
        mode = image[..., 0] if image.shape[-1] == 1 else image
        Image.fromarray(mode).save(file, "JPEG", quality=quality, subsampling=subsampling)
        found.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(found)


@pytest.mark.parametrize("shape", [(8, 8, 1), (13, 21, 1), (1, 1, 3), (5, 3, 3), (9, 10, 3), (16, 16, 3), (31, 17, 3)])
def test_jpeg_is_that_of_pillow_bit_by_bit(shape):
    rng = np.random.default_rng(0)
    smooth = 127 + 300 * ndimage.gaussian_filter(rng.normal(size=(4, *shape)), (0, 1, 1, 0))
    x = np.concatenate([rng.integers(0, 256, (4, *shape)), smooth.clip(0, 255).round()]).astype("float32")
    for quality in (1, 49, 75, 100):
        for subsampling in ("4:2:0", "4:4:4")[: 1 + (shape[-1] == 3)]:
            found = of(JPEG(quality, subsampling=subsampling, bounds=(0, 255)), x)
            np.testing.assert_array_equal(found, pillow(x, quality, subsampling))


def test_jpeg_has_the_tables_of_the_standard_and_a_cosine_transform():
    assert quantization_table(50, LUMA)[0, 0] == 16
    assert quantization_table(50, CHROMA)[1, 1] == 21
    assert quantization_table(100, LUMA).max() == 1
    assert quantization_table(1, LUMA).min() == 255
    wanted = fft.dct(np.eye(8), axis=0, norm="ortho") * np.sqrt(8) * 2**13
    assert np.abs(DCT - wanted).max() < 1.5  # up to three rounded constants are added up


def gradient(function, x, weights):
    def value(z):
        return ops.sum(function(z) * weights, axis=(1, 2, 3)), z

    return numpy(backend.gradient(value)(ops.convert_to_tensor(x))[2])


@pytest.mark.parametrize("purifier", [BitDepth(1), JPEG(10), JPEG(10, subsampling="4:4:4")])
def test_what_rounds_has_the_identity_as_its_gradient(purifier):
    channels = 1 if purifier.rule.endswith("rounding") or purifier.subsampling == "4:2:0" else 3
    x, weights = random((2, 9, 8, channels)), random((2, 9, 8, channels), 1)
    np.testing.assert_array_equal(gradient(purifier, x, weights), weights)


@pytest.mark.parametrize("shape", [(9, 10, 3), (5, 4, 3)])
def test_the_gradient_of_subsampled_jpeg_is_that_of_compression_without_loss(shape):
    # of gray levels so fine that rounding is little: quality 100, differences of many levels
    x, v = 0.3 + 0.4 * random((2, *shape)), random((2, *shape), 1) - 0.5
    layer = JPEG(100)
    near = numpy(layer.near(ops.convert_to_tensor(x)))
    assert np.abs(near - of(layer, x)).mean() < 1.5 / 255  # rounding of colors, of the DCT and of its inverse
    moved = numpy(layer.near(ops.convert_to_tensor(x + v))) - near
    along = gradient(layer, x, moved)
    np.testing.assert_allclose((along * v).sum(), np.square(moved).sum(), rtol=1e-4)  # linear


# -- networks ------------------------------------------------------------------------------------------------------


def noisy_digits(digits, sigma=0.2):
    x, _, x_test, y_test = digits
    noise = sigma * np.random.default_rng(3).normal(size=x_test.shape)
    return x, x_test, np.clip(x_test + noise, 0, 1).astype("float32"), y_test


def test_the_autoencoder_denoises_digits_better_than_the_best_linear_map(digits):
    x, x_test, noisy, _ = noisy_digits(digits)
    network = denoiser((8, 8, 1), width=16)
    purifier = DenoisingAutoencoder(network).fit(x, noise=0.2, epochs=12, learning_rate=3e-3, progress=False)
    of_training = np.clip(x + 0.2 * np.random.default_rng(5).normal(size=x.shape), 0, 1)
    rows = [np.hstack([z.reshape(len(z), -1), np.ones((len(z), 1))]) for z in (of_training, noisy)]
    linear = rows[1] @ np.linalg.lstsq(rows[0], x.reshape(len(x), -1))[0]
    before, after = (np.square(z - x_test).mean() for z in (noisy, of(purifier, noisy)))
    assert after < np.square(linear.reshape(x_test.shape) - x_test).mean() < before
    assert np.square(of(purifier, x_test) - x_test).mean() < 0.1 * before  # leaves clean ones nearly as they are


def test_the_same_seed_trains_the_same_autoencoder_and_another_seed_another():
    x, noisy = some((8, 8, 1), (0.0, 1.0))

    def trained(seed):
        purifier = DenoisingAutoencoder(denoiser((8, 8, 1), width=8))
        return of(purifier.fit(x, x_adv=noisy, epochs=2, seed=seed, progress=False), noisy)

    np.testing.assert_array_equal(trained(1), trained(1))
    assert np.abs(trained(1) - trained(2)).max() > 1e-4


def test_an_autoencoder_that_was_not_trained_is_the_identity():
    x = random((3, 7, 9, 3))
    np.testing.assert_allclose(of(DenoisingAutoencoder(), x), x, atol=1e-7)


def test_attacked_images_may_have_clean_ones_of_their_own():
    x, noisy = some((8, 8, 1), (0.0, 1.0))
    two = np.concatenate([noisy, noisy[::-1]])
    found = DenoisingAutoencoder().fit(
        x, x_adv=two, x_adv_clean=np.concatenate([x, x[::-1]]), noise=0.0, epochs=1, progress=False
    )
    assert np.isfinite(of(found, two)).all()
    with pytest.raises(ValueError, match="`x` must hold the clean image of each of the 48"):
        DenoisingAutoencoder().fit(x, x_adv=two, progress=False)
    with pytest.raises(ValueError, match="must come with `x_adv`"):
        DenoisingAutoencoder().fit(x, x_adv_clean=x, progress=False)


def test_a_network_of_ones_own_of_any_size_is_trained_and_saved():
    mean = layers.Conv2D(1, 3, padding="same", kernel_initializer=keras.initializers.Constant(1 / 9))
    network = keras.Sequential([keras.Input((None, None, 1)), mean])
    purifier = DenoisingAutoencoder(network)
    x, noisy = some((8, 8, 1), (0.0, 1.0))
    before = network.get_weights()[0].copy()
    purifier.fit(x, x_adv=noisy, epochs=1, progress=False)
    assert not network.compiled
    assert np.abs(network.get_weights()[0] - before).max() > 1e-4
    check_purifier(purifier, shape=(8, 8, 1))


@pytest.mark.parametrize("kind", [DenoisingAutoencoder, APEGAN])
def test_networks_that_do_not_fit_are_refused(kind):
    with pytest.raises(ValueError, match="`network` must be a built model from images to images"):
        kind(keras.Sequential([keras.Input((8, 8, 1)), layers.Conv2D(2, 3, padding="same")]))
    with pytest.raises(ValueError, match="of the shape that the network takes"):
        kind(denoiser((8, 8, 1)))(random((2, 8, 8, 3)))
    with pytest.raises(ValueError, match="`network` must be"):
        kind("network")


def test_each_player_of_ape_gan_learns_while_the_other_waits():
    x = random((16, 8, 8, 1))
    purifier = APEGAN(generator((8, 8, 1), width=8))
    purifier.build((None, 8, 8, 1))
    critic, joined = purifier._players((8, 8, 1), [0.7, 0.3], 1e-3, 0)
    real = np.ones((16, 1), "float32")

    def moved(step):
        before = [[w.copy() for w in player.get_weights()] for player in (purifier.network, critic)]
        step()
        players = zip((purifier.network, critic), before, strict=True)
        return [not all(map(np.array_equal, player.get_weights(), weights)) for player, weights in players]

    for _ in range(2):
        critic.trainable = True
        assert moved(lambda: critic.train_on_batch(x, real)) == [False, True]
        critic.trainable = False
        assert moved(lambda: joined.train_on_batch(x, [x, real])) == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "epochs"), [((1.0, 0.0), 20), ((0.7, 0.3), 60)])
def test_ape_gan_brings_attacked_digits_back(weights, epochs, digits, digits_model):
    # with the weights of the paper it takes 1,000 steps to get there, of 21 an epoch: the paper takes 1,875
    x, y, x_test, y_test = digits
    attack = PGD(eps=0.2, steps=5)
    x_adv, adv_test = (attack(digits_model, *d, progress=False) for d in ((x, y), (x_test, y_test)))
    purifier = APEGAN().fit(x_adv, x, weights=weights, epochs=epochs, learning_rate=1e-3, progress=False)
    before, after = (accuracy(digits_model, z, y_test) for z in (adv_test, of(purifier, adv_test)))
    assert before < 0.5
    assert after > before + 0.3


def test_a_training_that_diverges_says_so():
    x, noisy = some((8, 8, 1), (0.0, 1.0))
    with pytest.raises(ValueError, match="The training diverged"):
        DenoisingAutoencoder().fit(x, x_adv=noisy, learning_rate=1e12, epochs=20, progress=False)


# -- attacks and files ---------------------------------------------------------------------------------------------


def accuracy(model, x, y):
    return (models.predict_logits(model, x).argmax(axis=1) == y).mean()


@pytest.mark.parametrize("make", [lambda: JPEG(75), lambda: BitDepth(3)], ids=["JPEG", "BitDepth"])
def test_rounding_hides_no_gradient_from_pgd(make, digits, digits_model):
    _, _, x, y = digits
    x, y = x[:200], y[:200]
    front = keras.Sequential([keras.Input(x.shape[1:]), make(), digits_model])
    attack = PGD(eps=0.15, steps=10)
    alone = accuracy(digits_model, attack(digits_model, x, y, progress=False), y)
    through = accuracy(front, attack(front, x, y, progress=False), y)
    assert accuracy(front, x, y) > 0.9
    assert through <= alone + 0.05


def test_a_classifier_behind_a_purifier_is_exported(tmp_path):
    stack = [keras.Input((8, 8, 1)), JPEG(50), DenoisingAutoencoder(), layers.Flatten(), layers.Dense(3)]
    to = "saved_model" if backend.NAME == "tensorflow" else "keras"
    path = tmp_path / ("model" if to == "saved_model" else "model.keras")
    export(keras.Sequential(stack), path, to=to)  # compares what it wrote with the model


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Median(4), "size"),
        (lambda: Median(True), "size"),
        (lambda: GaussianBlur(0), "sigma"),
        (lambda: TotalVariation(-1), "weight"),
        (lambda: TotalVariation(smoothing=0), "smoothing"),
        (lambda: TotalVariation(steps=0), "steps"),
        (lambda: BitDepth(0), "bits"),
        (lambda: BitDepth(9), "bits"),
        (lambda: JPEG(0), "quality"),
        (lambda: JPEG(101), "quality"),
        (lambda: JPEG(subsampling="4:1:1"), "subsampling"),
        (lambda: JPEG(bounds=(1, 0)), "bounds"),
        (lambda: JPEG()(random((2, 8, 8, 2))), "x"),
        (lambda: JPEG()(random((2, 8))), "x"),
        (lambda: DenoisingAutoencoder().fit(random((4, 8, 8, 1)) * 2), "x"),
        (lambda: DenoisingAutoencoder().fit(random((4, 8, 8, 1)), noise=-1.0), "noise"),
        (lambda: DenoisingAutoencoder().fit(random((4, 8, 8, 1)), x_adv=random((4, 8, 8, 3))), "x_adv"),
        (lambda: APEGAN().fit(random((4, 8, 8, 1)), random((3, 8, 8, 1))), "x"),
        (lambda: APEGAN().fit(*[random((4, 8, 8, 1))] * 2, weights=(-1, 1)), "weights"),
    ],
)
def test_bad_values_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=rf"`{named}` must"):
        make()
