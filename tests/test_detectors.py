"""Detectors: every exported one keeps the contract, closed forms, the threshold and the stream that may move it."""

import inspect
import math

import keras
import numpy as np
import pytest
import scipy.spatial.distance
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers, ops
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KernelDensity as SklearnDensity

from kerasdef import backend, models
from kerasdef.attacks import PGD
from kerasdef.defenses import HybridDefense, detectors, load
from kerasdef.defenses.detectors import (
    ConvFilterStatistics,
    Detector,
    FeatureSqueezing,
    KernelDensity,
    LogitDeviation,
    Mahalanobis,
    features,
)
from kerasdef.defenses.detectors.stream import followed
from kerasdef.defenses.detectors.threshold import conformal
from kerasdef.defenses.purifiers import Purifier
from kerasdef.testing import check_detector, linear_model

TENSORFLOW = backend.NAME == "tensorflow"


@keras.saving.register_keras_serializable("tests")
class Rounded(Purifier):
    """Images of a few levels."""

    exact = False
    rule = "rounding as the identity"

    def __init__(self, levels=2, **kwargs):
        super().__init__(**kwargs)
        self.levels = levels

    def purify(self, x):
        return ops.round(x * self.levels) / self.levels

    def get_config(self):
        return {**super().get_config(), "levels": self.levels}


@keras.saving.register_keras_serializable("tests")
class Blurred(Purifier):
    """Each pixel with its neighbors."""

    def purify(self, x):
        return ops.average_pool(x, 3, 1, "same")


@keras.saving.register_keras_serializable("tests")
class Same(Purifier):
    """Purifies nothing."""

    def purify(self, x):
        return x


def net(seed=0, outputs=3, activation="tanh", first=()):
    """A small classifier of images of 6 x 6 without units that are never active."""
    he = [keras.initializers.GlorotNormal(seed=seed + i) for i in range(4)]
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            *first,
            layers.Conv2D(4, 3, activation=activation, kernel_initializer=he[0], name="conv1"),
            layers.Conv2D(5, 2, activation=activation, kernel_initializer=he[1], name="conv2"),
            layers.Flatten(),
            layers.Dense(6, activation=activation, kernel_initializer=he[2], name="hidden"),
            layers.Dense(outputs, kernel_initializer=he[3], name="logits"),
        ]
    )


