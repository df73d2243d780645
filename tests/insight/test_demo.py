"""The demo at toy size: everything but the minute."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from samplernn.config import Config
from samplernn.insight.demo import NUM, demo


def test_the_demo_trains_scores_generates_and_says_where(
    tmp_path: Path, toy_config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = demo("out", toy_config)
    said = capsys.readouterr().out
    for number in range(NUM):
        path = Path("out") / f"{number:03}.wav"
        assert str(path) in said
        with wave.open(str(path)) as file:
            assert file.getnframes() == 4 * 4000
    assert f"{result.bits_per_sample:.3f}" in said
    assert result.verdict in said
    picture = Path("out") / "spectrograms.png"
    assert str(picture) in said
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "samplernn generate runs/demo" in said
