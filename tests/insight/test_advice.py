"""Advice is given where it applies, names what to type, and what it promises comes true."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.corpus import inspect
from samplernn.audio.health import remarks
from samplernn.config import Config, DataConfig, ModelConfig
from samplernn.insight.advice import advise, silence_share
from samplernn.insight.forecast import Cost, plan

RATE = 4000
SMALL = Config(model=ModelConfig(), data=DataConfig(sample_rate=RATE, tbptt_len=256))
"""The preset `small` at a low rate: 16 lanes, chunks of 64 ms, segments of 8 s."""


def noise(seconds: float, level: float = 0.1, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(seconds * rate)).clip(-4, 4) * level


@pytest.fixture
def healthy(tmp_path: Path) -> Path:
    """Eight minutes in twelve files."""
    for index in range(12):
        sf.write(tmp_path / f"{index}.wav", noise(40, seed=index), RATE)
    return tmp_path


def advice(folder: Path, config: Config = SMALL, cost: Cost | None = None) -> list[str]:
    corpus = inspect(folder, DataConfig(sample_rate=config.data.sample_rate))
    return advise(corpus, remarks(corpus, config.data.tbptt_len), config, plan(corpus, config), cost)


def only(found: list[str]) -> str:
    (one,) = found
    return one


def with_option(config: Config, text: str) -> Config:
    """The configuration with the option of `data` that a piece of advice names."""
    key, value = re.findall(r"--data\.(\w+) (\S+)", text)[0]
    kind = type(getattr(config.data, key))
    return replace(config, data=replace(config.data, **{key: kind(value)}))


def test_a_healthy_folder_gets_none(healthy: Path) -> None:
    cost = Cost("cpu", 3_000_000, 1_200_000_000, 8_000_000_000, 0.2)
    assert advice(healthy, cost=cost) == []


def test_three_minutes_want_shorter_segments(tmp_path: Path) -> None:
    for index in range(4):
        sf.write(tmp_path / f"{index}.wav", noise(45, seed=index), RATE)
    said = only(advice(tmp_path))
    assert "3.0 minutes in all" in said
    assert "--data.segment_duration 2" in said
    corpus = inspect(tmp_path, DataConfig(sample_rate=RATE))
    assert plan(corpus, with_option(SMALL, said)).filled > plan(corpus, SMALL).filled


def test_half_a_minute_wants_fewer_lanes(tmp_path: Path) -> None:
    for index in range(3):
        sf.write(tmp_path / f"{index}.wav", noise(5, seed=index), RATE)
    said = only(advice(tmp_path))
    assert "--data.batch_size 2" in said
    corpus = inspect(tmp_path, DataConfig(sample_rate=RATE))
    assert plan(corpus, SMALL).segment_seconds < 1
    assert plan(corpus, with_option(SMALL, said)).segment_seconds > 2


def test_short_files_are_not_to_blame_on_the_lanes(tmp_path: Path) -> None:
    for index in range(700):
        sf.write(tmp_path / f"{index}.wav", noise(0.5, seed=index), RATE)
    assert advice(tmp_path) == []


def test_a_little_audio_for_a_large_network(tmp_path: Path) -> None:
    for index in range(3):
        sf.write(tmp_path / f"{index}.wav", noise(60, seed=index), RATE)
    config = replace(SMALL, model=replace(SMALL.model, dim=1024))
    assert any("--config small" in said for said in advice(tmp_path, config))


def test_rates_below_the_configured_one(healthy: Path) -> None:
    sf.write(healthy / "telephone.wav", noise(60, rate=2000), 2000)
    said = only(advice(healthy))
    assert "11 % of the audio" in said
    assert "nothing above 1 kHz" in said
    assert "--data.sample_rate 2000" in said


def test_silence_and_the_file_that_holds_most_of_it(healthy: Path) -> None:
    sf.write(healthy / "pauses.wav", np.append(noise(10), np.zeros(400 * RATE)), RATE)
    corpus = inspect(healthy, DataConfig(sample_rate=RATE))
    assert silence_share(corpus) == pytest.approx(400 / 890, abs=1e-3)
    said = [text for text in advice(healthy) if "silence" in text]
    assert "45 % of the audio is silence" in said[0]
    assert "most of it in pauses.wav: ffmpeg -i pauses.wav -af silenceremove" in said[0]


def test_a_quiet_folder(tmp_path: Path) -> None:
    for index in range(12):
        sf.write(tmp_path / f"{index}.wav", noise(40, level=0.001, seed=index), RATE)
    assert "the loudest sample is at -47.9 dBFS" in only(advice(tmp_path))
    assert silence_share(inspect(tmp_path, DataConfig(sample_rate=RATE))) == 0


def test_one_loud_file_among_quiet_ones(tmp_path: Path) -> None:
    for index in range(12):
        sf.write(tmp_path / f"{index}.wav", noise(40, level=0.005, seed=index), RATE)
    sf.write(tmp_path / "shot.wav", np.append(noise(5, level=0.005), 0.99), RATE)
    said = only(advice(tmp_path))
    assert "beside the peak in shot.wav" in said
    assert "--model.quantization mu-law" in said
    mu_law = replace(SMALL, model=replace(SMALL.model, quantization="mu-law"))
    assert advice(tmp_path, mu_law) == []


@pytest.mark.parametrize("others", [0, 5])
def test_one_file_that_is_almost_everything(tmp_path: Path, others: int) -> None:
    sf.write(tmp_path / "the long one.wav", noise(600), RATE)
    for index in range(others):
        sf.write(tmp_path / f"{index}.wav", noise(5, seed=index + 1), RATE)
    said = only(advice(tmp_path))
    assert said.startswith("the long one.wav is 96 % of the audio" if others else "1 file only")
    assert "ffmpeg -i 'the long one.wav' -f segment -segment_time" in said


def test_formats_to_convert(healthy: Path) -> None:
    (healthy / "one song.m4a").write_bytes(b"x")
    assert "ffmpeg -i 'one song.m4a' 'one song.flac'" in only(advice(healthy))
    (healthy / "two.m4a").write_bytes(b"x")
    said = only(advice(healthy))
    assert "convert the 2 files" in said
    assert 'for f in *.m4a; do ffmpeg -i "$f" "${f%.*}.flac"; done' in said


def test_a_used_file_under_another_suffix_is_not_to_be_converted(healthy: Path) -> None:
    (healthy / "0.wav").rename(healthy / "0.m4a")
    corpus = inspect(healthy, DataConfig(sample_rate=RATE))
    assert [problem.problem for problem in corpus.problems] == ["holds WAV audio, but is named .m4a"]
    assert advice(healthy) == []


def test_more_memory_and_time_than_there_is(healthy: Path) -> None:
    config = replace(SMALL, model=replace(SMALL.model, dim=1024))
    memory, time = advice(healthy, config, Cost("cpu", 50_000_000, 9_000_000_000, 8_000_000_000, 300.0))
    assert "9.0 GB are needed and 8.0 GB are there: use --data.batch_size 4" in memory
    assert "--config small" in time
    assert "hours on this CPU" in time
    assert advice(healthy, config, Cost("GPU", 50_000_000, 5_000_000_000, 8_000_000_000, 0.1)) == []
