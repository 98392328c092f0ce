"""Robust training of a classifier, judged by attacks that know it: one function for every method."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import keras

from kerasdef import backend, checks, models
from kerasdef.attacks import FGSM, PGD
from kerasdef.datasets import Dataset, as_dataset
from kerasdef.defenses.loading import read_keras
from kerasdef.evaluation import evaluate
from kerasdef.identity import architecture, digest, identity
from kerasdef.models import networks
from kerasdef.recipes.base import Diverged, Tick, stratified, unfinished
from kerasdef.recipes.robust import report as judging
from kerasdef.recipes.robust.methods import Job, Method, method_of
from kerasdef.recipes.robust.result import Trained
from kerasdef.recipes.robust.settings import JUDGING, VALIDATION, RobustSettings
from kerasdef.recipes.robust.settings import METHODS as OWN
from kerasdef.runs import progress
from kerasdef.runs.cost import Cost, total
from kerasdef.runs.pieces import Piece, restore, weights_piece
from kerasdef.runs.seeds import derive
from kerasdef.runs.store import Store
from kerasdef.settings import names as setting_names
from kerasdef.settings import takes
from kerasdef.training import BestRobust, Mixture, OverfittingGuard, Resume, RobustValidation

_LOSSES = (  # in either spelling of Keras, as a class and as a function
    "sparsecategoricalcrossentropy",
    "categoricalcrossentropy",
    "binarycrossentropy",
    "categoricalfocalcrossentropy",
    "binaryfocalcrossentropy",
    "categoricalhinge",
)


@takes(RobustSettings, more=True)
def train(method: str, data: str | Path | Dataset | tuple = RobustSettings.data, **settings) -> Trained:
    """Train a classifier by a method, attack it, and say so in a report.

    The optimizer is Adam with a rate that falls as a cosine to zero, and the weights are averaged over about an epoch.
    Methods with attacks keep the weights of the epoch that withstood a PGD of ten steps best on held-out training
    images.

    A network that is built here sees the data in the bounds (0, 1): data with other bounds is brought there first, and
    `eps` with it. Your own `model` is trained and attacked in the bounds of the data.

    Args:
        method: The name of a method, see `kerasdef list methods`.
        {settings}

    Keywords beyond these are settings of the method, such as `steps=7` or `beta=6.0`; `kerasdef.train_trades` and its
    like list them.

    Returns:
        A `Trained`.

    Raises:
        ValueError: A setting is out of range, a name is unknown, the model does not fit the data, or `out` is of
            another run.
    """
    checks.one_of("method", method, OWN)
    shared = setting_names(RobustSettings)
    given = {name: value for name, value in settings.items() if name in shared}
    spec = method_of(method, {name: value for name, value in settings.items() if name not in shared})
    s = RobustSettings.of({"data": data, **given})
    dataset = as_dataset(s.data)
    whole, (low, high) = dataset.fingerprint, dataset.bounds
    if s.model is None:
        s = dataclasses.replace(s, eps=None if s.eps is None else s.eps / (high - low))
        dataset, (low, high) = dataset.rescaled((0.0, 1.0)), (0.0, 1.0)
    dataset = divided(dataset, s)
    s = s.on(dataset.name, dataset.n_train, high - low, spec.own.usual_epochs)
    if s.augment and len(dataset.input_shape) != 3:
        raise ValueError(f"`augment` is for images. Received: samples of shape {dataset.input_shape}")
    open_average = s.average is None
    s = dataclasses.replace(s, average=s.average is not False and spec.own.averages)
    run = Run(method, spec, dataset, whole, s, s.network, list(s.callbacks), s.progress)
    model = s.model
    if isinstance(model, str | Path):
        model = read_keras(model)
        run.start = {"start": digest(*model.get_weights())}
    run.own = model
    model = run.build() if model is None else model
    run.check(model)
    if open_average and models.has_batch_norm(model):
        run.s = dataclasses.replace(s, average=False)
    pieces = Store(s.out, run.record(model), judging=JUDGING)
    return run.train(model, pieces, s.out)


def divided(dataset: Dataset, s: RobustSettings) -> Dataset:
    """The training images that are used, and those of them that are held out."""
    used = dataset if s.n_train is None else dataset.subset(n_train=s.n_train, seed=s.seed)
    if used.n_valid:
        return used
    try:
        return used.with_validation(s.valid_size, seed=s.seed)
    except ValueError as error:
        name = "valid_size" if s.n_train is None else "n_train"
        raise ValueError(
            f"`{name}` must let images of every class be held out and others be trained on. "
            f"Received: {name}={getattr(s, name)!r}. {error}"
        ) from error


class Run:
    """The steps of a run, each a piece that is made once.

    Other recipes train classifiers by them: `build`, `check` and `trained`.

    Args:
        name: What is trained, in words.
        method: How it is trained.
        data: The data set, with validation images.
        whole: The fingerprint of the data as they came.
        settings: The settings that all methods share; none is left open.
        network: A name, or a function (input_shape, outputs, seed=...); None takes the method's own.
        callbacks: Keras callbacks for every `fit`.
        show: Whether progress bars are shown.
    """

    def __init__(self, name: str, method: Method, data: Dataset, whole: str, settings, network, callbacks, show):
        self.name, self.method, self.data, self.whole, self.s = name, method, data, whole, settings
        self.callbacks, self.show = callbacks, show
        self.own: keras.Model | None = None  # the user's
        self.start: dict[str, str] = {}  # what a run must begin with again
        self.before: list[dict[str, float]] = []  # costs of the classifiers that were trained for this one
        if network is None:
            network = method.own.networks[int(len(data.input_shape) == 3 and data.input_shape[-1] > 1)]
        self.network = network if callable(network) else networks.NETWORKS[_known(network)]
        self.batches = len(self.mixture(0))

    def build(self, network: Callable | None = None, *labels) -> keras.Model:
        """A fresh network, or a twin of the user's own model; without labels the network that is trained."""
        if network is None and self.own is not None:
            twin = keras.models.clone_model(self.own)
            twin.set_weights(self.own.get_weights())
            return twin
        seed = derive(self.s.seed, "network", *labels) % 10**6
        with _precision(self.s.precision):
            return (network or self.network)(self.data.input_shape, self.data.classes, seed=seed)

    def check(self, model: keras.Model) -> None:
        """Find what does not fit before work starts."""
        if not isinstance(model, keras.Model):
            raise ValueError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
        view = models.logits_view(model)
        models.logits_of(model)  # refuses models without symbolic outputs
        if tuple(model.input_shape[1:]) != tuple(self.data.input_shape):
            raise ValueError(
                f"`model` must take inputs of shape {tuple(self.data.input_shape)}. Received: {model.input_shape[1:]}"
            )
        if view.output_shape[-1] != self.data.classes:
            raise ValueError(
                f"`model` must have a softmax or logits for {self.data.classes} classes. "
                f"Received: outputs of shape {model.output_shape}"
            )
        loss = model.loss if getattr(model, "compiled", False) else None
        name = loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
        if loss is not None and name.lower().replace("_", "") not in _LOSSES:
            raise ValueError(f"`model` must be compiled with a classification loss, or not at all. Received: {name}")
        self.rehearse(model)

    def rehearse(self, model: keras.Model) -> None:
        """Make the trainer once, with other classifiers untrained: settings and networks that do not fit come out."""

        def other(title, network, wrap=None):
            fresh = self.build(None if network is None else networks.NETWORKS[_known(network)], title)
            if wrap is not None:
                wrap(fresh)
            return fresh

        job = Job(model, self.s, self.batches, 0, other, self.data.bounds)
        self.method.trainer(job)
        self.method.callbacks(job)
        self.method.full(job)

    def record(self, model: keras.Model) -> dict:
        """Everything the results depend on."""
        d = self.data
        arrays = (d.x_train, d.y_train, d.x_valid, d.y_valid, d.x_test, d.y_test)
        return {
            "recipe": "robust",
            "method": self.name,
            "method settings": self.method.own.record(),
            "dataset": d.name,
            "data": self.whole,
            "fingerprint": digest(*arrays),
            "network": re.sub(r"_\d+$", "", model.name),  # Keras counts the models of a process that have no name
            "architecture": architecture(model),
            "callbacks": identity(self.callbacks, "callbacks", strict=False),
            "backend": backend.NAME,
            **self.start,
            **self.s.record(),
        }

    def mixture(self, seed: int, repeats: int = 1) -> Mixture:
        """The training images in an order of their own for every epoch, in whole batches."""
        d, size = self.data, self.s.batch_size
        parts = [(d.x_train, d.y_train)]
        return Mixture(parts, batch_size=size, seed=seed, shift=self.s.shift, repeats=repeats, whole=True)

    def compile(self, trainer: keras.Model, model: keras.Model, epochs: int, average: bool) -> None:
        """Adam with a rate that falls as a cosine, and the cross-entropy that fits the head of the model."""
        steps = epochs * self.batches * self.method.repeats
        optimizer = keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(self.s.learning_rate, steps),
            weight_decay=self.s.weight_decay or None,
            use_ema=average,
            ema_momentum=min(0.999, 1 - 1 / max(2, self.batches)),  # an average over about an epoch
        )
        trainer.compile(optimizer, _loss(model), metrics=[_accuracy(model)], jit_compile=backend.jit())

    def fit(self, trainer: keras.Model, data: Mixture, epochs: int, title: str, callbacks: list) -> dict:
        """Fit with a progress bar; returns the history."""
        d = self.data
        with progress.bar(title, epochs * len(data), show=self.show, unit="batches") as advance:
            history = trainer.fit(
                data,
                epochs=epochs,
                validation_data=Mixture([(d.x_valid, d.y_valid)], batch_size=512),
                verbose=0,
                callbacks=[*callbacks, Tick(advance, len(data)), Diverged()],
                shuffle=False,  # the order is that of `data`; Keras would shuffle the batches without a seed
            )
        return {k: [float(v) for v in values] for k, values in history.history.items()}

    def train(self, model: keras.Model, pieces: Store, out) -> Trained:
        """Train, judge and write."""
        piece = pieces.get("model", lambda: self.trained(model, pieces), phase="training")
        restore(model, piece)
        history, cost = piece[1]["history"], piece[1]["cost"]
        radius = {"eps": self.s.eps, "norm": self.s.norm, "seed": self.s.seed}
        plan = judging.plan(self.name, self.data, n=self.s.n_test, autoattack=self.s.autoattack, **radius)
        found = evaluate(model, self.data, plan, pieces, progress=self.show)
        report = judging.report(
            self.data,
            plan,
            found,
            model,
            {self.name: cost},
            settings=self.record(model),
            phases=pieces.seconds,
            history={self.name: history},
            notes=piece[1]["notes"],
            **radius,
        )
        result = Trained(model, self.name, history, cost, report, out if out is None else Path(out))
        if out is not None:
            result.files = report.save(out)
            result.files["model"] = result.export(Path(out) / "model.keras", to="keras")
            result.files["saved_model"] = result.export(Path(out) / "saved_model")
        return result

    def other(self, pieces: Store, title: str, network: str | None, wrap: Callable | None = None) -> keras.Model:
        """Another classifier, trained for as many epochs on clean images or by the trainer that `wrap` makes of it."""
        model = self.build(None if network is None else networks.NETWORKS[_known(network)], title)

        def make():
            trainer = model if wrap is None else wrap(model)
            self.compile(trainer, model, self.s.epochs, self.s.average and not models.has_batch_norm(model))
            data = self.mixture(derive(self.s.seed, title, "order"))
            cost = Cost(len(data) * self.s.batch_size)
            keep = unfinished(pieces, title)
            watch = [cost] if keep is None else [cost, Resume(keep[0], data, [cost], of=keep[1])]
            history = self.fit(trainer, data, self.s.epochs, title, watch)
            arrays, meta = weights_piece(model, history)
            return arrays, {**meta, "cost": cost.facts()}

        piece = pieces.get(title, make, phase=title)
        self.before.append(piece[1]["cost"])
        return restore(model, piece)

    def trained(self, model: keras.Model, pieces: Store, piece: str = "model") -> Piece:
        """The piece of this name of the trained model: weights, history, cost."""
        s, d = self.s, self.data
        data = self.mixture(derive(s.seed, "order"), self.method.repeats)

        def other(title, network, wrap=None):
            return self.other(pieces, title, network, wrap)

        job = Job(model, s, self.batches, derive(s.seed, "attack"), other, d.bounds)
        trainer = self.method.trainer(job)
        self.compile(trainer, model, s.epochs, s.average)
        rows = stratified(d.y_valid, VALIDATION, derive(s.seed, "valid"))
        probe = PGD(eps=s.eps, norm=s.norm, steps=10, bounds=d.bounds)
        cost = Cost(len(data) * s.batch_size)
        watch = [cost]
        if s.average:
            watch.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
        own = self.method.callbacks(job)
        guarded = any(isinstance(callback, OverfittingGuard) for callback in own)
        single = FGSM(eps=s.eps, norm=s.norm, random_start=True, bounds=d.bounds) if guarded else None
        options = {"single": single, "seed": derive(s.seed, "probe")}
        watch.append(RobustValidation(d.x_valid[rows], d.y_valid[rows], probe, **options))
        full = self.method.full(job)
        best = BestRobust(start=s.epochs if full is None else full)
        watch += [*own, best, *self.callbacks]
        if pieces.folder is not None:
            file, of = unfinished(pieces, piece)
            watch.append(Resume(file, data, watch, of=of))
        history = self.fit(trainer, data, s.epochs, f"{self.name}, {s.epochs} epochs", watch)
        arrays, meta = weights_piece(model, history)
        notes = []
        if full is not None:
            epoch = len(history["loss"]) if best.epoch is None else best.epoch + 1
            notes.append(f"The weights are those of epoch {epoch} of {len(history['loss'])}.")
        for callback in own:
            if getattr(callback, "collapses", None):
                notes.append(f"Training collapsed in epoch {_epochs(callback.collapses)} and went back.")
            if getattr(callback, "raises", None):
                notes.append(f"The attack took one more step after epoch {_epochs(callback.raises)}.")
        return arrays, {**meta, "cost": total([*self.before, cost.facts()]), "notes": notes}


