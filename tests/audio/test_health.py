from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.corpus import prepare
from samplernn.audio.health import remarks
from tests.conftest import CLIPS

RATE = 16000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One good file; the tests add others."""
    (tmp_path / "audio").mkdir()
    write(tmp_path / "audio" / "m good.wav", note())
    return tmp_path / "audio"


def note(seconds: float = 1.0, frequency: float = 220, gain: float = 0.5, rate: int = RATE) -> np.ndarray:
    return gain * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path: Path, samples: np.ndarray, rate: int = RATE) -> None:
    sf.write(path, samples, rate)  # PCM-16, clipped at full scale


def said(folder: Path, tmp_path: Path) -> list[tuple[str, str]]:
    found = remarks(prepare(folder, RATE, tmp_path / "cache"), tbptt_len=1024)
    assert all(problem.remedy for problem in found)
    return [(problem.path, problem.problem) for problem in found]


def test_a_good_folder_has_no_remarks(folder: Path, tmp_path: Path) -> None:
    write(folder / "normalised.wav", note(gain=32767 / 32768))
    write(folder / "exactly a chunk.wav", note(1024 / RATE, frequency=500))
    assert said(folder, tmp_path) == []


def test_the_embedded_clips_are_sound_but_for_the_offset_of_some_drums() -> None:
    for remark in remarks(prepare(CLIPS, RATE), 1024):
        assert remark.path.startswith("tabla/")
        assert "DC offset" in remark.problem


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize("channels", [1, 2])
def test_clipping_is_seen_at_any_rate_and_in_one_channel(
    folder: Path, tmp_path: Path, rate: int, channels: int
) -> None:
    clean, clipped = note(rate=rate), note(gain=2, rate=rate)
    write(folder / "x.wav", np.stack([clean, clipped], axis=1)[:, -channels:], rate)
    write(folder / "y.wav", np.stack([clean, note(frequency=330, rate=rate)], axis=1), rate)
    ((path, problem),) = said(folder, tmp_path)
    assert path == "x.wav"
    assert "is clipped (6" in problem


def test_files_that_are_left_out_come_first(folder: Path, tmp_path: Path) -> None:
    write(folder / "a offset.wav", note() * 0.9 + 0.05)
    write(folder / "b short.wav", note(0.02, frequency=200))
    (folder / "z empty.wav").touch()
    assert said(folder, tmp_path) == [
        ("z empty.wav", "is empty (0 bytes)"),
        ("a offset.wav", "has a DC offset of 5 % of full scale"),
        ("b short.wav", "lasts 20 ms, less than a chunk (64 ms)"),
    ]
