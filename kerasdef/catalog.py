"""The attacks that there are, as data: lists and help come from here without importing a framework."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttackInfo:
    """An attack in a list.

    Args:
        cls: Name of its class in `kerasdef.attacks`.
        norms: Norms it works in.
        access: What it needs of the model: "white box" (gradients), "black box" (scores or labels).
        kind: "budget" (the strongest input within eps) or "minimal" (the smallest change that is enough).
        paper: Source.
    """

    cls: str
    norms: tuple[str, ...]
    access: str
    kind: str
    paper: str


NORMS = ("linf", "l2", "l1")  # names that `kerasdef.norms` knows
_WHITE, _BLACK = "white box", "black box"

ATTACKS = {
    "fgsm": AttackInfo("FGSM", NORMS, _WHITE, "budget", "Goodfellow et al., 2015"),
    "bim": AttackInfo("BIM", NORMS, _WHITE, "budget", "Kurakin et al., 2017"),
    "pgd": AttackInfo("PGD", NORMS, _WHITE, "budget", "Madry et al., 2018"),
    "mim": AttackInfo("MIM", NORMS, _WHITE, "budget", "Dong et al., 2018"),
    "nim": AttackInfo("NIM", NORMS, _WHITE, "budget", "Lin et al., 2020"),
    "apgd": AttackInfo("APGD", NORMS, _WHITE, "budget", "Croce and Hein, 2020 and 2021"),
    "autoattack": AttackInfo("AutoAttack", NORMS, _WHITE, "budget", "Croce and Hein, 2020"),
    "fab": AttackInfo("FAB", NORMS, _WHITE, "minimal", "Croce and Hein, 2020"),
    "deepfool": AttackInfo("DeepFool", ("l2", "linf"), _WHITE, "minimal", "Moosavi-Dezfooli et al., 2016"),
    "fmn": AttackInfo("FMN", NORMS, _WHITE, "minimal", "Pintor et al., 2021"),
    "carlini_wagner": AttackInfo("CarliniWagner", ("l2",), _WHITE, "minimal", "Carlini and Wagner, 2017"),
    "carlini_wagner_linf": AttackInfo("CarliniWagnerLinf", ("linf",), _WHITE, "minimal", "Carlini and Wagner, 2017"),
    "gma": AttackInfo("GMA", ("linf", "l2"), _WHITE, "budget", "Sanapala and Gondi, 2025"),
    "orthogonal_pgd": AttackInfo("OrthogonalPGD", NORMS, _WHITE, "budget", "Bryniarski et al., 2021"),
    "selective_pgd": AttackInfo("SelectivePGD", NORMS, _WHITE, "budget", "Bryniarski et al., 2021"),
    "hinge_pgd": AttackInfo("HingePGD", NORMS, _WHITE, "budget", "Carlini and Wagner, 2017"),
    "square": AttackInfo("Square", NORMS, _BLACK, "budget", "Andriushchenko et al., 2020"),
    "nes": AttackInfo("NES", NORMS, _BLACK, "budget", "Ilyas et al., 2018"),
    "spsa": AttackInfo("SPSA", NORMS, _BLACK, "budget", "Uesato et al., 2018"),
    "hop_skip_jump": AttackInfo("HopSkipJump", ("l2", "linf"), _BLACK, "minimal", "Chen et al., 2020"),
    "zoo": AttackInfo("ZOO", ("l2",), _BLACK, "minimal", "Chen et al., 2017"),
}
