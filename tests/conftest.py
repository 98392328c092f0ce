"""Small things that many tests share: a model of scikit-learn's digits, the command line, runs that are refused.

The whole suite runs in several processes (pytest-xdist), each with one thread: two small nets side by side are faster
than one net on two cores. Files that are named on the command line run in one process, `-n N` says otherwise.
"""

import dataclasses
import os
import sys

if "PYTEST_XDIST_WORKER" in os.environ:  # before TensorFlow or JAX is imported
    for variable in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import numpy as np
import pytest

# the process that only hands tests to the others imports this file too, so what takes seconds is imported in fixtures

GIB_EACH = 4  # memory that one process of the suite may come to need
MOST = 4  # processes; each imports TensorFlow and trains the shared models anew


@pytest.hookimpl(tryfirst=True)  # before xdist reads its options
def pytest_cmdline_main(config):
    """Ask for `-n auto --dist worksteal` where the command line does not; not in setup.cfg, for `-p no:xdist`."""
    if config.pluginmanager.hasplugin("xdist") and "PYTEST_XDIST_WORKER" not in os.environ:
        if config.option.numprocesses is None:
            config.option.numprocesses = "auto"
        if config.option.dist == "no":
            config.option.dist = "worksteal"


@pytest.hookimpl(optionalhook=True)  # unknown without xdist
def pytest_xdist_auto_num_workers(config):
    """Processes for `-n auto`, the default: by cores and memory; none where single files are named."""
    if config.args_source is config.ArgsSource.ARGS and any(a.split("::")[0].endswith(".py") for a in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):  # elsewhere than on Unix
        gib = 2 * GIB_EACH
    count = min(cores, MOST, int(gib / GIB_EACH))
    return count if count > 1 else 0


@pytest.fixture(scope="session")
def digits():
    """The digits as (x_train, y_train, x_test, y_test): x of shape (n, 8, 8, 1) in [0, 1]."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype("float32").reshape(-1, 8, 8, 1)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], labels[order].astype("int64")
    return x[:1400], y[:1400], x[1400:], y[1400:]


@pytest.fixture(scope="session")
def digits_model(digits):
    """A convolutional model of the digits that gives logits; do not train it further."""
    import keras

    from kerasdef import backend

    x, y, _, _ = digits
    glorot = [keras.initializers.GlorotUniform(seed=i) for i in range(3)]
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(12, 3, activation="relu", kernel_initializer=glorot[0]),
            keras.layers.Flatten(),
            keras.layers.Dense(32, activation="relu", kernel_initializer=glorot[1]),
            keras.layers.Dense(10, kernel_initializer=glorot[2]),
        ]
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=backend.jit(),
    )
    rng = np.random.default_rng(1)
    order = np.concatenate([rng.permutation(1400) for _ in range(6)])  # our own shuffling: the same everywhere
    model.fit(x[order], y[order], batch_size=50, epochs=1, shuffle=False, verbose=0)
    return model


@pytest.fixture
def few_queries(monkeypatch):
    """AutoAttack whose Square asks 200 times, not 5,000: for tests of what is done with what the parts find."""
    from kerasdef.attacks import AutoAttack

    attacks = AutoAttack.attacks

    def short(self):
        return {k: dataclasses.replace(a, queries=200) if k == "square" else a for k, a in attacks(self).items()}

    monkeypatch.setattr(AutoAttack, "attacks", short)


@pytest.fixture
def command(monkeypatch, capsys):
    """A call that runs `kerasdef WORDS` in this process: (exit status, stdout, stderr)."""
    from kerasdef import cli

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["kerasdef", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def refused(command):
    """A call that runs `kerasdef WORDS`, which must fail with one line on stderr: that line."""

    def call(*words):
        status, out, err = command(*words)
        assert (status, out) == (2, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        return err

    return call


@pytest.fixture
def refusal_of(monkeypatch, tmp_path):
    """Makes a call of `train(..., out=...)` that gives what its ValueError says and what it left; it must not fit."""

    def make(owner, train):
        monkeypatch.setattr(owner, "fit", lambda *args, **kwargs: pytest.fail("training began"))

        def call(*args, **kwargs):
            with pytest.raises(ValueError) as error:
                train(*args, out=tmp_path / "run", **kwargs)
            return str(error.value), list(tmp_path.iterdir())

        return call

    return make
