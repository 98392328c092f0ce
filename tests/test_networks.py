"""The networks of the papers: shapes, logits, parameter counts by hand, seeds."""

import keras
import numpy as np
import pytest

from kerasdef import networks

SMALL = ["target_dnn", "eat1", "eat2", "eat3", "cnn11", "vgg7"]
DEEP = ["vgg16", "resnet32", pytest.param("resnet50", marks=pytest.mark.slow)]


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
    [("target_dnn", 4), ("eat1", 4), ("eat2", 5), ("eat3", 7), ("cnn11", 8), ("vgg7", 8)],
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
