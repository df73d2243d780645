"""`samplernn train FOLDER --overfit-check`: what it listens to, what it says, what it leaves."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.io import to_int16
from samplernn.cli import main
from samplernn.config import Config, UserError, from_dict, merged
from samplernn.model.baselines import BaselineBits
from samplernn.training import overfit
from samplernn.training.overfit import OverfitCheck, find_clip, overfit_check
from tests.conftest import TOY, toy_arguments

RATE = 4000
EXACT = ["--trainer.precision=32-true", "--optim.lr=0.01"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory; temporary and cached files would lie there, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_options_that_learn_are_healthy_and_nothing_is_left(
    place: Path, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in clips.rglob("*"))
    argv = ["train", str(clips / "piano"), "--overfit-check", *toy_arguments(), *EXACT]
    assert main([*argv, "--data.batch_size=auto", "--name=none"]) == 0
    said = capsys.readouterr()
    (line,) = said.out.splitlines()
    assert line.startswith("healthy: 6.")
    assert " on satie_gymnopedie1_1.flac; previous sample: " in line
    assert list(place.iterdir()) == []
    assert sorted(path for path in clips.rglob("*")) == before


@pytest.mark.parametrize(
    ("lr", "said"),
    [(1e-9, "not healthy, it learns too little: "), (1e3, "Try a lower rate, --optim.lr 1e+02")],
)
def test_options_that_do_not_learn_are_exit_code_1(
    lr: float,
    said: str,
    place: Path,
    clips: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After two seconds, which is less than a minute; the run's own limit of steps does not count."""
    monkeypatch.setattr(overfit, "_FEW_STEPS", 5)  # a slow machine shall not be told so
    argv = ["train", str(clips), "--overfit-check", *toy_arguments(), f"--optim.lr={lr}"]
    assert main([*argv, "--max-minutes=0.034"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert said in line
    assert list(place.iterdir()) == []


def test_bits_and_baselines_are_those_of_the_clip(place: Path, clips: Path) -> None:
    config: Config = from_dict(Config, merged(TOY, {"trainer": {"max_time": "00:00:00:01"}}))
    check = overfit_check(clips / "guitar", config)
    assert check.config.data.lanes * check.config.data.tbptt_len == 8 * 256
    assert check.config.model == config.model
    assert check.bits_before > check.bits
    assert check.baselines.previous_sample < check.baselines.unigram < 6.0
    assert 1.0 <= check.seconds < 3.0
    assert check.steps > 6


@pytest.mark.parametrize(
    ("bits", "steps", "verdict"),
    [
        (2.0, 500, "healthy: "),
        (3.7, 500, "not healthy, it learns too little: 8.50 -> 3.70"),
        (3.7, 20, "not healthy, too slow to tell: "),
        (9.0, 500, "not healthy, it diverges: 8.50 -> 9.00"),
        (math.nan, 500, "Try a lower rate, --optim.lr 0.0002"),
    ],
)
def test_the_verdict_is_one_line_that_says_what_to_try(bits: float, steps: int, verdict: str) -> None:
    baselines = BaselineBits(uniform=8.0, unigram=6.0, previous_sample=4.0)
    check = OverfitCheck("a\nb.wav", Config(), 8.5, bits, baselines, steps, 60.0)
    check = replace(check, config=replace(check.config, optim=replace(check.config.optim, lr=0.002)))
    assert verdict in check.verdict
    assert "\n" not in check.verdict
    assert check.is_healthy == verdict.startswith("healthy")


def test_the_loudest_seconds_of_the_first_file_that_can_be_heard(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE).astype(np.float32)
    envelope = np.full(10 * RATE, 0.01, np.float32)
    envelope[4 * RATE : 8 * RATE] = 1.0
    (tmp_path / "a.wav").write_text("words")
    sf.write(tmp_path / "b.wav", np.zeros(5 * RATE), RATE)
    sf.write(tmp_path / "c.wav", noise[: RATE // 2], RATE)
    sf.write(tmp_path / "d.wav", noise * envelope, RATE, subtype="FLOAT")
    sf.write(tmp_path / "e.wav", noise, RATE)
    clip = find_clip(tmp_path, RATE)
    assert clip.path == "d.wav"
    assert np.array_equal(clip.audio, to_int16(noise[4 * RATE : 8 * RATE]))


def test_of_short_files_the_longest(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, RATE)
    for name, length in {"a": 1000, "b": 3000, "c": 2000}.items():
        sf.write(tmp_path / f"{name}.wav", noise[:length], RATE)
    clip = find_clip(tmp_path, RATE)
    assert (clip.path, len(clip.audio)) == ("b.wav", 3000)


def test_a_folder_without_sound_is_named(tmp_path: Path, toy_config: Config) -> None:
    with pytest.raises(UserError, match="no such folder"):
        overfit_check(tmp_path / "nowhere", toy_config)
    with pytest.raises(UserError, match="no audio that can be used: no files"):
        overfit_check(tmp_path, toy_config)
    (tmp_path / "a.wav").write_text("words")
    sf.write(tmp_path / "b.wav", np.zeros(5 * RATE), RATE)
    with pytest.raises(UserError, match=r"no audio that can be used: a\.wav: .*; b\.wav: is silent"):
        overfit_check(tmp_path, toy_config)
    sf.write(tmp_path / "c.wav", 0.5 * np.ones(100) * (-1) ** np.arange(100), RATE)
    with pytest.raises(UserError, match=r"c\.wav: 100 samples are too few"):
        overfit_check(tmp_path, toy_config)
