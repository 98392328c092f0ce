"""The Model Integration Approach: adversarial training in growing shares, bootstraps, a vote.

Source of every number: Sanapala and Gondi, 2025 (short name "mia"); where the paper is silent or cannot be met on
small machines, the comment says what was chosen.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from kerasdef import backend, checks, models, networks
from kerasdef.attacks import FGSM, GMA, PGD, CarliniWagner, Cycled, GradientAttack
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.defenses import EvadeVote, bootstrap_indices, voting_model
from kerasdef.evaluation import Outcome, Report
from kerasdef.recipes.base import Pieces, derive, fingerprint, fit, restore, weights_piece
from kerasdef.training import Mixture, adversarial_count

RADII = (1.0, 2.0, 3.0)  # table 2, rows on training: read as L2 at 28x28
RADII_SIZE = 784  # the radii are for 28x28 images; others scale them by sqrt(d / 784)
THRESHOLD = 0.80  # section 4.1.2: "an accuracy greater than 80 %"
MEMBERS = ("eat1", "eat2", "eat3")  # table 1
ATTACKS = ("gma", "pgd", "fgsm", "cw")  # section 5.2
ADAPTIVE_STEP = {"l2": 30.0, "linf": 10.0}  # of eps / steps: the strongest tried, see docs/reproduction.md
SMALL = 10_000  # below this many training images: batches of 32, and epochs by optimizer steps
BATCH = {"small": 32, "large": 128}  # the paper names none
EPOCHS = {"target": 5, "eat": 2, "mia": 4}  # the paper: 10 for EAT, 50 for MIA, on a GPU
STEPS = {"target": 1500, "eat": 250, "mia": 700}  # at least this many optimizer steps on small sets


def default_attack(name: str, size: int):
    """The paper's attack of this name, for inputs of `size` values.

    "gma": thirty radii in Linf. "pgd" (10 steps) and "fgsm": L2 radii 1, 2 and 3 in turn, scaled by
    sqrt(size / 784). "cw": L2, 100 steps for each of 3 values of c (paper: up to 1,000 steps, which would take hours
    for a training set on two cores; pass your own `CarliniWagner` for them).
    """
    checks.one_of("attacks", name, ATTACKS)
    radii = tuple(r * math.sqrt(size / RADII_SIZE) for r in RADII)
    if name == "gma":
        return GMA()
    if name == "cw":
        return CarliniWagner(steps=100, binary_search_steps=3, initial_c=1.0, learning_rate=0.1)
    if name == "pgd":
        return Cycled(PGD(norm="l2", steps=10, early_stop=False), radii)  # table 2: 10 iterations
    return Cycled(FGSM(norm="l2"), radii)


@dataclass(frozen=True)
class Settings:
    """Every number of a run, checked; see `train` for what they mean."""

    shares: tuple[float, ...]
    share: float | None
    threshold: float
    stop: bool
    bootstraps: int
    epochs: dict[str, int]
    batch_size: int
    learning_rate: float
    test_size: float
    valid_size: float
    limit: int
    adaptive_limit: int
    adaptive_steps: int
    seed: int

    def __post_init__(self):
        checks.growing_shares("shares", self.shares)
        if self.share is not None and self.share not in self.shares:
            raise ValueError(f"`share` must be None or one of shares={self.shares}. Received: share={self.share!r}")
        checks.real("threshold", self.threshold, low=0.0, high=1.0)
        checks.positive_int("bootstraps", self.bootstraps)
        for name, value in self.epochs.items():
            checks.positive_int(f"epochs[{name!r}]", value)
        checks.positive_int("batch_size", self.batch_size)
        checks.real("learning_rate", self.learning_rate, low=0.0, open_low=True)
        checks.share("test_size", self.test_size)
        checks.share("valid_size", self.valid_size)
        checks.positive_int("limit", self.limit)
        checks.positive_int("adaptive_limit", self.adaptive_limit)
        checks.positive_int("adaptive_steps", self.adaptive_steps)
        checks.non_negative_int("seed", self.seed)
        for f in dataclasses.fields(self):
            if isinstance(getattr(self, f.name), np.generic):  # numbers of NumPy are no JSON values
                object.__setattr__(self, f.name, getattr(self, f.name).item())


@dataclass(frozen=True)
class AdversarialSet:
    """Adversarial images of one attack.

    Args:
        x: Images of shape (n, ...).
        y: True labels of shape (n,).
        index: Which image of its split each row is, shape (n,).
        radius: Radius of each row, shape (n,), or None.
        distance: L2 distance to the clean image, shape (n,).
        asked: Images that were to be attacked.
        wrong: Of these, left out because the target gets them wrong anyway.
        unmoved: Of these, left out because the attack changed nothing.
    """

    x: np.ndarray
    y: np.ndarray
    index: np.ndarray
    radius: np.ndarray | None
    distance: np.ndarray
    asked: int
    wrong: int
    unmoved: int

    def __len__(self) -> int:
        return len(self.x)


@dataclass
class MIA:
    """A trained defense.

    Args:
        model: One `keras.Model`: images in; `label`, `is_adversarial`, `votes`, `probabilities` out.
        members: The voters: Keras models that give K + 1 logits; the last stands for "adversarial".
        target: The undefended model that the attacks were made on.
        history: Keras history by model and cycle.
        report: What was measured.
        share: Share of adversarial images that the voters were trained at.
        fired: Whether the stop rule fired.
        out: The folder of the run, or None.
        files: What was written, by name.
    """

    model: keras.Model
    members: list[keras.Model]
    target: keras.Model
    history: dict[str, dict[str, list[float]]]
    report: Report
    share: float
    fired: bool
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def reject(self) -> int:
        """The label that stands for "adversarial"."""
        return self.members[0].output_shape[-1] - 1

    def predict(self, x: np.ndarray, *, batch_size: int = 512) -> np.ndarray:
        """Labels of shape (n,) for images of shape (n, ...); K stands for "adversarial"."""
        x = checks.images("x", x, shape=self.model.input_shape[1:])
        return vote(self.members, x, batch_size=batch_size)[0]

    def score(self, x: np.ndarray, y: np.ndarray) -> float:
        """Accuracy over K + 1 classes."""
        return float(np.mean(self.predict(x) == checks.labels("y", y, n=len(x), classes=self.reject + 1)))

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write the defense as a SavedModel ("saved_model") or a .keras file ("keras"), and check what was written."""
        from kerasdef.export import export

        return export(self.model, path, to=to)


