"""The one file that knows a framework: gradients, compiled functions, frozen models, device facts.

kerasdef is written against `keras.ops`. What Keras does not offer for both TensorFlow and JAX stands here.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import os
import types
import weakref
from collections.abc import Callable, Iterator

import keras
import numpy as np

NAME = keras.backend.backend()
_NUMBERS = itertools.count()  # of compiled programs
_FIXED = contextvars.ContextVar("fixed_rows", default=False)
_AT_ONCE = 16  # samples of a random model that TensorFlow works on at a time
# samples that kernels work on in one block. Measured on CPUs: Eigen's matrix products take rows by 12, 24 or 48, and a
# sample in an incomplete block is rounded otherwise; XLA's convolutions change their kernel below 64 samples
_BLOCK, _BLOCK_XLA = 48, 64
_UNROLLED = 32  # backward passes of a jacobian in one graph; more of them stand in a loop
_LONG = 64  # steps of a loop in one graph; building one of 64 steps of PGD takes seconds
if NAME == "tensorflow":
    import tensorflow as tf

elif NAME == "jax":
    import jax
else:
    raise ImportError(f"kerasdef runs on the Keras backends tensorflow and jax (set KERAS_BACKEND). Received: {NAME}")


_FORKED = False  # whether this process was forked off one in which the backend had started


def _started() -> bool:
    """Whether the backend has threads or a device in this process."""
    if NAME == "tensorflow":
        from tensorflow.python.eager import context

        found = context.context_safe()
        return found is not None and found._context_handle is not None
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def _note_fork() -> None:
    global _FORKED
    _FORKED = _FORKED or _started()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_note_fork)


def refuse_fork() -> None:
    """Raise where computing would wait forever: threads of the backend do not survive a fork."""
    if _FORKED:
        raise RuntimeError(
            f"This process was forked from one in which {NAME} had started, whose threads it lacks: computing would "
            'wait forever. Start it with multiprocessing.get_context("spawn"), or fork before the first model is made.'
        )


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


def replica():
    """Number of the replica that this runs on, an int32 scalar: 0 but under a strategy of `tf.distribute`."""
    if NAME == "tensorflow":
        context = tf.distribute.get_replica_context()
        return keras.ops.cast(0 if context is None else context.replica_id_in_sync_group, "int32")
    return keras.ops.cast(0, "int32")


def replicas() -> int:
    """Number of replicas that train together: 1 but under a strategy of `tf.distribute`, which adds their losses up."""
    return tf.distribute.get_strategy().num_replicas_in_sync if NAME == "tensorflow" else 1


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


def value_and_grad(fn: Callable) -> Callable:
    """Differentiate a scalar by tensors; may be nested, for gradients through gradients.

    Args:
        fn: Maps a list of tensors to a scalar.

    Returns:
        A function of the list that returns `(value, grads)`, grads a list of the same shapes.
    """
    if NAME == "tensorflow":

        def run(tensors):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(tensors)
                value = fn(tensors)
            return value, tape.gradient(value, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)

        return run

    return jax.value_and_grad(fn)


def jacobian(fn: Callable) -> Callable:
    """Differentiate several values per sample by their own inputs: one forward pass, one backward pass for each value.

    Args:
        fn: Maps x of shape (n, ...) to `(values, aux)`: values of shape (n, k), where row i depends on x_i alone, and
            anything else that is wanted back.

    Returns:
        A function of x that returns `(values, aux, jac)`, jac of shape (n, k, ...).
    """
    if NAME == "tensorflow":

        def run(x):
            with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
                tape.watch(x)
                values, aux = fn(x)
            k = values.shape[1]

            def back(column):
                seed = tf.broadcast_to(tf.one_hot(column, k, dtype=values.dtype), tf.shape(values))
                return tape.gradient(values, x, seed, unconnected_gradients=tf.UnconnectedGradients.ZERO)

            if k <= _UNROLLED:
                return values, aux, tf.stack([back(column) for column in range(k)], axis=1)
            rows = tf.map_fn(back, tf.range(k), fn_output_signature=x.dtype, parallel_iterations=1)
            return values, aux, tf.experimental.numpy.moveaxis(rows, 0, 1)

        return run

    def run(x):
        values, pull, aux = jax.vjp(fn, x, has_aux=True)

        def back(row):
            return pull(jax.numpy.broadcast_to(row, values.shape))[0]

        rows = jax.vmap(back)(jax.numpy.eye(values.shape[1], dtype=values.dtype))
        return values, aux, jax.numpy.moveaxis(rows, 0, 1)

    return run


def is_seed(variable) -> bool:
    """Whether a variable is the state of a random layer."""
    return "seed_generator_state" in variable.path


@contextlib.contextmanager
def constant(model: keras.Model) -> Iterator[None]:
    """Take the model's variables for constants: no gradient flows into them."""
    with keras.StatelessScope(state_mapping=[(v, keras.ops.stop_gradient(v.value)) for v in model.variables]):
        yield


