"""Which steps are timed."""

from __future__ import annotations

import time

import pytest
import torch

from samplernn.training.trial import Stopwatch


class _Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    clock = _Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def _take(watch: Stopwatch, clock: _Clock, durations: list[float]) -> list[bool]:
    enough = []
    for duration in durations:
        clock.now += duration
        enough.append(watch.step_done())
    return enough


def test_the_first_second_does_not_count(clock: _Clock) -> None:
    watch = Stopwatch(torch.device("cpu"), seconds=2.0)
    assert _take(watch, clock, [0.6, 0.6, 0.5, 0.7, 0.9]) == [False, False, False, False, True]
    assert watch.step_seconds == pytest.approx([0.5, 0.7, 0.9])


def test_long_steps_are_taken_twice_after_one(clock: _Clock) -> None:
    watch = Stopwatch(torch.device("cpu"), seconds=8.0)
    assert _take(watch, clock, [30.0, 20.0, 21.0]) == [False, False, True]
    assert watch.step_seconds == pytest.approx([20.0, 21.0])


def test_a_gpu_is_waited_for_only_every_ten_steps(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []

    def wait(device: torch.device) -> None:
        clock.now += 0.5  # what is left to compute when the host has submitted ten steps
        waited.append(device)

    monkeypatch.setattr(torch.accelerator, "synchronize", wait)
    watch = Stopwatch(torch.device("cuda"), seconds=2.0)
    enough = _take(watch, clock, [0.1] * 30)
    assert enough == [False] * 29 + [True]
    assert len(waited) == 3
    assert watch.step_seconds == pytest.approx([0.15, 0.15])
