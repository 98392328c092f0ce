"""What an attack finds for a sample does not depend on how many samples are worked on at a time, to the last bit."""

import numpy as np
import pytest
from helpers import quiet

from kerasdef.attacks import (
    APGD,
    FAB,
    FMN,
    MIM,
    NES,
    PGD,
    SPSA,
    ZOO,
    CarliniWagner,
    CarliniWagnerLinf,
    DeepFool,
    HopSkipJump,
    Restarts,
    Square,
    Targeted,
)

ATTACKS = {
    "pgd": PGD(eps=0.2, steps=20),
    "pgd-l2": PGD(eps=1.0, norm="l2", steps=10),
    "pgd-l1": PGD(eps=3.0, norm="l1", steps=10),
    "mim": MIM(eps=0.2),
    "apgd": APGD(eps=0.2, steps=20),
    "apgd-l1": APGD(eps=3.0, norm="l1", steps=10),
    "apgd-t": APGD(eps=0.1, loss="targeted_dlr", targets=2, steps=10),
    "fab": FAB(steps=10),
    "fab-l1": FAB(norm="l1", steps=5),
    "cw": CarliniWagner(steps=40, binary_search_steps=2, initial_c=1.0),
    "cw-linf": CarliniWagnerLinf(steps=20, initial_c=1.0, largest_c=4.0),
    "deepfool": DeepFool(),
    "fmn": FMN(steps=20),
    "fmn-l1": FMN(steps=20, norm="l1"),
    "square": Square(eps=0.2, queries=100),
    "square-l2": Square(eps=1.0, norm="l2", queries=100),
    "hop_skip_jump": HopSkipJump(queries=300),
    "nes": NES(eps=0.2, queries=150),
    "spsa": SPSA(eps=0.2, queries=260),
    "zoo": ZOO(queries=1500),
    "targeted": Targeted(PGD(eps=0.3, steps=10)),
    "restarts": Restarts(PGD(eps=0.1, steps=5), 2),
}
DEFAULT = ("pgd", "apgd", "fab", "cw", "deepfool", "fmn", "mim", "square", "hop_skip_jump")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in DEFAULT else pytest.mark.slow) for n in ATTACKS])
def test_the_answer_does_not_depend_on_the_batch_size(name, digits, digits_model):
    x, y = digits[2][:60], digits[3][:60]
    whole = quiet(ATTACKS[name], digits_model, x, y, batch_size=60, seed=3)
    assert not np.array_equal(whole, x)
    for batch_size in (1, 7, 32, 256) if name == "pgd" else (7, 32, 256):
        found = quiet(ATTACKS[name], digits_model, x, y, batch_size=batch_size, seed=3)
        np.testing.assert_array_equal(found, whole, err_msg=f"batch_size={batch_size}")
