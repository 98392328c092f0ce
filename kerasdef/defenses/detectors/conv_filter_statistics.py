"""Statistics of the outputs of convolutions, judged by a cascade of linear classifiers."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kerasdef import models
from kerasdef.annotations import checked
from kerasdef.defenses.detectors import features
from kerasdef.defenses.detectors.base import Detector

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)  # extremal values and percentiles of the paper
_FLAT = 1e-6  # of the largest variance: directions of less are left out
_LEAST = 10  # attacked images that a stage needs; with fewer left it learns from all


@keras.saving.register_keras_serializable(package="kerasdef")
class ConvFilterStatistics(Detector):
    """A cascade of linear classifiers on statistics of the principal components of convolutional outputs.

    The vectors of all places of a feature map are brought to their principal components over clean data, each divided
    by its standard deviation. The statistics of an image are, for each component, the mean of its absolute value over
    all places, its extremal values, and its 25, 50 and 75 % percentiles: six numbers. For each layer a linear support
    vector machine tells clean from attacked images by them; it learns from the attacked images that no layer before has
    flagged at the wanted rate. The cascade takes an image for clean only if all layers do, so its score is the largest
    of the layers' decision values, each measured from its own threshold in its own standard deviations. That is how
    Carlini and Wagner, 2017, read the cascade. Features of the first classifier are looked at.

    It has to be fitted with attacked images. All that is learned is linear, so gradients are exact: the authors count
    on sorting being hard to differentiate, which it is not.

    Args:
        layers: Names of layers that give feature maps of shape (n, height, width, channels), in the order of the
            cascade. None takes the last nonlinear output of each size.
        rate: As in `Detector`.
        bounds: As in `Detector`.

    Example:
    >>> detector = ConvFilterStatistics().fit(model, x_train, y_train, x_adv=x_adv)
    >>> detector.flags(x_test)

    References: Li and Li, 2017, https://arxiv.org/abs/1612.07767; Carlini and Wagner, 2017,
    https://arxiv.org/abs/1705.07263.
    """

    @checked
    def __init__(
        self,
        *,
        layers: Sequence[str] | None = None,
        rate: float = 0.05,
        bounds: tuple[float, float] | None = None,
        **kwargs,
    ):
        super().__init__(rate=rate, bounds=bounds, **kwargs)
        self.layers = None if layers is None else list(layers)

    def _attach(self, members, shape, classes):
        view, self.layers = features.view(members[0], self.layers, maps=True)
        self._view = models.Untracked((view,))
        widths = [t.shape[-1] for t in view.outputs]
        self.means = [self._weight((c,), f"means{i}") for i, c in enumerate(widths)]
        self.bases = [self._weight((c, c), f"basis{i}") for i, c in enumerate(widths)]
        self.planes = [self._weight(((1 + len(_QUANTILES)) * c,), f"plane{i}") for i, c in enumerate(widths)]
        self.offsets = self._weight((len(widths),), "offsets")

    def _weight(self, shape, name):
        return self.add_weight(shape=shape, initializer="zeros", trainable=False, name=name)

    def _fit(self, x, y, logits, x_adv, seed):
        if x_adv is None:
            raise ValueError(
                "`x_adv` must be attacked images, from which ConvFilterStatistics learns. Received: x_adv=None"
            )
        for i, feature in enumerate(features.computed(self._view.models[0], x)):
            mean, basis = _components(feature.reshape(-1, feature.shape[-1]).astype("float64"), self.layers[i])
            self.means[i].assign(mean)
            self.bases[i].assign(basis)
        clean, attacked = (self._all_statistics(images) for images in (x, x_adv))
        kept = np.arange(len(x)) % 5 == 4  # clean images that no stage learns from say where its threshold is
        left, offsets = np.arange(len(x_adv)), []
        for i, (c, a) in enumerate(zip(clean, attacked, strict=True)):
            left = left if len(left) >= _LEAST else np.arange(len(x_adv))
            plane = _plane(c[~kept], a[left], seed, self.layers[i])
            values = c[kept] @ plane
            spread = values.std()
            if not spread > 0:
                raise ValueError(
                    f"The statistics of layer {self.layers[i]!r} must vary over `x`. Received: the same for all images"
                )
            self.planes[i].assign(plane / spread)
            offsets.append(np.quantile(values, 1 - self.rate) / spread)
            left = left[a[left] @ plane / spread <= offsets[-1]]
        self.offsets.assign(offsets)

    def _all_statistics(self, x) -> list[np.ndarray]:
        """The statistics of an array in each layer, of shape (n, 6 c)."""
        parts = [self._statistics(ops.convert_to_tensor(x[i : i + 512])) for i in range(0, len(x), 512)]
        return [np.concatenate([ops.convert_to_numpy(s) for s in column]) for column in zip(*parts, strict=True)]

    def _statistics(self, x) -> list:
        found = []
        for feature, mean, basis in zip(
            features.evaluated(self._view.models[0], x), self.means, self.bases, strict=True
        ):
            places = ops.reshape(feature, (-1, int(np.prod(feature.shape[1:-1])), feature.shape[-1]))
            components = ops.matmul(places - mean, basis)
            quantiles = _quantiles(components)
            found.append(ops.concatenate([ops.mean(ops.abs(components), axis=1), *quantiles], axis=-1))
        return found

    def call(self, x, logits):
        """Scores of shape (n,)."""
        pairs = zip(self._statistics(x), self.planes, strict=True)
        values = ops.stack([ops.matmul(statistics, plane) for statistics, plane in pairs], axis=1)
        return ops.max(values - self.offsets, axis=1)

    def get_config(self):
        """Settings of the detector."""
        return {**super().get_config(), "layers": None if self.layers is None else list(self.layers)}


def _quantiles(components) -> list:
    """Quantiles over the places, interpolated between neighbors: for each a tensor of shape (n, channels)."""
    ordered = ops.sort(components, axis=1)
    last = components.shape[1] - 1
    found = []
    for share in _QUANTILES:
        below = int(share * last)
        part = share * last - below
        found.append((1 - part) * ordered[:, below] + part * ordered[:, min(below + 1, last)])
    return found


def _components(places: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and principal components of vectors of shape (n, c); each column is divided by its standard deviation."""
    mean = places.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov(places - mean, rowvar=False).reshape(len(mean), -1))
    if not features.varies(places).any():
        raise ValueError(f"The features of layer {name!r} must vary over `x`. Received: the same for all images")
    good = variance > _FLAT * variance[-1]
    return mean, directions * np.where(good, 1 / np.sqrt(np.where(good, variance, 1.0)), 0.0)


def _plane(clean: np.ndarray, attacked: np.ndarray, seed: int, name: str) -> np.ndarray:
    """The normal of the plane between clean and attacked statistics, which a linear support vector machine finds."""
    from sklearn.svm import LinearSVC

    both = np.concatenate([clean, attacked])
    scale = both.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    machine = LinearSVC(C=0.01, class_weight="balanced", max_iter=10_000, random_state=seed % 2**32)
    machine.fit((both - both.mean(axis=0)) / scale, np.arange(len(both)) >= len(clean))
    return machine.coef_[0] / scale
