"""Operations without useful gradients, found by looking, and what stands in for them in the backward pass.

A defense that rounds, encodes, shuffles or wiggles what it is given answers well and hides its gradients. Here nothing
is known of it but its graph: each operation is looked at on real data (`kerasdef.models.probe`), and one whose gradient
does not tell what its output does gets another's gradient (`kerasdef.models.stand_ins`), by BPDA.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import keras
import numpy as np
from keras import ops, tree

from kerasdef import checks
from kerasdef.annotations import check_fields, checked
from kerasdef.models import probe, stand_ins
from kerasdef.models.bounds import input_bounds
from kerasdef.models.bpda import BPDA
from kerasdef.models.views import as_logits, logits_view

LOOKED_AT = 64  # samples on which an operation is looked at
LEARNED_FROM = 256  # samples that a stand-in is learned from
_SMALL = 0.05  # moves on which a gradient is tried, in standard deviations of the input: what an attack moves
_LARGE = 0.2  # moves on which a stand-in is chosen, and the width of its average
_DRAWS = 6  # moves of each sample
_USEFUL = 0.9  # correlation of changes and predictions from which a gradient is left alone
_GAIN = 0.05  # of the correlation by which a stand-in must be better than the gradient, or than a simpler one
_SCALE = 1e3  # times by which changes may be larger than predictions


@dataclass(frozen=True)
class Finding:
    """An operation of a model whose gradient is useless, and what was done.

    Args:
        layer: Name of the operation, with the models that it is in.
        kind: Class of the operation.
        seen: What was seen: "zero gradient", "non-finite gradient", "vanishing gradient", "no gradient" or
            "uncorrelated gradient".
        correlation: Correlation about zero between what its gradient predicts and what happens, in [-1, 1].
        rule: What stands in for it in the backward pass, in words; "none" where nothing was better.
        fit: The same correlation for what stands in, on other and larger moves.
    """

    layer: str
    kind: str
    seen: str
    correlation: float
    rule: str
    fit: float

    def __post_init__(self):
        check_fields(self)

    def __str__(self) -> str:
        return (
            f"{self.layer} ({self.kind}): {self.seen}, correlation {self.correlation:.2f} with what it does; "
            f"backward by {self.rule} ({self.fit:.2f})"
        )


@dataclass(frozen=True, eq=False)
class Repaired:
    """A model with useful gradients.

    Args:
        model: A model of logits that gives exactly what the given one gives; the given one itself without findings.
        findings: The operations that got another gradient.
    """

    model: keras.Model
    findings: tuple[Finding, ...]

    def __post_init__(self):
        check_fields(self)


@checked
def repair(model: keras.Model, x: np.ndarray, *, seed: int = 0) -> Repaired:
    """Give a model useful gradients where it has none; what it answers does not change.

    Every operation of the graph is looked at, also in models inside the model, on real data: its vector-Jacobian
    products are compared with secants by moves of the size of an attack's. One whose gradient is zero, not finite, or
    says nothing of the secants gets the gradient of the simplest function that says more: the identity, a net that
    learns what it gives, or its local average. A chain of operations from numbers over integers or booleans to numbers
    is one operation. An operation of several inputs or outputs is reported and left as it is, and so is a layer's
    inside: a layer is looked at as a whole.

    Args:
        model: A built Keras classifier, Sequential or functional.
        x: Clean images of shape (n, ...), in the range that the model takes; the first 256 are used.
        seed: All randomness comes from it.

    Raises:
        ValueError: The model cannot be attacked, or x is not what it takes.

    References: Athalye et al., 2018, https://arxiv.org/abs/1802.00420 (section 4; there the layers are found by hand).
    """
    view = logits_view(model)
    x = checks.images("x", x, limits=input_bounds(model) or _limits(x), shape=view.input_shape[1:])
    look = _Look(checks.non_negative_int("seed", seed))
    look.through(view, ops.convert_to_tensor(x[:LEARNED_FROM]))
    if not look.chosen:
        return Repaired(model, tuple(look.findings))
    images = keras.Input(view.input_shape[1:])
    joined = _Join(look.chosen)
    repaired = keras.Model(images, joined.through(view, images), name=view.name)
    repaired.bounds = input_bounds(model)
    return Repaired(as_logits(repaired), tuple(look.findings))


def _limits(x) -> tuple[float, float]:
    """The range of an array of numbers, for a model that does not tell its own."""
    x = np.asarray(x)
    if not x.size or x.dtype.kind not in "fiu":
        return 0.0, 1.0
    low, high = np.nanmin(x), np.nanmax(x)
    return float(low), float(max(high, low + 1))


# -- the walk through the graph -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Step:
    """One operation at its place in the graph, as a function of the numbers that it is given.

    Args:
        place: Number of the step in the walk.
        name: Names of the models that the operation is in, and its own.
        ops: The operation last; before it those that made integers or booleans for it.
        sources: The tensors of floating point that go in.
        call: Maps a list of such tensors to a list of outputs.
    """

    place: int
    name: str
    ops: tuple
    sources: list
    call: Callable


@dataclass(frozen=True, eq=False)
class _Blind:
    """A tensor of integers or booleans, through which no gradient can go, and the step that made it of numbers."""

    value: object
    step: _Step


class _Walk(ABC):
    """Goes through a model, operation by operation, always in the same order."""

    def __init__(self):
        self.place = 0

    @abstractmethod
    def seen(self, step: _Step, outputs):
        """What is handed on in place of the outputs of a step."""

    @abstractmethod
    def inside(self, model: keras.Model, given: list, path: str):
        """The outputs of a model that is an operation of another one."""

    def through(self, model: keras.Model, inputs, path: str = ""):
        """The outputs of a model."""
        graph = getattr(model, "_functional", None) or model
        return graph._run_through_graph(inputs, lambda op: partial(self._at, op, path))

    def _at(self, op, path, *args, **kwargs):
        self.place += 1
        plain = tree.map_structure(lambda z: z.value if isinstance(z, _Blind) else z, (args, kwargs))
        if isinstance(op, keras.Model) and getattr(op, "outputs", None):
            return self.inside(op, tree.flatten(plain[0]), f"{path}{op.name}/")
        outputs = op(*plain[0], **plain[1])
        given = tree.flatten((args, kwargs))
        blind = [z.step for z in given if isinstance(z, _Blind)]
        sources = _once([z for z in given if _is(z, "float")] + [z for step in blind for z in step.sources])
        if len(sources) > 1:  # integers of several numbers: what made them stays apart
            sources, blind = _once([z for z in given if _is(z, "float")]), []
        if not sources:
            return outputs

        def call(tensors):
            def filled(z):
                if isinstance(z, _Blind):
                    return z.step.call(tensors)[0] if blind else z.value
                return next((t for s, t in zip(sources, tensors, strict=True) if s is z), z)

            filled_args, filled_kwargs = tree.map_structure(filled, (args, kwargs))
            return tree.flatten(op(*filled_args, **filled_kwargs))

        chain = tuple(part for step in blind for part in step.ops)
        step = _Step(self.place, f"{path}{op.name}", (*chain, op), sources, call)
        flat = tree.flatten(outputs)
        if len(flat) == 1 and len(sources) == 1 and _is(flat[0], "other"):
            return _Blind(flat[0], step)
        return self.seen(step, outputs) if all(_is(z, "float") for z in flat) else outputs


def _once(tensors: list) -> list:
    return list({id(z): z for z in tensors}.values())


def _is(z, kind: str) -> bool:
    """Whether an argument is a tensor of floating point ("float") or one of another type ("other")."""
    tensor = isinstance(z, keras.KerasTensor) or ops.is_tensor(z)
    return tensor and ("float" in keras.backend.standardize_dtype(z.dtype)) == (kind == "float")


class _Join(_Walk):
    """Joins a model anew, with the stand-ins that were chosen, by the place of their step."""

    def __init__(self, chosen: dict[int, keras.layers.Layer | None]):
        super().__init__()
        self.chosen = chosen

    def seen(self, step, outputs):
        """The outputs, with another gradient where there is a stand-in."""
        if step.place not in self.chosen:
            return outputs
        name = f"{step.name.replace('/', '_')}_repaired_{step.place}"
        return BPDA(AsLayer(step.call, step.ops), self.chosen[step.place], name=name)(step.sources[0])

    def inside(self, model, given, path):
        """The model itself, or one joined anew where it holds a stand-in."""
        start = self.place
        inputs = [keras.Input(batch_shape=t.shape, dtype=t.dtype) for t in model.inputs]
        outputs = self.through(model, inputs, path)
        if any(start < place <= self.place for place in self.chosen):
            model = keras.Model(inputs, outputs, name=model.name)
        return model(given if len(given) > 1 else given[0])


class AsLayer(keras.layers.Layer):
    """Operations of a graph as a layer of one tensor, which has their weights."""

    def __init__(self, call: Callable, parts: tuple):
        super().__init__()
        self._call = call
        self.parts = [part for part in parts if isinstance(part, keras.layers.Layer)]
        self.built = True

    def call(self, x):
        """What they give."""
        return self._call([x])[0]

    def get_config(self):
        """What tells it from others; a repaired model is not meant to be saved."""
        return {"name": self.name, "parts": [keras.saving.serialize_keras_object(part) for part in self.parts]}


# -- what is seen on the way --------------------------------------------------------------------------------------


class _Look(_Walk):
    """Looks at every operation, on the values that real data give it, and chooses what stands in for it."""

    def __init__(self, seed: int):
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.findings: list[Finding] = []
        self.chosen: dict[int, keras.layers.Layer | None] = {}

    def inside(self, model, given, path):
        """Its outputs, looked at on the way."""
        return self.through(model, given, path)

    def seen(self, step, outputs):
        """The outputs as they are."""
        at = [ops.convert_to_numpy(z) for z in step.sources]
        if all(z.ndim and len(z) == len(at[0]) for z in at):
            self._look(replace(step, call=_same_draws(step)), at)
        return outputs

    def _look(self, step: _Step, at: list[np.ndarray]) -> None:
        few = [z[:LOOKED_AT] for z in at]
        secants = probe.draw(step.call, few, _SMALL, _DRAWS, self.rng)
        told = probe.predicted(step.call, secants)
        correlation = probe.cosine(secants.found, told)
        what = _what(secants.found, told, correlation)
        if what is None:
            return
        large = probe.draw(step.call, few, _LARGE, _DRAWS, self.rng)
        own = probe.cosine(large.found, probe.predicted(step.call, large))
        rule, fit = "none", own
        if len(at) == 1 and len(large.cotangents[0]) == 1:
            found = self._candidates(step, at[0], large)
            best = max((fit for _, _, fit in found), default=-1.0)
            if best > own + _GAIN or what == "vanishing gradient":
                rule, self.chosen[step.place], fit = next(c for c in found if c[2] >= best - _GAIN)
        kind = " -> ".join(type(part).__name__ for part in step.ops)
        self.findings.append(Finding(step.name, kind, what, correlation, rule, fit))

    def _candidates(self, step: _Step, h: np.ndarray, secants: probe.Secants) -> list[tuple]:
        """What could stand in: rules in words, layers, and how well their gradients tell what happens."""
        source, target = h.shape[1:], secants.cotangents[0][0].shape[1:]
        size = _LARGE * probe.spread(h)

        def call(x):
            return step.call([x])[0]

        def fit(near):
            return probe.cosine(secants.found, probe.predicted(lambda t: [near(t[0])], secants))

        found = [("the identity", None, fit(lambda x: x))] if source == target else []
        for reach in stand_ins.reaches(source, target):
            net, r2 = stand_ins.learn(call, h, target, size, reach, self.rng)
            found.append((f"a learned net of each {reach}, R^2 {r2:.2f}", net, fit(net)))
        for reach, near in stand_ins.averages(call, source, target, size, self.rng).items():
            found.append((f"its local average over each {reach}", near, fit(near)))
        return found


def _what(found: np.ndarray, told: np.ndarray, correlation: float) -> str | None:
    """What is wrong with a gradient, or None."""
    changes = np.sqrt(np.mean(found[np.isfinite(found)] ** 2)) if np.isfinite(found).any() else 0.0
    if not changes > 0:
        return None
    if not np.isfinite(told).all():
        return "non-finite gradient"
    size = np.sqrt(np.mean(told.astype("float64") ** 2))
    if size == 0:
        return "zero gradient"
    if changes > _SCALE * size:
        return "vanishing gradient"
    return None if correlation >= _USEFUL else "uncorrelated gradient"


def _same_draws(step: _Step) -> Callable:
    """The step with random layers that draw the same numbers each time and keep their state."""
    variables = [v for op in step.ops if isinstance(op, keras.layers.Layer) for v in op.variables]

    def call(tensors):
        with keras.StatelessScope(state_mapping=[(v, v.value) for v in variables]):
            return step.call(tensors)

    return call
