"""Which arithmetic a run gets, and that Lightning's Trainer is given it."""

from __future__ import annotations

import pytest
import torch

from samplernn.config import Config, TrainerConfig
from samplernn.training import precision as module
from samplernn.training.precision import precision
from samplernn.training.trainer import make_trainer


@pytest.mark.parametrize(("is_made_for_it", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_takes_bfloat16_where_the_processor_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch, is_made_for_it: bool, expected: str
) -> None:
    monkeypatch.setattr(module, "_cpu_multiplies_bfloat16", lambda: is_made_for_it)
    config = Config(trainer=TrainerConfig(accelerator="cpu", devices=1))
    assert precision(config) == expected
    assert make_trainer(config).precision == expected


@pytest.mark.parametrize(("is_made_for_it", "expected"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_asks_the_gpu_if_there_is_one(
    monkeypatch: pytest.MonkeyPatch, is_made_for_it: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: is_made_for_it)
    monkeypatch.setattr(module, "_cpu_multiplies_bfloat16", lambda: not is_made_for_it)
    assert precision(Config()) == expected


def test_a_precision_that_is_asked_for_is_taken() -> None:
    assert precision(Config(trainer=TrainerConfig(precision="64-true"))) == "64-true"
