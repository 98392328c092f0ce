"""The pieces of the museum: published defenses that were broken, as small nets of the digits.

Each is written as its authors or their readers would write it, without a thought for who attacks it. A piece is trained
in seconds on images of shape (8, 8, 1) in [0, 1]. Its function gives two models: the defense, and what the attack that
its claim rests on is made on, such as the net without the detector; None is an attack by outputs alone.
"""

from __future__ import annotations

import keras
import numpy as np
from keras import layers, ops

from kerasdef import backend, models
from kerasdef.training import Distillation

_LOSS = keras.losses.SparseCategoricalCrossentropy


def fit(model: keras.Model, x, y, *, epochs: int = 12, loss=None) -> keras.Model:
    """Train a classifier of logits, always on the same batches."""
    model.compile(keras.optimizers.Adam(3e-3), loss or _LOSS(from_logits=True), jit_compile=backend.jit())
    rng = np.random.default_rng(1)
    order = np.concatenate([rng.permutation(len(x)) for _ in range(epochs)])
    model.fit(x[order], y[order], batch_size=50, epochs=1, shuffle=False, verbose=0)
    return model


def network(first: list = (), *, active=lambda: layers.ReLU(), seed: int = 0) -> keras.Sequential:
    """The architecture that all pieces share: a convolution, a hidden layer, logits.

    Args:
        first: Layers in front of it.
        active: Makes the nonlinearities.
        seed: Seed of the initial weights.
    """
    glorot = [keras.initializers.GlorotUniform(seed=seed + i) for i in range(3)]
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *first,
            layers.Conv2D(16, 3, kernel_initializer=glorot[0]),
            active(),
            layers.Flatten(),
            layers.Dense(64, kernel_initializer=glorot[1]),
            active(),
            layers.Dense(10, kernel_initializer=glorot[2]),
        ]
    )


# -- layers ---------------------------------------------------------------------------------------------------------


class KWinners(layers.Layer):
    """Keeps the k largest values of a sample and sets all others to 0.

    References: Xiao et al., 2020, https://arxiv.org/abs/1905.10510; broken by Tramer et al., 2020,
    https://arxiv.org/abs/2002.08347 (section 5).
    """

    def __init__(self, share: float = 0.1):  # paper: 0.1 and 0.2
        super().__init__()
        self.share = share

    def call(self, x):
        """The winners."""
        flat = ops.reshape(x, (-1, int(np.prod(x.shape[1:]))))
        least = ops.top_k(flat, max(1, round(self.share * flat.shape[1])))[0][:, -1:]
        return ops.reshape(ops.where(flat >= least, flat, 0.0), (-1, *x.shape[1:]))


class Thermometer(layers.Layer):
    """Each value as the bits "above 0.1", "above 0.2" and so on.

    References: Buckman et al., 2018 (ICLR); broken by Athalye et al., 2018, https://arxiv.org/abs/1802.00420.
    """

    def __init__(self, levels: int = 10):
        super().__init__()
        self.levels = levels

    def call(self, x):
        """The bits, in the channels."""
        steps = np.arange(self.levels, dtype="float32") / self.levels
        bits = ops.cast(ops.expand_dims(x, -1) > steps, "float32")
        return ops.reshape(bits, (-1, *x.shape[1:-1], x.shape[-1] * self.levels))


_TABLE = np.array(  # ITU-T T.81, table K.1: luminance, quality 50
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    "float32",
)


class Jpeg(layers.Layer):
    """The loss of JPEG on one block of 8x8 gray pixels: cosine transform, rounding by the table, and back.

    References: Guo et al., 2018, https://arxiv.org/abs/1711.00117; broken by Athalye et al., 2018.
    """

    def __init__(self, quality: int = 50):
        super().__init__()
        share = 50 / quality if quality < 50 else 2 - quality / 50  # libjpeg
        self.table = np.maximum(1.0, np.floor(_TABLE * share + 0.5)).astype("float32")
        k, i = np.arange(8)[:, None], np.arange(8)[None]
        rows = np.cos(np.pi * (2 * i + 1) * k / 16) / 2
        rows[0] /= np.sqrt(2)
        self.rows = rows.astype("float32")

    def call(self, x):
        """The image that is decoded."""
        blocks = 255 * x[..., 0] - 128
        coded = ops.round(ops.matmul(ops.matmul(self.rows, blocks), self.rows.T) / self.table)
        back = ops.matmul(ops.matmul(self.rows.T, coded * self.table), self.rows)
        return ops.expand_dims(ops.clip(ops.round(back + 128), 0, 255) / 255, -1)


