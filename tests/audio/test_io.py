from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import samplernn
from samplernn.audio import io
from samplernn.audio.io import AudioError, Decoder, decode, from_int16, load, to_int16

CLIPS = Path(next(iter(samplernn.__path__))) / "clips"
RATE = 16000


def tone(frequency: float, seconds: float, sample_rate: int, amplitude: float = 0.5) -> np.ndarray:
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return (amplitude * np.sin(2 * np.pi * frequency * t)).astype(np.float32)


def noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20000, 20000, num_samples).astype(np.int16)


def truncate(path: Path, fraction: float = 0.5) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * fraction)])
    return path


def test_int16_round_trip_is_exact_for_every_value() -> None:
    every = np.arange(-32768, 32768).astype(np.int16)
    assert np.array_equal(to_int16(from_int16(every)), every)


@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(-4, 4, width=32)))
def test_to_int16_rounds_and_clips(x: np.ndarray) -> None:
    expected = [min(max(round(float(v) * 32768), -32768), 32767) for v in x]
    assert to_int16(x).tolist() == expected


LOSSLESS = [
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "FLOAT"),
    ("WAV", "WAV", "PCM_24"),
    ("flac", "FLAC", "PCM_16"),
    ("aiff", "AIFF", "PCM_16"),
    ("caf", "CAF", "PCM_16"),
    ("au", "AU", "PCM_16"),
    ("w64", "W64", "PCM_16"),
    ("rf64", "RF64", "PCM_16"),
]


