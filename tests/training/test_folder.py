"""The folder of a run: who may train it, which of its checkpoints are whole, which runs there are."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from samplernn.config import Config, UserError
from samplernn.training import folder, run
from samplernn.training.folder import RunFolder, damage_of, names, of_job, tensorboard


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


_CLAIM = """
import sys
from pathlib import Path
from typing import Any
from samplernn.config import UserError
from samplernn.training.folder import RunFolder
try:
    with RunFolder(Path(sys.argv[1])).claimed():
        print("claimed")
except UserError as error:
    print(error)
"""


def _claim_elsewhere(path: Path) -> str:
    result = subprocess.run([sys.executable, "-c", _CLAIM, path], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_a_run_is_trained_by_one_process_at_a_time() -> None:
    mine = RunFolder(Path("runs/mine"))
    with mine.claimed():
        mine.write_facts(state="running")
        mine.write_config(Config())
        assert "runs/mine: another process is training this run" in _claim_elsewhere(mine.path)
    assert _claim_elsewhere(mine.path) == "claimed"


def test_a_claim_that_no_run_comes_of_leaves_nothing() -> None:
    with pytest.raises(UserError, match="no audio"), RunFolder(Path("runs/none")).claimed():
        raise UserError("no audio")
    assert list(Path().iterdir()) == []


def test_a_claim_that_cannot_be_written_down_is_one_line() -> None:
    Path("runs").write_text("a file")
    with pytest.raises(UserError, match="cannot write the run there"), RunFolder(Path("runs/mine")).claimed():
        pass


@pytest.mark.parametrize("harm", ["none", "half", "byte", "empty", "missing"])
def test_damage_is_found(harm: str) -> None:
    path = Path("last.ckpt")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data", bytes(range(256)) * 1000)
    content = bytearray(path.read_bytes())
    changed = bytearray(content)
    changed[len(content) // 2] ^= 1
    harmed = {"none": content, "half": content[: len(content) // 2], "byte": changed, "empty": b""}
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(harmed[harm])
    assert (damage_of(path) is None) == (harm == "none")


def test_a_run_that_was_killed_before_it_was_complete_is_begun_again(toy_config: Config, clips: Path) -> None:
    RunFolder(Path("runs/early")).path.mkdir(parents=True)
    RunFolder(Path("runs/early")).write_facts(state="running")
    assert names() == []
    with pytest.raises(UserError, match="no such run"):
        run.resume("early", {})
    assert run.start(clips, toy_config, "early").step == 6
    assert names() == ["early"]


def test_tensorboard_is_told_to_show_all_steps_of_audio() -> None:
    said = tensorboard(Path("my runs"))
    assert said == "tensorboard --logdir 'my runs' --samples_per_plugin audio=1000,images=1000"


def test_the_run_of_a_job_is_found(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "RUNS", trained_run.parent)
    assert of_job("4711") is None
    for job, path in (("4711", "runs/first"), ("4712", "runs/second")):
        RunFolder(Path(path)).path.mkdir(parents=True)
        RunFolder(Path(path)).write_facts(slurm_job=job)
        RunFolder(Path(path)).write_config(Config())
    monkeypatch.setattr(folder, "RUNS", Path("runs"))
    assert of_job("4712") == "second"


def test_where_there_are_no_locks_the_file_to_remove_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process may train there, too; whether one on another machine still runs cannot be seen."""
    fcntl = pytest.importorskip("fcntl")

    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    mine = RunFolder(Path("runs/mine"))
    with mine.claimed():
        mine.write_facts(state="running")
        mine.write_config(Config())
        owner = mine.path / ".lock-owner"
        elsewhere = {**json.loads(owner.read_text()), "host": "node7"}
    assert not owner.exists()
    owner.write_text(json.dumps(elsewhere))
    with pytest.raises(UserError) as caught, mine.claimed():
        pass
    process = f"{elsewhere['pid']} on node7"
    assert str(caught.value) == (
        f"runs/mine: another process ({process}) is training this run; if it has ended, remove {owner}"
    )
    with pytest.raises(UserError, match="no audio"), RunFolder(Path("runs/none")).claimed():
        raise UserError("no audio")
    assert not Path("runs/none").exists()
