"""GMA against networks of several sizes, as one call."""

import numpy as np
import pytest

import kerasdef
from kerasdef import datasets, models
from kerasdef.attacks import GMA, PGD
from kerasdef.recipes.victims import VICTIMS, gma_victims


def small():
    return datasets.load("digits").subset(n_train=400, n_test=60)


def test_each_network_is_trained_attacked_and_analyzed_and_a_second_call_goes_on(tmp_path):
    options = {"victims": ("target_dnn", "eat1"), "epochs": 3, "batch_size": 32, "limit": 60, "progress": False}
    found = gma_victims(small(), out=tmp_path / "run", **options)
    x, y = small().x_test, small().y_test
    for name, model in found.models.items():
        x_adv = GMA()(model, x, y)
        right = models.predict_logits(model, x_adv).argmax(axis=1) == y
        analysis = found.analyses[name]
        assert analysis.baseline == np.mean(models.predict_logits(model, x).argmax(axis=1) == y)
        assert analysis.rounds[0] == pytest.approx(right.mean(), abs=0.02)  # one image: the pool differs
        assert found.table().loc[name, "clean"] == analysis.baseline
        assert found.report.metrics(name, "gma", "adaptive")["adversarial_accuracy"] == pytest.approx(
            right.mean(), abs=0.02
        )
    assert found.analyses["target_dnn"].baseline > 0.7
    assert set(found.report.by_radius("gma", "adaptive")["model"]) == {"target_dnn", "eat1"}
    assert all(path.exists() for path in found.files.values())

    pieces = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "pieces").iterdir()}
    again = gma_victims(small(), out=tmp_path / "run", **options)
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "run" / "pieces").iterdir()} == pieces
    assert again.table().equals(found.table())
    with pytest.raises(ValueError, match="differs in"):
        gma_victims(small(), out=tmp_path / "run", **options | {"epochs": 4})


def test_the_papers_networks_are_the_default_and_bad_values_are_refused():
    assert VICTIMS == ("vgg7", "vgg16", "resnet32", "resnet50")
    assert kerasdef.gma_victims is gma_victims
    with pytest.raises(ValueError, match="Did you mean 'vgg16'"):
        gma_victims("digits", victims=("vgg_16",))
    with pytest.raises(ValueError, match="`attack` must be a GMA"):
        gma_victims("digits", attack=PGD())
    with pytest.raises(ValueError, match="`epochs` must be a positive integer"):
        gma_victims("digits", epochs=0)
    with pytest.raises(ValueError, match="`victims` must name at least one"):
        gma_victims("digits", victims=())


@pytest.mark.slow
def test_the_papers_four_networks_run():
    few = datasets.load("digits").subset(n_train=40, n_test=10)
    found = gma_victims(few, attack=GMA(steps=1), epochs=1, batch_size=20, limit=4, progress=False)
    assert list(found.table().index) == list(VICTIMS)
    assert np.all(np.isfinite(found.table()["under GMA"]))
