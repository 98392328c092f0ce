"""Export of a defended model: written, read back, and compared with the live one before the call succeeds.

A SavedModel needs TensorFlow alone to serve. With the JAX backend the model is handed over as a .keras file to a
second process that runs Keras on TensorFlow.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks, models
from kerasdef.files import write_whole
from kerasdef.runs.store import RUN

FORMATS = ("saved_model", "keras")
FACTS = Path("assets.extra", "kerasdef.json")  # TensorFlow's place for files of others in a SavedModel
_PLAIN = {"label", "probabilities"}  # outputs of a classifier without a vote
PROBABILITY_TOLERANCE = 1e-4  # float32 sums in another order: another graph, another backend


def _probe(model: keras.Model, n: int = 64) -> np.ndarray:
    """Uniform noise on the 8-bit grid, the same for both signatures."""
    shape = (n, *model.input_shape[1:])
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def _answers(model: keras.Model) -> keras.Model:
    """The model with named outputs: its own, or the label and the probabilities of a plain classifier."""
    images = keras.Input(model.input_shape[1:])
    if isinstance(model(images), dict):
        return model
    logits = models.logits_view(model)(images)
    label = ops.cast(ops.argmax(logits, axis=-1), "int64")
    return keras.Model(images, {"label": label, "probabilities": ops.softmax(ops.cast(logits, "float32"))})


def _outputs(model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    found = _answers(model)(ops.convert_to_tensor(x), training=False)
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
        if not np.array_equal(found[name][sure], wanted[name][sure]):
            raise RuntimeError(f"{what} differs from the live model in {name!r}.")


def _write_saved_model(model: keras.Model, path: Path) -> None:
    import tensorflow as tf

    shape, model = tuple(model.input_shape[1:]), _answers(model)
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.add_endpoint(
        "serving_default",
        lambda images: model(images, training=False),
        [tf.TensorSpec((None, *shape), tf.float32, name="images")],
    )
    archive.add_endpoint(
        "serving_uint8",
        lambda images: model(tf.cast(images, tf.float32) / 255.0, training=False),
        [tf.TensorSpec((None, *shape), tf.uint8, name="images")],
    )
    archive.write_out(str(path), verbose=False)


def _serve(path: Path, signature: str, x: np.ndarray) -> dict[str, np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    found = loaded.signatures[signature](images=tf.constant(x))
    return {k: v.numpy() for k, v in found.items()}


def served(path: str | Path) -> tuple[Callable, int | None]:
    """Read a SavedModel as a black box.

    Args:
        path: Folder of a SavedModel with a signature `serving_default` of one input.

    Returns:
        `(scores, reject)`: a callable from images to scores of shape (n, classes), whose largest is the decision, with
        the number of `classes` and a `digest` of the files; and the label that stands for "adversarial", or None. For a
        vote the scores are votes plus mean probabilities, so
        that the largest decides as the vote does.

    Raises:
        ValueError: The signature gives neither a decision of kerasdef's nor one array.
    """
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    signature = loaded.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]

    def call(x) -> dict[str, np.ndarray]:
        return {k: v.numpy() for k, v in signature(**{name: tf.constant(x)}).items()}

    outputs = signature.structured_outputs
    first = outputs.get("probabilities", next(iter(outputs.values())))

    def scores(x) -> np.ndarray:
        found = call(x)
        if len(found) == 1:
            return next(iter(found.values()))
        if set(found) == _PLAIN:
            return found["probabilities"]
        return found["votes"] + 0.5 * found["probabilities"]  # as in `decide`

    scores.signature = loaded  # the SavedModel lives as long as the callable
    scores.classes = first.shape[-1]
    scores.digest = _digest(Path(path))
    if len(outputs) == 1 or set(outputs) == _PLAIN:
        return scores, None
    if not {"votes", "probabilities", "is_adversarial"} <= set(outputs):
        raise ValueError(f"The SavedModel must have one output, or those of a vote. Received: {sorted(outputs)}")
    return scores, facts_of(path).get("reject")


def facts_of(path: str | Path) -> dict:
    """What `export` noted beside a SavedModel; empty for those of others."""
    facts = Path(path) / FACTS
    return json.loads(facts.read_text(encoding="utf-8")) if facts.is_file() else {}


def _digest(path: Path) -> str:
    """SHA-256 of the graph and the weights of a SavedModel."""
    digest = hashlib.sha256()
    for file in [path / "saved_model.pb", *sorted((path / "variables").glob("*"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _write_elsewhere(model: keras.Model, path: Path) -> None:
    """Write the SavedModel in a process that runs Keras on TensorFlow."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.keras"
        model.save(file)
        command = [sys.executable, "-m", "kerasdef.models.export", str(file), str(path)]
        done = subprocess.run(
            command,
            env={**os.environ, "KERAS_BACKEND": "tensorflow"},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"The SavedModel could not be written: {done.stderr.strip()[-500:]}")


