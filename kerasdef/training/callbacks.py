"""Keras callbacks for adversarial training: validation under attack, a guard, the best weights, exact resume."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from kerasdef import checks, models
from kerasdef.annotations import checked
from kerasdef.attacks import PGD, Attack, StepAttack, signs
from kerasdef.datasets.batches import Mixture
from kerasdef.runs.keeping import Pace
from kerasdef.training.schedules import Stage, attack_of
from kerasdef.training.state import read_state, training_variables, write_state
from kerasdef.training.trainer import Trainer

ROBUST = "val_robust_accuracy"
SINGLE = "val_single_step_accuracy"


def _classifier(trainer: keras.Model) -> keras.Model:
    """The classifier inside a trainer, or the model itself."""
    return trainer.model if isinstance(trainer, Trainer) else trainer


def _state(callback: keras.callbacks.Callback) -> dict:
    """What a callback must be given back: what it says itself, or its plain numbers and its lists of weights."""
    if hasattr(callback, "get_state"):
        return callback.get_state()
    kept = {k: v for k, v in vars(callback).items() if v is None or isinstance(v, bool | int | float)}
    for name, value in vars(callback).items():
        if isinstance(value, list) and value and all(isinstance(v, np.ndarray | np.generic) for v in value):
            kept |= {f"{name}/{i:04d}": np.asarray(v) for i, v in enumerate(value)}
    return kept


def _give_back(callback: keras.callbacks.Callback, state: dict) -> None:
    """Give a callback what `_state` returned."""
    if hasattr(callback, "set_state"):
        callback.set_state(state)
        return
    lists = {}
    for name in sorted(k for k in state if "/" in k):
        lists.setdefault(name.split("/")[0], []).append(state[name])
    vars(callback).update({k: v for k, v in state.items() if "/" not in k} | lists)


class RobustValidation(keras.callbacks.Callback):
    """Measures the accuracy under attack after each epoch and logs it as `val_robust_accuracy`.

    Put it before callbacks that watch this number, such as `EarlyStopping` and `ModelCheckpoint`, and after
    `SwapEMAWeights` if averaged weights are to be measured.

    Args:
        x: Images of shape (n, ...); a few hundred are enough to steer by.
        y: Labels of shape (n,).
        attack: A cheap attack, such as `PGD(eps=0.3, steps=10)`.
        single: An attack of one step, whose accuracy is logged as `val_single_step_accuracy`, for `OverfittingGuard`.
        batch_size: Images that are attacked at a time.
        seed: Seed of the attack, an integer of at least 0: every epoch meets the same random starts.

    It warns, once each, if the attack may be blind: if the gradients of many images are zero, if the model gives
    probabilities that cannot be looked through, or if the model at the end of training labels few of the clean images
    right.
    """

    @checked
    def __init__(
        self,
        x,
        y,
        attack: Attack,
        *,
        single: Attack | None = None,
        batch_size: int = 256,
        seed: int = 0,
    ):
        super().__init__()
        for name, value in (("attack", attack), ("single", attack if single is None else single)):
            if not isinstance(value, Attack):
                raise ValueError(f"`{name}` must be an attack, such as PGD. Received: {name}={value!r}")
        self.x = checks.images("x", x, limits=attack.bounds)
        self.y = checks.labels("y", y, n=len(self.x))
        self.attacks = {ROBUST: attack} | ({} if single is None else {SINGLE: single})
        self.batch_size = checks.positive_int("batch_size", batch_size)
        self.seed = checks.non_negative_int("seed", seed)
        self.spots: dict[str, str] = {}
        self.said: set[str] = set()

    def on_epoch_end(self, epoch, logs=None):
        """Attack, and add the numbers to the logs."""
        attack = self.attacks[ROBUST]
        victim = models.Victim.of(_classifier(self.model), shape=self.x.shape[1:]).facing(attack.bounds)
        self.spots = signs.blind_spots(victim, self.x, self.y, attack.goal)
        self._say(self.spots.keys() - {"low_accuracy"})  # while training goes on the accuracy is expected to grow
        for name, attack in self.attacks.items():  # not `run`, which would say again in every epoch what was said above
            prepared = attack._prepare(_classifier(self.model), self.x, self.y)
            found = attack._result(*prepared, self.batch_size, self.seed, False)
            logs[name] = float(1 - np.mean(found.success))

    def on_train_end(self, logs=None):
        """Tell of a model that has not learned its data."""
        self._say(self.spots.keys() & {"low_accuracy"})

    def _say(self, names) -> None:
        for name in names - self.said:
            self.said.add(name)
            signs.warn(self.spots[name])


class OverfittingGuard(keras.callbacks.Callback):
    """Watches single-step adversarial training for overfitting to its one step, and takes more steps from then on.

    Two signs are known. Robust accuracy may fall within an epoch from its height to almost nothing, while training
    looks better and better ("catastrophic overfitting"): the weights and the optimizer's averages go back to the end of
    the last good epoch. The batches go on being counted, so the learning rate and the `Radius` end where training
    ends. Or the accuracy under one step runs away from that under several: training goes on from where it is.
    Needs `RobustValidation` before it, for the second sign with `single`.

    Args:
        drop: Fall of `val_robust_accuracy` below its best that counts as a collapse, in (0, 1].
        gap: Lead of `val_single_step_accuracy` over `val_robust_accuracy` that counts as overfitting, in (0, 1].
        more: Steps that the attack takes in addition each time; the step size becomes `2.5 * eps / steps` as PGD's.
        most: Steps that are never exceeded.
        start: First epoch whose gap counts, from 0: while the radius grows it says nothing.

    References: Wong et al., 2020, https://arxiv.org/abs/2001.03994 (section 5.4, which stops at the collapse); going on
    with more steps is this project's choice.
    """

    @checked
    def __init__(self, drop: float = 0.2, gap: float = 0.1, more: int = 1, most: int = 3, start: int = 0):
        super().__init__()
        self.drop = checks.real("drop", drop, low=0.0, high=1.0, open_low=True)
        self.gap = checks.real("gap", gap, low=0.0, high=1.0, open_low=True)
        self.more, self.most = checks.positive_int("more", more), checks.positive_int("most", most)
        self.start = checks.non_negative_int("start", start)
        self.best, self.steps, self.collapses, self.raises = -1.0, None, [], []
        self.good: list[np.ndarray] | None = None

    def set_model(self, model):
        """Check that the trainer's attack has steps to raise."""
        super().set_model(model)
        if not isinstance(getattr(model, "attack", None), PGD):
            raise ValueError(
                "`OverfittingGuard` is for an AdversarialTraining with PGD. "
                f"Received: {getattr(model, 'attack', type(model).__name__)!r}"
            )

    def on_epoch_end(self, epoch, logs=None):
        """Look at the accuracies; keep the weights or go back to those kept, and raise the steps where need be."""
        if ROBUST not in (logs or {}):
            raise ValueError(f"`OverfittingGuard` needs {ROBUST}: put RobustValidation before it in `callbacks`")
        found = logs[ROBUST]
        if self.good is not None and found < self.best - self.drop:
            self.collapses.append(epoch)
            going_on = self._clocks()
            for variable, value in zip(training_variables(self.model), self.good, strict=True):
                if id(variable) not in going_on:
                    variable.assign(value)
            self._raise(epoch)
            return
        self.best = max(self.best, found)
        self.good = [keras.ops.convert_to_numpy(v) for v in training_variables(self.model)]
        if epoch >= self.start and logs.get(SINGLE, found) - found > self.gap:
            self._raise(epoch)

    def _clocks(self) -> set[int]:
        """What counts the batches: schedules go on from where they are, so that they end where training ends."""
        optimizer = self.model.optimizer
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        return {id(v) for v in (optimizer.iterations, inner.iterations, self.model.batches)}

    def _raise(self, epoch: int) -> None:
        steps = self.model.attack.steps
        if steps < self.most:
            self.raises.append(epoch)
            self._take(min(steps + self.more, self.most))

    def _take(self, steps: int) -> None:
        self.steps = steps
        self.model.attack = dataclasses.replace(self.model.attack, steps=steps, step_size=None, relative_step=2.5)

    def get_state(self) -> dict:
        """What a resumed run needs; the kept weights are arrays."""
        kept = {f"good{i:04d}": v for i, v in enumerate(self.good or [])}
        told = {name: getattr(self, name) for name in ("best", "steps", "collapses", "raises")}
        return told | kept

    def set_state(self, state: dict) -> None:
        """Go on from `get_state`."""
        self.best, self.collapses, self.raises = state["best"], list(state["collapses"]), list(state["raises"])
        names = sorted(k for k in state if k.startswith("good"))
        self.good = [state[k] for k in names] or None
        if state["steps"] is not None:
            self._take(state["steps"])