def vote(members: Sequence[keras.Model], x: np.ndarray, *, batch_size: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n,) and mean probabilities of the last class (n,) by the hard vote of the members."""
    logits = np.stack([models.predict_logits(m, x, batch_size=batch_size) for m in members], axis=1)
    return _count(logits)


def _count(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from kerasdef.defenses.voting import decide

    label, _, probabilities = decide(keras.ops.convert_to_tensor(logits))
    return keras.ops.convert_to_numpy(label).astype("int64"), keras.ops.convert_to_numpy(probabilities)[:, -1]


@dataclass
class MIAEach:
    """One defense for each attack, as in the paper's tables 3, 5 and 6.

    Args:
        parts: The defenses by the name of their attack.
        report: All of them in one report: "mia-gma" is the defense against "gma", and so on.
        out: The folder of the run, or None.
        files: What was written, by name.
    """

    parts: dict[str, MIA]
    report: Report
    out: Path | None = None
    files: dict[str, Path] = field(default_factory=dict)

    def export(self, path: str | Path, *, to: str = "saved_model") -> Path:
        """Write each defense into a folder of the name of its attack."""
        for name, part in self.parts.items():
            part.export(Path(path) / (name if to == "saved_model" else f"{name}.keras"), to=to)
        return Path(path)


def train(
    data: str | Dataset | tuple | Path = "digits",
    *,
    attacks: Sequence[str] | Mapping[str, Callable] = ATTACKS,
    per_attack: bool = False,
    shares: Sequence[float] = (0.15, 0.25, 0.40, 0.50),
    share: float | None = None,
    threshold: float = THRESHOLD,
    stop: bool = False,
    bootstraps: int = 3,
    target: str | Callable = "target_dnn",
    members: Sequence[str | Callable] = MEMBERS,
    epochs: Mapping[str, int] | None = None,
    batch_size: int | None = None,
    learning_rate: float = 1e-3,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    test_size: float = 0.30,
    valid_size: float = 0.10,
    limit: int = 4000,
    adaptive_limit: int = 500,
    adaptive_steps: int = 100,
    seed: int = 0,
    out: str | Path | None = None,
    show: bool | None = None,
) -> MIA | MIAEach:
    """Train the MIA defense on a data set, judge it, and say so in a report.

    Trains the target; makes each attack's images on it, labeled K ("adversarial"); trains the EAT models in cycles
    with growing shares of these; trains a bootstrap of each at the share where the stop rule fired; joins them by a
    hard vote. The share is that of adversarial images in all training images, spread evenly over the attacks. Only
    images that the target gets right are attacked, and those an attack leaves unchanged (Carlini and Wagner may fail)
    are left out.

    Stop rule (section 4.1.2): the smallest share after which every EAT model is above `threshold` on every attack, in
    accuracy over K + 1 classes on clean and attacked validation images together. If no share reaches it, the last one
    is used and the report says so.

    Args:
        data: A name ("digits", "mnist", ...), the path of an .npz file, a `Dataset`, or arrays (x, y) or
            (x_train, y_train, x_test, y_test).
        attacks: Names of attacks, or a dict from names to attacks: anything called as `attack(model, x, y, seed=...,
            progress=...)` that returns x_adv.
        per_attack: Train one defense for each attack, as in the paper's tables, instead of one for all.
        shares: Shares of adversarial images, growing, each in (0, 1).
        share: The one of `shares` that the voters are trained at (the paper took 0.40). None: the stop rule's.
        threshold: Of the stop rule, in [0, 1].
        stop: End the cycles where the rule fires. False trains all, as in tables 5 and 6; the rule chooses alike.
        bootstraps: Number of voters; voter i starts from EAT model i modulo their number.
        target: Name of a network, or a function (input_shape, outputs, seed=...) that returns a Keras model.
        members: The same for the EAT models.
        epochs: Passes for "target", for a cycle of "eat" and for "mia"; missing ones take the defaults: 5, 2 and 4,
            and on fewer than 10,000 training images as many as make 1,500, 250 and 700 optimizer steps.
        batch_size: Samples in a training batch; None: 128, or 32 below 10,000 training images.
        learning_rate: Of Adam.
        callbacks: Keras callbacks, passed to every `fit`.
        test_size: Share of the whole set held out for testing, stratified (paper: 0.30).
        valid_size: Share of the rest held out for the stop rule.
        limit: Most test images to judge on; the clean and the attacked images are the same ones.
        adaptive_limit: Most test images for the adaptive attacks.
        adaptive_steps: Steps of the adaptive attacks.
        seed: All randomness comes from it: two runs give the same report.
        out: Folder for the run: pieces, report, exported model. A run that was killed goes on from there.
        show: Progress bars; None shows them on a terminal and in notebooks.

    Returns:
        A `MIA`, or a `MIAEach` with `per_attack=True`.

    Raises:
        ValueError: A setting is out of range, a name is unknown, the data does not fit, or `out` is of another run.

    References: Sanapala and Gondi, 2025, section 4, tables 1 and 2.
    """
    dataset = as_dataset(data)
    if dataset.bounds != (0.0, 1.0):
        raise ValueError(f"`data` must lie in the bounds (0, 1). Received: bounds={dataset.bounds}")
    size = math.prod(dataset.input_shape)
    if not isinstance(attacks, Mapping):
        attacks = (attacks,) if isinstance(attacks, str) else attacks
        attacks = {name: default_attack(name, size) for name in attacks}
    if not attacks:
        raise ValueError("`attacks` must name at least one attack. Received: attacks=()")
    for name in attacks:
        if not isinstance(name, str) or name in ("clean", "pooled") or not name.isidentifier():
            raise ValueError(f"`attacks` must have names that are identifiers. Received: {name!r}")
        if not callable(attacks[name]):
            raise ValueError(f"`attacks` must hold callables. Received: {name}={attacks[name]!r}")
    checks.share("test_size", test_size)
    checks.share("valid_size", valid_size)
    dataset = dataset.resplit(test_size, seed=checks.non_negative_int("seed", seed)).with_validation(
        valid_size, seed=seed
    )
    small = dataset.n_train < SMALL
    batch_size = (BATCH["small"] if small else BATCH["large"]) if batch_size is None else batch_size
    settings = Settings(
        shares=checks.growing_shares("shares", shares),
        share=share,
        threshold=threshold,
        stop=bool(stop),
        bootstraps=bootstraps,
        epochs=_epochs(epochs, dataset.n_train, checks.positive_int("batch_size", batch_size), small),
        batch_size=batch_size,
        learning_rate=learning_rate,
        test_size=test_size,
        valid_size=valid_size,
        limit=limit,
        adaptive_limit=adaptive_limit,
        adaptive_steps=adaptive_steps,
        seed=seed,
    )
    if dataset.n_train < batch_size:
        raise ValueError(
            f"`batch_size` must be at most the number of training images, {dataset.n_train}. "
            f"Received: batch_size={batch_size}"
        )
    builders = {"target": _builder("target", target)}
    members = (members,) if isinstance(members, str) or callable(members) else members
    builders |= {f"eat{i + 1}": _builder("members", m) for i, m in enumerate(members)}
    if len(builders) == 1:
        raise ValueError("`members` must be one or more networks. Received: members=()")
    run = _Run(dataset, dict(attacks), settings, builders, list(callbacks), show)
    run.check_networks()
    pieces = Pieces(out, run.record(per_attack))
    if not per_attack:
        return run.finish(run.defense(pieces, tuple(attacks), ""), pieces, out)
    parts = {name: run.defense(pieces, (name,), f"{name}/") for name in attacks}
    return run.finish_each(parts, pieces, out)


def _epochs(given: Mapping[str, int] | None, n: int, batch_size: int, small: bool) -> dict[str, int]:
    per_epoch = max(1, n // batch_size)
    epochs = {k: max(EPOCHS[k], math.ceil(STEPS[k] / per_epoch)) if small else EPOCHS[k] for k in EPOCHS}
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"`epochs` must be a dict of {', '.join(EPOCHS)}. Received: epochs={given!r}")
    for name, value in (given or {}).items():
        name = checks.one_of("epochs", name, EPOCHS)
        epochs[name] = checks.positive_int(f"epochs[{name!r}]", value)
    return epochs


def _builder(name: str, network: str | Callable) -> Callable:
    if callable(network):
        return network
    return networks.NETWORKS[checks.one_of(name, network, networks.NETWORKS)]


class _Run:
    """The steps of a run, each a piece that is made once."""

    def __init__(self, dataset, attacks, settings, builders, callbacks, show):
        self.data, self.attacks, self.s, self.builders = dataset, attacks, settings, builders
        self.callbacks, self.show = callbacks, show
        self.k = dataset.classes
        self.test_rows = _stratified(dataset.y_test, settings.limit, derive(settings.seed, "test"))
        self.valid_rows = _stratified(dataset.y_valid, max(200, settings.limit // 4), derive(settings.seed, "valid"))

    def record(self, per_attack: bool) -> dict:
        """Everything the results depend on."""
        d = self.data
        return {
            "recipe": "mia",
            "dataset": self.data.name,
            "fingerprint": fingerprint(d.x_train, d.y_train, d.x_valid, d.y_valid, d.x_test, d.y_test),
            "attacks": {name: _describe(attack) for name, attack in self.attacks.items()},
            "per_attack": bool(per_attack),
            "networks": {name: getattr(b, "__name__", type(b).__name__) for name, b in self.builders.items()},
            "callbacks": [type(c).__name__ for c in self.callbacks],
            "backend": backend.NAME,
            **dataclasses.asdict(self.s),
        }

    def build(self, role: str, *labels) -> keras.Model:
        outputs = self.k if role == "target" else self.k + 1
        return self.builders[role](self.data.input_shape, outputs, seed=derive(self.s.seed, role, *labels) % 10**6)

    def check_networks(self) -> None:
        """Build every network once, so that one that does not fit is found before work starts."""
        for role in self.builders:
            model = self.build(role)
            outputs = self.k if role == "target" else self.k + 1
            if not isinstance(model, keras.Model) or model.output_shape[-1] != outputs:
                raise ValueError(
                    f"The network of {role!r} must be a keras.Model with {outputs} outputs. "
                    f"Received: {getattr(model, 'output_shape', type(model).__name__)}"
                )
            if tuple(model.input_shape[1:]) != tuple(self.data.input_shape):
                raise ValueError(
                    f"The network of {role!r} must take inputs of shape {tuple(self.data.input_shape)}. "
                    f"Received: {tuple(model.input_shape[1:])}"
                )

    # -- training -----------------------------------------------------------------------------------------------

    def fit(self, model, parts, valid, *, role, title, seed, rows=None):
        history = fit(
            model,
            Mixture(parts, batch_size=self.s.batch_size, seed=seed, rows=rows),
            epochs=self.s.epochs[role],
            title=title,
            valid=Mixture(valid, batch_size=512),
            learning_rate=self.s.learning_rate,
            callbacks=self.callbacks,
            show=self.show,
        )
        return weights_piece(model, history)

    def target(self, pieces) -> tuple[keras.Model, dict]:
        """The undefended model."""
        model, d = self.build("target"), self.data

        def make():
            seed = derive(self.s.seed, "target", "order")
            valid = [(d.x_valid, d.y_valid)]
            return self.fit(model, [(d.x_train, d.y_train)], valid, role="target", title="target", seed=seed)

        piece = pieces.get("target", make, phase="target")
        return restore(model, piece), piece[1]["history"]

    def adversarial(self, pieces, target, name: str, split: str, x, y, rows) -> AdversarialSet:
        """Images of one attack on the rows of a split, in the order of `rows` (which may repeat)."""
        attack = self.attacks[name]

        def make():
            right = models.predict_logits(target, x).argmax(axis=1) == y
            chosen = rows[right[rows]]
            x_adv = attack(target, x[chosen], y[chosen], seed=derive(self.s.seed, name, split), progress=self.show)
            if x_adv.shape != x[chosen].shape:
                raise ValueError(
                    f"Attack {name!r} must return one image for each. Received: {x_adv.shape} for {x[chosen].shape}"
                )
            distance = np.sqrt(np.sum((x_adv - x[chosen]).reshape(len(chosen), -1) ** 2, axis=1, dtype="float64"))
            moved = np.any((x_adv != x[chosen]).reshape(len(chosen), -1), axis=1)
            arrays = {
                "x": x_adv[moved],
                "y": y[chosen][moved],
                "index": chosen[moved],
                "distance": distance[moved].astype("float32"),
            }
            radius = _radii(attack, len(chosen))
            if radius is not None:
                arrays["radius"] = radius[moved].astype("float32")
            return arrays, {
                "asked": len(rows),
                "wrong": int(len(rows) - len(chosen)),
                "unmoved": int(np.sum(~moved)),
            }

        arrays, meta = pieces.get(f"sets/{name}-{split}", make, phase=f"attack {name}")
        counts = {k: meta[k] for k in ("asked", "wrong", "unmoved")}
        return AdversarialSet(**{"radius": None, **arrays}, **counts)

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

    def part(self, names, name: str, share: float) -> int:
        """Number of images of one attack in the share."""
        count = adversarial_count(self.data.n_train, share)
        return count // len(names) + (names.index(name) < count % len(names))

    def augmented(self, sets, names, share: float) -> list[tuple[np.ndarray, np.ndarray]]:
        """The clean training images and the first adversarial ones of every attack, labeled K."""
        parts = [(self.data.x_train, self.data.y_train)]
        for name in names:
            x = sets[name]["train"].x[: self.part(names, name, share)]
            parts.append((x, np.full(len(x), self.k)))
        return parts

    def valid_parts(self, sets, names):
        d = self.data
        clean = [(d.x_valid[self.valid_rows], d.y_valid[self.valid_rows])]
        return clean + [(sets[n]["valid"].x, np.full(len(sets[n]["valid"]), self.k)) for n in names]

    def defense(self, pieces: Pieces, names: tuple[str, ...], prefix: str) -> MIA:
        """Train, vote and judge, for the attacks named."""
        target, target_history = self.target(pieces)
        sets = self.sets(pieces, target, names)
        history, outcomes = {"target": target_history}, [*self.judge_target(target, sets, names)]
        roles = [r for r in self.builders if r != "target"]
        eat = {role: self.build(role, prefix) for role in roles}
        valid = self.valid_parts(sets, names)
        chosen, fired = None, False
        for cycle, share in enumerate(self.s.shares, 1):
            parts, accuracies = self.augmented(sets, names, share), {}
            for role, model in eat.items():
                label = f"{role}/cycle{cycle}"

                def make(model=model, label=label, parts=parts, cycle=cycle, share=share):
                    title = f"{prefix}{label} ({share:.0%} adversarial)"
                    seed = derive(self.s.seed, prefix, label)
                    return self.fit(model, parts, valid, role="eat", title=title, seed=seed)

                piece = pieces.get(f"{prefix}{label}", make, phase=f"EAT cycle {cycle}")
                restore(model, piece)
                history[label] = piece[1]["history"]
                accuracies[role] = {n: self.accuracy(model, sets[n]["valid"]) for n in names}
                outcomes += self.judge(label, lambda x, m=model: _single(m, x), sets, names)
            reached = all(v > self.s.threshold for r in accuracies.values() for v in r.values())
            if share == self.s.share or (self.s.share is None and not fired):
                chosen = (share, {r: m.get_weights() for r, m in eat.items()})
            if not fired:
                fired, rule = reached, (cycle, share, accuracies)
            if self.s.stop and (fired if self.s.share is None else share == self.s.share):
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
                return self.fit(model, parts, valid, role="mia", title=title, seed=seed, rows=rows)

            piece = pieces.get(f"{prefix}{label}", make, phase="voters")
            voters.append(restore(model, piece))
            history[label] = piece[1]["history"]
            outcomes += self.judge(label, lambda x, m=model: _single(m, x), sets, names)
        outcomes += self.judge("mia", lambda x: vote(voters, x), sets, names)
        outcomes += self.adaptive(pieces, voters, prefix)
        model = voting_model(voters, reject=self.k, name="mia")
        report = self.report(pieces, target, sets, names, outcomes, history, share, fired, rule)
        return MIA(model, voters, target, history, report, share, fired)

    def accuracy(self, model, attacked: AdversarialSet) -> float:
        """Accuracy over K + 1 classes on the clean and the attacked validation images together."""
        d, rows = self.data, self.valid_rows
        clean = models.predict_logits(model, d.x_valid[rows]).argmax(axis=1) == d.y_valid[rows]
        found = models.predict_logits(model, attacked.x).argmax(axis=1) == self.k
        return float(np.mean(np.concatenate([clean, found])))

    # -- judging ------------------------------------------------------------------------------------------------

    def judge(self, label, predict, sets, names) -> list[Outcome]:
        """Outcomes on the clean test images and on every attack's, as the paper did it."""
        d, rows = self.data, self.test_rows
        predicted, score = predict(d.x_test[rows])
        found = [Outcome(label, "paper", "clean", d.y_test[rows], predicted, score, index=rows)]
        for name in names:
            s = sets[name]["test"]
            predicted, score = predict(s.x)
            found.append(Outcome(label, "paper", name, s.y, predicted, score, s.radius, s.index, s.distance))
        return found

    def judge_target(self, target, sets, names) -> list[Outcome]:
        return self.judge("target", lambda x: (models.predict_logits(target, x).argmax(axis=1), None), sets, names)

    def adaptive(self, pieces, voters, prefix) -> list[Outcome]:
        """The attacker sees the voting model whole and wants a label that is neither true nor K."""
        d = self.data
        rows = self.test_rows[: self.s.adaptive_limit]
        x, y = d.x_test[rows], d.y_test[rows]
        stacked = models.stack_logits(voters)
        found = []
        for name, (attack, radius) in self.adaptive_attacks(len(rows)).items():

            def make(attack=attack, name=name):
                seed = derive(self.s.seed, prefix, "adaptive", name)
                return {"x": attack(stacked, x, y, batch_size=128, seed=seed, progress=self.show)}, {}

            arrays, _ = pieces.get(f"{prefix}adaptive/{name}", make, phase="adaptive attacks")
            x_adv = arrays["x"]
            predicted, score = vote(voters, x_adv)
            distance = np.sqrt(np.sum((x_adv - x).reshape(len(x), -1) ** 2, axis=1, dtype="float64"))
            found.append(Outcome("mia", "adaptive", name, y, predicted, score, radius, rows, distance))
        return found

    def adaptive_attacks(self, n: int) -> dict[str, tuple[GradientAttack, np.ndarray]]:
        """PGD and margin-loss PGD at the paper's L2 radii, and margin-loss PGD at the thirty radii of GMA.

        They start at the image and take long steps. From a random point of the ball the vote says "adversarial" at
        once and its gradients lead nowhere: such attacks fool almost nothing and make the defense look robust.
        """
        size = math.prod(self.data.input_shape)
        l2 = np.resize(np.asarray(RADII) * math.sqrt(size / RADII_SIZE), n)
        thirty = GMA().radii_of(n)
        common = {
            "steps": self.s.adaptive_steps,
            "random_start": False,
            "goal": EvadeVote(self.k),
        }
        return {
            "pgd": (PGD(eps=l2, norm="l2", relative_step=ADAPTIVE_STEP["l2"], **common), l2),
            "margin_pgd": (PGD(eps=l2, norm="l2", relative_step=ADAPTIVE_STEP["l2"], loss="margin", **common), l2),
            "gma": (PGD(eps=thirty, norm="linf", relative_step=ADAPTIVE_STEP["linf"], loss="margin", **common), thirty),
        }

    # -- reporting ----------------------------------------------------------------------------------------------

    def examples(self, target, sets, names) -> dict:
        """A test image of each of up to eight classes that every attack changed, and what the attacks made of it."""
        common = set.intersection(*[set(sets[n]["test"].index.tolist()) for n in names])
        largest = {n: _by_radius(sets[n]["test"]) for n in names}
        rows, classes = [], set()
        for row in sorted(common, key=lambda r: -max(largest[n].get(r, 0.0) for n in names)):
            label = int(self.data.y_test[row])
            if label not in classes and len(rows) < 8:
                classes.add(label)
                rows.append(row)
        rows = sorted(rows, key=lambda r: self.data.y_test[r])
        if not rows or len(self.data.input_shape) != 3:
            return {}
        shown, predicted = {}, {}
        for name in names:
            where = {int(i): j for j, i in enumerate(sets[name]["test"].index)}
            shown[name] = sets[name]["test"].x[[where[r] for r in rows]]
            predicted[name] = models.predict_logits(target, shown[name]).argmax(axis=1)
        x, y = self.data.x_test[rows], self.data.y_test[rows]
        return {"images": x, "attacks": shown, "labels": y, "predicted": predicted}

    def report(self, pieces, target, sets, names, outcomes, history, share, fired, rule) -> Report:
        cycle, at, accuracies = rule
        asked = f"every EAT model above {self.s.threshold:.0%} over {self.k + 1} classes on every attack"
        worst = min((v, f"{r} on {n}") for r, by in accuracies.items() for n, v in by.items())
        if fired:
            said = f"The stop rule ({asked}) fired in cycle {cycle}, at a share of {at:.0%} adversarial images."
        else:
            said = (
                f"The stop rule ({asked}) did not fire: the lowest accuracy in the last cycle was {worst[0]:.1%} "
                f"({worst[1]})."
            )
        said += f" The voters were trained at {share:.0%}."
        left_out = []
        for name in names:
            s = sets[name]["test"]
            left_out.append(f"{name}: {s.wrong} of {s.asked} wrong before, {s.unmoved} unchanged")
        notes = [
            said,
            "Attacks are made on the target, on test images that it gets right; left out are "
            + "; ".join(left_out)
            + ".",
            f"L2 radii {', '.join(f'{r:g}' for r in RADII)} are for 28x28 images and are scaled by sqrt(d / 784).",
            f"The adaptive attacks ran on {min(len(self.test_rows), self.s.adaptive_limit)} test images, "
            f"{self.s.adaptive_steps} steps.",
        ]
        flags = [] if fired else ["The stop rule did not fire at any share."]
        for name in names:
            asked_for, there = self.part(names, name, self.s.shares[-1]), len(sets[name]["train"])
            if there < asked_for:
                flags.append(
                    f"The largest share asks for {asked_for} training images of {name}; the attack gave {there}, "
                    "so the larger shares are not met."
                )
        return Report(
            outcomes,
            classes=self.k,
            reject=self.k,
            class_names=self.data.class_names,
            settings={**self.record(False), "share used": share, "stop rule": accuracies},
            seed=self.s.seed,
            dataset=self.data.name,
            phases=dict(pieces.seconds),
            history=history,
            examples=self.examples(target, sets, names),
            notes=notes,
            flags=flags,
        )

    def finish(self, result: MIA, pieces, out) -> MIA:
        """Write report and export."""
        if out is None:
            return result
        result.out = Path(out)
        result.files = result.report.save(out)
        result.files["model"] = result.export(Path(out) / "mia.keras", to="keras")
        result.files["saved_model"] = result.export(Path(out) / "saved_model")
        return result

    def finish_each(self, parts: dict[str, MIA], pieces, out) -> MIAEach:
        """One report of all defenses; reports and exports of each in its folder."""
        outcomes, history, notes, flags = [], {}, [], []
        for name, part in parts.items():
            for o in part.report.outcomes:
                if o.model == "mia":
                    outcomes.append(dataclasses.replace(o, model=f"mia-{name}"))
                elif o.model == "target" and not any(p.model == "target" and p.attack == o.attack for p in outcomes):
                    outcomes.append(o)
            history |= {f"{name}:{label}": h for label, h in part.history.items() if label != "target"}
            notes.append(f"{name}: {part.report.notes[0]}")
            flags += [f"{name}: {f}" for f in part.report.flags]
        last = next(iter(reversed(parts.values())))
        outcomes.sort(key=lambda o: o.model != "target")
        report = Report(
            outcomes,
            classes=self.k,
            reject=self.k,
            class_names=self.data.class_names,
            settings=self.record(True),
            seed=self.s.seed,
            dataset=self.data.name,
            phases=dict(pieces.seconds),
            history=history,
            examples=last.report.examples,
            notes=notes,
            flags=flags,
        )
        result = MIAEach(parts, report)
        if out is not None:
            result.out, result.files = Path(out), report.save(out)
            for name, part in parts.items():
                part.out = Path(out) / name
                part.files = part.report.save(part.out)
                part.files["model"] = part.export(part.out / "mia.keras", to="keras")
                part.files["saved_model"] = part.export(part.out / "saved_model")
        return result


