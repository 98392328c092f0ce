"""Iterative adversarial retraining of an 11-class CNN (Afzal and Huzaifa, 2025, short name "iar").

The paper gives neither radii nor the noise; `kerasdef.recipes.iar.settings` says what was chosen and why.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np

from kerasdef import backend, checks, models
from kerasdef.attacks import PGD, Attack, AutoAttack, Evade
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.defenses import RejectClass
from kerasdef.evaluation import Evaluation, Plan, Planned, evaluate
from kerasdef.files import remove
from kerasdef.identity import digest, identity
from kerasdef.models import networks
from kerasdef.recipes.base import check_network, first_examples, fit, stratified, unfinished
from kerasdef.recipes.iar.attacks import Within, default_attacks
from kerasdef.recipes.iar.result import IAR
from kerasdef.recipes.iar.settings import ADAPTIVE_STEP, EPS, GRAY, JUDGING, RHO, SPLIT, IARSettings
from kerasdef.recipes.settings import usual_batch
from kerasdef.reporting import Report
from kerasdef.runs import keeping, progress
from kerasdef.runs.pieces import restore, weights_piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import EARLIER, Store
from kerasdef.settings import takes
from kerasdef.training import Mixture, Shares
from kerasdef.training.state import read_state, write_state

_VALID = 200  # held-out images on which rho is looked at after each round


@takes(IARSettings)
def train(data: str | Path | Dataset | tuple = IARSettings.data, **settings) -> IAR:
    """Train a classifier, retrain it on fresh adversarial images round by round, and judge it before and after.

    Every round makes FGSM, PGD, BIM and C&W images on the model as it is and goes on training on batches with equal
    shares of clean, noisy and each kind of adversarial images. The loss is `weight` times that of the clean and noisy
    images and `1 - weight` times that of the adversarial ones. Training goes on to the last iteration unless
    `stop="rho"`, which ends it where the paper's rule fires: accuracy under every attack has risen by 0.1 on held-out
    images. An attack that leaves more than 90 % of them before retraining keeps it from firing.

    The data is split anew, 80:20. Data with other bounds than (0, 1) is brought to (0, 1) first, and `eps` with it; the
    networks and the attacks see it so.

    Args:
        {settings}

    Returns:
        An `IAR`.

    Raises:
        ValueError: A setting is out of range, a name is unknown, the data does not fit, or `out` is of another run.

    References: iar paper, sections III and IV.
    """
    s = IARSettings.of({"data": data, **settings})
    dataset = as_dataset(s.data)
    if len(dataset.input_shape) != 3:
        raise ValueError(f"`data` must be images. Received: samples of shape {dataset.input_shape}")
    whole, (low, high) = dataset.fingerprint, dataset.bounds
    usual = EPS[int(dataset.input_shape[-1] > 1)]
    s = dataclasses.replace(s, eps=usual if s.eps is None else s.eps / (high - low))
    dataset = dataset.rescaled((0.0, 1.0)).resplit(SPLIT, seed=s.seed).with_validation(0.05, seed=s.seed)
    attacks = default_attacks(s.eps, math.prod(dataset.input_shape)) if s.attacks is None else s.attacks
    s = s.on(dataset.n_train, len(attacks) + 2)
    builders = {"network": _builder("network", s.network), "surrogate": _builder("surrogate", s.surrogate)}
    run = _Run(dataset, whole, attacks, s, builders, s.progress)
    pieces = Store(s.out, run.record(), judging=JUDGING)
    return run.all(pieces, s.out)


def _builder(name: str, network: str | Callable) -> Callable:
    return network if callable(network) else networks.NETWORKS[checks.one_of(name, network, networks.NETWORKS)]


class _Run:
    """The steps of a run."""

    def __init__(self, data: Dataset, whole: str, attacks, settings: IARSettings, builders, show):
        self.whole = whole
        self.data, self.attacks, self.s, self.builders, self.show = data, attacks, settings, builders, show
        self.k = data.classes
        if settings.adversarial_label == "reject":  # an image that is called adversarial is an attack that failed
            self.attacks = {
                name: attack.with_goal(Evade(self.k)) if hasattr(attack, "with_goal") else attack
                for name, attack in attacks.items()
            }
        self.test = stratified(data.y_test, settings.n_test, derive(settings.seed, "test"))
        self.valid = stratified(data.y_valid, _VALID, derive(settings.seed, "valid"))
        self.built = {role: self.build(role) for role in builders}

    def record(self) -> dict:
        """Everything the results depend on."""
        d = self.data
        return {
            "recipe": "iar",
            "dataset": d.name,
            "data": self.whole,
            "fingerprint": digest(d.x_train, d.y_train, d.x_valid, d.y_valid, d.x_test, d.y_test),
            "test_size": SPLIT,
            "attacks": identity(self.attacks, "attacks", strict=False),
            "order": list(self.attacks),
            "networks": identity(self.builders, "networks", strict=False),
            "backend": backend.NAME,
            **self.s.record(),
        }

    def build(self, role: str) -> keras.Model:
        """A network of K + 1 outputs."""
        seed = derive(self.s.seed, role) % 10**6
        model = self.builders[role](self.data.input_shape, self.k + 1, seed=seed)
        check_network(f"`{role}`", model, self.data.input_shape, self.k + 1)
        return model

    # -- training -----------------------------------------------------------------------------------------------

    def clean(self, pieces: Store, role: str) -> tuple[keras.Model, dict]:
        """A network trained on clean images."""
        model, d = self.built[role], self.data

        def make():
            parts = [(d.x_train, d.y_train)]
            history = fit(
                model,
                Mixture(parts, batch_size=usual_batch(d.n_train), seed=derive(self.s.seed, role, "order")),
                epochs=self.s.epochs,
                title=f"{role}, clean images",
                valid=Mixture([(d.x_valid, d.y_valid)], batch_size=512),
                show=self.show,
                keep=unfinished(pieces, role),
            )
            return weights_piece(model, history)

        piece = pieces.get(role, make, phase=f"{role}, clean images")
        return restore(model, piece), piece[1]["history"]

    def shares(self, model: keras.Model, number: int, advance) -> Shares:
        """Fresh images of every kind on the model as it is, as batches with equal shares."""
        s, d = self.s, self.data
        rng = np.random.default_rng([s.seed, number])
        rows = rng.permutation(d.n_train)[: s.round_size]
        x, y = d.x_train[rows], d.y_train[rows]
        noisy = np.clip(x + rng.normal(0.0, s.noise, x.shape), 0.0, 1.0).astype("float32")
        parts, n = [(x, y), (noisy, y)], len(self.attacks)
        weights = [s.weight / 2] * 2 + [(1 - s.weight) / n] * n
        for name, attack in self.attacks.items():
            advance(0, name)
            seed = derive(s.seed, "round", number, name)
            x_adv = attack(model, x, y, seed=seed, progress=False)
            moved = np.any((x_adv != x).reshape(len(x), -1), axis=1) & (s.adversarial_label == "reject")
            parts.append((x_adv, np.where(moved, self.k, y)))
        return Shares(parts, weights, batch_size=s.batch_size, classes=self.k + 1, seed=derive(s.seed, "mix", number))

    def not_fooled(self, model: keras.Model) -> dict[str, float]:
        """Accuracy of held-out images under each attack made on the model itself."""
        d, found = self.data, {}
        x, y = d.x_valid[self.valid], d.y_valid[self.valid]
        for name, attack in self.attacks.items():
            x_adv = attack(model, x, y, seed=derive(self.s.seed, "rho", name), progress=False)
            predicted = models.predict_logits(model, x_adv).argmax(axis=1)
            good = predicted == y if self.s.adversarial_label == "true" else (predicted == y) | (predicted == self.k)
            found[name] = float(np.mean(good))
        return found

    def retrain(self, pieces: Store, model: keras.Model):
        """The rounds; returns the piece of the retrained model."""
        s, d = self.s, self.data
        steps = s.round_size // (s.batch_size // (len(self.attacks) + 2))
        rounds = s.iterations // steps
        model.compile(
            keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(s.learning_rate, rounds * steps)),
            keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=s.smoothing),
            metrics=["accuracy"],
            jit_compile=backend.jit(),
        )
        model.optimizer.build(model.trainable_variables)
        place = pieces.path("retrained")
        state, of = unfinished(pieces, "retrained") or (None, "")
        start = time.perf_counter()
        found = None if state is None else read_state(state, model, of=of)
        if found is not None:
            seen, _ = found
        else:
            seen = {"before": self.not_fooled(model), "rounds": [], "fired": None, "seconds": 0.0}
        earlier = seen["seconds"]
        with progress.bar("retraining", rounds, show=self.show, unit="rounds") as advance:
            advance(len(seen["rounds"]))
            known = ""
            for number in range(len(seen["rounds"]), rounds):
                if s.stop == "rho" and seen["fired"] is not None:
                    break
                with keeping.kept(place and place / f"round{number}", of):
                    data = self.shares(model, number, advance)
                advance(0, f"training{known}")
                history = model.fit(data, epochs=1, verbose=0, shuffle=False).history
                after = self.not_fooled(model)
                clean = models.predict_logits(model, d.x_valid).argmax(axis=1) == d.y_valid
                rho = {name: after[name] - seen["before"][name] for name in after}
                if seen["fired"] is None and min(rho.values()) >= RHO - 1e-9:  # 0.35 - 0.25 is a hair below
                    seen["fired"] = number + 1
                row = {"loss": history["loss"][0], "accuracy": history["accuracy"][0], "val_accuracy": np.mean(clean)}
                row |= {"val_robust_accuracy": min(after.values())} | {f"rho_{k}": v for k, v in rho.items()}
                seen["rounds"].append({k: float(v) for k, v in row.items()})
                seen["seconds"] = earlier + time.perf_counter() - start
                if state is not None:
                    write_state(state, model, seen, of=of)
                    remove(place / f"round{number}")
                known = ", " + progress.numbers({k: v for k, v in row.items() if not k.startswith("rho_")})
                advance(1)
        history = {k: [row[k] for row in seen["rounds"]] for k in seen["rounds"][0]}
        arrays, meta = weights_piece(model, history)
        return arrays, {**meta, "fired": seen["fired"], "before": seen["before"], EARLIER: earlier}

    # -- judging ------------------------------------------------------------------------------------------------

    def plan(self, name: str, model: keras.Model, surrogate: keras.Model, *, adaptive: bool) -> Plan:
        """The attacks on the model itself (white box) and on the surrogate (gray box), and on the defense whole."""
        paper = {}
        for label, victim in ((name, model), ("gray", surrogate)):
            for attack, run in self.attacks.items():
                shown = attack if victim is model else f"{GRAY}{attack}"
                place = {"piece": f"attacks/{label}-{attack}", "phase": f"attacks, {label}-{attack}"}
                place["access"] = "gradients" if victim is model else "none"
                paper[shown] = Planned(run, on=victim, seed=derive(self.s.seed, "judge", attack), **place)
        found = {}
        for attack, run in (self.adaptive() if adaptive else {}).items():
            place = {"piece": f"attacks/adaptive-{attack}", "phase": f"attacks, adaptive-{attack}"}
            found[attack] = Planned(run, seed=self.s.seed, **place)
        return Plan(name, self.test, paper=paper, adaptive=found)

    def adaptive(self) -> dict[str, Attack]:
        """Attacks on the retrained defense whole."""
        long = {"steps": 100, "random_start": False, "relative_step": ADAPTIVE_STEP}
        eps = self.s.eps
        attacks = {"pgd": PGD(eps=eps, steps=40), "margin_pgd": PGD(eps=eps, loss="margin", **long)}
        return attacks | ({"autoattack": AutoAttack(eps=eps)} if self.s.autoattack else {})

    def judge(self, pieces: Store, name: str, model, surrogate, *, rejects: bool, adaptive: bool) -> Evaluation:
        """What a model says of the test images, clean and attacked."""
        plan = self.plan(name, model, surrogate, adaptive=adaptive)
        return evaluate(RejectClass(model, rejects=rejects), self.data, plan, pieces, progress=self.show)

    def all(self, pieces: Store, out) -> IAR:
        """Train, retrain, judge, write."""
        surrogate, _ = self.clean(pieces, "surrogate")
        before, history = self.clean(pieces, "network")
        undefended = self.judge(pieces, "before", before, surrogate, rejects=False, adaptive=False)
        model = self.build("network")
        model.set_weights(before.get_weights())
        piece = pieces.get("retrained", lambda: self.retrain(pieces, model), phase="retraining")
        restore(model, piece)
        rejects = self.s.adversarial_label == "reject"
        defended = self.judge(pieces, "after", model, surrogate, rejects=rejects, adaptive=True)
        x, y = self.data.x_test[self.test], self.data.y_test[self.test]
        fired = piece[1]["fired"]
        report = Report(
            undefended.outcomes + defended.outcomes,
            classes=self.k,
            reject=self.k,
            rejecting=["after"] if rejects else [],
            main="after",
            bounds=self.data.bounds,
            class_names=self.data.class_names,
            settings=self.record(),
            seed=self.s.seed,
            dataset=self.data.name,
            phases=pieces.seconds,
            history={"before": history, "after": piece[1]["history"]},
            examples=first_examples(x, y, {a: undefended.images["paper", a] for a in self.attacks}, before),
            notes=self._notes(len(piece[1]["history"]["loss"]), fired, piece[1]["before"]),
            flags=undefended.flags + defended.flags,
        )
        result = IAR(model, before, surrogate, piece[1]["history"], fired, report, out if out is None else Path(out))
        if out is not None:
            result.files = report.save(out)
            result.files["model"] = result.export(Path(out) / "iar.keras", to="keras")
            result.files["saved_model"] = result.export(Path(out) / "saved_model")
        return result

    def _notes(self, rounds: int, fired: int | None, before: dict[str, float]) -> list[str]:
        """What a reader should know of the attacks, the labels and the rule."""
        radii, cw = "Attacks of the user's own: the settings name them.", self.attacks.get("cw")
        if isinstance(cw, Within):
            radii = (
                f"FGSM, PGD and BIM at Linf {self.s.eps:g}; the paper names no radius. "
                f"C&W images beyond an L2 radius of {cw.eps:.3g} are brought back onto it."
            )
        label = "their class"
        if self.s.adversarial_label == "reject":
            label = f"the label {self.k}; attacks want neither that nor the true one"
        least = max(before, key=before.get)
        end = f"did not fire; before retraining {least} left {100 * before[least]:.1f} % of them"
        if fired is not None:
            end = f"fired after round {fired} of {rounds}"
        return [
            f"{radii} The adaptive column is at Linf {self.s.eps:g}.",
            f"Attacks named {GRAY}... are made on the surrogate, all others on the model itself (white box).",
            f"Adversarial images were trained on with {label}.",
            f"The rule, rho >= {RHO:g} under every attack on {len(self.valid)} held-out images, {end}.",
        ]
