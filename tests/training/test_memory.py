"""What training keeps in memory, and what the machine says there is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from samplernn.config import Config, from_dict, merged
from samplernn.training import memory
from samplernn.training.memory import RandomStep, available_bytes, footprint
from tests.conftest import TOY

CPU = torch.device("cpu")


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_saved_bytes_grow_with_samples_whether_lanes_or_length(precision: str) -> None:
    """From the second lane on: a single one needs no copies, in float32, to lie as the next layer reads it."""
    step = RandomStep(from_dict(Config, merged(TOY, {"trainer": {"precision": precision}})), CPU)
    a, b, c, d = (step.saved_bytes(*size) for size in [(2, 64), (2, 128), (2, 640), (20, 64)])
    assert b > a
    assert c == pytest.approx(a + 9 * (b - a), rel=0.01)
    assert d == pytest.approx(c, rel=0.02)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_two_short_passes_tell_what_a_whole_step_keeps(precision: str) -> None:
    config = from_dict(Config, merged(TOY, {"trainer": {"precision": precision}}))
    step = RandomStep(config, CPU)
    counted = footprint(step)
    small, large = (step.saved_bytes(lanes, config.data.tbptt_len) for lanes in (16, 32))
    assert counted.lane == pytest.approx(memory._SAVED_COPIES * (large - small) / 16, rel=0.1)
    assert counted.peak(1000, 0) - counted.peak(500, 0) == pytest.approx(500 * counted.lane, abs=1)
    assert counted.peak(1, 1 << 30) == pytest.approx(counted.fixed + (1 << 30) * counted.validated_sample)


def test_a_chunk_twice_as_long_takes_twice_the_memory_per_lane(toy_config: Config) -> None:
    longer: Config = from_dict(Config, merged(TOY, {"data": {"tbptt_len": 128}}))
    one, two = (footprint(RandomStep(config, CPU)).lane for config in (toy_config, longer))
    assert two == pytest.approx(2 * one)


def test_no_more_memory_is_available_than_the_machine_has() -> None:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1e8 < available_bytes(CPU) <= total


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def test_every_cgroup_above_counts_in_version_2(tmp_path: Path) -> None:
    """The inner one has no limit, the one above leaves 300 and could drop 50; a file cache is not in the way."""
    _write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/jobs/mine\n",
            "cgroup/jobs/mine/memory.max": "max\n",
            "cgroup/jobs/mine/memory.current": "600\n",
            "cgroup/jobs/memory.max": "1000\n",
            "cgroup/jobs/memory.current": "700\n",
            "cgroup/jobs/memory.stat": "anon 650\ninactive_file 50\n",
        },
    )
    assert list(memory._left_by_cgroups(tmp_path / "proc", tmp_path / "cgroup")) == [350]


def test_a_container_of_version_1_sees_its_limit_at_the_root(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/\n4:memory:/outer/name\n0::/\n",
            "cgroup/memory/memory.limit_in_bytes": "5000",
            "cgroup/memory/memory.usage_in_bytes": "4000",
            "cgroup/memory/memory.stat": "inactive_file 1\ntotal_inactive_file 500\n",
        },
    )
    assert list(memory._left_by_cgroups(tmp_path / "proc", tmp_path / "cgroup")) == [1500]


def test_what_a_system_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    assert list(memory._left_by_cgroups(tmp_path, tmp_path)) == []
    assert list(memory._available_by_kernel(tmp_path)) == []