def small(n=400, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = np.clip(0.3 * rng.random((n, 6, 6, 1)) + 0.2 * y[:, None, None, None], 0, 1).astype("float32")
    return x, y


@pytest.fixture(scope="module")
def split(digits):
    """x, y, valid, fresh."""
    x, y, x_test, _ = digits
    return x[:900], y[:900], x[900:], x_test


@pytest.fixture(scope="module")
def attacked(digits_model, split):
    return PGD(eps=0.15, steps=10)(digits_model, split[0][:200], split[1][:200], progress=False)


CASES = {
    "LogitDeviation": LogitDeviation,
    "LogitDeviation, by class, mean": lambda: LogitDeviation(by_class=True, reduce="mean", rate=0.1),
    "Mahalanobis": Mahalanobis,
    "Mahalanobis, noise": lambda: Mahalanobis(noise=0.01, layers=["dense"]),
    "KernelDensity": KernelDensity,
    "KernelDensity, of a map": lambda: KernelDensity(layer="conv2d", bandwidth=0.5, points=20),
    "FeatureSqueezing": FeatureSqueezing,
    "FeatureSqueezing, exact": lambda: FeatureSqueezing([Blurred()]),
    "ConvFilterStatistics": ConvFilterStatistics,
    "ARTDetector, input": lambda: detectors.ARTDetector(kind="input", epochs=3),
    "ARTDetector, activation": lambda: detectors.ARTDetector(kind="activation", epochs=3),
    "ARTDetector, scan": lambda: detectors.ARTDetector(kind="scan", background=200),
}


@pytest.mark.parametrize("name", CASES)
def test_every_detector_keeps_the_contract(name, digits_model, split, attacked):
    if name.startswith("ART") and not TENSORFLOW:
        pytest.skip("ART's detectors need TensorFlow")
    x, y, valid, fresh = split
    layer_names = [layer.name for layer in digits_model.layers]
    detector = CASES[name]()
    if "noise" in name:
        detector = Mahalanobis(noise=0.01, layers=[layer_names[2]])
    if "of a map" in name:
        detector = KernelDensity(layer=layer_names[0], bandwidth=0.5, points=20)
    check_detector(detector, [digits_model], x, y, valid=valid, fresh=fresh, x_adv=attacked)


def test_every_exported_detector_is_among_them():
    joined = {"AnyOf", "Disagreement", "Watching"}  # in test_detectors_joined
    exported = {n for n, v in vars(detectors).items() if inspect.isclass(v) and v is not Detector}
    assert exported == {name.split(",")[0] for name in CASES} | joined


@keras.saving.register_keras_serializable("tests")
class Blind(LogitDeviation):
    """Its score has no gradient."""

    def call(self, x, logits):
        return ops.stop_gradient(super().call(x, logits))


@keras.saving.register_keras_serializable("tests")
class OfTheBatch(LogitDeviation):
    """Its score of an image depends on the others."""

    def call(self, x, logits):
        scores = super().call(x, logits)
        return scores - ops.mean(scores)


@keras.saving.register_keras_serializable("tests")
class ForgetfulDetector(LogitDeviation):
    """Its configuration does not say how deviations are reduced."""

    def get_config(self):
        return {k: v for k, v in super().get_config().items() if k != "reduce"}


@pytest.mark.parametrize(
    ("make", "clause"),
    [
        (Blind, "gradients flow"),
        (OfTheBatch, "the same for batch_size"),
        (lambda: ForgetfulDetector(reduce="mean"), "a copy scores alike"),
    ],
)
def test_the_contract_finds_what_is_wrong(make, clause, digits_model, split, attacked):
    x, y, valid, fresh = split
    with pytest.raises(AssertionError, match=clause):
        check_detector(make(), [digits_model], x, y, valid=valid, fresh=fresh, x_adv=attacked)


@pytest.mark.parametrize(
    "make",
    [LogitDeviation, Mahalanobis, KernelDensity, FeatureSqueezing, ConvFilterStatistics],
    ids=lambda m: m.__name__,
)
def test_a_saved_defense_keeps_what_its_detector_has_learned(make, digits_model, split, attacked, tmp_path):
    x, y, valid, fresh = split
    detector = make().fit(digits_model, x, y, valid=valid, x_adv=attacked)
    detector.follow(np.full(8, np.inf, "float32"))
    threshold, found = float(detector.threshold.value), detector.scores(fresh)
    HybridDefense([digits_model], detector=detector).save(tmp_path / "defense.keras")
    again = load(tmp_path / "defense.keras")
    assert type(again.detector) is make
    assert float(again.detector.threshold.value) == threshold > float(again.detector.span[1])
    np.testing.assert_allclose(again.detector.scores(fresh), found, atol=1e-3 * float(detector.spread.value))
    np.testing.assert_array_equal(again.decide(fresh).rejected, again.detector.flags(fresh))
    again.detector.reset()
    assert float(again.detector.threshold.value) < threshold


# -- closed forms ---------------------------------------------------------------------------------------------------


def test_the_threshold_is_that_of_split_conformal_prediction():
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 100))  # 1 to 99
    assert conformal(scores, 0.05) == 95  # the 95th of 99: ceil(100 * 0.95)
    assert conformal(scores, 0.01) == 99
    assert conformal(scores[scores <= 19], 0.05) == 19  # 19 are just enough for 5 %
    x = np.linspace(0, 1, 39, dtype="float32")[:, None]
    model = linear_model([[1.0, -1.0]])
    detector = LogitDeviation(rate=0.1).fit(model, np.float32([[0.0], [1.0], [0.5], [0.5]]), [0, 1, 0, 1], valid=x)
    # logits (x, -x), both with mean 0.5 and standard deviation sqrt(1/8): |x - 0.5| has its 36th of 39 at 18/38 - ...
    by_hand = np.sort(np.abs(x[:, 0] - 0.5) * math.sqrt(8))[math.ceil(40 * 0.9) - 1]
    assert float(detector.threshold.value) == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_logit_deviation_is_equation_6(by_class, reduce):
    members, (x, y) = [net(0), net(9)], small()
    detector = LogitDeviation(by_class=by_class, reduce=reduce).fit(members, x, y, valid=x)
    logits = models.predict_logits(models.stack_logits(members), x)
    given = keras.ops.convert_to_numpy(ops.softmax(logits)).mean(axis=1).argmax(axis=1)
    wanted = []
    for z, k in zip(logits, given, strict=True):
        group = logits[y == k] if by_class else logits
        away = np.abs(z - group.mean(axis=0)) / group.std(axis=0)
        wanted.append(away.max() if reduce == "max" else away.mean())
    np.testing.assert_allclose(detector.scores(x), wanted, rtol=1e-4)