def export(model: keras.Model, path: str | Path, *, to: str = "saved_model", facts: Mapping | None = None) -> Path:
    """Write a defended model and check that what was written decides as the live one.

    Args:
        model: A model with the outputs of `kerasdef.defenses.Vote`, or a classifier; its SavedModel gives `label` and
            `probabilities`.
        path: A folder for "saved_model", a file ending in .keras for "keras". Replaced if it is there.
        to: "saved_model": signatures `serving_default` (float32 images in [0, 1]) and `serving_uint8` (uint8 images),
            both with named outputs; runs without kerasdef. "keras": a .keras file, safe mode, which loads once the
            layers in it are known: `import kerasdef.defenses` for a vote, `kerasdef.models.blocks` for denoising.
        facts: JSON values to note beside a SavedModel, such as the settings of the run as "run", so that
            `kerasdef attack` knows which images it was trained on.

    Returns:
        The path.

    Raises:
        ValueError: An unknown format, a wrong file name.
        RuntimeError: What was written does not decide as the live model.
    """
    path = Path(path)
    checks.one_of("to", to, FORMATS)
    if to == "keras" and path.suffix != ".keras":
        raise ValueError(f"`path` must end in .keras. Received: path={str(path)!r}")
    if path.is_dir() and (to == "keras" or (any(path.iterdir()) and not (path / "saved_model.pb").is_file())):
        raise ValueError(f"`path` must be new, empty or an earlier export. Received: path={str(path)!r}")
    x = _probe(model)
    unit = x.astype("float32") / np.float32(255)
    wanted = _outputs(model, unit)

    def write(part: Path) -> None:
        if to == "keras":
            model.save(part)
            _compare(_outputs(keras.saving.load_model(part, safe_mode=True), unit), wanted, "The .keras file")
            return
        write_saved_model = _write_saved_model if backend.NAME == "tensorflow" else _write_elsewhere
        write_saved_model(model, part)
        (part / FACTS).parent.mkdir()
        noted = {"reject": getattr(model.layers[-1], "reject", None)} | dict(facts or {})
        (part / FACTS).write_text(json.dumps(noted), encoding="utf-8")
        _compare(_serve(part, "serving_default", unit), wanted, "The SavedModel")
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
            return json.loads((folder / RUN).read_text(encoding="utf-8"))
    return None


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
        name = "saved_model" if to == "saved_model" else file.name
        place = file.parent / name if out is None else Path(out)
        if out is not None and len(found) > 1:
            place = Path(out) / file.parent.name / name
        key = to if len(found) == 1 else file.parent.name
        written[key] = export(keras.saving.load_model(file, safe_mode=True), place, to=to, facts={"run": run_of(file)})
    return written


if __name__ == "__main__":
    _write_saved_model(keras.saving.load_model(sys.argv[1], safe_mode=True), Path(sys.argv[2]))
