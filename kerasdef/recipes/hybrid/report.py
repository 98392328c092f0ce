"""How the hybrid recipe judges: the paper's protocol, the adaptive attacks, and the account of the defense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import keras
import numpy as np

from kerasdef.datasets import Dataset
from kerasdef.defenses import HybridDefense
from kerasdef.evaluation import Evaluation, Images, Outcome, Plan, Planned, evaluate
from kerasdef.evaluation.judging import reach
from kerasdef.recipes import accounting
from kerasdef.recipes.accounting import QUICK, Shown, attacker, paper_attacks, succeeded
from kerasdef.recipes.base import first_examples, stratified
from kerasdef.recipes.hybrid.detecting import RATE, compared
from kerasdef.recipes.hybrid.settings import HybridSettings
from kerasdef.recipes.latency import latency
from kerasdef.reporting import Report, Section
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store

UNDEFENDED, BASE, ENSEMBLE, MAIN = "undefended", "member1", "ensemble", "hybrid"
_PREFIX = "base-"  # of the names of attacks that were made on the base


@dataclass(frozen=True, eq=False)
class Judge:
    """The models of a run, and the test images that they are judged on.

    Args:
        data: The data set.
        settings: Settings of the run.
        calibrating: Images that thresholds are set on.
        x_adv: Attacked training images, for detectors that learn from these.
        undefended: The network trained on clean images.
        members: The members of the ensemble.
        ensemble: Them together, without detector and repair.
        defense: All of it.
    """

    data: Dataset
    settings: HybridSettings
    calibrating: np.ndarray
    x_adv: np.ndarray
    undefended: keras.Model
    members: Sequence[keras.Model]
    ensemble: HybridDefense
    defense: HybridDefense

    @property
    def rows(self) -> np.ndarray:
        """Test images that are judged on."""
        return stratified(self.data.y_test, self.settings.n_test, derive(self.settings.seed, "test"))

    @property
    def count(self) -> int:
        """How many of these the costly attacks meet."""
        return min(len(self.rows), self.settings.adaptive_limit)

    def report(self, pieces: Store, record: Mapping, *, history, costs, reliable: Mapping) -> Report:
        """Judge all models.

        Args:
            pieces: Keeps the images of the attacks.
            record: Settings of the run.
            history: Keras history by network.
            costs: What training cost, by network.
            reliable: Accuracy of the members on validation images, "clean" and "attacked".
        """
        source, base = self.sources(pieces)
        images = {attack: self.taken(found, attack) for found in (source, base) for (_, attack) in found.images}
        models = {f"member{i}": member for i, member in enumerate(self.members, 1)}
        models |= {ENSEMBLE: self.ensemble, MAIN: self.defense}
        outcomes, flags = list(source.outcomes), [*source.flags, *base.flags]
        outcomes += self.seen(UNDEFENDED, self.undefended, base)
        for name, model in models.items():
            s = self.settings
            x = self.data.x_test[self.rows[: self.count]]
            planned = attacker(name, model, x, s.eps, s.adaptive_steps, seed=s.seed, parts=QUICK)
            shown = {a: i for a, i in images.items() if not (name == BASE and a.startswith(_PREFIX))}
            plan = Plan(name, self.rows, paper=shown, adaptive={"adaptive": planned})
            found = evaluate(model, self.data, plan, pieces, progress=s.progress)
            outcomes += found.outcomes
            flags += found.flags
        outcomes += [o for o in base.outcomes if o.attack != "clean"]
        order = [UNDEFENDED, *models]
        outcomes.sort(key=lambda o: order.index(o.model))
        report = Report(
            outcomes,
            classes=self.data.classes,
            reject=self.defense.reject,
            rejecting=[] if self.defense.reject is None else [MAIN],
            main=MAIN,
            class_names=self.data.class_names,
            dataset=self.data.name,
            bounds=self.data.bounds,
            settings=record,
            seed=self.settings.seed,
            history=history,
            costs=costs,
            examples=self.examples(source),
            notes=self.notes(),
            flags=flags,
        )
        report.sections += self.sections(pieces, report, source, base, reliable)
        report.sections.append(accounting.manifest(pieces, MAIN, planned.attack, found.results["adaptive", "adaptive"]))
        report.phases = pieces.seconds
        return report

    def sources(self, pieces: Store) -> tuple[Evaluation, Evaluation]:
        """The paper's attacks on the undefended network and on the first member, and what these say of them."""
        found = []
        for name, prefix, model in ((UNDEFENDED, "", self.undefended), (BASE, _PREFIX, self.members[0])):
            planned = {}
            whole = self.settings.autoattack and name == UNDEFENDED
            for attack, made in paper_attacks(self.settings.eps, autoattack=whole).items():
                place = {"piece": f"attacks/{name}-{attack}", "phase": f"attacks on {name}"}
                seed = derive(self.settings.seed, name, attack)
                count = None if name == UNDEFENDED else self.count
                options = {"on": model, "access": "gradients", "batch_size": 256, "count": count}
                planned[f"{prefix}{attack}"] = Planned(made, seed=seed, **options, **place)
            plan = Plan(name, self.rows, paper=planned)
            found.append(evaluate(model, self.data, plan, pieces, progress=self.settings.progress))
        return tuple(found)

    def taken(self, found: Evaluation, attack: str) -> Images:
        """The images of an attack, for other models."""
        (o,) = (o for o in found.outcomes if o.attack == attack)
        made = paper_attacks(self.settings.eps)[attack.removeprefix(_PREFIX)]
        return Images(found.images["paper", attack], o.index, o.radius, reach(made, 1)[0])

    def seen(self, name: str, model: keras.Model, found: Evaluation) -> list[Outcome]:
        """Outcomes of a model on the images that an evaluation made."""
        images = {attack: self.taken(found, attack) for _, attack in found.images}
        return evaluate(model, self.data, Plan(name, self.rows, paper=images)).outcomes[1:]

    def examples(self, source: Evaluation) -> dict:
        """Test images and what the attacks on the undefended network made of them."""
        made = {attack: x for (_, attack), x in source.images.items()}
        return first_examples(self.data.x_test[self.rows], self.data.y_test[self.rows], made, self.undefended)

    # -- what only this recipe shows ----------------------------------------------------------------------------

    def sections(self, pieces: Store, report: Report, source, base, reliable) -> list[Section]:
        """The account, detection, the members and the cost of a prediction."""
        names = [f"member{i}" for i in range(1, len(self.members) + 1)]
        transfer = [attack for _, attack in base.images]
        found = [
            accounting.accounting(
                report, members=names, base=BASE, transfer=transfer, answered=self.answered() if report.reject else None
            ),
        ]
        if self.settings.detects:
            found += self.detection(pieces, source, base)
        found += [self.ensemble_section(report, names, reliable), self.cost(pieces, source)]
        return found

    def detection(self, pieces: Store, source: Evaluation, base: Evaluation) -> list[Section]:
        """What the detector finds, and what others would find."""
        shown, attacked = {}, {}
        for name, one in ((UNDEFENDED, source), (BASE, base)):
            for o in one.outcomes[1:]:
                x, lost = one.images["paper", o.attack], succeeded(one.outcomes[0], o)
                shown[o.attack] = Shown(name, self.defense.detector.scores(x), lost)
                attacked[o.attack] = x[lost]
        clean = self.data.x_test[self.rows]
        found = [accounting.detection(self.defense.detector.scores(clean), shown)]
        if not self.settings.compare:
            return found
        attacked = {name: x for name, x in attacked.items() if not name.startswith(_PREFIX)}
        among = self.data, self.calibrating, self.x_adv, self.undefended, self.members

        def make():
            return {}, {"rows": compared(*among, clean, attacked, self.settings.detectors)}

        rows = pieces.get("detectors", make, phase="other detectors", judging=True)[1]["rows"]
        text = (
            f"Shares in % at {RATE:.0%} false positives, as the paper did it; each on the members alone, or with "
            f"{UNDEFENDED} in front of them."
        )
        return [*found, Section("detectors", "Other detectors on the same images", text, rows)]

    def answered(self) -> float:
        """Accuracy on clean images where flagged ones are answered after the repair."""
        x = self.data.x_test[self.rows]
        parts = [
            np.asarray(keras.ops.convert_to_numpy(self.defense(x[i : i + 256])["answer"]))
            for i in range(0, len(x), 256)
        ]
        return float(np.mean(np.concatenate(parts) == self.data.y_test[self.rows]))

    def ensemble_section(self, report: Report, names: Sequence[str], reliable: Mapping) -> Section:
        """The members: weights, and what each is worth alone."""
        rows = []
        for i, name in enumerate(names):
            _, good = accounting.standing(report, name)
            rows.append(
                {
                    "member": name,
                    "network": self.members[i].name,
                    "weight": float(self.defense.weights_of_members[i]),
                    "validation, clean": reliable["clean"][i],
                    "validation, attacked": reliable["attacked"][i],
                    "test, clean": report.row(name, "clean", "paper")["clean_accuracy"],
                    "test, adaptive": float(np.mean(good)),
                }
            )
        text = "Weights follow the accuracy on clean and attacked validation images (equation 7); shares from 0 to 1."
        return Section("members", "The members of the ensemble", text, rows)

    def cost(self, pieces: Store, source: Evaluation) -> Section:
        """The cost of a prediction, which is measured once in a run."""
        x = np.concatenate([self.data.x_test[self.rows][:256], next(iter(source.images.values()))[:256]])

        def make():
            return {}, {"section": latency(self.defense, x).record()}

        piece = pieces.get("latency", make, phase="cost of a prediction", judging=True)
        return Section(**piece[1]["section"])

    def notes(self) -> list[str]:
        """What a reader should know."""
        s = self.settings
        many = f"{len(self.rows)} test images, those on {BASE} and the adaptive ones on {self.count} of them"
        return [
            f"The attacks of the paper's protocol are made on {UNDEFENDED} and, as {_PREFIX}..., on {BASE}, and shown "
            f"to the other models. They have Linf {s.eps:.4g}; that of Carlini and Wagner is L2 and has no radius. "
            f"They are made of {many}.",
            f"The adaptive attack on each model has those of the parts {', '.join(QUICK)} of `kerasdef.adaptive` that "
            f"it can have, with {s.adaptive_steps} steps at the same radius. `kerasdef evaluate RUN --adaptive` runs "
            "all parts.",
            "The threshold of the detector is set on validation images that nothing else has seen.",
        ]
