"""`kerasdef attack`: any kind of model, resumable, honest about what it counts; the catalog is what there is."""

import dataclasses
import inspect
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers
from typer.testing import CliRunner

import kerasdef
import kerasdef.attacks
from kerasdef import catalog, cli, datasets, defenses, models
from kerasdef.attacks import GMA, PGD, Attack, CarliniWagner, Evade, GradientAttack, Restarts, Wrapper
from kerasdef.catalog import ATTACKS
from kerasdef.defenses.loading import load_model
from kerasdef.models.export import export
from kerasdef.norms import NORMS
from kerasdef.recipes.attack import attack as run
from kerasdef.recipes.settings import AttackSettings


@pytest.fixture(scope="module")
def data():
    return datasets.load("digits")


@pytest.fixture(scope="module")
def victim(data):
    """A linear model of the digits."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10)], name="linear")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.02), loss, jit_compile=False)
    model.fit(data.x_train, data.y_train, batch_size=64, epochs=5, verbose=0)
    return model


@pytest.fixture(scope="module")
def vote(victim):
    """A vote of two models with a class of rejected inputs."""
    members = []
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        w, b = victim.layers[-1].get_weights()
        member = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(11)])
        extra = rng.normal(size=(64, 1)).astype("float32")
        member.layers[-1].set_weights([np.concatenate([w, extra], axis=1), np.append(b, -3.0).astype("float32")])
        members.append(member)
    return defenses.voting_model(members, reject=10, name="pair")


# -- the catalog -----------------------------------------------------------------------------------


def test_the_catalog_holds_every_attack_and_tells_the_truth_about_it():
    exported = {
        name
        for name, value in vars(kerasdef.attacks).items()
        if inspect.isclass(value) and issubclass(value, Attack) and not inspect.isabstract(value)
    }
    wrappers = {name for name in exported if issubclass(getattr(kerasdef.attacks, name), Wrapper)}
    assert {info.cls for info in ATTACKS.values()} == exported - wrappers - {"WorstOf", "GradientAttack"}
    assert issubclass(GradientAttack, Attack)
    for name, info in ATTACKS.items():
        cls = getattr(kerasdef.attacks, info.cls)
        assert cls().access == info.access, name
        assert cls().kind == info.kind, name
        if "norm" in inspect.signature(cls).parameters:
            works = []
            for norm in NORMS:
                try:
                    cls(norm=norm)
                    works.append(norm)
                except ValueError as error:
                    assert "`norm` must be" in str(error)  # noqa: PT017
            assert set(info.norms) <= set(works), name
            assert set(works) == set(info.norms) or name == "gma", name


def test_list_attacks_is_quick_and_imports_no_framework():
    code = (
        "import sys; from typer.testing import CliRunner; from kerasdef import cli;"
        "done = CliRunner().invoke(cli.app, ['list', 'attacks'], env={'COLUMNS': '200'});"
        "print(done.output); print('loaded', {'tensorflow', 'jax', 'keras'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "loaded none" in done.stdout
    for name, info in ATTACKS.items():
        assert f" {name} " in done.stdout
        assert info.paper in done.stdout


def test_the_names_of_norms_are_those_there_are():
    assert list(catalog.NORMS) == list(NORMS)


# -- what is attacked ------------------------------------------------------------------------------


def test_a_keras_file_is_attacked_and_the_result_is_kept(victim, data, tmp_path):
    victim.save(tmp_path / "linear.keras")
    found = run(
        tmp_path / "linear.keras", "digits", "pgd", norm="linf", eps=0.05, n=100, out=tmp_path / "run", progress=False
    )
    x, y = data.x_test[:100], data.y_test[:100]
    stands = models.predict_logits(victim, found.result.x_adv).argmax(axis=1) == y
    np.testing.assert_array_equal(stands, ~found.result.success)
    assert np.abs(found.result.x_adv - x).max() <= 0.05 + 1e-6
    record = json.loads((tmp_path / "run" / "attack.json").read_text())
    assert record["robust_accuracy"] == stands.mean()
    assert record["n"] == 100
    with np.load(tmp_path / "run" / "examples.npz") as kept:
        np.testing.assert_array_equal(kept["x_adv"], found.result.x_adv)
    assert all(path.exists() for path in found.files.values())
    assert (record["norm"], record["radius"], record["access"]) == ("Linf", [0.05], "gradients")
    assert "robust accuracy" in found.text()
    assert "not fooled" not in found.text()  # the same number, for a model that does not reject

    again = run(
        tmp_path / "linear.keras", "digits", "pgd", norm="linf", eps=0.05, n=100, out=tmp_path / "run", progress=False
    )
    np.testing.assert_array_equal(again.result.x_adv, found.result.x_adv)
    with pytest.raises(ValueError, match="differs in attack/eps"):
        run(tmp_path / "linear.keras", "digits", "pgd", norm="linf", eps=0.06, n=100, out=tmp_path / "run")


def test_a_vote_is_attacked_whole_for_a_label_that_is_neither_true_nor_adversarial(vote, data):
    found = run(vote, "digits", "pgd", eps=0.1, n=100, progress=False)
    y = data.y_test[:100]
    said = np.array(vote(found.result.x_adv)["label"])
    broken = found.result.broken_by >= 0
    assert broken.sum() > 20
    assert np.all((said[broken] != y[broken]) & (said[broken] != 10))
    stands = found.result.broken_by == -1
    assert np.all((said[stands] == y[stands]) | (said[stands] == 10))
    assert found.report.reject == 10
    clean = np.array(vote(data.x_test[:100])["label"])
    assert found.clean_accuracy == np.mean(clean == y)
    assert found.result.clean_accuracy == np.mean((clean == y) | (clean == 10))
    assert found.not_fooled == found.result.robust_accuracy
    assert found.robust_accuracy == np.mean((clean == y) & ~broken & (found.result.broken_by != -2))
    assert found.robust_accuracy <= min(found.clean_accuracy, found.not_fooled)
    shown = found.text()
    for name, value in (
        ("Clean accuracy: ", found.clean_accuracy),
        ("", found.robust_accuracy),
        ("", found.not_fooled),
    ):
        assert f"{name}{value:.1%} [" in shown


def test_autoattack_runs_on_a_vote(vote):
    settings = {"version": "custom", "parts": ("apgd-ce", "fab-t")}
    found = run(vote, "digits", "autoattack", eps=0.1, n=40, settings=settings, progress=False)
    pgd = run(vote, "digits", "pgd", eps=0.1, n=40, progress=False)
    assert found.result.robust_accuracy <= pgd.result.robust_accuracy
    assert list(found.table()["attack"]) == ["apgd-ce", "fab-t"]


def test_a_callable_gets_black_box_attacks_only(victim, data):
    def serve(images):
        return models.predict_logits(victim, np.asarray(images, dtype="float32"))

    found = run(serve, "digits", "square", eps=0.1, n=40, settings={"queries": 60}, progress=False)
    assert 0 < found.result.evaluations.max() <= 60
    with pytest.raises(ValueError, match=r"black-box attack .*square.*Received: attack='pgd'"):
        run(serve, "digits", "pgd", eps=0.1)


def test_a_minimal_attack_counts_only_what_is_within_eps(victim, data):
    settings = {"steps": 60, "binary_search_steps": 3, "initial_c": 1.0, "learning_rate": 0.05}
    free = run(victim, "digits", "carlini_wagner", n=60, settings=settings, progress=False)
    distance = np.linalg.norm((free.result.x_adv - data.x_test[:60]).reshape(60, -1), axis=1)
    eps = float(np.median(distance[free.result.broken_by >= 0]))
    bound = run(victim, "digits", "carlini_wagner", eps=eps, n=60, settings=settings, progress=False)
    wanted = (free.result.broken_by == -2) | ((free.result.broken_by >= 0) & (distance <= eps))
    np.testing.assert_array_equal(bound.result.success, wanted)
    assert bound.result.robust_accuracy > free.result.robust_accuracy
    counted = distance[(free.result.broken_by >= 0) & (distance <= eps)]
    assert bound.table()["median_distance"].iloc[0] == pytest.approx(np.median(counted), rel=1e-4)
    assert bound.table()["norm"].iloc[0] == "L2"


def test_an_attack_object_may_be_passed(victim):
    found = run(victim, "digits", Restarts(PGD(eps=0.05, steps=5), 2), n=30, progress=False)
    assert found.table()["attack"].tolist() == ["restarts"]
    with pytest.raises(ValueError, match="belong to an attack given by name"):
        run(victim, "digits", CarliniWagner(), eps=0.1)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a SavedModel is written by TensorFlow")
def test_a_saved_model_is_a_black_box_that_decides_as_the_vote(vote, data, tmp_path):
    from kerasdef.models.export import export

    export(vote, tmp_path / "saved_model")
    loaded = load_model(tmp_path / "saved_model")
    assert loaded.black_box
    assert loaded.defense.reject == 10
    scores = loaded.defense.surface()[0](data.x_test[:50])
    np.testing.assert_array_equal(np.argmax(scores, axis=1), np.array(vote(data.x_test[:50])["label"]))
    with pytest.raises(ValueError, match="black-box attack"):
        run(tmp_path / "saved_model", "digits", "autoattack", eps=0.1)
    settings = {"queries": 150}
    found = run(tmp_path / "saved_model", "digits", "hop_skip_jump", n=10, settings=settings, progress=False)
    said = np.array(vote(found.result.x_adv)["label"])
    broken = found.result.broken_by >= 0
    assert np.all((said[broken] != data.y_test[:10][broken]) & (said[broken] != 10))


# -- the command -----------------------------------------------------------------------------------


def invoke(*arguments):
    return CliRunner().invoke(cli.app, ["attack", *arguments])


def test_the_command_prints_a_table_and_paths(victim, tmp_path):
    victim.save(tmp_path / "linear.keras")
    done = invoke(
        str(tmp_path / "linear.keras"), "--attack", "fgsm", "--eps", "8/255", "--n", "50", "--out", str(tmp_path / "o")
    )
    assert done.exit_code == 0, done.output
    assert "fgsm" in done.output
    assert str(tmp_path / "o" / "attack.json") in done.output
    settings = json.loads((tmp_path / "o" / "state" / "run.json").read_text())["attack"]
    assert float(settings["eps"]) == 8 / 255


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--attack", "pdg", "--eps", "0.1"), "Did you mean 'pgd'"),
        (("--attack", "deepfool", "--norm", "l1"), "`norm` must be one of l2, linf for deepfool"),
        (
            ("--attack", "gma", "--eps", "0.1"),
            "`eps` must not be given for gma, which has radii of its own. Its settings",
        ),
        (("--attack", "gma", "--set", "eps=0.1"), "`settings` must be one of mode, norm, steps, radii"),
        (("--attack", "gma", "--set", "mode=all"), "`mode` must be 'cycle' here"),
        (("--attack", "pgd"), "`eps` must be given"),
        (("--attack", "pgd", "--eps", "8/0"), "`eps` must be a number or a fraction"),
        (("--attack", "pgd", "--eps", "-0.1"), "`eps` must be a finite number of at least 0"),
        (("--attack", "pgd", "--eps", "0.1", "--set", "step=3"), "Did you mean 'steps'"),
        (("--attack", "pgd", "--eps", "0.1", "--set", "steps"), "must be name=value"),
        (("--attack", "pgd", "--eps", "0.1", "--set", "step_size=0"), "`step_size` must be"),
        (("--attack", "square", "--eps", "0.1", "--set", "queries=0"), "`queries` must be a positive integer"),
        (("--attack", "pgd", "--eps", "0.1", "--n", "100000"), "`n` must be at most"),
        (("--attack", "pgd", "--eps", "0.1", "--dataset", "digit"), "Did you mean 'digits'"),
    ],
)
def test_bad_arguments_are_one_line(victim, tmp_path, arguments, message):
    victim.save(tmp_path / "linear.keras")
    done = invoke(str(tmp_path / "linear.keras"), *arguments)
    assert isinstance(done.exception, ValueError)
    assert message in " ".join(str(done.exception).split())


def test_a_model_of_a_run_is_attacked_on_the_images_that_the_run_held_out(victim, data, tmp_path):
    from kerasdef.defenses.loading import test_images as images_of

    victim.save(tmp_path / "linear.keras")
    (tmp_path / "run.json").write_text(json.dumps({"data": data.fingerprint, "test_size": 0.4, "seed": 3}))
    wanted = data.resplit(0.4, seed=3).x_test
    for path in (tmp_path, tmp_path / "linear.keras"):
        np.testing.assert_array_equal(images_of("digits", load_model(path)).x_test, wanted)
    np.testing.assert_array_equal(images_of("digits", load_model(victim)).x_test, data.x_test)
    other = datasets.Dataset.from_arrays(1 - data.x_train, data.y_train, data.x_test, data.y_test, name=data.name)
    np.testing.assert_array_equal(images_of(other, load_model(tmp_path)).x_test, other.x_test)  # of the same name only
    (tmp_path / "pgd").mkdir()  # one defense for each attack
    victim.save(tmp_path / "pgd" / "linear.keras")
    np.testing.assert_array_equal(images_of("digits", load_model(tmp_path / "pgd")).x_test, wanted)


def test_an_export_elsewhere_knows_its_run_and_its_reject_class(victim, data, tmp_path):
    settings = {"recipe": "iar", "dataset": "digits", "test_size": 0.4, "seed": 3}
    export(defenses.RejectClass(victim), tmp_path / "served", facts={"run": settings})
    loaded = load_model(tmp_path / "served")
    assert loaded.settings == settings
    assert (loaded.defense.classes, loaded.defense.reject) == (9, 9)
    assert loaded.defense.surface()[1] == Evade(9)
    x, y = data.x_test[:40], data.y_test[:40]
    nine = y < 9
    small = datasets.Dataset.from_arrays(x[nine], y[nine], x[nine], y[nine])
    found = run(tmp_path / "served", small, "square", eps=0.1, settings={"queries": 5}, progress=False)
    assert found.report.reject == 9
    assert found.report.rejects("served") == 9
    for text in (found.report.table(), found.report.html({})):
        assert "sees the scores of the whole defense, not its gradients" in " ".join(text.split())
        assert "knows the whole defense and" not in " ".join(text.split())


def test_arrays_are_attacked_all_of_them_with_indices_or_one_hot_labels(victim, data):
    x, y = data.x_test[:30], data.y_test[:30]
    found = run(victim, (x, y), "fgsm", eps=0.1, progress=False)
    assert len(found.result.success) == 30
    again = run(victim, (x, np.eye(10)[y]), "fgsm", eps=0.1, progress=False)
    np.testing.assert_array_equal(again.result.x_adv, found.result.x_adv)
    with pytest.raises(ValueError, match="`y` must be class indices"):
        run(victim, (x, np.ones((30, 10))), "fgsm", eps=0.1)


def test_an_attack_of_a_data_set_is_in_its_bounds(victim, data):
    model = keras.Sequential([keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), *victim.layers])
    wide = data.rescaled((0, 255))
    found = run(model, wide, "pgd", eps=20.0, n=20, progress=False)
    assert found.result.x_adv.max() <= 255
    assert np.abs(found.result.x_adv - wide.x_test[:20]).max() > 1
    with pytest.raises(ValueError, match="`attack` must have the bounds of the data"):
        run(model, wide, PGD(eps=0.1), n=20)


def test_an_attack_that_gives_several_images_for_one_is_refused(victim):
    for attack in (GMA(mode="all"), Restarts(GMA(mode="all"), 2)):
        with pytest.raises(ValueError, match="`mode` must be 'cycle' here"):
            run(victim, "digits", attack, n=5)


def test_the_signature_of_the_function_is_that_of_the_settings():
    found = inspect.signature(kerasdef.attack).parameters
    assert list(found)[:3] == ["model", "data", "attack"]
    wanted = {f.name: f.default for f in dataclasses.fields(AttackSettings) if f.name != "model"}
    assert {k: p.default for k, p in found.items() if k != "model"} == wanted
    with pytest.raises(ValueError, match="Did you mean 'seed'"):
        kerasdef.attack("m.keras", sead=3)


def test_another_saved_model_does_not_take_up_the_state_of_the_first(victim, tmp_path):
    for name, scale in (("one", 1.0), ("two", 1.1)):
        victim.layers[-1].set_weights([w * scale for w in victim.layers[-1].get_weights()])
        export(victim, tmp_path / name)
    victim.layers[-1].set_weights([w / 1.1 for w in victim.layers[-1].get_weights()])
    options = {"eps": 0.1, "n": 10, "settings": {"queries": 3}, "progress": False, "out": tmp_path / "run"}
    run(tmp_path / "one", "digits", "square", **options)
    with pytest.raises(ValueError, match="differs in model"):
        run(tmp_path / "two", "digits", "square", **options)


def test_a_path_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.keras file, the folder of a finished run"):
        load_model(tmp_path)
    assert kerasdef.attack is run
