"""The gradient attacks give the images of ART and cleverhans, and C&W is no weaker than ART's.

All see one small convolutional network and images that it classifies correctly (kerasdef returns others
unchanged). Tolerance 1e-5: float32 sums in another order, over at most ten steps of values in [0, 1]. Where a
gradient is so near 0 that the order of a sum decides its sign, a sign step may differ by its whole length:
the FGSM test leaves pixels out whose gradient is below 1e-7, and smooth activations keep them rare.
"""

import keras
import numpy as np
import pytest
from helpers import art_classifier

if keras.backend.backend() != "tensorflow":
    pytest.skip("ART and cleverhans attack TensorFlow models", allow_module_level=True)

import tensorflow as tf
from art.attacks.evasion import (
    BasicIterativeMethod,
    CarliniL2Method,
    FastGradientMethod,
    ProjectedGradientDescent,
)
from art.attacks.evasion.projected_gradient_descent import projected_gradient_descent_tensorflow_v2 as art_pgd
from cleverhans.tf2.attacks import projected_gradient_descent as cleverhans_pgd
from cleverhans.tf2.attacks.fast_gradient_method import fast_gradient_method
from cleverhans.tf2.attacks.momentum_iterative_method import momentum_iterative_method

from kerasdef import datasets, models, norms
from kerasdef.attacks import BIM, FGSM, MIM, PGD, CarliniWagner
from kerasdef.random import sample_seeds

N = 48
CLOSE = 1e-5
SURE = 1e-3  # least largest gradient of an image: cleverhans does not normalize L2 gradients shorter than 1e-6
ORDER = {"linf": np.inf, "l2": 2}
EPS = {"linf": 0.1, "l2": 0.8}


@pytest.fixture(scope="module")
def model():
    """Conv net with smooth activations: no kinks, so few gradients of exactly 0."""
    data = datasets.load("digits")
    keras.utils.set_random_seed(0)
    net = keras.Sequential(
        [
            keras.Input(data.input_shape),
            keras.layers.Conv2D(8, 3, activation="gelu"),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="gelu"),
            keras.layers.Dense(10),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile("adam", loss, jit_compile=False)
    net.fit(data.x_train, data.y_train, batch_size=32, epochs=3, verbose=0)
    return net


@pytest.fixture(scope="module")
def samples(model):
    """Correctly classified test images with a gradient to follow."""
    data = datasets.load("digits")
    right = models.predict_logits(model, data.x_test).argmax(axis=1) == data.y_test
    x, y = data.x_test[right], data.y_test[right]
    steep = np.abs(gradient(model, x, y)).max(axis=(1, 2, 3)) > SURE
    assert steep.sum() >= N
    return x[steep][:N], y[steep][:N]


def gradient(model, x, y):
    """Input gradients of the cross-entropy, by TensorFlow alone."""
    z = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits(y, model(z, training=False))
    return tape.gradient(loss, z).numpy()


def logits(model):
    return lambda z: model(z, training=False)


def of_cleverhans(attack, model, x, y, bounds=(0.0, 1.0), **settings):
    return attack(
        logits(model), tf.constant(x), clip_min=bounds[0], clip_max=bounds[1], y=tf.constant(y), **settings
    ).numpy()


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_gives_the_images_of_art_and_cleverhans(model, samples, norm):
    x, y = samples
    ours = FGSM(eps=EPS[norm], norm=norm)(model, x, y)
    cleverhans = of_cleverhans(fast_gradient_method, model, x, y, eps=EPS[norm], norm=ORDER[norm])
    art = FastGradientMethod(art_classifier(model), norm=ORDER[norm], eps=EPS[norm]).generate(x, y)
    clear = np.abs(gradient(model, x, y)) > 1e-7
    assert clear.mean() > 0.99
    for theirs in (cleverhans, art):
        np.testing.assert_allclose(ours[clear], theirs[clear], rtol=0, atol=CLOSE)


# In L2, ART and cleverhans clip to the bounds before they project and again after; kerasdef projects and then
# clips. The results are the same where the ball or the bounds, not both, stop a step: one case for each.
CASES = [
    pytest.param("linf", 0.1, 0.02, (0.0, 1.0), id="linf, ball and bounds"),
    pytest.param("l2", 0.8, 0.08, (0.0, 1.0), id="l2, bounds"),
    pytest.param("l2", 0.8, 0.2, (-2.0, 3.0), id="l2, ball"),
]


@pytest.mark.parametrize(("norm", "eps", "step", "bounds"), CASES)
def test_bim_gives_the_images_of_art_and_cleverhans_after_ten_steps(model, samples, norm, eps, step, bounds):
    x, y = samples
    attack = BIM(eps=eps, norm=norm, steps=10, step_size=step, best=False, early_stop=False, bounds=bounds)
    ours = attack(model, x, y)
    cleverhans = of_cleverhans(
        cleverhans_pgd.projected_gradient_descent,
        model,
        x,
        y,
        bounds,
        eps=eps,
        eps_iter=step,
        nb_iter=10,
        norm=ORDER[norm],
        rand_init=False,
    )
    settings = {"eps": eps, "eps_step": step, "max_iter": 10, "batch_size": N, "verbose": False}
    if norm == "linf":
        art = BasicIterativeMethod(art_classifier(model, bounds), **settings).generate(x, y)
    else:
        art = ProjectedGradientDescent(art_classifier(model, bounds), norm=2, num_random_init=0, **settings).generate(
            x, y
        )
    for theirs in (cleverhans, art):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)


