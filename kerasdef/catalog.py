"""What there is, as data: lists and help come from here without importing a framework."""

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


_ALL = ("linf", "l2", "l1")
_WHITE, _BLACK = "white box", "black box"

ATTACKS = {
    "fgsm": AttackInfo("FGSM", _ALL, _WHITE, "budget", "Goodfellow et al., 2015"),
    "bim": AttackInfo("BIM", _ALL, _WHITE, "budget", "Kurakin et al., 2017"),
    "pgd": AttackInfo("PGD", _ALL, _WHITE, "budget", "Madry et al., 2018"),
    "mim": AttackInfo("MIM", _ALL, _WHITE, "budget", "Dong et al., 2018"),
    "nim": AttackInfo("NIM", _ALL, _WHITE, "budget", "Lin et al., 2020"),
    "apgd": AttackInfo("APGD", _ALL, _WHITE, "budget", "Croce and Hein, 2020 and 2021"),
    "autoattack": AttackInfo("AutoAttack", _ALL, _WHITE, "budget", "Croce and Hein, 2020"),
    "fab": AttackInfo("FAB", _ALL, _WHITE, "minimal", "Croce and Hein, 2020"),
    "deepfool": AttackInfo("DeepFool", ("l2", "linf"), _WHITE, "minimal", "Moosavi-Dezfooli et al., 2016"),
    "fmn": AttackInfo("FMN", _ALL, _WHITE, "minimal", "Pintor et al., 2021"),
    "carlini_wagner": AttackInfo("CarliniWagner", ("l2",), _WHITE, "minimal", "Carlini and Wagner, 2017"),
    "carlini_wagner_linf": AttackInfo("CarliniWagnerLinf", ("linf",), _WHITE, "minimal", "Carlini and Wagner, 2017"),
    "gma": AttackInfo("GMA", ("linf", "l2"), _WHITE, "budget", "Sanapala and Gondi, 2025"),
    "square": AttackInfo("Square", _ALL, _BLACK, "budget", "Andriushchenko et al., 2020"),
    "nes": AttackInfo("NES", _ALL, _BLACK, "budget", "Ilyas et al., 2018"),
    "spsa": AttackInfo("SPSA", _ALL, _BLACK, "budget", "Uesato et al., 2018"),
    "hop_skip_jump": AttackInfo("HopSkipJump", ("l2", "linf"), _BLACK, "minimal", "Chen et al., 2020"),
    "zoo": AttackInfo("ZOO", ("l2",), _BLACK, "minimal", "Chen et al., 2017"),
}


@dataclass(frozen=True)
class MethodInfo:
    """A way to train a robust classifier, in a list.

    Args:
        summary: What it does, in a sentence.
        paper: Source.
    """

    summary: str
    paper: str


METHODS = {
    "standard": MethodInfo("Cross-entropy on clean images: the baseline without a defense.", ""),
    "pgd": MethodInfo("Adversarial training on PGD images.", "Madry et al., 2018"),
    "trades": MethodInfo("Clean loss and the divergence of the outputs around each image.", "Zhang et al., 2019"),
    "mart": MethodInfo("Adversarial training that weighs images the model is unsure of.", "Wang et al., 2020"),
    "fast": MethodInfo("One step from a random start, guarded against its collapse.", "Wong et al., 2020"),
    "free": MethodInfo("One backward pass moves the weights and the images.", "Shafahi et al., 2019"),
    "ensemble": MethodInfo("One step on other trained networks and on the model in turn.", "Tramer et al., 2018"),
    "bilateral": MethodInfo("One step on the images and one on the labels.", "Wang and Zhang, 2019"),
    "parseval": MethodInfo("Kernels kept near orthonormal, clean images.", "Cisse et al., 2017"),
    "denoising": MethodInfo("A network with denoising blocks, trained on PGD images.", "Xie et al., 2019"),
    "distillation": MethodInfo("Defensive distillation at a high temperature.", "Papernot et al., 2016"),
    "multistage": MethodInfo("TRADES with AutoPGD in stages of growing radius and effort.", "Wen et al., 2025"),
}
