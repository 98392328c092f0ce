"""Images that a model is not made for: they are kept from it, and its answer says that it is none."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.checks import NOBODY

MOST = 1e6  # score of an image that is none, in standard deviations of clean scores


@keras.saving.register_keras_serializable(package="kerasdef")
class Guard(keras.layers.Layer):
    """Looks at every image before a model does.

    An image is invalid where a value of it is NaN, infinite, or outside the bounds by more than a millionth of their
    span. The model gets an image of the lower bound in its place, so nothing of it reaches the others.

    Args:
        bounds: `(low, high)`: range of the values of a valid image.

    Call arguments:
        x: Images of shape (n, ...).

    Returns:
        `(images, valid)`: the images within the bounds, of the shape of x, float32, and booleans of shape (n,).
    """

    def __init__(self, bounds: tuple[float, float], **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.bounds = checks.bounds(bounds)
        self.built = True

    def call(self, x):
        """Look at the images."""
        low, high = self.bounds
        slack = checks.TOLERANCE * (high - low)
        inside = ops.logical_and(x >= low - slack, x <= high + slack)  # a comparison with NaN is false
        valid = ops.all(inside, axis=tuple(range(1, len(x.shape))), keepdims=True)
        return ops.where(valid, ops.clip(x, low, high), low), ops.reshape(valid, (-1,))


@keras.saving.register_keras_serializable(package="kerasdef")
class Flag(keras.layers.Layer):
    """The answer of a model, and for an invalid image, or where the model's own answer is not finite, that it is none.

    There `label` is the label that rejects, with all of the probability and all votes. Where no label rejects, it is
    -1, which is no class; the probabilities are equal, and nothing has a vote. `is_adversarial` is true. An answer
    without `is_adversarial` gets `is_valid`, which is false. An `answer` is -1 there, and a `score` 1e6.

    Args:
        reject: The label that stands for "adversarial", or None.

    Call arguments:
        answer: A dict with `label` (n,) int32 and `probabilities` (n, outputs) float32, and perhaps `is_adversarial`
            (n,) bool, `votes` (n, outputs) int32, `answer` (n,) int32 and `score` (n,) float32.
        valid: Booleans of shape (n,).

    Returns:
        The answer with the same names, and with `is_valid` (n,) bool where it has no `is_adversarial`.
    """

    def __init__(self, reject: int | None = None, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.reject = None if reject is None else checks.non_negative_int("reject", reject)
        self.built = True

    def call(self, answer, valid):
        """Put the answer for invalid images in their places."""
        answer, p = dict(answer), answer["probabilities"]
        valid = ops.logical_and(valid, ops.all(finite(p), axis=-1))
        row, outputs = ops.expand_dims(valid, -1), p.shape[-1]
        if self.reject is None:
            share, label = ops.full((1, outputs), 1 / outputs, dtype=p.dtype), NOBODY
        else:
            share, label = ops.one_hot([self.reject], outputs, dtype=p.dtype), self.reject
        answer["probabilities"] = ops.where(row, p, share)
        answer["label"] = ops.where(valid, answer["label"], ops.cast(label, answer["label"].dtype))
        if "votes" in answer:
            votes = answer["votes"]
            all_of_them = ops.cast(share, votes.dtype) * ops.sum(votes, axis=-1, keepdims=True)
            answer["votes"] = ops.where(row, votes, all_of_them)
        for name, instead in (("answer", NOBODY), ("score", MOST)):
            if name in answer:
                answer[name] = ops.where(valid, answer[name], ops.cast(instead, answer[name].dtype))
        if "is_adversarial" in answer:
            answer["is_adversarial"] = ops.logical_or(answer["is_adversarial"], ops.logical_not(valid))
        else:
            answer["is_valid"] = valid
        return answer


def argmax(x):
    """Index of the largest value on the last axis, the first where several are, int32.

    `keras.ops.argmax` looks at single bits of the numbers with TensorFlow, which ONNX cannot say.
    """
    return ops.cast(ops.top_k(x, 1)[1][..., 0], "int32")


def finite(x):
    """Booleans of the shape of x: the values are finite; by a comparison, which every program knows."""
    return ops.abs(x) <= float(np.finfo("float32").max)


def note(bounds: tuple[float, float], reject: int | None, flag: str) -> str:
    """What an exported model says of invalid images, for those who read its files.

    Args:
        bounds: `(low, high)`: range of the values that it takes.
        reject: The label that stands for "adversarial", or None.
        flag: Name of the output that says so: "is_adversarial", which is true, or "is_valid", which is false.
    """
    answer = f"label {NOBODY} and equal probabilities" if reject is None else f"label {reject} with probability 1"
    return (
        f"An image with values that are not finite or not in [{bounds[0]:g}, {bounds[1]:g}] gets {answer}, and "
        f"`{flag}` is {'true' if flag == 'is_adversarial' else 'false'}; so does one for which the model gives no "
        "finite probabilities."
    )
