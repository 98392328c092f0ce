"""The gradient attacks of one loop: FGSM, BIM, PGD and MIM are settings of `GradientAttack`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from keras import ops

from kerasdef import checks, losses, norms
from kerasdef.attacks.engine import StepAttack, joined, logits_at, select
from kerasdef.attacks.parts.directions import Direction, Momentum, Nesterov, Plain
from kerasdef.attacks.parts.inherited import arguments_of_base
from kerasdef.norms import Linf, Norm

_LOOK = 10  # steps between two looks at who is done: one forward pass each


@dataclass(frozen=True, repr=False)
class GradientAttack(StepAttack):
    """Iterative projected gradient attack in a ball around the input.

    Args:
        eps: Radius in input units (write `8 / 255`), at least 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or a `Norm`.
        steps: Gradient evaluations, at least 1.
        step_size: Length of a step in input units, above 0. None: `relative_step * eps / steps`.
        relative_step: Length of a step as a multiple of `eps / steps`, used where `step_size` is None.
        direction: What is made of the gradients, a `Direction`.
        random_start: Start at a point drawn from the ball (each sample by its own seed) instead of at x.
        loss: "cross_entropy", "margin", "dlr", or a function of (logits, y) that gives values of shape (n,).
        best: Return the best point met (adversarial before not, then the highest loss); False returns the last.
        early_stop: When called on arrays, a sample leaves as soon as the goal is reached. False takes all steps, which
            gives attacks that transfer better and the fixed number of iterations that papers report.
        goal: What the attacker wants, a `Goal`; by default another class than the true one.
        bounds: Valid range of an input value, `(low, high)`.
        samples: Draws of a random model over which every gradient is averaged, at least 1.

    Example:
    >>> x_adv = PGD(eps=8 / 255, steps=40)(model, x, y)
    """

    eps: float | tuple[float, ...] = 0.3
    norm: Norm | str = field(default_factory=Linf)
    steps: int = 10
    step_size: float | None = None
    relative_step: float = 1.0
    direction: Direction = field(default_factory=Plain)
    random_start: bool = False
    loss: Callable | str = "cross_entropy"
    best: bool = True
    early_stop: bool = True

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        object.__setattr__(self, "norm", norms.get(self.norm))
        checks.positive_int("steps", self.steps)
        if self.step_size is not None:
            checks.real("step_size", self.step_size, low=0.0, open_low=True)
        checks.real("relative_step", self.relative_step, low=0.0, open_low=True)
        if isinstance(self.loss, str):
            checks.one_of("loss", self.loss, losses.LOSSES)

    @property
    def steps_in_all(self) -> int:
        """Most steps that one sample can take."""
        return self.steps

    @property
    def look_every(self) -> int:
        """Steps between two looks: equal parts of `steps`, about ten each."""
        return -(-self.steps // max(1, self.steps // _LOOK)) if self.early_stop else self.steps

    @property
    def parameters(self) -> dict:
        """The radius, and the length of a step, in input units or relative to it."""
        step = "relative_step" if self.step_size is None else "step_size"
        return {"eps": self.eps, step: getattr(self, step)}

    def init(self, model, x, y, seeds, parameters: dict) -> dict:
        """State before the first step."""
        eps = parameters["eps"]
        now = x
        if self.random_start:
            now = ops.clip(x + self.norm.sample(seeds, x.shape[1:], eps), *self.bounds)
        false = ops.zeros_like(eps, dtype="bool")
        state = {
            "now": now,
            "adv": now,
            "done": false,
        }
        if self.best:
            state |= {"reached": false, "value": ops.full_like(eps, -np.inf)}
        return joined(state, self.direction.init(x))

    def _evaluate(self, call, y, z):
        logits = call(z)
        return losses.finite(self.goal.value(losses.get(self.loss), logits, y)), (logits,)

    def _remember(self, state: dict, value, logits, y) -> dict:
        """Keep the current point where it is better than the best so far."""
        reached = self.goal.reached(logits, y)
        higher = ops.logical_and(reached == state["reached"], value >= state["value"])  # equal: the later
        better = ops.logical_or(ops.logical_and(reached, ops.logical_not(state["reached"])), higher)
        return state | {
            "adv": select(better, state["now"], state["adv"]),
            "value": ops.where(better, value, state["value"]),
            "reached": ops.logical_or(reached, state["reached"]),
        }

    def step(self, model, x, y, state: dict) -> dict:
        """Raise the loss by one step and return to the ball and the bounds."""
        now, eps = state["now"], state["eps"]
        memory = {k: state[k] for k in self.direction.init(x)}
        length = eps * (state["relative_step"] / self.steps) if self.step_size is None else state["step_size"]
        point = self.direction.look_ahead(now, memory, length)
        value, (logits,), grad = self.gradient(model, lambda call, z: self._evaluate(call, y, z), point, state)
        if self.best:
            if point is not now:  # the best point is one of those that the attack may return
                value, (logits,) = self._evaluate(lambda z: logits_at(model, z, state["seed"], state["moves"]), y, now)
            state = self._remember(state, value, logits, y)
        move, memory = self.direction.update(grad, memory)
        moved = ops.clip(now + norms.per_sample(length, x) * self.norm.steepest(move), *self.bounds)
        moved = ops.clip(x + self.norm.project(moved - x, eps), *self.bounds)  # again: float noise
        if self.steps % self.look_every:  # the last part runs past `steps`
            moved = select(state["moves"] < self.steps, moved, now)
        return state | memory | {"now": moved}

    def judge(self, model, x, y, state: dict) -> dict:
        """Look at the newest point; done are samples out of steps and, with `early_stop`, those that succeeded."""
        finished = state["moves"] >= self.steps
        if not self.best:
            state = state | {"adv": state["now"]}
            if not self.early_stop or model.random:  # one lucky draw is no reason to leave
                return state | {"done": finished}
            reached = self.goal.reached(logits_at(model, state["now"], state["seed"], state["moves"]), y)
            return state | {"done": ops.logical_or(finished, reached)}
        value, (logits,) = self._evaluate(lambda z: logits_at(model, z, state["seed"], state["moves"]), y, state["now"])
        state = self._remember(state, value, logits, y)
        leaves = self.early_stop and not model.random
        done = ops.logical_or(finished, state["reached"]) if leaves else finished
        return state | {"done": done}


@arguments_of_base
@dataclass(frozen=True, repr=False)
class FGSM(GradientAttack):
    """Fast gradient sign method: one step of length eps (the fast gradient method in other norms).

    Args: see `GradientAttack`.

    References: Goodfellow et al., 2015, https://arxiv.org/abs/1412.6572 (section 4).
    """

    steps: int = 1
    best: bool = False


@arguments_of_base
@dataclass(frozen=True, repr=False)
class BIM(GradientAttack):
    """Basic iterative method: FGSM in small steps from x, without a random start.

    The paper's step is one gray level (1/255); here it follows the radius and is eps / steps.

    Args: see `GradientAttack`.

    References: Kurakin et al., 2017, https://arxiv.org/abs/1607.02533 (section 2.2).
    """


@arguments_of_base
@dataclass(frozen=True, repr=False)
class PGD(GradientAttack):
    """Projected gradient descent from a random start, the standard first attack.

    Its steps of 2.5 * eps / steps let every run cross the ball (Madry et al.'s choice).

    Args: see `GradientAttack`.

    References: Madry et al., 2018, https://arxiv.org/abs/1706.06083 (section 2.1; the start is drawn from the ball).
    """

    steps: int = 40  # Madry et al.: 40 for MNIST
    relative_step: float = 2.5
    random_start: bool = True


@arguments_of_base
@dataclass(frozen=True, repr=False)
class MIM(GradientAttack):
    """Momentum iterative method: steps along the accumulated, L1-normalized gradient.

    Args: see `GradientAttack`.

    References: Dong et al., 2018, https://arxiv.org/abs/1710.06081 (Algorithm 1: mu = 1.0, step eps / steps).
    """

    direction: Direction = field(default_factory=Momentum)


@arguments_of_base
@dataclass(frozen=True, repr=False)
class NIM(GradientAttack):
    """Nesterov iterative method: MIM with gradients taken one step of momentum ahead.

    With `best`, which the paper does not have, a step costs one more forward pass.

    Args: see `GradientAttack`.

    References: Lin et al., 2020, https://arxiv.org/abs/1908.06281 (section 3.2; its step is eps / steps, mu = 1.0).
    """

    direction: Direction = field(default_factory=Nesterov)
