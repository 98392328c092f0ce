"""The one file that knows a framework: gradients, compiled functions, frozen models, device facts.

kerasdef is written against `keras.ops`. What Keras does not offer for both TensorFlow and JAX stands here.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator

import keras

NAME = keras.backend.backend()

if NAME == "tensorflow":
    import tensorflow as tf

    # Every attack and model has a program of its own, which TensorFlow takes for one that is traced again and again.
    logging.getLogger("tensorflow").addFilter(lambda record: "kerasdef_program" not in record.getMessage())
elif NAME == "jax":
    import jax
else:
    raise ImportError(f"kerasdef runs on the Keras backends tensorflow and jax (set KERAS_BACKEND). Received: {NAME}")


def has_gpu() -> bool:
    """Tell whether the backend computes on a GPU (or TPU)."""
    if NAME == "tensorflow":
        return bool(tf.config.list_logical_devices("GPU"))
    return jax.default_backend() != "cpu"


def device() -> str:
    """Name the device in words, for reports."""
    if NAME == "tensorflow":
        gpus = tf.config.list_physical_devices("GPU")
        if not gpus:
            return "CPU"
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return jax.devices()[0].device_kind


def jit() -> bool | str:
    """Give the `jit_compile` value for `model.compile()`.

    XLA is two to three times slower than a plain graph on CPUs (convolution gradients), so TensorFlow gets it
    on GPUs only. JAX always compiles.
    """
    return has_gpu() if NAME == "tensorflow" else "auto"


def gradient(fn: Callable) -> Callable:
    """Differentiate per-sample values by their own inputs.

    Args:
        fn: Maps x of shape (n, ...) to `(value, aux)`: value of shape (n,), where value i depends on x i alone,
            and anything else that is wanted back.

    Returns:
        A function of x that returns `(value, aux, grad)`, grad of the shape of x.
    """
    if NAME == "tensorflow":

        def run(x):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(x)
                value, aux = fn(x)
            grad = tape.gradient(value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO)
            return value, aux, grad

        return run

    def run(x):
        def total(z):
            value, aux = fn(z)
            return value.sum(), (value, aux)

        (_, (value, aux)), grad = jax.value_and_grad(total, has_aux=True)(x)
        return value, aux, grad

    return run


def _is_seed(variable) -> bool:
    return "seed_generator_state" in variable.path


@contextlib.contextmanager
def frozen(model: keras.Model, salt=0) -> Iterator[None]:
    """Read the model without changing it; random layers draw by their own state moved on by `salt`.

    Enter it at each evaluation, with another salt each time: entered once around a loop it would give every
    step the same noise.

    Args:
        model: A built Keras model.
        salt: Integer or integer tensor, added to the state of every seed generator.
    """
    mapping = []
    for variable in model.variables:
        value = variable.value
        if _is_seed(variable):
            value = value + keras.ops.cast(salt, value.dtype)
        mapping.append((variable, value))
    with keras.StatelessScope(state_mapping=mapping):
        yield


def evaluate(model: keras.Model, x, salt=0):
    """Outputs of a model in inference mode, without changing it; where it is random, `salt` chooses the draw."""
    if not any(_is_seed(v) for v in model.variables):
        return model(x, training=False)
    with frozen(model, salt):
        return model(x, training=False)


def compiled(fn: Callable, model: keras.Model) -> Callable:
    """Compile a function of arrays that reads `model`.

    TensorFlow: a `tf.function` graph, whose second trace takes any number of samples; on GPUs with XLA and one trace
    for each number. JAX: `jax.jit` with the model's state passed in, so that later changes of the weights are seen.
    """
    if NAME == "tensorflow":

        def kerasdef_program(*arguments):
            return fn(*arguments)

        xla = has_gpu()
        return tf.function(kerasdef_program, autograph=False, jit_compile=xla, reduce_retracing=not xla)

    reference = weakref.ref(model)  # what is compiled must not keep the model alive

    def run(values, *arguments):
        with keras.StatelessScope(state_mapping=list(zip(reference().variables, values, strict=True))):
            return fn(*arguments)

    jitted = jax.jit(run)
    return lambda *arguments: jitted([v.value for v in reference().variables], *arguments)


def repeated(fn: Callable, times: int, model: keras.Model) -> Callable:
    """Compile `times` applications of a step (x, y, state) -> state.

    On GPUs and with JAX one compiled loop. On TensorFlow's CPU one compiled step, called `times` times: inside a
    `tf.while_loop` the gradient of a max-pooling sometimes falls back to a slow kernel, which makes the whole loop up
    to 2.5 times slower, while a call costs less than a millisecond.
    """
    if NAME != "tensorflow" or has_gpu():
        return compiled(lambda x, y, state: keras.ops.fori_loop(0, times, lambda i, s: fn(x, y, s), state), model)
    step = compiled(fn, model)

    def run(x, y, state):
        for _ in range(times):
            state = step(x, y, state)
        return state

    return run