def seed_variables(model: keras.Model) -> list:
    """The states of the random layers of a model."""
    return [v for v in model.variables if is_seed(v)]


def evaluate(model: keras.Model, x):
    """Outputs of a model in inference mode, float32."""
    return keras.ops.cast(model(x, training=False), "float32")


def evaluate_drawn(model: keras.Model, x, states):
    """Outputs of a model whose random layers draw numbers, each sample with random states of its own.

    The samples are evaluated as batches of one, so that no sample sees the draws of another; the model's
    own states are neither read nor changed.

    Args:
        model: A built Keras model.
        x: Tensor of shape (n, ...).
        states: One integer tensor of shape (n, 2) for each of `seed_variables(model)`.

    Returns:
        Tensor of shape (n, ...), float32.
    """
    variables = seed_variables(model)
    others = [(v, v.value) for v in model.variables if not is_seed(v)]

    def one(x, states):
        drawn = [(v, keras.ops.cast(s, v.dtype)) for v, s in zip(variables, states, strict=True)]
        with keras.StatelessScope(state_mapping=[*others, *drawn]):
            return keras.ops.cast(model(keras.ops.expand_dims(x, 0), training=False), "float32")[0]

    if NAME == "tensorflow":
        # not `tf.vectorized_map`, which has no rules for random numbers; measured, it is no faster here
        at_once = None if tf.executing_eagerly() else _AT_ONCE
        options = {"fn_output_signature": "float32", "parallel_iterations": at_once}
        return tf.map_fn(lambda z: one(*z), (x, tuple(states)), **options)
    return jax.vmap(one)(x, tuple(states))


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Compute with values, not symbols, also while a function is being traced."""
    with tf.init_scope() if NAME == "tensorflow" else jax.ensure_compile_time_eval():
        yield


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Let other libraries, which draw from global generators, draw by `seed`.

    NumPy's generator is put back afterwards. TensorFlow's cannot be: it keeps the new seed.
    """
    kept = np.random.get_state()  # noqa: NPY002 - the global generator is what others use
    np.random.seed(seed % 2**32)  # noqa: NPY002
    if NAME == "tensorflow":
        tf.random.set_seed(seed)
    try:
        yield
    finally:
        np.random.set_state(kept)  # noqa: NPY002


def loop(times: int, fn: Callable, state):
    """Apply `fn` to a state `times` times, inside a compiled function.

    A loop of the backend, but on TensorFlow's CPU up to 64 times are unrolled: see `repeated`. Beyond that the graph
    would take longer to build than the slower loop takes to run.
    """
    if NAME != "tensorflow" or has_gpu() or times > _LONG:
        return keras.ops.fori_loop(0, times, lambda i, s: fn(s), state)
    for _ in range(times):
        state = fn(state)
    return state


@contextlib.contextmanager
def fixed_rows() -> Iterator[None]:
    """Have `on_rows` meet all samples, in graphs for programs that know no branches."""
    token = _FIXED.set(True)
    try:
        yield
    finally:
        _FIXED.reset(token)


def on_rows(mask, fn: Callable, rows: tuple, otherwise):
    """Apply a function to some samples only.

    On TensorFlow's CPU the function meets just these samples. With JAX and on GPUs, where shapes are fixed, and within
    `fixed_rows`, it meets all samples; with JAX it meets none where the mask has none.

    Args:
        mask: Booleans of shape (n,).
        fn: Function of tensors whose first axis is the sample, to a tensor of shape (n, ...).
        rows: The tensors, of shape (n, ...).
        otherwise: What stands for the other samples, of the shape that the function gives.

    Returns:
        Tensor of shape (n, ...).
    """
    ops = keras.ops

    def everywhere():
        return ops.where(ops.reshape(mask, (-1,) + (1,) * (len(otherwise.shape) - 1)), fn(*rows), otherwise)

    if NAME != "tensorflow":
        return jax.lax.cond(ops.any(mask), everywhere, lambda: otherwise)
    if has_gpu() or _FIXED.get():
        return everywhere()

    def there():
        index = tf.where(mask)
        found = fn(*(tf.gather(row, index[:, 0]) for row in rows))
        return tf.tensor_scatter_nd_update(otherwise, index, found)

    return tf.cond(tf.reduce_any(mask), there, lambda: otherwise)