@pytest.mark.parametrize(("suffix", "container", "subtype"), LOSSLESS)
def test_lossless_formats_come_back_bit_for_bit(
    tmp_path: Path, suffix: str, container: str, subtype: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    samples = noise(40000)
    sf.write(path, from_int16(samples), RATE, subtype, format=container)
    decoder = Decoder(path, RATE)
    assert np.array_equal(to_int16(np.concatenate(list(decoder))), samples)
    assert decoder.problems == []
    assert path.suffix.lower() in io.SUFFIXES


@pytest.mark.parametrize(
    ("suffix", "container", "subtype"),
    [("mp3", "MP3", "MPEG_LAYER_III"), ("ogg", "OGG", "VORBIS"), ("opus", "OGG", "OPUS")],
)
def test_lossy_formats_keep_the_sound(tmp_path: Path, suffix: str, container: str, subtype: str) -> None:
    path = tmp_path / f"x.{suffix}"
    x = tone(440, 2, 48000)
    sf.write(path, x, 48000, subtype, format=container)
    decoder = Decoder(path, 48000)
    y = np.concatenate(list(decoder))
    assert decoder.problems == []
    assert abs(len(y) - len(x)) < 5000
    middle = slice(9600, 86400)
    assert np.sqrt(np.mean(y[middle] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.05)
    assert path.suffix in io.SUFFIXES


@pytest.mark.parametrize("source_rate", [8000, 44100, 48000])
def test_resampling_keeps_length_frequency_and_level(tmp_path: Path, source_rate: int) -> None:
    sf.write(tmp_path / "x.wav", tone(1000, 3, source_rate), source_rate, "FLOAT")
    y = load(tmp_path / "x.wav", RATE)
    assert len(y) == pytest.approx(3 * RATE, abs=1)
    inner = slice(1000, 47000)  # the filter rings at both ends
    assert np.abs(y[inner] - tone(1000, 3, RATE)[: len(y)][inner]).max() < 1e-4  # phase too


def test_resampling_lets_no_alias_through(tmp_path: Path) -> None:
    sf.write(tmp_path / "x.wav", tone(9500, 2, 48000), 48000, "FLOAT")  # above 8 kHz, would fold to 6.5 kHz
    assert np.abs(load(tmp_path / "x.wav", RATE)[1000:-1000]).max() < 1e-4


@pytest.mark.parametrize("source_rate", [16000, 22050])
def test_block_length_does_not_change_the_result(tmp_path: Path, source_rate: int) -> None:
    sf.write(tmp_path / "x.flac", noise(50001), source_rate)
    whole = load(tmp_path / "x.flac", RATE)
    blocks = list(decode(tmp_path / "x.flac", RATE, block_seconds=0.05))
    assert max(map(len, blocks)) < 2000
    assert np.array_equal(np.concatenate(blocks), whole)
    assert whole.dtype == np.float32


def test_channels_are_averaged(tmp_path: Path) -> None:
    left, right = from_int16(noise(5000, 1)), from_int16(noise(5000, 2))
    sf.write(tmp_path / "x.wav", np.stack([left, right], axis=1), RATE, "FLOAT")
    assert np.allclose(load(tmp_path / "x.wav", RATE), (left + right) / 2, atol=1e-7)


def unreadable(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "x.wav"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("this is not audio\n" * 100)
    elif kind == "header only":
        sf.write(path, np.zeros(0), RATE)
    elif kind == "one sample":
        sf.write(path, np.ones(1), 384000)  # less than half a sample at 16 kHz
    elif kind == "folder":
        path.mkdir()
    elif kind in ("nan", "inf"):
        x = np.zeros((30000, 2), np.float32)
        x[20000, 1] = float(kind)
        sf.write(path, x, RATE, "FLOAT")
    elif kind == "unsupported":
        path = tmp_path / "x.M4A"
        path.write_bytes(b"\0\0\0\x20ftypM4A ")
    return path


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("missing", "No such file"),
        ("empty", "0 bytes"),
        ("text", "not readable as audio"),
        ("header only", "no samples"),
        ("one sample", "no samples"),
        ("folder", "not a regular file"),
        ("nan", "NaN or infinite samples (first at 1.250 s)"),
        ("inf", "NaN or infinite samples"),
        ("unsupported", ".m4a files cannot be read"),
    ],
)
def test_unusable_files_are_named_with_problem_and_remedy(tmp_path: Path, kind: str, problem: str) -> None:
    path = unreadable(tmp_path, kind)
    with pytest.raises(AudioError) as caught:
        load(path, RATE)
    error = caught.value
    assert problem in error.problem
    assert str(error) == f"{path}: {error.problem}; {error.remedy}"
    assert len(str(error).splitlines()) == 1
    copy = pickle.loads(pickle.dumps(error))  # it crosses process borders
    assert (copy.path, copy.problem, copy.remedy) == (path, error.problem, error.remedy)


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg", "aiff", "au", "w64", "rf64"])
def test_truncated_files_yield_what_is_there_and_say_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    samples = noise(80000)
    sf.write(path, samples, RATE)
    whole = load(path, RATE)
    decoder = Decoder(truncate(path), RATE)
    part = np.concatenate(list(decoder))
    assert 25000 < len(part) < 45000
    assert len(decoder.problems) == 1
    assert "truncated" in str(decoder.problems[0]) or "damaged" in str(decoder.problems[0])
    if suffix not in ("mp3", "ogg"):
        assert len(part) > 35000  # not a block less than there is
        assert np.array_equal(part, whole[: len(part)])


def test_a_wav_written_to_a_pipe_is_not_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    sf.write(path, noise(5000), RATE)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = struct.pack("<I", 0xFFFFFFFF)  # what ffmpeg writes
    path.write_bytes(content)
    decoder = Decoder(path, RATE)
    assert sum(map(len, decoder)) == 5000
    assert decoder.problems == []


def test_a_flac_of_unknown_length_is_not_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "x.flac"
    sf.write(path, noise(70000), RATE)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # STREAMINFO's 36-bit number of samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    decoder = Decoder(path, RATE)
    assert np.array_equal(to_int16(np.concatenate(list(decoder))), noise(70000))
    assert decoder.problems == []


def test_embedded_clips_decode_without_a_problem() -> None:
    paths = sorted(CLIPS.rglob("*.flac"))
    assert len(paths) > 30
    for path in paths:
        decoder = Decoder(path, RATE)
        assert sum(map(len, decoder)) == sf.info(path).frames
        assert decoder.problems == []
