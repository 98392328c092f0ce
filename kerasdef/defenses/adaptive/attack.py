"""The attacker that follows from a defense: everything that is known of it, each on what still stands."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np

from kerasdef import checks, models, norms
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import signs
from kerasdef.attacks.base import Attack
from kerasdef.attacks.sequence import PartByPart, SequenceResult
from kerasdef.defenses.adaptive.stages import FAMILIES, NOT_LOOKED, Part, of_defense, of_finding, planned
from kerasdef.defenses.base import Defense, Outputs, as_defense
from kerasdef.defenses.manifest import Manifest, Row
from kerasdef.goals import Goal
from kerasdef.identity import digest
from kerasdef.models import Victim
from kerasdef.models.bounds import onto
from kerasdef.norms import Linf, Norm
from kerasdef.threat import ThreatModel

_LOOKED_AT = 256  # images, as many as signs are looked for on


@dataclass(frozen=True, eq=False, repr=False)
class Adaptive(PartByPart):
    """The attack that is made from a defense; see `adaptive`, which makes one.

    Args:
        defense: The defense that it is made from.
        eps: Radius in input units, above 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or a `Norm`.
        steps: Gradient steps of each part.
        draws: Draws that gradients and answers of random models are averaged over.
        queries: Questions of the part that asks for outputs only.
        base: The classifier without its defense, where the defense does not tell it.
        parts: Names of the groups of parts that are run; None runs all.
        bounds: Valid range of an input value.
        images: Clean images within `bounds` on which the gradients of the defense are looked at and, where they are
            useless, replaced. None: the first images that are attacked.
    """

    defense: Defense | Outputs
    eps: float | tuple[float, ...]
    norm: Norm | str = field(default_factory=Linf)
    steps: int = 100
    draws: int = 20
    queries: int = 5000
    base: keras.Model | None = None
    parts: tuple[str, ...] | None = None
    bounds: tuple[float, float] = (0.0, 1.0)
    images: np.ndarray | None = None

    def __post_init__(self):
        check_fields(self)
        object.__setattr__(self, "eps", checks.radius("eps", self.eps))
        if np.any(np.asarray(self.eps) <= 0):
            raise ValueError(f"`eps` must be above 0. Received: eps={self.eps!r}")
        object.__setattr__(self, "norm", norms.get(self.norm))
        object.__setattr__(self, "bounds", checks.bounds(self.bounds))
        for name in ("steps", "draws", "queries"):
            checks.positive_int(name, getattr(self, name))
        if self.parts is not None:
            object.__setattr__(self, "parts", tuple(checks.one_of("parts", p, FAMILIES) for p in self.parts))
            if not self.parts:
                raise ValueError("`parts` must name one or more groups of parts, or be None. Received: parts=()")

    @property
    def goal(self) -> Goal:
        """The goal against the defense."""
        return self.defense.surface()[1]

    @property
    def access(self) -> str:
        """Gradients, where the defense has them."""
        return "white box" if isinstance(self.defense.surface()[0], keras.Model) else "black box"

    @property
    def threat(self) -> ThreatModel:
        """The threat model: an attacker who knows all of the defense."""
        return ThreatModel(self.norm, self.eps, self.bounds, self.goal, self.access)

    @property
    def manifest(self) -> Manifest:
        """The stages of the defense and those of the attack, with what is not attacked."""
        parts, left = self._stages
        found = tuple(map(of_finding, self.findings)) if self.looks else (NOT_LOOKED,)
        return Manifest((*of_defense(self.defense), *found, *(part.row for part in parts.values()), *left))

    @property
    def looks(self) -> bool:
        """Whether the gradients of the defense are known to be useful or have been replaced."""
        return self.images is not None or self.access == "black box"

    @property
    def findings(self) -> tuple[models.Finding, ...]:
        """The operations of the defense whose gradients are useless, as far as images to look at are there."""
        return () if self.repaired is None else self.repaired.findings

    @functools.cached_property
    def repaired(self) -> models.Repaired | None:
        """The surface of the defense with useful gradients, and what was found on it; None of outputs alone."""
        surface = self.defense.surface()[0]
        if not isinstance(surface, keras.Model):
            return None
        if self.images is None:
            return models.Repaired(surface, ())
        images = onto(self.images, self.defense.bounds, self.bounds)
        return models.repair(surface, images)

    def on(self, images: np.ndarray) -> Adaptive:
        """This attack with images on which gradients are looked at, where it has none."""
        if self.images is not None:
            return self
        images = images[:_LOOKED_AT]
        known = self.__dict__.setdefault("_known", {})
        key = digest(images)
        if key not in known:
            known[key] = dataclasses.replace(self, images=images)
        return known[key]

    def with_goal(self, goal: Goal) -> Adaptive:
        """This attack: its goal is that of its defense, and there is no other.

        Raises:
            ValueError: The goal is another one.
        """
        if goal != self.goal:
            raise ValueError(f"`goal` must be that of the defense, {self.goal!r}. Received: goal={goal!r}")
        return self

    @checked
    def run(
        self,
        model: keras.Model | Callable | Victim,
        x: np.ndarray,
        y: np.ndarray | None = None,
        **options,
    ) -> SequenceResult:
        """Attack every sample of an array.

        Args:
            model: The defense, the model of its surface, or another one with the same outputs, to which all that is
                found is shown.
            x: As in a call of any attack, as all further arguments.
            y: True labels of shape (n,).
            options: As in `AutoAttack.run`.

        Returns:
            A `SequenceResult`: x_adv, success, which part broke what, a table, and flags where the result is doubtful.
        """
        surface = model.surface()[0] if isinstance(model, Defense | Outputs) else model
        return super().run(surface, x, y, **options)

    def rows(self, index: np.ndarray, n: int) -> Adaptive:
        """This attack for some of the samples."""
        return dataclasses.replace(self, eps=tuple(np.asarray(self.eps)[index])) if np.ndim(self.eps) else self

    @functools.cached_property
    def _stages(self) -> tuple[dict[str, Part], tuple[Row, ...]]:
        """The parts by name, and the rows of what is left out."""
        found, left = planned(self)
        chosen = {name: part for name, part in found.items() if self.parts is None or part.family in self.parts}
        if not chosen:
            names = ", ".join(dict.fromkeys(part.family for part in found.values()))
            raise ValueError(f"`parts` must name some of {names} for this defense. Received: parts={self.parts!r}")
        skipped = (
            Row(name, "", "none", 0, "", "this part was left out by `parts`") for name in found if name not in chosen
        )
        return chosen, (*left, *skipped)

    def _view(self, model):
        return Victim.of(model).facing(self.bounds)

    def _parts(self, victim, x, y, seed) -> dict[str, Attack]:
        return {name: part.on(x, y) for name, part in self.on(x)._stages[0].items()}

    def _doubts(self, victim, x, y) -> dict[str, str]:
        surface, goal = self.defense.surface()
        if not isinstance(surface, keras.Model):
            return {}
        shown = self.on(x).repaired
        found = {f"gradient_{i}": str(finding) for i, finding in enumerate(shown.findings, 1)}
        return found | signs.blind_spots(Victim.of(shown.model).facing(self.bounds), x, y, goal)


@checked
def adaptive(
    defense: Defense | Outputs | keras.Model | Callable,
    *,
    eps: float | tuple[float, ...],
    norm: Norm | str = "linf",
    steps: int = 100,
    draws: int = 20,
    queries: int = 5000,
    base: keras.Model | None = None,
    parts: tuple[str, ...] | None = None,
    bounds: tuple[float, float] | None = None,
    images: np.ndarray | None = None,
) -> Adaptive:
    """Make the attack that follows from a defense: what an attacker does who knows all of it.

    The parts run one after the other, each on what still stands, and the decision of the whole defense says what has
    fallen: a sample with a wrong label that is not flagged. They are random points of the ball, as a control; APGD on
    the cross-entropy and on the margin of the surface of the defense, in which the detector's score stands as one more
    class, and on each variant of its goal, such as the members alone; APGD and FAB with a target; orthogonal, selective
    and hinge gradients where something is rejected; Square, which sees outputs only; and as floors APGD and MIM on
    each member alone, the parts of AutoAttack and MIM on the undefended classifier, and MIM on a substitute that is
    taught what the defense answers. Of random defenses gradients are averaged over draws, once of the losses and once
    of the probabilities.

    `manifest` tells for each stage by which rule gradients pass it, how many draws are averaged, what is climbed, and
    what is not attacked.

    Args:
        defense: A `Defense`, a built Keras classifier, or a callable from images to logits or probabilities, which is
            attacked by its outputs.
        eps: Radius in input units (write `8 / 255`), above 0. A number, or one for each sample of shape (n,).
        norm: "linf", "l2", "l1", or a `Norm`. FAB and Square know the three names.
        steps: Gradient steps of each part, and random points of the control.
        draws: Draws that gradients, and the answers to Square, are averaged over where a model is random.
        queries: Questions for each sample of Square, as AutoAttack counts them: of a random model a fifth of so many
            points are asked, `draws` times each.
        base: The undefended classifier. None: that of the members' mean probabilities for the real classes.
        parts: Groups of parts that are run: noise, apgd-ce, apgd-margin, refined, apgd-t, orthogonal, selective, hinge,
            fab, cw, square, members, base, substitute. None runs all; a shorter list makes a weaker attack, and the
            manifest says so.
        bounds: `(low, high)`: range of the images. None is that of the defense.
        images: Clean images on which the gradients of the defense are looked at. Where they are useless, others stand
            in for them (`kerasdef.models.repair`), and the manifest says so. None: the first images that are attacked;
            then the manifest of `attack.on(x)` has the findings.

    Raises:
        ValueError: It is none of these, or a setting is out of range.

    Example:
    >>> attack = kerasdef.adaptive(defense, eps=8 / 255)
    >>> result = attack.run(defense, x_test, y_test)
    >>> print(attack.manifest.text()); result.table

    References: Tramèr et al., 2020, https://arxiv.org/abs/2002.08347; Croce and Hein, 2020,
    https://arxiv.org/abs/2003.01690; Bryniarski et al., 2021, https://arxiv.org/abs/2106.15023; Carlini and Wagner,
    2017, https://arxiv.org/abs/1705.07263 (a detector as one more class).
    """
    defense = as_defense(defense)
    bounds = defense.bounds if bounds is None else checks.bounds(bounds)
    return Adaptive(defense, eps, norm, steps, draws, queries, base, parts, bounds, images)
