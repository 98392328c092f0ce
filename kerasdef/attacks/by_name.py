"""Makes an attack of its name and of settings as they are typed, and says what does not fit."""

from __future__ import annotations

import inspect
from collections.abc import Mapping

import kerasdef.attacks
from kerasdef import checks, norms
from kerasdef.attacks.base import Attack
from kerasdef.catalog import ATTACKS

_ELSEWHERE = ("goal", "bounds")  # settings that follow from the model and the data


def make(
    name: str,
    *,
    norm: str | None = None,
    eps: float | None = None,
    settings: Mapping | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Attack:
    """Make an attack.

    Args:
        name: A name of `kerasdef list attacks`.
        norm: "linf", "l2" or "l1"; None takes the attack's default.
        eps: The radius in units of the data. Attacks that look for the smallest change are made without it.
        settings: Further settings of the attack by name.
        bounds: The range of the values of the data.

    Raises:
        ValueError: A name is unknown, a value is out of range, or the attack does not take it.
    """
    about = ATTACKS[checks.one_of("attack", name, ATTACKS)]
    cls = getattr(kerasdef.attacks, about.cls)
    known = [p for p in inspect.signature(cls).parameters if p not in _ELSEWHERE]
    given = {checks.one_of("settings", key, known): value for key, value in (settings or {}).items()}
    for key, value in (("norm", norm), ("eps", eps)):
        if value is not None and key in given:
            raise ValueError(
                f"`{key}` must be given once. Received: {key}={value!r} and, among the settings, {key}={given[key]!r}"
            )
    if norm is not None:
        if checks.one_of("norm", norm, norms.NORMS) not in about.norms:
            raise ValueError(f"`norm` must be one of {', '.join(about.norms)} for {name}. Received: norm={norm!r}")
        if "norm" in known:
            given["norm"] = norm
    if about.kind == "budget" and "eps" in known:
        if eps is None and "eps" not in given:
            raise ValueError(f"`eps` must be given for {name}, such as 8/255 (0.0314). Received: eps=None")
        if eps is not None:
            given["eps"] = eps
    elif about.kind == "budget" and eps is not None:
        raise ValueError(
            f"`eps` must not be given for {name}, which has radii of its own. Its settings are {', '.join(known)}. "
            f"Received: eps={eps!r}"
        )
    if "bounds" in inspect.signature(cls).parameters:
        given["bounds"] = bounds
    return one_for_each(cls(**given))


def one_for_each(attack: Attack) -> Attack:
    """Return an attack that gives one image for each.

    Raises:
        ValueError: It gives several, as GMA does with the mode "all".
    """
    inner = attack
    while isinstance(inner, kerasdef.attacks.Wrapper):
        inner = inner.attack
    if isinstance(inner, kerasdef.attacks.GMA) and inner.mode != "cycle":
        raise ValueError(
            f"`mode` must be 'cycle' here, where an attack gives one image for each. Received: mode={inner.mode!r}"
        )
    return attack
