"""The worst case over several attacks or several starts of one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from keras import ops

from kerasdef import checks, losses, norms
from kerasdef.annotations import check_fields
from kerasdef.attacks.base import Attack
from kerasdef.attacks.wrappers.base import Wrapper, targets_outside
from kerasdef.goals import Goal
from kerasdef.norms import L2, Norm
from kerasdef.threat import ThreatModel


@dataclass(frozen=True, eq=False, repr=False)
class WorstOf(Attack):
    """Several attacks in turn, each on what still stands; every sample keeps the worst that was found.

    The first point that reaches the goal is kept, otherwise the one with the highest margin. Attacks that look for the
    smallest change ("minimal") all see every sample, and the smallest change is kept. Evaluations are summed, gradients
    and queries alike.

    Args:
        attacks: Attacks with the same goal and bounds, all of one kind. A `Targeted` among them counts as soon as the
            sample is misclassified.
        norm: Norm in which minimal attacks are compared.

    Raises:
        ValueError: The attacks do not belong together.

    Example:
    >>> x_adv = WorstOf((PGD(eps=0.1), PGD(eps=0.1, loss="margin")))(model, x, y)
    """

    attacks: tuple[Attack, ...]
    norm: Norm | str = field(default_factory=L2)

    def __post_init__(self):
        check_fields(self)
        attacks = tuple(self.attacks)
        if not attacks or not all(isinstance(a, Attack) for a in attacks):
            raise ValueError(f"`attacks` must be one or more attacks. Received: attacks={self.attacks!r}")
        for name in ("goal", "bounds", "kind"):
            found = [getattr(a, name) for a in attacks]
            if any(value != found[0] for value in found):
                raise ValueError(f"`attacks` must have the same {name}. Received: {found}")
        object.__setattr__(self, "attacks", attacks)
        object.__setattr__(self, "norm", norms.get(self.norm))

    @property
    def goal(self) -> Goal:
        """Goal of all the attacks."""
        return self.attacks[0].goal

    @property
    def bounds(self) -> tuple[float, float]:
        """Bounds of all the attacks."""
        return self.attacks[0].bounds

    @property
    def kind(self) -> str:
        """Kind of all the attacks."""
        return self.attacks[0].kind

    @property
    def access(self) -> str:
        """What the attack needs that needs most."""
        return "white box" if any(a.access == "white box" for a in self.attacks) else self.attacks[0].access

    @property
    def threat(self) -> ThreatModel:
        """Threat model of the attacks; norm and radius where all have the same."""
        found = [attack.threat for attack in self.attacks]
        first = found[0]
        if all(t.norm == first.norm and t.eps == first.eps for t in found):
            return dataclasses.replace(first, access=self.access)
        return ThreatModel(None, None, first.bounds, first.goal, self.access)

    def with_goal(self, goal: Goal) -> Attack:
        """These attacks with another goal."""
        return dataclasses.replace(self, attacks=tuple(a.with_goal(goal) for a in self.attacks))

    def rows(self, index: np.ndarray, n: int) -> Attack:
        """These attacks for some of the samples."""
        return dataclasses.replace(self, attacks=tuple(a.rows(index, n) for a in self.attacks))

    def _view(self, model):
        white = [a for a in self.attacks if a.access == "white box"]  # they take Keras models only
        return (white or self.attacks)[0]._view(model)

    def _climbs(self):
        return tuple(loss for attack in self.attacks for loss in attack._climbs())

    def _accept(self, victim, y):
        for attack in self.attacks:
            attack._accept(victim, y)

    def _success(self, model, x_adv, y):
        return self.attacks[0]._success(model, x_adv, y)

    def _run(self, model, x, y, batch_size, seed, show):
        return _worst(self.attacks, self.norm, model, x, y, batch_size, seed, show)


@dataclass(frozen=True, eq=False, repr=False)
class Restarts(Wrapper):
    """An attack several times, each time with another seed, on the samples that still stand.

    The first point that reaches the goal is kept, otherwise the one with the highest margin. With a minimal attack
    every sample is attacked every time, and the smallest change is kept. Evaluations are summed.

    Args:
        attack: Any attack; it should draw random numbers. `Targeted` stands outside: `Targeted(Restarts(attack))`.
        count: Number of runs; the first has the seed of the call.
        norm: Norm in which the changes of a minimal attack are compared.

    Example:
    >>> x_adv = Restarts(PGD(eps=0.3), 10)(model, x, y)
    """

    count: int = 5
    norm: Norm | str = field(default_factory=L2)

    def __post_init__(self):
        super().__post_init__()
        targets_outside("Restarts", self.attack)
        checks.positive_int("count", self.count)
        object.__setattr__(self, "norm", norms.get(self.norm))

    def _run(self, model, x, y, batch_size, seed, show):
        return _worst((self.attack,) * self.count, self.norm, model, x, y, batch_size, seed, show)


def _worst(attacks, norm, model, x, y, batch_size, seed, show) -> tuple[np.ndarray, np.ndarray]:
    """Run attacks in turn and keep the worst point of every sample.

    Samples keep their places, and so their random numbers and radii: one that has fallen is shown as the point that
    fooled the model, which an attack leaves alone like any other input that is wrong from the start.
    """
    minimal = attacks[0].kind == "minimal"
    x_adv, spent = np.array(x), np.zeros(len(x), dtype="int64")
    fallen, _ = judged(attacks[0], model, x, y)
    best = np.where(fallen, np.inf, -np.inf)  # margin, or minus the size of the change
    for i, attack in enumerate(attacks):
        if not minimal and fallen.all():
            break
        shown = x if minimal or i == 0 else np.where(_rows(fallen, x), x_adv, x)
        found, cost = attack._run(model, shown, y, batch_size, _seed(seed, i), show)
        if found.shape != x.shape:
            raise ValueError(f"`attack` must return one image for one. Received: {attack!r}")
        reached, value = judged(attacks[0], model, found, y)
        if minimal:
            value = np.where(reached, -ops.convert_to_numpy(norm.size(ops.convert_to_tensor(found - x))), -np.inf)
            better = value > best
        else:
            better = ~fallen & (reached | (value > best))
        best = np.where(better, value, best)
        x_adv = np.where(_rows(better, x), found, x_adv)
        spent += cost
        fallen = fallen | reached
    if model.access != "gradients":
        model.result = x_adv, fallen  # nothing is asked again
    return x_adv, spent


def _rows(mask, x):
    return mask.reshape((-1,) + (1,) * (x.ndim - 1))


def _seed(seed: int, i: int) -> int:
    """Seed of run i: that of the call for the first, and far from it and from any neighbor's for the others."""
    return seed if i == 0 else int(np.random.SeedSequence([seed, i]).generate_state(1)[0])


def judged(attack: Attack, model, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the goal of an attack is reached, and how near it is: `(reached, value)` of shape (n,).

    Args:
        attack: The attack.
        model: The model as the attack sees it.
        x: Inputs of shape (n, ...).
        y: Labels of shape (n,).

    The value is the margin; a callable is not asked for one, and that of a random model changes with the draw, so for
    these it is 1 where the goal is reached, else 0.
    """
    if model.access != "gradients" or model.random:
        reached = attack._success(model, x, y)
        return reached, reached.astype("float32")
    logits = model.predict(x)
    reached, value = attack.goal.reached(logits, y), attack.goal.value(losses.margin, logits, y)
    return ops.convert_to_numpy(reached), ops.convert_to_numpy(value)
