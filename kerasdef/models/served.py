"""SavedModels read back: looked through before any of it runs, then a callable that attacks see as a black box."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
from keras import ops

from kerasdef import checks
from kerasdef.archives import check_zip, reading
from kerasdef.models.vetting import file_operations

GRAPH = "saved_model.pb"
FACTS = Path("assets.extra", "kerasdef.json")  # TensorFlow's place for files of others in a SavedModel
KERAS_FACTS = "kerasdef.json"  # in a .keras file, which is a zip archive
ONNX_FACTS = "kerasdef"  # among the properties of an ONNX model
_NAMED = 5  # most operations that an error names


def is_saved_model(path: str | Path) -> bool:
    """Whether a path is the folder of a SavedModel."""
    return (Path(path) / GRAPH).is_file()


def vet(path: str | Path) -> None:
    """Raise where a SavedModel has operations that touch files, processes, Python or the network; nothing of it runs.

    A seat belt and no sandbox; `kerasdef.models.vetting` says what it holds.

    Args:
        path: Folder of a SavedModel.

    Raises:
        ValueError: There are such operations, or the file cannot be read as a SavedModel.
    """
    import tensorflow as tf
    from tensorflow.python.framework import op_def_registry

    try:
        found = tf.__internal__.saved_model.parse_saved_model(str(path))  # what `tf.saved_model.load` does first
    except OSError:
        found = None
    if found is None or not found.meta_graphs:  # an empty file is a SavedModel without graphs
        raise ValueError(
            f"`model` must be a SavedModel that is whole. Received: {str(Path(path) / GRAPH)!r}, which cannot be read"
        )
    refused = file_operations(found, op_def_registry.get)
    if refused:
        more = f" and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        raise ValueError(
            "`model` must be a SavedModel whose operations only compute, unless you trust those who made it (`trust`, "
            f"on the command line --trust): they would run on this machine. Received: {str(path)!r} with "
            f"{', '.join(refused[:_NAMED])}{more}"
        )


class Served:
    """A SavedModel as a callable from images to scores of shape (n, outputs), whose largest is the decision.

    For a vote the scores are votes plus half the mean probabilities, so that the largest decides as the vote does.
    A SavedModel is a program: to load it and to ask it runs its operations in this process.

    Args:
        path: Folder of a SavedModel with a signature `serving_default` of one input of floats, whose outputs are those
            of a defense, or one array of logits or probabilities.
        trust: Whether its operations may touch files, processes, Python and the network; else `vet` refuses such.

    Attributes:
        classes: Number of real classes.
        reject: The label that stands for "adversarial", or None.
        bounds: `(low, high)`: range of the values that `serving_default` takes, None where the files do not say it.
        digest: SHA-256 of the graph and the weights.

    Raises:
        ValueError: The SavedModel is damaged or has operations that are not allowed, there is no such signature, or it
            gives neither a decision of kerasdef's nor one array.
    """

    def __init__(self, path: str | Path, *, trust: bool = False):
        import tensorflow as tf

        path = Path(path)
        if not trust:
            vet(path)
        facts = _checked_facts(path)
        received = f"Received: {str(path)!r}, which is damaged or of another kind"
        with reading(f"`model` must be a SavedModel that is whole. {received}"):
            self._model = tf.saved_model.load(str(path))  # lives as long as its signature is used
        if "serving_default" not in self._model.signatures:
            raise ValueError(
                "The SavedModel must have a signature `serving_default`. "
                f"Received: {sorted(self._model.signatures)} in {str(path)!r}"
            )
        self._signature = self._model.signatures["serving_default"]
        inputs = self._signature.structured_input_signature[1]
        if len(inputs) != 1 or not next(iter(inputs.values())).dtype.is_floating:
            raise ValueError(
                f"The SavedModel must have one input of floats. Received: {sorted(inputs.values(), key=str)}"
            )
        ((self._input, self._spec),) = inputs.items()
        outputs = self._signature.structured_outputs
        self._single = len(outputs) == 1
        if not self._single and not {"label", "probabilities"} <= set(outputs):
            raise ValueError(f"The SavedModel must have one output, or those of a defense. Received: {sorted(outputs)}")
        self.__name__ = path.name
        columns = (next(iter(outputs.values())) if self._single else outputs["probabilities"]).shape[-1]
        self.classes = facts.get("classes", columns)
        self.reject = facts.get("reject")
        if self.reject is not None and columns is not None and self.reject >= columns:
            raise ValueError(f"`reject` must be below the number of outputs, {columns}. Received: reject={self.reject}")
        self.bounds = facts.get("bounds")
        self.digest = _digest(path)

    def answer(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of the signature, by name; `label` and `probabilities` are among them.

        Raises:
            ValueError: The images have another shape, or it says of some that they are none.
        """
        import tensorflow as tf

        if not self._spec.shape.is_compatible_with(x.shape):  # TensorFlow does not look, and may end the process
            wanted = tuple(self._spec.shape)
            raise ValueError(f"`x` must have the shape that the SavedModel takes, {wanted}. Received: shape={x.shape}")
        found = {k: v.numpy() for k, v in self._signature(**{self._input: tf.constant(x, self._spec.dtype)}).items()}
        if not self._single:
            refused = int(np.sum(found["label"] < 0))
            if refused:
                raise ValueError(
                    f"The SavedModel must give finite probabilities. Received: none for {refused} of {len(x)} samples"
                )
            return found
        (scores,) = found.values()
        shares = (scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1.0, atol=1e-3)  # 1e-3: float16
        probabilities = scores if shares else ops.convert_to_numpy(ops.softmax(ops.convert_to_tensor(scores), axis=-1))
        return {"label": scores.argmax(axis=-1), "probabilities": probabilities, "scores": scores}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Scores of shape (n, outputs)."""
        found = self.answer(x)
        if "scores" in found:
            return found["scores"]
        if "votes" in found:
            return found["votes"] + 0.5 * found["probabilities"]  # the rule of a vote
        return found["probabilities"]


def facts_of(path: str | Path) -> dict:
    """What `export` noted in a SavedModel, a .keras or an .onnx file; empty for those of others.

    Raises:
        ValueError: There are notes, and they are none of `export`.
    """
    path = Path(path)
    with reading(f"`model` must have notes that can be read. Received: {str(path)!r}, whose notes are damaged"):
        if path.suffix == ".keras" and path.is_file():
            with zipfile.ZipFile(path) as file:
                check_zip(file)
                facts = json.loads(file.read(KERAS_FACTS)) if KERAS_FACTS in file.namelist() else {}
        elif path.suffix == ".onnx" and path.is_file():
            import onnx

            noted = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
            facts = json.loads(noted.get(ONNX_FACTS, "{}"))
        else:
            file = path / FACTS
            facts = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if not isinstance(facts, dict) or not isinstance(facts.get("run"), dict | None):
            raise ValueError("they, and those of the run among them, must be JSON objects")
    return facts


def _checked_facts(path: Path) -> dict:
    """The facts that a black box needs, each as it must be; those that are not noted are left out."""
    facts = facts_of(path)
    checked = {}
    try:
        if "classes" in facts:
            checked["classes"] = checks.positive_int("classes", facts["classes"])
        if facts.get("reject") is not None:
            checked["reject"] = checks.non_negative_int("reject", facts["reject"])
        if "bounds" in facts:
            checked["bounds"] = checks.bounds(facts["bounds"])
    except ValueError as error:
        raise ValueError(f"{error}, in {str(path / FACTS)!r}") from None
    return checked


def _digest(path: Path) -> str:
    """SHA-256 of the graph and the weights of a SavedModel."""
    digest = hashlib.sha256()
    for file in [path / GRAPH, *sorted((path / "variables").glob("*"))]:
        digest.update(file.read_bytes())
    return digest.hexdigest()
