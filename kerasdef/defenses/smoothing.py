"""Randomized smoothing: the label that most noisy copies of an image get, and a radius in which it cannot change."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops
from scipy import stats

from kerasdef import backend, checks
from kerasdef import random as draws
from kerasdef.annotations import check_fields, checked
from kerasdef.checks import NOBODY
from kerasdef.defenses.base import Defense, Plain
from kerasdef.models import Victim
from kerasdef.models.bounds import from_pixels, input_bounds
from kerasdef.runs import progress as bars

BATCH = 512  # noisy images at a time: measured on a CPU, larger batches of 28x28 images are no faster


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a smoothed classifier says of n images.

    Args:
        label: Integers of shape (n,); -1 where it abstains.
        p_value: Floats of shape (n,): the p-value of the test that the two most frequent labels are equally likely.
        counts: Integers of shape (n, labels): how many of the noisy copies got each label. A defense that rejects has
            one label more than there are classes, the last one.
    """

    label: np.ndarray
    p_value: np.ndarray
    counts: np.ndarray

    def __post_init__(self):
        check_fields(self)


@dataclass(frozen=True, eq=False)
class Certificates:
    """What is certain of a smoothed classifier around n images.

    Args:
        label: Integers of shape (n,); -1 where it abstains.
        radius: Floats of shape (n,): within this L2 distance of the image, in the units of the data, the smoothed
            classifier has the same label; 0 where it abstains.
        bound: Floats of shape (n,): the lower confidence bound of the probability of the guessed label under noise.
        guess: Integers of shape (n,): the label that was guessed from the first copies, whose probability is bounded.
        counts: Integers of shape (n, labels): how many of the copies that the bound is made of got each label.
    """

    label: np.ndarray
    radius: np.ndarray
    bound: np.ndarray
    guess: np.ndarray
    counts: np.ndarray

    def __post_init__(self):
        check_fields(self)