def test_mahalanobis_is_the_distance_to_the_nearest_class_by_the_tied_covariance():
    model, (x, y) = net(), small(600)
    detector = Mahalanobis(layers=["conv2", "hidden"]).fit(model, x, y, valid=x)
    kept = np.arange(len(x)) % 5 == 4
    columns = []
    for name in ("conv2", "hidden"):
        found = keras.ops.convert_to_numpy(keras.Model(model.inputs[0], model.get_layer(name).output)(x))
        found = found.astype("float64").reshape(len(x), -1, found.shape[-1]).mean(axis=1)
        fitted, classes = found[~kept], y[~kept]
        means = [fitted[classes == k].mean(axis=0) for k in range(3)]
        residual = np.concatenate([fitted[classes == k] - means[k] for k in range(3)])
        inverse = np.linalg.inv(residual.T @ residual / len(residual))
        each = [[scipy.spatial.distance.mahalanobis(f, m, inverse) ** 2 for m in means] for f in found]
        columns.append(np.min(each, axis=1))
    distances = np.stack(columns, axis=1)
    away = (distances - distances[kept].mean(axis=0)) / distances[kept].std(axis=0)
    np.testing.assert_allclose(detector.scores(x), away.mean(axis=1), atol=2e-3)  # float32 features, whitened

    x_adv = np.clip(x[:150] + 0.3 * np.random.default_rng(1).normal(size=x[:150].shape), 0, 1).astype("float32")
    other = Mahalanobis(layers=["conv2", "hidden"]).fit(model, x, y, valid=x, x_adv=x_adv)
    clean, attacked = (other._measured(v) for v in (x[kept], x_adv))
    both = (np.concatenate([clean, attacked]) - clean.mean(axis=0)) / clean.std(axis=0)
    wanted = LogisticRegression(class_weight="balanced").fit(both, np.arange(len(both)) >= len(clean)).coef_[0]
    np.testing.assert_allclose(ops.convert_to_numpy(other.importance.value), wanted, rtol=0.02)


def test_the_noise_of_mahalanobis_moves_an_image_nearer():
    model, (x, y) = net(), small()
    detector = Mahalanobis(noise=0.002).fit(model, x, y)
    tensor = ops.convert_to_tensor(x[:64])
    near, plain = (ops.convert_to_numpy(f(tensor)) for f in (detector._noisy_distances, detector._distances))
    assert (near < plain).mean() > 0.95  # but where the step is longer than the way