def test_pgd_gives_the_images_of_art_and_cleverhans_from_the_same_start(model, samples, monkeypatch):
    """PGD draws its start by seed and position; the others are given the same numbers."""
    x, y = samples
    eps, step = 0.1, 0.02
    seeds, radii = sample_seeds(3, np.arange(N)), np.full(N, eps, "float32")
    start = keras.ops.convert_to_numpy(norms.Linf().sample(seeds, x.shape[1:], radii))
    attack = PGD(eps=eps, steps=10, step_size=step, best=False, early_stop=False)
    ours = attack(model, x, y, seed=3)

    monkeypatch.setattr(cleverhans_pgd, "random_lp_vector", lambda *_, **__: tf.constant(start))
    monkeypatch.setattr(art_pgd, "random_sphere", lambda *_, **__: start.reshape(N, -1))
    cleverhans = of_cleverhans(
        cleverhans_pgd.projected_gradient_descent,
        model,
        x,
        y,
        eps=eps,
        eps_iter=step,
        nb_iter=10,
        norm=np.inf,
        rand_init=True,
    )
    art = ProjectedGradientDescent(
        art_classifier(model), eps=eps, eps_step=step, max_iter=10, num_random_init=1, batch_size=N, verbose=False
    ).generate(x, y)
    for theirs in (cleverhans, art):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_mim_gives_the_images_of_cleverhans_after_ten_steps(model, samples, decay):
    """Cleverhans divides by the mean of |gradient|, kerasdef by the sum, as the paper: the same sign."""
    x, y = samples
    direction = type(MIM().direction)(decay=decay)
    ours = MIM(eps=0.1, steps=10, step_size=0.02, direction=direction, best=False, early_stop=False)(model, x, y)
    theirs = of_cleverhans(
        momentum_iterative_method, model, x, y, eps=0.1, eps_iter=0.02, nb_iter=10, decay_factor=decay
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=CLOSE)


def test_carlini_wagner_is_no_weaker_than_art_at_the_same_budget(model, samples):
    """Every step is taken on both sides: ART has no early abort."""
    x, y = (part[:6] for part in samples)
    ours = CarliniWagner(steps=12, binary_search_steps=2, initial_c=1.0, learning_rate=0.1, abort_early=False)(
        model, x, y
    )
    theirs = CarliniL2Method(
        art_classifier(model),
        max_iter=12,
        binary_search_steps=2,
        initial_const=1.0,
        learning_rate=0.1,
        batch_size=len(x),
        verbose=False,
    ).generate(x, y)
    broke_ours, broke_theirs = (models.predict_logits(model, z).argmax(axis=1) != y for z in (ours, theirs))
    assert broke_ours.sum() >= broke_theirs.sum() > 0
    both = broke_ours & broke_theirs
    size = [np.median(np.linalg.norm((z - x)[both].reshape(both.sum(), -1), axis=1)) for z in (ours, theirs)]
    assert size[0] <= 1.02 * size[1]
