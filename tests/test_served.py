"""What is served keeps its word on odd inputs, in plain TensorFlow; no SavedModel runs before it is looked through."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest

from kerasdef import backend, cli
from kerasdef.defenses import Plain, RejectClass, load, voting_model
from kerasdef.models.export import export, facts_of
from kerasdef.models.loading import read_keras, register

pytestmark = pytest.mark.skipif(backend.NAME != "tensorflow", reason="a SavedModel is written by TensorFlow")

SERVE = """
import sys
sys.modules["kerasdef"] = sys.modules["keras"] = None  # importing them raises
import json
import numpy as np
import tensorflow as tf

rng = np.random.default_rng(0)
good = rng.random((6, 8, 8, 1), dtype="float32")
wrong = {
    "scalar": (), "one image": (8, 8, 1), "no channels": (2, 8, 8), "flat": (2, 64), "a vector": (64,),
    "five axes": (8, 1, 8, 8, 1), "five axes last": (2, 8, 8, 1, 1), "taller": (2, 9, 8, 1), "smaller": (2, 4, 8, 1),
    "colors": (2, 8, 8, 3), "no rows": (2, 0, 8, 1), "none of another shape": (0, 9, 9, 1),
    "as many": (2, 4, 16, 1),
}
found = {}
for kind, (path, low, high) in json.loads(sys.argv[1]).items():
    signatures = tf.saved_model.load(path).signatures
    scaled = (low + good * (high - low)).astype("float32")
    bad = {
        "nan": np.nan, "inf": np.inf, "minus inf": -np.inf, "1e38": 1e38, "above": high + 1e-3 * (high - low),
        "below": low - 1e-3 * (high - low),
    }
    answers = {"good": scaled, "edge": np.clip(scaled, high - 0.1, high) + np.float32(2e-7 * (high - low))}
    for name, value in bad.items():
        answers[name] = scaled.copy()
        answers[name][2, 3, 4, 0] = value
    answers["all bad"] = np.full_like(scaled, np.nan)
    for name, x in answers.items():
        for key, value in signatures["serving_default"](images=tf.constant(x)).items():
            found[f"{kind}/{name}/{key}"] = value.numpy()
    for signature, dtype in (("serving_default", tf.float32), ("serving_uint8", tf.uint8)):
        for key, value in signatures[signature](images=tf.zeros((0, 8, 8, 1), dtype)).items():
            found[f"{kind}/empty {signature}/{key}"] = value.numpy()
        refused = {name: tf.zeros(shape, dtype) for name, shape in wrong.items()}
        others = (tf.float16, tf.bfloat16, tf.float64, tf.int32, tf.uint8 if dtype == tf.float32 else tf.float32)
        refused |= {other.name: tf.cast(scaled, other) for other in others}
        refused |= {"words": tf.constant("image")}
        if dtype == tf.float32:
            refused |= {f"nan {d.name}": tf.cast(answers["nan"], d) for d in (tf.float16, tf.bfloat16, tf.float64)}
        for name, x in refused.items():
            try:
                signatures[signature](images=x)
                said = "answered"
            except tf.errors.InvalidArgumentError:
                said = "refused"
            found[f"{kind}/{signature} {name}/said"] = np.array(said)
np.savez(sys.argv[2], **found)
"""
KINDS = {"reject class": 3, "one that does not reject": None, "plain": None, "vote": 3, "vote of all": None}
KINDS |= {"classifier": None, "classifier of pixels": None}


def network(seed=0, *before):
    normal = keras.initializers.RandomNormal(stddev=1.0, seed=seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *before,
            keras.layers.Conv2D(3, 3, activation="relu", kernel_initializer=normal),
            keras.layers.MaxPooling2D(),
            keras.layers.Flatten(),
            keras.layers.Dense(4, kernel_initializer=normal),
        ]
    )


def kinds():
    return {
        "reject class": RejectClass(network()),
        "one that does not reject": RejectClass(network(), rejects=False),
        "plain": Plain(network(), bounds=(-1, 1)),
        "vote": voting_model([network(i) for i in range(3)], reject=3),
        "vote of all": voting_model([network(i) for i in range(3)]),
        "classifier": network(),
        "classifier of pixels": network(0, keras.layers.Rescaling(1 / 255)),
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Every kind of model as a SavedModel."""
    folder = tmp_path_factory.mktemp("served")
    return {name: export(model, folder / name.replace(" ", "_")) for name, model in kinds().items()}


