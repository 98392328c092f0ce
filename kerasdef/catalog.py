"""What there is, as data: lists and help come from here without importing a framework."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


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
        settings: Its own settings and their defaults; `kerasdef.recipes.robust.methods` says what they mean.
    """

    summary: str
    paper: str
    settings: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        """The settings in words, as the command line takes them."""
        return ", ".join(f"{k}={_plain(v)}" for k, v in self.settings.items())


def _plain(value) -> str:
    if isinstance(value, tuple):
        return f"({','.join(repr(v) if isinstance(v, str) else _plain(v) for v in value)})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


_RADIUS = {"ramp": 0.2, "awp": 0.0}
_STAGES = {"radii": (1 / 3, 2 / 3, 1.0), "steps": (2, 3, 5), "shares": (0.2, 0.2, 0.6), "beta": 6.0}


METHODS = {
    "standard": MethodInfo("Cross-entropy on clean images: the baseline without a defense.", ""),
    "pgd": MethodInfo("Adversarial training on PGD images.", "Madry et al., 2018", {"steps": 7} | _RADIUS),
    "trades": MethodInfo(
        "Clean loss and the divergence of the outputs around each image.",
        "Zhang et al., 2019",
        {"steps": 10, "beta": 6.0} | _RADIUS,
    ),
    "mart": MethodInfo(
        "Adversarial training that weighs images the model is unsure of.",
        "Wang et al., 2020",
        {"steps": 10, "weight": 5.0} | _RADIUS,
    ),
    "fast": MethodInfo(
        "One step from a random start, guarded against its collapse.",
        "Wong et al., 2020",
        {"length": 1.25, "guard": True, "most": 3} | _RADIUS,
    ),
    "free": MethodInfo("One backward pass moves the weights and the images.", "Shafahi et al., 2019", {"replays": 4}),
    "ensemble": MethodInfo(
        "One step on other trained networks and on the model in turn.",
        "Tramer et al., 2018",
        {"sources": ("target_dnn", "vgg7"), "weight": 0.5} | _RADIUS,
    ),
    "bilateral": MethodInfo(
        "One step on the images and one on the labels.", "Wang and Zhang, 2019", {"eps_y": 0.5} | _RADIUS
    ),
    "parseval": MethodInfo("Kernels kept near orthonormal, clean images.", "Cisse et al., 2017"),
    "denoising": MethodInfo(
        "A network with denoising blocks, trained on PGD images.", "Xie et al., 2019", {"steps": 7} | _RADIUS
    ),
    "distillation": MethodInfo(
        "Defensive distillation at a high temperature.", "Papernot et al., 2016", {"temperature": 20.0}
    ),
    "multistage": MethodInfo(
        "TRADES with AutoPGD in stages of growing radius and effort.",
        "Wen et al., 2025",
        _STAGES | {"attack": "apgd", "objective": "trades", "awp": 0.0},
    ),
}