def test_a_class_without_images_has_no_mean():
    model, (x, y) = net(outputs=4), small()
    found = [Mahalanobis(layers=["hidden"]).fit(m, x, y).scores(x) for m in (model, net(outputs=3))]
    np.testing.assert_allclose(*found, atol=1e-3)


@pytest.mark.parametrize("bandwidth", [0.2, None])
def test_kernel_density_is_that_of_scikit_learn(bandwidth):
    model, (x, y) = net(), small()
    detector = KernelDensity(layer="hidden", bandwidth=bandwidth, points=1000).fit(model, x, y, valid=x)
    found = ops.convert_to_numpy(keras.Model(model.inputs[0], model.get_layer("hidden").output)(x))
    given = models.predict_logits(model, x).argmax(axis=1)
    width = float(detector.width.value)
    wanted = np.zeros(len(x))
    for k in np.unique(given):
        density = SklearnDensity(bandwidth=width).fit(found[y == k])
        wanted[given == k] = -density.score_samples(found[given == k])
    np.testing.assert_allclose(detector.scores(x), wanted, atol=2e-3)
    if bandwidth is None:  # the likeliest of those that were tried: a quarter and four times it are worse
        means = [
            sum(
                SklearnDensity(bandwidth=width * f).fit(found[y == k][::2]).score(found[y == k][1::2]) for k in range(3)
            )
            for f in (0.25, 1, 4)
        ]
        assert max(means) == means[1]


def test_reference_points_are_limited():
    model, (x, y) = net(), small()
    detector = KernelDensity(points=7).fit(model, x, y)
    assert detector.reference.shape == (21, 6)
    shares = np.exp(ops.convert_to_numpy(detector.share.value))
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-5)
    assert set(np.unique((shares > 0).sum(axis=1))) == {7}


def test_feature_squeezing_is_the_largest_distance_of_probabilities():
    members, (x, y) = [net(0), net(9)], small()
    detector = FeatureSqueezing([Rounded(2), Blurred()]).fit(members, x, y, valid=x)

    def mean(images):
        logits = models.predict_logits(models.stack_logits(members), images)
        return ops.convert_to_numpy(ops.softmax(logits)).mean(axis=1)

    blurred = ops.convert_to_numpy(Blurred()(x))
    distances = [np.abs(mean(x) - mean(v)).sum(axis=1) for v in (np.round(x * 2) / 2, blurred)]
    np.testing.assert_allclose(detector.scores(x), np.max(distances, axis=0), atol=1e-5)
    assert detector.rule == "rounding as the identity; exact"


def test_conv_filter_statistics_are_those_of_numpy_and_tell_noise_from_images():
    model, (x, y) = net(), small()
    x_adv = np.clip(x + 0.1 * np.random.default_rng(1).choice([-1, 1], x.shape), 0, 1).astype("float32")
    detector = ConvFilterStatistics().fit(model, x[:200], y[:200], valid=x[200:], x_adv=x_adv[:200])
    assert detector.layers == ["conv1", "conv2"]
    assert detector.flags(x_adv[200:]).mean() > 10 * 0.05  # ten times as often as the clean images of its threshold
    views = [keras.Model(model.inputs[0], model.get_layer(name).output) for name in detector.layers]
    values = []
    for view, mean, basis, plane in zip(views, detector.means, detector.bases, detector.planes, strict=True):
        found = ops.convert_to_numpy(view(x)).astype("float64")
        places = found.reshape(len(x), -1, found.shape[-1])
        parts = (places - np.asarray(mean)) @ np.asarray(basis)
        statistics = [np.abs(parts).mean(axis=1), *np.quantile(parts, (0, 0.25, 0.5, 0.75, 1), axis=1)]
        values.append(np.concatenate(statistics, axis=-1) @ np.asarray(plane))
    wanted = np.max(np.stack(values, axis=1) - np.asarray(detector.offsets), axis=1)
    np.testing.assert_allclose(detector.scores(x), wanted, atol=1e-3 * np.abs(wanted).max())
    components = (ops.convert_to_numpy(views[0](x[:200])).reshape(-1, 4) - np.asarray(detector.means[0])) @ np.asarray(
        detector.bases[0]
    )
    np.testing.assert_allclose(np.cov(components, rowvar=False), np.eye(4), atol=0.02)