@pytest.fixture(scope="module")
def served(folders, tmp_path_factory):
    """What they say of odd inputs, in a process that has neither kerasdef nor Keras."""
    out = tmp_path_factory.mktemp("answers") / "found.npz"
    asked = {name: [str(path), *facts_of(path)["bounds"]] for name, path in folders.items()}
    command = [sys.executable, "-c", SERVE, json.dumps(asked), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(out) as file:
        return {k: file[k] for k in file.files}


def answer(served, kind, name):
    start = f"{kind}/{name}/"
    return {k.removeprefix(start): v for k, v in served.items() if k.startswith(start)}


def flagged(found):
    return found["is_adversarial"] if "is_adversarial" in found else ~found["is_valid"]


@pytest.mark.parametrize("name", ["nan", "inf", "minus inf", "1e38", "above", "below"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_none_is_flagged_and_the_others_are_answered_as_without_it(served, kind, name):
    good, found, others = answer(served, kind, "good"), answer(served, kind, name), [0, 1, 3, 4, 5]
    assert sorted(found) == sorted(good)
    for key, value in good.items():
        np.testing.assert_array_equal(found[key][others], value[others])
    reject = KINDS[kind]
    assert flagged(found)[2]
    assert found["label"][2] == (-1 if reject is None else reject)
    wanted = np.full(4, 0.25) if reject is None else np.eye(4)[reject]
    np.testing.assert_array_equal(found["probabilities"][2], wanted)
    if "votes" in found:
        np.testing.assert_array_equal(found["votes"][2], np.zeros(4) if reject is None else 3 * np.eye(4)[reject])


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_answered_up_to_the_tolerance_at_the_bounds(served, kind):
    for name in ("good", "edge"):
        found = answer(served, kind, name)
        assert np.isfinite(found["probabilities"]).all()
        np.testing.assert_allclose(found["probabilities"].sum(axis=1), 1, atol=1e-6)  # float32
        assert (found["label"] >= 0).all()
        np.testing.assert_array_equal(flagged(found), found["label"] == (-1 if KINDS[kind] is None else KINDS[kind]))
    assert flagged(answer(served, kind, "all bad")).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_get_no_answers_of_the_right_shapes(served, kind):
    good = answer(served, kind, "good")
    for signature in ("serving_default", "serving_uint8"):
        found = answer(served, kind, f"empty {signature}")
        assert {k: (v.shape, v.dtype) for k, v in found.items()} == {
            k: ((0, *v.shape[1:]), v.dtype) for k, v in good.items()
        }


@pytest.mark.parametrize("kind", KINDS)
def test_another_shape_or_type_is_refused_by_tensorflow_and_ends_nothing(served, kind):
    said = {k: str(v) for k, v in served.items() if k.startswith(f"{kind}/serving_")}
    assert len(said) >= 2 * 19
    assert set(said.values()) == {"refused"}, {k for k, v in said.items() if v != "refused"}


def test_the_names_of_the_outputs_and_what_the_files_say_of_them(served, folders):
    vote = ["is_adversarial", "label", "probabilities", "votes"]
    one = ["is_adversarial", "label", "probabilities"]
    plain = ["is_valid", "label", "probabilities"]
    wanted = {"vote": vote, "vote of all": vote, "reject class": one, "one that does not reject": one}
    for kind, path in folders.items():
        names = wanted.get(kind, plain)
        assert sorted(answer(served, kind, "good")) == names
        note = facts_of(path)["invalid_images"]
        assert f"`{names[0]}` is {'true' if names[0] == 'is_adversarial' else 'false'}" in note
        assert f"label {-1 if KINDS[kind] is None else KINDS[kind]} " in note


def test_a_keras_file_of_a_defense_flags_too(tmp_path):
    x = np.random.default_rng(0).random((3, 8, 8, 1), dtype="float32")
    x[1, 0, 0, 0] = np.nan
    found = read_keras(export(kinds()["vote"], tmp_path / "vote.keras", to="keras"))(x)
    found = {k: keras.ops.convert_to_numpy(v) for k, v in found.items()}
    assert found["is_adversarial"][1]
    np.testing.assert_array_equal(found["probabilities"][1], np.eye(4)[3])
    assert np.isfinite(found["probabilities"]).all()


def test_a_model_with_weights_that_are_not_finite_is_not_exported(tmp_path):
    model = network()
    model.layers[-1].bias.assign([0.0, np.nan, 0.0, 0.0])
    with pytest.raises(ValueError, match=r"`model` must have finite weights.*bias"):
        export(model, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_model_that_answers_nan_within_the_bounds_is_flagged_and_an_attack_hears_of_it(tmp_path):
    inputs = keras.Input((8, 8, 1))
    # a dense layer alone: some processors lose NaN in a ReLU or a pooling behind it
    roots = keras.layers.Flatten()(keras.ops.sqrt(inputs - 0.5))
    model = keras.Model(inputs, keras.layers.Dense(4, kernel_initializer=keras.initializers.Orthogonal(seed=0))(roots))
    export(Plain(model), tmp_path / "saved")
    loaded = load(tmp_path / "saved")
    assert (loaded.decide(np.full((2, 8, 8, 1), 0.75, "float32")).label >= 0).all()
    with pytest.raises(ValueError, match=r"must give finite probabilities\. Received: none for 2 of 2"):
        loaded.decide(np.full((2, 8, 8, 1), 0.25, "float32"))


# -- a SavedModel is a program ------------------------------------------------------------------------------------


def write(path, hostile, *, initializer=False, where="plain"):
    """A SavedModel whose signature, or initializer, calls `hostile` in some place."""
    import tensorflow as tf

    class Resource(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self):
            return tf.raw_ops.MutableHashTableV2(key_dtype=tf.string, value_dtype=tf.int64)

        def _initialize(self):
            hostile()

    inner = tf.function(lambda: (hostile(), None)[1])
    places = {
        "plain": hostile,
        "nested": lambda: tf.function(lambda: inner())(),
        "cond": lambda: tf.cond(tf.random.uniform(()) < 2, lambda: (inner(), 1)[1], lambda: 0),
        "while": lambda: tf.while_loop(lambda i: i < 1, lambda i: ((inner(), i + 1)[1],), [tf.constant(0)]),
        "stateless": lambda: tf.map_fn(lambda i: (inner(), i)[1], tf.range(2)),
    }

    class Model(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 1), tf.float32, name="images")])
        def serve(self, images):
            if not initializer:
                places[where]()
            return {"scores": tf.reshape(images, (-1, 64))[:, :10] * self.scale}

    model = Model()
    model.scale = tf.Variable(1.0)
    if initializer:
        model.resource = Resource()
        model.resource.resource_handle  # noqa: B018  makes it
    tf.saved_model.save(model, str(path), signatures=model.serve)
    return path


def operations(folder):
    """What a hostile SavedModel may do, by name."""
    import tensorflow as tf

    file = str(folder / "hostile.txt")
    return {
        "WriteFile": lambda: tf.io.write_file(file, "x"),
        "ReadFile": lambda: tf.print(tf.strings.length(tf.io.read_file("/etc/hostname"))),
        "MatchingFiles": lambda: tf.io.matching_files("/etc/*"),
        "PrintV2": lambda: tf.print("x", output_stream=f"file://{file}"),
        "EagerPyFunc": lambda: tf.py_function(lambda: 1, [], tf.int32),
        "PyFuncStateless": lambda: tf.numpy_function(lambda: np.int32(1), [], tf.int32, stateful=False),
        "SaveV2": lambda: tf.raw_ops.SaveV2(
            prefix=file, tensor_names=["a"], shape_and_slices=[""], tensors=[tf.constant(1.0)]
        ),
        "RestoreV2": lambda: tf.raw_ops.RestoreV2(
            prefix=file, tensor_names=["a"], shape_and_slices=[""], dtypes=[tf.float32]
        ),
        "TextLineDataset": lambda: tf.data.TextLineDataset("/etc/hostname").reduce(0, lambda a, _: a + 1),
        "DebugIdentity": lambda: tf.raw_ops.DebugIdentity(input=1.0, debug_urls=[f"file://{folder}"]),
        "ImmutableConst": lambda: tf.raw_ops.ImmutableConst(dtype=tf.uint8, shape=[1], memory_region_name=file),
        "Abort": lambda: tf.raw_ops.Abort(),
    }


@pytest.mark.parametrize(
    "op",
    [
        *("WriteFile", "ReadFile", "MatchingFiles", "PrintV2", "EagerPyFunc", "PyFuncStateless"),
        *("SaveV2", "RestoreV2", "TextLineDataset", "DebugIdentity", "ImmutableConst", "Abort"),
    ],
)
def test_operations_that_do_more_than_compute_are_refused(op, tmp_path):
    path = write(tmp_path / "saved", operations(tmp_path)[op])
    with pytest.raises(ValueError, match=rf"operations only compute, .*--trust.* {op} in __inference"):
        load(path)


@pytest.mark.parametrize("where", ["nested", "cond", "while", "stateless"])
def test_an_operation_is_found_in_whatever_calls_it(where, tmp_path):
    with pytest.raises(ValueError, match="WriteFile in "):
        load(write(tmp_path / "saved", operations(tmp_path)["WriteFile"], where=where))


def test_an_initializer_that_writes_a_file_runs_only_with_trust(tmp_path, refused, command):
    path = write(tmp_path / "saved", operations(tmp_path)["WriteFile"], initializer=True)
    (tmp_path / "hostile.txt").unlink(missing_ok=True)
    line = refused("attack", path, "--attack", "square", "--eps", "0.1", "--n", 2, "--set", "queries=2")
    assert "WriteFile in __inference" in line
    assert "--trust" in line
    assert not (tmp_path / "hostile.txt").exists()
    words = ("--attack", "square", "--eps", "0.1", "--n", 2, "--set", "queries=2", "--trust")
    status, _, err = command("attack", path, *words)
    assert status == 0
    assert err.count("Its operations run on this machine") == 1
    assert (tmp_path / "hostile.txt").exists()  # so the seat belt held something


def changed(folder, change):
    """The SavedModel of a harmless model after a change of its file."""
    from tensorflow.core.protobuf import saved_model_pb2

    path = write(folder / "saved", lambda: None)
    found = saved_model_pb2.SavedModel()
    found.ParseFromString((path / "saved_model.pb").read_bytes())
    change(found.meta_graphs[0])
    (path / "saved_model.pb").write_bytes(found.SerializeToString())
    return path


def function(graph, name):
    return next(f for f in graph.graph_def.library.function if name in f.signature.name)


def saver_in_a_signature(graph):
    next(iter(graph.signature_def["serving_default"].outputs.values())).name = graph.saver_def.save_tensor_name


def saver_in_a_function(graph):
    node = function(graph, "_serve_").node_def.add(name="hidden", op="StatefulPartitionedCall")
    node.attr["f"].func.name = function(graph, "traced_save").signature.name


def saver_in_an_object(graph):
    graph.object_graph_def.nodes.add().bare_concrete_function.concrete_function_name = function(
        graph, "traced_save"
    ).signature.name


def saver_as_an_input(graph):
    graph.graph_def.node.add(name="hidden", op="NoOp").input.append(f"^{graph.saver_def.restore_op_name}")


def saver_in_the_initializer(graph):
    graph.collection_def["saved_model_main_op"].node_list.value.append(graph.saver_def.restore_op_name)


def saver_that_restores_by_writing(graph):
    function(graph, "traced_restore").node_def.add(name="hidden", op="MergeV2Checkpoints")


def saver_that_writes_files(graph):
    function(graph, "traced_save").node_def.add(name="hidden", op="WriteFile")


def no_saver(graph):
    graph.ClearField("saver_def")


def unknown_operation(graph):
    function(graph, "_serve_").node_def.add(name="hidden", op="MyOwnOp")


@pytest.mark.parametrize(
    ("change", "op"),
    [
        (saver_in_a_signature, "SaveV2"),
        (saver_in_a_function, "SaveV2"),
        (saver_in_an_object, "SaveV2"),
        (saver_as_an_input, "RestoreV2"),
        (saver_in_the_initializer, "RestoreV2"),
        (saver_that_restores_by_writing, "MergeV2Checkpoints"),
        (saver_that_writes_files, "WriteFile"),
        (no_saver, "RestoreV2"),
        (unknown_operation, "MyOwnOp"),
    ],
)
def test_the_saver_is_allowed_only_what_a_saver_does_and_only_as_the_saver(change, op, tmp_path):
    load(changed(tmp_path, lambda graph: None))
    with pytest.raises(ValueError, match=f"{op} in __inference"):
        load(changed(tmp_path, change))


def test_exports_of_ours_and_of_keras_load(folders, tmp_path):
    for kind, path in folders.items():
        assert load(path).reject == KINDS[kind]
    drawn = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.BatchNormalization(), keras.layers.Flatten()])
    drawn.add(keras.layers.Dropout(0.5))
    drawn.add(keras.layers.Dense(4, activation="softmax"))
    drawn.export(tmp_path / "keras", verbose=False)
    loaded = load(tmp_path / "keras")
    x = np.random.default_rng(0).random((5, 8, 8, 1), dtype="float32")
    np.testing.assert_array_equal(loaded.decide(x).label, drawn.predict(x, verbose=0).argmax(axis=1))
    with pytest.raises(ValueError, match=r"`x` must have the shape .*\(None, 8, 8, 1\)\. Received: .*\(5, 9"):
        loaded.decide(np.zeros((5, 9, 8, 1), "float32"))


