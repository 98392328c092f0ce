"""JPEG compression, in the integer arithmetic of libjpeg."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.annotations import Count, checked
from kerasdef.defenses.purifiers.base import Purifier

# ITU-T T.81, tables K.1 and K.2: steps of the quantization of luminance and chrominance at quality 50
LUMA = """16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
CHROMA = """17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99"""
SUBSAMPLING = ("4:4:4", "4:2:0")
BEST = 100  # quality
CONST_BITS, PASS_BITS = 13, 2  # libjpeg: binary digits of the constants of the DCT, and those kept between its passes
COLOR_BITS = 16  # libjpeg: binary digits of the constants of the color conversion
CENTER = 128


def quantization_table(quality: int, base: str) -> np.ndarray:
    """Steps of shape (8, 8) at a quality from 1 to 100, scaled as libjpeg does: by 5000 / quality or 200 - 2 quality.

    Args:
        quality: Quality; 50 leaves the table as it is.
        base: The 64 numbers of the table as words.
    """
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = np.array(base.split(), dtype="int32").reshape(8, 8)
    return np.clip((steps * scale + 50) // 100, 1, 255)


def _dct_matrix() -> np.ndarray:
    """The DCT of eight numbers, times sqrt(8) * 2^13, in the integers of libjpeg's accurate method (Loeffler et al.).

    Its constants are rounded before they are added up, so an entry can differ by one from the rounded cosine. The
    inverse is the transpose.
    """
    even = np.zeros((4, 4), dtype="int64")  # rows: outputs 0, 2, 4, 6; columns: x0 + x7, x1 + x6, x2 + x5, x3 + x4
    one = 1 << CONST_BITS
    a, b, c = _fixed(0.541196100, 0.765366865, 1.847759065)
    even[0] = one, one, one, one
    even[2] = one, -one, -one, one
    even[1] = a + b, a, -a, -a - b
    even[3] = a, a - c, c - a, -a
    odd = np.zeros((4, 4), dtype="int64")  # rows: outputs 7, 5, 3, 1; columns: x3 - x4, x2 - x5, x1 - x6, x0 - x7
    np.fill_diagonal(odd, _fixed(0.298631336, 2.053119869, 3.072711026, 1.501321110))
    # further terms: a number times the sum of two inputs, in the outputs of the same places, or in all of them
    sums = _fixed(0.899976223, 2.562915447, 1.961570560, 0.390180644)
    for places, factor in zip(((0, 3), (1, 2), (0, 2), (1, 3)), sums, strict=True):
        odd[np.ix_(places, places)] -= factor
    odd += _fixed(1.175875602)[0]
    matrix = np.zeros((8, 8), dtype="int64")
    matrix[0::2, :4], matrix[0::2, 4:] = even, even[:, ::-1]
    matrix[7::-2, 3::-1], matrix[7::-2, 4:] = odd, -odd
    return matrix.astype("int32")


def _fixed(*values: float, bits: int = CONST_BITS) -> list[int]:
    """Numbers as integers, times 2^bits."""
    return [int(value * (1 << bits) + 0.5) for value in values]


DCT = _dct_matrix()
RED, GREEN, BLUE = _fixed(0.299, 0.587, 0.114, bits=COLOR_BITS)  # shares in the luminance: ITU-R BT.601


def _shifted(z, bits: int):
    """z / 2^bits, rounded; halves go up."""
    return ops.right_shift(z + (1 << (bits - 1)), bits)


def _times(matrix: np.ndarray, z, axis: int):
    """Integers: a matrix times the numbers along an axis of z, which has six axes."""
    place = [1] * 7
    place[axis], place[axis + 1] = matrix.shape
    return ops.sum(ops.expand_dims(z, axis) * ops.convert_to_tensor(matrix.reshape(place)), axis=axis + 1)


def _to_multiple(z, side: int, axis: int):
    """Images of shape (n, h, w, c) whose axis is a multiple of `side` long: the last row or column is repeated."""
    missing = -z.shape[axis] % side
    last = z[:, -1:] if axis == 1 else z[:, :, -1:]
    return ops.concatenate([z, *[last] * missing], axis=axis) if missing else z


def _quantized(z, steps: np.ndarray):
    """What remains of planes of shape (n, h, w, c), integers from 0 to 255, when their DCT is rounded to steps."""
    height, width, planes = z.shape[1:]
    z = _to_multiple(_to_multiple(z, 8, 1), 8, 2)
    rows, columns = z.shape[1] // 8, z.shape[2] // 8
    z = ops.reshape(z - CENTER, (-1, rows, 8, columns, 8, planes))
    z = _shifted(_times(DCT, z, 4), CONST_BITS - PASS_BITS)
    z = _shifted(_times(DCT, z, 2), CONST_BITS + PASS_BITS)  # eight times the DCT
    steps = ops.convert_to_tensor(steps.astype("int32").reshape(1, 1, 8, 1, 8, 1))
    z = ops.sign(z) * ops.floor_divide(ops.abs(z) + 4 * steps, 8 * steps) * steps
    z = _shifted(_times(DCT.T, z, 2), CONST_BITS - PASS_BITS)
    z = _shifted(_times(DCT.T, z, 4), CONST_BITS + PASS_BITS + 3)
    z = ops.reshape(ops.clip(z + CENTER, 0, 255), (-1, 8 * rows, 8 * columns, planes))
    return z[:, :height, :width]


def _to_ycc(z):
    """Luminance and chrominances of shape (n, h, w, 1) each, of colors from 0 to 255."""
    r, g, b = (z[..., i : i + 1] for i in range(3))
    r_in_cb, g_in_cb, g_in_cr, b_in_cr, half = _fixed(0.16874, 0.33126, 0.41869, 0.08131, 0.5, bits=COLOR_BITS)
    center = (CENTER << COLOR_BITS) - 1  # so that 256 does not occur
    y = _shifted(RED * r + GREEN * g + BLUE * b, COLOR_BITS)
    cb = _shifted(half * b - r_in_cb * r - g_in_cb * g + center, COLOR_BITS)
    cr = _shifted(half * r - g_in_cr * g - b_in_cr * b + center, COLOR_BITS)
    return y, cb, cr


def _to_rgb(y, cb, cr):
    """Colors of shape (n, h, w, 3)."""
    cr_in_r, cb_in_b, cb_in_g, cr_in_g = _fixed(1.402, 1.772, 0.34414, 0.71414, bits=COLOR_BITS)
    cb, cr = cb - CENTER, cr - CENTER
    r = y + _shifted(cr_in_r * cr, COLOR_BITS)
    g = y + _shifted(-cb_in_g * cb - cr_in_g * cr, COLOR_BITS)
    b = y + _shifted(cb_in_b * cb, COLOR_BITS)
    return ops.clip(ops.concatenate([r, g, b], axis=-1), 0, 255)


def _halved(z):
    """Means of 2x2 pixels; halves go down and up in turn, from column to column. Rows and columns of z are even."""
    quarter = z[:, 0::2, 0::2] + z[:, 0::2, 1::2] + z[:, 1::2, 0::2] + z[:, 1::2, 1::2]
    bias = 1 + np.arange(quarter.shape[2], dtype="int32").reshape(1, 1, -1, 1) % 2
    return ops.right_shift(quarter + ops.convert_to_tensor(bias), 2)


def _doubled(z, height: int, width: int):
    """Planes of twice the size: each pixel takes 3/4 of the nearest row and column, and 1/4 of the next nearest."""
    if z.shape[2] <= 2:  # libjpeg repeats the pixels of images as narrow as this
        return ops.repeat(ops.repeat(z, 2, axis=1), 2, axis=2)[:, :height, :width]
    above = ops.concatenate([z[:, :1], z[:, :-1]], axis=1)
    below = ops.concatenate([z[:, 1:], z[:, -1:]], axis=1)
    rows = _woven(3 * z + above, 3 * z + below, 1)
    left = ops.concatenate([rows[:, :, :1], rows[:, :, :-1]], axis=2)
    right = ops.concatenate([rows[:, :, 1:], rows[:, :, -1:]], axis=2)
    found = _woven(ops.right_shift(3 * rows + left + 8, 4), ops.right_shift(3 * rows + right + 7, 4), 2)
    return found[:, :height, :width]


def _woven(a, b, axis: int):
    """Rows (axis 1) or columns (axis 2) of a and b in turn."""
    shape = [-1, *a.shape[1:]]
    shape[axis] *= 2
    return ops.reshape(ops.stack([a, b], axis=axis + 1), shape)


def _spread(side: int, narrow: bool) -> np.ndarray:
    """Matrix of shape (side, side) that halves a row of pixels and doubles it again, without rounding."""
    half = -(-side // 2)
    means = np.zeros((half, side))
    for i in range(half):
        means[i, 2 * i] += 0.5
        means[i, min(2 * i + 1, side - 1)] += 0.5
    twice = np.zeros((2 * half, half))
    for i in range(2 * half):
        twice[i, i // 2] += 1.0 if narrow else 0.75
        twice[i, np.clip(i // 2 + (1 if i % 2 else -1), 0, half - 1)] += 0.0 if narrow else 0.25
    return (twice[:side] @ means).astype("float32")


@keras.saving.register_keras_serializable(package="kerasdef")
class JPEG(Purifier):
    """What JPEG compression leaves of an image: written at a quality, and read again.

    All of it is computed in the integers of libjpeg with its accurate DCT; on CPUs the answer was that of Pillow, bit
    by bit, for each size and quality that was tried. Values are first rounded to 0..255.

    Rounding and clipping have no useful gradient. In the backward pass they are left out; what remains is linear: the
    color conversion and the DCT cancel with their inverses, and where the chrominance is subsampled it is blurred.

    Args:
        quality: Quality from 1 to 100. Guo et al. take 75.
        subsampling: "4:2:0", which libjpeg and Pillow do by default, keeps one chrominance for four pixels; "4:4:4"
            keeps each. Without effect on gray images.
        bounds: `(low, high)`: range of the values of the images.

    Call arguments:
        x: Images of shape (n, height, width, channels) with 1 or 3 channels; height and width must be known.

    Raises:
        ValueError: When built: images of another shape.

    References: ITU-T T.81, 1992; Dziugaite et al., 2016, https://arxiv.org/abs/1608.00853; Guo et al., 2018,
    https://arxiv.org/abs/1711.00117 (section 4.2).
    """

    exact = False
    rule = "straight-through: rounding, quantization and clipping are left out, the other steps are exact"

    @checked
    def __init__(
        self,
        quality: Count = 75,
        *,
        subsampling: str = "4:2:0",
        bounds: tuple[float, float] = (0.0, 1.0),
        **kwargs,
    ):
        super().__init__(bounds=bounds, **kwargs)
        self.quality = checks.positive_int("quality", quality)
        if self.quality > BEST:
            raise ValueError(f"`quality` must be at most {BEST}. Received: quality={quality}")
        self.subsampling = checks.one_of("subsampling", subsampling, SUBSAMPLING)

    def build(self, input_shape):
        """Check the shape of the images."""
        if len(input_shape) != 4 or input_shape[3] not in (1, 3) or None in input_shape[1:]:
            raise ValueError(
                "`x` must hold images of shape (n, height, width, channels) with 1 or 3 channels. "
                f"Received: shape={tuple(input_shape)}"
            )

    def purify(self, x):
        """The images after compression."""
        low, high = self.bounds
        z = ops.cast(ops.round((x - low) * (255 / (high - low))), "int32")
        luma = quantization_table(self.quality, LUMA)
        z = _quantized(z, luma) if x.shape[-1] == 1 else self._colors(z, luma)
        return ops.cast(z, "float32") * ((high - low) / 255) + low

    def _colors(self, z, luma: np.ndarray):
        """Colors from 0 to 255 after compression."""
        y, *chroma = _to_ycc(z)
        chroma = ops.concatenate(chroma, axis=-1)
        steps = quantization_table(self.quality, CHROMA)
        if self.subsampling == "4:4:4":
            chroma = _quantized(chroma, steps)
        else:
            # columns are repeated before they are averaged, rows but for one afterwards, as libjpeg does
            small = _halved(_to_multiple(_to_multiple(chroma, 16, 2), 2, 1))
            height, width = (-(-side // 2) for side in chroma.shape[1:3])
            chroma = _doubled(_quantized(small, steps)[:, :height, :width], *chroma.shape[1:3])
        return _to_rgb(_quantized(y, luma), chroma[..., :1], chroma[..., 1:])

    def near(self, x):
        """The images, with a blurred chrominance where that is subsampled."""
        if x.shape[-1] == 1 or self.subsampling == "4:4:4":
            return x
        shares = ops.convert_to_tensor(np.array([RED, GREEN, BLUE], "float32") / (1 << COLOR_BITS))
        y = ops.sum(x * shares, axis=-1, keepdims=True)
        narrow = x.shape[2] <= 4
        height, width = (_spread(side, narrow) for side in x.shape[1:3])
        return y + ops.einsum("ih,jw,nhwc->nijc", height, width, x - y)

    def get_config(self):
        """Settings of the purifier."""
        return {**super().get_config(), "quality": self.quality, "subsampling": self.subsampling}
