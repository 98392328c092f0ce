"""The runtime defense: detect, purify, smooth, and average, as one Keras model."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kerasdef import checks, models
from kerasdef.annotations import checked
from kerasdef.defenses.base import Decision, Defense, bounds_of, check_members
from kerasdef.defenses.detectors.base import Detector
from kerasdef.defenses.ensemble import EvadeEnsemble
from kerasdef.defenses.purifiers.base import Purifier
from kerasdef.defenses.stages import Stages
from kerasdef.defenses.weights import AdaptiveWeights
from kerasdef.goals import Goal
from kerasdef.models.bounds import onto
from kerasdef.models.guard import argmax

REPAIR = ("flagged", "always")
FLAGGED = ("rejected", "answered")


class Answer(keras.layers.Layer):
    """The last line of Algorithm 1: what the outputs of `Stages` say.

    Args:
        goal: The goal against them, which knows how they become logits.
    """

    def __init__(self, goal: EvadeEnsemble, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.goal = goal
        self.built = True

    def call(self, staged):
        """The outputs of the defense."""
        joint = self.goal.joint(staged)
        real = joint if self.goal.reject is None else joint[:, :-1]
        found = {
            "label": argmax(joint),
            "answer": argmax(real),
            "probabilities": ops.softmax(joint, axis=-1),
        }
        if self.goal.reject is not None:
            excess = staged[:, 0, -1]
            found |= {"score": excess, "is_adversarial": excess > 0}
        return found


@keras.saving.register_keras_serializable(package="kerasdef")
class HybridDefense(Defense):
    """Detect, purify, smooth and average: the runtime defense of the hybrid paper, from any parts.

    Every image is shown to the members and the detector. What the detector flags is purified, then copied with
    Gaussian noise, and the members' probabilities are averaged over the copies; with TensorFlow only flagged images pay
    for that. The answer is the class with the largest weighted mean of the members' probabilities.

    What a flag means is a choice: "rejected" gives a flagged image the label K, which stands for "adversarial", while
    the output `answer` still has what the members say after the repair. "answered" is Algorithm 1 to the letter: the
    repaired answer counts, flagged or not.

    Parts may be left out: a detector alone, a purifier or smoothing alone (with repair="always"), an ensemble alone.

    Called on a tensor it gives, beside what every defense gives: `answer` (n,) int32 and, if it rejects, `score` (n,)
    float32, how far the detector's score is above its threshold in standard deviations of clean scores.

    Args:
        members: Built classifiers with the same input and output shapes.
        detector: A detector that was fitted for these members, or None.
        purifier: A purifier, or None.
        sigma: Standard deviation of the smoothing noise, in units of the input; 0 is none.
        draws: Number of noisy copies of an image.
        weights: Weights of the members; None begins with equal ones.
        repair: Whether what is "flagged" is purified and smoothed, or "always" every image.
        flagged: "rejected" or "answered", as above.
        sure: Selective activation: where the first member gives a class at least this probability, and nothing is
            flagged, it answers alone, and with TensorFlow the others are not asked. The detector is then one that was
            fitted for the first member. None always asks all members.
        seed: Seed of the noise.
        bounds: `(low, high)`: range of the values that the members take. None takes what they say, else (0, 1).
        name: Name of the model.

    Raises:
        ValueError: Parts that do not fit each other, or a detector that was not fitted.

    Example:
    >>> detector = LogitDeviation(rate=0.05).fit(members, x_train, y_train, valid=x_valid)
    >>> defense = HybridDefense(members, detector=detector, purifier=Median(), sigma=0.1)
    >>> defense.decide(x_test).rejected

    References: Wen, Danso and Danso, 2025 (Algorithm 1, equations 5 to 7).
    """

    @checked
    def __init__(
        self,
        members: Sequence[keras.Model],
        *,
        detector: Detector | None = None,
        purifier: Purifier | None = None,
        sigma: float = 0.0,
        draws: int = 8,
        weights: AdaptiveWeights | None = None,
        repair: str = "flagged",
        flagged: str = "rejected",
        sure: float | None = None,
        seed: int = 0,
        bounds: tuple[float, float] | None = None,
        name: str = "hybrid",
    ):
        members = check_members(members)
        outputs = max(2, members[0].output_shape[-1])  # one sigmoid output stands for two classes
        bounds = bounds_of(members) if bounds is None else checks.bounds(bounds)
        checks.one_of("repair", repair, REPAIR)
        checks.one_of("flagged", flagged, FLAGGED)
        checks.real("sigma", sigma, low=0.0)
        checks.positive_int("draws", draws)
        if sure is not None:
            sure = checks.share("sure", sure)
            if len(members) < 2:
                raise ValueError(f"`sure` needs at least two members. Received: sure={sure} with one member")
        if detector is not None:
            if not detector.built:
                detector.check_fitted()
            detector.attach(members if sure is None else members[:1])
        for part, given in (("detector", detector), ("purifier", purifier)):
            if given is not None and tuple(given.bounds) != tuple(bounds):
                raise ValueError(f"`{part}` must have the bounds of the members, {bounds}. Received: {given.bounds}")
        weights = AdaptiveWeights(len(members)) if weights is None else weights
        if weights.members != len(members):
            raise ValueError(f"`weights` must be for {len(members)} members. Received: for {weights.members}")
        rejects = detector is not None and flagged == "rejected"
        reject = outputs if rejects else None
        stages = Stages(
            members,
            detector,
            purifier,
            sigma=float(sigma),
            draws=draws,
            weights=weights,
            always=repair == "always",
            rejects=rejects,
            sure=sure,
            seed=checks.non_negative_int("seed", seed),
            name="stages",
        )
        goal = EvadeEnsemble(reject)
        images = keras.Input(members[0].input_shape[1:], name="images")
        staged = keras.Model(images, stages(images), name="surface")
        staged.bounds = bounds
        answer = Answer(goal, name="decision")(staged(images))
        super().__init__(images, answer, classes=outputs, reject=reject, bounds=bounds, name=name)
        self._attacked = models.Untracked((models.as_logits(staged),))
        self._goal = goal
        self._settings = {"sigma": float(sigma), "draws": draws, "repair": repair, "flagged": flagged}
        self._settings |= {"sure": sure, "seed": seed}

    @property
    def learns(self) -> bool:
        """True: see `learn`."""
        return True

    @property
    def stages(self) -> Stages:
        """The layer that holds the parts: members, detector, purifier, weights."""
        return self.surface()[0].get_layer("stages")

    @property
    def members(self) -> list[keras.Model]:
        """The classifiers, as they were given."""
        return list(self.stages.members.members)

    @property
    def detector(self) -> Detector | None:
        """The detector, or None."""
        return self.stages.detector

    @property
    def purifier(self) -> Purifier | None:
        """The purifier, or None."""
        return self.stages.purifier

    @property
    def weights_of_members(self) -> np.ndarray:
        """The weights of the members, of shape (members,)."""
        return ops.convert_to_numpy(self.stages.weighted.weight)

    @checked
    def decide(self, x: np.ndarray, *, bounds: tuple[float, float] | None = None, batch_size: int = 512) -> Decision:
        """Decide on an array, in inference mode; the score is the detector's. Arguments as in `Defense.decide`."""
        if self.detector is not None:
            self.detector.check_fitted()
        return super().decide(x, bounds=bounds, batch_size=batch_size)

    def surface(self) -> tuple[keras.Model, Goal]:
        """The weighted answers of all members and the detector's excess, and the goal against them."""
        return self._attacked.models[0], self._goal

    def answer(self, logits) -> dict:
        """The outputs of the defense from those of its surface."""
        return self.get_layer("decision")(ops.convert_to_tensor(logits))

    def learn(self, x, y):
        """Learn from served images whose true labels have arrived: the weights of the members, and the threshold.

        What is no image of the data, and a label that is no class, teaches nothing. Eagerly or within a program.

        Args:
            x: Images of shape (n, ...), a float tensor in the range of the defense.
            y: True labels, an integer tensor of shape (n,).

        Returns:
            A dict: `weights` (members,) and, with a detector, `threshold` (): what they are now.
        """
        images, valid = self.get_layer("guard")(x)
        y = ops.cast(y, "int32")
        known = ops.logical_and(valid, ops.logical_and(y >= 0, y < self.classes))
        log_p, excess = self.stages.parts(images)
        weighted, detector = self.stages.weighted, self.detector
        weighted.update(log_p, y, ops.cast(known, "float32"))
        now = {"weights": ops.convert_to_tensor(weighted.weight)}
        if detector is not None:
            scores = excess * detector.spread + detector.threshold
            detector.follow(scores, counts=ops.cast(valid, "float32"))
            now["threshold"] = ops.convert_to_tensor(detector.threshold)
        return now

    @checked
    def update(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        """Learn from served images whose true labels have arrived, as `learn` does, from arrays.

        Args:
            x: Images of shape (n, ...), as `decide` takes them.
            y: True labels of shape (n,).

        Returns:
            `weights` of shape (members,) and, with a detector, `threshold`: what they are now.

        Raises:
            ValueError: Images or labels that do not fit; nothing is learned then.
        """
        x = checks.images("x", onto(x, self.bounds, None), limits=self.bounds, shape=self.input_shape[1:])
        y = checks.labels("y", y, n=len(x), classes=self.classes)
        found = self.learn(ops.convert_to_tensor(x), ops.convert_to_tensor(y.astype("int32")))
        return {name: np.array(ops.convert_to_numpy(value)) for name, value in found.items()}

    def get_config(self):
        """Settings of the defense, its parts among them."""
        members = [keras.saving.serialize_keras_object(m) for m in self.members]
        for member in members:
            member.pop("compile_config", None)  # how a member was trained says nothing of how it decides
        parts = {"detector": self.detector, "purifier": self.purifier, "weights": self.stages.weighted}
        parts = {k: None if v is None else keras.saving.serialize_keras_object(v) for k, v in parts.items()}
        return {"members": members, **parts, **self._settings, "bounds": list(self.bounds), "name": self.name}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """The defense of a configuration; its weights are those that are loaded into it."""
        config = dict(config)
        members = [keras.saving.deserialize_keras_object(m, custom_objects) for m in config.pop("members")]
        for part in ("detector", "purifier", "weights"):
            if config[part] is not None:
                config[part] = keras.saving.deserialize_keras_object(config[part], custom_objects)
        if config["detector"] is not None:
            config["detector"].attach(members if config["sure"] is None else members[:1])
        return cls(members, **config)
