"""Floats beyond full scale: undistorted, at a scale of their own, and without a say in other files' codes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.corpus import inspect, prepare
from samplernn.audio.health import remarks
from samplernn.audio.io import AudioError, Decoder, load, to_int16
from samplernn.config import DataConfig

RATE = 16000
FLOATS = [
    *[("WAV", "FLOAT"), ("WAV", "DOUBLE"), ("WAVEX", "FLOAT"), ("AIFF", "FLOAT"), ("AIFF", "DOUBLE")],
    *[("CAF", "FLOAT"), ("AU", "DOUBLE"), ("W64", "FLOAT"), ("RF64", "FLOAT"), ("MAT5", "DOUBLE")],
]


def _sine(seconds: float = 1.0, frequency: float = 331, rate: int = RATE) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def _decoded(path: Path, rate: int = RATE) -> tuple[np.ndarray, Decoder]:
    decoder = Decoder(path, rate)
    return np.concatenate(list(decoder)), decoder


def _words(decoder: Decoder) -> list[str]:
    return [f"{problem.problem}; {problem.remedy}" for problem in decoder.problems]


@pytest.mark.parametrize(("container", "subtype"), FLOATS)
def test_floats_beyond_full_scale_are_not_cut_off(tmp_path: Path, container: str, subtype: str) -> None:
    path = tmp_path / "x.wav"
    x = 4 * _sine() / np.abs(_sine()).max()
    sf.write(path, x, RATE, subtype, format=container)
    audio, decoder = _decoded(path)
    assert np.abs(audio - x / 4).max() < 1e-6
    assert decoder.scale == pytest.approx(4)
    assert decoder.clipped == 0
    assert decoder.source_peak == pytest.approx(1)
    assert _words(decoder) == ["peaks at 4.0, 12 dB above full scale; none needed: it is divided by 4"]


@pytest.mark.parametrize(
    ("peak", "divisor", "subtype"),
    [
        (20000.25, 2**15, "FLOAT"),
        (32768, 2**15, "FLOAT"),
        (32769, 2**23, "DOUBLE"),
        (5e6, 2**23, "FLOAT"),
        (2e9, 2**31, "DOUBLE"),
        (1000, 2**15, "FLOAT"),
    ],
)
def test_integers_written_as_floats_get_the_full_scale_of_integers(
    tmp_path: Path, peak: float, divisor: int, subtype: str
) -> None:
    path = tmp_path / "x.wav"
    x = _sine() * peak
    x[0] = -peak
    sf.write(path, x, RATE, subtype)
    audio, decoder = _decoded(path)
    assert np.abs(audio - x / divisor).max() < 1e-6
    assert decoder.scale == divisor
    bits = {2**15: 16, 2**23: 24, 2**31: 32}[divisor]
    (words,) = _words(decoder)
    assert words.startswith(f"peaks at {peak:.0f}: its floats are {bits}-bit integers; none needed")


def test_quiet_integers_written_as_floats_come_back_bit_for_bit(tmp_path: Path) -> None:
    whole = np.rint(90 * _sine()).astype(np.int16)
    sf.write(tmp_path / "x.wav", whole.astype(np.float32), RATE, "FLOAT")
    assert np.array_equal(to_int16(load(tmp_path / "x.wav", RATE)), whole)


def test_pulses_are_no_integers(tmp_path: Path) -> None:
    x = np.zeros(RATE)
    x[::100] = 2
    sf.write(tmp_path / "x.wav", x, RATE, "FLOAT")
    audio, decoder = _decoded(tmp_path / "x.wav")
    assert np.array_equal(audio, (x / 2).astype(np.float32))
    assert _words(decoder) == ["peaks at 2.0, 6 dB above full scale; none needed: it is divided by 2"]


@pytest.mark.parametrize("subtype", ["FLOAT", "PCM_16", "PCM_24"])
def test_up_to_full_scale_nothing_is_divided(tmp_path: Path, subtype: str) -> None:
    sf.write(tmp_path / "x.wav", _sine(), RATE, subtype)
    audio, decoder = _decoded(tmp_path / "x.wav")
    assert np.abs(audio - _sine()).max() < 1e-4
    assert decoder.scale == 1
    assert decoder.problems == []


def test_what_is_clipped_beyond_full_scale_is_still_called_clipped(tmp_path: Path) -> None:
    sf.write(tmp_path / "x.wav", np.clip(8 * _sine(), -4, 4), RATE, "FLOAT")
    _, decoder = _decoded(tmp_path / "x.wav")
    assert decoder.clipped > RATE / 4


def test_all_channels_count_and_resampling_keeps_the_shape(tmp_path: Path) -> None:
    x = np.stack([_sine(rate=44100), -5 * _sine(rate=44100)], axis=1)
    sf.write(tmp_path / "x.wav", x, 44100, "FLOAT")
    audio, decoder = _decoded(tmp_path / "x.wav")
    inner = slice(1000, 15000)
    assert decoder.scale == pytest.approx(np.abs(x).max())
    assert np.abs(audio - -2 * _sine() / decoder.scale)[inner].max() < 1e-4


def test_not_a_number_is_named_and_no_peak(tmp_path: Path) -> None:
    x = 4 * _sine()
    x[5000] = np.nan
    sf.write(tmp_path / "x.wav", x, RATE, "FLOAT")
    with pytest.raises(ValueError, match=r"NaN or infinite samples \(first at 0\.312 s\)"):
        list(Decoder(tmp_path / "x.wav", RATE))


def test_one_file_beyond_full_scale_changes_nothing_of_the_others(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    sf.write(audio / "a.wav", 0.999 * _sine(), RATE)
    sf.write(audio / "b.wav", 0.3 * _sine(frequency=200), RATE)
    before = prepare(audio, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache"), progress=False)
    loud = 4 * _sine(frequency=500) + 1
    sf.write(audio / "loud.wav", loud, RATE, "FLOAT")
    after = prepare(audio, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache"), progress=False)
    files = {file.path: file for file in after.files}
    assert after.gain == pytest.approx(before.gain, rel=1e-3)
    for file in before.files:
        assert np.array_equal(
            before.read(file, 0, file.num_samples), after.read(files[file.path], 0, file.num_samples)
        )
    file = files["loud.wav"]
    assert file.scale == pytest.approx(loud.max())
    assert file.dc == pytest.approx(1 / loud.max(), abs=1e-4)
    stored = after.read(file, 0, RATE) / 32768
    assert np.abs(stored - 4 * _sine(frequency=500) / loud.max()).max() < 1e-4
    assert file.clipped == 0
    assert files["a.wav"].scale == 1
    entries = [json.loads(p.read_text()) for p in after.shard_dir.glob("*.json")]
    assert {f["scale"] for entry in entries for f in entry["files"]} == {1.0, file.scale}
    said = [problem for problem in remarks(after, 512) if problem.path == "loud.wav"]
    assert [problem.problem.split(",")[0] for problem in said] == [
        "peaks at 5.0",
        "has a DC offset of 20 % of full scale",
    ]
    assert (
        inspect(audio, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "other")).files[-1].scale
        == file.scale
    )


def test_what_no_program_means_is_damage(tmp_path: Path) -> None:
    """A flipped bit in an exponent; divided by such a peak, all else would be silence."""
    samples = np.sin(np.arange(RATE) * 0.05).astype(np.float32)
    samples[500] = 3e30
    sf.write(tmp_path / "a.wav", samples, RATE, "FLOAT")
    with pytest.raises(AudioError, match=r"holds samples of up to 3e\+30 times full scale; export it again"):
        list(Decoder(tmp_path / "a.wav", RATE))
