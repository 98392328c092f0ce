"""The hybrid defense: members trained in stages, then a detector, an autoencoder and weights for what they answer.

Wen, Danso and Danso, 2025 (short name "hybrid"); `kerasdef.recipes.hybrid.settings` says where its numbers come from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kerasdef import backend, checks, models
from kerasdef.attacks import PGD, Attack
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.defenses import AdaptiveWeights, HybridDefense, as_defense, detectors
from kerasdef.defenses.purifiers import DenoisingAutoencoder
from kerasdef.identity import digest, identity
from kerasdef.models import networks
from kerasdef.recipes.accounting import paper_attacks
from kerasdef.recipes.base import check_network, stratified
from kerasdef.recipes.hybrid.detecting import made
from kerasdef.recipes.hybrid.report import Judge
from kerasdef.recipes.hybrid.result import Hybrid
from kerasdef.recipes.hybrid.settings import JUDGING, HybridSettings
from kerasdef.recipes.robust.methods import method_of
from kerasdef.recipes.robust.training import Run, divided
from kerasdef.runs import keeping
from kerasdef.runs.cost import total
from kerasdef.runs.pieces import Piece, restore, weights_piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store
from kerasdef.settings import takes

ATTACKED = 1500  # most training images that are attacked for the autoencoder
STEPS = 10  # of the PGD that makes images for the autoencoder and the weights


@takes(HybridSettings)
def train(data: str | Dataset | tuple | Path = HybridSettings.data, **settings) -> Hybrid:
    """Train the hybrid defense on a data set, judge it, and say so in a report.

    The recipe trains one network on clean images, on which the paper's protocol makes its attacks; trains each member
    of the ensemble in stages on AutoPGD images with the loss of TRADES; attacks training and validation images; trains
    an autoencoder on clean, noisy and attacked images; fits the detector to clean images and sets its threshold on
    images that nothing else has seen; and weighs the members by their accuracy on clean and attacked validation images
    (equation 7). All of it is one model.

    Data with other bounds than (0, 1) is brought to (0, 1) first, and `eps` and `sigma` with it.

    Args:
        {settings}

    Returns:
        A `Hybrid`.

    Raises:
        ValueError: A setting is out of range, a name is unknown, the data does not fit, or `out` is of another run.

    References: Wen, Danso and Danso, 2025, section 3, Algorithm 1.
    """
    run = _run_of(HybridSettings.of({"data": data, **settings}))
    run.check()
    pieces = Store(run.s.out, run.record(), judging=JUDGING)
    return run.all(pieces).write(run.s.out)


def _run_of(s: HybridSettings) -> _Run:
    """The run of some settings: the data as it is divided, and what was left open filled in."""
    dataset = as_dataset(s.data)
    if len(dataset.input_shape) != 3:
        raise ValueError(f"`data` must be images. Received: samples of shape {dataset.input_shape}")
    whole, (low, high) = dataset.fingerprint, dataset.bounds
    eps = None if s.eps is None else s.eps / (high - low)
    s = dataclasses.replace(s, eps=eps, sigma=s.sigma / (high - low))
    dataset = divided(dataset.rescaled((0.0, 1.0)), s)
    builders = {"undefended": _builder("undefended", s.undefended)}
    builders |= {f"member{i}": _builder("members", member) for i, member in enumerate(s.members, 1)}
    return _Run(dataset, whole, s.on(dataset.name, dataset.n_train), builders)


def _builder(name: str, network: str | Callable) -> Callable:
    return network if callable(network) else networks.NETWORKS[checks.one_of(name, network, networks.NETWORKS)]


class _Run:
    """The steps of a run, each a piece that is made once."""

    def __init__(self, data: Dataset, whole: str, settings: HybridSettings, builders: dict[str, Callable]):
        self.data, self.whole, self.s, self.builders = data, whole, settings, builders
        choosing = np.arange(data.n_valid) % 2 == 0  # their order is random
        self.calibrating = data.x_valid[~choosing]
        self.choosing = dataclasses.replace(
            data,
            x_valid=data.x_valid[choosing],
            y_valid=data.y_valid[choosing],
            groups_valid=None,
        )
        self.trainings = {role: self._training(role) for role in builders}

    def _training(self, role: str) -> Run:
        """The robust recipe for one network: in stages for members, on clean images for the undefended one."""
        s = self.s.robust(self.data.name, self.data.n_train, derive(self.s.seed, role))
        method = method_of("standard", {}) if role == "undefended" else method_of("multistage", self.s.stages)
        return Run(role, method, self.choosing, self.whole, s, self.builders[role], [], self.s.progress)

    def check(self) -> None:
        """Find networks and sizes that do not fit before work starts."""
        for role, training in self.trainings.items():
            model = training.build()
            check_network(f"The network of {role!r}", model, self.data.input_shape, self.data.classes)
            training.check(model)
        needed = math.ceil(1 / self.s.rate) - 1  # the largest of so many scores is exceeded by a new one at the rate
        if self.s.detects and len(self.calibrating) < needed:
            raise ValueError(
                f"`rate` of {self.s.rate:g} needs at least {needed} images for the threshold, which are half of those "
                f"held out by `valid_size`. Received: {len(self.calibrating)}"
            )

    def record(self) -> dict:
        """Everything the results depend on."""
        d = self.data
        return {
            "recipe": "hybrid",
            "dataset": d.name,
            "data": self.whole,
            "fingerprint": digest(d.x_train, d.y_train, d.x_valid, d.y_valid, d.x_test, d.y_test),
            "networks": identity(self.builders, "networks", strict=False),
            "backend": backend.NAME,
            **self.s.record(),
        }

    # -- the parts ----------------------------------------------------------------------------------------------

    def network(self, pieces: Store, role: str) -> tuple[keras.Model, dict]:
        """One trained network, and what is known of its training."""
        training = self.trainings[role]
        model = training.build()
        piece = pieces.get(role, lambda: training.trained(model, pieces, role), phase=f"training {role}")
        return restore(model, piece), piece[1]

    def attacked(self, pieces: Store, name: str, on: keras.Model, attack: Attack, x, y) -> np.ndarray:
        """Images that an attack makes on a defense or a classifier."""

        def make():
            victim, goal = as_defense(on, bounds=self.data.bounds).surface()
            with keeping.kept(pieces.path(piece), pieces.of(piece)):
                seed = derive(self.s.seed, piece)
                return {"x": attack.with_goal(goal)(victim, x, y, seed=seed, progress=self.s.progress)}, {}

        piece = f"sets/{name}"
        return pieces.get(piece, make, phase="attacked images")[0]["x"]

    def sets(self, pieces: Store, undefended, members) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of training images, what attacks made of them, and the attacked images that weights follow from.

        A third of the rows each: PGD on the ensemble, PGD on the undefended network, Carlini and Wagner's on it.
        """
        s, d = self.s, self.data
        ensemble = HybridDefense(members, bounds=d.bounds)
        pgd = PGD(eps=s.eps, steps=STEPS, loss="margin", bounds=d.bounds)
        made = {
            "ensemble-pgd": (ensemble, pgd),
            "undefended-pgd": (undefended, pgd),
            "undefended-cw": (undefended, paper_attacks(s.eps, bounds=d.bounds)["cw"]),
        }
        rows = np.array_split(stratified(d.y_train, ATTACKED, derive(s.seed, "attacked")), len(made))
        found = [
            self.attacked(pieces, f"train-{name}", on, attack, d.x_train[some], d.y_train[some])
            for some, (name, (on, attack)) in zip(rows, made.items(), strict=True)
        ]
        v = self.choosing
        valid = self.attacked(pieces, "valid", ensemble, pgd, v.x_valid, v.y_valid)
        return np.concatenate(rows), np.concatenate(found), valid

    def detector(self, undefended: keras.Model) -> detectors.Detector:
        """The detector, not fitted."""
        s = self.s
        return made(s.detectors, undefended if s.watch else None, rate=s.rate, bounds=self.data.bounds)

    def fitted_detector(self, pieces: Store, undefended, members, x_adv) -> detectors.Detector:
        """The detector with its threshold."""
        found, d = self.detector(undefended).attach(members), self.data

        def make() -> Piece:
            seed = derive(self.s.seed, "detector")
            found.fit(members, d.x_train, d.y_train, valid=self.calibrating, x_adv=x_adv, seed=seed)
            return weights_piece(found, {})

        return restore(found, pieces.get("detector", make, phase="detector"))

    def autoencoder(self, pieces: Store, rows, x_adv):
        """The autoencoder."""
        found, d, s = (
            DenoisingAutoencoder(seed=derive(self.s.seed, "denoiser") % 10**6, bounds=self.data.bounds),
            self.data,
            self.s,
        )
        found.build((None, *d.input_shape))

        def make() -> Piece:
            options = {"epochs": s.autoencoder_epochs, "batch_size": s.batch_size, "progress": s.progress}
            seed = derive(s.seed, "autoencoder")
            found.fit(d.x_train, x_adv=x_adv, x_adv_clean=d.x_train[rows], seed=seed, **options)
            return weights_piece(found, {})

        return restore(found, pieces.get("autoencoder", make, phase="autoencoder"))

    def weights(self, pieces: Store, members, x_adv) -> tuple[AdaptiveWeights, np.ndarray]:
        """Equation 7's weights, and the reliability of each member on clean and on attacked images."""
        found, d = AdaptiveWeights(len(members)), self.choosing

        def make() -> Piece:
            images = [d.x_valid, x_adv]
            labels = np.stack(
                [np.concatenate([models.predict_logits(m, x).argmax(axis=1) for x in images]) for m in members],
                axis=1,
            )
            y = np.concatenate([d.y_valid, d.y_valid])
            found.fit(labels, y)
            arrays, meta = weights_piece(found, {})
            right = (labels == y[:, None]).reshape(2, -1, len(members)).mean(axis=1)
            return arrays, {**meta, "clean": right[0].tolist(), "attacked": right[1].tolist()}

        piece = pieces.get("weights", make, phase="weights")
        return restore(found, piece), piece[1]

    # -- all of it ----------------------------------------------------------------------------------------------

    def all(self, pieces: Store) -> Hybrid:
        """Train, put together, judge."""
        s, d = self.s, self.data
        trained = {role: self.network(pieces, role) for role in self.builders}
        undefended, members = trained["undefended"][0], [m for role, (m, _) in trained.items() if role != "undefended"]
        rows, x_adv, x_adv_valid = self.sets(pieces, undefended, members)
        weights, reliable = self.weights(pieces, members, x_adv_valid)
        detector = self.fitted_detector(pieces, undefended, members, x_adv) if s.detects else None
        purifier = self.autoencoder(pieces, rows, x_adv) if s.autoencoder_epochs else None
        model = HybridDefense(
            members,
            detector=detector,
            purifier=purifier,
            sigma=s.sigma,
            draws=s.draws,
            weights=weights,
            repair="always" if detector is None else "flagged",
            flagged=s.flagged,
            seed=derive(s.seed, "smoothing"),
            bounds=d.bounds,
        )
        ensemble = HybridDefense(members, weights=weights, bounds=d.bounds, name="ensemble")
        judge = Judge(d, s, self.calibrating, x_adv, undefended, members, ensemble, model)
        history = {role: meta["history"] for role, (_, meta) in trained.items()}
        costs = {role: meta["cost"] for role, (_, meta) in trained.items()}
        costs["all networks"] = total(list(costs.values()))
        report = judge.report(pieces, self.record(), history=history, costs=costs, reliable=reliable)
        return Hybrid(model, members, undefended, history, report)
