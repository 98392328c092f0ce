"""Attacks on a classifier with a detector that climb two objectives: fool the one, and keep the other quiet."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np
from keras import ops

from kerasdef import checks, losses, norms
from kerasdef.attacks.engine import StepAttack, joined, logits_at, select
from kerasdef.attacks.parts.inherited import arguments_of_base
from kerasdef.norms import L2, Linf, Norm

_LOOK = 10  # steps between two looks at who is done
_LAST = 0.01  # of the first step: what the length of a step falls to
_GROWTH = 10.0  # factor on the weight of the hinge while no upper end of it is known (Carlini and Wagner's L2 code)


@dataclass(frozen=True, repr=False)
class DetectorAttack(StepAttack):
    """A gradient attack on two objectives of one model: the base of `OrthogonalPGD`, `SelectivePGD` and `HingePGD`.

    Both come from the outputs of the model by the goal (`Goal.apart`): the gap by which the real classes are decided as
    the attacker wants, and the alarm, which is positive where the sample is rejected. With a goal that knows no
    rejecting class, the alarm has no gradient, and what is left is a gradient attack on the margin.

    The point that is returned reaches the goal if any did. Of those that do, or else of those with a gap above 0, it is
    the one with the lowest alarm, and where there is none, the one with the largest gap.

    Args:
        eps: Radius in input units (write `8 / 255`), at least 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or a `Norm`.
        steps: Steps, at least 1. Each takes two gradients. Paper: 1,000.
        step_size: Length of the first step in input units, above 0. None: `relative_step * eps`. Lengths fall along a
            cosine to a hundredth of it; those of the authors do not fall.
        relative_step: Length of the first step as a share of `eps`, used where `step_size` is None (authors' code: 1/8,
            a step of 1/255 in a ball of 8/255).
        lead: Gap above which the classifier counts as fooled when a direction is chosen (authors' code: 0.05).
        early_stop: When called on arrays, a sample leaves as soon as the goal is reached. False looks for the lowest
            alarm in all steps.
        goal: What the attacker wants: `Evade`, the goal of a defense, or any other.
        bounds: Valid range of an input value.
        samples: Draws of a random model that a gradient averages.
    """

    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)
    steps: int = 100
    step_size: float | None = None
    relative_step: float = 1 / 8
    lead: float = 0.05
    early_stop: bool = False

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        object.__setattr__(self, "norm", norms.get(self.norm))
        checks.positive_int("steps", self.steps)
        if self.step_size is not None:
            checks.real("step_size", self.step_size, low=0.0, open_low=True)
        checks.real("relative_step", self.relative_step, low=0.0, open_low=True)
        checks.real("lead", self.lead, low=0.0)

    @abstractmethod
    def combine(self, fool, hide, gap, alarm, state: dict):
        """Direction of the next step, of the shape of x.

        Args:
            fool: Gradient of the gap.
            hide: Gradient of minus the alarm.
            gap: The gap, of shape (n,).
            alarm: The alarm, of shape (n,).
            state: The state of the attack.
        """

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return self.steps

    @property
    def look_every(self) -> int:
        """Steps between two looks: equal parts of all steps, about ten each."""
        total = self.steps_in_all
        return -(-total // max(1, total // _LOOK)) if self.early_stop else total

    @property
    def parameters(self) -> dict:
        """The radius, and the length of the first step, in input units or relative to it."""
        step = "relative_step" if self.step_size is None else "step_size"
        return {"eps": self.eps, step: getattr(self, step), "lead": self.lead}

    def init(self, model, x, y, seeds, parameters: dict) -> dict:
        """State before the first step."""
        none = ops.zeros_like(parameters["eps"])
        state = {
            "now": x,
            "adv": x,
            "rank": none - 1.0,  # 2: reached the goal, 1: fooled the classifier, 0: neither
            "value": none - np.inf,
            "done": none > 0,
        }
        return joined(state, self._memory(none))

    def _memory(self, none) -> dict:
        """What a subclass keeps of each sample."""
        return {}

    def _ahead(self, direction):
        """A step of size 1 in the norm, from a direction."""
        return self.norm.steepest(direction)

    def _remember(self, state: dict, gap, alarm, logits, y) -> dict:
        """Keep the current point where it is better than the best so far."""
        quiet = losses.finite(-alarm)
        rank = ops.where(self.goal.reached(logits, y), 2.0, ops.where(gap > 0, 1.0, 0.0))
        value = ops.where(rank > 0, quiet, losses.finite(gap))
        higher = ops.logical_and(rank == state["rank"], value > state["value"])
        better = ops.logical_or(rank > state["rank"], higher)
        return {
            "adv": select(better, state["now"], state["adv"]),
            "rank": ops.where(better, rank, state["rank"]),
            "value": ops.where(better, value, state["value"]),
        }

    def step(self, model, x, y, state: dict) -> dict:
        """Take both gradients where the samples stand, and make one step of them."""

        def gap_of(call, z):
            logits = call(z)
            gap, alarm = self.goal.apart(logits, y)
            return gap, (alarm, logits)

        def quiet_of(call, z):
            return -self.goal.apart(call(z), y)[1], ()

        now, eps = state["now"], state["eps"]
        gap, (alarm, logits), fool = self.gradient(model, gap_of, now, state)
        _, _, hide = self.gradient(model, quiet_of, now, state)
        state = state | self._remember(state, gap, alarm, logits, y)

        first = eps * state["relative_step"] if self.step_size is None else state["step_size"]
        time = ops.cast(state["moves"] % self.steps, "float32") / self.steps
        length = first * (_LAST + (1.0 - _LAST) * 0.5 * (1.0 + ops.cos(math.pi * time)))
        ahead = self._ahead(self.combine(fool, hide, gap, alarm, state))
        moved = ops.clip(now + norms.per_sample(length, x) * ahead, *self.bounds)
        moved = ops.clip(x + self.norm.project(moved - x, eps), *self.bounds)  # again: float noise
        moved = select(state["moves"] < self.steps_in_all, moved, now)  # the last part runs past the end
        return self._turn(x, gap, alarm, state | {"now": moved})

    def _turn(self, x, gap, alarm, state: dict) -> dict:
        """What a subclass does after a step, with the gap and the alarm of the point before it."""
        return state

    def judge(self, model, x, y, state: dict) -> dict:
        """Look at the newest point; done are samples out of steps and, with `early_stop`, those that succeeded."""
        logits = logits_at(model, state["now"], state["seed"], state["moves"])
        state = state | self._remember(state, *self.goal.apart(logits, y), logits, y)
        done = state["moves"] >= self.steps_in_all
        leaves = self.early_stop and not model.random  # one lucky draw is no reason to leave
        return state | {"done": ops.logical_or(done, state["rank"] > 1) if leaves else done}


def without(a, b):
    """What is left of vectors a when their components along the vectors b are taken out; shapes (n, ...)."""
    along = L2().steepest(b)
    share = ops.sum(norms.flatten(a) * norms.flatten(along), axis=1)
    return a - norms.per_sample(share, a) * along


@arguments_of_base
@dataclass(frozen=True, repr=False)
class SelectivePGD(DetectorAttack):
    """Selective projected gradient descent: fools the classifier, and once that is done, quiets the detector.

    Every step goes along the gradient of one of the two objectives alone.

    Args: see `DetectorAttack`.

    Example:
    >>> model, goal = defense.surface()
    >>> x_adv = SelectivePGD(eps=8 / 255, goal=goal)(model, x, y)

    References: Bryniarski et al., 2021, https://arxiv.org/abs/2106.15023 ("selective gradients").
    """

    def combine(self, fool, hide, gap, alarm, state: dict):
        """The one gradient or the other."""
        return select(gap > state["lead"], hide, fool)


@arguments_of_base
@dataclass(frozen=True, repr=False)
class OrthogonalPGD(DetectorAttack):
    """Orthogonal projected gradient descent: `SelectivePGD` whose steps leave the other objective as it is.

    From the gradient of the one objective the component along the gradient of the other is taken out. In L2 a step is
    then at a right angle to the other gradient; in Linf the signs are taken after that, as the authors do.

    Args: see `DetectorAttack`.

    Example:
    >>> model, goal = defense.surface()
    >>> x_adv = OrthogonalPGD(eps=8 / 255, goal=goal)(model, x, y)

    References: Bryniarski et al., 2021, https://arxiv.org/abs/2106.15023 ("orthogonal gradients").
    """

    def combine(self, fool, hide, gap, alarm, state: dict):
        """The one gradient or the other, each without its component along the other one."""
        return select(gap > state["lead"], without(hide, fool), without(fool, hide))


@arguments_of_base
@dataclass(frozen=True, repr=False)
class HingePGD(DetectorAttack):
    """Climbs gap - weight * max(alarm, 0), with a weight for each sample that is found by bisection.

    Each of `searches` runs has `steps` steps, and begins where the one before ended. Where the last point of a run
    alarms the detector the weight grows, and where it neither does that nor fools the classifier the weight falls.
    `lead` is not used.

    Steps go along the gradient itself in every norm, scaled to size 1. Signs of gradients, which are steepest in Linf,
    forget by how much each feature serves the one objective and harms the other: on a linear classifier with a linear
    detector they stop short of points that this attack finds. It needs many steps where both objectives ask for nearly
    the same features.

    Args: see `DetectorAttack`.
        initial_weight: First weight of the alarm, above 0.
        searches: Runs, at least 1.

    References: Carlini and Wagner, 2017, https://arxiv.org/abs/1705.07263 (a loss with a term for the detector); the
    bisection is that of their attack in L2, https://arxiv.org/abs/1608.04644 (section VI.A).
    """

    initial_weight: float = 1.0
    searches: int = 6

    def __post_init__(self):
        super().__post_init__()
        checks.real("initial_weight", self.initial_weight, low=0.0, open_low=True)
        checks.positive_int("searches", self.searches)

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return self.steps * self.searches

    def _memory(self, none) -> dict:
        return {"weight": none + self.initial_weight, "low": none, "high": none + np.inf}

    def _ahead(self, direction):
        along = L2().steepest(direction)  # first: tiny numbers
        return along / norms.per_sample(ops.maximum(self.norm.size(along), 1e-12), along)

    def combine(self, fool, hide, gap, alarm, state: dict):
        """The gradient of the sum."""
        weight = ops.where(alarm > 0, state["weight"], 0.0)
        return fool + norms.per_sample(weight, fool) * hide

    def _turn(self, x, gap, alarm, state: dict) -> dict:
        over = (state["moves"] + 1) % self.steps == 0
        weight = state["weight"]
        more = ops.logical_and(over, alarm > 0)
        less = ops.logical_and(over, ops.logical_and(gap <= 0, alarm <= 0))
        low, high = ops.where(more, weight, state["low"]), ops.where(less, weight, state["high"])
        middle = ops.where(high < np.inf, (low + high) / 2, weight * _GROWTH)
        return state | {
            "weight": ops.where(ops.logical_or(more, less), middle, weight),
            "low": low,
            "high": high,
        }
