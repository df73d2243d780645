"""The seam of the heads, proven by a second one: all that a head must say stands in one class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import soundfile as sf
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from samplernn import config
from samplernn.cli import main
from samplernn.config import ModelConfig
from samplernn.generation.engines import open_engine
from samplernn.model import heads
from samplernn.model.network import SampleRNN
from tests.conftest import toy_arguments
from tests.generation.drawing import draws


class FourLevels:
    """A softmax over four coarse levels. A code's place within its level is drawn evenly, and is not counted."""

    num_outputs = num_baseline_codes = 4
    num_uniforms = 2

    def __init__(self, config: ModelConfig) -> None:
        self.width = config.q_levels // 4  # codes per level

    def nll(self, outputs: Tensor, codes: Tensor) -> Tensor:
        return F.cross_entropy(outputs, codes // self.width, reduction="none")

    def draw(self, outputs: Tensor, uniforms: Tensor, temperature: Tensor, filters: Tensor) -> Tensor:
        probabilities = torch.softmax(outputs / temperature.clamp(min=1e-6), dim=-1)
        level = (probabilities.cumsum(-1) < uniforms[:, :1]).sum(-1, keepdim=True).clamp(max=3)
        return level * self.width + (uniforms[:, 1:] * self.width).long()

    def baseline_codes(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        return codes // self.width


@pytest.fixture
def four_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two lines that a new head adds beside its class."""
    monkeypatch.setitem(heads.HEADS, "four-levels", FourLevels)
    monkeypatch.setattr(config, "HeadName", Literal["softmax", "four-levels"])


@pytest.mark.usefixtures("four_levels")
def test_a_second_head_trains_evaluates_exports_and_generates(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [*toy_arguments(), "--samples.num=0", "--model.head=four-levels", "--trainer.max_steps=40"]
    assert main(["train", str(clips), "--config", "small", *options, "--name", "four", "--quiet"]) == 0
    assert main(["export", "runs/four", "exported"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "exported", str(clips), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["baselines"]["uniform"] == 2  # log2 of four levels
    assert scores["bits_per_sample"] < scores["baselines"]["unigram"]

    assert main(["generate", "exported", "--duration", "1", "--out", "sound.wav"]) == 0
    assert "engine cpu has no head four-levels" in capsys.readouterr().err
    audio, rate = sf.read("sound.wav", dtype="int16")
    assert (len(audio), rate) == (4000, 4000)
    assert len(np.unique(audio)) > 16  # more than a value per level: the second random number counts


@pytest.mark.usefixtures("four_levels")
def test_a_draw_of_two_numbers_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    config = ModelConfig(frame_sizes=(8, 2), dim=16, embedding_dim=8, q_levels=64, head="four-levels")
    model = SampleRNN(config)
    together, alone = open_engine(model, "reference"), open_engine(model, "reference")
    together.start(3)
    alone.start(1)
    codes = together.advance(draws(32, streams=(0, 1, 2)))
    assert torch.equal(codes[2:], alone.advance(draws(32, streams=(2,))))
    nll = together.score(codes)
    assert nll.shape == codes.shape
