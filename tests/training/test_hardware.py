"""What a run is made of besides its options."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from samplernn.training import hardware


def test_memory_follows_what_this_process_takes() -> None:
    before = hardware.memory_mb(torch.device("cpu"))
    assert set(before) == {"memory/process_mb"}
    held = np.ones(50_000_000, np.uint8)
    after = hardware.memory_mb(torch.device("cpu"))
    assert 40 < after["memory/process_mb"] - before["memory/process_mb"] < 60
    assert held.sum() == 50_000_000


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.gpu
def test_memory_of_a_gpu_is_what_torch_holds() -> None:
    held = torch.ones(100_000_000, dtype=torch.uint8, device="cuda")
    assert hardware.memory_mb(held.device)["memory/gpu_mb"] >= 100
    assert torch.cuda.get_device_name() in hardware.hardware()["gpus"]


def test_the_machine_is_described_in_plain_values() -> None:
    found = hardware.hardware()
    assert json.loads(json.dumps(found)) == found
    assert found["cores"] == os.cpu_count()
    assert found["torch"] == torch.__version__
    meminfo = Path("/proc/meminfo").read_text().split()
    assert found["memory_gb"] == pytest.approx(int(meminfo[1]) * 1024 / 1e9, rel=0.02)


def test_the_revision_is_gits_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hardware.revision() is None  # no repository
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert hardware.revision() is None  # no commit yet
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "commit", "--quiet", "--allow-empty", "-m", "x"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
    assert hardware.revision() == head.strip()
    monkeypatch.setenv("PATH", "")
    assert hardware.revision() is None  # no git
