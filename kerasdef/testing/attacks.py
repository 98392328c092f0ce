"""The contract of an attack, and linear models on which the best that any attack can do is known."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers, ops

from kerasdef import checks, models, norms
from kerasdef.annotations import check_fields, checked
from kerasdef.attacks import Attack
from kerasdef.norms import L1, L2, Linf, Norm

_DUAL = {Linf: 1, L2: 2, L1: np.inf}  # order of the norm that bounds an inner product with this one


# -- linear models with a known optimum ------------------------------------------------------------


@checked
def linear_model(weights, bias=None, input_shape=None) -> keras.Sequential:
    """Return the Keras model of `logits = flatten(x) @ weights + bias`: one Flatten and one Dense layer.

    Args:
        weights: Array of shape (d, k).
        bias: Array of shape (k,), or None for zeros.
        input_shape: Shape of one input, with d values in all; None is (d,).

    Raises:
        ValueError: The shapes do not belong together.
    """
    weights = np.asarray(weights, dtype="float32")
    if weights.ndim != 2:
        raise ValueError(f"`weights` must have the shape (d, k). Received: shape={weights.shape}")
    d, k = weights.shape
    bias = np.zeros(k, dtype="float32") if bias is None else np.asarray(bias, dtype="float32")
    input_shape = (d,) if input_shape is None else tuple(input_shape)
    if bias.shape != (k,):
        raise ValueError(f"`bias` must have the shape ({k},). Received: shape={bias.shape}")
    if int(np.prod(input_shape)) != d:
        raise ValueError(f"`input_shape` must hold {d} values. Received: input_shape={input_shape}")
    model = keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(k)], name="linear")
    model.layers[-1].set_weights([weights, bias])
    return model


def _dual_order(norm: Norm | str) -> float:
    norm = norms.get(norm)
    if type(norm) not in _DUAL:
        raise ValueError(f"`norm` must be linf, l2 or l1, whose dual norms are known. Received: norm={norm!r}")
    return _DUAL[type(norm)]


@dataclass(frozen=True, eq=False)
class LinearOracle:
    """A linear classifier and the best that any attack on it can do, as long as no bound is active.

    A linear function `a @ delta` grows in a ball of radius eps by eps times the dual norm of `a` at most
    (Hölder), so every answer here is exact. Give attacks on it wide bounds.

    Args:
        weights: Array of shape (d, k).
        bias: Array of shape (k,), or None for zeros.

    Example:
    >>> oracle = LinearOracle([[1.0, -1.0], [0.5, 2.0]])
    >>> oracle.smallest_distance(x, y, "l2")
    """

    weights: np.ndarray
    bias: np.ndarray | None = None

    def __post_init__(self):
        check_fields(self)
        weights = np.asarray(self.weights, dtype="float64")
        bias = np.zeros(weights.shape[-1]) if self.bias is None else np.asarray(self.bias, dtype="float64")
        if weights.ndim != 2 or weights.shape[1] < 2 or bias.shape != weights.shape[1:]:
            raise ValueError(
                "`weights` must have the shape (d, k) with k of at least 2, and `bias` (k,). "
                f"Received: weights of shape {weights.shape}, bias of shape {bias.shape}"
            )
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bias", bias)

    def model(self, input_shape=None) -> keras.Sequential:
        """The classifier as a Keras model; see `linear_model`."""
        return linear_model(self.weights, self.bias, input_shape)

    def logits(self, x) -> np.ndarray:
        """Logits of shape (n, k), in float64."""
        x = np.asarray(x, dtype="float64")
        return x.reshape(len(x), -1) @ self.weights + self.bias

    def margin(self, x, y) -> np.ndarray:
        """Largest other logit minus the label's, of shape (n,)."""
        return self._gaps(x, y).max(axis=1)

    def _gaps(self, x, y):
        """Logit of every class minus the label's, -inf at the label: (n, k)."""
        z, rows = self.logits(x), np.arange(len(x))
        gaps = z - z[rows, y][:, None]
        gaps[rows, y] = -np.inf
        return gaps

    def _slopes(self, y, norm):
        """Dual norm of the gradient of every gap: (n, k)."""
        difference = self.weights.T[None, :, :] - self.weights.T[np.asarray(y)][:, None, :]
        return np.linalg.norm(difference, ord=_dual_order(norm), axis=2)

    def largest_margin(self, x, y, eps, norm: Norm | str = "linf") -> np.ndarray:
        """Largest margin that any point of the ball has, of shape (n,).

        Args:
            x: Inputs of shape (n, ...).
            y: Labels of shape (n,).
            eps: Radius, a number or one for each input.
            norm: "linf", "l2", "l1", or the `Norm`.
        """
        eps = np.broadcast_to(np.asarray(eps, dtype="float64"), (len(x),))
        return (self._gaps(x, y) + eps[:, None] * self._slopes(y, norm)).max(axis=1)

    def largest_cross_entropy(self, x, y, eps, norm: Norm | str = "linf") -> np.ndarray:
        """Largest cross-entropy in the ball, of shape (n,); arguments as in `largest_margin`.

        Raises:
            ValueError: There are more than two classes, for which no closed form is known.
        """
        if self.weights.shape[1] != 2:
            raise ValueError(
                "The largest cross-entropy has a closed form for two classes only. "
                f"Received: {self.weights.shape[1]} classes"
            )
        return np.logaddexp(0.0, self.largest_margin(x, y, eps, norm))

    def smallest_distance(self, x, y, norm: Norm | str = "l2") -> np.ndarray:
        """Smallest change that reaches the decision boundary of the label, of shape (n,); 0 for wrong inputs.

        Source: Moosavi-Dezfooli et al., 2016, https://arxiv.org/abs/1511.04599 (equation 8).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = -self._gaps(x, y) / self._slopes(y, norm)
        distance[np.arange(len(x)), y] = np.inf
        return np.maximum(distance.min(axis=1), 0.0)


# -- the contract of an attack ---------------------------------------------------------------------

_N = 10  # inputs of a check
_SEED = 11


@dataclass(frozen=True)
class _Case:
    """A model with inputs it gets right, but for the last two."""

    model: keras.Model
    x: np.ndarray
    y: np.ndarray


def claim(subject, clause: str, holds, detail: str = "") -> None:
    """Raise an AssertionError that names the clause unless it holds of an attack, a norm or a defense."""
    if not bool(holds):
        raise AssertionError(f"{type(subject).__name__} breaks the clause {clause!r}. {detail} Checked: {subject!r}")


def _dense(units, seed, activation=None):
    glorot = keras.initializers.GlorotUniform(seed=seed)
    bias = keras.initializers.RandomNormal(stddev=0.1, seed=seed + 100)
    return layers.Dense(units, activation=activation, kernel_initializer=glorot, bias_initializer=bias)


@functools.cache
def _image_model(classes: int, activation=None) -> keras.Sequential:
    """A convolutional model of images of 4 x 4 with all that may change in a careless attack."""
    he = keras.initializers.HeNormal(seed=1)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 1)),
            layers.Conv2D(3, 3, kernel_initializer=he),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Dropout(0.5, seed=3),
            layers.Flatten(),
            _dense(classes, 2, activation),
        ]
    )
    model.layers[1].moving_mean.assign([0.1, -0.1, 0.2])
    model.layers[1].moving_variance.assign([0.5, 0.6, 0.8])
    model.layers[0].trainable = False
    return model


@functools.cache
def _table_model(features: int, classes: int) -> keras.Sequential:
    return keras.Sequential([keras.Input((features,)), _dense(8, 4, "tanh"), _dense(classes, 5)])


@functools.cache
def _flat_model() -> keras.Sequential:
    """A model without a gradient."""
    return linear_model(np.zeros((16, 4)), [0.1, 0.4, 0.2, 0.3], (4, 4, 1))


@functools.cache
def _wild_model(low: float, high: float) -> keras.Model:
    """A model that begins with a root, whose slope at `low` is infinite, and that overflows on bright images."""
    images = keras.Input((4, 4, 1))
    shares = layers.Rescaling(1 / (high - low), -low / (high - low))(images)
    features = layers.Flatten()(ops.sqrt(ops.relu(shares)))
    overflows = ops.exp(ops.relu(500 * (ops.mean(shares, (1, 2)) - 0.6)))
    return keras.Model(images, _dense(4, 6)(features * overflows))


def _case(attack, model) -> _Case:
    low, high = attack.bounds
    shape = (_N, *model.input_shape[1:])
    x = np.random.default_rng(_SEED).uniform(low, high, shape).astype("float32")
    x = np.clip(x, *np.float32(attack.bounds))
    y = models.predict_logits(model, x).argmax(axis=1)
    y[-2:] = (y[-2:] + 1) % max(2, model.output_shape[-1])
    return _Case(model, x, y)


def _run(attack, case: _Case, **options):
    options = {"batch_size": 16, "seed": 0, "progress": False} | options
    return attack(case.model, case.x, case.y, **options)


def _right(case: _Case, x) -> np.ndarray:
    return models.predict_logits(case.model, x).argmax(axis=1) == case.y


def _check_output(attack, clause, case, x_adv, ball, kind) -> None:
    """Shape, type, range, ball, and nothing worse than the clean input."""
    low, high = attack.bounds
    slack = 1e-6 * (high - low)  # rounding of float32 at the bounds
    claim(attack, f"{clause}: shape", x_adv.shape == case.x.shape, f"Received: {x_adv.shape}.")
    claim(attack, f"{clause}: dtype", x_adv.dtype == np.float32, f"Received: {x_adv.dtype}.")
    claim(attack, f"{clause}: finite", np.isfinite(x_adv).all())
    span = f"Received: minimum={x_adv.min()}, maximum={x_adv.max()}."
    claim(attack, f"{clause}: bounds", x_adv.min() >= low - slack and x_adv.max() <= high + slack, span)
    before = _right(case, case.x)
    after = _right(case, x_adv)
    claim(attack, f"{clause}: wrong inputs come back unchanged", np.array_equal(x_adv[~before], case.x[~before]))
    claim(attack, f"{clause}: never better than clean", after.sum() <= before.sum())
    if kind == "budget" and ball is not None:
        norm, eps = ball
        size = ops.convert_to_numpy(norm.size(ops.convert_to_tensor(x_adv - case.x)))
        # x + delta and the subtraction are rounded in float32, feature by feature
        slack = 1e-5 * eps + 2e-7 * max(abs(low), abs(high)) * (case.x[0].size if isinstance(norm, L1) else 4)
        claim(attack, f"{clause}: ball", (size <= eps + slack).all(), f"Received: size={size.max()}, eps={eps}.")
    if kind == "minimal":
        moved = np.any(x_adv != case.x, axis=tuple(range(1, x_adv.ndim)))
        claim(attack, f"{clause}: what is changed is adversarial", not after[moved].any())


def _raises(attack, clause, call) -> None:
    try:
        call()
    except ValueError:
        return
    raise AssertionError(f"{type(attack).__name__} breaks the clause {clause!r}: no ValueError. Attack: {attack!r}")


def _check_determinism(attack, case, expected) -> None:
    claim(attack, "same seed, same answer", np.array_equal(_run(attack, case), expected))
    for size in (1, 7, 32, 256):
        gap = np.abs(_run(attack, case, batch_size=size) - expected).max()
        # kernels add in another order for other batch sizes: float32 noise, grown by the steps of the attack
        limit = 1e-4 * (attack.bounds[1] - attack.bounds[0])
        claim(attack, f"same answer for batch_size={size}", gap <= limit, f"Received: largest difference {gap}.")


def _check_not_finite(attack) -> None:
    """Gradients, outputs and weights that are not finite: told, and never a success nor in what is returned."""
    low, high = attack.bounds
    model = _wild_model(low, high)
    case = _case(attack, model)
    case.x[:3] = np.float32(low) + (case.x[:3] - np.float32(low)) * (case.x[:3] > low + 0.5 * (high - low))  # zeros
    case.x[3] = high
    weights = model.get_weights()
    try:
        for clause in ("a root and an overflow", "weights of NaN"):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                found = attack.run(case.model, case.x, case.y, batch_size=16, progress=False)
            told = any("not finite" in str(w.message) for w in said)
            claim(attack, f"{clause}: told", told)
            claim(attack, f"{clause}: finite", np.isfinite(found.x_adv).all())
            claim(
                attack,
                f"{clause}: bounds",
                found.x_adv.min() >= low and found.x_adv.max() <= high + 1e-6 * (high - low),
            )
            silent = ~np.isfinite(models.predict_logits(model, case.x)).all(axis=1)
            claim(
                attack, f"{clause}: without an answer, unchanged", np.array_equal(found.x_adv[silent], case.x[silent])
            )
            answers = np.isfinite(models.predict_logits(model, found.x_adv)).all(axis=1)
            claim(attack, f"{clause}: only an answer is a success", answers[found.success].all())
            model.set_weights([np.full_like(w, np.nan) for w in weights])
    finally:
        model.set_weights(weights)


def _check_model_untouched(attack, case) -> None:
    def flags():
        return [(layer.name, layer.trainable) for layer in case.model.layers]

    values = [np.array(v) for v in case.model.variables]
    before = flags()
    _run(attack, case)
    for variable, value in zip(case.model.variables, values, strict=True):
        same = np.array_equal(np.array(variable), value)
        claim(attack, "the model is read only", same, f"Received: a changed {variable.path}.")
    claim(attack, "trainable flags stay", flags() == before)


def _check_inputs(attack, case, expected) -> None:
    low, high = attack.bounds
    one = dataclasses.replace(case, x=case.x[:1], y=case.y[:1])
    gap = np.abs(_run(attack, one) - expected[:1]).max()
    claim(attack, "batch of one", gap <= 1e-4 * (high - low), f"Received: difference {gap} to the same row.")

    over = case.x.astype("float64")
    over[0].flat[0] = high + 1e-7
    over[1].flat[0] = low - 3e-8
    x_adv = _run(attack, dataclasses.replace(case, x=over))
    inside = x_adv.min() >= np.float32(low) and x_adv.max() <= np.float32(high) + 1e-6 * (high - low)
    claim(attack, "float noise beyond the bounds is clipped", inside)

    if attack.bounds == (0.0, 1.0):
        pixels = np.rint(case.x * 255).astype("uint8")
        scaled = dataclasses.replace(case, x=pixels.astype("float32") / np.float32(255))
        same = np.array_equal(_run(attack, dataclasses.replace(case, x=pixels)), _run(attack, scaled))
        claim(attack, "uint8 images are floats times 255", same)

    bad = case.x.copy()
    bad[0].flat[0] = high + 0.1 * (high - low)
    _raises(attack, "inputs beyond the bounds", lambda: _run(attack, dataclasses.replace(case, x=bad)))
    bad = case.x.copy()
    bad[0].flat[0] = np.nan
    _raises(attack, "NaN in the inputs", lambda: _run(attack, dataclasses.replace(case, x=bad)))
    _raises(attack, "labels below 0", lambda: _run(attack, dataclasses.replace(case, y=case.y - case.y.max() - 1)))
    k = case.model.output_shape[-1]
    _raises(attack, "labels above the last class", lambda: _run(attack, dataclasses.replace(case, y=case.y + k)))


@checked
def check_attack(
    attack: Attack, *, norm: Norm | str | None = None, eps: float | None = None, kind: str | None = None
) -> None:
    """Check that an attack keeps the contract of all attacks; it takes some seconds.

    Clauses: shape, float32, bounds, ball; deterministic by its seed and the same for any batch size; the
    model is read only and in inference mode; no NaN without a gradient, nor from gradients, outputs or weights that are
    not finite, which are told; saturated images, one image, images
    that are all wrong (returned unchanged); a softmax head gives what a logits head gives; float and uint8;
    2, 3, 4 and 100 classes, one sigmoid output, tables; float noise beyond the bounds is clipped, bad data
    is a `ValueError`; never worse for the attacker than the clean inputs. Attacks that return several
    images for one (`GMA(mode="all")`) are out of scope.

    Args:
        attack: An untargeted attack; fewer steps make the check faster.
        norm: Norm of the ball, for budget attacks; None takes it, with `eps`, from an attack that has both
            settings and checks no ball otherwise.
        eps: Radius of the ball, one number.
        kind: "budget" (stays in a ball) or "minimal" (what it changes is adversarial). None: what the attack says.

    Raises:
        AssertionError: A clause does not hold; the message names it.
        ValueError: The arguments are wrong.

    Example:
    >>> check_attack(MyAttack(steps=5), norm="l2", eps=0.5)
    """
    if not isinstance(attack, Attack):
        raise ValueError(f"`attack` must be an Attack. Received: attack={attack!r}")
    kind = checks.one_of("kind", attack.kind if kind is None else kind, ("budget", "minimal"))
    if norm is None and eps is None:
        settings = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
        own = settings.get("norm"), settings.get("eps")
        norm, eps = (None, None) if None in own else own
    if (norm is None) != (eps is None):
        raise ValueError(f"`norm` and `eps` must be given together. Received: norm={norm!r}, eps={eps!r}")
    ball = None if norm is None else (norms.get(norm), checks.real("eps", eps, low=0.0))
    try:
        _check(attack, kind, ball)
    except BaseException:
        for made in (
            _image_model,
            _table_model,
            _flat_model,
            _wild_model,
        ):  # the next check does not see what this attack did
            made.cache_clear()
        raise


def _check(attack: Attack, kind: str, ball: tuple[Norm, float] | None) -> None:
    """The clauses; the models are shared between checks, so that nothing is compiled twice."""
    case = _case(attack, _image_model(4))
    expected = _run(attack, case)
    _check_output(attack, "images", case, expected, ball, kind)
    _check_determinism(attack, case, expected)
    _check_model_untouched(attack, case)
    _check_inputs(attack, case, expected)
    _check_not_finite(attack)

    probabilities = _image_model(4, "softmax")
    gap = np.abs(_run(attack, dataclasses.replace(case, model=probabilities)) - expected).max()
    # the two graphs may be fused differently: float32 noise
    claim(
        attack,
        "softmax equals logits",
        gap <= 1e-4 * (attack.bounds[1] - attack.bounds[0]),
        f"Received: {gap}.",
    )

    y_wrong = (models.predict_logits(case.model, case.x).argmax(axis=1) + 1) % 4
    same = np.array_equal(_run(attack, dataclasses.replace(case, y=y_wrong)), case.x)
    claim(attack, "all wrong: returned unchanged", same)

    x = np.repeat(np.float32(attack.bounds), _N // 2).reshape((_N, 1, 1, 1)) * np.ones((1, 4, 4, 1), "float32")
    y = models.predict_logits(case.model, x).argmax(axis=1)
    saturated = dataclasses.replace(case, x=x, y=y)
    _check_output(attack, "saturated images", saturated, _run(attack, saturated), ball, kind)

    flat = _case(attack, _flat_model())
    _check_output(attack, "no gradient", flat, _run(attack, flat), ball, kind)

    others = {
        "two classes": _table_model(6, 2),
        "three classes, a table": _table_model(5, 3),
        "100 classes": _image_model(100),
        "one sigmoid output": _image_model(1, "sigmoid"),
    }
    for clause, model in others.items():
        other = _case(attack, model)
        _check_output(attack, clause, other, _run(attack, other), ball, kind)
