"""Level and long-term average spectrum, against values computed by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from samplernn.audio.io import load, to_int16
from samplernn.audio.spectrum import (
    FLOOR_DB,
    NUM_BANDS,
    level_db,
    long_term_spectrum,
    mel_edges,
    spectral_distance,
)

RATE = 16000


def sine(hertz: float, amplitude: float = 0.5, seconds: float = 2.0, rate: int = RATE) -> NDArray[np.int16]:
    time = np.arange(round(seconds * rate)) / rate
    return np.round(amplitude * 32767 * np.sin(2 * np.pi * hertz * time)).astype(np.int16)


def recordings(folder: Path) -> list[NDArray[np.int16]]:
    return [to_int16(load(file, RATE)) for file in sorted(folder.glob("*.flac"))]


def test_the_level_is_the_rms_in_decibels() -> None:
    assert level_db(sine(440)) == pytest.approx(20 * math.log10(0.5) - 3.01, abs=0.01)
    assert level_db(np.full(100, -32768, np.int16)) == 0
    assert level_db(np.zeros(100, np.int16)) == level_db(np.zeros(0, np.int16)) == FLOOR_DB


@pytest.mark.parametrize("hertz", [100, 440, 1000, 3500])
def test_a_tone_is_in_the_band_that_holds_its_frequency(hertz: float) -> None:
    spectrum = long_term_spectrum(sine(hertz), RATE)
    edges = mel_edges(RATE)
    loudest = int(spectrum.argmax())
    assert edges[max(0, loudest - 1)] < hertz < edges[min(NUM_BANDS, loudest + 2)]
    assert 10 * math.log10((10 ** (spectrum / 10)).sum()) == pytest.approx(-9.03, abs=0.1)
    far = np.abs(np.arange(NUM_BANDS) - loudest) > 4
    assert spectrum[far].max() < spectrum[loudest] - 40


@pytest.mark.parametrize("rate", [1000, 4000, 16000, 48000])
def test_all_bands_together_have_the_power_of_the_recording_at_any_rate(rate: int) -> None:
    noise = (1000 * np.random.default_rng(0).standard_normal(4 * rate)).astype(np.int16)
    spectrum = long_term_spectrum(noise, rate)
    assert spectrum.shape == (NUM_BANDS,)
    inside = 1 - 30 / (rate / 2)
    total = 10 * math.log10((10 ** (spectrum / 10)).sum())
    assert total == pytest.approx(level_db(noise) + 10 * math.log10(inside), abs=0.1)
    density = spectrum - 10 * np.log10(np.diff(mel_edges(rate)))
    assert np.ptp(density[2:]) < 3  # white


def test_nothing_and_little_have_a_spectrum() -> None:
    assert (long_term_spectrum(np.zeros(5000, np.int16), RATE) == FLOOR_DB).all()
    assert (long_term_spectrum(np.full(5000, 900, np.int16), RATE) == FLOOR_DB).all()  # DC is not heard
    assert np.isfinite(long_term_spectrum(sine(440)[:1], RATE)).all()
    assert np.isfinite(long_term_spectrum(sine(440)[:100], RATE)).all()
    with pytest.raises(ValueError, match="at least one sample"):
        long_term_spectrum(np.zeros(0, np.int16), RATE)


def test_a_long_recording_is_the_mean_of_its_parts() -> None:
    """More windows than are transformed at once."""
    noise = (2000 * np.random.default_rng(1).standard_normal(90 * RATE)).astype(np.int16)
    parts = [long_term_spectrum(part, RATE) for part in np.split(noise, 3)]
    mean = 10 * np.log10(np.mean([10 ** (part / 10) for part in parts], axis=0))
    np.testing.assert_allclose(long_term_spectrum(noise, RATE), mean, atol=0.1)


def test_the_distance_tells_voice_from_instruments_and_counts_level(clips: Path) -> None:
    """Of the same voice, 3 s are nearer to 10 s than any of the instruments is."""
    first, *others = recordings(clips / "speech")
    voice = long_term_spectrum(np.concatenate(others)[: 10 * RATE], RATE)
    instruments = [*recordings(clips / "piano"), *recordings(clips / "guitar")]
    nearest = min(spectral_distance(long_term_spectrum(audio, RATE), voice) for audio in instruments)
    assert spectral_distance(voice, voice) == 0
    assert spectral_distance(long_term_spectrum(first[: 3 * RATE], RATE), voice) < 0.65 * nearest
    quieter = long_term_spectrum((np.concatenate(others)[: 10 * RATE] // 2).astype(np.int16), RATE)
    assert spectral_distance(voice, quieter) == pytest.approx(6, abs=0.5)