class Smoothed:
    """A classifier smoothed by Gaussian noise: its label is the most likely one among noisy copies of the image.

    The noise has the standard deviation `sigma` in the units of the data and is not clipped: noisy copies leave the
    bounds, and the base classifier must take such values, as networks do. The noise of a copy follows from the
    content of the image, the seed and the number of the copy. So an answer does not depend on the batch size, nor on
    which other images there are or in which order.

    Any defense may be the base: what is smoothed is then its decision, seen as a black box with a label. A rejected
    copy counts for the label that stands for "adversarial", and that label can win: then it is certain that the image
    is rejected. The check of a defense that its images lie in the bounds is left out for noisy copies. A copy whose
    outputs are not finite counts for no label, or as rejected where the base can reject.

    Args:
        model: A built Keras classifier, or a `Defense`.
        sigma: The standard deviation of the noise, above 0, in the units of the data.
        bounds: `(low, high)`: the range of the data, which is mapped linearly onto that of the model. None takes the
            range that the model says, else (0, 1).

    Raises:
        ValueError: sigma is not above 0, or the model is no Keras classifier of images of a fixed size. An exported
            SavedModel cannot be smoothed: it takes noisy copies that leave its bounds for invalid images.

    Example:
    >>> smoothed = Smoothed(model, sigma=0.25)
    >>> found = smoothed.certify(x, n=10_000)
    >>> found.label, found.radius

    References: Cohen et al., 2019, https://arxiv.org/abs/1902.02918 (Algorithm 1 and Theorem 1).
    """

    @checked
    def __init__(self, model: keras.Model, sigma: float, *, bounds: tuple[float, float] | None = None):
        self.sigma = checks.real("sigma", sigma, low=0.0, open_low=True)
        bounds = None if bounds is None else checks.bounds(bounds)
        if not isinstance(model, Defense):
            model = Plain(model, bounds=None if input_bounds(model) else bounds)
        self.base = model
        self.bounds = model.bounds if bounds is None else bounds
        self.labels = model.output["probabilities"].shape[-1]
        self.shape = tuple(model.input_shape[1:])
        if None in self.shape:
            raise ValueError(f"`model` must take images of a fixed size. Received: input_shape={model.input_shape}")
        self._victim = Victim.of(model.surface()[0], bounds=model.bounds).facing(self.bounds)
        self._program = backend.compiled(self._count, model)

    @checked
    def predict(
        self,
        x: np.ndarray,
        *,
        n: int = 100,
        alpha: float = 0.001,
        batch_size: int = BATCH,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Predictions:
        """Label images, or abstain where the noisy copies do not tell.

        With a probability of at least 1 - alpha for each image, the label is the one that the smoothed classifier has,
        or it abstains.

        Args:
            x: Array of shape (m, ...): floats within the bounds, or uint8 images.
            n: Noisy copies of each image.
            alpha: The probability of a wrong answer, above 0 and below 1.
            batch_size: Noisy images at a time, of several images together.
            seed: The number that the noise is drawn from.
            progress: Show a bar; None shows it on a terminal and in notebooks.

        Raises:
            ValueError: n is so small that it would always abstain, or x is beyond the bounds or of another shape.

        References: Cohen et al., 2019 (Algorithm 1, PREDICT; the test is the exact one of Hung and Fithian, 2019).
        """
        x, alpha = self._images(x), checks.share("alpha", alpha)
        _check_enough("n", n, 1 + math.ceil(-math.log2(alpha)), alpha, "it would abstain on every image")
        counts = self._counted(x, 0, n, batch_size, seed, progress)
        second, first = np.sort(counts, axis=1)[:, -2:].T
        p_value = p_values(first, second)
        label = np.where(p_value <= alpha, counts.argmax(axis=1), NOBODY)
        return Predictions(label, p_value, counts)

    @checked
    def certify(
        self,
        x: np.ndarray,
        *,
        n: int = 10_000,
        n0: int = 100,
        alpha: float = 0.001,
        batch_size: int = BATCH,
        seed: int = 0,
        progress: bool | None = None,
    ) -> Certificates:
        """Label images, and bound the L2 radius in which the label of the smoothed classifier is the same.

        The label is guessed from `n0` noisy copies. Of `n` others those with that label are counted, which bounds its
        probability p from below (Clopper and Pearson) with a confidence of 1 - alpha for each image. Where the bound is
        above 1/2 the radius is sigma times the standard normal quantile of it; elsewhere it abstains.

        Args:
            x: Array of shape (m, ...): floats within the bounds, or uint8 images.
            n: Noisy copies of each image that the bound is made of (paper: 100,000).
            n0: Noisy copies of each image that the label is guessed from (paper: 100).
            alpha: The probability that a certificate is wrong, above 0 and below 1 (paper: 0.001).
            batch_size: Noisy images at a time, of several images together.
            seed: The number that the noise is drawn from.
            progress: Show a bar; None shows it on a terminal and in notebooks.

        Raises:
            ValueError: n is so small that no certificate is possible, or x is beyond the bounds or of another shape.

        References: Cohen et al., 2019 (Algorithm 1, CERTIFY).
        """
        x, alpha = self._images(x), checks.share("alpha", alpha)
        check_draws(n, n0, alpha)
        guess = self._counted(x, 0, n0, batch_size, seed, progress).argmax(axis=1)
        counts = self._counted(x, n0, n, batch_size, seed, progress)
        bound = lower_bound(counts[np.arange(len(x)), guess], n, alpha)
        return Certificates(np.where(bound > 0.5, guess, NOBODY), radii(bound, self.sigma), bound, guess, counts)

    def _images(self, x) -> np.ndarray:
        """The images within the bounds, float32."""
        return checks.images("x", from_pixels(x, self.bounds), limits=self.bounds, shape=self.shape)

    def _counted(self, x: np.ndarray, first: int, n: int, batch_size: int, seed: int, show) -> np.ndarray:
        """How often the copies `first` to `first + n` of each image get each label, of shape (m, labels)."""
        total = len(x) * n
        size = backend.sizes(checks.positive_int("batch_size", batch_size), total)[0]
        touched = min(len(x), (size - 1) // n + 2)  # most images that a batch has copies of
        seeds = image_seeds(x, checks.non_negative_int("seed", seed))
        counts = np.zeros((len(x), self.labels), dtype="int64")
        pending = None  # a batch is fetched when the next one has begun
        with bars.bar("smoothing", total, show=show, unit="noisy images") as tick:
            for start in range(0, total, size):
                copy = np.arange(start, start + size)
                real, copy = copy < total, np.minimum(copy, total - 1)
                image = copy // n
                low = min(int(image[0]), len(x) - touched)
                part = slice(low, low + touched)
                which = (image - low).astype("int32"), (first + copy % n).astype("uint32")
                found = self._program(x[part], seeds[part], np.arange(touched, dtype="int32"), *which, real)
                if pending is not None:
                    counts[pending[0]] += ops.convert_to_numpy(pending[1]).astype("int64")
                pending = part, found
                tick(int(real.sum()))
        counts[pending[0]] += ops.convert_to_numpy(pending[1]).astype("int64")
        return counts

    def _count(self, x, seeds, rows, image, copy, real):
        """Labels of a batch of noisy copies, counted for each image; what is compiled.

        Args:
            x: Images of shape (k, ...) that the batch has copies of.
            seeds: Their seeds of shape (k,).
            rows: 0 to k - 1.
            image: Which of them each copy is of, of shape (b,).
            copy: The number of each copy among those of its image, of shape (b,).
            real: Booleans of shape (b,): the copies that count; the others fill up the batch.

        Returns:
            Counts of shape (k, labels), float32.
        """
        own = draws.fold(ops.take(seeds, image, axis=0), copy)
        noisy = ops.take(x, image, axis=0) + self.sigma * draws.normal(own, self.shape)
        answer = self.base.answer(self._victim.logits(noisy, own))
        label = self.base.get_layer("flag")(answer, ops.ones_like(real))["label"]
        hits = ops.one_hot(label, self.labels, dtype="float32") * ops.expand_dims(ops.cast(real, "float32"), -1)
        own_image = ops.cast(ops.equal(ops.expand_dims(rows, 1), ops.expand_dims(image, 0)), "float32")
        return ops.matmul(own_image, hits)


def image_seeds(x: np.ndarray, seed: int) -> np.ndarray:
    """Seeds of shape (n,), uint32, that follow from the content of each image and a seed."""
    content = [zlib.crc32(np.ascontiguousarray(image)) for image in x]
    return draws.branch(np.array(content, dtype="uint32"), seed)


# -- the numbers --------------------------------------------------------------------------------------------------


def p_values(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Two-sided p-values of the exact binomial test that two labels with these counts are equally likely.

    Args:
        first: Counts of shape (n,) of the most frequent label.
        second: Counts of shape (n,) of the next one.
    """
    both = first + second  # the binomial with 1/2 is symmetric: twice the upper tail
    return np.where(both > 0, np.minimum(1.0, 2.0 * stats.binom.sf(first - 1, both, 0.5)), 1.0)


def lower_bound(hits: np.ndarray, n: int, alpha: float) -> np.ndarray:
    """Lower confidence bounds of probabilities, one-sided, with a confidence of 1 - alpha each.

    Args:
        hits: How many of n independent trials hit, of shape (m,).
        n: The number of trials.
        alpha: The probability that a bound is too high.

    References: Clopper and Pearson, 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial".
    """
    hits = np.asarray(hits)
    return np.where(hits > 0, stats.beta.ppf(alpha, np.maximum(hits, 1), n - hits + 1), 0.0)


def radii(bound: np.ndarray, sigma: float) -> np.ndarray:
    """Certified L2 radii from lower bounds of the probability of a label; 0 where the bound is not above 1/2.

    References: Cohen et al., 2019 (Theorem 1, with the upper bound of the other labels one minus the lower bound).
    """
    return np.where(bound > 0.5, sigma * stats.norm.ppf(np.maximum(bound, 0.5)), 0.0)


def largest_radius(n: int, alpha: float, sigma: float) -> float:
    """The radius that is certified where all n noisy copies of an image get the same label."""
    return float(radii(lower_bound(np.array([n]), n, alpha), sigma)[0])


def check_draws(n: int, n0: int, alpha: float, names: tuple[str, str] = ("n", "n0")) -> None:
    """Raise where so few noisy copies leave no certificate possible.

    Args:
        n: Copies that the bound is made of.
        n0: Copies that the label is guessed from.
        alpha: The probability that a certificate is wrong.
        names: What the two numbers are called in the error.
    """
    checks.positive_int(names[1], n0)
    least = math.floor(-math.log2(alpha)) + 1  # the first n at which the bound of n hits, alpha**(1 / n), is above 1/2
    _check_enough(names[0], n, least, alpha, "no radius could be certified")


def _check_enough(name: str, n: int, least: int, alpha: float, otherwise: str) -> None:
    checks.positive_int(name, n)
    if n < least:
        raise ValueError(
            f"`{name}` must be at least {least} for alpha={alpha:g}: with fewer noisy copies {otherwise}. "
            f"Received: {name}={n}"
        )
