"""Features of sound against sounds whose features are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from samplernn.insight import features

RATE = 16000
TIMES = np.arange(0, RATE, 64)
Feature = Callable[[np.ndarray, int, np.ndarray], np.ndarray]


def _tone(hertz: float, amplitude: float = 0.5, partials: tuple[int, ...] = (1,)) -> np.ndarray:
    t = np.arange(RATE) / RATE
    waves = sum(np.sin(2 * np.pi * hertz * partial * t) / partial for partial in partials)
    return amplitude * np.asarray(waves)


@pytest.mark.parametrize("feature", [features.loudness, features.onset, features.pitch])
def test_a_feature_knows_nothing_of_what_comes_later(feature: Feature) -> None:
    audio = np.random.default_rng(0).normal(size=RATE) * 0.1 + _tone(200)
    changed = audio.copy()
    changed[8000:] = 0
    before, after = feature(audio, RATE, TIMES), feature(changed, RATE, TIMES)
    assert len(before) == len(TIMES)
    np.testing.assert_array_equal(before[TIMES <= 8000], after[TIMES <= 8000])
    assert not np.array_equal(before, after, equal_nan=True)


def test_loudness_is_the_level_in_decibels_down_to_a_floor() -> None:
    audio = _tone(400, 0.1)
    audio[8000:] = 0
    level = features.loudness(audio, RATE, TIMES)
    assert level[0] == features.FLOOR_DB
    assert level[100] == pytest.approx(-23.01, abs=0.02)  # -20 dB, and a sine's crest
    assert level[-1] == features.FLOOR_DB


def test_onsets_are_where_sound_begins_and_not_where_it_ends() -> None:
    audio = np.zeros(RATE)
    audio[4000:12000] = _tone(440)[:8000]
    flux = features.onset(audio, RATE, TIMES)
    assert 0 <= TIMES[flux.argmax()] - 4000 < 0.015 * RATE
    assert flux[(TIMES > 5000) & (TIMES < 11900)].max() < 0.1 * flux.max()
    assert flux[TIMES > 12500].max() == 0


@pytest.mark.parametrize("rate", [4000, 16000, 44100])
@pytest.mark.parametrize("partials", [(1,), (1, 2, 3, 4, 5), (2, 3, 4)])
@pytest.mark.parametrize("hertz", [82.4, 110.0, 233.1, 440.0])
def test_pitch_is_that_of_the_period(hertz: float, partials: tuple[int, ...], rate: int) -> None:
    """Also with the fundamental missing."""
    t = np.arange(rate) / rate
    audio = 0.2 * sum(np.sin(2 * np.pi * hertz * partial * t) / partial for partial in partials)
    found = features.pitch(np.asarray(audio), rate, np.arange(rate // 4, rate, rate // 50))
    assert np.abs(found - np.log2(hertz)).max() < (0.02 if rate > 4000 else 0.06)  # octaves


def test_noise_and_silence_have_no_pitch() -> None:
    noise = np.random.default_rng(0).normal(size=RATE) * 0.1
    assert np.isnan(features.pitch(noise, RATE, TIMES)).mean() > 0.99
    assert np.isnan(features.pitch(np.zeros(RATE), RATE, TIMES)).all()
    assert np.isnan(features.pitch(_tone(220, 0.001), RATE, TIMES)).all()
