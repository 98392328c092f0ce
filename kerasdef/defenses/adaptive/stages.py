"""Which parts an attack on a defense has, and how its manifest names them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np

from kerasdef import backend, models
from kerasdef.attacks import (
    APGD,
    BPDA,
    FAB,
    MIM,
    Attack,
    AutoAttack,
    CarliniWagner,
    HingePGD,
    OrthogonalPGD,
    SelectivePGD,
    Square,
)
from kerasdef.defenses.adaptive.parts import (
    Elsewhere,
    Noise,
    Refined,
    Shown,
    mean_of_draws,
    member_view,
    same_outputs,
    undefended,
)
from kerasdef.defenses.adaptive.substitute import Substitute
from kerasdef.defenses.detectors import Detector
from kerasdef.defenses.manifest import Row
from kerasdef.defenses.purifiers import Purifier
from kerasdef.goals import Evade, Goal, Misclassify
from kerasdef.models import Victim
from kerasdef.norms import L1, L2, Linf

FAMILIES = (
    "noise",
    "apgd-ce",
    "apgd-margin",
    "refined",
    "apgd-t",
    "orthogonal",
    "selective",
    "hinge",
    "fab",
    "cw",
    "square",
    "members",
    "base",
    "substitute",
)
_NEAR_FAR = (0.1, 0.9)  # of the radius: what is refined, and what is gone before
_PLAIN_NORMS = (Linf, L2, L1)  # what FAB and Square know
_FIFTH = 5  # AutoAttack asks 5,000 questions, or, of a random model, a fifth of so many, each several times


@dataclass(frozen=True, eq=False)
class Part:
    """A part of the attack.

    Args:
        family: One of `FAMILIES`.
        attack: The attack.
        row: Its row in the manifest.
    """

    family: str
    attack: Attack
    row: Row

    def on(self, x, y) -> Attack:
        """The attack for some data."""
        return self.attack.of_data(x, y) if isinstance(self.attack, Elsewhere) else self.attack


# -- the defense -------------------------------------------------------------------------------------------------


def of_defense(defense) -> tuple[Row, ...]:
    """Rows of the parts of a defense, from its layers."""
    if not isinstance(defense, keras.Model):
        return (Row("outputs", "defense", "none", not_attacked="what is behind the outputs"),)
    rows = [Row("members", "defense", loss="", not_attacked="their weights, which stay as they are")]
    for layer in _layers(defense):
        if isinstance(layer, Detector):
            left = "its fit and its threshold, which stay as they are"
            rows.append(Row(f"detector {type(layer).__name__}", "defense", layer.rule, not_attacked=left))
        elif isinstance(layer, Purifier | BPDA):
            rows.append(Row(f"purifier {type(layer).__name__}", "defense", layer.rule))
    surface = defense.surface()[0]
    if Victim.of(surface).random:
        count = len(backend.seed_variables(surface))
        rows.append(Row(f"random numbers of {count} layers", "defense", "averaged over draws"))
    if defense.learns:
        left = "what it learns from labels that arrive: its state stays as it is"
        rows.append(Row("update", "defense", "none", not_attacked=left))
    return tuple(rows)


NOT_LOOKED = Row("gradients", "defense", not_attacked="whether they are useful: no images are there to look")


def of_finding(finding: models.Finding) -> Row:
    """The row of an operation without a useful gradient."""
    left = "its own gradient: nothing was better" if finding.rule == "none" else ""
    seen = f"{finding.layer} ({finding.kind}): {finding.seen}"
    return Row(seen, "defense", f"{finding.rule}, correlation {finding.fit:.2f}", not_attacked=left)


def _layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model and of those inside of these, each once."""
    seen = set()
    for layer in model._flatten_layers(include_self=False, recursive=True):
        if id(layer) not in seen:
            seen.add(id(layer))
            yield layer


# -- the attack --------------------------------------------------------------------------------------------------


def planned(a) -> tuple[dict[str, Part], tuple[Row, ...]]:
    """The parts of an `Adaptive` by name, in their order, and rows of what cannot be done."""
    maker = _Maker(a)
    parts = {name: part for stage in maker.stages() for name, part in stage.items()}
    return parts, tuple(maker.left)


