"""A function in a process of its own."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import pytest
import torch

from samplernn.config import UserError, presets
from samplernn.insight.benchmark.own_process import in_fresh_process, peak_memory
from samplernn.insight.benchmark.results import preset_config

CPU = torch.device("cpu")


def _peak_with(megabytes: int) -> float | None:
    np.ones(megabytes * 10**6, np.int8)
    return peak_memory(CPU)


def test_it_runs_elsewhere() -> None:
    assert in_fresh_process(os.getpid) != os.getpid()


def test_a_mistake_of_the_users_stays_one() -> None:
    with pytest.raises(UserError, match="unknown preset 'huge'") as raised:
        in_fresh_process(preset_config, "huge")
    assert all(name in str(raised.value) for name in presets())


@pytest.mark.skipif(sys.platform == "win32", reason="no such signal")
def test_a_killed_process_is_explained() -> None:
    with pytest.raises(UserError, match="too little memory"):
        in_fresh_process(signal.raise_signal, signal.SIGKILL)


@pytest.mark.slow
def test_any_other_failure_is_one() -> None:
    with pytest.raises(RuntimeError, match="exit code 1"):
        in_fresh_process(int, "no number")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system counts it")
def test_the_peak_is_of_the_process_itself() -> None:
    """Not of the one that started it, whose memory the system's own count begins with."""
    ballast = np.ones(10**9, np.int8)
    small, large = (in_fresh_process(_peak_with, megabytes) for megabytes in (0, 300))
    assert small is not None
    assert large is not None
    assert small < ballast.nbytes
    assert large - small == pytest.approx(300e6, rel=0.2)
