"""Training in several real processes: equal to one, stopped and killed in every way, started by launchers."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from samplernn.config import Config, UserError, from_dict, merged
from samplernn.training import processes, run
from samplernn.training.processes import Launch, idle_tasks, launch
from samplernn.training.trainer import make_trainer
from tests.conftest import TOY, slow, toy_arguments

# Two lanes, and a file that is four times as long as all others: one lane runs out early in every epoch.
OPTIONS = {
    "data": {"batch_size": 2, "segment_duration": 10.0},
    # float64: what is rounded away depends on the processor and on which lanes are multiplied together
    "trainer": {"max_steps": 300, "val_check_interval": 100, "log_every_n_steps": 10, "precision": "64-true"},
    "checkpoint": {"every_steps": 25},
}
WAIT = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise that a model can learn something about, in files of 4, 1, 1 and 1 s."""
    folder = tmp_path_factory.mktemp("audio")
    rng = np.random.default_rng(0)
    for name, seconds in (("a", 4), ("b", 1), ("c", 1), ("d", 1)):
        steps = rng.normal(0, 0.05, 4000 * seconds)
        soundfile.write(folder / f"{name}.wav", np.sin(np.cumsum(steps)) / 2, 4000)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, private_cache: None) -> Iterator[Path]:
    """The current directory of all tests of this module: they compare runs."""
    place, before = tmp_path_factory.mktemp("place"), Path.cwd()
    os.chdir(place)
    yield place
    os.chdir(before)


@pytest.fixture(scope="module")
def one(folder: Path, place: Path) -> Path:
    """The run of a single process."""
    return run.start(folder, from_dict(Config, merged(TOY, OPTIONS)), "one").folder.resolve()


@pytest.fixture(scope="module")
def two(folder: Path, place: Path) -> Path:
    """The same run of two processes."""
    options = merged(OPTIONS, {"trainer": {"devices": 2}})
    outcome = run.start(folder, from_dict(Config, merged(TOY, options)), "two")
    assert outcome.step == 300
    return outcome.folder.resolve()


def _arguments(**options: dict[str, Any]) -> list[str]:
    nested = merged(OPTIONS, options)
    return toy_arguments() + [f"--{a}.{b}={value}" for a, keys in nested.items() for b, value in keys.items()]


def _start(*command: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, **(env or {})}
    return subprocess.Popen(
        [sys.executable, *command], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )


def _train(folder: Path, name: str, **options: dict[str, Any]) -> subprocess.Popen[str]:
    return _start("-m", "samplernn", "train", str(folder), "--name", name, *_arguments(**options))


def _weights(run: Path) -> dict[str, torch.Tensor]:
    saved: dict[str, Any] = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return saved["state_dict"]


def _curve(run: Path, column: str) -> dict[int, float]:
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row[column]) for row in csv.DictReader(file) if row[column]}