def test_a_damaged_savedmodel_is_named(tmp_path):
    path = write(tmp_path / "saved", lambda: None)
    content = (path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"`model` must be a SavedModel that is whole\. Received: .*saved_model\.pb"):
        load(path)


@pytest.mark.parametrize("facts", ["{", "[1]", '{"classes": "x"}', '{"reject": 99}', '{"bounds": [1, 0]}'])
def test_notes_that_are_none_of_ours_are_refused(facts, tmp_path):
    path = write(tmp_path / "saved", lambda: None)
    (path / "assets.extra").mkdir()
    (path / "assets.extra" / "kerasdef.json").write_text(facts)
    with pytest.raises(ValueError, match="must"):
        load(path)


def test_a_keras_file_is_read_in_safe_mode(tmp_path):
    layer = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Lambda(lambda x: x), keras.layers.Flatten()])
    layer.save(tmp_path / "lambda.keras")
    with pytest.raises(ValueError, match=r"`?Lambda`? layer"):
        load(tmp_path / "lambda.keras")


def test_the_configuration_of_a_keras_file_does_not_start_the_command_line(monkeypatch):
    monkeypatch.delitem(sys.modules, "kerasdef.__main__", raising=False)
    monkeypatch.setattr(cli, "main", lambda: pytest.fail("the command ran"))
    register({"module": "kerasdef.__main__", "registered_name": "kerasdef>Vote"})
    assert "kerasdef.__main__" not in sys.modules
