"""The Model Integration Approach: adversarial training in growing shares, bootstraps, a vote.

Sanapala and Gondi, 2025 (short name "mia"); `kerasdef.recipes.mia.settings` says where its numbers come from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np

from kerasdef import backend, checks, models
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.defenses import RejectClass, bootstrap_indices, voting_model
from kerasdef.evaluation.judging import reach
from kerasdef.identity import digest, identity
from kerasdef.models import networks
from kerasdef.recipes.base import check_network, fit, stratified, unfinished
from kerasdef.recipes.mia.report import Judge, Rule, joint_report
from kerasdef.recipes.mia.result import MIA, MIAEach
from kerasdef.recipes.mia.sets import AdversarialSet, attacked, default_attack, portion
from kerasdef.recipes.mia.settings import JUDGING, MIASettings
from kerasdef.runs import keeping
from kerasdef.runs.pieces import restore, weights_piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store
from kerasdef.settings import takes
from kerasdef.training import Mixture, adversarial_count


@takes(MIASettings)
def train(data: str | Dataset | tuple | Path = MIASettings.data, **settings) -> MIA | MIAEach:
    """Train the MIA defense on a data set, judge it, and say so in a report.

    The recipe trains the target; makes each attack's images on it, labeled K ("adversarial"); trains the EAT models in
    cycles with growing shares of these; trains a bootstrap of each at the share where the stop rule fired; and joins
    them by a hard vote. The share is that of adversarial images in all training images, spread evenly over the
    attacks. Only images that the target gets right are attacked, and those that an attack leaves unchanged (Carlini and
    Wagner may fail) are left out.

    Stop rule (section 4.1.2): the smallest share after which every EAT model is above `threshold` on every attack, in
    accuracy over K + 1 classes on clean and attacked validation images together. If no share reaches it, the last one
    is used and the report says so.

    Data with other bounds than (0, 1) is brought to (0, 1) first; the networks and the attacks see it so.

    Args:
        {settings}

    Returns:
        A `MIA`, or a `MIAEach` with `per_attack=True`.

    Raises:
        ValueError: A setting is out of range, a name is unknown, the data does not fit, or `out` is of another run.

    References: Sanapala and Gondi, 2025, section 4, tables 1 and 2.
    """
    s = MIASettings.of({"data": data, **settings})
    dataset = as_dataset(s.data)
    whole, dataset = dataset.fingerprint, dataset.rescaled((0.0, 1.0))
    size = math.prod(dataset.input_shape)
    attacks = s.attacks if isinstance(s.attacks, Mapping) else {name: default_attack(name, size) for name in s.attacks}
    dataset = dataset.resplit(s.test_size, seed=s.seed).with_validation(s.valid_size, seed=s.seed)
    s = s.on(dataset.n_train)
    _check_sizes(s, dataset, 1 if s.per_attack else len(attacks))
    builders = {"target": _builder("target", s.target)}
    builders |= {f"eat{i}": _builder("members", member) for i, member in enumerate(s.members, 1)}
    run = _Run(dataset, whole, dict(attacks), s, builders, list(s.callbacks), s.progress)
    run.check_networks()
    pieces = Store(s.out, run.record(), judging=JUDGING)
    target = run.target(pieces)
    if not s.per_attack:
        return run.defense(pieces, target, tuple(attacks), "").write(s.out)
    own = {name: pieces.branch() for name in attacks}
    parts = {name: run.defense(own[name], target, (name,), f"{name}/") for name in attacks}
    for part in own.values():
        pieces.times |= part.times
    report = joint_report(dataset, parts, settings=run.record(), seed=s.seed, phases=pieces.seconds)
    return MIAEach(parts, report).write(s.out)


def _check_sizes(s: MIASettings, dataset: Dataset, attacks: int) -> None:
    """Raise where a setting is too small for the data: nothing would be left to train on or to judge on."""
    if adversarial_count(dataset.n_train, s.shares[0]) < attacks:
        raise ValueError(
            "`shares` must each give at least one image of every attack beside the clean training images. "
            f"Received: shares={s.shares} for {dataset.n_train} training images and {attacks} attacks"
        )
    found = len(np.unique(dataset.y_test))
    if s.limit < found:
        raise ValueError(
            f"`limit` must be at least the number of classes among the test images, {found}. Received: limit={s.limit}"
        )


def _builder(name: str, network: str | Callable) -> Callable:
    if callable(network):
        return network
    return networks.NETWORKS[checks.one_of(name, network, networks.NETWORKS)]


class _Run:
    """The steps of a run, each a piece that is made once."""

    def __init__(self, dataset, whole, attacks, settings, builders, callbacks, show):
        self.data, self.whole, self.attacks, self.s, self.builders = dataset, whole, attacks, settings, builders
        self.callbacks, self.show = callbacks, show
        self.k = dataset.classes
        self.test_rows = stratified(dataset.y_test, settings.limit, derive(settings.seed, "test"))
        self.valid_rows = stratified(dataset.y_valid, max(200, settings.limit // 4), derive(settings.seed, "valid"))

    def record(self) -> dict:
        """Everything the results depend on."""
        d = self.data
        return {
            "recipe": "mia",
            "dataset": self.data.name,
            "data": self.whole,
            "fingerprint": digest(d.x_train, d.y_train, d.x_valid, d.y_valid, d.x_test, d.y_test),
            "attacks": identity(self.attacks, "attacks", strict=False),
            "order": list(self.attacks),
            "networks": identity(self.builders, "networks", strict=False),
            "callbacks": identity(self.callbacks, "callbacks", strict=False),
            "backend": backend.NAME,
            **self.s.record(),
        }

    def build(self, role: str, *labels) -> keras.Model:
        outputs = self.k if role == "target" else self.k + 1
        return self.builders[role](self.data.input_shape, outputs, seed=derive(self.s.seed, role, *labels) % 10**6)

    def check_networks(self) -> None:
        """Build every network once, so that one that does not fit is found before work starts."""
        for role in self.builders:
            model = self.build(role)
            outputs = self.k if role == "target" else self.k + 1
            check_network(f"The network of {role!r}", model, self.data.input_shape, outputs)

    # -- training -----------------------------------------------------------------------------------------------

    def fit(self, pieces, piece, model, parts, valid, *, role, title, seed, rows=None):
        history = fit(
            model,
            Mixture(parts, batch_size=self.s.batch_size, seed=seed, rows=rows),
            epochs=self.s.epochs[role],
            title=title,
            valid=Mixture(valid, batch_size=512),
            learning_rate=self.s.learning_rate,
            callbacks=self.callbacks,
            show=self.show,
            keep=unfinished(pieces, piece),
        )
        return weights_piece(model, history)

    def target(self, pieces) -> tuple[keras.Model, dict]:
        """The undefended model."""
        model, d = self.build("target"), self.data

        def make():
            seed = derive(self.s.seed, "target", "order")
            valid = [(d.x_valid, d.y_valid)]
            parts = [(d.x_train, d.y_train)]
            return self.fit(pieces, "target", model, parts, valid, role="target", title="target", seed=seed)

        piece = pieces.get("target", make, phase="target")
        return restore(model, piece), piece[1]["history"]

    def adversarial(self, pieces, target, name: str, split: str, x, y, rows) -> AdversarialSet:
        """Images of one attack on the rows of a split, in the order of `rows` (which may repeat)."""

        def make():
            seed = derive(self.s.seed, name, split)
            with keeping.kept(pieces.path(piece), pieces.of(piece)):
                return attacked(name, self.attacks[name], target, x, y, rows, seed=seed, show=self.show)

        piece = f"sets/{name}-{split}"
        return AdversarialSet.of(pieces.get(piece, make, phase=f"attack {name}"))

    def sets(self, pieces, target, names) -> dict[str, dict[str, AdversarialSet]]:
        """Each attack's images on the three splits; for training as many as the largest share needs."""
        d, found = self.data, {}
        most = math.ceil(adversarial_count(d.n_train, self.s.shares[-1]) / len(names))
        right = np.flatnonzero(models.predict_logits(target, d.x_train).argmax(axis=1) == d.y_train)
        if not len(right):
            raise ValueError("The target must get some training images right. Received: accuracy=0")
        for name in names:
            rng = np.random.default_rng(derive(self.s.seed, name, "rows"))
            wanted = math.ceil(1.1 * most)  # 1.1: an attack may fail on some
            turns = math.ceil(wanted / len(right))
            rows = np.concatenate([rng.permutation(right) for _ in range(turns)])[:wanted]
            found[name] = {
                "train": self.adversarial(pieces, target, name, "train", d.x_train, d.y_train, rows),
                "valid": self.adversarial(pieces, target, name, "valid", d.x_valid, d.y_valid, self.valid_rows),
                "test": self.adversarial(pieces, target, name, "test", d.x_test, d.y_test, self.test_rows),
            }
            for split, found_set in found[name].items():
                if not len(found_set):
                    raise ValueError(f"Attack {name!r} changed none of the {split} images that the target gets right.")
        return found

    def augmented(self, sets, names, share: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """The clean training images and the first adversarial ones of every attack, labeled K."""
        parts = [(self.data.x_train, self.data.y_train)]
        for name in names:
            x = sets[name]["train"].x[: portion(self.data.n_train, share, names, name)]
            parts.append((x, np.full(len(x), self.k)))
        return parts

    def valid_parts(self, sets, names):
        d = self.data
        clean = [(d.x_valid[self.valid_rows], d.y_valid[self.valid_rows])]
        return clean + [(sets[n]["valid"].x, np.full(len(sets[n]["valid"]), self.k)) for n in names]

    def defense(self, pieces: Store, target, names: tuple[str, ...], prefix: str) -> MIA:
        """Train, vote and judge, for the attacks named; `target` is what the method of this name returned."""
        target, target_history = target
        sets = self.sets(pieces, target, names)
        attacks = {name: reach(self.attacks[name], 1)[0] for name in names}
        judge = Judge(self.data, self.s, sets, self.test_rows, attacks)
        history = {"target": target_history}
        outcomes = judge.paper("target", target)
        roles = [r for r in self.builders if r != "target"]
        eat = {role: self.build(role, prefix) for role in roles}
        valid = self.valid_parts(sets, names)
        chosen, rule = None, None
        for cycle, share in enumerate(self.s.shares, 1):
            parts, accuracies = self.augmented(sets, names, share), {}
            for role, model in eat.items():
                label = f"{role}/cycle{cycle}"

                def make(model=model, label=label, parts=parts, cycle=cycle, share=share):
                    title = f"{prefix}{label} ({share:.0%} adversarial)"
                    seed = derive(self.s.seed, prefix, label)
                    piece = f"{prefix}{label}"
                    return self.fit(pieces, piece, model, parts, valid, role="eat", title=title, seed=seed)

                piece = pieces.get(f"{prefix}{label}", make, phase=f"EAT cycle {cycle}")
                restore(model, piece)
                history[label] = piece[1]["history"]
                accuracies[role] = {n: self.accuracy(model, sets[n]["valid"]) for n in names}
                outcomes += judge.paper(label, RejectClass(model, bounds=self.data.bounds))
            reached = all(v > self.s.threshold for r in accuracies.values() for v in r.values())
            fired = rule is not None and rule.fired  # in an earlier cycle
            if share == self.s.share or (self.s.share is None and not fired):
                chosen = (share, {r: m.get_weights() for r, m in eat.items()})
            if not fired:
                rule = Rule(reached, cycle, share, accuracies)
            if self.s.stop and (rule.fired if self.s.share is None else share == self.s.share):
                break
        share, weights = chosen
        parts = self.augmented(sets, names, share)
        n = sum(len(x) for x, _ in parts)
        voters = []
        draws = bootstrap_indices(n, self.s.bootstraps, derive(self.s.seed, prefix, "bootstrap"))
        for i, rows in enumerate(draws):
            role, label = roles[i % len(roles)], f"voter{i + 1}"
            model = self.build(role, prefix)

            def make(model=model, role=role, label=label, rows=rows):
                model.set_weights(weights[role])
                title, seed = f"{prefix}{label} ({role})", derive(self.s.seed, prefix, label)
                piece = f"{prefix}{label}"
                return self.fit(pieces, piece, model, parts, valid, role="mia", title=title, seed=seed, rows=rows)

            piece = pieces.get(f"{prefix}{label}", make, phase="voters")
            voters.append(restore(model, piece))
            history[label] = piece[1]["history"]
            outcomes += judge.paper(label, RejectClass(model, bounds=self.data.bounds))
        model = voting_model(voters, reject=self.k, name="mia")
        outcomes += judge.defense(pieces, model, prefix, self.show)
        settings = {**self.record(), "share used": share, "stop rule": rule.accuracies}
        report = judge.report(outcomes, target, rule, share, settings=settings, phases=pieces.seconds, history=history)
        return MIA(model, voters, target, history, report, share, rule.fired)

    def accuracy(self, model, against: AdversarialSet) -> float:
        """Accuracy over K + 1 classes on the clean and the attacked validation images together."""
        d, rows = self.data, self.valid_rows
        clean = models.predict_logits(model, d.x_valid[rows]).argmax(axis=1) == d.y_valid[rows]
        found = models.predict_logits(model, against.x).argmax(axis=1) == self.k
        return float(np.mean(np.concatenate([clean, found])))