def _workers(name: str) -> dict[int, int]:
    """Process ids of a run's workers, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
            environment = (process / "environ").read_bytes().split(b"\0")
            if (process / "cwd").readlink() != Path.cwd():  # of another run of these tests
                continue
        except OSError:
            continue
        if b"samplernn.training.worker" in command and f"runs/{name}".encode() in command:
            ranks = [entry[5:] for entry in environment if entry.startswith(b"RANK=")]
            found.update({int(rank): int(process.name) for rank in ranks})
    return found


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_processes_train_what_one_does(one: Path, two: Path) -> None:
    """Over more than an epoch, in most of which the second process has nothing but masked chunks."""
    for column, points in (("train/bits_per_sample", 30), ("validation/bits_per_sample", 3)):
        alone, together = _curve(one, column), _curve(two, column)
        assert len(alone) == points
        assert alone.keys() == together.keys()
        np.testing.assert_allclose(list(alone.values()), list(together.values()), rtol=1e-9)
    assert _curve(one, "validation/bits_per_sample")[300] < _curve(one, "validation/bits_per_sample")[100]
    alone, together = _weights(one), _weights(two)
    assert all(torch.allclose(alone[key], together[key], rtol=0, atol=1e-9) for key in alone)


def test_two_processes_leave_what_one_leaves(one: Path, two: Path) -> None:
    def files(run: Path) -> set[str]:
        found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
        by_time = ("events", "logs", "samples/step-0000100", "samples/step-0000200")
        return {name for name in found if not name.startswith(by_time)}

    assert files(one) == files(two)
    assert len(list(two.glob("events*"))) == 1
    assert (two / "logs" / "rank-1.txt").exists()
    assert run.resume("two", {}) is None  # it is finished


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGHUP])
def test_several_processes_are_stopped_saved_and_resumed_to_the_same_weights(
    folder: Path, two: Path, how: signal.Signals
) -> None:
    name = f"torn-by-{how.name}"
    process = _train(folder, name, trainer={"devices": 2})
    _wait_for(Path("runs", name, "checkpoints/last.ckpt"), process)
    process.send_signal(how)
    message = process.communicate(timeout=WAIT)[1]
    assert process.returncode == 128 + how, message
    assert message.count("stopping after this step") == 1
    assert f"stopped by {how.name}, saved. Continue with: samplernn train --resume --name {name}" in message
    assert _workers(name) == {}
    saved = torch.load(Path("runs", name, "checkpoints/last.ckpt"), weights_only=True)
    assert saved["global_step"] < 300
    assert saved["lane_state"]["lanes"][0].shape[0] == 2  # rows of both processes
    resumed = run.resume(name, {})
    assert resumed is not None
    assert resumed.step == 300
    expected, got = _weights(two), _weights(Path("runs", name))
    assert all(torch.equal(expected[key], got[key]) for key in expected)


def test_a_process_that_dies_ends_the_run_which_then_resumes_on_one_device(folder: Path, one: Path) -> None:
    process = _train(folder, "died", trainer={"devices": 2})
    _wait_for(Path("runs/died/checkpoints/last.ckpt"), process)
    os.kill(_workers("died")[1], signal.SIGKILL)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1, message
    assert "error: process 2 of 2 was killed by SIGKILL" in message.splitlines()[-1]
    assert "samplernn train --resume" in message
    assert _workers("died") == {}
    resumed = run.resume("died", {"trainer": {"devices": 1, "max_steps": 300}})
    assert resumed is not None
    np.testing.assert_allclose(
        _curve(Path("runs/died"), "validation/bits_per_sample")[300],
        _curve(one, "validation/bits_per_sample")[300],
        rtol=1e-9,
    )


@pytest.mark.slow
def test_no_worker_outlives_a_killed_parent(folder: Path, place: Path) -> None:
    process = _train(folder, "orphaned", trainer={"devices": 2, "max_steps": 100000})
    _wait_for(Path("runs/orphaned/checkpoints/last.ckpt"), process)
    assert len(_workers("orphaned")) == 2
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 20
    while _workers("orphaned"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_process_that_fails_is_quoted_in_one_line(
    folder: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys\n"
        "if 'samplernn.training.worker' in sys.orig_argv:\n"
        "    from samplernn.training.module import TrainingModule\n"
        "    TrainingModule.on_train_start = lambda self: 1 / 0\n"
    )
    Path("site").mkdir()
    Path("site", "sitecustomize.py").write_text(code)  # Python executes this at the start of every process
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path("site").absolute()), *sys.path]))
    process = _train(folder, "fails", trainer={"devices": 2})
    message = process.communicate(timeout=WAIT)[1]
    assert process.returncode == 1, message
    assert re.search(r"process [12] of 2 ended with exit code 1: ZeroDivisionError", message.splitlines()[-1])


_SCRIPT = """
import sys
import torch
from pathlib import Path
from samplernn.training.module import TrainingModule
from samplernn.cli import main

masked = []
step = TrainingModule.training_step

def training_step(self, batch, index):
    masked.append(not batch.mask.any())
    return step(self, batch, index)

def on_train_end(self):
    seen = {"weights": self.model.state_dict(), "masked": sum(masked), "steps": len(masked)}
    torch.save(seen, f"rank-{self.trainer.global_rank}.pt")

