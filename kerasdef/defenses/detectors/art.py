"""ART's detectors of evasion as detectors of kerasdef (TensorFlow)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from kerasdef import backend, checks, models
from kerasdef.annotations import checked
from kerasdef.defenses.detectors import features
from kerasdef.defenses.detectors import threshold as thresholds
from kerasdef.models.bounds import UNIT, input_bounds

KINDS = ("input", "activation", "scan")
SCORINGS = ("BerkJones", "HigherCriticism", "KolmarovSmirnov")  # as ART spells them


class ARTDetector(thresholds.Thresholded):
    """A detector of ART, with a threshold as the detectors of kerasdef have it.

    ART computes outside of the graph. So this is no Keras layer: it is not part of a defense that is exported or saved,
    and who attacks it has no gradients of its score, which says nothing of how robust it is. It runs with TensorFlow.
    ART looks at the activations of Sequential models only; here it is given the layer as one, so that it takes any
    classifier.

    - "input": `BinaryInputDetector`, a binary classifier of images, trained on clean and attacked ones. The score is
      its logit for "attacked" minus that for "clean"; ART's own rule flags above 0.
    - "activation": `BinaryActivationDetector`, the same on the outputs of a layer of the classifier.
    - "scan": `SubsetScanningDetector`, a scan for the subset of units whose activations are the least likely among
      those of clean images. It learns nothing from attacked images. ART's own rule flags what is above all clean
      images.

    Args:
        kind: "input", "activation" or "scan".
        layer: Name of the layer of the first classifier for "activation" and "scan"; None takes the last nonlinear
            vector, or else the last feature map.
        network: A built Keras model with two outputs, logits of "clean" and "attacked", that "input" and "activation"
            train: from images, or from the activations as vectors. None makes one with a hidden layer of 64.
        epochs: Epochs of its training.
        background: Most clean images that "scan" compares with; the first of x.
        scoring: "BerkJones", "HigherCriticism" or "KolmarovSmirnov": the statistic of "scan".
        rate: False positive rate that is wanted on clean data, between 0 and 1.
        reach: As in `Detector`.
        bounds: As in `Detector`.

    Attributes:
        art: The detector of ART, once it was fitted.

    Example:
    >>> detector = ARTDetector(kind="scan").fit(model, x_train, y_train)
    >>> detector.flags(x_test)

    References: Metzen et al., 2017, https://arxiv.org/abs/1702.04267 (binary detectors); Speakman et al., 2018,
    https://arxiv.org/abs/1810.08676 (subset scanning).
    """

    name = "art_detector"

    @checked
    def __init__(
        self,
        *,
        kind: str = "input",
        layer: str | None = None,
        network: keras.Model | None = None,
        epochs: int = 20,
        background: int = 1000,
        scoring: str = "BerkJones",
        rate: float = 0.05,
        reach: float = 2.0,
        bounds: tuple[float, float] | None = None,
    ):
        if backend.NAME != "tensorflow":
            raise ValueError(f"`ARTDetector` needs the TensorFlow backend. Received: backend={backend.NAME!r}")
        self.kind = checks.one_of("kind", kind, KINDS)
        self.layer, self.network = layer, network
        self.epochs = checks.positive_int("epochs", epochs)
        self.background = checks.positive_int("background", background)
        self.scoring = checks.one_of("scoring", scoring, SCORINGS)
        self.rate, self.reach = thresholds.checked_rate(rate), thresholds.checked_reach(reach)
        self.bounds = None if bounds is None else checks.bounds(bounds)
        self.art = None
        self.threshold, self.spread, self.fitted = (keras.Variable(v, trainable=False) for v in (0.0, 1.0, 0.0))
        self.span = keras.Variable(np.zeros(3, "float32"), trainable=False)

    @checked
    def fit(
        self,
        members: keras.Model | Sequence[keras.Model],
        x: np.ndarray,
        y: np.ndarray,
        *,
        valid: np.ndarray | None = None,
        x_adv: np.ndarray | None = None,
        seed: int = 0,
    ) -> ARTDetector:
        """Let ART's detector learn, and set the threshold; as `Detector.fit`.

        Args:
            members: The classifiers that are watched: the first of them.
            x: Clean images of shape (n, ...), float, in the range that the classifiers take.
            y: Their classes of shape (n,).
            valid: Clean images that were not in x, for the threshold. None keeps every fifth of x for it.
            x_adv: Attacked images, which "input" and "activation" need.
            seed: All randomness comes from it.

        Raises:
            ValueError: Too few images for the rate, no attacked images where they are needed, or images of the wrong
                shape.
        """
        members = [members] if isinstance(members, keras.Model) else list(members)
        if not members:
            raise ValueError("`members` must be one or more models. Received: members=[]")
        classifier = models.logits_view(members[0])
        self.bounds = self.bounds or input_bounds(members[0]) or UNIT
        self.shape = tuple(classifier.input_shape[1:])
        x = self._images("x", x)
        y = checks.labels("y", y, n=len(x))
        seed = checks.non_negative_int("seed", seed)
        if valid is None:
            x, y, valid = thresholds.held_out(x, y)
        valid = self._images("valid", valid)
        thresholds.enough(len(valid), self.rate)
        if self.kind != "scan" and x_adv is None:
            raise ValueError(f"`x_adv` must be attacked images for kind={self.kind!r}. Received: x_adv=None")
        x_adv = None if x_adv is None else self._images("x_adv", x_adv)
        kept = self.art, float(self.fitted.value)
        try:
            with backend.seeded(seed), _list_of_one():
                self.art = self._made(classifier, x, x_adv, seed)
            self.fitted.assign(1.0)
            return self.calibrate(valid)
        except Exception:  # as it was before
            self.art = kept[0]
            self.fitted.assign(kept[1])
            raise

    @checked
    def scores(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Scores of images, of shape (n,), float32.

        Args:
            x: Images of shape (n, ...), float, in the range that the classifiers take.
            batch_size: Images at a time.

        Raises:
            ValueError: The detector was not fitted, or images are of the wrong shape.
        """
        self.check_fitted()
        checks.positive_int("batch_size", batch_size)
        x = self._images("x", x)
        report = "scores" if self.kind == "scan" else "predictions"
        with _list_of_one():
            parts = [self.art.detect(x[i : i + batch_size])[0][report] for i in range(0, len(x), batch_size)]
        found = np.concatenate(parts).astype("float32")
        return found if self.kind == "scan" else found[:, 1] - found[:, 0]

    def check_fitted(self) -> None:
        """Raise unless the detector was fitted."""
        if self.art is None:
            raise ValueError(f"The detector must be fitted before it is used. Received: {self.name!r}; call `fit`")

    def _images(self, name: str, x) -> np.ndarray:
        return checks.images(name, x, limits=self.bounds, shape=self.shape)

    def _made(self, classifier, x, x_adv, seed):
        """The detector of ART, fitted."""
        from art.defences.detector import evasion

        if self.kind == "input":
            detector = evasion.BinaryInputDetector(self._binary(self.shape, seed))
        else:
            seen = _sequential(classifier, self.layer)
            watched = _estimator(seen, outputs=seen.output_shape[-1])
            if self.kind == "scan":
                return evasion.SubsetScanningDetector(
                    watched, x[: self.background], 0, scoring_function=self.scoring, verbose=False
                )
            binary = self._binary(seen.output_shape[1:], seed)
            detector = evasion.BinaryActivationDetector(watched, binary, 0)
        attacked = np.concatenate([np.zeros(len(x), "int64"), np.ones(len(x_adv), "int64")])
        detector.fit(np.concatenate([x, x_adv]), np.eye(2)[attacked], nb_epochs=self.epochs)
        return detector

    def _binary(self, shape: tuple[int, ...], seed: int):
        """The network that tells clean from attacked, as a classifier of ART."""
        network = self.network
        if network is None:
            glorot = [keras.initializers.GlorotUniform(seed=seed + i) for i in range(2)]
            network = keras.Sequential(
                [
                    keras.Input(shape),
                    keras.layers.Flatten(),
                    keras.layers.Dense(64, activation="relu", kernel_initializer=glorot[0]),
                    keras.layers.Dense(2, kernel_initializer=glorot[1]),
                ]
            )
        elif tuple(network.input_shape[1:]) != tuple(shape) or network.output_shape[-1] != 2:
            raise ValueError(
                f"`network` must take inputs of shape {tuple(shape)} and have two outputs. "
                f"Received: {tuple(network.input_shape[1:])} and {network.output_shape[-1]}"
            )
        return _estimator(network, outputs=2, optimizer=keras.optimizers.Adam(1e-3))


def _sequential(classifier: keras.Model, layer: str | None) -> keras.Sequential:
    """The outputs of a layer as vectors, by a Sequential model whose only layer computes them."""
    view, _ = features.view(classifier, None if layer is None else [layer])
    vector = keras.layers.Flatten()(view.outputs[-1])
    return keras.Sequential([keras.Input(view.input_shape[1:]), keras.Model(view.inputs[0], vector)])


def _estimator(model: keras.Model, *, outputs: int, optimizer=None):
    from art.estimators.classification import TensorFlowV2Classifier

    return TensorFlowV2Classifier(
        model=model,
        nb_classes=outputs,
        input_shape=tuple(model.input_shape[1:]),
        loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        optimizer=optimizer,
    )


@contextlib.contextmanager
def _list_of_one() -> Iterator[None]:
    """Without the warning of Keras that ART hands images to a model as a list of one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The structure of `inputs`", category=UserWarning)
        yield