def compiled(fn: Callable, model: keras.Model) -> Callable:
    """Compile a function of arrays that reads `model`.

    TensorFlow: a `tf.function` graph of any number of samples: a graph of its own for each number would be simplified
    and so rounded in its own way. On GPUs XLA, with one trace for each number. JAX: `jax.jit` with the model's state
    passed in, so that later changes of the weights are seen.
    """
    if NAME == "tensorflow":

        def program(*arguments):
            return fn(*arguments)

        # TensorFlow counts traces by code: programs that share theirs would look like one that is traced too often
        code = program.__code__.replace(co_name=f"kerasdef_program_{next(_NUMBERS)}")
        program = types.FunctionType(code, globals(), code.co_name, None, program.__closure__)
        xla = has_gpu()
        function = tf.function(program, autograph=False, jit_compile=xla)
        return function if xla else _of_any_length(function)

    reference = weakref.ref(model)  # what is compiled must not keep the model alive

    def run(values, *arguments):
        with keras.StatelessScope(state_mapping=list(zip(reference().variables, values, strict=True))):
            return fn(*arguments)

    jitted = jax.jit(run)
    return lambda *arguments: jitted([v.value for v in reference().variables], *arguments)


def _of_any_length(function) -> Callable:
    """A `tf.function` that is traced once for all lengths of the first axis of its arguments."""
    traced = {}

    def run(*arguments):
        flat = tf.nest.flatten(arguments)  # arrays become tensors in the call itself, which is faster
        key = tuple((tf.as_dtype(t.dtype), len(t.shape), *t.shape[1:]) for t in flat)
        if key not in traced:
            specs = [tf.TensorSpec((None, *sides) if rank else (), dtype) for dtype, rank, *sides in key]
            traced[key] = function.get_concrete_function(*tf.nest.pack_sequence_as(arguments, specs))
        return traced[key](*arguments)

    return run


def sizes(batch_size: int, n: int) -> list[int]:
    """Numbers of samples that compiled functions are called with, largest first.

    All of them are multiples of one block, the largest at most `batch_size` unless that is smaller than a block: with
    whole blocks, kernels give a sample the same bits in any number of samples. TensorFlow's CPU takes any number with
    one trace; elsewhere each number is compiled anew, so there are few. No size is larger than n samples need.
    """
    block = _BLOCK if NAME == "tensorflow" and not has_gpu() else _BLOCK_XLA
    batch_size = min(batch_size, block * -(-n // block))
    if NAME == "tensorflow" and not has_gpu():
        return [_BLOCK * part for part in range(max(1, batch_size // _BLOCK), 0, -1)]
    return sorted({_BLOCK_XLA * max(1, batch_size // part // _BLOCK_XLA) for part in (1, 4, 16)}, reverse=True)


def repeated(fn: Callable, model: keras.Model) -> Callable:
    """Compile (x, y, state, times) -> state: as many applications of a step (x, y, state) -> state.

    On GPUs and with JAX one compiled loop. On TensorFlow's CPU one compiled step, called `times` times: inside a
    `tf.while_loop` the gradient of a max-pooling sometimes falls back to a slow kernel, which makes the whole loop up
    to 2.5 times slower, while a call costs less than a millisecond.
    """
    if NAME != "tensorflow" or has_gpu():

        def several(x, y, state, times):
            return keras.ops.fori_loop(0, times, lambda i, s: fn(x, y, s), state)

        program = compiled(several, model)
        # a tensor: the number is no constant of the program, so there is one program for all
        return lambda x, y, state, times: program(x, y, state, keras.ops.convert_to_tensor(times, "int32"))
    step = compiled(fn, model)

    def run(x, y, state, times):
        for _ in range(times):
            state = step(x, y, state)
        return state

    return run