class _Maker:
    """Makes the parts of one attack."""

    def __init__(self, a):
        self.a = a
        self.defense = a.defense
        self.asked, self.goal = a.defense.surface()
        self.model = self.asked if a.repaired is None else a.repaired.model  # the same answers, and useful gradients
        self.white = isinstance(self.model, keras.Model)
        self.random = self.white and Victim.of(self.model).random
        self.plain = type(a.norm) in _PLAIN_NORMS
        self.ball = {"eps": a.eps, "norm": a.norm, "bounds": a.bounds}
        self.left: list[Row] = []

    def stages(self) -> Iterator[dict[str, Part]]:
        """The parts, stage by stage."""
        yield self.noise()
        if self.white:
            yield self.surface()
        yield self.square()
        if self.white:
            yield self.members()
        yield self.base()
        yield self.substitute()

    def noise(self) -> dict[str, Part]:
        """The control."""
        attack = Noise(queries=self.a.steps + 1, goal=self.goal, **self.ball)
        return {"noise": Part("noise", attack, Row("noise", "outputs", "none", 1, "random points, as a control"))}

    def surface(self) -> dict[str, Part]:
        """Attacks on the defense itself, from one end to the other."""
        a, goal, found = self.a, self.goal, {}
        apgd = APGD(steps=a.steps, **self.ball)
        sources = {"": (self.model, goal)}
        if self.model is not self.asked:
            sources["-as-it-is"] = self.asked, goal
        if self.random:
            sources["-draws"] = mean_of_draws(self.model, goal, a.draws, self.defense.bounds), goal
        for mark, (model, wanted) in sources.items():
            of = {"-draws": " of the mean probabilities over draws", "-as-it-is": " by its own gradients"}.get(mark, "")
            for name, loss in (("apgd-ce", "cross_entropy"), ("apgd-margin", "margin")):
                attack = dataclasses.replace(apgd, loss=loss)
                found[name + mark] = self._shown(
                    name, name + mark, attack, model, wanted, loss + of, averages=mark != "-draws"
                )
        for variant, wanted in goal.variants.items():
            name, attack = f"apgd-margin-{variant}", dataclasses.replace(apgd, loss="margin")
            found[name] = self._shown("apgd-margin", name, attack, self.model, wanted, f"margin, {variant} alone")
        if self.model is not self.asked:
            found["apgd-refined"] = self.refined(dataclasses.replace(apgd, loss="margin", goal=goal))
        targeted = dataclasses.replace(apgd, loss="targeted_dlr")
        found["apgd-t"] = self._shown("apgd-t", "apgd-t", targeted, self.model, goal, "DLR to one class after another")
        if self.defense.reject is not None:
            two = {"early_stop": True, "steps": a.steps, **self.ball}
            for name, cls, loss in (
                ("orthogonal", OrthogonalPGD, "gap, then alarm, each at a right angle to the other"),
                ("selective", SelectivePGD, "gap, then alarm"),
                ("hinge", HingePGD, "gap - weight * max(alarm, 0)"),
            ):
                found[name] = self._shown(name, name, cls(**two), self.model, goal, loss)
        if self.random:
            self.left.append(Row("fab", "defense", "none", 0, "", "FAB follows a boundary, which a random model lacks"))
        elif self.plain:
            fab = FAB(steps=a.steps, targets=9, **self.ball)  # AutoAttack: 9 targets
            found["fab"] = self._shown("fab", "fab", fab, self.model, goal, "boundaries to one class after another")
            if isinstance(a.norm, L2):
                cw = CarliniWagner(steps=a.steps, bounds=a.bounds)
                found["cw"] = self._shown("cw", "cw", cw, self.model, goal, "margin, smallest change")
        return found

    def refined(self, apgd: APGD) -> Part:
        """Most of the way by the gradients that stand in, and the rest by the defense's own."""
        near, far = (tuple(s * np.asarray(self.a.eps)) if np.ndim(self.a.eps) else s * self.a.eps for s in _NEAR_FAR)
        draws = self.a.draws if self.random else 1
        coarse = dataclasses.replace(apgd, eps=far, samples=draws, early_stop=False)
        fine = dataclasses.replace(apgd, eps=near, samples=draws)
        models_ = {"source": self.model, "own": self.asked}
        attack = Refined(coarse, self.goal, norm=self.a.norm, eps=self.a.eps, fine=fine, **models_)
        loss = "margin; then, in a tenth of the radius, by its own gradients"
        return Part("refined", attack, Row("apgd-refined", "defense", _rule(self.model), draws, loss))

    def square(self) -> dict[str, Part]:
        """Outputs alone."""
        if not self.plain:
            self.left.append(Row("square", "outputs", "none", 0, "", f"Square does not know {self.a.norm.title}"))
            return {}
        times = self.a.draws if self.random else 1
        count = max(1, self.a.queries // _FIFTH) * times if self.random else self.a.queries
        attack = Square(queries=max(count, times), samples=times, rescale=self.random, goal=self.goal, **self.ball)
        return {"square": Part("square", attack, Row("square", "outputs", "none", times, "margin"))}

    def members(self) -> dict[str, Part]:
        """Each member alone, with its own rejecting class where it has one."""
        found = {}
        others = "the rest of the defense"
        for i, member in enumerate(self.defense.members, 1):
            view = member_view(member, self.defense.bounds)
            if same_outputs(view, self.model, self.defense.bounds):
                self.left.append(Row("members", "defense", "none", 0, "", "nothing: the defense is its one member"))
                return {}
            rejects = self.defense.reject is not None and view.output_shape[-1] > self.defense.reject
            goal = Evade(self.defense.reject) if rejects else Misclassify()
            on = f"member {i} ({member.name})"
            for name, attack, loss in (
                ("apgd", APGD(steps=self.a.steps, loss="margin", early_stop=False, **self.ball), "margin"),
                ("mim", MIM(steps=self.a.steps, early_stop=False, **self.ball), "cross_entropy"),
            ):
                name = f"member-{i}-{name}"
                found[name] = self._shown("members", name, attack, view, goal, loss, on=on, left=others)
        return found

    def base(self) -> dict[str, Part]:
        """The classifier without its defense: AutoAttack's parts, and one that transfers well."""
        model = self._base()
        if model is None:
            return {}
        a = self.a
        parts = AutoAttack(**self.ball).attacks() if self.plain else {}
        found = {"mim": MIM(steps=a.steps, early_stop=False, **self.ball)}
        for name, attack in parts.items():
            limit = "queries" if name == "square" else "steps"
            least = min(getattr(attack, limit), getattr(a, limit))
            found[name] = dataclasses.replace(attack, **{limit: least})
        on, left = f"undefended ({model.name})", "all of the defense"
        losses = {"mim": "cross_entropy"}
        return {
            f"base-{name}": self._shown(
                "base",
                f"base-{name}",
                attack,
                model,
                Misclassify(),
                losses.get(name, f"as AutoAttack's {name}"),
                on=on,
                left=left,
            )
            for name, attack in found.items()
        }

    def _base(self) -> keras.Model | None:
        """The undefended classifier, or None where it is not known or is the defense itself."""
        defense = self.defense
        if self.a.base is not None:
            return member_view(self.a.base, models.input_bounds(self.a.base) or defense.bounds)
        if not (self.white and defense.members):
            self.left.append(Row("base", "", "none", 0, "", "an undefended classifier, as none was given"))
            return None
        model = undefended(defense.members, defense.classes, defense.bounds)
        if same_outputs(model, self.model, defense.bounds):
            self.left.append(Row("base", "", "none", 0, "", "an undefended classifier, as none was given"))
            return None
        return model

    def substitute(self) -> dict[str, Part]:
        """A net that learns what the defense answers."""
        reject = self.defense.reject
        goal: Goal = Misclassify() if reject is None else Evade(reject)
        attack = MIM(steps=self.a.steps, early_stop=False, goal=goal, **self.ball)
        found = Substitute(attack, self.goal, eps=self.a.eps, norm=self.a.norm)
        row = Row(
            "substitute",
            "a net taught by the defense",
            "its own",
            1,
            "cross_entropy",
            "the defense, but by its answers",
        )
        return {"substitute": Part("substitute", found, row)}

    def _shown(self, family, name, attack, model, goal: Goal, loss, *, on="defense", left="", averages=True) -> Part:
        """A part that is made on a Keras model."""
        draws = self.a.draws if Victim.of(model).random else 1
        if draws > 1 and averages:
            attack = dataclasses.replace(attack, **({"samples": draws} if attack.access == "white box" else {}))
        made = Shown(attack.with_goal(goal), self.goal, source=model, norm=self.a.norm, eps=self.a.eps)
        gradient = "none" if attack.access == "black box" else _rule(model)
        return Part(family, made, Row(name, on, gradient, draws, loss, left))


def _rule(model: keras.Model) -> str:
    """How gradients pass a model, in words."""
    told = [layer for layer in _layers(model) if isinstance(layer, Detector | Purifier | BPDA)]
    return "; ".join(dict.fromkeys(layer.rule for layer in told if layer.rule != "exact")) or "exact"
