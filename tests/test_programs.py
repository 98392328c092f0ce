"""Compiled programs: settings that are numbers are arguments of them, and few programs are kept for a model."""

import gc
import weakref

import keras
import numpy as np
import pytest
from helpers import quiet
from keras import ops

from kerasdef import losses
from kerasdef.attacks import (
    APGD,
    BIM,
    FAB,
    FMN,
    NES,
    CarliniWagner,
    CarliniWagnerLinf,
    DeepFool,
    engine,
    queries,
    signs,
)


class Counted(keras.layers.Layer):
    """A layer that changes nothing and counts how often it is traced."""

    def __init__(self):
        super().__init__()
        self.traces = []

    def call(self, x):
        self.traces.append(1)
        return x


@pytest.fixture
def counted():
    """A small model, how often it has been traced, and inputs with the labels that it gives them."""
    layer = Counted()
    model = keras.Sequential([keras.Input((4,)), layer, keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    model.layers[-1].set_weights([rng.normal(size=(4, 3)), np.zeros(3)])
    x = rng.uniform(0.2, 0.8, (5, 4)).astype("float32")
    return model, layer.traces, x, np.argmax(ops.convert_to_numpy(model(x)), axis=1)


SWEEPS = {
    "step_size": lambda v: BIM(eps=0.1, steps=3, step_size=0.1 * v),
    "relative_step": lambda v: BIM(eps=0.1, steps=3, relative_step=2 * v),
    "eps": lambda v: APGD(eps=0.2 * v, steps=3),
    "fmn": lambda v: FMN(steps=3, step_size=v, last_step_size=0.01 * v, gamma=0.1 * v, last_gamma=0.001 * v),
    "fab": lambda v: FAB(steps=3, alpha_max=v / 2, eta=1 + v / 10, beta=v),
    "deepfool": lambda v: DeepFool(steps=3, overshoot=0.1 * v),
    "cw": lambda v: CarliniWagner(steps=20, binary_search_steps=1, confidence=v, initial_c=10 * v, learning_rate=v),
    "cw_linf": lambda v: CarliniWagnerLinf(
        steps=20, confidence=v, initial_c=v, largest_c=2 + v, growth=2 + v, shrink=v / 2, learning_rate=v
    ),
}


@pytest.mark.parametrize("make", SWEEPS.values(), ids=SWEEPS)
def test_a_sweep_of_a_setting_traces_nothing_after_the_first(make, counted):
    model, traces, x, y = counted
    quiet(make(0.5), model, x, y)
    first = len(traces)
    found = [quiet(make(v), model, x, y) for v in np.linspace(0.1, 0.9, 200 if make is SWEEPS["step_size"] else 8)]
    assert len(traces) == first
    assert any(not np.array_equal(a, found[0]) for a in found)  # the setting is read, not the first one's


@pytest.mark.slow
def test_no_program_is_kept_without_end_where_every_call_has_a_loss_of_its_own(counted, monkeypatch):
    model, _, x, y = counted
    for module in (engine, queries, signs):
        assert module._KEPT <= 16
        monkeypatch.setattr(module, "_KEPT", 4)
    for make in (lambda loss: BIM(eps=0.1, steps=1, loss=loss), lambda loss: NES(eps=0.1, queries=5, loss=loss)):
        seen = []
        for i in range(7):
            loss = lambda z, y, i=i: losses.margin(z, y) + i  # noqa: E731
            quiet(make(loss), model, x, y)
            seen.append(weakref.ref(loss))
        del loss
        gc.collect()
        assert sum(s() is not None for s in seen) <= 4
