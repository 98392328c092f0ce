"""Signs of life: lines where there is no terminal, and the numbers in them."""

import io
import re
import time

import keras
import numpy as np
import pytest
from rich.console import Console

from kerasdef.attacks import PGD, Square
from kerasdef.recipes.base import fit
from kerasdef.runs import progress
from kerasdef.training import Mixture

CLOCK = r"\d+:\d\d"


@pytest.fixture
def written(monkeypatch):
    """What goes to a log file, with a line after 0.05 s and then every 0.1 s."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=out, force_terminal=False, force_jupyter=False))
    monkeypatch.setattr(progress, "FIRST", 0.05)
    monkeypatch.setattr(progress, "EVERY", 0.1)
    return out


@pytest.mark.parametrize("show", [None, True])
def test_without_a_terminal_lines_tell_what_is_done_of_how_much_how_long_it_took_and_takes(written, show):
    with progress.bar("attack", 2000, show=show, unit="samples") as advance:
        advance(500, "robust accuracy so far 40.0 %")
        time.sleep(0.3)
        advance(1500)
    lines = written.getvalue().splitlines()
    assert re.fullmatch(
        f"attack: 500 of 2,000 samples, {CLOCK} elapsed, {CLOCK} left, robust accuracy .* 40.0 %", lines[0]
    )
    assert re.fullmatch(f"attack: 2,000 of 2,000 samples, {CLOCK} elapsed, robust accuracy so far 40.0 %", lines[-1])
    assert 2 <= len(lines) <= 5


def test_a_line_comes_also_while_nothing_is_counted(written):
    with progress.bar("compiling", 10) as advance:
        time.sleep(0.2)
        assert "compiling: 0 of 10, 0:00 elapsed" in written.getvalue()
        advance(10)


def test_what_is_over_soon_says_nothing_and_false_is_silent(written):
    with progress.bar("short", 2) as advance:
        advance(2, "done")
    with progress.bar("silent", 2, show=False) as advance:
        time.sleep(0.2)
        advance(2, "done")
    assert written.getvalue() == ""


def test_the_lines_end_where_the_work_fails(written):
    with pytest.raises(KeyboardInterrupt), progress.bar("broken", 2):
        raise KeyboardInterrupt
    time.sleep(0.2)
    assert written.getvalue() == ""


def test_the_first_line_comes_after_five_seconds_and_long_runs_say_less(monkeypatch):
    lines, now, pauses = progress.Lines("run", 10), [0.0], []

    class Over:
        def wait(self, pause):
            now[0] += pause
            pauses.append(pause)
            return now[0] > 20_000

    monkeypatch.setattr(progress.time, "monotonic", lambda: lines.start + now[0])
    monkeypatch.setattr(lines, "_write", lambda: None)
    lines.over = Over()
    lines._watch()
    assert pauses[:3] == [5.0, 10.0, 10.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 300.0
    assert len(pauses) < 200


def test_times_are_in_hours_minutes_and_seconds():
    lines = progress.Lines("run", 4)
    lines.advance(1)
    assert lines.text(3600.0) == "run: 1 of 4, 1:00:00 elapsed, 3:00:00 left"
    assert lines.text(61.0) == "run: 1 of 4, 1:01 elapsed, 3:03 left"


def test_numbers_become_words():
    logs = {"loss": 0.31234, "clean_accuracy": 0.912, "val_loss": 1.0, "val_robust_accuracy": 0.4}
    assert progress.numbers(logs) == "loss 0.312, clean accuracy 91.2 %, validation robust accuracy 40.0 %"


@pytest.fixture
def notes(monkeypatch):
    """Every note that a bar is given."""
    found = []
    real = progress.Lines.advance

    def advance(self, count, note=None):
        found.append(note)
        real(self, count, note)

    monkeypatch.setattr(progress.Lines, "advance", advance)
    return found


@pytest.mark.usefixtures("written")
def test_training_tells_loss_and_accuracy_after_every_batch(notes):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    rng = np.random.default_rng(0)
    x, y = rng.random((32, 4), "float32"), rng.integers(0, 3, 32)
    history = fit(
        model, Mixture([(x, y)], batch_size=8, seed=0), epochs=2, title="t", valid=Mixture([(x, y)], batch_size=8)
    )
    said = [note for note in notes if note]
    assert len(said) >= 2 * 4
    assert re.fullmatch(r"loss [\d.]+, accuracy [\d.]+ %", said[0])
    assert f"loss {history['loss'][-1]:.3g}, accuracy {100 * history['accuracy'][-1]:.1f} %" in said[-1]
    assert f"validation accuracy {100 * history['val_accuracy'][-1]:.1f} %" in said[-1]


@pytest.mark.usefixtures("written")
@pytest.mark.parametrize(
    "attack", [PGD(eps=0.05, steps=5), Square(eps=0.1, queries=20)], ids=lambda a: type(a).__name__
)
def test_an_attack_tells_the_robust_accuracy_so_far(notes, digits, digits_model, attack):
    x, y = digits[2][:60], digits[3][:60]
    found = attack.run(digits_model, x, y, batch_size=8)
    assert found.success.any()
    assert len({note for note in notes if note}) > 1
    assert notes[-1] == f"robust accuracy so far {100 * (1 - found.success.mean()):.1f} %"