# -- features by name -----------------------------------------------------------------------------------------------


def test_features_are_found_by_name_also_inside_models():
    inner = net(first=[layers.Rescaling(2.0)])
    images = keras.Input((6, 6, 1))
    outer = keras.Model(images, layers.Softmax()(inner(images)))
    view, names = features.view(models.logits_view(outer), None)
    assert [name.split("/")[-1] for name in names] == ["conv1", "conv2", "hidden"]
    direct, same = features.view(inner, ["conv1", "conv2", "hidden"])
    assert same == ["conv1", "conv2", "hidden"]
    x, _ = small(8)
    for a, b in zip(features.computed(view, x), features.computed(direct, x), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    with pytest.raises(ValueError, match=r"`layers` must be one of .*Did you mean 'hidden'"):
        features.view(inner, ["hiden"])
    with pytest.raises(ValueError, match="feature maps"):
        features.view(linear_model(np.eye(4)), None, maps=True)


def test_without_activations_the_kernels_are_the_features_and_the_last_of_a_size_is_taken():
    convs = [layers.Conv2D(3, 3, padding="same", name=f"c{i}") for i in range(3)]
    model = keras.Sequential([keras.Input((6, 6, 1)), *convs, layers.Flatten(), layers.Dense(3)])
    assert features.view(model, None)[1] == ["c2"]


# -- the stream -----------------------------------------------------------------------------------------------------

NUMBERS = st.floats(width=32)  # infinite and NaN among them


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(st.lists(st.lists(NUMBERS, max_size=6), max_size=20), st.floats(0, 100, width=32))
def test_no_stream_moves_the_threshold_beyond_its_span(batches, step):
    threshold = np.float32(1.0)
    for scores in batches:
        threshold = followed(threshold, np.float32(scores), 0.05, np.float32(0.3), np.float32([0.5, 1.0, 2.0]), step)
        assert 0.5 <= float(threshold) <= 2.0


def test_the_share_of_the_flagged_comes_back_when_scores_have_drifted():
    rng = np.random.default_rng(0)
    span, threshold = np.float32([0.0, 1.645, 9.0]), np.float32(1.645)  # 5 % of a standard normal are above
    before, after = [], []
    for i in range(600):
        scores = 1.5 * rng.normal(size=64).astype("float32")
        (before if i < 20 else after if i >= 300 else []).append(np.mean(scores > 1.645))
        if i >= 300:
            after[-1] = np.mean(scores > float(threshold))
        threshold = followed(threshold, scores, 0.05, np.float32(1.0), span, 0.1)
    assert np.mean(before) > 0.1
    assert np.mean(after) == pytest.approx(0.05, abs=0.01)  # 300 x 64 scores: one standard deviation is 0.0016
    assert float(threshold) == pytest.approx(1.5 * 1.645, abs=0.3)


def test_the_threshold_follows_inside_a_compiled_program(digits_model, split):
    x, y, valid, fresh = split
    detector = LogitDeviation().fit(digits_model, x, y, valid=valid)
    scores = detector.scores(fresh)
    start = float(detector.threshold.value)
    detector.follow(scores, step=0.5)
    moved = float(detector.threshold.value)
    share = np.mean(scores > start)
    low, _, high = np.asarray(detector.span.value)
    assert moved == pytest.approx(np.clip(start + 0.5 * (share - 0.05) * float(detector.spread.value), low, high))
    detector.reset()
    if TENSORFLOW:  # with JAX a program hands new values of variables back
        program = backend.compiled(lambda s: detector.follow(s, step=0.5), digits_model)
        program(scores)
        assert float(detector.threshold.value) == pytest.approx(moved, rel=1e-6)
    assert detector.reset() is None
    detector.move(float(high))
    assert float(detector.threshold.value) == high
    with pytest.raises(ValueError, match=r"`threshold` must be in its bound.*Received: threshold=1e\+06"):
        detector.move(1e6)
    assert float(detector.threshold.value) == high


def test_reach_holds_the_threshold(digits_model, split):
    x, y, valid, _ = split
    detector = LogitDeviation(reach=1.0).fit(digits_model, x, y, valid=valid)
    detector.follow(np.full(8, 1e9, "float32"), step=9.0)
    assert len(set(np.asarray(detector.span.value))) == 1
    wide = LogitDeviation(reach=4.0).fit(digits_model, x, y, valid=valid)
    scores = np.sort(wide.scores(valid))  # 500 of them
    by_hand = [scores[math.ceil(501 * (1 - rate)) - 1] for rate in (0.2, 0.05, 0.0125)]
    np.testing.assert_allclose(np.asarray(wide.span.value), by_hand, rtol=1e-5)


# -- what is wrong --------------------------------------------------------------------------------------------------


def test_constant_features_are_refused_and_leave_the_detector_as_it_was():
    x, y = small()
    dead = net()
    dead.get_layer("hidden").set_weights([np.zeros(s.shape) for s in dead.get_layer("hidden").get_weights()])
    for detector in (Mahalanobis(), KernelDensity(layer="hidden"), LogitDeviation()):
        with pytest.raises(ValueError, match="must vary over `x`"):
            detector.fit(dead, x, y)
        assert float(detector.fitted.value) == 0
    fitted = Mahalanobis(layers=["hidden"]).fit(net(), x, y)
    before = [np.array(v) for v in fitted.variables]
    with pytest.raises(ValueError, match="must vary over `x`"):
        fitted.fit(fitted._members.models[0], np.full_like(x, 0.5), y)
    assert all(np.array_equal(a, b) for a, b in zip(before, map(np.array, fitted.variables), strict=True))
    with pytest.raises(ValueError, match="scores that vary"):
        fitted.calibrate(np.full_like(x, 0.5))
    assert all(np.array_equal(a, b) for a, b in zip(before, map(np.array, fitted.variables), strict=True))


def test_a_score_that_is_not_finite_is_flagged():
    images = keras.Input((6, 6, 1))
    model, (x, y) = net(), small()
    wild = ops.log(ops.relu(0.9 - ops.mean(images, axis=(1, 2))))  # -inf for bright images
    wild = models.as_logits(keras.Model(images, model(images) * wild))
    detector = LogitDeviation().fit(wild, x, y)
    bright = np.ones((2, 6, 6, 1), "float32")
    assert not np.isfinite(detector.scores(bright)).any()
    assert detector.flags(bright).all()
    excess = ops.convert_to_numpy(detector.excess(bright, ops.expand_dims(wild(bright), 1)))
    np.testing.assert_array_equal(excess, 1e6)
    with pytest.raises(ValueError, match="scores that are finite"):
        detector.calibrate(np.concatenate([x, bright]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"valid": small(18)[0]}, "needs at least 19 clean images for the threshold. Received: 18"),
        ({"y": np.full(400, 3)}, "`y` must be at least 0 and below 3"),
        ({"y": np.zeros(5, int)}, "`y` must have one label for each of the 400"),
        ({"x": np.zeros((400, 5, 5, 1), "float32")}, r"`x` must hold samples of shape \(6, 6, 1\)"),
        ({"x_adv": np.full((3, 6, 6, 1), np.inf, "float32")}, "`x_adv` must be finite"),
        ({"members": []}, "`members` must be one or more models"),
        ({"members": [net(), net(outputs=4)]}, "`members` must have the same input and output shapes"),
    ],
)
def test_bad_data_are_refused_before_work(change, words):
    x, y = small()
    with pytest.raises(ValueError, match=words):
        LogitDeviation().fit(**{"members": net(), "x": x, "y": y, **change})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: LogitDeviation(rate=0.0), "`rate` must be a share"),
        (lambda: LogitDeviation(rate=1.0), "`rate` must be a share"),
        (lambda: LogitDeviation(reach=0.5), "`reach` must be a finite number of at least 1"),
        (lambda: LogitDeviation(reduce="median"), "`reduce` must be one of max, mean"),
        (lambda: KernelDensity(bandwidth=0.0), "`bandwidth` must be a finite number above 0"),
        (lambda: KernelDensity(points=0), "`points` must be a positive integer"),
        (lambda: Mahalanobis(noise=-1.0), "`noise` must be a finite number of at least 0"),
        (lambda: FeatureSqueezing([]), "`squeezers` must be one or more purifiers"),
        (lambda: FeatureSqueezing([Same(bounds=(0, 2))]).attach(net()), "`squeezers` must have the bounds"),
        (lambda: Mahalanobis(layers=[]).attach(net()), "`layers` must name one or more layers"),
        (lambda: ConvFilterStatistics().fit(net(), *small()), "`x_adv` must be attacked images"),
        (lambda: LogitDeviation().move(1.0), "must be fitted"),
        (lambda: LogitDeviation().reset(), "must be fitted"),
        (lambda: LogitDeviation().calibrate(small()[0]), "must be fitted"),
    ],
)
def test_bad_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


