"""Density of features among those of clean data of the class."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from kerasdef import checks, models
from kerasdef.annotations import checked
from kerasdef.defenses.detectors import features
from kerasdef.defenses.detectors.base import Detector
from kerasdef.models.guard import argmax

_NONE = -1e30  # logarithm of a share of 0; finite, so that gradients are


@keras.saving.register_keras_serializable(package="kerasdef")
class KernelDensity(Detector):
    """How rare the features of x are among clean images of the class that x is given: minus a log density.

    The density is a Gaussian kernel density estimate in the last hidden layer of the first classifier, over clean
    images of the class that the classifiers' mean probability gives x. A class without clean images is compared with
    the images of all classes. The paper joins this number with an uncertainty by dropout, which is left out here.

    Args:
        layer: Name of the layer; None takes the last nonlinear vector, or else the last feature map, by its mean over
            all places.
        bandwidth: Standard deviation of the kernel, in units of the features. None takes that of twenty under which
            images of x that were left out are the most likely.
        points: Most reference images for each class; of more, so many are drawn. They are variables of the detector,
            and each score compares x with all.
        rate: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = KernelDensity(rate=0.05).fit(model, x_train, y_train)
    >>> detector.flags(x_test)

    References: Feinman et al., 2017, https://arxiv.org/abs/1703.00410 (section 4.2).
    """

    @checked
    def __init__(
        self,
        *,
        layer: str | None = None,
        bandwidth: float | None = None,
        points: int = 200,
        rate: float = 0.05,
        bounds: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(rate=rate, bounds=bounds, **kwargs)
        self.layer = layer
        self.bandwidth = None if bandwidth is None else checks.real("bandwidth", bandwidth, low=0.0, open_low=True)
        self.points = checks.positive_int("points", points)

    def _attach(self, members, shape, classes):
        view, names = features.view(members[0], None if self.layer is None else [self.layer])
        self.layer = names[-1]  # vectors come after maps
        self._view = models.Untracked((keras.Model(view.inputs[0], view.outputs[-1]),))
        size, width = classes * self.points, view.outputs[-1].shape[-1]
        self.reference = self.add_weight(shape=(size, width), initializer="zeros", trainable=False, name="reference")
        self.share = self.add_weight(shape=(classes, size), initializer="zeros", trainable=False, name="share")
        self.width = self.add_weight(shape=(), initializer="ones", trainable=False, name="width")

    def _fit(self, x, y, logits, x_adv, seed):
        (found,) = features.computed(self._view.models[0], x)
        found = found.mean(axis=tuple(range(1, found.ndim - 1)), dtype="float64")
        if not features.varies(found).any():
            raise ValueError(
                f"The features of layer {self.layer!r} must vary over `x`. Received: the same for all images"
            )
        width = _likeliest(found, y) if self.bandwidth is None else self.bandwidth
        rng = np.random.default_rng(seed)
        classes = self.share.shape[0]
        reference, of = np.zeros(self.reference.shape), np.full(self.reference.shape[0], -1)
        for k in range(classes):
            rows = np.flatnonzero(y == k)
            rows = np.sort(rng.permutation(rows)[: self.points])
            reference[k * self.points :][: len(rows)] = found[rows]
            of[k * self.points :][: len(rows)] = k
        own = of[None, :] == np.arange(classes)[:, None]
        own |= ~own.any(axis=1, keepdims=True) & (of >= 0)
        self.share.assign(np.where(own, -np.log(own.sum(axis=1, keepdims=True)), _NONE))
        self.reference.assign(reference)
        self.width.assign(width)

    def call(self, x, logits):
        """Scores of shape (n,)."""
        feature = features.pooled(features.evaluated(self._view.models[0], x)[0])
        given = argmax(ops.mean(ops.softmax(logits, axis=-1), axis=1))
        squares = ops.sum(ops.square(feature), axis=1, keepdims=True) + ops.sum(ops.square(self.reference), axis=1)
        distance = ops.maximum(squares - 2 * ops.matmul(feature, ops.transpose(self.reference)), 0.0)
        kernels = ops.take(self.share, given, axis=0) - distance / (2 * ops.square(self.width))
        constant = feature.shape[-1] * (0.5 * math.log(2 * math.pi) + ops.log(self.width))
        return constant - ops.logsumexp(kernels, axis=1)

    def get_config(self):
        """Settings of the detector."""
        settings = {"layer": self.layer, "bandwidth": self.bandwidth, "points": self.points}
        return {**super().get_config(), **settings}


def _likeliest(found: np.ndarray, y: np.ndarray) -> float:
    """The bandwidth under which every fifth image is the most likely among the others of its class."""
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    kept = np.arange(len(found)) % 5 == 4
    squares = [
        cdist(found[kept & (y == k)], found[~kept & (y == k)], "sqeuclidean")
        for k in np.unique(y)
        if (kept & (y == k)).any() and (~kept & (y == k)).any()
    ]
    if not squares:
        raise ValueError("`x` must have at least six images of a class for a bandwidth. Received: fewer")
    typical = math.sqrt(np.mean(np.concatenate([s.ravel() for s in squares])))
    widths = typical * np.geomspace(0.02, 1.0, 20)  # from kernels that hardly touch to one for all

    def likelihood(width):
        each = [logsumexp(-s / (2 * width**2), axis=1) - math.log(s.shape[1]) for s in squares]
        return np.concatenate(each).sum() - sum(map(len, each)) * found.shape[1] * math.log(width)

    return float(max(widths, key=likelihood))
