"""The networks of the papers: shapes, logits, parameter counts by hand, seeds."""

import keras
import numpy as np
import pytest

from kerasdef.models import networks
from kerasdef.models.blocks import Denoising, Orthonormal

SMALL = ["target_dnn", "eat1", "eat2", "eat3", "cnn11", "parseval_cnn", "denoising_cnn", "vgg7"]
DEEP = ["vgg16", "resnet32", "preact_resnet18", pytest.param("resnet50", marks=pytest.mark.slow)]


def forward(model, shape):
    x = np.random.default_rng(0).uniform(size=(2, *shape)).astype("float32")
    return keras.ops.convert_to_numpy(model(x, training=False))


def weights(model):
    return np.concatenate([np.array(w).ravel() for w in model.trainable_variables])


@pytest.mark.parametrize("name", [*SMALL, *DEEP])
@pytest.mark.parametrize("shape", [(32, 32, 3), (28, 28, 1)])
def test_every_network_gives_logits_for_the_usual_images(name, shape):
    model = networks.build(name, shape, 7)
    logits = forward(model, shape)
    assert model.output_shape == (None, 7)
    assert logits.shape == (2, 7)
    assert np.isfinite(logits).all()
    assert isinstance(model.layers[-1], keras.layers.Dense)
    assert model.layers[-1].activation is keras.activations.linear


def conv(size, before, after):
    return size * size * before * after + after


def dense(before, after):
    return before * after + after


def test_parameter_counts_equal_those_by_hand_for_28_by_28_images():
    # a 3x3 convolution takes two pixels from each side length, a 2x2 pool of stride 1 takes one
    head = dense(100, 100) * 2
    wanted = {
        ("target_dnn", 10): conv(3, 1, 32) + dense(25 * 25 * 32, 100) + dense(100, 10),
        ("eat1", 11): conv(3, 1, 32) + dense(25 * 25 * 32, 100) + dense(100, 11),
        ("eat2", 11): conv(3, 1, 32) + dense(24 * 24 * 32, 100) + head + dense(100, 11),
        ("eat3", 11): conv(3, 1, 64) + conv(3, 64, 32) + dense(22 * 22 * 32, 100) + head + dense(100, 11),
    }
    for (name, outputs), count in wanted.items():
        assert networks.build(name, (28, 28, 1), outputs).count_params() == count, name


def test_the_robust_variants_of_the_cnn_have_its_layers_and_what_the_papers_add():
    plain = networks.cnn11((28, 28, 1), 10)
    assert plain.count_params() == conv(3, 1, 32) + conv(3, 32, 64) + dense(7 * 7 * 64, 1024) + dense(1024, 10)
    parseval, denoising = networks.parseval_cnn((28, 28, 1)), networks.denoising_cnn((28, 28, 1))
    assert parseval.count_params() == plain.count_params()
    assert denoising.count_params() == plain.count_params() + 32 * 32 + 64 * 64  # two 1x1 convolutions without bias
    places = [layer.output.shape[1:] for layer in denoising.layers if isinstance(layer, Denoising)]
    assert places == [(14, 14, 32), (14, 14, 64)]
    held = [getattr(layer, "kernel_constraint", None) for layer in parseval.layers if hasattr(layer, "kernel")]
    assert [isinstance(c, Orthonormal) for c in held] == [True, True, True, False]
    assert networks.parseval_cnn((8, 8, 1), beta=0.1).layers[0].kernel_constraint.beta == 0.1


def test_a_parseval_network_starts_with_kernels_that_its_constraint_leaves_alone():
    for layer in networks.parseval_cnn((8, 8, 1), 3).layers:
        if getattr(layer, "kernel_constraint", None) is not None:
            kept = keras.ops.convert_to_numpy(layer.kernel_constraint(layer.kernel))
            np.testing.assert_allclose(kept, np.array(layer.kernel), atol=1e-6)  # float32


def test_a_denoising_network_starts_as_the_network_without_its_blocks():
    plain, denoising = networks.cnn11((16, 16, 1), 5, seed=3), networks.denoising_cnn((16, 16, 1), 5, seed=3)
    np.testing.assert_array_equal(forward(denoising, (16, 16, 1)), forward(plain, (16, 16, 1)))


@pytest.mark.parametrize("width", [4, 16])
def test_a_pre_activation_resnet_has_the_parameters_counted_by_hand(width):
    model = networks.preact_resnet18((32, 32, 3), 10, width=width)
    kernels, scales = 9 * 3 * width, 8 * width  # the stem; the normalization behind the last block
    for i in range(4):
        own, before = width * 2**i, width * 2 ** max(i - 1, 0)
        kernels += 9 * before * own + 3 * 9 * own * own + (before * own if i else 0)
        scales += before + 3 * own  # every convolution of a block has one in front of it
    assert model.count_params() == kernels + 4 * scales + dense(8 * width, 10)
    assert sum(isinstance(layer, keras.layers.Conv2D) for layer in model.layers) == 17 + 3
    adds = [layer.output.shape[1:] for layer in model.layers if isinstance(layer, keras.layers.Add)]
    assert adds == [(32 // 2**i, 32 // 2**i, width * 2**i) for i in range(4) for _ in range(2)]


def test_the_target_has_relu_and_the_eat_models_gelu():
    for name in SMALL[:4]:
        names = {layer.activation.__name__ for layer in networks.build(name, (8, 8, 1), 3).layers[:1]}
        assert names == {"relu" if name == "target_dnn" else "gelu"}


@pytest.mark.parametrize("name", [*SMALL, *DEEP])
def test_initial_weights_come_from_the_seed(name):
    shape = (8, 8, 1)
    first = weights(networks.build(name, shape, 3, seed=1))
    np.testing.assert_array_equal(weights(networks.build(name, shape, 3, seed=1)), first)
    other = weights(networks.build(name, shape, 3, seed=2))
    assert other.shape == first.shape
    assert np.mean(other == first) < 0.2  # biases and scales start alike


@pytest.mark.parametrize("name", SMALL)
def test_layers_of_one_network_start_differently(name):
    kernels = [np.array(w) for w in networks.build(name, (16, 16, 1), 100).trainable_variables if w.ndim == 2]
    corners = [k[:10, :10].tobytes() for k in kernels]
    assert len(set(corners)) == len(corners)


@pytest.mark.parametrize("name", sorted(networks.NETWORKS))
def test_an_input_that_is_too_small_is_an_error(name):
    with pytest.raises(ValueError, match=r"Received: input_shape=\(3, 3, 1\)"):
        networks.build(name, (3, 3, 1), 10)
    with pytest.raises(ValueError, match="height, width, channels"):
        networks.build(name, (28, 28), 10)


@pytest.mark.parametrize(
    ("name", "smallest"),
    [("target_dnn", 4), ("eat1", 4), ("eat2", 5), ("eat3", 7), ("cnn11", 8), ("parseval_cnn", 8), ("vgg7", 8)],
)
def test_the_smallest_input_works(name, smallest):
    shape = (smallest, smallest, 1)
    assert forward(networks.build(name, shape, 3), shape).shape == (2, 3)
    with pytest.raises(ValueError, match=f"at least {smallest}x{smallest}"):
        networks.build(name, (smallest - 1, smallest, 1), 3)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="Did you mean 'resnet32'"):
        networks.build("resnet23", (32, 32, 3), 10)
    with pytest.raises(ValueError, match="Received: outputs=0"):
        networks.target_dnn((28, 28, 1), 0)
    with pytest.raises(ValueError, match="Received: seed=-1"):
        networks.eat1((28, 28, 1), seed=-1)
