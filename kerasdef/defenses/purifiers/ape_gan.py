"""APE-GAN: a generator that turns attacked images into ones that a discriminator takes for clean."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from kerasdef import backend, checks
from kerasdef.annotations import Count, checked
from kerasdef.defenses.purifiers.learned import LearnedPurifier, pairs, shuffled, told
from kerasdef.runs import progress
from kerasdef.runs.seeds import derive

SLOPE = 0.2  # of the leaky ReLUs, as in DCGAN (Radford et al., 2016), whose design the paper takes
BETA_1 = 0.5  # of Adam, as in DCGAN


def _strided(kind, filters: int, seed: int, *labels):
    """A 4x4 convolution, or transposed one, with stride 2."""
    glorot = keras.initializers.GlorotUniform(seed=derive(seed, *labels))
    return kind(filters, 4, 2, padding="same", kernel_initializer=glorot)


def generator(
    shape: tuple[int, int, int], *, bounds: tuple[float, float] = (0.0, 1.0), width: int = 64, seed: int = 0
) -> keras.Model:
    """Two strided convolutions down, two transposed ones up, a tanh onto the bounds.

    Args:
        shape: (height, width, channels) of the images, any size.
        bounds: `(low, high)`: range of their values.
        width: Filters of the first layer.
        seed: Seed of the initial weights.
    """
    low, high = bounds
    images = keras.Input(shape)
    z = layers.Rescaling(2 / (high - low), -(high + low) / (high - low))(images)  # onto [-1, 1]
    for i, filters in enumerate((width, 2 * width)):
        z = layers.LeakyReLU(SLOPE)(_strided(layers.Conv2D, filters, seed, "down", i)(z))
    z = layers.LeakyReLU(SLOPE)(_strided(layers.Conv2DTranspose, width, seed, "up", 0)(z))
    z = layers.Activation("tanh")(_strided(layers.Conv2DTranspose, shape[2], seed, "up", 1)(z))
    z = layers.Cropping2D(((0, -shape[0] % 4), (0, -shape[1] % 4)))(z)
    return keras.Model(images, layers.Rescaling((high - low) / 2, (high + low) / 2)(z), name="generator")


def discriminator(shape: tuple[int, int, int], *, width: int = 64, seed: int = 0) -> keras.Model:
    """Two strided convolutions and one logit, of images in [0, 1]: the larger, the more it looks like a clean one."""
    images = keras.Input(shape)
    z = layers.Rescaling(2.0, -1.0)(images)
    for i, filters in enumerate((width, 2 * width)):
        z = layers.LeakyReLU(SLOPE)(_strided(layers.Conv2D, filters, seed, "discriminator", i)(z))
    glorot = keras.initializers.GlorotUniform(seed=derive(seed, "discriminator", "logit"))
    return keras.Model(images, layers.Dense(1, kernel_initializer=glorot)(layers.Flatten()(z)), name="discriminator")


@keras.saving.register_keras_serializable(package="kerasdef")
class APEGAN(LearnedPurifier):
    """A generator that was trained on attacked images, to be near the clean ones and to look like them.

    Its loss is 0.7 times the mean squared error to the clean image, plus 0.3 times -log D of its output, where the
    discriminator D is trained in turn to tell its outputs from clean images. The discriminator is not kept.

    The paper normalizes batches; here nothing does, since trainings of few steps leave the averages of a batch
    normalization far from what inference needs.

    Args:
        network: A Keras model from images within the bounds to images of the same shape, as the generator; None builds
            that of the paper for the shape of the first images.
        seed: Seed of the initial weights of a generator that is built.
        bounds: `(low, high)`: range of the values of the images.

    Example:
    >>> purifier = APEGAN().fit(FGSM(eps=0.3)(model, x, y), x)
    >>> defended = keras.Sequential([keras.Input(x.shape[1:]), purifier, model])

    References: Shen et al., 2017, https://arxiv.org/abs/1707.05474 (section 4).
    """

    def _network(self, shape):
        return generator(shape, bounds=self.bounds, seed=self.seed)

    @checked
    def fit(
        self,
        x_adv: np.ndarray,
        x: np.ndarray,
        *,
        weights: tuple[float, float] = (0.7, 0.3),
        epochs: Count = 2,
        batch_size: Count = 64,
        learning_rate: float = 2e-4,
        seed: int = 0,
        progress: bool | None = None,
    ) -> APEGAN:
        """Train the generator against a discriminator, a step of each for every batch.

        Args:
            x_adv: Attacked images of shape (n, height, width, channels) within the bounds, or uint8.
            x: The clean image of each, of the same shape. Where clean images are to be left alone, put some into both.
            weights: Weights of the mean squared error and of the adversarial loss (paper: 0.7 and 0.3).
            epochs: Times that all images are shown (paper: 2, of 60,000 images: 1,875 steps). Of fewer images show
                more epochs: after 100 steps the generator is not even near the identity.
            batch_size: Images in a batch (paper: 64).
            learning_rate: Of Adam, for both networks (paper: 0.0002).
            seed: Seed of the discriminator and of the order of the images.
            progress: False shows no bar.

        Returns:
            The purifier.

        Raises:
            ValueError: Images of another shape or range, as many clean as attacked ones are not given, negative
                weights, or a training that diverges.
        """
        weights = [checks.real("weights", w, low=0.0) for w in weights]
        learning_rate = checks.real("learning_rate", learning_rate, low=0.0, open_low=True)
        rng = np.random.default_rng(checks.non_negative_int("seed", seed))
        x_adv = self._ready("x_adv", x_adv)
        x = self._unit(pairs(self._ready("x", x), x_adv, None))
        critic, joined = self._players(x.shape[1:], weights, learning_rate, seed)
        _fit(self, critic, joined, x_adv, x, epochs, batch_size, rng, progress)
        return self

    def _players(self, shape, weights, learning_rate: float, seed: int) -> tuple[keras.Model, keras.Model]:
        """The discriminator, and the generator joined with it, both compiled."""
        critic = discriminator(shape, seed=seed)
        entropy = keras.losses.BinaryCrossentropy(from_logits=True)
        critic.compile(keras.optimizers.Adam(learning_rate, BETA_1), entropy, jit_compile=backend.jit())
        images = keras.Input(shape)
        made = self._to_unit()(self.network(images))
        joined = keras.Model(images, [made, critic(made)])
        joined.compile(
            keras.optimizers.Adam(learning_rate, BETA_1),
            ["mse", entropy],
            loss_weights=weights,
            jit_compile=backend.jit(),
        )
        return critic, joined


def _fit(purifier, critic, joined, x_adv, x, epochs, batch_size, rng, show) -> None:
    size = min(batch_size, len(x))
    real, fake = np.ones((size, 1), "float32"), np.zeros((size, 1), "float32")
    with progress.bar("APE-GAN", epochs * (len(x) // size), show=show, unit="batches") as advance:
        for _ in range(epochs):
            critic.reset_metrics()
            joined.reset_metrics()
            for rows in shuffled(len(x), batch_size, rng):
                made = joined.predict_on_batch(x_adv[rows])[0]
                critic.trainable = True
                telling = critic.train_on_batch(
                    np.concatenate([x[rows], made]), np.concatenate([real, fake]), return_dict=True
                )
                critic.trainable = False  # the step of the generator leaves it alone
                making = joined.train_on_batch(x_adv[rows], [x[rows], real], return_dict=True)
                told(advance, {"generator": making["loss"], "discriminator": telling["loss"]})
