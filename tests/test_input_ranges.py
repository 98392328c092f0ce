"""Attacks do in any range of input values what they do in [0, 1]: lengths are measured by the span of the bounds."""

import inspect

import keras
import numpy as np
import pytest
from helpers import quiet_run

from kerasdef import attacks
from kerasdef.attacks import (
    APGD,
    BIM,
    FAB,
    FGSM,
    FMN,
    GMA,
    MIM,
    NES,
    NIM,
    PGD,
    SPSA,
    ZOO,
    AutoAttack,
    CarliniWagner,
    CarliniWagnerLinf,
    Cycled,
    DeepFool,
    GradientAttack,
    HingePGD,
    HopSkipJump,
    OrthogonalPGD,
    Quantized,
    Restarts,
    SelectivePGD,
    Square,
    Targeted,
    Transfer,
    WorstOf,
)

TOP = 255.0


def _make(name, span, model):
    """An attack by name, its lengths in a range of this width."""
    bounds = (0.0, span)
    eps = 0.1 * span
    gradient = {"eps": eps, "bounds": bounds, "steps": 8}
    return {
        "GradientAttack": lambda: GradientAttack(**gradient),
        "FGSM": lambda: FGSM(eps=eps, bounds=bounds),
        "BIM": lambda: BIM(**gradient),
        "PGD": lambda: PGD(**gradient),
        "PGD-l2": lambda: PGD(eps=0.5 * span, norm="l2", bounds=bounds, steps=8, step_size=0.1 * span),
        "PGD-l1": lambda: PGD(eps=2.0 * span, norm="l1", bounds=bounds, steps=8),
        "MIM": lambda: MIM(**gradient),
        "NIM": lambda: NIM(**gradient),
        "APGD": lambda: APGD(**gradient),
        "APGD-l1": lambda: APGD(eps=2.0 * span, norm="l1", bounds=bounds, steps=8),
        "OrthogonalPGD": lambda: OrthogonalPGD(**gradient),
        "SelectivePGD": lambda: SelectivePGD(**gradient),
        "HingePGD": lambda: HingePGD(**gradient),
        "FAB": lambda: FAB(steps=8, bounds=bounds),
        "FAB-l1": lambda: FAB(norm="l1", steps=8, bounds=bounds),
        "DeepFool": lambda: DeepFool(bounds=bounds),
        "FMN": lambda: FMN(steps=20, bounds=bounds),
        "FMN-l2": lambda: FMN(norm="l2", steps=20, bounds=bounds),
        "CarliniWagner": lambda: CarliniWagner(steps=60, binary_search_steps=2, initial_c=0.1, bounds=bounds),
        "CarliniWagnerLinf": lambda: CarliniWagnerLinf(steps=20, initial_c=0.1, largest_c=1.0, bounds=bounds),
        "GMA": lambda: GMA(bounds=bounds),
        "Square": lambda: Square(eps=eps, queries=100, bounds=bounds),
        "Square-l2": lambda: Square(eps=0.5 * span, norm="l2", queries=100, bounds=bounds),
        "HopSkipJump": lambda: HopSkipJump(queries=400, bounds=bounds),
        "NES": lambda: NES(eps=eps, queries=160, bounds=bounds),
        "SPSA": lambda: SPSA(eps=eps, queries=400, bounds=bounds),
        "ZOO": lambda: ZOO(queries=3000, bounds=bounds),
        "AutoAttack": lambda: AutoAttack(eps=eps, version="custom", parts=("apgd-ce",), bounds=bounds),
        "WorstOf": lambda: WorstOf((BIM(**gradient), PGD(**gradient))),
        "Restarts": lambda: Restarts(PGD(**gradient), 2),
        "Targeted": lambda: Targeted(PGD(**gradient)),
        "Cycled": lambda: Cycled(PGD(**gradient), (0.05 * span, eps)),
        "Quantized": lambda: Quantized(PGD(**gradient)),
        "Transfer": lambda: Transfer(model, PGD(**gradient)),
    }[name]()


CHECKED = [
    *("GradientAttack", "FGSM", "BIM", "PGD", "PGD-l2", "PGD-l1", "MIM", "NIM", "APGD", "APGD-l1", "FAB", "FAB-l1"),
    *("DeepFool", "FMN", "FMN-l2", "CarliniWagner", "CarliniWagnerLinf", "GMA", "Square", "Square-l2", "HopSkipJump"),
    *("NES", "SPSA", "ZOO", "AutoAttack", "WorstOf", "Restarts", "Targeted", "Cycled", "Quantized", "Transfer"),
    *("OrthogonalPGD", "SelectivePGD", "HingePGD"),
]
ABSTRACT = {"Attack", "DetectorAttack", "StepAttack", "QueryAttack", "GradientFreeAttack", "Wrapper"}


def test_every_exported_attack_is_in_the_table():
    exported = {n for n, c in vars(attacks).items() if inspect.isclass(c) and issubclass(c, attacks.Attack)}
    assert exported - ABSTRACT - set(CHECKED) == set()


@pytest.fixture(scope="module")
def wide_model(digits_model):
    """The model of the digits for inputs from 0 to 255."""
    return keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Rescaling(1 / TOP), *digits_model.layers])


SELDOM = ("PGD-l1", "APGD-l1", "FAB-l1", "FMN-l2", "Square-l2")  # other norms of attacks that are checked here often


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SELDOM else n for n in CHECKED])
def test_an_attack_does_from_0_to_255_what_it_does_from_0_to_1(name, digits, digits_model, wide_model):
    x, y = digits[2][:24], digits[3][:24]
    narrow = quiet_run(_make(name, 1.0, digits_model), digits_model, x, y)
    wide = quiet_run(_make(name, TOP, wide_model), wide_model, x * np.float32(TOP), y)
    np.testing.assert_array_equal(wide.success, narrow.success)
    assert narrow.success.any()
    # float noise grows where signs of small gradients decide: a few samples may go elsewhere, to the same distance
    change = [np.abs(r.x_adv / t - x).reshape(24, -1) for r, t in ((narrow, 1), (wide, np.float32(TOP)))]
    same = np.abs(wide.x_adv / TOP - narrow.x_adv).max(axis=(1, 2, 3)) < 2e-3
    assert same.mean() >= 0.7
    np.testing.assert_allclose(np.median(change[1].sum(axis=1)), np.median(change[0].sum(axis=1)), rtol=0.05)
