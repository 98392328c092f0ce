"""The Carlini and Wagner attack in L2 against foolbox at equal settings."""

import keras
import numpy as np
import pytest
from helpers import broken, quiet, size
from keras import ops

from kerasdef.attacks import CarliniWagner


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="foolbox attacks TensorFlow models")
@pytest.mark.parametrize(
    ("searches", "steps", "c"),
    [
        (3, 100, 1e-3),
        pytest.param(3, 100, 0.1, marks=pytest.mark.slow),
        pytest.param(3, 100, 1.0, marks=pytest.mark.slow),
        pytest.param(5, 200, 0.1, marks=pytest.mark.slow),
    ],
)
def test_it_breaks_all_that_foolbox_breaks_and_its_changes_are_smaller(searches, steps, c, digits, digits_model):
    """Most pixels of a digit lie at a bound, where foolbox's variables stay for hundreds of steps."""
    foolbox = pytest.importorskip("foolbox")
    x, y = digits[2][:60], digits[3][:60]
    right = ~broken(digits_model, x, y)
    x, y = x[right], y[right]
    wrapped = foolbox.TensorFlowModel(lambda z: digits_model(z, training=False), bounds=(0, 1))
    criterion = foolbox.criteria.Misclassification(ops.convert_to_tensor(y))
    settings = {"binary_search_steps": searches, "steps": steps}
    theirs = foolbox.attacks.L2CarliniWagnerAttack(**settings, stepsize=0.01, initial_const=c)
    theirs = theirs.run(wrapped, ops.convert_to_tensor(x), criterion).numpy()
    ours = quiet(CarliniWagner(**settings, initial_c=c), digits_model, x, y)
    found = theirs.any(axis=(1, 2, 3))  # where foolbox fails it returns a black image, which is no digit either
    fell = broken(digits_model, theirs, y) & found
    assert fell.sum() > 0
    assert broken(digits_model, ours, y)[fell].all()
    assert np.median(size("l2", (ours - x)[fell]) / size("l2", (theirs - x)[fell])) <= 0.95
