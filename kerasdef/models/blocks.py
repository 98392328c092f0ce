"""Layers and constraints that make a network harder to attack: Parseval kernels, convex sums, feature denoising."""

from __future__ import annotations

import math

import keras
from keras import layers, ops

from kerasdef import checks


@keras.saving.register_keras_serializable("kerasdef")
class Orthonormal(keras.constraints.Constraint):
    """Kernels that approach orthonormal ones: after every update one step W <- (1 + beta) W - beta W W^T W.

    A singular value s of the kernel becomes (1 + beta) s - beta s^3, which moves it towards 1; a layer whose singular
    values are at most 1 does not lengthen any difference of two inputs.

    The kernel of a dense layer, (inputs, outputs), is its own matrix. That of a convolution, (height, width, inputs,
    outputs), is flattened to (height * width * inputs, outputs) and divided by `scale(kernel.shape)`, since every pixel
    is read by height * width patches: it is the effective kernel, the one that is stored, which goes to orthonormal
    columns (or rows, where it has fewer of them) times that scale. The paper moves a random part of the rows at each
    update; here it is all of them.

    Args:
        beta: Length of the step, above 0 and at most 0.5, where it is the Newton-Schulz iteration (paper: 0.0003).

    References: Cisse et al., 2017, https://arxiv.org/abs/1704.08847 (Algorithm 1).
    """

    def __init__(self, beta: float = 0.0003):
        self.beta = checks.real("beta", beta, low=0.0, high=0.5, open_low=True)

    @staticmethod
    def scale(shape) -> float:
        """Singular value that the kernel is moved to: 1 / sqrt(height * width), and 1 for a dense layer."""
        return 1.0 / math.sqrt(math.prod(shape[:-2]))

    def __call__(self, kernel):
        """Return the kernel after one step."""
        kernel = ops.convert_to_tensor(kernel)
        shape, scale = kernel.shape, self.scale(kernel.shape)
        w = ops.reshape(kernel, (-1, shape[-1])) / scale
        turned = ops.transpose(w)
        # the same product either way: multiply the smaller square matrix
        cube = (
            ops.matmul(w, ops.matmul(turned, w)) if w.shape[0] >= w.shape[1] else ops.matmul(ops.matmul(w, turned), w)
        )
        return ops.reshape(((1.0 + self.beta) * w - self.beta * cube) * scale, shape)

    def get_config(self):
        """Settings of the constraint."""
        return {"beta": self.beta}


@keras.saving.register_keras_serializable("kerasdef")
class Simplex(keras.constraints.Constraint):
    """Weights of shape (k,) of at least 0 that sum to 1: the nearest such point in Euclidean distance.

    References: Duchi et al., 2008, Efficient projections onto the L1-ball (figure 1); Cisse et al., 2017,
    https://arxiv.org/abs/1704.08847 (Algorithm 1).
    """

    def __call__(self, weights):
        """Return the nearest point of the simplex."""
        weights = ops.convert_to_tensor(weights)
        ordered = ops.flip(ops.sort(weights))
        count = ops.arange(1, weights.shape[0] + 1, dtype=weights.dtype)
        # (sum of the j largest - 1) / j grows up to the number of weights that stay above 0, and falls from there
        shift = ops.max((ops.cumsum(ordered) - 1.0) / count)
        return ops.maximum(weights - shift, 0.0)


@keras.saving.register_keras_serializable("kerasdef")
class ConvexSum(layers.Layer):
    """A sum of inputs of one shape with trained weights of at least 0 that sum to 1; all are equal at first.

    Unlike a plain sum, as in a residual block, it does not lengthen any difference by more than its inputs do.

    Call arguments:
        inputs: A list of tensors of one shape.

    References: Cisse et al., 2017, https://arxiv.org/abs/1704.08847 (aggregation layers).
    """

    def build(self, input_shape):
        """Make one weight for each input."""
        if not isinstance(input_shape, list) or any(tuple(s) != tuple(input_shape[0]) for s in input_shape):
            raise ValueError(f"`inputs` must be a list of tensors of one shape. Received: shapes={input_shape}")
        k = len(input_shape)
        equal = keras.initializers.Constant(1.0 / k)
        self.shares = self.add_weight(shape=(k,), initializer=equal, constraint=Simplex(), name="shares")

    def call(self, inputs):
        """Add up the inputs."""
        return sum(share * x for share, x in zip(ops.unstack(ops.convert_to_tensor(self.shares)), inputs, strict=True))

    def compute_output_shape(self, input_shape):
        """The shape of one input."""
        return input_shape[0]