# -- ART ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(TENSORFLOW, reason="with TensorFlow it works")
def test_the_detectors_of_art_need_tensorflow():
    with pytest.raises(ValueError, match="`ARTDetector` needs the TensorFlow backend"):
        detectors.ARTDetector()


@pytest.mark.skipif(not TENSORFLOW, reason="ART's detectors need TensorFlow")
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
@pytest.mark.parametrize("kind", ["input", "activation", "scan"])
def test_scores_are_those_of_art_and_its_rule_is_a_threshold_on_them(kind, digits_model, split, attacked):
    x, y, valid, fresh = split
    detector = detectors.ARTDetector(kind=kind, epochs=5, background=300)
    detector.fit(digits_model, x, y, valid=valid, x_adv=attacked)
    both = np.concatenate([fresh[:80], attacked[:80]])
    report, flagged = detector.art.detect(both)
    scores = detector.scores(both, batch_size=50)
    rule = 0.0 if kind != "scan" else detector.art.bgd_scores.max()
    clear = np.abs(scores - rule) > 1e-4
    np.testing.assert_array_equal((scores > rule)[clear], np.asarray(flagged)[clear])
    if kind == "scan":
        np.testing.assert_allclose(scores, report["scores"], rtol=1e-5)
    if kind != "scan":
        with pytest.raises(ValueError, match="`x_adv` must be attacked images"):
            detectors.ARTDetector(kind=kind).fit(digits_model, x, y)


@pytest.mark.skipif(not TENSORFLOW, reason="ART's detectors need TensorFlow")
@pytest.mark.filterwarnings("ignore:The structure of `inputs`")
def test_the_scan_is_that_of_art_on_a_sequential_model(split):
    from art.defences.detector.evasion import SubsetScanningDetector
    from art.estimators.classification import TensorFlowV2Classifier

    model, (x, y) = net(), small()
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    theirs = TensorFlowV2Classifier(model=model, nb_classes=3, input_shape=(6, 6, 1), loss_object=loss)
    theirs = SubsetScanningDetector(theirs, x[:100], "conv2", verbose=False)
    ours = detectors.ARTDetector(kind="scan", layer="conv2", background=100).fit(model, x, y, valid=x)
    np.testing.assert_allclose(ours.scores(x[:50]), theirs.detect(x[:50])[0]["scores"], rtol=1e-5)