class BestRobust(keras.callbacks.Callback):
    """Keeps the weights of the epoch with the best robust accuracy and puts them back when training ends.

    Where training ends before an epoch counts, the weights are those at the end of the last one, averaged ones if
    `SwapEMAWeights` stands before it.

    Robust accuracy may fall while training goes on ("robust overfitting"). Needs `RobustValidation` before it.

    Args:
        start: First epoch that counts, from 0: earlier ones may look good under a radius that still grows.

    References: Rice et al., 2020, https://arxiv.org/abs/2002.11569.
    """

    @checked
    def __init__(self, start: int = 0):
        super().__init__()
        self.start = checks.non_negative_int("start", start)
        self.best, self.epoch = -1.0, None
        self.weights: list[np.ndarray] | None = None

    def on_epoch_end(self, epoch, logs=None):
        """Keep the weights where they are the best so far; of equals the later."""
        if ROBUST not in (logs or {}):
            raise ValueError(f"`BestRobust` needs {ROBUST}: put RobustValidation before it in `callbacks`")
        counts = epoch >= self.start
        if counts and logs[ROBUST] < self.best:
            return
        if counts:
            self.best, self.epoch = logs[ROBUST], epoch
        self.weights = _classifier(self.model).get_weights()

    def on_train_end(self, logs=None):
        """Put the best weights back."""
        if self.weights is not None:
            _classifier(self.model).set_weights(self.weights)

    def get_state(self) -> dict:
        """What a resumed run needs."""
        kept = {f"w{i:04d}": v for i, v in enumerate(self.weights or [])}
        return {"best": self.best, "epoch": self.epoch, **kept}

    def set_state(self, state: dict) -> None:
        """Go on from `get_state`."""
        self.best, self.epoch = state["best"], state["epoch"]
        self.weights = [state[k] for k in sorted(state) if k.startswith("w")] or None


