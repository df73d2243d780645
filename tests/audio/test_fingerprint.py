"""Spectral peaks: of a known sound where they must be, the same in whatever pieces it comes, and in copies."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from samplernn.audio.corpus import inspect, prepare
from samplernn.audio.fingerprint import (
    FRAME,
    HOP,
    STEPS,
    Fingerprint,
    Peaks,
    decode,
    encode,
    steps_per_second,
)
from samplernn.audio.io import load, to_int16
from samplernn.config import DataConfig
from tests.conftest import CLIPS

RATE = 16000


def peaks_of(x: np.ndarray, rate: int = RATE, piece: int = RATE) -> Peaks:
    """Of float or int16 samples `[n]`, added piece by piece."""
    samples = x if x.dtype == np.int16 else to_int16(x)
    fingerprint = Fingerprint(rate)
    for start in range(0, len(samples), piece):
        fingerprint.add(samples[start : start + piece])
    fingerprint.finish()
    return decode(fingerprint.encoded)


def found_again(peaks: Peaks, other: Peaks, shift: float) -> float:
    """Share of the peaks that the other has too, `shift` steps later, within 32 ms and a bin."""
    times, bins = peaks.times[:, None] + shift, peaks.bins[:, None]
    is_near = (np.abs(times - other.times) <= STEPS / 2) & (np.abs(bins - other.bins) <= STEPS)
    return float(is_near.any(1).mean())


def piano() -> np.ndarray:
    return load(CLIPS / "piano" / "satie_gymnopedie1_1.flac", RATE)


@pytest.mark.parametrize("rate", [4000, 8000, 11025, 16000, 22050, 44100, 48000])
def test_tone_bursts_are_peaks_at_their_times_and_frequencies(rate: int) -> None:
    bursts = [(1.0, 300.0), (2.5, 1234.5), (2.5, 700.0), (4.0, 440.0)]
    time = np.arange(6 * rate) / rate
    x = sum(
        0.2 * np.exp(-(((time - at) / 0.05) ** 2)) * np.sin(2 * np.pi * frequency * time)
        for at, frequency in bursts
    )
    peaks = peaks_of(np.asarray(x), rate)
    hop_seconds = STEPS / steps_per_second(rate)
    bin_hz = 1 / (hop_seconds * FRAME / HOP)
    seconds = peaks.times / steps_per_second(rate) + hop_seconds * FRAME / HOP / 2  # a frame's middle
    frequencies = peaks.bins / STEPS * bin_hz
    for at, frequency in bursts:
        is_it = (np.abs(seconds - at) < 0.02) & (np.abs(frequencies - frequency) < 2)
        assert is_it.sum() == 1
    assert len(peaks.times) == len(bursts)


@pytest.mark.parametrize("piece", [1000, 16000, 10**7])
def test_the_pieces_do_not_matter(piece: int) -> None:
    x = np.concatenate([piano(), piano()[::-1]])  # more than one batch
    expected, peaks = peaks_of(x, piece=4321), peaks_of(x, piece=piece)
    assert len(expected.times) > 200
    np.testing.assert_array_equal(peaks.times, expected.times)
    np.testing.assert_array_equal(peaks.bins, expected.bins)
    assert np.all(np.diff(expected.times) >= 0)


def test_a_shift_by_a_frame_shifts_the_peaks_and_nothing_else() -> None:
    """Across batches, too: nothing is missed or found twice where they meet."""
    x = to_int16(np.concatenate([piano(), piano()[::-1]]))
    expected, hop = peaks_of(x), HOP * RATE // 4000
    peaks = peaks_of(np.concatenate([np.zeros(3 * hop, np.int16), x]))
    inside = expected.times > 10 * STEPS
    pairs = set(zip((peaks.times - 3 * STEPS).tolist(), peaks.bins.tolist(), strict=True))
    wanted = zip(expected.times[inside].tolist(), expected.bins[inside].tolist(), strict=True)
    assert sum(pair not in pairs for pair in wanted) <= 2  # rounding, at the half of an eighth


def codec(x: np.ndarray, rate: int, **options: object) -> np.ndarray:
    """Encoded and decoded again, in pieces: a long write to Vorbis can crash libsndfile."""
    stream = io.BytesIO()
    with sf.SoundFile(stream, "w", rate, 1, **options) as file:
        for start in range(0, len(x), rate):
            file.write(x[start : start + rate])
    stream.seek(0)
    return sf.read(stream, dtype="float32")[0]


@pytest.mark.parametrize(
    "change",
    ["cut", "quieter", "mp3", "ogg", "another rate"],
)
def test_most_peaks_are_found_in_a_copy_and_few_elsewhere(change: str) -> None:
    x, offset = piano(), 10_007
    copy = x.copy()
    if change == "quieter":
        copy *= 0.2
    elif change == "mp3":  # 56 kbit/s
        copy = codec(x, RATE, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.7)
    elif change == "ogg":
        copy = codec(x, RATE, format="OGG", subtype="VORBIS", compression_level=0.9)
    elif change == "another rate":
        copy = soxr.resample(soxr.resample(x, RATE, 44100), 44100, RATE)
    whole, cut = peaks_of(x), peaks_of(copy[offset:])
    shift = -offset / RATE * steps_per_second(RATE)
    is_left = whole.times + shift > STEPS
    left = Peaks(whole.times[is_left], whole.bins[is_left])
    delays = range(-25, 26) if change in ("mp3", "ogg") else [0]  # of the codec, up to 100 ms
    assert max(found_again(left, cut, shift + delay) for delay in delays) > 0.65
    elsewhere = peaks_of(load(CLIPS / "piano" / "satie_gymnopedie1_3.flac", RATE))
    assert found_again(left, elsewhere, shift) < 0.2


@pytest.mark.parametrize("length", [0, 1, 100, 2047, 2048, 2052, 5000])
def test_silence_and_short_files_are_no_trouble(length: int) -> None:
    fingerprint = Fingerprint(RATE)
    fingerprint.add(np.zeros(length, np.int16))
    fingerprint.finish()
    assert fingerprint.encoded == ""
    assert len(decode("").times) == 0


def test_rounding_to_16_bits_makes_no_peaks() -> None:
    noise = np.random.default_rng(0).integers(-1, 2, 30 * RATE)
    assert len(peaks_of(noise.astype(np.int16)).times) == 0


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 300_000), st.integers(1, 2055)), max_size=30))
def test_encoded_peaks_survive(steps: list[tuple[int, int]]) -> None:
    times = np.cumsum(np.array([time for time, _ in steps], np.int64))
    bins = np.array([bin_ for _, bin_ in steps], np.int64)
    text = encode(Peaks(times, bins))
    assert text.isascii()
    back = decode(text)
    np.testing.assert_array_equal(back.times, times)
    np.testing.assert_array_equal(back.bins, bins)


@pytest.mark.parametrize("text", ["AAA", "AAAA", "????"])
def test_text_that_holds_no_peaks_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        decode(text)


def test_the_corpus_keeps_the_peaks_of_the_samples_as_stored(tmp_path: Path) -> None:
    """Of what is decoded now and found in the cache later, of a file with an offset, and where nothing is stored."""
    folder, cache = tmp_path / "audio", tmp_path / "cache"
    folder.mkdir()
    x = piano()[: 5 * RATE]
    sf.write(folder / "plain.wav", x, RATE)
    sf.write(folder / "with offset.wav", x * 0.5 + 0.2, RATE)
    looked_at = inspect(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    made = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert (
        looked_at.files == made.files == prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache)).files
    )
    for file in made.files:
        expected, found = peaks_of(made.read(file, 0, file.num_samples)), decode(file.fingerprint)
        assert len(found.times) > 30
        np.testing.assert_array_equal(found.times, expected.times)
        np.testing.assert_array_equal(found.bins, expected.bins)