TrainingModule.training_step = training_step
TrainingModule.on_train_end = on_train_end
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_torchrun_gives_the_same_weights_on_all_ranks(
    folder: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(_SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "script.py"]
    process = _start(*launcher, str(folder), *_arguments())
    message = process.communicate(timeout=WAIT)[1]
    assert process.returncode == 0, message
    assert message.count("finished after 300 steps") == 1
    assert [path.name for path in Path("runs").iterdir()] == [folder.name]
    first, second = (torch.load(f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    expected = {key.removeprefix("model."): value for key, value in _weights(two).items()}
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert all(torch.equal(value, expected[key]) for key, value in first["weights"].items())
    assert first["masked"] == 0
    assert second["masked"] > second["steps"] / 2


_HARM = """
import math
import sys
import torch
from samplernn.cli import main
from samplernn.training import module

calls = 0
chunk_nll = module.chunk_nll

def harmed(*arguments):
    global calls
    nats, state = chunk_nll(*arguments)
    if torch.is_grad_enabled():
        calls += 1
        if calls in (4, 9) and torch.distributed.get_rank() == 1:
            nats = nats + (math.nan if calls == 4 else math.inf)
    return nats, state

def on_train_end(self):
    seen = {"weights": self.model.state_dict(), "skipped": self.gradients.read().skipped}
    torch.save(seen, f"harmed-{self.trainer.global_rank}.pt")

module.chunk_nll = harmed
module.TrainingModule.on_train_end = on_train_end
sys.exit(main(["train", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_what_is_not_finite_in_one_process_makes_all_skip_the_step(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also an infinite loss, whose gradient is finite here."""
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(_HARM)
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "script.py"]
    process = _start(*launcher, str(folder), *_arguments(trainer={"max_steps": 20}))
    message = process.communicate(timeout=WAIT)[1]
    assert process.returncode == 0, message
    first, second = (torch.load(f"harmed-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert (first["skipped"], second["skipped"]) == (2, 2)
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert all(value.isfinite().all() for value in first["weights"].values())
    assert _curve(Path("runs") / folder.name, "skipped_steps") == {10: 2, 20: 2}


def test_torchrun_reports_a_mistake_once(folder: Path, tmp_path: Path) -> None:
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        "-m",
        "samplernn",
        "train",
    ]
    process = _start(*launcher, str(tmp_path / "nowhere"), *_arguments())
    message = process.communicate(timeout=WAIT)[1]
    assert process.returncode != 0
    assert message.count("error: ") == 1
    assert "nowhere: no such folder" in message


@pytest.mark.slow
def test_srun_starts_the_processes(
    folder: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the variables that srun sets; there is no cluster here."""
    monkeypatch.chdir(tmp_path)
    shared = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NAME": "train",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    processes = [
        _start(
            "-m", "samplernn", "train", str(folder), *_arguments(),
            env={**shared, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    messages = [process.communicate(timeout=WAIT)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], messages
    assert "finished after 300 steps" in messages[0]
    assert "finished" not in messages[1]
    expected, got = _weights(two), _weights(Path("runs") / folder.name)
    assert all(torch.equal(expected[key], got[key]) for key in expected)


_STEP = {"SLURM_STEP_ID": "0"}
"""Of a command that srun has started."""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, Launch(8, 4, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, None),
        ({**_STEP, "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2"}, Launch(8, 4, 2)),
        ({**_STEP, "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_JOB_NAME": "bash"}, None),
        ({**_STEP, "SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}, None),
        ({"SLURM_STEPID": "3", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, Launch(2, 2, 1)),
        ({"SLURM_STEPID": "3", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "1"}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, None),  # the script of sbatch
        ({"SLURM_STEP_ID": "4294967291", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"}, None),
        ({"SLURM_NTASKS": "2"}, None),  # a shell of salloc
    ],
)
def test_launchers_are_recognised(environment: dict[str, str], expected: Launch | None) -> None:
    assert launch(environment) == expected


@pytest.mark.parametrize(
    ("environment", "tasks"),
    [
        ({}, None),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, 2),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}, 4),
        ({**_STEP, "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, None),
        ({"SLURM_NTASKS": "2", "RANK": "0", "WORLD_SIZE": "1"}, None),  # torchrun in an allocation
    ],
)
def test_idle_tasks_are_named(environment: dict[str, str], tasks: int | None) -> None:
    said = idle_tasks(environment)
    assert said.startswith(f"SLURM has {tasks} tasks for this job") if tasks else said == ""


def test_a_slurm_allocation_without_srun_trains_in_this_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for key in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE"):
        monkeypatch.setenv(key, "2")
    for key in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"):
        monkeypatch.setenv(key, "0")
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    assert run.start(folder, from_dict(Config, TOY), "alone").step == 6
    assert capfd.readouterr().err.count("To use them all: srun samplernn train") == 1


@pytest.mark.parametrize("how", [signal.SIGINT, slow(signal.SIGTERM)])
def test_a_process_whose_others_never_come_can_be_ended(
    folder: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """While the first of two waits, it listens; Python hears of no signal then."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    lonely = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
    process = _start("-m", "samplernn", "train", str(folder), *_arguments(), env={**lonely, **place})
    deadline = time.monotonic() + WAIT
    while True:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(how)
    message = process.communicate(timeout=20)[1]
    assert process.returncode in (-how, 128 + how)
    assert "Traceback" not in message


@pytest.mark.slow
def test_others_that_never_come_are_one_line_in_the_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_NOTICE_SECONDS", 0.0)
    monkeypatch.setenv("RANK", "1")

    def wait() -> None:
        with processes._waiting_for_others(3):
            time.sleep(0.2)
            raise torch.distributed.DistStoreError("it takes\ntoo long")

    with pytest.raises(UserError, match=r"process 2 of 3 cannot reach the others \(it takes too long\)"):
        wait()
    assert "process 2 of 3 waits for the others" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": {"batch_size": 3}, "trainer": {"devices": 2}}, "batch_size 3 .* 2 devices: take 4"),
        ({"trainer": {"num_nodes": 2}}, "torchrun or srun"),
        ({"trainer": {"devices": 0}}, "trainer.*devices"),
        ({"trainer": {"devices": "many"}}, "trainer"),
    ],
)
def test_impossible_devices_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(from_dict(Config, merged(TOY, options)))


def test_contradicting_the_launcher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(UserError, match=r"4 processes were started, but trainer.devices 2"):
        make_trainer(from_dict(Config, merged(TOY, {"trainer": {"devices": 2}})))