class Sine(layers.Layer):
    """x + sin(rate * x) / 20: nearly the identity, with a gradient that is noise.

    After Athalye et al., 2018 (section 3.1: shattered gradients).
    """

    def __init__(self, rate: float = 200.0):
        super().__init__()
        self.rate = rate

    def call(self, x):
        """The embedding."""
        return x + ops.sin(self.rate * x) / 20


class Shuffle(layers.Layer):
    """Pixels in an order that a key tells.

    References: Aprilpyone and Kiya, 2020 (block-wise image transformation with a secret key).
    """

    def __init__(self, key: int = 7):
        super().__init__()
        self.key = key

    def call(self, x):
        """The shuffled image."""
        size = int(np.prod(x.shape[1:]))
        order = np.random.default_rng(self.key).permutation(size)
        return ops.reshape(ops.take(ops.reshape(x, (-1, size)), order, axis=1), (-1, *x.shape[1:]))


class Noise(layers.Layer):
    """Gaussian noise, drawn anew for each answer.

    References: Liu et al., 2018, https://arxiv.org/abs/1712.00673 (random self-ensemble); broken by averaging.
    """

    def __init__(self, deviation: float = 0.1):
        super().__init__()
        self.deviation = deviation
        self.draws = keras.random.SeedGenerator(0)

    def call(self, x):
        """The image with noise."""
        return x + self.deviation * keras.random.normal(ops.shape(x), seed=self.draws)


class Depth(layers.Layer):
    """Fewer bits for each value.

    References: Xu et al., 2018, https://arxiv.org/abs/1704.01155 (section III).
    """

    def __init__(self, bits: int):
        super().__init__()
        self.most = 2.0**bits - 1

    def call(self, x):
        """The rounded image."""
        return ops.round(x * self.most) / self.most


class Median(layers.Layer):
    """The median of each 2x2 window, the lower of the two in the middle (Xu et al., 2018, section III)."""

    def call(self, x):
        """The smoothed image."""
        patches = ops.image.extract_patches(x, 2, strides=1, padding="same", data_format="channels_last")
        return ops.sort(patches, axis=-1)[..., 1:2]


class Away(layers.Layer):
    """How far the furthest of several answers is from the first: the largest L1 distance of the probabilities."""

    def call(self, logits):
        """Distances of shape (n,)."""
        first, *others = [ops.softmax(z, axis=-1) for z in logits]
        return ops.max(ops.stack([ops.sum(ops.abs(first - p), axis=-1) for p in others], axis=-1), axis=-1)


class Likeness(layers.Layer):
    """Cosine of the features, from where those of clean images are, and the signature of the class that is answered.

    Args:
        center: Mean features of clean images, of shape (width,).
        signatures: Features that trapdoors cause, of shape (classes, width).
    """

    def __init__(self, center: np.ndarray, signatures: np.ndarray):
        super().__init__()
        away = signatures - center
        self.center, self.away = center, (away / np.linalg.norm(away, axis=1, keepdims=True)).T
        self.thresholds = np.zeros(len(signatures), "float32")

    def call(self, features, logits):
        """How far the cosine is above the threshold, of shape (n,)."""
        moved = features - self.center
        size = ops.sqrt(ops.sum(moved**2, axis=-1, keepdims=True)) + 1e-6
        cosines = ops.matmul(moved, self.away) / size - self.thresholds
        return ops.sum(cosines * ops.one_hot(ops.argmax(logits, axis=-1), len(self.thresholds)), axis=-1)


class Alarm(layers.Layer):
    """Logits, and one more for "adversarial", which is the largest where a score is above its threshold.

    Args:
        threshold: The threshold.
        scale: Logits for each unit of the score.
    """

    def __init__(self, threshold: float = 0.0, scale: float = 10.0):
        super().__init__()
        self.threshold, self.scale = threshold, scale

    def call(self, logits, score):
        """The outputs of shape (n, classes + 1)."""
        top = ops.max(logits, axis=-1) + self.scale * (score - self.threshold)
        return ops.concatenate([logits, ops.expand_dims(top, -1)], axis=-1)


# -- pieces without a detector --------------------------------------------------------------------------------------


def undefended(x, y):
    """The same architecture, without a defense."""
    return fit(network(), x, y)


def alone(model):
    """A defense whose claim rests on an attack on itself."""
    return model, model


