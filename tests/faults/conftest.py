"""Real commands on real audio, hurt on purpose; what was promised and whether it was kept, as a table."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import CLIPS, toy_arguments

STEPS = 300
DEADLINE = 120.0
"""Seconds after which a command that should have ended is taken for stuck."""
_OPTIONS = {
    "--trainer.max_steps": STEPS,
    "--trainer.val_check_interval": 50,
    "--trainer.log_every_n_steps": 7,  # no divisor of the others: a checkpoint falls between two rows
    "--checkpoint.every_steps": 10,
    "--optim.ema_decay": 0.9,
    "--data.segment_duration": 0.2,  # several epochs
}
_NOT_REPEATABLE = ("samples_per_s", "train/seconds", "memory/")
"""Columns of metrics.csv that are measured with a clock, or say what else is in memory."""


def command(*arguments: str | Path) -> list[str]:
    """`samplernn` with these arguments."""
    return [sys.executable, "-m", "samplernn", *map(str, arguments)]


def train(name: str, folder: Path = CLIPS, **options: Any) -> list[str]:
    """The command that begins a run; options by their names with ``__`` for the point."""
    changed = {"--" + key.replace("__", "."): value for key, value in options.items()}
    chosen = {**dict(option.split("=", 1) for option in toy_arguments()), **_OPTIONS, **changed}
    return command("train", folder, "--name", name, *(f"{key}={value}" for key, value in chosen.items()))


def resume(name: str, *options: str) -> list[str]:
    """The command that continues it."""
    return command("train", "--resume", "--name", name, *options)


def start(arguments: list[str], **settings: Any) -> subprocess.Popen[str]:
    """A command with all its processes in a group of their own."""
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **settings,
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for its end; returns what it said."""
    try:
        return process.communicate(timeout=DEADLINE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said = process.communicate()[0]
        raise AssertionError(f"it did not end within {DEADLINE:.0f} s:\n{said}") from None


def succeed(arguments: list[str]) -> str:
    """Run a command that must succeed; returns what it said."""
    process = start(arguments)
    said = finish(process)
    assert process.returncode == 0, said
    return said


def begin_or_resume(name: str, **options: Any) -> list[str]:
    """What a user would type whose command has ended too early, perhaps before there was a run."""
    exists = Path("runs", name, "config.yaml").exists()
    return resume(name) if exists else train(name, **options)


def wait_for_step(name: str, step: int, process: subprocess.Popen[str]) -> None:
    """Until metrics.csv has a row of that step or a later one, or the command has ended."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(row["step"]) >= step for row in rows(name) if row["step"]):
            return
        time.sleep(0.01)


def rows(name: str) -> list[dict[str, str]]:
    """Of metrics.csv, as far as they are whole."""
    try:
        with Path("runs", name, "metrics.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]
    except FileNotFoundError:
        return []


def assert_same(name: str, whole: str) -> None:
    """Two runs have ended in the same weights, moments and state of all lanes, by the same curves."""
    one, other = (
        torch.load(Path("runs", each, "checkpoints", "last.ckpt"), weights_only=True)
        for each in (name, whole)
    )
    assert one["global_step"] == other["global_step"] == STEPS
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "lane_state"):
        _assert_equal(one[key], other[key], key)
    assert [_repeatable(row) for row in rows(name)] == [_repeatable(row) for row in rows(whole)]
    for curve in ("train/bits_per_sample", "validation/bits_per_sample", "grad_norm/tier1"):
        assert _in_tensorboard(name, curve) == _in_tensorboard(whole, curve)


def _assert_equal(one: Any, other: Any, where: str) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key != "seconds":
                _assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            _assert_equal(a, b, f"{where}.{index}")
    elif isinstance(one, torch.Tensor):
        np.testing.assert_array_equal(one.numpy(), other.numpy(), err_msg=where)
    else:
        assert one == other, where


def _in_tensorboard(name: str, curve: str) -> list[tuple[int, float]]:
    """Steps and values as TensorBoard shows them: without those that a later session has taken back."""
    events = EventAccumulator(str(Path("runs", name)), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(curve)]


def _repeatable(row: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in row.items() if not any(part in key for part in _NOT_REPEATABLE)}


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, private_cache: None) -> Path:
    """Where all runs of these tests are."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(autouse=True)
def _there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture(scope="session")
def whole(place: Path) -> str:
    """The name of a run that nothing has happened to."""
    return _undisturbed(place, "whole")


@pytest.fixture(scope="session")
def whole_of_two(place: Path) -> str:
    """The same in two processes."""
    return _undisturbed(place, "whole-of-two", trainer__devices=2)


def _undisturbed(place: Path, name: str, **options: Any) -> str:
    before = Path.cwd()
    os.chdir(place)
    try:
        succeed(train(name, **options))
    finally:
        os.chdir(before)
    return name


@pytest.fixture
def times(request: pytest.FixtureRequest) -> int:
    """How often the fault of this test is injected."""
    marker = request.node.get_closest_marker("fault")
    chosen: int = marker.kwargs["many" if request.config.getoption("--all-faults") else "few"]
    if chosen == 0:
        pytest.skip("takes long: make test-faults")
    return chosen


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random moments that another run of the test repeats as far as a clock can."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture(autouse=True)
def _ledger(request: pytest.FixtureRequest) -> None:
    marker = request.node.get_closest_marker("fault")
    if marker is not None:
        times = request.getfixturevalue("times") if "times" in request.fixturenames else 1
        request.node.user_properties.append(("fault", (marker.args[0], times, marker.args[1])))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The table."""
    kept = {"passed": "yes", "failed": "NO", "skipped": "not tried"}
    lines = []
    for outcome, word in kept.items():
        for report in terminalreporter.stats.get(outcome, []):
            for key, value in getattr(report, "user_properties", []):
                if key == "fault" and report.when == "call":
                    what, times, promise = value
                    lines.append(f"| {what} | {times} | {promise} | {word} |")
    if lines:
        terminalreporter.write_sep("=", "faults")
        terminalreporter.write_line("| fault | times | promise | kept |\n| --- | --- | --- | --- |")
        terminalreporter.write_line("\n".join(lines))
