"""Generating in a forked process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from samplernn.config import UserError
from samplernn.generation import engines
from samplernn.generation.forked import require_own_gpu

_SCRIPT = """
import os
import sys

import numpy as np
import torch

import samplernn

torch.set_num_threads(2)
torch.ones(2**20).sum()  # now OpenMP has threads
checkpoint = samplernn.load(sys.argv[1])


def again(**options):
    return np.concatenate(list(samplernn.stream(checkpoint, duration=0.05, num=2, **options)), axis=1)


ways = [lambda: again(engine="cpu"), lambda: again(engine="reference"), lambda: again(prompt=PROMPT)]
PROMPT = np.arange(400, dtype=np.int16)
expected = [way() for way in ways]
playback = samplernn.stream(checkpoint, duration=0.3, num=2, engine="cpu")
next(playback)
pid = os.fork()
rest = np.concatenate(list(playback), axis=1)
if pid == 0:
    torch.ones(2**20).sum()
    same = [np.array_equal(way(), one) for way, one in zip(ways, expected)]
    np.save(sys.argv[2], rest)
    os._exit(0 if all(same) else 1)
_, status = os.waitpid(pid, 0)
assert status == 0, status
assert np.array_equal(np.load(sys.argv[2]), rest)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_process_generates_what_its_parent_does(trained_run: Path, tmp_path: Path) -> None:
    """Although the parent's threads, which torch's OpenMP and the engine would wait for, are not there."""
    process = subprocess.run(
        [sys.executable, "-c", _SCRIPT, trained_run, tmp_path / "rest.npy"],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr


def test_a_gpu_of_the_parent_is_refused_in_one_line() -> None:
    require_own_gpu("cuda", os.getpid())
    require_own_gpu("cpu", os.getpid() + 1)
    with pytest.raises(UserError, match="spawn or forkserver"):
        require_own_gpu("cuda", os.getpid() + 1)


def test_a_gpu_that_a_forked_process_cannot_open_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise RuntimeError("Cannot re-initialize CUDA in forked subprocess.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", refuse)
    assert engines.without_cuda() == "RuntimeError: Cannot re-initialize CUDA in forked subprocess."
