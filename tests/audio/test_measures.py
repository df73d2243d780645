from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from samplernn.audio.measures import Levels, clipped_frames, silent_samples

RATE = 16000
T = np.arange(RATE) / RATE


def levels(samples: np.ndarray, pieces: list[int] | None = None, sample_rate: int = RATE) -> Levels:
    result = Levels(sample_rate)
    for piece in np.split(samples, sorted(pieces or [])):
        result.add(piece)
    result.finish()
    return result


def tone(amplitude: float, seconds: float) -> np.ndarray:
    """400 Hz: 50 ms are whole periods."""
    t = np.arange(round(seconds * RATE)) / RATE
    return np.rint(32768 * amplitude * np.sin(2 * np.pi * 400 * t)).astype(np.int16)


def test_rms_is_that_of_the_whole() -> None:
    samples = np.concatenate([tone(0.5, 1.01), np.zeros(1000, np.int16)])
    expected = np.sqrt(np.mean((samples / 32768) ** 2))
    assert levels(samples).rms == pytest.approx(expected, rel=1e-12)


def test_blocks_are_sorted_by_level() -> None:
    """A sine's RMS is 3 dB below its amplitude: 0.5, 0.1, 0.002 lie in steps 1, 3 and 9."""
    parts = [tone(0.5, 1), tone(0.1, 0.5), tone(0.002, 0.25), np.zeros(4000, np.int16), np.ones(7, np.int16)]
    histogram = levels(np.concatenate(parts)).histogram
    assert {level: count for level, count in enumerate(histogram) if count} == {
        1: 16000,
        3: 8000,
        9: 4000,
        15: 7,  # the last block is shorter
        16: 4000,
    }


@given(st.lists(st.integers(0, 5000)))
def test_levels_do_not_depend_on_the_pieces(pieces: list[int]) -> None:
    samples = np.random.default_rng(0).normal(0, 3000, 5000).astype(np.int16)
    samples[1000:3000] //= 500
    whole, cut = levels(samples), levels(samples, pieces)
    assert (whole.rms, whole.histogram) == (cut.rms, cut.histogram)


def test_full_scale_fits() -> None:
    assert levels(np.full(RATE, -32768, np.int16)).rms == 1.0


def test_silence_is_judged_after_the_gain() -> None:
    histogram = levels(np.concatenate([tone(0.0007, 1), tone(0.1, 1), np.zeros(RATE, np.int16)])).histogram
    assert silent_samples(histogram, gain=1.0) == 2 * RATE  # -66 dBFS and digital silence
    assert silent_samples(histogram, gain=100.0) == RATE  # now -26 dBFS
    assert silent_samples(histogram, gain=1e5) == RATE  # what is nothing stays nothing


def wave(frequency: float, gain: float) -> np.ndarray:
    return np.clip(gain * np.sin(2 * np.pi * frequency * T), -1, 32767 / 32768).astype(np.float32)[:, None]


@pytest.mark.parametrize("frequency", [20, 50, 100, 440, 3000])
def test_a_normalised_wave_is_not_clipped(frequency: float) -> None:
    assert clipped_frames(wave(frequency, 1.0)) == 0
    pcm = np.rint(32767 * wave(frequency, 1.0)) / 32768
    assert clipped_frames(pcm.astype(np.float32)) == 0


@pytest.mark.parametrize("frequency", [50, 100, 440, 2000])
def test_an_overdriven_wave_is_clipped(frequency: float) -> None:
    """At twice full scale a sine spends two thirds of its time there."""
    assert clipped_frames(wave(frequency, 2.0)) == pytest.approx(2 / 3 * RATE, rel=0.15)


def test_beyond_full_scale_counts_too() -> None:
    assert clipped_frames(3 * wave(440, 1.0)) > RATE / 2


def test_frames_count_once_whatever_the_number_of_clipped_channels() -> None:
    clean, clipped = wave(440, 0.5), wave(440, 2.0)
    mono = clipped_frames(clipped)
    assert clipped_frames(np.hstack([clean, clipped])) == mono
    assert clipped_frames(np.hstack([clipped, clean, clipped])) == mono
    assert clipped_frames(np.hstack([clean, clean])) == 0


def test_single_peaks_are_not_clipping() -> None:
    x = np.zeros((RATE, 1), np.float32)
    x[::100] = 1.0
    x[1::100] = 1.0
    assert clipped_frames(x) == 0
    x[2::100] = 1.0
    assert clipped_frames(x) == 3 * RATE / 100