def _nonlocal(x):
    """Mean of all positions, weighted by a softmax of their products with this one over sqrt(channels)."""
    _, h, w, c = ops.shape(x)
    flat = ops.reshape(x, (-1, h * w, c))
    alike = ops.softmax(ops.matmul(flat, ops.transpose(flat, (0, 2, 1))) / math.sqrt(c), axis=-1)
    return ops.reshape(ops.matmul(alike, flat), (-1, h, w, c))


def _padded(x):
    """One more pixel on every side, which repeats the edge."""
    return ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="symmetric")


def _ordered(a, b, c):
    """Smallest, middle and largest of three tensors, value by value."""
    low, high = ops.minimum(a, b), ops.maximum(a, b)
    return ops.minimum(low, c), ops.maximum(low, ops.minimum(high, c)), ops.maximum(high, c)


def _median(x):
    """Median of the 3x3 pixels around each.

    Columns of three are put in order once for all the windows that they are in. The middle one of nine is then the
    middle one of: the largest of the columns' smallest, the middle of their middle, the smallest of their largest.
    """
    z = _padded(x)
    small, middle, large = _ordered(z[:, :-2], z[:, 1:-1], z[:, 2:])

    def three(t):
        return _ordered(t[:, :, :-2], t[:, :, 1:-1], t[:, :, 2:])

    return _ordered(three(small)[2], three(middle)[1], three(large)[0])[1]


def _mean(x):
    """Mean of the 3x3 pixels around each."""
    return ops.average_pool(_padded(x), 3, 1, padding="valid", data_format="channels_last")


DENOISERS = {"nonlocal": _nonlocal, "median": _median, "mean": _mean}


@keras.saving.register_keras_serializable("kerasdef")
class Denoising(layers.Layer):
    """Feature denoising: the features of a convolution, plus a 1x1 convolution of their filtered version.

    "nonlocal" is the Gaussian (softmax) form of non-local means without embeddings: the weights are the softmax of
    x_i . x_j / sqrt(channels) over all positions j. It takes memory and time in (height * width)^2. The paper puts a
    batch normalization behind the 1x1 convolution; here there is none, so that the block fits networks without any.

    Args:
        kind: "nonlocal", "median" (3x3) or "mean" (3x3); images are padded by their edge.
        kernel_initializer: Initializer of the 1x1 convolution. "zeros" starts from the network without the block.

    Call arguments:
        x: Features of shape (n, height, width, channels).

    References: Xie et al., 2019, https://arxiv.org/abs/1812.03411 (section 4, figure 4).
    """

    def __init__(self, kind: str = "nonlocal", *, kernel_initializer="zeros", **kwargs):
        super().__init__(**kwargs)
        self.kind = checks.one_of("kind", kind, DENOISERS)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)

    def build(self, input_shape):
        """Make the 1x1 convolution."""
        c = input_shape[-1]
        self.kernel = self.add_weight(shape=(1, 1, c, c), initializer=self.kernel_initializer, name="kernel")

    def filtered(self, x):
        """The filter alone."""
        return DENOISERS[self.kind](x)

    def call(self, x):
        """Filter, mix the channels, and add the features themselves."""
        return x + ops.conv(self.filtered(x), self.kernel, data_format="channels_last")

    def compute_output_shape(self, input_shape):
        """The shape of the features."""
        return input_shape

    def get_config(self):
        """Settings of the layer."""
        initializer = keras.initializers.serialize(self.kernel_initializer)
        return {**super().get_config(), "kind": self.kind, "kernel_initializer": initializer}
