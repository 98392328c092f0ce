"""Judge the defense of a finished run: clean, as the paper did it, and by attackers who know it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import keras

from kerasdef.annotations import checked
from kerasdef.datasets import Dataset
from kerasdef.datasets import load as load_dataset
from kerasdef.defenses import Defense, Plain, RejectClass, adaptive
from kerasdef.defenses.loading import Loaded, load_model, read_keras, test_images
from kerasdef.evaluation import Images, Plan, Planned
from kerasdef.evaluation import evaluate as carried_out
from kerasdef.evaluation.judging import reach
from kerasdef.identity import digest
from kerasdef.recipes.accounting import accounting, attacker, manifest, paper_attacks
from kerasdef.recipes.base import stratified
from kerasdef.recipes.settings import EvaluateSettings
from kerasdef.reporting import Report
from kerasdef.runs.places import UNDEFENDED
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store
from kerasdef.settings import takes


@dataclass(frozen=True, eq=False)
class Judged:
    """A judged defense.

    Args:
        defense: The defense.
        report: What was measured.
        files: What was written, by name.
    """

    defense: Defense
    report: Report
    files: Mapping[str, Path] = field(default_factory=dict)


@takes(EvaluateSettings)
@checked
def evaluate(run: str | Path, data: str | Path | Dataset | tuple | None = None, **given) -> Judged:
    """Judge the defense of a finished run on its test images.

    The paper column holds attacks on the undefended model that the run has kept, or else on the first member of the
    defense, which are shown to the defense. With `adaptive` the defense is also attacked by `kerasdef.adaptive`, whose
    manifest is a section of the report, and so is each of its members alone.

    Args:
        {settings}

    Raises:
        ValueError: There is no finished run with a Keras model, a setting is out of range, or the radius is not known.
    """
    s = EvaluateSettings.of({"run": run, "data": data, **given})
    loaded = load_model(Path(s.run))
    if loaded.black_box:
        raise ValueError(f"`run` must hold a .keras file. Received: run={str(s.run)!r}")
    settings = loaded.settings or {}
    data = settings.get("dataset") if s.data is None else s.data
    data = load_dataset(data) if isinstance(data, str | Path) else data
    dataset = test_images(data, loaded)
    (low, high), (first, last) = dataset.bounds, loaded.defense.bounds
    dataset = dataset.rescaled((first, last))
    eps = settings.get("eps") if s.eps is None else s.eps * (last - first) / (high - low)
    if eps is None:
        raise ValueError(f"`eps` must be given for a run that has no radius. Received: eps=None for run={str(s.run)!r}")
    return _Judge(s, loaded, dataset, float(eps)).all()


class _Judge:
    """The defense of a run and what it is compared with."""

    def __init__(self, settings: EvaluateSettings, loaded: Loaded, data: Dataset, eps: float):
        self.s, self.defense, self.data, self.eps = settings, loaded.defense, data, eps
        self.name = (loaded.settings or {}).get("recipe", loaded.name)
        self.rows = stratified(data.y_test, settings.n, derive(settings.seed, "test"))
        members = self.defense.members
        alone = len(members) > 1 or not isinstance(self.defense, Plain | RejectClass)
        self.members = {f"member{i}": self.alone(m) for i, m in enumerate(members, 1)} if alone else {}
        kept = Path(settings.run) / UNDEFENDED
        self.source = read_keras(kept) if kept.is_file() else next(iter(members), None)
        self.source_name = "undefended" if kept.is_file() else "member1"

    def alone(self, member: keras.Model) -> keras.Model:
        """A member as a defense of its own, which rejects where it has a class for that."""
        reject = self.defense.reject
        return RejectClass(member) if reject is not None and member.output_shape[-1] > reject else member

    def all(self) -> Judged:
        """Attack, ask, report."""
        s, pieces = self.s, Store(self.s.out, self.record())
        if s.parts is not None:  # before work starts
            adaptive(self.defense, eps=self.eps, parts=s.parts)
        images, outcomes, flags = self.images(pieces), [], []
        names = {**self.members, self.name: self.defense} if s.adaptive else {self.name: self.defense}
        for name, model in names.items():
            planned = {}
            if s.adaptive:
                options = {"seed": s.seed, "bounds": self.data.bounds}
                options |= {} if s.parts is None else {"parts": s.parts}
                planned = {"adaptive": attacker(name, model, self.data.x_test[self.rows], self.eps, s.steps, **options)}
            plan = Plan(name, self.rows, paper=images, adaptive=planned)
            found = carried_out(model, self.data, plan, pieces, progress=s.progress)
            outcomes += found.outcomes
            flags += found.flags
        report = Report(
            outcomes,
            classes=self.defense.classes,
            reject=self.defense.reject,
            rejecting=[name for name, model in names.items() if getattr(model, "reject", None) is not None],
            main=self.name,
            class_names=[*self.data.class_names, *map(str, range(self.data.classes, self.defense.classes))],
            dataset=self.data.name,
            bounds=self.data.bounds,
            settings=self.record(),
            seed=s.seed,
            phases=pieces.seconds,
            notes=self.notes(),
            flags=flags,
        )
        report.sections.append(accounting(report, members=list(self.members) if s.adaptive else ()))
        if s.adaptive:
            report.sections.append(
                manifest(pieces, self.name, planned["adaptive"].attack, found.results["adaptive", "adaptive"])
            )
        return Judged(self.defense, report, {} if s.out is None else report.save(s.out))

    def record(self) -> dict:
        """Everything the results depend on."""
        d = self.data
        weights = [keras.ops.convert_to_numpy(v) for v in self.defense.weights]
        return {
            "recipe": "evaluate",
            "defense": self.defense.facts,
            "weights": digest(*weights),
            "dataset": d.name,
            "fingerprint": digest(d.x_test[self.rows], d.y_test[self.rows]),
            **self.s.record(),
            "eps": self.eps,
        }

    def images(self, pieces: Store) -> dict[str, Images]:
        """The images of the paper's attacks, on the model that they are made on."""
        if self.source is None:
            return {}
        attacks, planned = paper_attacks(self.eps, bounds=self.data.bounds, autoattack=self.s.autoattack), {}
        for name, attack in attacks.items():
            place = {"piece": f"attacks/{name}", "phase": f"attacks on {self.source_name}"}
            options = {"on": self.source, "seed": derive(self.s.seed, name), "batch_size": 256}
            planned[name] = Planned(attack, access="gradients", **options, **place)
        plan = Plan(self.source_name, self.rows, paper=planned)
        found = carried_out(self.source, self.data, plan, pieces, progress=self.s.progress)
        made = {name: found.images["paper", name] for name in attacks}
        radii = {o.attack: o.radius for o in found.outcomes}
        return {n: Images(x, self.rows, radii[n], reach(attacks[n], 1)[0]) for n, x in made.items()}

    def notes(self) -> list[str]:
        """What a reader should know."""
        found = [f"All attacks with a radius have Linf {self.eps:.4g}, on {len(self.rows)} test images."]
        if self.source is not None:
            found.append(f"The attacks of the paper column were made on {self.source_name}.")
        if self.s.adaptive:
            found.append(f"The adaptive attack on each model is that of `kerasdef.adaptive`, {self.s.steps} steps.")
        else:
            found.append("Nothing here speaks of robustness: the defense was not attacked by one who knows it.")
        return found
