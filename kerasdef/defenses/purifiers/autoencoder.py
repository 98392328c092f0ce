"""A denoising autoencoder."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers

from kerasdef import backend, checks
from kerasdef.annotations import Count, checked
from kerasdef.defenses.purifiers.learned import LearnedPurifier, pairs, shuffled, told
from kerasdef.runs import progress
from kerasdef.runs.seeds import derive

NOISE = 0.1  # of the range, as Meng and Chen on MNIST


def denoiser(
    shape: tuple[int, int, int], *, bounds: tuple[float, float] = (0.0, 1.0), width: int = 32, seed: int = 0
) -> keras.Model:
    """A small convolutional autoencoder that tells what to take out of an image, in the form of Liao et al.

    One level below the image, a connection from the encoder to the decoder, and the image itself added at the end. The
    last layer begins with zeros, so the untrained network is the identity.

    Args:
        shape: (height, width, channels) of the images, any size.
        bounds: `(low, high)`: range of their values.
        width: Filters at the size of the image; twice as many below.
        seed: Seed of the initial weights.
    """
    seeds = iter(range(8))

    def conv(z, filters, stride=1):
        he = keras.initializers.HeNormal(seed=derive(seed, "denoiser", next(seeds)))
        return layers.Conv2D(filters, 3, stride, padding="same", activation="relu", kernel_initializer=he)(z)

    low, high = bounds
    images = keras.Input(shape)
    fine = conv(layers.Rescaling(1 / (high - low), -low / (high - low))(images), width)
    coarse = conv(conv(fine, 2 * width, 2), 2 * width)
    back = layers.UpSampling2D(2)(coarse)
    back = layers.Cropping2D(((0, shape[0] % 2), (0, shape[1] % 2)))(back)
    z = conv(layers.Concatenate()([fine, back]), width)
    change = layers.Conv2D(shape[2], 3, padding="same", kernel_initializer="zeros")(z)
    return keras.Model(images, layers.Add()([images, layers.Rescaling(high - low)(change)]), name="denoiser")


@keras.saving.register_keras_serializable(package="kerasdef")
class DenoisingAutoencoder(LearnedPurifier):
    """A network that was trained to give the clean image for a clean, a noisy and an attacked one.

    The one that is built, `denoiser`, is a small autoencoder with a connection across and the image added at the end,
    which keeps details that a narrow code would lose. Any other model from images to images may be given.

    Args:
        network: A Keras model from images within the bounds to images of the same shape; None builds one for the
            shape of the first images.
        seed: Seed of the initial weights of a network that is built.
        bounds: `(low, high)`: range of the values of the images.

    Example:
    >>> purifier = DenoisingAutoencoder().fit(x, x_adv=PGD(eps=0.1)(model, x, y))
    >>> defended = keras.Sequential([keras.Input(x.shape[1:]), purifier, model])

    References: Vincent et al., 2008, Extracting and composing robust features with denoising autoencoders; Meng and
    Chen, 2017, https://arxiv.org/abs/1705.09064 (autoencoders before a classifier); Liao et al., 2018,
    https://arxiv.org/abs/1712.02976 (section 4.1: connections and residual).
    """

    def _network(self, shape):
        return denoiser(shape, bounds=self.bounds, seed=self.seed)

    @checked
    def fit(
        self,
        x: np.ndarray,
        *,
        x_adv: np.ndarray | None = None,
        x_adv_clean: np.ndarray | None = None,
        noise: float | None = None,
        epochs: Count = 20,
        batch_size: Count = 64,
        learning_rate: float = 1e-3,
        seed: int = 0,
        progress: bool | None = None,
    ) -> DenoisingAutoencoder:
        """Train the network: the least mean squared error to the clean image, by Adam.

        An epoch shows every clean image as it is and once with noise, and every attacked image once.

        Args:
            x: Clean images of shape (n, height, width, channels) within the bounds, or uint8.
            x_adv: Attacked images of shape (m, height, width, channels), or None. Several attacks are joined along the
                first axis.
            x_adv_clean: The clean image of each attacked one, of the shape of x_adv. None takes x, row by row.
            noise: Standard deviation of the Gaussian noise in input units, 0 for none; None is a tenth of the range.
                Noisy images are clipped to the bounds.
            epochs: Times that all images are shown.
            batch_size: Images in a batch.
            learning_rate: Of Adam.
            seed: Seed of the noise and of the order of the images.
            progress: False shows no bar.

        Returns:
            The purifier.

        Raises:
            ValueError: Images of another shape or range, attacked images without their clean ones, or a training that
                diverges.
        """
        low, high = self.bounds
        noise = NOISE * (high - low) if noise is None else checks.real("noise", noise, low=0.0)
        learning_rate = checks.real("learning_rate", learning_rate, low=0.0, open_low=True)
        rng = np.random.default_rng(checks.non_negative_int("seed", seed))
        x = self._ready("x", x)
        shown, wanted = [x], [x]
        if x_adv is not None:
            x_adv = self._ready("x_adv", x_adv)
            clean = None if x_adv_clean is None else self._ready("x_adv_clean", x_adv_clean)
            shown.append(x_adv)
            wanted.append(pairs(x, x_adv, clean))
        elif x_adv_clean is not None:
            raise ValueError("`x_adv_clean` must come with `x_adv`. Received: x_adv=None")
        if noise:
            shown.append(x)
            wanted.append(x)
        quiet = sum(map(len, shown)) - (len(x) if noise else 0)  # rows from here on get noise
        shown, wanted = np.concatenate(shown), np.concatenate(wanted)
        trainer = self._trainer(learning_rate)
        _fit(self, trainer, shown, wanted, quiet, noise, epochs, batch_size, rng, progress)
        return self

    def _trainer(self, learning_rate: float) -> keras.Model:
        """The network with outputs in [0, 1], compiled; the network itself stays as it is."""
        images = keras.Input(self._shape)
        trainer = keras.Model(images, self._to_unit()(self.network(images)))
        trainer.compile(keras.optimizers.Adam(learning_rate), "mse", jit_compile=backend.jit())
        return trainer


def _fit(purifier, trainer, shown, wanted, quiet, noise, epochs, batch_size, rng, show) -> None:
    batches = len(shown) // min(batch_size, len(shown))
    with progress.bar("autoencoder", epochs * batches, show=show, unit="batches") as advance:
        for _ in range(epochs):
            trainer.reset_metrics()
            for rows in shuffled(len(shown), batch_size, rng):
                images = shown[rows]
                noisy = (rows >= quiet).reshape(-1, 1, 1, 1)
                drawn = rng.normal(0.0, noise, images.shape).astype("float32")
                images = np.clip(images + noisy * drawn, *purifier.bounds).astype("float32")
                told(advance, trainer.train_on_batch(images, purifier._unit(wanted[rows]), return_dict=True))
