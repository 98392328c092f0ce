"""Mahalanobis distance of features to those of clean data."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.annotations import checked
from kerasdef.defenses.detectors import features
from kerasdef.defenses.detectors.base import Detector

_FLAT = 1e-6  # of the largest variance: less is rounding of float32 in features, and no direction in which they vary


@keras.saving.register_keras_serializable(package="kerasdef")
class Mahalanobis(Detector):
    """Distance of a classifier's features to the nearest class, measured by the covariance within classes.

    For each layer the clean data give a mean for each class and one covariance for all; feature maps count by their
    mean over all places. The distance of x in a layer is the smallest over the classes of
    (f(x) - mean)^T covariance^-1 (f(x) - mean). The distances of the layers are standardized by those of clean data
    that the means and covariances did not see (every fifth image of x). With attacked images a logistic regression
    weighs the layers; without, the score is the mean of all layers. Features of the first classifier are looked at.

    The inverse leaves out directions in which the features do not vary, as units that are never active. A class
    without images, as the class for "adversarial" of some classifiers, has no mean.

    Args:
        layers: Names of the layers ("conv1", or "backbone/conv1" inside a model that is a layer). None takes, for each
            size of the feature maps, the last nonlinear output of that size, and the last nonlinear vector.
        noise: Step of the paper's preprocessing: before the distance in a layer is taken, x moves by this much, in
            units of the images, along the sign of the gradient that lowers it. 0 leaves it out; otherwise a score costs
            a gradient and two passes for each layer. The sign is constant almost everywhere, so gradients pass
            through the step as through the identity.
        rate: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = Mahalanobis(rate=0.05).fit(model, x_train, y_train, x_adv=x_adv)
    >>> detector.flags(x_test)

    References: Lee et al., 2018, https://arxiv.org/abs/1807.03888 (equations 1 to 4, algorithm 1; the paper does not
    say what the score is where no attacked images are known).
    """

    @checked
    def __init__(
        self,
        *,
        layers: Sequence[str] | None = None,
        noise: float = 0.0,
        rate: float = 0.05,
        bounds: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(rate=rate, bounds=bounds, **kwargs)
        self.layers = None if layers is None else list(layers)
        self.noise = checks.real("noise", noise, low=0.0)

    def _attach(self, members, shape, classes):
        view, self.layers = features.view(members[0], self.layers)
        self._view = models.Untracked((view,))
        widths = [t.shape[-1] for t in view.outputs]
        self.means = [self._weight((classes, d), f"means{i}") for i, d in enumerate(widths)]
        self.whitening = [self._weight((d, d), f"whitening{i}") for i, d in enumerate(widths)]
        self.center, self.scale, self.importance = (
            self._weight((len(widths),), name) for name in ("center", "scale", "importance")
        )

    def _weight(self, shape, name):
        return self.add_weight(shape=shape, initializer="zeros", trainable=False, name=name)

    def _fit(self, x, y, logits, x_adv, seed):
        kept = np.arange(len(x)) % 5 == 4
        clean = self._pooled(x)
        for i, feature in enumerate(clean):
            means, whitening = _statistics(feature[~kept], y[~kept], self.means[i].shape[0], self.layers[i])
            self.means[i].assign(means)
            self.whitening[i].assign(whitening)
        known = self._measured(x[kept])
        center, scale = known.mean(axis=0), known.std(axis=0)
        if not features.varies(known).all():
            name = self.layers[int(np.argmin(features.varies(known)))]
            raise ValueError(f"The features of layer {name!r} must vary over `x`. Received: the same for all images")
        self.center.assign(center)
        self.scale.assign(scale)
        self.importance.assign(np.full(len(scale), 1 / len(scale)))
        if x_adv is not None:
            self.importance.assign(_importance((known - center) / scale, (self._measured(x_adv) - center) / scale))

    def _pooled(self, x) -> list[np.ndarray]:
        """Features of an array, in float64."""
        found = features.computed(self._view.models[0], x)
        return [f.mean(axis=tuple(range(1, f.ndim - 1)), dtype="float64") for f in found]

    def _measured(self, x) -> np.ndarray:
        """Distances of an array, of shape (n, layers)."""
        parts = [self._noisy_distances(ops.convert_to_tensor(x[i : i + 512])) for i in range(0, len(x), 512)]
        return np.concatenate([ops.convert_to_numpy(part) for part in parts]).astype("float64")

    def _distances(self, x):
        """The distance to the nearest class in each layer: (n, layers)."""
        found = []
        for i, feature in enumerate(features.evaluated(self._view.models[0], x)):
            white = ops.matmul(features.pooled(feature), self.whitening[i])
            means = ops.matmul(self.means[i], self.whitening[i])
            away = ops.expand_dims(white, 1) - ops.expand_dims(means, 0)
            found.append(ops.min(ops.sum(ops.square(away), axis=-1), axis=1))
        return ops.stack(found, axis=1)

    def _noisy_distances(self, x):
        if not self.noise:
            return self._distances(x)
        found = []
        for i in range(len(self.layers)):
            gradient = backend.gradient(lambda z, i=i: (self._distances(z)[:, i], z))(x)[2]
            nearer = x - self.noise * ops.stop_gradient(ops.sign(gradient))
            found.append(self._distances(nearer)[:, i])
        return ops.stack(found, axis=1)

    def call(self, x, logits):
        """Scores of shape (n,)."""
        away = (self._noisy_distances(ops.cast(x, "float32")) - self.center) / self.scale
        return ops.sum(away * self.importance, axis=-1)

    def get_config(self):
        """Settings of the detector."""
        layers = None if self.layers is None else list(self.layers)
        return {**super().get_config(), "layers": layers, "noise": self.noise}


def _statistics(feature: np.ndarray, y: np.ndarray, classes: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The mean of each class, and W of shape (d, d) with W W^T the inverse of the covariance within classes."""
    present = np.unique(y)
    means = np.stack(
        [feature[y == k].mean(axis=0) if k in present else np.zeros(feature.shape[1]) for k in range(classes)]
    )
    means[np.setdiff1d(np.arange(classes), present)] = means[present[0]]  # never nearer than that class itself
    residual = feature - means[y]
    variance, directions = np.linalg.eigh(residual.T @ residual / len(feature))
    if not features.varies(feature, means[y]).any():
        raise ValueError(
            f"The features of layer {name!r} must vary over `x`. Received: the same for all images of a class"
        )
    good = variance > _FLAT * variance[-1]
    return means, directions * np.where(good, 1 / np.sqrt(np.where(good, variance, 1.0)), 0.0)


def _importance(clean: np.ndarray, attacked: np.ndarray) -> np.ndarray:
    """What a logistic regression gives each layer."""
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([clean, attacked])
    regression = LogisticRegression(class_weight="balanced", max_iter=1000)
    return regression.fit(both, np.arange(len(both)) >= len(clean)).coef_[0]
