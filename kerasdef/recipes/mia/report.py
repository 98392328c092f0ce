"""How the MIA recipe judges: what every model says of the test images, and the report made of it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kerasdef import models
from kerasdef.attacks import GMA, PGD, GradientAttack
from kerasdef.datasets import Dataset
from kerasdef.defenses import Voting
from kerasdef.evaluation import Images, Outcome, Plan, Planned, evaluate
from kerasdef.norms import Norm
from kerasdef.recipes.mia.result import MIA
from kerasdef.recipes.mia.sets import AdversarialSet, l2_radii, portion
from kerasdef.recipes.mia.settings import ADAPTIVE_STEP, RADII, MIASettings
from kerasdef.reporting import Report
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store

_CYCLE = re.compile(r"(.+)/cycle(\d+)")
_VOTER = re.compile(r"voter\d+")


@dataclass(frozen=True)
class Rule:
    """What the stop rule said, in the first cycle where it fired or else in the last.

    Args:
        fired: Whether every EAT model was above the threshold on every attack.
        cycle: Number of the cycle, from 1.
        share: Share of adversarial images in it.
        accuracies: Accuracies by EAT model and attack.
    """

    fired: bool
    cycle: int
    share: float
    accuracies: dict[str, dict[str, float]]


@dataclass(frozen=True)
class Judge:
    """The test images of a run, clean and attacked.

    Args:
        data: The data set.
        settings: Settings of the run.
        sets: The images of each attack, by attack and split.
        rows: Test images to judge on.
        norms: Norm of each attack, where it is known.
    """

    data: Dataset
    settings: MIASettings
    sets: Mapping[str, Mapping[str, AdversarialSet]]
    rows: np.ndarray
    norms: Mapping[str, Norm | None]

    def paper(self, label: str, defense: keras.Model) -> list[Outcome]:
        """Outcomes of a model on the clean test images and on every attack's.

        Args:
            label: Name of the model.
            defense: The model.
        """
        return evaluate(defense, self.data, Plan(label, self.rows, paper=self.made(label))).outcomes

    def made(self, label: str) -> dict[str, Images]:
        """The images of every attack, which were made on the target."""
        access = "gradients" if label == "target" else "none"
        return {
            name: Images(splits["test"].x, splits["test"].index, splits["test"].radius, self.norms.get(name), access)
            for name, splits in self.sets.items()
        }

    def defense(self, pieces: Store, voting: Voting, prefix: str, show: bool | None) -> list[Outcome]:
        """Outcomes of the vote: on the attacks' images, and under attackers who see it whole.

        Those want a label that is neither the true one nor K.
        """
        count = min(len(self.rows), self.settings.adaptive_limit)
        adaptive = {}
        for name, attack in self.adaptive_attacks(count).items():
            seed = derive(self.settings.seed, prefix, "adaptive", name)
            place = {"piece": f"{prefix}adaptive/{name}", "phase": "adaptive attacks"}
            adaptive[name] = Planned(attack, seed=seed, batch_size=128, count=count, **place)
        plan = Plan("mia", self.rows, paper=self.made("mia"), adaptive=adaptive)
        return evaluate(voting, self.data, plan, pieces, progress=show).outcomes

    def adaptive_attacks(self, n: int) -> dict[str, GradientAttack]:
        """PGD and margin-loss PGD at the paper's L2 radii, and margin-loss PGD at the thirty radii of GMA.

        They start at the image and take long steps. From a random point of the ball the vote says "adversarial" at
        once and its gradients lead nowhere: such attacks fool almost nothing and make the defense look robust.
        """
        l2 = np.resize(np.asarray(l2_radii(math.prod(self.data.input_shape))), n)
        thirty = GMA().radii_of(n)
        common = {
            "steps": self.settings.adaptive_steps,
            "random_start": False,
        }
        return {
            "pgd": PGD(eps=l2, norm="l2", relative_step=ADAPTIVE_STEP["l2"], **common),
            "margin_pgd": PGD(eps=l2, norm="l2", relative_step=ADAPTIVE_STEP["l2"], loss="margin", **common),
            "gma": PGD(eps=thirty, norm="linf", relative_step=ADAPTIVE_STEP["linf"], loss="margin", **common),
        }

    def examples(self, target: keras.Model) -> dict:
        """A test image of each of up to eight classes that every attack changed, and what the attacks made of it."""
        tests = {name: splits["test"] for name, splits in self.sets.items()}
        common = set.intersection(*[set(s.index.tolist()) for s in tests.values()])
        largest = [s.by_index for s in tests.values()]
        rows, classes = [], set()
        for row in sorted(common, key=lambda r: -max(by.get(r, 0.0) for by in largest)):
            label = int(self.data.y_test[row])
            if label not in classes and len(rows) < 8:
                classes.add(label)
                rows.append(row)
        rows = sorted(rows, key=lambda r: self.data.y_test[r])
        if not rows or len(self.data.input_shape) != 3:
            return {}
        shown, predicted = {}, {}
        for name, s in tests.items():
            where = {int(i): j for j, i in enumerate(s.index)}
            shown[name] = s.x[[where[r] for r in rows]]
            predicted[name] = models.predict_logits(target, shown[name]).argmax(axis=1)
        x, y = self.data.x_test[rows], self.data.y_test[rows]
        return {"images": x, "attacks": shown, "labels": y, "predicted": predicted}

    def notes(self, rule: Rule, share: float) -> list[str]:
        """What a reader should know; the first says what the stop rule did."""
        s = self.settings
        asked = f"every EAT model above {s.threshold:.0%} over {self.data.classes + 1} classes on every attack"
        if rule.fired:
            did = f"fired in cycle {rule.cycle}, at a share of {rule.share:.0%} adversarial images"
        else:
            lowest, where = min((v, f"{r} on {n}") for r, by in rule.accuracies.items() for n, v in by.items())
            did = f"did not fire: the lowest accuracy in the last cycle was {lowest:.1%} ({where})"
        tests = {name: splits["test"] for name, splits in self.sets.items()}
        left_out = [f"{n}: {t.wrong} of {t.asked} wrong before, {t.unmoved} unchanged" for n, t in tests.items()]
        n = min(len(self.rows), s.adaptive_limit)
        return [
            f"The stop rule ({asked}) {did}. The voters were trained at {share:.0%}.",
            f"Attacks are made on the target, on test images that it gets right; left out are {'; '.join(left_out)}.",
            f"L2 radii {', '.join(f'{r:g}' for r in RADII)} are for 28x28 images and are scaled by sqrt(d / 784).",
            f"The adaptive attacks ran on {n} test images, {s.adaptive_steps} steps.",
        ]

    def flags(self, rule: Rule) -> list[str]:
        """Signs that the run is weak."""
        found = [] if rule.fired else ["The stop rule did not fire at any share."]
        for name, splits in self.sets.items():
            asked = portion(self.data.n_train, self.settings.shares[-1], list(self.sets), name)
            there = len(splits["train"])
            if there < asked:
                found.append(
                    f"The largest share asks for {asked} training images of {name}; the attack gave {there}, "
                    "so the larger shares are not met."
                )
        return found

    def report(self, outcomes: Sequence[Outcome], target: keras.Model, rule: Rule, share: float, **run) -> Report:
        """The report of one defense.

        Args:
            outcomes: Outcomes of every model.
            target: The undefended model.
            rule: What the stop rule said.
            share: Share of adversarial images that the voters were trained at.
            run: `settings`, `phases` and `history` as `Report` takes them.
        """
        return _report(
            self.data,
            outcomes,
            seed=self.settings.seed,
            main="mia",
            hidden=hidden(list(dict.fromkeys(o.model for o in outcomes))),
            examples=self.examples(target),
            notes=self.notes(rule, share),
            flags=self.flags(rule),
            **run,
        )


def joint_report(data: Dataset, parts: Mapping[str, MIA], **run) -> Report:
    """One report of several defenses, each named after its attack.

    Args:
        data: The data set.
        parts: The defenses by the name of their attack.
        run: `settings`, `seed` and `phases` as `Report` takes them.
    """
    outcomes, history, notes, flags = [], {}, [], []
    for name, part in parts.items():
        for o in part.report.outcomes:
            if o.model == "mia":
                outcomes.append(dataclasses.replace(o, model=f"mia-{name}"))
            elif o.model == "target" and not any(p.model == "target" and p.attack == o.attack for p in outcomes):
                outcomes.append(o)
        history |= {f"{name}:{label}": h for label, h in part.history.items() if label != "target"}
        notes.append(f"{name}: {part.report.notes[0]}")
        flags += [f"{name}: {f}" for f in part.report.flags]
    notes.append(f"The first table, the examples and the detector's curve are those of the defense against {name}.")
    outcomes.sort(key=lambda o: o.model != "target")
    examples = list(parts.values())[-1].report.examples
    return _report(data, outcomes, history=history, examples=examples, notes=notes, flags=flags, **run)


def _report(data: Dataset, outcomes: Sequence[Outcome], **rest) -> Report:
    facts = {"class_names": data.class_names, "dataset": data.name, "bounds": data.bounds}
    return Report(outcomes, classes=data.classes, reject=data.classes, **facts, **rest)


def hidden(models: Sequence[str]) -> list[str]:
    """Return the models of a run that short tables leave out: voters, and EAT models of all cycles but the last."""
    cycles = {}
    for name in models:
        if found := _CYCLE.fullmatch(name):
            cycles.setdefault(found[1], []).append((int(found[2]), name))
    earlier = {name for found in cycles.values() for _, name in sorted(found)[:-1]}
    return [name for name in models if name in earlier or _VOTER.fullmatch(name)]
