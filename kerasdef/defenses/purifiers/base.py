"""What a purifier is: a layer from images to images, with its backward rule."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import keras
from keras import ops

from kerasdef import checks
from kerasdef.annotations import checked


class Purifier(keras.layers.Layer):
    """Takes perturbations out of images; gradients flow through it by its rule, whoever takes them.

    A purifier that is differentiable is `exact`. Any other has a differentiable function near it, `near`, whose
    gradient stands in for its own (BPDA). The output is that of `purify` either way, so every attack on a model that
    begins with a purifier meets the purifier itself and yet finds its way, without being told.

    Subclasses are registered with Keras, and have `purify` and, unless they are exact, `near`.

    Args:
        bounds: `(low, high)`: range of the values of the images.

    Attributes:
        exact: Whether the gradient is the purifier's own.
        rule: The backward rule in words, for manifests.

    Call arguments:
        x: Images of shape (n, height, width, channels), or of any shape (n, ...) where the purifier allows it.

    Returns:
        Images of the shape of x, float32, within the bounds.

    References: Athalye et al., 2018, https://arxiv.org/abs/1802.00420 (section 4.1, BPDA).
    """

    exact: ClassVar[bool] = True
    rule: ClassVar[str] = "exact"

    @checked
    def __init__(self, *, bounds: tuple[float, float] = (0.0, 1.0), **kwargs):
        super().__init__(**{"dtype": "float32"} | kwargs)
        self.bounds = checks.bounds(bounds)

    @abstractmethod
    def purify(self, x):
        """The purified images."""

    def near(self, x):
        """What stands in for `purify` in the backward pass: the identity, unless a subclass has something closer."""
        return x

    def call(self, x):
        """Purify images, with the gradient of the rule."""
        found = ops.clip(self.purify(x), *self.bounds)
        if self.exact:
            return found
        near = self.near(x)
        return ops.stop_gradient(found) + (near - ops.stop_gradient(near))  # the bracket is exactly 0

    def compute_output_shape(self, input_shape):
        """The shape of the images."""
        return input_shape

    def get_config(self):
        """Settings of the purifier."""
        return {**super().get_config(), "bounds": list(self.bounds)}
