"""Which arithmetic a run gets, and that Lightning's Trainer is given it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samplernn.config import Config, ModelConfig, TrainerConfig
from samplernn.training import precision as module
from samplernn.training.precision import left_wide, precision
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


@pytest.mark.parametrize(
    ("rnn", "arithmetic", "device", "is_said"),
    [
        ("lstm", "bf16-mixed", "cpu", True),
        ("lstm", "bf16-true", "cpu", False),
        ("lstm", "32-true", "cpu", False),
        ("lstm", "bf16-mixed", "cuda", False),
        ("gru", "bf16-mixed", "cpu", False),
    ],
)
def test_an_lstm_that_stays_in_float32_is_said(
    monkeypatch: pytest.MonkeyPatch, rnn: Any, arithmetic: Any, device: str, is_said: bool
) -> None:
    config = Config(model=ModelConfig(rnn=rnn), trainer=TrainerConfig(precision=arithmetic))
    monkeypatch.setattr(module, "has_narrow_lstm", lambda dtype: True)
    assert left_wide(config, torch.device(device)) is None
    monkeypatch.setattr(module, "has_narrow_lstm", lambda dtype: False)
    said = left_wide(config, torch.device(device))
    assert (said is not None) == is_said
    assert said is None or said.startswith("trainer.precision bf16-mixed: PyTorch has no LSTM in bfloat16")
