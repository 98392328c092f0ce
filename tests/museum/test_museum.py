"""Every piece of the museum falls to the attack that is made from it, for which nothing of it was written down.

Accuracies under attack are shares of the first 100 test images of the digits: those that keep their label, or are
rejected where the defense can do so.
"""

import warnings

import keras
import numpy as np
import pytest
from keras import ops

import kerasdef
from kerasdef import models
from kerasdef.attacks import PGD, Square
from kerasdef.defenses import Plain, RejectClass

from . import nets

COUNT = 100
SETTINGS = {"steps": 40, "queries": 500, "draws": 4}
FEW = ("apgd-ce", "apgd-margin", "square")  # for the default suite: each part costs a second to compile
PARTS = ("apgd-ce", "apgd-margin", "refined", "square")
WITHIN = 0.05  # of the net without a defense, under the same attack
# what is said of each: the accuracy that its own evaluation leaves at least, and what is seen in its layers
PIECES = {
    "stopped": (0.9, {"stop_gradient": "zero gradient"}),
    "thermometer": (0.9, {"thermometer": "zero gradient"}),
    "scaled": (0.9, {}),
    "shuffled": (0.4, {}),
    "kwta": (0.2, {"k_winners": "uncorrelated gradient", "k_winners_1": "uncorrelated gradient"}),
    "distillation": (0.9, {}),
    "jpeg": (0.9, {"jpeg": "zero gradient"}),
    "sine": (0.9, {"sine": "uncorrelated gradient"}),
    "squeezing": (0.3, {"depth": "zero gradient"}),
    "trapdoor": (0.8, {"likeness": "uncorrelated gradient"}),
    "noisy": (0.7, {}),
}
QUICK = ("stopped", "thermometer")


def decided(model):
    """The defense that a model of the museum is."""
    return RejectClass(model) if model.output_shape[-1] == 11 else Plain(model)


def left(defense, x_adv, y):
    """Share of images with their label, or rejected; of a random defense by most of five answers."""
    surface, goal = defense.surface()
    victim = models.Victim.of(surface)
    lost = [
        ops.convert_to_numpy(goal.reached(victim.predict(x_adv, seed=i), y)) for i in range(5 if victim.random else 1)
    ]
    return 1 - float(np.mean(np.mean(lost, axis=0) > 0.5))


class Museum:
    """Trained pieces, and what attacks leave of them, each worked out once."""

    def __init__(self, digits):
        x, y, x_test, y_test = digits
        self.train, self.x, self.y = (x, y), x_test[:COUNT], y_test[:COUNT]
        self.trained, self.known = {}, {}

    def piece(self, name):
        """The defense, and the model that its own evaluation attacks."""
        if name not in self.trained:
            keras.utils.clear_session(free_memory=False)  # names without numbers of other pieces
            made = getattr(nets, name)(*self.train)
            self.trained[name] = made if isinstance(made, tuple) else (made, made)
        return self.trained[name]

    def claim(self, name, eps):
        """What an attack leaves that does not know the defense, or follows gradients that say nothing."""
        model, known = self.piece(name)
        if known is None:
            attack = Square(eps=eps, queries=SETTINGS["queries"])
        else:  # sure of the wrong label, as those that detectors were tried on
            attack = PGD(eps=eps, steps=40, early_stop=False)
        known = model if known is None else known
        return left(decided(model), attack(known, self.x, self.y, progress=False), self.y)

    def adaptive(self, name, eps, parts):
        """What the attack leaves that is made from the defense, and that attack."""
        if (name, eps, parts) not in self.known:
            defense = decided(self.piece(name)[0])
            images = self.train[0][:256]
            attack = kerasdef.adaptive(defense, eps=eps, parts=parts, images=images, **SETTINGS)
            found = attack.run(defense, self.x, self.y, progress=False)
            self.known[name, eps, parts] = left(defense, found.x_adv, self.y), attack
        return self.known[name, eps, parts]


@pytest.fixture(scope="module")
def museum(digits):
    return Museum(digits)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is seen in the pieces is in their manifests
        yield


def check(museum, name, eps, parts=PARTS, compared="undefended"):
    """The claim of a piece, its fall, and what its manifest says."""
    least, seen = PIECES[name]
    claim, (after, attack) = museum.claim(name, eps), museum.adaptive(name, eps, parts)
    bare = museum.adaptive(compared, eps, parts)[0]
    print(f"{name}, eps {eps}: claim {claim:.2f}, adaptive {after:.2f}, {compared} {bare:.2f}")
    assert claim >= least
    assert after <= bare + WITHIN + 1e-9
    assert {f.layer: f.seen for f in attack.findings} == seen
    told = attack.manifest.text()
    assert all(f"{layer} (" in told for layer in seen)


def test_the_net_without_a_defense_is_a_measure(museum):
    after, attack = museum.adaptive("undefended", 0.15, FEW)
    assert 0.05 <= after <= 0.3
    assert left(decided(museum.piece("undefended")[0]), museum.x, museum.y) > 0.9
    assert attack.findings == ()


@pytest.mark.parametrize("name", QUICK)
def test_a_piece_falls(museum, name):
    check(museum, name, 0.15, FEW)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PIECES if name not in (*QUICK, "noisy")])
def test_a_piece_that_takes_longer_falls(museum, name):
    check(museum, name, 0.15)


@pytest.mark.slow
def test_noise_adds_nothing_to_training_with_noise(museum):
    check(museum, "noisy", 0.2, FEW, compared="augmented")
