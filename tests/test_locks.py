"""Locks between processes, where the file system has them and where it refuses them."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samplernn import locks
from samplernn.locks import Busy, locked

fcntl = pytest.importorskip("fcntl")  # Windows has locks everywhere

_PROCESS = """
import errno, fcntl, os, signal, sys
from pathlib import Path
from samplernn import locks

def refuse(file, how):
    raise OSError(errno.ENOLCK, "No locks available")

if sys.argv[2] == "without":
    fcntl.flock = refuse
try:
    with locks.locked(Path(sys.argv[1])):
        print("locked", flush=True)
        if sys.argv[3] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
except locks.Busy as busy:
    print(busy, busy.remedy)
"""


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


def _elsewhere(path: Path, kind: str = "without", end: str = "well") -> str:
    command = [sys.executable, "-c", _PROCESS, str(path), kind, end]
    return subprocess.run(command, capture_output=True, text=True, check=end == "well").stdout.strip()


@pytest.mark.parametrize("kind", ["with", "without"])
def test_one_process_at_a_time_has_a_lock_which_ends_however_it_ends(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    if kind == "without":
        request.getfixturevalue("no_locks")
    path = tmp_path / ".lock"
    with locked(path):
        with pytest.raises(Busy, match="another process"), locked(path):
            pass
        who = f" ({os.getpid()} on {locks._Process.current().host})" if kind == "without" else ""
        assert _elsewhere(path, kind) == f"another process{who}"
    assert _elsewhere(path, kind, "killed") == "locked"
    assert (tmp_path / ".lock-owner").exists() == (kind == "without")
    with locked(path):
        pass
    assert {file.name for file in tmp_path.iterdir()} <= {".lock"}


@pytest.mark.parametrize("number", [errno.ENOLCK, 524, errno.ENOSYS, errno.EOPNOTSUPP])
def test_whatever_a_file_system_without_locks_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(number, "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / ".lock"):
        assert json.loads((tmp_path / ".lock-owner").read_text())["pid"] == os.getpid()


@pytest.mark.parametrize("kind", ["with", "without"])
@pytest.mark.parametrize(
    ("change", "is_passed_over"),
    [
        ({}, False),
        ({"pid": 2**22 + 1}, True),  # more than Linux gives
        ({"started": "1"}, True),  # the number belongs to another process now
        ({"boot": "before", "namespace": "before"}, True),
        ({"host": "node7"}, False),
        ({"namespace": "another container"}, False),
        (None, False),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="others do not tell processes apart so well")
def test_only_a_process_that_has_certainly_ended_is_passed_over(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
    change: dict[str, Any] | None,
    is_passed_over: bool,
) -> None:
    """Also by a machine for which there are locks, while another has left the file of one without."""
    if kind == "without":
        request.getfixturevalue("no_locks")
    monkeypatch.setattr(locks, "_UNFINISHED_SECONDS", 0)
    owner = tmp_path / ".lock-owner"
    holder = {**locks._Process.current()._asdict(), **(change or {})}
    owner.write_text("" if change is None else json.dumps(holder))
    if is_passed_over:
        with locked(tmp_path / ".lock"):
            assert owner.exists() == (kind == "without")
        assert not owner.exists()
        return
    with pytest.raises(Busy) as caught, locked(tmp_path / ".lock"):
        pass
    assert ("" if change == {} else f"if it has ended, remove {owner}") == caught.value.remedy
    assert str(caught.value) == (
        "another process" if change is None else f"another process ({holder['pid']} on {holder['host']})"
    )
    assert owner.exists()


def test_a_lock_that_somebody_else_has_by_now_is_not_given_back(tmp_path: Path, no_locks: None) -> None:
    owner = tmp_path / ".lock-owner"
    with locked(tmp_path / ".lock"):
        other = {**json.loads(owner.read_text()), "host": "node7"}
        owner.write_text(json.dumps(other))
    assert json.loads(owner.read_text()) == other


def test_what_another_has_taken_over_first_is_put_back(tmp_path: Path) -> None:
    owner = tmp_path / ".lock-owner"
    ended = {**locks._Process.current()._asdict(), "boot": "before"}
    owner.write_text("of another")
    locks._pass_over(owner, json.dumps(ended))
    assert owner.read_text() == "of another"


def test_a_folder_that_cannot_be_written_is_an_error_and_not_a_lock(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"), locked(tmp_path / "nowhere" / ".lock"):
        pass