def _epochs(found: list[int]) -> str:
    return ", ".join(str(epoch + 1) for epoch in found)


def _known(network: str) -> str:
    return checks.one_of("network", network, networks.NETWORKS)


def _loss(model: keras.Model) -> keras.losses.Loss:
    """The cross-entropy for the head of a classifier."""
    from_logits = models.gives_logits(model)
    if model.output_shape[-1] == 1:
        return keras.losses.BinaryCrossentropy(from_logits=from_logits)
    return keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits)


def _accuracy(model: keras.Model) -> keras.metrics.Metric | str:
    """The accuracy that fits the head of a classifier: Keras takes a single output for a probability."""
    if model.output_shape[-1] == 1 and models.gives_logits(model):
        return keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)
    return "accuracy"


@contextlib.contextmanager
def _precision(name: str):
    """Layers that are built here compute in this precision; their weights are float32."""
    before = keras.config.dtype_policy()
    if name == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _public(method: str) -> Callable:
    """`train` for one method, with the settings of its own in its signature and its help."""
    own = OWN[method]

    def run(data=RobustSettings.data, **settings) -> Trained:
        return train(method, data, **settings)

    run.__name__ = run.__qualname__ = f"train_{method}"
    run.__doc__ = f"""{own.summary()}

    The training, the attacks and the report are those of `kerasdef.train_robust`.

    Args:
        {{settings}}

    Returns:
        A `Trained`.

    References: {own.paper or "none, this is the baseline"}.
    """
    return takes(RobustSettings, own)(run)


_FUNCTIONS = {f"train_{name}": _public(name) for name in OWN}


def __getattr__(name: str) -> Callable:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    raise AttributeError(f"module 'kerasdef.recipes.robust.training' has no attribute {name!r}")
