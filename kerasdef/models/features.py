"""What the last layer of a classifier is given: the features of an image."""

from __future__ import annotations

import keras

from kerasdef.annotations import checked
from kerasdef.models import views


@checked
def features_of(model: keras.Model):
    """The input of the last layer of a classifier that has weights, normalization left out.

    Args:
        model: A built Keras classifier.

    Returns:
        A symbolic tensor of shape (n, d) in the graph of `logits_view(model)`.

    Raises:
        ValueError: The model ends in something else, such as a sum of two layers or the `call` of a subclass.
    """
    found = _before_last(views.logits_view(model).outputs[0], model)
    return found if len(found.shape) == 2 else keras.layers.Flatten()(found)


def _before_last(tensor, model: keras.Model):
    """What goes into the last layer with weights on the way to a symbolic tensor."""
    op, index, _ = tensor._keras_history
    given = op._inbound_nodes[index].input_tensors if op._inbound_nodes else ()
    if len(given) != 1:
        raise ValueError(
            "The model must end in a layer with weights, such as a Dense, whose input are its features. "
            f"Received: model={model.name!r}, which ends in {op.name!r}, a {type(op).__name__}"
        )
    if isinstance(op, keras.Model):
        inner = getattr(op, "outputs", None) or ()
        if len(inner) != 1 or len(op.inputs) != 1:
            raise ValueError(
                "The model must be a Sequential or functional model, and so must the models inside it. "
                f"Received: model={model.name!r}, with {op.name!r}, a {type(op).__name__}"
            )
        return keras.Model(op.inputs, _before_last(inner[0], model))(given[0])
    if getattr(op, "weights", None) and not isinstance(op, keras.layers.BatchNormalization):
        return given[0]
    return _before_last(given[0], model)
