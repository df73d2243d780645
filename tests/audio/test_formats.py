"""Every container and subtype that libsndfile writes, written by it and read back by us."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio import io
from samplernn.audio.corpus import prepare
from samplernn.audio.io import AudioError, Decoder, load, to_int16
from samplernn.config import DataConfig

PAIRS = [(name, subtype) for name in sf.available_formats() for subtype in sf.available_subtypes(name)]
NOT_WRITTEN = {
    ("AIFF", "DWVW_12"),
    ("MP3", "MPEG_LAYER_I"),
    ("MP3", "MPEG_LAYER_II"),
    ("WAV", "MPEG_LAYER_III"),
}
"""Listed by libsndfile, and refused when one writes it."""
SUFFIX = {"MAT4": "mat", "MAT5": "mat", "MPC2K": "snd", "NIST": "sph", "WAVEX": "wav", "AIFF": "aif"}
RATE = {"WVE": 8000, "XI": 44100, "VOC": 8000}
"""The only rate of a container, in Hz, or one that it can note exactly; elsewhere 16 kHz."""
DECIBELS = {
    "PCM_S8": 33,
    "PCM_U8": 33,
    "DPCM_8": 25,
    "ULAW": 35,
    "ALAW": 35,
    "IMA_ADPCM": 30,
    "MS_ADPCM": 35,
    "GSM610": 20,
    "G721_32": 40,
    "G723_24": 32,
    "G723_40": 45,
    "NMS_ADPCM_16": 30,
    "NMS_ADPCM_24": 40,
    "NMS_ADPCM_32": 45,
    "MPEG_LAYER_III": 30,
    "VORBIS": 30,
    "OPUS": 30,
}
"""Least ratio of signal to error, by subtype; elsewhere 80: 16 bits or more."""
PADDED = {"IMA_ADPCM", "MS_ADPCM", "GSM610", "G721_32", "G723_24", "G723_40", "ULAW", "ALAW"}
"""Subtypes that some containers fill up to a whole block, or by one byte."""


def tone(frequency: float, seconds: float, sample_rate: int, amplitude: float = 0.4) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * sample_rate)) / sample_rate)


def written(folder: Path, container: str, subtype: str, seconds: float = 2.5) -> tuple[Path, np.ndarray]:
    """A tone in a format, and the tone. More than two of our blocks, and not a whole number of them."""
    suffix = SUFFIX.get(container, container.lower())
    path = folder / f"{container}-{subtype}.{suffix}"
    rate = RATE.get(container, 16000)
    x = tone(440, seconds, rate)
    sf.write(path, x, rate, subtype, format=container)
    return path, x


@pytest.mark.parametrize(("container", "subtype"), PAIRS)
def test_every_format_is_read_or_named(tmp_path: Path, container: str, subtype: str) -> None:
    try:
        path, x = written(tmp_path, container, subtype)
    except sf.LibsndfileError:
        assert (container, subtype) in NOT_WRITTEN
        return
    assert path.suffix in io.SUFFIXES | io.UNSUPPORTED
    rate = RATE.get(container, 16000)
    if container == "RAW":
        with pytest.raises(AudioError, match="bare samples without rate or format"):
            load(path, rate)
        return
    decoder = Decoder(path, rate)
    y = np.concatenate(list(decoder))
    assert decoder.problems == []
    assert decoder.source_rate == rate
    assert 0 <= len(y) - len(x) <= (1024 if subtype in PADDED else 0)
    inner = slice(rate // 5, len(x) - rate // 5)
    # The same at every whole period, so an encoder's delay is found by its phase.
    delay = np.angle(np.vdot(np.exp(2j * np.pi * 440 * np.arange(len(x)) / rate)[inner], y[: len(x)][inner]))
    expected = 0.4 * np.cos(2 * np.pi * 440 * np.arange(len(x)) / rate + delay)
    error = (y[: len(x)] - (expected if subtype == "MPEG_LAYER_III" else x))[inner]
    assert 20 * np.log10(0.4 / np.sqrt(2) / np.sqrt(np.mean(error**2))) > DECIBELS.get(subtype, 80)


def test_a_folder_of_all_formats_is_a_corpus(tmp_path: Path) -> None:
    usable = set()
    for container, subtype in PAIRS:
        if (container, subtype) not in NOT_WRITTEN:
            path, _ = written(tmp_path / "", container, subtype, seconds=0.5)
            if container != "RAW":
                usable.add(path.name)
    corpus = prepare(
        tmp_path, DataConfig(sample_rate=16000, cache_dir=tmp_path.with_name("cache")), progress=False
    )
    same = {p.path for p in corpus.problems if "exact duplicate" in p.problem}  # a tone is a tone
    assert {file.path for file in corpus.files} | same == usable
    assert {p.path.split("-")[0] for p in corpus.problems if p.path not in same} == {"RAW"}


@pytest.mark.parametrize(
    ("suffix", "container", "subtype", "rate"),
    [
        ("mp3", "MP3", "MPEG_LAYER_III", 16000),
        ("aif", "AIFF", "DWVW_16", 16000),
        ("ogg", "OGG", "VORBIS", 44100),
        ("opus", "OGG", "OPUS", 48000),
    ],
)
def test_block_length_does_not_change_what_a_codec_gives(
    tmp_path: Path, suffix: str, container: str, subtype: str, rate: int
) -> None:
    path = tmp_path / f"x.{suffix}"
    x = np.cumsum(np.random.default_rng(0).normal(size=3 * rate))
    x -= np.convolve(x, np.ones(801) / 801, "same")
    x *= 0.5 / np.abs(x).max()
    with sf.SoundFile(path, "w", rate, 1, subtype, format=container) as file:
        for start in range(0, len(x), 4096):
            file.write(x[start : start + 4096])
    (whole,) = Decoder(path, rate, block_seconds=60)
    blocks = np.concatenate(list(Decoder(path, rate, block_seconds=700 / rate)))
    assert np.array_equal(blocks, whole)  # a seek between blocks would lose what MP3 keeps in earlier frames
    assert np.sqrt(np.mean((whole - x) ** 2)) < 0.15 * np.sqrt(np.mean(x**2))


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize(
    ("container", "subtype"),
    [
        ("WAV", "FLOAT"),
        ("WAVEX", "PCM_24"),
        ("FLAC", "PCM_16"),
        ("CAF", "ALAC_16"),
        ("AIFF", "PCM_32"),
        ("OGG", "VORBIS"),
    ],
)
def test_up_to_eight_channels_are_averaged(
    tmp_path: Path, container: str, subtype: str, channels: int
) -> None:
    path = tmp_path / f"x.{SUFFIX.get(container, container.lower())}"
    x = np.stack([tone(100 * (i + 1), 0.5, 16000, 0.9) for i in range(channels)], axis=1)
    sf.write(path, x, 16000, subtype, format=container)
    decoder = Decoder(path, 16000)
    y = np.concatenate(list(decoder))
    assert decoder.channels == channels
    assert np.abs(y - x.mean(axis=1)).max() < (0.05 if subtype == "VORBIS" else 5e-5)


RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 37800, 44100, 48000, 88200, 96000, 176400, 192000]


@pytest.mark.parametrize("source_rate", RATES)
def test_rates_from_8_to_192_kilohertz_keep_length_level_and_phase(tmp_path: Path, source_rate: int) -> None:
    sf.write(tmp_path / "x.flac", tone(1000, 1.5, source_rate), source_rate, "PCM_24")
    y = load(tmp_path / "x.flac", 16000)
    assert len(y) == pytest.approx(1.5 * 16000, abs=1)
    inner = slice(1000, 23000)
    assert np.abs(y[inner] - tone(1000, 1.5, 16000)[: len(y)][inner]).max() < 1e-4


@pytest.mark.parametrize("source_rate", [8000, 11025, 22050, 24000, 32000, 44100, 48000])
def test_rates_of_mp3_keep_level(tmp_path: Path, source_rate: int) -> None:
    sf.write(tmp_path / "x.mp3", np.stack([tone(1000, 1, source_rate)] * 2, axis=1), source_rate)
    y = load(tmp_path / "x.mp3", 16000)
    assert len(y) == pytest.approx(16000, abs=1)
    assert np.sqrt(np.mean(y[3000:-3000] ** 2)) == pytest.approx(0.4 / np.sqrt(2), rel=0.06)


def test_mpeg_layer_two_is_read(tmp_path: Path) -> None:
    """libsndfile does not write it: frames of 64 kbit/s, 48 kHz, mono, with no bits for any band."""
    (tmp_path / "x.mp2").write_bytes((b"\xff\xfd\x44\xc0" + bytes(188)) * 50)
    decoder = Decoder(tmp_path / "x.mp2", 48000)
    y = np.concatenate(list(decoder))
    assert len(y) == pytest.approx(50 * 1152, abs=1152)
    assert not y.any()
    assert decoder.problems == []


@pytest.mark.parametrize("suffix", sorted(io.SUFFIXES))
def test_text_under_any_name_is_no_audio(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_text("these are words and no samples\n" * 300)
    with pytest.raises(AudioError, match="not readable as audio"):
        load(path, 16000)


@pytest.mark.parametrize(
    ("name", "channels", "problem"),
    [
        ("opposite", [1, -1], "is silent when its 2 channels are mixed: they cancel each other out"),
        ("eight", [1, 1, 1, 1, -1, -1, -1, -1], "its 8 channels are mixed: they cancel"),
        ("zero", [0, 0], "is silent throughout"),
        ("quiet", [1e-6], "is quieter than the smallest step of 16 bits"),
    ],
)
def test_silence_is_explained(tmp_path: Path, name: str, channels: list[float], problem: str) -> None:
    x = tone(440, 0.5, 16000)[:, None] * np.array(channels)
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / f"{name}.wav", x, 16000, "FLOAT")
    sf.write(tmp_path / "audio" / "fine.wav", tone(440, 0.5, 16000), 16000)
    (found,) = prepare(
        tmp_path / "audio", DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache")
    ).problems
    assert found.path == f"{name}.wav"
    assert problem in found.problem


def test_channels_that_nearly_cancel_are_used(tmp_path: Path) -> None:
    x = tone(440, 0.5, 16000)
    sf.write(tmp_path / "x.wav", np.stack([x, -0.9 * x], axis=1), 16000, "FLOAT")
    corpus = prepare(tmp_path, DataConfig(sample_rate=16000, cache_dir=tmp_path.with_name("cache")))
    assert np.abs(corpus.read(0, 0, 8000) - to_int16(0.05 * x)).max() <= 1


@pytest.mark.parametrize(
    ("container", "kind"),
    [
        *[
            ("WAV", "WAV"),
            ("RF64", "WAV"),
            ("W64", "WAV"),
            ("AIFF", "AIFF"),
            ("FLAC", "FLAC"),
            ("OGG", "Ogg"),
        ],
        *[("MP3", "MP3"), ("AU", "AU"), ("CAF", "CAF"), ("VOC", "VOC"), ("NIST", "SPHERE"), ("SVX", "8SVX")],
    ],
)
def test_audio_under_another_name_is_explained(tmp_path: Path, container: str, kind: str) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    sf.write(audio / "fine.wav", tone(440, 0.5, 16000), 16000)
    names = ["take 1.wav.bak", "take 2", "take 3.wav "]
    for name in names:
        with (audio / name).open("wb") as stream:
            subtype = sf.default_subtype(container) or "PCM_16"
            sf.write(stream, tone(440, 0.5, 16000), 16000, subtype, format=container)
    (audio / "notes.txt").write_text("RIFF is a word, as is fLaC")
    (audio / "picture.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    (audio / "film.avi").write_bytes(b"RIFF\0\0\0\0AVI LIST")
    (audio / "utf-16.txt").write_text("text", "utf-16")
    corpus = prepare(audio, DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache"))
    assert [problem.path for problem in corpus.problems] == names
    assert all(f"holds {kind} audio" in problem.problem for problem in corpus.problems)
    assert all("rename it" in problem.remedy for problem in corpus.problems)
    assert [file.path for file in corpus.files] == ["fine.wav"]
