"""A random model with its draw held still: the same random numbers for every image and every question."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from kerasdef import backend, checks
from kerasdef import random as draws
from kerasdef.annotations import checked
from kerasdef.models import views
from kerasdef.models.bounds import input_bounds


class _FixedDraw(keras.layers.Layer):
    """Outputs of a model whose random layers draw the same numbers at every call."""

    def __init__(self, model: keras.Model, draw: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.model, self.draw = model, draw
        self.built = True

    def call(self, x):
        """Evaluate every image with the one draw."""
        seeds = ops.zeros(ops.shape(x)[:1], "uint32") + ops.convert_to_tensor(np.uint32(self.draw % 2**32))
        count = len(backend.seed_variables(self.model))
        return backend.evaluate_drawn(self.model, x, [draws.bits(seeds, (2,), salt=1 + i) for i in range(count)])

    def compute_output_spec(self, x):
        """Shape and type of the outputs."""
        return keras.KerasTensor((x.shape[0], *self.model.output_shape[1:]), dtype="float32")

    def get_config(self):
        """Settings of the layer, for its identity; a model with it is not meant to be saved."""
        return {**super().get_config(), "model": self.model.get_config(), "draw": self.draw}


@checked
def fixed_draw(model: keras.Model, draw: int) -> keras.Model:
    """Return a classifier that answers as a random one does with one draw of its random numbers, held still.

    Args:
        model: A built Keras classifier, with layers that draw random numbers when it answers.
        draw: Which draw; an integer of at least 0.
    """
    checks.non_negative_int("draw", draw)
    view = views.logits_view(model)
    images = keras.Input(view.input_shape[1:])
    fixed = keras.Model(images, _FixedDraw(view, draw)(images))
    fixed.bounds = input_bounds(model)
    return views.as_logits(fixed)
