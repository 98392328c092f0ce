"""A callable as attacks see it: what it answers, in logits."""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from kerasdef import checks
from kerasdef.annotations import checked
from kerasdef.losses import FAR
from kerasdef.models.batches import padded_batches
from kerasdef.models.victim import Victim

_ROWS = 256  # most inputs that a callable gets at a time; it is never given more than is counted
_SMALLEST = 1e-30  # a probability below this counts as this: its logarithm stays finite


class BlackBox(Victim):
    """A callable as the attacks see it: logits of shape (n, classes), whatever it answers with.

    Its first answer tells what it gives: probabilities (no row has a negative number, each sums to 1) become
    log-probabilities, labels of shape (n,) become a 1 in the column of the label. A logit of minus infinity becomes
    one far below all others; a row of nothing else stays as it is, and is no answer.

    Args:
        function: Maps float32 arrays of shape (n, ...) to logits or probabilities of shape (n, classes), or to labels
            of shape (n,).
        bounds: Range of the numbers that the function takes, or None for that of the data.
        shape: Not needed: a function takes what it is given.
    """

    input_shape = None

    @classmethod
    def takes(cls, model) -> bool:
        """Any callable that is no Keras model."""
        return callable(model) and not isinstance(model, keras.Model)

    @checked
    def __init__(
        self,
        function: Callable,
        *,
        bounds: tuple[float, float] | None = None,
        shape: tuple[int, ...] | None = None,
    ):
        self.function = function
        self.bounds = None if bounds is None else checks.bounds(bounds)
        self.map: tuple[float, float] | None = None  # factor and offset from the data to the function
        self.kind: str | None = None
        self.classes = 2
        self.asked: tuple[np.ndarray, np.ndarray] | None = None  # clean inputs and their logits
        self.whole: tuple[np.ndarray, np.ndarray] | None = None  # the array that the clean inputs are rows of
        self.result: tuple[np.ndarray, np.ndarray] | None = None  # what an attack returned, and where it succeeded

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Logits of some inputs."""
        if not len(x):
            return np.empty((0, self.classes), dtype="float32")
        found = [self._logits(x[part]) for part in padded_batches(len(x), _ROWS)]
        classes = max(f.shape[1] for f in found)  # a later batch may know of more labels
        return np.concatenate([np.pad(f, ((0, 0), (0, classes - f.shape[1]))) for f in found])

    @property
    def access(self) -> str:
        """What it gives: "labels", or "scores", which is also said before it has been asked."""
        return "labels" if self.kind == "labels" else "scores"

    def facing(self, bounds: tuple[float, float]) -> BlackBox:
        """This callable for data in a range; what it has answered so far is of another."""
        if self.bounds in (None, bounds):
            return self
        other = BlackBox(self.function, bounds=self.bounds)
        other.kind, other.classes = self.kind, self.classes
        factor = (self.bounds[1] - self.bounds[0]) / (bounds[1] - bounds[0])
        other.map = factor, self.bounds[0] - factor * bounds[0]
        return other

    def rows(self, x: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Some rows of an array; if it has answered for the array, they are not asked for again."""
        part = x[index]
        if self.asked is not None and self.asked[0] is x:
            self.whole = self.asked
        if self.whole is not None and self.whole[0] is x:
            self.asked = part, self.whole[1][index]
        return part

    def facts(self) -> dict:
        """The function, and the map onto its range."""
        return {"model": self.function, "map": self.map}

    def predict(self, x: np.ndarray, *, batch_size: int = 512, seed: int = 0) -> np.ndarray:
        """Logits of an array; clean inputs are asked for only once."""
        if self.asked is None or self.asked[0] is not x:
            self.asked = x, self(x)
        return self.asked[1]

    def widen(self, classes: int) -> None:
        """Make room for labels that it may give later."""
        self.classes = max(self.classes, classes)
        if self.asked is not None:
            x, logits = self.asked
            self.asked = x, np.pad(logits, ((0, 0), (0, max(0, self.classes - logits.shape[1]))))

    def _logits(self, x):
        if self.map is not None:
            x = (x * self.map[0] + self.map[1]).astype("float32")
        answer = np.asarray(self.function(np.array(x)))  # a copy: it may write into it
        first = self.kind is None
        labels = answer.ndim == 1
        good = answer.ndim in (1, 2) and len(answer) == len(x) and answer.dtype.kind in "iuf"
        if good and not first:
            good = labels == (self.kind == "labels") and (labels or answer.shape[1] == self.classes)
        if not good or (not labels and answer.shape[1] < 2):
            raise ValueError(
                "`model` must return logits (n, classes) or labels (n,), the same for every batch. "
                f"Received: shape={answer.shape} and dtype={answer.dtype} for {len(x)} samples"
            )
        if np.isnan(answer).any():
            raise ValueError(f"`model` must not return NaN. Received: {int(np.isnan(answer).sum())} of them")
        if labels:
            self.kind = "labels"
            found = checks.labels("model(x)", answer)
            self.classes = max(self.classes, int(found.max()) + 1)
            return np.eye(self.classes, dtype="float32")[found]
        answer = answer.astype("float32", copy=False)
        if first:
            shares = (answer >= 0).all() and np.allclose(answer.sum(axis=1), 1.0, atol=1e-3)  # 1e-3: float16
            self.kind, self.classes = "probabilities" if shares else "logits", answer.shape[1]
        if self.kind == "probabilities":
            return np.log(np.maximum(answer, _SMALLEST))
        return np.where(np.isneginf(answer).all(axis=1, keepdims=True), answer, np.maximum(answer, -FAR))
