"""The standard AutoAttack as a piece of a run: resumable, and with its flags."""

from __future__ import annotations

import keras
import numpy as np

from kerasdef.attacks import AutoAttack
from kerasdef.runs.store import Store


def run_autoattack(
    pieces: Store, label: str, attack: AutoAttack, model: keras.Model, x: np.ndarray, y: np.ndarray, **options
) -> tuple[np.ndarray, list[str]]:
    """Attack images, or find what an earlier process made of them.

    Args:
        pieces: Of the run; a run that is killed within the attack goes on from its last finished part.
        label: Name of the piece.
        attack: The attack.
        model: A classifier.
        x: Images of shape (n, ...).
        y: Class indices of shape (n,).
        **options: As `AutoAttack.run` takes them.

    Returns:
        x_adv of the shape of x, and what makes the result doubtful, in words.
    """
    name = f"attacks/{label}"
    state = pieces.path(name, judging=True)

    def make():
        found = attack.run(model, x, y, out=state, **options)
        return {"x": found.x_adv}, {"flags": list(found.flags.values())}

    arrays, meta = pieces.get(name, make, phase=f"attack {label}", judging=True)
    return arrays["x"], meta["flags"]
