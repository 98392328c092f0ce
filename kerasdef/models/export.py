"""Export of a defended model: written, read back, and compared with the live one before the call succeeds.

A SavedModel needs TensorFlow alone to serve. With the JAX backend the model is handed over as a .keras file to a
second process that runs Keras on TensorFlow.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.files import write_whole
from kerasdef.models.bounds import UNIT, float_input, from_pixels, input_bounds
from kerasdef.models.guard import Flag, Guard, argmax, note
from kerasdef.models.loading import read_keras
from kerasdef.models.served import FACTS, KERAS_FACTS, ONNX_FACTS, facts_of
from kerasdef.runs import places
from kerasdef.runs.places import RUN

FORMATS = ("saved_model", "keras", "onnx")
_OPSET = 17  # of ONNX, the newest that tf2onnx 1.16 writes
PROBABILITY_TOLERANCE = 1e-4  # float32 sums in another order: another graph, another backend
_PROBES, _POOL = 64, 192


def _pool(shape: tuple[int, ...]) -> np.ndarray:
    """Images on the 8-bit grid of many kinds: flat, dark, bright, of low and high contrast, smooth, nearly empty."""
    rng = np.random.default_rng(0)
    noise = rng.random((_POOL, *shape))
    level = rng.random((_POOL, *(1,) * len(shape)))
    contrast = rng.choice([0.0, 0.02, 0.1, 0.3, 1.0], level.shape)
    x = level + contrast * (noise - level)
    for axis in range(1, 1 + min(2, len(shape))):  # a third of them smooth: each value the mean of its neighbors
        for _ in range(4):
            x[::3] = (x[::3] + np.roll(x[::3], 1, axis) + np.roll(x[::3], -1, axis)) / 3
    x[1::3] *= rng.random(x[1::3].shape) < rng.choice([0.05, 0.3, 1.0], level[1::3].shape)  # strokes on black
    return np.rint(255 * np.clip(x, 0, 1)).astype("uint8")


def _probes(model: keras.Model, bounds: tuple[float, float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Images that tell models apart, uint8, and what the live model says of them.

    A model that is sure of every image tells nothing, so those of many are taken that it is least sure of, and of
    every label some.
    """
    pool = _pool(tuple(model.input_shape[1:]))
    answers = _outputs(model, from_pixels(pool, bounds).astype("float32"), bounds)
    largest = answers["probabilities"].max(axis=1)
    rank = np.empty(_POOL, dtype=int)  # place of a sample among those with its label, the least sure first
    for label in np.unique(answers["label"]):
        mine = np.flatnonzero(answers["label"] == label)
        rank[mine[np.argsort(largest[mine], kind="stable")]] = np.arange(len(mine))
    chosen = np.lexsort((largest, rank))[: _PROBES // 2]
    rest = np.setdiff1d(np.argsort(largest, kind="stable"), chosen, assume_unique=True)
    chosen = np.concatenate([chosen, rest[np.argsort(largest[rest], kind="stable")][: _PROBES // 2]])
    found = {name: value[chosen] for name, value in answers.items()}
    if np.ptp(found["probabilities"], axis=0).max() <= PROBABILITY_TOLERANCE:
        warnings.warn(
            f"The model {model.name!r} gives the same probabilities for {_POOL} different images, so the comparison "
            "of what was written with the live model says little.",
            UserWarning,
            stacklevel=3,
        )
    return pool[chosen], found


def _answers(model: keras.Model, bounds: tuple[float, float]) -> keras.Model:
    """The model with named outputs, behind a guard: a defense as it is, a classifier as label and probabilities."""
    if hasattr(model, "facts"):
        return model
    images = keras.Input(model.input_shape[1:])
    safe, valid = Guard(bounds)(images)
    z = ops.cast(models.logits_view(float_input(model))(safe), "float32")
    answer = {"label": argmax(z), "probabilities": ops.softmax(z)}
    return keras.Model(images, Flag()(answer, valid))


def _outputs(model: keras.Model, x: np.ndarray, bounds: tuple[float, float]) -> dict[str, np.ndarray]:
    found = _answers(model, bounds)(ops.convert_to_tensor(x), training=False)
    return {k: ops.convert_to_numpy(v) for k, v in found.items()}


def _compare(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray], what: str) -> None:
    """Raise unless the outputs agree; decisions may differ only where the probabilities tie."""
    if sorted(found) != sorted(wanted):
        raise RuntimeError(f"{what} has the outputs {sorted(found)}, the live model {sorted(wanted)}.")
    gap = float(np.max(np.abs(found["probabilities"] - wanted["probabilities"])))
    if not gap <= PROBABILITY_TOLERANCE:  # NaN is not
        raise RuntimeError(f"{what} differs from the live model: probabilities by up to {gap:.2g}.")
    ordered = np.sort(wanted["probabilities"], axis=1)
    sure = ordered[:, -1] - ordered[:, -2] > 10 * PROBABILITY_TOLERANCE
    for name in sorted(set(wanted) - {"probabilities"}):
        near = 0.0  # labels, votes and flags are the same
        if np.issubdtype(wanted[name].dtype, np.floating):
            near = 10 * PROBABILITY_TOLERANCE * (1 + np.abs(wanted[name][sure]))
        if not np.all(np.abs(found[name][sure].astype(float) - wanted[name][sure]) <= near):
            raise RuntimeError(f"{what} differs from the live model in {name!r}.")


def _write_saved_model(model: keras.Model, path: Path, bounds: tuple[float, float]) -> None:
    import tensorflow as tf

    (low, high), shape, model = bounds, (None, *model.input_shape[1:]), _answers(model, bounds)
    archive = keras.export.ExportArchive()
    archive.track(model)

    def serving_default(images):
        return model(tf.ensure_shape(images, shape), training=False)  # a caller's shape is not checked before

    def serving_uint8(images):  # as `from_pixels`
        return serving_default(tf.cast(tf.ensure_shape(images, shape), tf.float32) / (255 / (high - low)) + low)

    archive.add_endpoint("serving_default", serving_default, [tf.TensorSpec(shape, tf.float32, name="images")])
    archive.add_endpoint("serving_uint8", serving_uint8, [tf.TensorSpec(shape, tf.uint8, name="images")])
    if getattr(model, "learns", False):  # a defense that learns while it serves

        def update(images, labels):
            same = tf.debugging.assert_equal(tf.shape(images)[0], tf.shape(labels)[0], "a label for each image")
            with tf.control_dependencies([same]):
                return model.learn(tf.ensure_shape(images, shape), tf.ensure_shape(labels, (None,)))

        specs = [tf.TensorSpec(shape, tf.float32, name="images"), tf.TensorSpec((None,), tf.int64, name="labels")]
        archive.add_endpoint("update", update, specs)
    archive.write_out(str(path), verbose=False)


def _write_onnx(model: keras.Model, path: Path, bounds: tuple[float, float], facts: Mapping) -> None:
    """Write the part of a model that keeps no state as ONNX."""
    import onnx
    import tensorflow as tf
    import tf2onnx

    model = _answers(model, bounds)
    images = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32, name="images")
    with backend.fixed_rows():
        program = tf.function(lambda images: model(images, training=False), autograph=False)
        proto, _ = tf2onnx.convert.from_function(program, input_signature=[images], opset=_OPSET)
    onnx.helper.set_model_props(proto, {ONNX_FACTS: json.dumps(facts)})
    path.write_bytes(proto.SerializeToString())


def _run_onnx(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime has classes of its own for each of its errors
        said = str(error).rpartition("Error ")[2]
        raise ValueError(f"`model` must be made of operations that ONNX has. Received: {said}") from error
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": x}), strict=True))


def _check_onnx() -> None:
    """Raise where nothing can be written as ONNX, before any work."""
    missing = [n for n in ("onnx", "onnxruntime", "tf2onnx") if importlib.util.find_spec(n) is None]
    if missing:
        raise ValueError(
            f"`to` can be 'onnx' after `pip install kerasdef[onnx]`. Received: {', '.join(missing)} missing"
        )
    if backend.NAME != "tensorflow":
        raise ValueError(f"`to` can be 'onnx' with the TensorFlow backend. Received: KERAS_BACKEND={backend.NAME}")


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn what TensorFlow raises where it cannot write into the error that Python raises there."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("tensorflow."):
            raise
        raise OSError(errno.EIO, f"TensorFlow met a {type(error).__name__}") from error


def _serve(path: Path, signature: str, x: np.ndarray) -> dict[str, np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    found = loaded.signatures[signature](images=tf.constant(x))
    return {k: v.numpy() for k, v in found.items()}


def _write_elsewhere(model: keras.Model, path: Path, bounds: tuple[float, float]) -> None:
    """Write the SavedModel in a process that runs Keras on TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        command = [sys.executable, "-m", "kerasdef.models.export", str(file), str(path), *map(str, bounds)]
        done = subprocess.run(
            command,
            env={**os.environ, "KERAS_BACKEND": "tensorflow"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"The SavedModel could not be written: {done.stderr.strip()[-500:]}")


def _check_weights(model: keras.Model) -> None:
    for weight in model.weights:
        if not np.isfinite(ops.convert_to_numpy(weight)).all():
            raise ValueError(f"`model` must have finite weights. Received: NaN or infinite values in {weight.path!r}")


def _begin(model: keras.Model, seeds: list[np.ndarray]) -> None:
    """Put the random layers of a model where their draws begin."""
    for variable, value in zip(backend.seed_variables(model), seeds, strict=True):
        variable.assign(value)


def export(
    model: keras.Model,
    path: str | Path,
    *,
    to: str = "saved_model",
    bounds: tuple[float, float] | None = None,
    facts: Mapping | None = None,
) -> Path:
    """Write a defense or a classifier and check that what was written decides as the live one.

    Args:
        model: A `kerasdef.defenses.Defense`, or a classifier; the SavedModel of a classifier gives `label`,
            `probabilities` and `is_valid`.
        path: A folder for "saved_model", a file ending in .keras for "keras", in .onnx for "onnx": nothing, an empty
            folder, or an earlier export of the same kind and run, which is replaced.
        to: "saved_model": signatures `serving_default` (float32 images within the bounds) and `serving_uint8` (uint8
            images, 0 to 255 mapped onto the bounds), both with named outputs; runs without kerasdef. Images of another
            shape are TensorFlow's InvalidArgumentError. One with values that are not finite or not within the bounds
            is answered by the label that rejects, or -1 where there is none; `kerasdef.models.guard.Flag` says how, and
            a note among the facts. No other image in the batch is answered otherwise for it. A defense that learns has
            a signature `update` too, of images and their true labels (int64, shape (n,)). "keras": a .keras
            file for safe mode. That of a defense loads once kerasdef is known to Keras: `import kerasdef.defenses`, or
            `kerasdef.defenses.load(path)`; that of a classifier loads as any. "onnx": a file for ONNX Runtime, of the
            part that keeps no state: one input `images`, the outputs of `serving_default`, and nothing that is learned
            while serving. It needs `pip install kerasdef[onnx]` and the TensorFlow backend.
        bounds: `(low, high)`: range of the values that the model takes. None takes what the model says (a defense knows
            its bounds; an Input of uint8 or a first division by 255 means (0, 255)), and (0, 1) where it says nothing.
        facts: JSON values to note in the file, such as the settings of the run as "run", so that `kerasdef attack`
            knows which images it was trained on.

    Returns:
        The path.

    Raises:
        ValueError: An unknown format, a wrong file name, something else where the export is to be, other bounds than
            the defense has, weights that are not finite, or a model or environment that ONNX cannot be written with.
        OSError: It could not be written.
        RuntimeError: What was written does not decide as the live model.
    """
    path = Path(path)
    checks.one_of("to", to, FORMATS)
    ending = {"keras": ".keras", "onnx": ".onnx"}.get(to)
    if ending and path.suffix != ending:
        raise ValueError(f"`path` must end in {ending}. Received: path={str(path)!r}")
    places.of_export(path, to, (facts or {}).get("run"), facts_of)
    said, bounds = input_bounds(model), None if bounds is None else checks.bounds(bounds)
    if bounds is not None and said != bounds and (to == "keras" or hasattr(model, "facts")):
        raise ValueError(
            f"`bounds` must be those that the model says, {said}: a .keras file holds no others. Make a defense of it, "
            f"`kerasdef.defenses.as_defense(model, bounds=...)`, and export that. Received: bounds={bounds}"
        )
    bounds = bounds or said or UNIT
    _check_weights(model)
    if to == "onnx":
        _check_onnx()
    x, wanted = _probes(model, bounds)
    floats = from_pixels(x, bounds)
    seeds = [np.array(ops.convert_to_numpy(v.value)) for v in backend.seed_variables(model)]
    if seeds:  # draws are compared too, so all of them begin alike
        wanted, again = (_outputs(model, floats, bounds) for _ in range(2))
        if to == "onnx" and any(not np.array_equal(wanted[k], again[k]) for k in wanted):
            raise ValueError(
                f"`model` must draw no random numbers to become ONNX, which keeps no state. Received: {model.name!r}"
            )
        _begin(model, seeds)
    noted = getattr(model, "facts", {"kind": "Plain", "reject": None, "bounds": list(bounds)}) | dict(facts or {})
    noted = {"classes": wanted["probabilities"].shape[-1]} | noted
    if to != "keras" or hasattr(model, "facts"):  # the .keras file of a classifier has no guard
        flag = "is_adversarial" if "is_adversarial" in wanted else "is_valid"
        noted["invalid_images"] = note(bounds, noted["reject"], flag)

    def write(part: Path) -> None:
        if to == "keras":
            model.save(part)
            with zipfile.ZipFile(part, "a") as file:
                file.writestr(KERAS_FACTS, json.dumps(noted))
            again = read_keras(part)
            _begin(again, seeds)  # Keras does not keep where a random layer is in its draws
            _compare(_outputs(again, floats, bounds), wanted, "The .keras file")
            return
        if to == "onnx":
            _write_onnx(model, part, bounds, noted)
            _compare(_run_onnx(part, floats.astype("float32")), wanted, "The ONNX file")
            return
        write_saved_model = _write_saved_model if backend.NAME == "tensorflow" else _write_elsewhere
        with _disk_errors():
            write_saved_model(model, part, bounds)
        (part / FACTS).parent.mkdir()
        (part / FACTS).write_text(json.dumps(noted), encoding="utf-8")
        _compare(_serve(part, "serving_default", floats), wanted, "The SavedModel")
        _compare(_serve(part, "serving_uint8", x), wanted, "The SavedModel's uint8 signature")

    return write_whole(path, write)


def run_of(path: Path) -> dict | None:
    """Settings of the run that a model file or folder is from, or None where that cannot be known."""
    noted = facts_of(path).get("run")
    if noted:
        return noted
    near = list(path.resolve().parents)[:2]  # with a defense for each attack they lie in folders below that of the run
    for folder in near:
        if (folder / RUN).is_file():
            return _settings(folder / RUN)
    return None


def _settings(record: Path) -> dict:
    try:
        return dict(json.loads(record.read_text(encoding="utf-8")))
    except (ValueError, TypeError, RecursionError):
        raise ValueError(
            f"`model` must lie in a folder whose {RUN} tells which run it is from: move it elsewhere. "
            f"Received: {str(record)!r}, which is damaged"
        ) from None


def export_run(run: str | Path, *, to: str = "saved_model", out: str | Path | None = None) -> dict[str, Path]:
    """Export the defense of a finished run, or each of its defenses where there is one for each attack.

    Args:
        run: Folder of a run, or a .keras file.
        to: As in `export`.
        out: Where to write; None writes beside what was found.

    Returns:
        What was written, by name.

    Raises:
        ValueError: There is no trained defense.
    """

    run = Path(run)
    checks.one_of("to", to, FORMATS)
    found = [run] if run.suffix == ".keras" and run.is_file() else sorted(run.glob("*.keras"))
    found = found or sorted(run.glob("*/*.keras"))
    if not found:
        raise ValueError(
            f"`run` must be the folder of a finished run (with a .keras file in it) or a .keras file. "
            f"Received: run={str(run)!r}"
        )
    written = {}
    for file in found:
        name = {"saved_model": "saved_model", "keras": file.name, "onnx": f"{file.stem}.onnx"}[to]
        place = file.parent / name if out is None else Path(out)
        if out is not None and len(found) > 1:
            place = Path(out) / file.parent.name / name
        key = to if len(found) == 1 else file.parent.name
        written[key] = export(read_keras(file), place, to=to, facts={"run": run_of(file)})
    return written


if __name__ == "__main__":
    _file, _folder, _low, _high = sys.argv[1:]
    _write_saved_model(read_keras(_file), Path(_folder), (float(_low), float(_high)))
