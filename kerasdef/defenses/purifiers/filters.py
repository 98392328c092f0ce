"""Filters that smooth images: median, Gaussian blur, total variation. Their gradients are their own."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops
from scipy import ndimage

from kerasdef import checks
from kerasdef.annotations import Count, checked
from kerasdef.defenses.purifiers.base import Purifier
from kerasdef.models.blocks import DENOISERS

SIZES = (2, 3)


@keras.saving.register_keras_serializable(package="kerasdef")
class Median(Purifier):
    """The median of the pixels around each pixel, in each channel by itself.

    Images are padded by repeating their edge. The window of size 3 is centered; that of size 2 holds the pixel and
    those above, to the left and both, and of its four values the second largest is taken, as SciPy's filter does, which
    Xu et al. use. The median is one of its inputs, and so is its gradient, except where inputs are equal; there one
    of them, or a mix, is taken.

    Args:
        size: Side of the window, 2 or 3. Xu et al. find 2 best on MNIST and CIFAR-10.
        bounds: `(low, high)`: range of the values of the images.

    Call arguments:
        x: Images of shape (n, height, width, channels).

    References: Xu et al., 2018, https://arxiv.org/abs/1704.01155 (section II.C, local smoothing).
    """

    @checked
    def __init__(self, size: int = 2, *, bounds: tuple[float, float] = (0.0, 1.0), **kwargs):
        super().__init__(bounds=bounds, **kwargs)
        if size not in SIZES:
            raise ValueError(f"`size` must be 2 or 3. Received: size={size}")
        self.size = int(size)

    def purify(self, x):
        """The filtered images."""
        return DENOISERS["median"](x) if self.size == 3 else _second_of_four(x)

    def get_config(self):
        """Settings of the purifier."""
        return {**super().get_config(), "size": self.size}


def _second_of_four(x):
    """The second largest of each pixel, the one above, the one to the left and the one above that."""
    z = ops.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="symmetric")
    a, b, c, d = z[:, :-1, :-1], z[:, :-1, 1:], z[:, 1:, :-1], z[:, 1:, 1:]
    smaller_of_winners = ops.minimum(ops.maximum(a, b), ops.maximum(c, d))
    larger_of_losers = ops.maximum(ops.minimum(a, b), ops.minimum(c, d))
    return ops.maximum(smaller_of_winners, larger_of_losers)


@keras.saving.register_keras_serializable(package="kerasdef")
class GaussianBlur(Purifier):
    """A Gaussian blur, in each channel by itself, cut off at four standard deviations; the edge is repeated.

    The blur is linear: rows and columns are multiplied by a matrix that SciPy's filter makes, so the answer is that
    of `scipy.ndimage.gaussian_filter` with mode "nearest".

    Args:
        sigma: Standard deviation in pixels, above 0.
        bounds: `(low, high)`: range of the values of the images.

    Call arguments:
        x: Images of shape (n, height, width, channels); height and width must be known.
    """

    @checked
    def __init__(self, sigma: float = 1.0, *, bounds: tuple[float, float] = (0.0, 1.0), **kwargs):
        super().__init__(bounds=bounds, **kwargs)
        self.sigma = checks.real("sigma", sigma, low=0.0, open_low=True)

    def purify(self, x):
        """The blurred images."""
        height, width = (self._matrix(side) for side in x.shape[1:3])
        return ops.einsum("ih,jw,nhwc->nijc", height, width, x)

    def _matrix(self, side: int):
        return ndimage.gaussian_filter1d(np.eye(side), self.sigma, axis=0, mode="nearest").astype("float32")

    def get_config(self):
        """Settings of the purifier."""
        return {**super().get_config(), "sigma": self.sigma}


@keras.saving.register_keras_serializable(package="kerasdef")
class TotalVariation(Purifier):
    """Near the image, the one whose neighboring pixels differ least: total variation denoising.

    For images x in [0, 1] it lowers ||z - x||^2 / 2 + weight * sum of sqrt(|gradient of z|^2 + smoothing^2) by a fixed
    number of gradient steps with constant momentum, starting from x; the sum runs over pixels and channels, and the
    gradient holds the differences to the next pixel below and to the right. The steps are unrolled, so the gradient
    through them is exact.

    Guo et al. drop pixels at random first and solve the problem without smoothing, by split Bregman iterations; here
    nothing is random, and what is smooth has a gradient.

    Args:
        weight: Weight of the variation, above 0; scikit-image's filter of this kind also takes 0.1.
        smoothing: Differences below it count little, above 0, in units of the range of the values.
        steps: Gradient steps. With weight 0.1 and smoothing 0.02, thirty of them left about 3% of the way to the
            minimum, forty less than 1%, on an image of random values.
        bounds: `(low, high)`: range of the values of the images.

    Call arguments:
        x: Images of shape (n, height, width, channels).

    References: Rudin et al., 1992, Nonlinear total variation based noise removal algorithms; Guo et al., 2018,
    https://arxiv.org/abs/1711.00117 (section 4.3); Nesterov, 2004, Introductory lectures on convex optimization
    (scheme 2.2.11).
    """

    @checked
    def __init__(
        self,
        weight: float = 0.1,
        *,
        smoothing: float = 0.02,
        steps: Count = 30,
        bounds: tuple[float, float] = (0.0, 1.0),
        **kwargs,
    ):
        super().__init__(bounds=bounds, **kwargs)
        self.weight = checks.real("weight", weight, low=0.0, open_low=True)
        self.smoothing = checks.real("smoothing", smoothing, low=0.0, open_low=True)
        self.steps = checks.positive_int("steps", steps)

    def purify(self, x):
        """The images after the steps."""
        low, high = self.bounds
        x = (x - low) / (high - low)
        # the second derivative is at most 1 + weight * 8 / smoothing (8: that of the differences), and at least 1
        steepest = 1.0 + 8.0 * self.weight / self.smoothing
        momentum = (math.sqrt(steepest) - 1.0) / (math.sqrt(steepest) + 1.0)
        z = ahead = x
        for _ in range(self.steps):
            before, z = z, ahead - (ahead - x - self.weight * self._divergence(ahead)) / steepest
            ahead = z + momentum * (z - before)
        return z * (high - low) + low

    def _divergence(self, z):
        """Minus the gradient of the smoothed variation."""
        down = ops.pad(z[:, 1:] - z[:, :-1], ((0, 0), (0, 1), (0, 0), (0, 0)))
        right = ops.pad(z[:, :, 1:] - z[:, :, :-1], ((0, 0), (0, 0), (0, 1), (0, 0)))
        length = ops.sqrt(ops.square(down) + ops.square(right) + self.smoothing**2)
        down, right = down / length, right / length  # in the last row and column they are 0
        above = ops.pad(down[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
        left = ops.pad(right[:, :, :-1], ((0, 0), (0, 0), (1, 0), (0, 0)))
        return down - above + right - left

    def get_config(self):
        """Settings of the purifier."""
        own = {"weight": self.weight, "smoothing": self.smoothing, "steps": self.steps}
        return {**super().get_config(), **own}
