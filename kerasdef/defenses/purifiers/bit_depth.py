"""Fewer gray levels."""

from __future__ import annotations

import keras
from keras import ops

from kerasdef import checks
from kerasdef.annotations import Count, checked
from kerasdef.defenses.purifiers.base import Purifier

MOST_BITS = 8  # of an image file; Xu et al. squeeze from there


@keras.saving.register_keras_serializable(package="kerasdef")
class BitDepth(Purifier):
    """Rounds values to 2^bits levels, spread evenly over the bounds; both bounds are levels.

    Rounding has the gradient 0, so the identity stands in for it.

    Args:
        bits: Bits of a value, from 1 to 8. Xu et al. find 1 best on MNIST and 5 on CIFAR-10.
        bounds: `(low, high)`: range of the values of the images.

    Call arguments:
        x: Images of any shape (n, ...).

    References: Xu et al., 2018, https://arxiv.org/abs/1704.01155 (section II.B, color depth).
    """

    exact = False
    rule = "straight-through: the identity in place of rounding"

    @checked
    def __init__(self, bits: Count, *, bounds: tuple[float, float] = (0.0, 1.0), **kwargs):
        super().__init__(bounds=bounds, **kwargs)
        self.bits = checks.positive_int("bits", bits)
        if self.bits > MOST_BITS:
            raise ValueError(f"`bits` must be at most {MOST_BITS}. Received: bits={bits}")

    def purify(self, x):
        """The images on the levels."""
        low, high = self.bounds
        steps = 2**self.bits - 1
        return ops.round((x - low) * (steps / (high - low))) * ((high - low) / steps) + low

    def get_config(self):
        """Settings of the purifier."""
        return {**super().get_config(), "bits": self.bits}
