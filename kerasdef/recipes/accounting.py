"""What a defense is worth, in one table: beside its base model, its best member, and what a prediction costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kerasdef.attacks import FGSM, PGD, Attack, AutoAttack, CarliniWagner
from kerasdef.attacks.sequence import WRONG, SequenceResult
from kerasdef.defenses.adaptive import Adaptive, adaptive
from kerasdef.evaluation import Outcome, Planned, auroc, mcnemar, tpr_at_fpr, wilson
from kerasdef.evaluation.outcomes import POOLED, fooled
from kerasdef.reporting import Report, Section
from kerasdef.reporting.words import share
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store

RATES = (0.01, 0.05, 0.10)  # false positive rates that detection is reported at
QUICK = ("apgd-ce", "apgd-margin", "refined", "selective", "members")  # the strongest parts for their time


def paper_attacks(
    eps: float, *, bounds: tuple[float, float] = (0.0, 1.0), autoattack: bool = True
) -> dict[str, Attack]:
    """The attacks of the hybrid paper (section 4.1) at a Linf radius; Carlini and Wagner's has no radius.

    Its 100 steps for each of 3 values of c find a change for nearly every image of an undefended network; the authors
    take up to 10,000.
    """
    ball = {"eps": eps, "bounds": bounds}
    found = {
        "fgsm": FGSM(**ball),
        "pgd": PGD(steps=20, **ball),
        "cw": CarliniWagner(steps=100, binary_search_steps=3, initial_c=1.0, learning_rate=0.1, bounds=bounds),
    }
    return found | ({"autoattack": AutoAttack(**ball)} if autoattack else {})


def attacker(
    name: str,
    model: keras.Model,
    x: np.ndarray,
    eps: float,
    steps: int,
    *,
    seed: int,
    parts: tuple[str, ...] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Planned:
    """The attack that follows from a model, be it a defense or one of its members: the same parts for all.

    Args:
        name: Name of the model, in the name of the piece.
        model: A defense or a classifier.
        x: The images that are attacked, the first ones of the plan.
        eps: Linf radius.
        steps: Steps of each part.
        seed: Seed of the run.
        parts: Groups of parts that are run, as `kerasdef.adaptive` names them; None runs all.
        bounds: Range of the data.
    """
    attack = adaptive(model, eps=eps, steps=steps, parts=parts, images=x, bounds=bounds)
    place = {"piece": f"adaptive/{name}", "phase": f"adaptive attack on {name}"}
    return Planned(attack, seed=derive(seed, "adaptive"), batch_size=256, count=len(x), **place)


def manifest(pieces: Store, name: str, attack: Adaptive, result: SequenceResult) -> Section:
    """What the attack on a defense did and did not do, and how many images each part broke.

    Args:
        pieces: Keeps it.
        name: Name of the defense.
        attack: The attack.
        result: What it found.
    """

    def make():
        broke = dict(zip(result.table["attack"], result.table["broken"].tolist(), strict=True))
        return {}, {"rows": [{**row, "broke": broke.get(row["stage"])} for row in attack.manifest.records()]}

    rows = pieces.get(f"manifest/{name}", make, phase=f"adaptive attack on {name}", judging=True)[1]["rows"]
    wrong = int(np.sum(result.broken_by == WRONG))
    text = f"On {len(result.success)} images, each part on what still stands; {wrong} are wrong from the start."
    return Section("manifest", "What was attacked, and what was not", text, rows)


@dataclass(frozen=True, eq=False)
class Shown:
    """Images of an attack as a detector sees them.

    Args:
        source: Name of the model that they were made on.
        scores: Scores of all of them, of shape (n,).
        fooled: Which of them fooled that model, and were right before, booleans of shape (n,).
    """

    source: str
    scores: np.ndarray
    fooled: np.ndarray


def succeeded(clean: Outcome, attacked: Outcome) -> np.ndarray:
    """Which attacked images fooled the model that they were made on, of those that it got right.

    Args:
        clean: Its outcome on clean images, those that were attacked among them.
        attacked: Its outcome on the attacked images.
    """
    right = clean.index[clean.predicted == clean.y]
    return fooled(attacked, None) & np.isin(attacked.index, right)


def detection(clean: np.ndarray, shown: Mapping[str, Shown]) -> Section:
    """Detection at fixed false positive rates, of images that fooled the model that they were made on.

    Args:
        clean: Scores of clean test images.
        shown: The attacked images by attack.
    """
    rows = []
    for name, one in shown.items():
        scores = one.scores[one.fooled]
        row = {"attack": name, "made on": one.source, "attacked": len(one.scores), "fooled it": len(scores)}
        for rate in RATES:
            row[f"detected at {rate:.0%} FPR"] = share(tpr_at_fpr(clean, scores, rate)) if len(scores) else "-"
        row["AUROC"] = share(auroc(clean, scores)) if len(scores) else "-"
        rows.append(row)
    text = (
        f"Shares in %, as the paper did it: the attacker does not know the defense. Thresholds are those that flag the "
        f"given share of {len(clean)} clean test images. Images that did not fool the model that they were made on do "
        "not count."
    )
    return Section("detection", "Detection at fixed false positive rates", text, rows)


def standing(report: Report, model: str) -> tuple[np.ndarray, np.ndarray]:
    """The test images that all adaptive attacks on a model met, and which of them it withstands and gets right."""
    names = report.attacks("adaptive", model)
    met = [report.outcome(model, name, "adaptive") for name in names]
    clean = report.clean(model, "adaptive")
    index = clean.index[np.all([np.isin(clean.index, o.index) for o in met], axis=0)]
    good = np.isin(index, clean.index[clean.predicted == clean.y])
    for o in met:
        good &= ~np.isin(index, o.index[fooled(o, report.rejects(model))])
    return index, good


def accounting(
    report: Report,
    *,
    members: Sequence[str] = (),
    base: str | None = None,
    transfer: Sequence[str] = (),
    answered: float | None = None,
    certified: Mapping[float, float] | None = None,
) -> Section:
    """Everything that a defense claims, beside what it is compared with.

    Args:
        report: Its outcomes and those of the models that it is compared with, which met the same adaptive attacks.
        members: Names of its members alone.
        base: Name of the member that stands for the base model.
        transfer: Names of the attacks of the paper column that were made on the base.
        answered: Share of clean images that get the true label where flagged images are answered too.
        certified: Certified accuracy by radius, where it is known.
    """
    rows, main = [], report.main

    def row(what: str, value: str, n: int) -> None:
        rows.append({"what": what, "%": value, "images": n})

    def of(model: str, attack: str, column: str, name: str) -> tuple[str, int]:
        found = report.row(model, attack, column)
        if f"{name}_low" in found:
            return _interval(*[found[f"{name}{end}"] for end in ("", "_low", "_high")]), found["n_images"]
        return share(found[name]), found["n"]

    clean = report.clean(main)
    rejects = report.rejects(main)
    text = "clean accuracy" + (", flagged images are wrong" if rejects is not None else "")
    row(text, _counted(clean.predicted == clean.y), len(clean))
    if rejects is not None:
        row("clean images flagged", _counted(clean.predicted == rejects), len(clean))
    if answered is not None:
        row("clean accuracy, flagged images are answered too", share(answered), len(clean))
    for attack in report.attacks("paper", main):
        o = report.outcome(main, attack)
        detected = f", flagged {share(float(np.mean(o.predicted == rejects)))}" if rejects is not None else ""
        lost = _counted(~fooled(o, rejects))
        where = "transfer from the base" if attack in transfer else "as the paper did it"
        row(f"{where}, {attack}: not fooled{detected}", lost, len(o))
    for radius, value in (certified or {}).items():
        row(f"certified at L2 radius {radius:g}", share(value), len(clean))
    if report.attacks("adaptive", main):
        row("adaptive: right and not broken by any attack", *of(main, POOLED, "adaptive", "robust_accuracy"))
        if rejects is not None:
            row(
                "adaptive: not fooled, those among them that are flagged when clean",
                *of(main, POOLED, "adaptive", "not_fooled"),
            )
        if base is not None:
            row(f"base model {base} alone, attacked as strongly", *of(base, POOLED, "adaptive", "robust_accuracy"))
        if members:
            rows += _beside_best(report, members)
    text = "Shares with 95 % intervals. The adaptive rows, and only these, speak of robustness."
    return Section("accounting", f"What {main} is worth", text, rows)


def _beside_best(report: Report, members: Sequence[str]) -> list[dict]:
    """The best member alone, and a paired test of the defense against it."""
    found = {name: standing(report, name) for name in members}
    best = max(members, key=lambda name: found[name][1].mean())
    index, good = standing(report, report.main)
    both, mine, theirs = np.intersect1d(index, found[best][0], return_indices=True)
    test = mcnemar(good[mine], found[best][1][theirs])
    gain, p = 100 * test["difference"], test["p_value"]
    verdict = "adds" if p < 0.05 and gain > 0 else "costs" if p < 0.05 else "adds nothing that can be told from chance"
    points = f" {abs(gain):.1f} points" if p < 0.05 else f" ({gain:+.1f} points)"
    alone = _counted(found[best][1])
    return [
        {"what": f"best member alone, {best}, attacked as strongly", "%": alone, "images": len(found[best][0])},
        {"what": f"the defense {verdict}{points}, p = {p:.2g} (McNemar)", "%": f"{gain:+.1f}", "images": len(both)},
    ]


def _counted(good: np.ndarray) -> str:
    low, high = wilson(int(np.sum(good)), len(good))
    return _interval(float(np.mean(good)), low, high)


def _interval(value: float, low: float, high: float) -> str:
    return f"{share(value)} [{share(low)}, {share(high)}]"
