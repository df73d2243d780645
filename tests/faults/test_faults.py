"""What a run must survive. `make test-faults` injects each fault as often as docs/faults.md says."""

from __future__ import annotations

import contextlib
import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tests.conftest import slow
from tests.faults.conftest import (
    STEPS,
    assert_same,
    begin_or_resume,
    command,
    finish,
    resume,
    rows,
    start,
    succeed,
    train,
    wait_for_step,
)

_SAME = "resumed, it ends in the same weights, moments, lanes and metrics.csv as if nothing had been"


def _a_moment(rng: np.random.Generator, process: subprocess.Popen[str], name: str) -> None:
    """Wait for a random moment: one time in four of the start, else of the training."""
    if rng.random() < 0.25:
        time.sleep(rng.uniform(0.0, 4.0))
    else:
        done = _steps_done(name)
        wait_for_step(name, done + int(rng.integers(1, STEPS // 4)), process)
        time.sleep(rng.uniform(0.0, 0.2))


def _steps_done(name: str) -> int:
    path = Path("runs", name, "checkpoints", "last.ckpt")
    return int(torch.load(path, weights_only=True)["global_step"]) if path.exists() else 0


def _hurt_until_it_ends(
    name: str, times: int, hurt: Callable[[subprocess.Popen[str], str], None], **options: object
) -> None:
    """Begin or resume a run `times` times, hurting it each time; then let it end."""
    for attempt in range(times):
        if _is_finished(name):  # more faults than one run has room for
            assert_same(name, _WHOLE[bool(options)])
            shutil.rmtree(Path("runs", name))
        process = start(begin_or_resume(name, **options))
        hurt(process, name)
        said = finish(process)
        assert "Traceback" not in said, f"attempt {attempt}:\n{said}"
    if not _is_finished(name):
        succeed(begin_or_resume(name, **options))


_WHOLE = {False: "whole", True: "whole-of-two"}


def _is_finished(name: str) -> bool:
    facts = Path("runs", name, "run.json")
    return facts.exists() and '"finished"' in facts.read_text("utf-8")


@pytest.mark.fault("SIGKILL at a random moment, one process", _SAME, few=1, many=30)
def test_kill(whole: str, times: int, rng: np.random.Generator) -> None:
    def hurt(process: subprocess.Popen[str], name: str) -> None:
        _a_moment(rng, process, name)
        process.kill()

    _hurt_until_it_ends("killed", times, hurt)
    assert_same("killed", whole)


@pytest.mark.fault("SIGKILL of a random one of the processes of a run on two devices", _SAME, few=0, many=10)
def test_kill_one_of_two(times: int, whole_of_two: str, rng: np.random.Generator) -> None:
    def hurt(process: subprocess.Popen[str], name: str) -> None:
        _a_moment(rng, process, name)
        family = [process.pid, *_children(process.pid)]
        os.kill(int(rng.choice(family)), signal.SIGKILL)

    _hurt_until_it_ends("killed-of-two", times, hurt, trainer__devices=2)
    assert_same("killed-of-two", whole_of_two)


@pytest.mark.parametrize("how", [signal.SIGTERM, *map(slow, [signal.SIGINT, signal.SIGHUP])])
@pytest.mark.fault("SIGTERM, SIGINT or SIGHUP at a random moment, one process", _SAME, few=1, many=10)
def test_signal(whole: str, times: int, rng: np.random.Generator, how: signal.Signals) -> None:
    def hurt(process: subprocess.Popen[str], name: str) -> None:
        _a_moment(rng, process, name)
        process.send_signal(how)

    name = f"stopped-by-{how.name}"
    _hurt_until_it_ends(name, times, hurt)
    assert_same(name, whole)


@pytest.mark.fault("SIGTERM at a random moment, two processes", _SAME, few=0, many=5)
def test_signal_to_two(times: int, whole_of_two: str, rng: np.random.Generator) -> None:
    def hurt(process: subprocess.Popen[str], name: str) -> None:
        _a_moment(rng, process, name)
        process.send_signal(signal.SIGTERM)

    _hurt_until_it_ends("stopped-of-two", times, hurt, trainer__devices=2)
    assert_same("stopped-of-two", whole_of_two)


@pytest.mark.fault(
    "one of two processes frozen (SIGSTOP)",
    "ended with one line after trainer.process_timeout_minutes; " + _SAME,
    few=0,
    many=3,
)
def test_frozen_process(times: int, whole_of_two: str, rng: np.random.Generator) -> None:
    def hurt(process: subprocess.Popen[str], name: str) -> None:
        wait_for_step(name, _steps_done(name) + int(rng.integers(1, STEPS // 4)), process)
        frozen = int(rng.choice(_children(process.pid)))
        os.kill(frozen, signal.SIGSTOP)
        said = finish(process)
        assert process.returncode == 1, said
        assert "Traceback" not in said
        assert "--resume --name frozen" in said
        assert not Path(f"/proc/{frozen}").exists()

    options = {"trainer__devices": 2, "trainer__process_timeout_minutes": 0.1}
    _hurt_until_it_ends("frozen", times, hurt, **options)
    assert_same("frozen", whole_of_two)


@pytest.mark.parametrize("harm", ["half", "byte", "empty"])
@pytest.mark.fault(
    "last checkpoint cut short, a byte in it changed, or empty", f"said; {_SAME}", few=0, many=1
)
def test_damaged_checkpoint(times: int, whole: str, harm: str) -> None:
    name = f"damaged-{harm}"
    process = start(train(name))
    wait_for_step(name, 100, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    path = Path("runs", name, "checkpoints", "last.ckpt")
    content = bytearray(path.read_bytes())
    if harm == "byte":
        content[_inside(path)] ^= 1
    path.write_bytes({"half": content[: len(content) // 2], "byte": content, "empty": b""}[harm])
    said = succeed(resume(name))
    assert "last.ckpt: " in said
    assert "passed over" in said
    assert "last-previous.ckpt, step" in said
    assert_same(name, whole)


def _inside(path: Path) -> int:
    """A place in the middle of a checkpoint's largest tensor; between tensors there is padding, which is nothing."""
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
    return largest.header_offset + (largest.compress_size + len(largest.filename)) // 2 + 64


def _mount(*arguments: str | Path) -> None:
    if shutil.which("mount") is None or subprocess.run(["mount", *arguments], capture_output=True).returncode:
        pytest.skip("may not mount a file system")


@pytest.fixture
def small_disk(place: Path) -> Iterator[Path]:
    """A file system of a few megabytes, on which the run `full` will live."""
    folder = Path("runs", "full")
    folder.mkdir(parents=True)
    _mount("-t", "tmpfs", "-o", "size=5m", "none", folder)
    yield folder
    subprocess.run(["umount", folder], check=True)


@contextlib.contextmanager
def _read_only(folder: Path) -> Iterator[str]:
    """Nothing can be written below the folder inside the block; yields what the system says then."""
    if os.getuid() != 0:
        inner = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
        for path in inner:
            path.chmod(0o555)
        yield "Permission denied"
        for path in inner:
            path.chmod(0o755)
        return
    _mount("--bind", folder, folder)  # permissions do not stop this user
    try:
        _mount("-o", "remount,bind,ro", folder)
        yield "Read-only file system"
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.fault(
    "disk full while it trains", f"one line, exit code 2, nothing torn; with room, {_SAME}", few=1, many=1
)
def test_full_disk(whole: str, small_disk: Path) -> None:
    process = start(train("full"))
    wait_for_step("full", 60, process)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    _expect_one_line(process, "No space left on device")
    (small_disk / "ballast").unlink()
    succeed(resume("full"))
    assert_same("full", whole)


@pytest.mark.fault(
    "files may not grow (ulimit -f)", f"one line, exit code 2, nothing torn; without, {_SAME}", few=0, many=1
)
def test_file_size_limit(times: int, whole: str) -> None:
    limit = 30_000  # less than a checkpoint

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    process = start(train("limited"))
    wait_for_step("limited", 60, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    process = start(resume("limited"), preexec_fn=limited)
    _expect_one_line(process, "File too large")
    succeed(resume("limited"))
    assert_same("limited", whole)


@pytest.mark.fault("run folder read-only", f"one line, exit code 2; writable again, {_SAME}", few=0, many=1)
def test_read_only_folder(times: int, whole: str) -> None:
    process = start(train("read-only"))
    wait_for_step("read-only", 60, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    run = Path("runs", "read-only")
    with _read_only(run) as reason:
        _expect_one_line(start(resume("read-only")), reason)
    succeed(resume("read-only"))
    assert_same("read-only", whole)


def _expect_one_line(process: subprocess.Popen[str], reason: str) -> None:
    said = finish(process)
    assert process.returncode == 2, said
    assert "Traceback" not in said
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert reason in line


@pytest.mark.fault("killed while it decodes the corpus", f"the cache is sound: {_SAME}", few=0, many=10)
def test_kill_while_decoding(times: int, whole: str, rng: np.random.Generator, place: Path) -> None:
    cache = place / "another-cache"
    for _ in range(times):
        process = start(train("decoding", data__cache_dir=cache))
        deadline = time.monotonic() + 60
        while not cache.exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        finish(process)
        shutil.rmtree(Path("runs", "decoding"), ignore_errors=True)
    succeed(train("decoding", data__cache_dir=cache))
    assert_same("decoding", whole)


_POISON = """
import sys
from samplernn.cli import main
from samplernn.training.module import TrainingModule

take_step = TrainingModule.configure_gradient_clipping
steps = iter(range(10**9))

def poisoned(self, *arguments, **named):
    if next(steps) in {10, 11, 57}:
        next(self.model.parameters()).grad[0] = float("nan")
    return take_step(self, *arguments, **named)

TrainingModule.configure_gradient_clipping = poisoned
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.fault(
    "NaN in a gradient", "those steps are skipped and counted, and the run ends well", few=0, many=1
)
def test_nan_in_a_gradient(times: int) -> None:
    arguments = train("poisoned")
    succeed([sys.executable, "-c", _POISON, *arguments[3:]])
    with Path("runs/poisoned/metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["skipped_steps"] for row in found if row["skipped_steps"]][-1] == "3"
    assert float(found[-1]["validation/bits_per_sample"]) < 5.0


@pytest.mark.fault(
    "two commands train or resume one run at the same time", "one does, the other is refused", few=0, many=3
)
def test_two_at_once(times: int, whole: str) -> None:
    for attempt in range(times):
        name = f"both-{attempt}"
        pair = [start(train(name)) for _ in range(2)]
        said = [finish(process) for process in pair]
        assert sorted(process.returncode for process in pair) == [0, 2], said
        assert "another process is training this run" in "".join(said) or "this run exists" in "".join(said)
        assert_same(name, whole)
        shutil.rmtree(Path("runs", name))
        process = start(train(name))
        wait_for_step(name, 60, process)
        process.kill()
        finish(process)
        pair = [start(resume(name)) for _ in range(2)]
        said = [finish(process) for process in pair]
        assert sorted(process.returncode for process in pair) == [0, 2], said
        assert_same(name, whole)


@pytest.mark.fault(
    "none: the same commands once more", "the same weights, metrics and samples of audio", few=0, many=3
)
def test_repeat(times: int, whole: str) -> None:
    for attempt in range(times):
        name = f"again-{attempt}"
        succeed(train(name))
        assert_same(name, whole)
        audio = []
        for each in (whole, name):
            succeed(
                command(
                    "generate",
                    f"runs/{each}",
                    "--out",
                    f"{each}-audio-{attempt}",
                    "--duration",
                    "1",
                    "--seed",
                    "3",
                )
            )
            files = sorted(Path(f"{each}-audio-{attempt}").glob("*.wav"))
            audio.append([soundfile.read(file, dtype="int16")[0].tolist() for file in files])
            assert audio[-1]
        assert audio[0] == audio[1]


_SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_NODELIST": "127.0.0.1",
}


@pytest.mark.fault(
    "SLURM takes a job away (SIGUSR1)", f"queued again; the same command goes on: {_SAME}", few=0, many=3
)
def test_slurm_requeue(times: int, whole: str, place: Path, rng: np.random.Generator) -> None:
    """With a stand-in for scontrol; there is no cluster here."""
    asked = place / "scontrol-was-asked"
    scontrol = place / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    environment = {**os.environ, **_SLURM, "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
    for restarts in range(times):
        process = start(train("requeued"), env={**environment, "SLURM_RESTART_COUNT": str(restarts)})
        wait_for_step("requeued", _steps_done("requeued") + int(rng.integers(1, STEPS // 4)), process)
        process.send_signal(signal.SIGUSR1)
        said = finish(process)
        assert process.returncode == 128 + signal.SIGUSR1, said
        assert "job 4711 is queued again" in said
    assert asked.read_text("utf-8") == "requeue 4711\n" * times
    process = start(train("requeued"), env={**environment, "SLURM_RESTART_COUNT": str(times)})
    said = finish(process)
    assert process.returncode == 0, said
    assert_same("requeued", whole)


@pytest.mark.fault(
    "resumed on another number of devices", "said; every lane goes on, bits agree to 0.01", few=0, many=1
)
def test_other_devices(times: int, whole: str) -> None:
    process = start(train("grown"))
    wait_for_step("grown", 100, process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    said = succeed(resume("grown", "--trainer.devices=2"))
    assert "processes: 1 so far, now 2" in said
    one, other = (
        [float(row["validation/bits_per_sample"]) for row in rows(each) if row["validation/bits_per_sample"]]
        for each in ("grown", whole)
    )
    np.testing.assert_allclose(one, other, atol=0.01)


def _children(pid: int) -> list[int]:
    """Processes that this one has started, by Linux's own count."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text("utf-8").split()]
