"""All self-checks of an attack on a defense at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import Attack
from kerasdef.defenses.base import Defense, Outputs
from kerasdef.evaluation.judging import reach
from kerasdef.evaluation.sanity.binarization import ENOUGH, WANTED, Binarization, binarization
from kerasdef.evaluation.sanity.trends import SETTINGS, Monotone, Unbounded, _monotone, robust, unbounded
from kerasdef.evaluation.sanity.varied import has
from kerasdef.models import Victim

COLUMNS = ("check", "found", "wanted", "passed")


@dataclass(frozen=True, eq=False)
class SelfCheck:
    """What the self-checks of an attack on a defense said.

    Args:
        unbounded: What it leaves without a bound on the radius.
        monotone: What it leaves with less and more of each of its settings.
        binarization: The binarization test, or None where it is not possible.
        skipped: Why a check is not there, in words.
    """

    unbounded: Unbounded
    monotone: tuple[Monotone, ...]
    binarization: Binarization | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self):
        check_fields(self)

    @property
    def reliable(self) -> bool:
        """Whether no check failed that makes the numbers of the attack worthless: binarization, unbounded radius.

        One that could not be made, or that says too little, did not fail. That an attack is reliable does not make the
        defense robust.
        """
        failed = self.binarization is not None and self.binarization.verdict == "failed"
        return self.unbounded.passed and not failed

    @property
    def passed(self) -> bool:
        """Whether all checks were made and passed."""
        made = self.binarization is not None and self.binarization.passed
        return made and self.unbounded.passed and all(m.passed for m in self.monotone)

    @property
    def table(self) -> pd.DataFrame:
        """One row for each check: "check", "found", "wanted", "passed" (None where it says too little)."""
        rows = []
        if self.binarization is not None:
            b = self.binarization
            rows.append(
                (
                    "binarization",
                    f"{b.attack_rate:.1%} (random {b.random_rate:.1%}) of {b.n}",
                    f"at least {WANTED:.0%} of {ENOUGH} or more, random fewer",
                    {"passed": True, "failed": False}.get(b.verdict),
                )
            )
        rows.append(("unbounded", f"{self.unbounded.robust_accuracy:.1%} left", "0.0% left", self.unbounded.passed))
        for m in self.monotone:
            shown = ", ".join(f"{share:.1%}" for share in m.robust_accuracy)
            rows.append((f"more {m.setting}", f"{shown} left", "no growth", m.passed))
        return pd.DataFrame(rows, columns=COLUMNS)

    @property
    def flags(self) -> list[str]:
        """Sentences about what did not pass, the gravest first, and about what was not checked."""
        found = [c for c in (self.binarization, self.unbounded, *self.monotone) if c is not None and not c.passed]
        return [c.text for c in found] + list(self.skipped)

    @property
    def texts(self) -> list[str]:
        """A sentence for each check."""
        return [c.text for c in (self.binarization, self.unbounded, *self.monotone) if c is not None]


@checked
def self_check(
    defense: Defense | Outputs,
    attack: Attack,
    x: np.ndarray,
    y: np.ndarray,
    *,
    eps: float | None = None,
    n: int = ENOUGH,
    closeness: float = 0.999,
    batch_size: int = 256,
    seed: int = 0,
    progress: bool | None = None,
) -> SelfCheck:
    """Ask an attack on a defense whether it can be trusted: the binarization test, no bound, more of each setting.

    It costs about seven times the attack on n samples.

    Args:
        defense: The defense.
        attack: The attack; its goal is taken from the defense.
        x: Clean images of shape (m, ...), within the bounds of the attack.
        y: Their labels of shape (m,).
        eps: Radius for the binarization test of an attack that has none.
        n: How many images each check takes. Below 50 the binarization test says nothing.
        closeness: As in `binarization`.
        batch_size: Samples that the attack works on at a time.
        seed: All randomness comes from it.
        progress: Show bars; None shows them on a terminal and in notebooks.

    Returns:
        A `SelfCheck`, with a `table` and `flags`.

    Example:
    >>> check = self_check(defense, APGD(eps=8 / 255), x_test, y_test)
    >>> check.table, check.flags

    References: Carlini et al., 2019, https://arxiv.org/abs/1902.06705; Zimmermann et al., 2022,
    https://arxiv.org/abs/2206.13991.
    """
    n = checks.positive_int("n", n)
    x = checks.images("x", x, limits=attack.bounds)
    y = checks.labels("y", y, n=len(x))
    checks.positive_int("batch_size", batch_size)
    checks.non_negative_int("seed", seed)
    options = {"batch_size": batch_size, "seed": seed, "progress": progress}
    binary, skipped = None, []
    norm, radii = reach(attack, len(x))
    if eps is not None:
        checks.real("eps", eps, low=0.0, open_low=True)
    if isinstance(defense, Outputs):
        skipped.append("There is no binarization test of a defense of which only outputs are known.")
    elif norm is None or (radii is None and eps is None):
        skipped.append("There is no binarization test without a norm and a radius.")
    else:
        binary = binarization(
            defense, attack, x, y, eps=eps if radii is None else None, n=n, closeness=closeness, **options
        )
    attack, x, y = attack.rows(np.arange(min(n, len(x))), len(x)), x[:n], y[:n]
    left = robust(defense, attack, x, y, batch_size, seed, progress)
    free = unbounded(defense, attack, x, y, **options)
    random = Victim.of(defense.surface()[0]).random  # draws of other models are all alike
    settings = [s for s in SETTINGS if has(attack, s) and (random or s != "samples")]
    found = [_monotone(defense, attack, x, y, s, None, batch_size, seed, progress, left) for s in settings]
    return SelfCheck(free, tuple(found), binary, tuple(skipped))