class AttackStages(keras.callbacks.Callback):
    """Gives an `AdversarialTraining` the attack of each stage, as its epoch begins.

    Args:
        stages: Stages in their order. After the last one its attack stays.
    """

    @checked
    def __init__(self, stages: Sequence[Stage]):
        super().__init__()
        self.stages = tuple(stages)
        if not self.stages or not all(isinstance(s, Stage) for s in self.stages):
            raise ValueError(f"`stages` must be one or more Stage. Received: stages={stages!r}")
        self.now: StepAttack | None = None

    def on_epoch_begin(self, epoch, logs=None):
        """Change the attack where a stage begins."""
        attack = attack_of(self.stages, epoch)
        if attack != self.now:
            self.model.attack = self.now = attack


class Resume(keras.callbacks.Callback):
    """Writes the whole state of a training after each epoch and from time to time within, and goes on from it.

    Weights, optimizer, random layers, seeds of the attack, the states of other callbacks, the history and the order of
    the data are all in it: a training that was killed anywhere and started again with the same arguments ends with the
    same weights as one that was not. Put it last in `callbacks`. Where a training goes on within an epoch, the batches
    before that are read from the data again, but not trained on.

    Args:
        path: File to write, ending in .npz. A file that is no state of a training is not lost: it is renamed.
        data: The `Mixture` that is trained on, whose order then goes on as well. With other data, pass
            `shuffle=False` to `fit` or the order will be another.
        others: Callbacks whose state is kept too: by their own `get_state` and `set_state`, or, as for Keras' own such
            as `EarlyStopping`, those numbers and lists of weights among their attributes that training changes.
        of: What the state is of, such as the name of the training. The state of something else is not taken up.
        seconds: Seconds between two states within an epoch, above 0; more where they take long to write.
    """

    @checked
    def __init__(
        self,
        path: str | Path,
        data: Mixture | None = None,
        others: Sequence[keras.callbacks.Callback] = (),
        *,
        of: str = "",
        seconds: float = 5.0,
    ):
        super().__init__()
        self.path, self.data, self.said = Path(path), data, of
        self.others = list(others)
        self.pace = Pace(checks.real("seconds", seconds, low=0.0, open_low=True))
        self.fresh: list[dict] = []  # their states when training begins
        self.begun, self.history = 0, {}
        self.calls, self.skipped, self.epoch = 0, 0, 0  # steps of this epoch; those of them that were trained before
        self.real = None  # the training function, while others' steps are skipped

    def on_train_begin(self, logs=None):
        """Read the state, where there is one."""
        self.begun, self.history, self.skipped, self.real = 0, {}, 0, None
        self.fresh = [_state(other) for other in self.others]
        state = self._read()
        if state is None:
            return
        self.begun, self.history, self.skipped = state["epoch"], state["history"], state["steps"]
        if self.data is not None:
            self.data.begin(state["order"])
        self.model._initial_epoch = self.begun  # as Keras' own BackupAndRestore does

    def on_epoch_begin(self, epoch, logs=None):
        """Write the state as it is before the epoch, with what callbacks did after the one before."""
        self.epoch, self.calls = epoch, 0
        history = self.model.history
        if epoch == self.begun and self.history:
            history.history = {k: list(v) for k, v in self.history.items()}
            history.epoch = list(range(self.begun))
        elif epoch > self.begun:
            self._write(0)
        if epoch == self.begun and self.skipped:
            self.real, self.model.train_function = self.model.train_function, self._skip

    def on_train_batch_end(self, batch, logs=None):
        """Write the state where it is time; after the steps that were skipped, take it up as it was there."""
        self.calls += 1
        if self.real is None:
            if self.pace.due():
                self._write(self.calls)
        elif self.calls == self.skipped:
            self.model.train_function, self.real = self.real, None
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            self._read(within=True)

    def on_epoch_end(self, epoch, logs=None):
        """Find out where the data has fewer batches than that of the training that was killed."""
        if self.real is not None:
            raise ValueError(
                f"The data must be those of the training that goes on, which was in step {self.skipped} of this epoch. "
                f"Received: {self.calls} steps in an epoch"
            )

    def on_train_end(self, logs=None):
        """Let the next `fit` begin where it is told to."""
        self.model._initial_epoch = None

    def _skip(self, *arguments):
        """Stands in for the training function: takes the batches, and does nothing with them.

        The last one is trained on, which makes all variables that there are; the state then takes it back.
        """
        if self.calls == self.skipped - 1:
            return self.real(*arguments)
        for _ in range(self.model.steps_per_execution):
            next(arguments[-1])
        return {} if len(arguments) == 1 else ({}, arguments[0])  # JAX passes its state

    def _read(self, *, within: bool = False) -> dict | None:
        """Take the state up; with what the metrics have seen of an epoch where training goes on within it."""
        found = read_state(self.path, self.model, of=self.said)
        if found is None:
            return None
        state, arrays = found
        for i, other in enumerate(self.others):
            own = {k.split("/", 1)[1]: v for k, v in arrays.items() if k.startswith(f"{i}/")}
            _give_back(other, state["others"][i] | own)
        if within:
            for i, variable in enumerate(self.model.metrics_variables):
                variable.assign(arrays[f"metric/{i}"])
        return state

    def _write(self, steps: int) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        measured = self.model.metrics_variables if steps else ()
        arrays = {f"metric/{i}": keras.ops.convert_to_numpy(v) for i, v in enumerate(measured)}
        plain = []
        for i, other in enumerate(self.others):
            state = _state(other)
            if not hasattr(other, "get_state"):  # what did not change is how it was made, perhaps otherwise this time
                state = {k: v for k, v in state.items() if isinstance(v, np.ndarray) or self.fresh[i].get(k) != v}
            arrays |= {f"{i}/{k}": v for k, v in state.items() if isinstance(v, np.ndarray)}
            plain.append({k: v for k, v in state.items() if not isinstance(v, np.ndarray)})
        numbers = {k: [float(v) for v in values] for k, values in self.model.history.history.items()}
        meta = {"epoch": self.epoch, "steps": steps, "history": numbers, "others": plain}
        if self.data is not None:
            meta["order"] = self.data.epoch
        with self.pace.writing():
            write_state(self.path, self.model, meta, arrays, of=self.said)
