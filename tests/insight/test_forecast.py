from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from samplernn.audio.corpus import inspect
from samplernn.config import Config, DataConfig, from_dict
from samplernn.insight import forecast
from samplernn.insight.forecast import Plan, first_run, measure
from samplernn.model.network import SampleRNN
from samplernn.training.memory import PROCESS_BYTES
from tests.conftest import CLIPS, TOY

PLAN = Plan("file", 80.0, 10.0, 10.0, 50, 8.0, 100, 0.9, 4096)


def test_a_long_step_follows_from_shorter_ones() -> None:
    lengths: list[int] = []

    def step(length: int) -> float:
        lengths.append(length)
        return 0.05 + 0.01 * length

    assert forecast._time(step, 1000, seconds=1.0) == pytest.approx(10.05)
    assert 8 <= max(lengths) < 100  # long enough to see the slope, short enough for the budget


def test_a_short_step_is_measured_whole() -> None:
    """The median, so that one hiccup does not count."""
    taken: list[int] = []

    def step(length: int) -> float:
        taken.append(length)
        return 5e-4 if len(taken) == 6 else 1e-4

    assert forecast._time(step, 4, seconds=1.0) == 1e-4
    assert taken.count(4) > 4


@pytest.mark.parametrize(
    ("limits", "steps", "seconds"),
    [
        ({}, 3000, 1500.0),
        ({"max_steps": 70}, 70, 35.0),
        ({"max_epochs": 2}, 200, 100.0),
        ({"max_epochs": 2, "max_steps": 70}, 70, 35.0),
        ({"max_time": "00:00:01:00"}, 120, 60.0),
        ({"max_time": "00:00:01:00", "max_steps": 70}, 70, 35.0),
        ({"max_time": "00:00:01:00", "max_steps": 700}, 120, 60.0),
    ],
)
def test_a_first_run_ends_where_the_configuration_says(
    limits: dict[str, object], steps: int, seconds: float
) -> None:
    config = from_dict(Config, {"trainer": limits})
    assert first_run(config, PLAN, step_seconds=0.5) == (steps, seconds)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "64-true"])
@pytest.mark.parametrize("rnn", ["gru", "lstm"])
def test_real_steps_are_measured(precision: str, rnn: str) -> None:
    values = {**TOY, "model": {**TOY["model"], "rnn": rnn}}
    values["trainer"] = {**TOY["trainer"], "precision": precision}
    config = from_dict(Config, values)
    before = torch.random.get_rng_state()
    cost = measure(config, PLAN, seconds=0.1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert cost.device == "cpu"
    assert cost.parameters == sum(p.numel() for p in SampleRNN(config.model).parameters())
    assert 0 < cost.step_seconds < 10
    assert cost.memory_bytes > PROCESS_BYTES


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="asks the system for the peak")
@pytest.mark.parametrize("dim", [64, 256, 512])
def test_memory_is_what_training_takes(dim: int, tmp_path: Path, toy_config: Config) -> None:
    """The whole process at its peak, as the system counts it."""
    command = [sys.executable, "-m", "samplernn", "train", str(CLIPS), "--config", "small"]
    command += [f"--model.dim={dim}", "--trainer.accelerator=cpu", "--trainer.max_steps=4"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    config = Config(trainer=replace(toy_config.trainer, accelerator="cpu"))
    config = replace(config, model=replace(config.model, dim=dim))
    corpus = inspect(CLIPS, DataConfig(sample_rate=config.data.sample_rate))
    expected = measure(config, forecast.plan(corpus, config), seconds=0.5).memory_bytes
    assert expected == pytest.approx(peak, rel=0.25)
