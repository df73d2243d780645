"""What the progress display says of a run's health."""

from __future__ import annotations

import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from samplernn.config import Config, from_dict, merged
from samplernn.training import progress, run
from samplernn.training.progress import diagnosis
from tests.conftest import TOY

_LINE = re.compile(
    r"epoch (\d+)  step (\d+)  \d\.\d{3} bits now(?:, best (\d\.\d{3}))? \(previous sample \d\.\d{3}\)  "
    r"([\d,]+) samples/s \(([\d,.]+)x real time\)  0:\d\d(?:  0:\d\d left)?"
)


def _train(clips: Path, **options: Any) -> None:
    shutil.copytree(clips / "guitar", "few")
    changes = {"data": {"tbptt_len": 512}, "trainer": {"max_steps": 60, **options}, "samples": {"num": 0}}
    config: Config = from_dict(Config, merged(TOY, changes))
    run.start("few", config, "toy")


def test_without_a_terminal_there_are_plain_lines_with_all_figures(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_PLAIN_SECONDS", 0.0)
    _train(clips)
    said = capsys.readouterr().err
    assert "\x1b" not in said
    lines = [found for line in said.splitlines() if (found := _LINE.fullmatch(line))]
    assert len(lines) >= 20
    epochs, steps = ([int(line[group]) for line in lines] for group in (1, 2))
    assert steps == sorted(steps)
    assert epochs[0] == 0
    assert epochs[-1] > 0
    assert lines[0][3] is None  # no validation yet
    assert lines[-1][3] is not None
    for line in lines:
        speed, times = (float(line[group].replace(",", "")) for group in (4, 5))
        assert times == pytest.approx(speed / 4000, abs=0.06)
    assert "left" in lines[-2][0]


@pytest.mark.slow
def test_on_a_terminal_one_bar_says_the_same(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    drawn: list[str] = []

    class Terminal(Console):
        def __init__(self, **options: Any) -> None:
            super().__init__(**{**options, "force_terminal": True, "width": 200})

    class Bar(progress.Progress):
        def update(self, *arguments: Any, **fields: Any) -> None:
            drawn.append(str(fields.get("description")))
            super().update(*arguments, **fields)

    monkeypatch.setattr(progress, "Console", Terminal)
    monkeypatch.setattr(progress, "Progress", Bar)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=_Ticks()))
    _train(clips)
    assert any(_LINE.fullmatch(line) for line in drawn)
    assert any("validating" in line for line in drawn)
    said = capsys.readouterr().err
    assert not any(_LINE.fullmatch(line) for line in said.splitlines())  # no lines beside the bar
    assert "validation" in said


class _Ticks:
    """A clock on which a second passes whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


def test_a_validation_near_the_best_needs_no_diagnosis() -> None:
    assert diagnosis(2.05, best_bits=2.0, train_bits=1.5) is None
    assert diagnosis(2.0, best_bits=2.0, train_bits=math.nan) is None


def test_rising_validation_with_falling_training_is_memorising() -> None:
    assert "memorises" in str(diagnosis(2.5, best_bits=2.0, train_bits=1.5))


def test_rising_validation_with_rising_training_is_instability() -> None:
    assert "optim.lr" in str(diagnosis(9.0, best_bits=2.0, train_bits=8.5))


def test_what_is_not_a_number_is_not_called_memorising() -> None:
    """The verdict says that it has diverged."""
    assert diagnosis(math.nan, best_bits=math.inf, train_bits=2.0) is None
    assert diagnosis(math.nan, best_bits=2.0, train_bits=1.5) is None
