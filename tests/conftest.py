"""Shared by all tests: the embedded clips, a private cache, a toy configuration, a trained toy run."""

from __future__ import annotations

import os

# One thread per process, also in subprocesses: at toy size more threads only wait for each other.
os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch

import torch

if not torch.cuda.is_available():  # before anything imports Triton: its kernels run in its interpreter
    os.environ["TRITON_INTERPRET"] = "1"

import errno
import mmap
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

import samplernn
from samplernn.audio import corpus
from samplernn.config import Config, from_dict

CLIPS = Path(samplernn.__file__).parent / "clips"

TOY = {
    "model": {"frame_sizes": [8, 2], "dim": 16, "embedding_dim": 8, "q_levels": 64},
    "data": {
        "batch_size": 4,
        "tbptt_len": 64,
        "sample_rate": 4000,
        "segment_duration": 0.5,
        "validation_duration": 1.0,
    },
    "samples": {"num": 1, "duration": 0.1},
    "optim": {"warmup_steps": 2},
    "trainer": {"accelerator": "cpu", "max_steps": 6, "val_check_interval": 4, "log_every_n_steps": 2},
}
"""Options of a model that trains in a second."""


def slow(value: Any) -> Any:
    """A row of parameters that `make test` leaves out and `make test-all` tries."""
    return pytest.param(value, marks=pytest.mark.slow)


def toy_arguments() -> list[str]:
    """`TOY` as keys of the command line."""
    return [f"--{part}.{key}={value}" for part, keys in TOY.items() for key, value in keys.items()]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`make test-faults`."""
    parser.addoption(
        "--all-faults", action="store_true", help="inject faults as often as docs/faults.md says"
    )


@pytest.fixture(scope="session", autouse=True)
def hangups() -> None:
    """Commands hear of SIGHUP, also when these tests run under nohup."""
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test touches the user's cache; subprocesses inherit this one."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session", autouse=True)
def decoding_here() -> Iterator[None]:
    """Tests decode in their own process, where they can replace its parts; commands and test_decoding.py do not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "default_workers", lambda: 0)
        yield


@pytest.fixture(scope="session")
def clips() -> Path:
    """The embedded clips."""
    return CLIPS


@pytest.fixture
def toy_config() -> Config:
    """`TOY` as a configuration."""
    return from_dict(Config, TOY)


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, private_cache: None) -> Path:
    """A finished toy run on the clips, trained once per session by the real Trainer. Read only."""
    from samplernn.training import run

    folder = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(folder)
    try:
        run.start(CLIPS, from_dict(Config, TOY), "toy")
    finally:
        os.chdir(before)
    return folder / "runs" / "toy"


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished toy run as ``runs/toy`` below a fresh current directory."""
    shutil.copytree(trained_run, tmp_path / "runs" / "toy")
    monkeypatch.chdir(tmp_path)
    return Path("runs/toy")


@pytest.fixture
def no_mmap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot map files, as some FUSE, network and container file systems."""
    reason = os.strerror(errno.ENODEV)

    def of_python(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENODEV, reason)

    def of_torch(file: str, shared: bool, size: int) -> None:
        raise RuntimeError(f"unable to mmap {size} bytes from file <{file}>: {reason} ({errno.ENODEV})")

    def of_safetensors(*arguments: Any, **options: Any) -> None:
        raise OSError(f"{reason} (os error {errno.ENODEV})")

    monkeypatch.setattr(mmap, "mmap", of_python)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", of_torch)
    monkeypatch.setattr(safetensors.torch, "safe_open", of_safetensors)
    monkeypatch.setattr(safetensors, "safe_open", of_safetensors)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(place)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a small disk: {getattr(error, 'stderr', error)}")
    yield place
    subprocess.run(["umount", str(place)], check=True)
