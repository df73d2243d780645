"""`data.batch_size: auto`, in a run and beside one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

from samplernn.audio.corpus import Corpus, prepare
from samplernn.audio.lanes import training_lanes
from samplernn.audio.split import locate, split
from samplernn.config import Config, DataConfig, from_dict, merged
from samplernn.insight.doctor import examine
from samplernn.training import auto_lanes, run
from samplernn.training.auto_lanes import MAX_LANES, resolve
from samplernn.training.memory import RandomStep, footprint
from tests.conftest import CLIPS, TOY

CPU = torch.device("cpu")
PLENTY = 10**15


def _auto(data: dict[str, Any] | None = None, trainer: dict[str, Any] | None = None) -> Config:
    changes = {"data": {"batch_size": "auto", **(data or {})}, "trainer": trainer or {}}
    config: Config = from_dict(Config, merged(TOY, changes))
    return config


def _resolve(config: Config, corpus: Corpus, *processes: int) -> tuple[DataConfig, str]:
    chosen, line = resolve(config, corpus, split(corpus, config.data.split_seed), CPU, *processes)
    assert replace(chosen, data=config.data) == config
    assert "\n" not in line
    return chosen.data, line


@pytest.fixture(scope="module")
def corpus(private_cache: None) -> Corpus:
    return prepare(CLIPS, DataConfig(sample_rate=4000))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """There is plenty, unless a test says otherwise."""
    monkeypatch.setattr(auto_lanes, "available_bytes", lambda device: PLENTY)
    return monkeypatch


def test_memory_sets_the_limit(corpus: Corpus, memory: pytest.MonkeyPatch) -> None:
    """Half of what is available is as much as 47 lanes take."""
    config = _auto({"tbptt_len": 1024, "segment_duration": 1.0})
    used = footprint(RandomStep(config, CPU))
    used = replace(used, validated_sample=0.0)
    memory.setattr(auto_lanes, "footprint", lambda step: used)
    memory.setattr(auto_lanes, "available_bytes", lambda device: 2 * used.peak(47))
    data, line = _resolve(config, corpus)
    assert data.lanes == 32
    assert line.startswith("data.batch_size auto: 32 lanes (64 would take about 1.")
    assert " GB may be used)" in line
    assert _resolve(config, corpus, 2)[0].lanes < 32  # two processes share the machine's memory


@pytest.mark.parametrize("segment_duration", [0.5, 2.0, 8.0])
def test_no_lane_is_left_without_audio(
    segment_duration: float, corpus: Corpus, memory: pytest.MonkeyPatch
) -> None:
    data, line = _resolve(_auto({"segment_duration": segment_duration}), corpus)
    spans = locate(corpus, split(corpus, data.split_seed).train)
    audio = sum(stop - start for _, start, stop in spans)

    def filled(lanes: int) -> float:
        dealt = training_lanes(corpus, spans, replace(data, batch_size=lanes), seed=0)
        assert len(dealt.segments) >= lanes
        return audio / (len(dealt) * lanes * data.tbptt_len)

    assert 4 <= data.lanes < MAX_LANES
    assert filled(data.lanes) > 0.75
    assert f"of up to {segment_duration:g} s do not keep {2 * data.lanes} busy" in line


def test_there_are_never_more_than_256(corpus: Corpus, memory: pytest.MonkeyPatch) -> None:
    data, line = _resolve(_auto({"segment_duration": 0.05}), corpus)
    assert (data.lanes, line) == (256, "data.batch_size auto: 256 lanes (the most that auto takes)")
    assert (
        _resolve(_auto({"segment_duration": 0.05}), corpus, 3, 2)[0].lanes == 192
    )  # evenly, for 6 processes


def test_files_shorter_than_a_chunk_fill_lanes_as_others_do(
    tmp_path: Path, clips: Path, memory: pytest.MonkeyPatch
) -> None:
    """Their padding is the same in any number of lanes."""
    audio, rate = sf.read(clips / "tabla" / "tabla_ghe1.flac")
    (tmp_path / "hits").mkdir()
    for i in range(40):
        sf.write(tmp_path / "hits" / f"{i}.wav", audio[: rate // 10] * (1 - i / 80), rate)
    config = _auto({"tbptt_len": 1024})  # a quarter of a second
    assert _resolve(config, prepare(tmp_path / "hits", DataConfig(sample_rate=4000)))[0].lanes == 32


def test_too_little_memory_for_anything_is_tried_all_the_same(
    corpus: Corpus, memory: pytest.MonkeyPatch
) -> None:
    memory.setattr(auto_lanes, "available_bytes", lambda device: 1)
    data, line = _resolve(_auto(), corpus)
    assert data.lanes == 1
    assert line.startswith("data.batch_size auto: 1 lane (2 would take about 1.")
    memory.setattr(auto_lanes, "available_bytes", lambda device: 0)  # that is: unknown
    assert _resolve(_auto(), corpus)[0].lanes > 1


def test_a_number_stays(corpus: Corpus, toy_config: Config) -> None:
    assert resolve(toy_config, corpus, split(corpus, 0), CPU) == (toy_config, "")


def test_a_run_says_keeps_and_resumes_its_number(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exact = {"precision": "32-true", "max_steps": 6, "val_check_interval": 100}
    config = _auto({"segment_duration": 2.0}, exact)
    config = replace(config, optim=replace(config.optim, schedule="constant"))
    run.start(clips, config, "whole")
    assert "data.batch_size auto: 16 lanes (" in capsys.readouterr().err
    run.start(clips, replace(config, trainer=replace(config.trainer, max_steps=3)), "parts")
    # Another machine, as it were, on which another number would be chosen.
    monkeypatch.setattr(auto_lanes, "available_bytes", lambda device: 1)
    run.resume("parts", {"trainer": {"max_steps": 6}, "data": {"batch_size": "auto"}})
    whole, parts = (
        torch.load(tmp_path / "runs" / name / "checkpoints" / "last.ckpt", weights_only=True)
        for name in ("whole", "parts")
    )
    assert whole["samplernn"]["config"]["data"]["batch_size"] == 16
    assert whole["lane_state"]["lanes"][0].shape[0] == 16
    assert all(
        torch.equal(whole["state_dict"][name], parts["state_dict"][name]) for name in whole["state_dict"]
    )
    assert "batch_size: 16\n" in (tmp_path / "runs" / "parts" / "config.yaml").read_text()


def test_doctor_plans_with_the_number_that_a_run_would_take(
    corpus: Corpus, memory: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = _auto({"segment_duration": 2.0})
    diagnosis = examine(CLIPS, config, progress=False, seconds=0.1)
    assert diagnosis.config.data == _resolve(config, corpus)[0]
    assert diagnosis.to_dict()["lanes"] == 16
    sf.write(tmp_path / "silent.wav", np.zeros(4000), 4000)
    unfit = examine(tmp_path, config, progress=False, seconds=0.1)
    assert not unfit.trainable
    assert "lanes" not in unfit.to_dict()