def squashed(model):
    """A model, and its probabilities as they are: gradients vanish behind a softmax that is sure."""
    outputs = keras.Sequential([keras.Input((8, 8, 1)), model, layers.Softmax()])
    return model, models.as_logits(outputs)


def kwta(x, y):
    """k-winners-take-all in place of ReLU."""
    return alone(fit(network(active=KWinners), x, y))


def thermometer(x, y):
    """Thermometer encoding of the pixels."""
    return alone(fit(network([Thermometer()]), x, y))


def distillation(x, y):
    """Defensive distillation at T = 100, which is used behind a softmax."""

    def trained(teacher=None):
        student = network()
        trainer = Distillation(student, temperature=100.0, teacher=teacher)
        fit(trainer, x, y, epochs=40)
        return student

    return squashed(trained(trained()))


def jpeg(x, y):
    """JPEG in front of the net, which is trained without it."""
    return alone(keras.Sequential([keras.Input((8, 8, 1)), Jpeg(), undefended(x, y)]))


def scaled(x, y):
    """Logits times 1,000."""
    last = [layers.Rescaling(1000.0), layers.Activation("linear")]
    return squashed(keras.Sequential([keras.Input((8, 8, 1)), undefended(x, y), *last]))


def sine(x, y):
    """A sine embedding of the pixels."""
    return alone(fit(network([Sine()]), x, y))


def shuffled(x, y):
    """Pixels shuffled by a key, in training too. Its claim: an attacker without the key attacks another net."""
    return fit(network([Shuffle()]), x, y), undefended(x, y)


def noisy(x, y):
    """Noise on the pixels, in training too."""
    return fit(network([Noise()]), x, y), None


def augmented(x, y):
    """The net that noise is compared with: it is trained on noisy images, and answers without noise."""
    return fit(network([layers.GaussianNoise(0.1, seed=0)]), x, y)


def stopped(x, y):
    """Two branches, and a gradient that is stopped on the one that does most of the work."""
    whole = undefended(x, y)
    images = keras.Input((8, 8, 1))
    small = layers.Dense(10, kernel_initializer=keras.initializers.GlorotUniform(seed=5))(layers.Flatten()(images))
    logits = layers.Add()([whole(ops.stop_gradient(images)), 0.01 * small])
    return alone(keras.Model(images, layers.Activation("linear")(logits)))


# -- pieces with one: K + 1 outputs, the last of which is "adversarial" -----------------------------------------------


def squeezing(x, y):
    """Feature squeezing as a detector: an answer that squeezing changes is flagged, 5 % of clean images among them."""
    net = undefended(x, y)
    images = keras.Input((8, 8, 1))
    answers = [net(images), net(Depth(1)(images)), net(Median()(images))]
    away = Away()(answers)
    threshold = np.quantile(keras.Model(images, away).predict(x, verbose=0), 0.95)
    return keras.Model(images, layers.Activation("linear")(Alarm(float(threshold))(answers[0], away))), net


def trapdoor(x, y):
    """A trapdoor for each class, and a detector of features like those that the trapdoors cause.

    References: Shan et al., 2020, https://arxiv.org/abs/1904.08554; broken by Carlini, 2020,
    https://arxiv.org/abs/2009.10975.
    """
    rng = np.random.default_rng(3)
    patterns = rng.uniform(0, 1, (10, 8, 8, 1))
    shares = 0.1 * (rng.uniform(size=(10, 8, 8, 1)) < 0.5)  # paper: a mask ratio of 0.1
    goals = rng.integers(10, size=len(x))

    def trapped(images, to):
        return ((1 - shares[to]) * images + shares[to] * patterns[to]).astype("float32")

    net = fit(network(), np.concatenate([x, trapped(x, goals)]), np.concatenate([y, goals]))
    images = keras.Input((8, 8, 1))
    features = z = images
    for layer in net.layers:
        features, z = z, layer(z)
    behind = keras.Model(images, [features, z])
    caused = [behind.predict(trapped(x, np.full(len(x), k)), verbose=0)[0].mean(axis=0) for k in range(10)]
    seen, logits = behind.predict(x, verbose=0)
    like, label = Likeness(seen.mean(axis=0), np.stack(caused)), logits.argmax(axis=1)
    cosines = ops.convert_to_numpy(like(seen, logits))
    like.thresholds = np.float32([np.quantile(cosines[label == k], 0.95) for k in range(10)])
    score = like(features, z)
    return keras.Model(images, layers.Activation("linear")(Alarm()(z, score))), net
