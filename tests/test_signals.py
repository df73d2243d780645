"""Which signals end a command; a terminal that is lost, of real commands on a real pseudo-terminal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import samplernn
from samplernn import signals
from samplernn.generation.stream import stream
from tests.conftest import CLIPS, toy_arguments

pty = pytest.importorskip("pty")  # not on Windows
ENDLESS = ["--trainer.max_steps=1000000", "--checkpoint.every_steps=1"]


@pytest.mark.parametrize("ignored", [False, True])
def test_hangup_ends_a_command_unless_it_was_ignored_at_the_start(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    handlers = signals.Handlers([signal.SIGTERM])
    try:
        assert signals.ending() == (signal.SIGINT, signal.SIGTERM, *([] if ignored else [signal.SIGHUP]))
        signals.exit_when_asked()
        assert signals.is_ignored(signal.SIGHUP) is ignored
        if not ignored:
            with pytest.raises(SystemExit) as caught:
                os.kill(os.getpid(), signal.SIGHUP)
            assert caught.value.code == 129
    finally:
        handlers.put_back()
        signal.signal(signal.SIGHUP, before)


def test_where_there_is_no_hangup_no_handler_is_set_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(signals, "HANGUP", None)
    monkeypatch.setattr(signals, "ENDING", (signal.SIGINT, signal.SIGTERM))
    assert signals.ending() == (signal.SIGINT, signal.SIGTERM)


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    heard: list[int] = []
    handlers = signals.Handlers([signal.SIGUSR1])
    handlers.replace(lambda number, frame: heard.append(number))
    os.kill(os.getpid(), signal.SIGUSR1)
    handlers.put_back()
    assert heard == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) is before


def test_outside_the_main_thread_handlers_are_left_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            handlers = signals.Handlers([signal.SIGTERM])
            handlers.replace(lambda number, frame: None)
            handlers.put_back()
            signals.exit_when_asked()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []
    assert signal.getsignal(signal.SIGTERM) is before


# -- a terminal that is lost --------------------------------------------------------------------------------


def _lose_terminal(command: list[str], where: Path, when: Callable[[], bool]) -> int:
    """Run a command in a terminal of its own, which is closed at some time; returns its exit code."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(where)
        os.execv(command[0], command)
    os.set_blocking(terminal, False)
    deadline = time.monotonic() + 60
    while not when():
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError):  # so that it does not fill up
            os.read(terminal, 65536)
        time.sleep(0.02)
    os.close(terminal)
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("it did not end")


def _samplernn(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "samplernn", *map(str, arguments)]


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_training_saves_when_its_terminal_is_lost(tmp_path: Path, quiet: list[str]) -> None:
    """With the bar, which writes to the terminal, and without."""
    last = tmp_path / "runs" / "lost" / "checkpoints" / "last.ckpt"
    command = _samplernn("train", CLIPS, "--name", "lost", *toy_arguments(), *ENDLESS, *quiet)
    assert _lose_terminal(command, tmp_path, last.exists) == 128 + signal.SIGHUP
    facts = (tmp_path / "runs" / "lost" / "run.json").read_text("utf-8")
    assert '"state": "interrupted"' in facts
    assert '"saved": true' in facts
    assert torch.load(last, weights_only=True)["global_step"] >= 1


def test_generation_finishes_its_block_when_its_terminal_is_lost(trained_run: Path, tmp_path: Path) -> None:
    out, state = tmp_path / "x.wav", tmp_path / "x.state"
    command = _samplernn(
        "generate", trained_run, "--duration", "inf", "--out", out, "--save-state", state, "--seed", "5"
    )

    def is_long() -> bool:
        return out.exists() and out.stat().st_size > 20_000

    assert _lose_terminal(command, tmp_path, is_long) == 128 + signal.SIGHUP
    first = soundfile.read(out, dtype="int16")[0]
    checkpoint = samplernn.load(trained_run)
    second = np.concatenate(list(stream(checkpoint, duration=0.5, from_state=state)), axis=1)[0]
    whole = np.concatenate(list(stream(checkpoint, duration=len(first) / 4000 + 0.5, seed=5)), axis=1)[0]
    assert np.array_equal(np.concatenate([first, second]), whole)


def test_with_nohup_training_goes_on(tmp_path: Path) -> None:
    last = tmp_path / "runs" / "on" / "checkpoints" / "last.ckpt"
    command = _samplernn("train", CLIPS, "--name", "on", *toy_arguments(), *ENDLESS, "--quiet")
    with subprocess.Popen(
        command, cwd=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as process:
        deadline = time.monotonic() + 60
        while not last.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGHUP)
        seen = last.stat().st_mtime_ns
        while last.stat().st_mtime_ns == seen or not last.exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