def _describe(attack) -> str:
    """An attack in words that are the same in another process; radii by their checksum."""
    text = repr(attack)
    if " at 0x" in text:
        return type(attack).__qualname__
    radii = np.asarray(attack.radii) if isinstance(attack, GMA | Cycled) else None
    if isinstance(attack, GradientAttack) and isinstance(attack.eps, tuple):
        radii = np.asarray(attack.eps)
    return text if radii is None else f"{text} of {fingerprint(radii)}"


def _single(model, x) -> tuple[np.ndarray, np.ndarray]:
    """Label and probability of the last class by one classifier."""
    return _count(models.predict_logits(model, x)[:, None])


def _radii(attack, n: int) -> np.ndarray | None:
    """Radius of each of n images, where the attack has one."""
    if isinstance(attack, GMA | Cycled):
        return attack.radii_of(n)
    return (
        np.broadcast_to(np.asarray(attack.eps, dtype="float32"), (n,)) if isinstance(attack, GradientAttack) else None
    )


def _by_radius(s: AdversarialSet) -> dict[int, float]:
    return {} if s.radius is None else dict(zip(s.index.tolist(), s.radius.tolist(), strict=True))


def _stratified(y: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """At most `limit` rows with the classes in proportion, in random order."""
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(y))
    if len(y) <= limit:
        return shuffled
    rank = np.empty(len(y))
    for label in np.unique(y):
        here = shuffled[y[shuffled] == label]
        rank[here] = (np.arange(len(here)) + rng.random()) / len(here)
    return rng.permutation(np.argsort(rank, kind="stable")[:limit])
