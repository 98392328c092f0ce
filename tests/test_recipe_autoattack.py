"""AutoAttack as a piece of a run: its flags are kept, and a finished one is not repeated."""

import keras
import numpy as np
import pytest
from keras import layers

from kerasdef.attacks import AutoAttack
from kerasdef.recipes.autoattack import run_autoattack
from kerasdef.runs.store import Store


@pytest.fixture(scope="module")
def victim():
    """A linear model of three classes, images and the labels that it gives them."""
    model = keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)])
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=(16, 3)), np.zeros(3)])
    x = rng.random((6, 4, 4, 1), dtype="float32")
    return model, x, keras.ops.convert_to_numpy(model(x)).argmax(axis=1)


@pytest.mark.parametrize("folder", ["run", None])
def test_flags_are_kept_with_the_images_and_found_again(victim, tmp_path, monkeypatch, folder):
    model, x, y = victim
    attack = AutoAttack(version="custom", parts=("apgd-ce", "apgd-t"), eps=0.1)
    pieces = Store(None if folder is None else tmp_path / folder, {})
    with pytest.warns(UserWarning, match="With 3 classes"):
        x_adv, flags = run_autoattack(pieces, "linear", attack, model, x, y, progress=False)
    assert len(flags) == 1
    assert "With 3 classes" in flags[0]
    assert np.abs(x_adv - x).max() <= 0.1 + 1e-6  # float32
    assert list(pieces.seconds) == ["attack linear"]
    if folder is None:
        return
    monkeypatch.setattr(AutoAttack, "run", None)  # calling it would fail
    again, same = run_autoattack(Store(tmp_path / folder, {}), "linear", attack, model, x, y)
    np.testing.assert_array_equal(again, x_adv)
    assert same == flags
