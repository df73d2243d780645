"""How loud a recording is and how its sound is spread over the frequencies: figures to compare."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

NUM_BANDS = 40
FLOOR_DB = -90.0
"""Nothing is quieter: about what 16 bits can hold in a band."""
_LOWEST_HZ = 30.0
_WINDOW_SECONDS = 0.064
_WINDOWS_AT_ONCE = 1024


def level_db(audio: NDArray[np.int16]) -> float:
    """RMS in dB relative to full scale (a square wave at full scale has 0), at least -90.

    Args:
        audio: int16 ``[T]``; of no samples the level is -90.
    """
    energy = float(np.mean(np.square(audio, dtype=np.float64))) / 2**30 if len(audio) else 0.0
    return max(FLOOR_DB, 10 * math.log10(max(energy, 1e-12)))


def mel_edges(sample_rate: int) -> NDArray[np.float64]:
    """Hz between which the bands of `long_term_spectrum` lie, ``[41]``: equally wide in mel, from 30 Hz to
    half the sample rate.

    Args:
        sample_rate: Hz.
    """
    lowest, highest = (2595 * np.log10(1 + hertz / 700) for hertz in (_LOWEST_HZ, sample_rate / 2))
    return 700 * (10 ** (np.linspace(lowest, highest, NUM_BANDS + 1) / 2595) - 1)


def long_term_spectrum(audio: NDArray[np.int16], sample_rate: int) -> NDArray[np.float64]:
    """Long-term average spectrum (LTAS): the level of a whole recording in each mel band.

    The mean power of Hann windows of about 64 ms that overlap by half, integrated over each band of
    `mel_edges`. All bands together have the power of the recording, but for what lies below 30 Hz.

    Args:
        audio: int16 ``[T]``, one sample at least.
        sample_rate: Hz.

    Returns:
        dB relative to full scale, at least -90, ``[40]``, lowest band first.

    Raises:
        ValueError: no samples.
    """
    if not len(audio):
        raise ValueError("a spectrum needs at least one sample, got none")
    size = min(2 ** round(math.log2(sample_rate * _WINDOW_SECONDS)), len(audio))
    window = np.hanning(size + 2)[1:-1]
    x = (audio.astype(np.float64) - audio.mean(dtype=np.float64)) / 32768
    windows = sliding_window_view(x, size)[:: max(1, size // 2)]  # [windows, size]
    power = np.zeros(size // 2 + 1)
    for start in range(0, len(windows), _WINDOWS_AT_ONCE):
        power += np.square(np.abs(np.fft.rfft(windows[start : start + _WINDOWS_AT_ONCE] * window))).sum(0)
    power *= 2 / (len(windows) * size * np.square(window).sum())
    # A bin's power is spread evenly over its width, so a band narrower than a bin has its part of it, too.
    width = sample_rate / size
    bounds = (np.arange(len(power) + 1) - 0.5) * width  # [bins + 1], Hz
    below = np.interp(mel_edges(sample_rate), bounds, np.concatenate([[0.0], np.cumsum(power)]))
    return np.maximum(FLOOR_DB, 10 * np.log10(np.maximum(np.diff(below), 1e-12)))


def spectral_distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """How much two recordings differ in level and timbre: the mean over bands of ``|a - b|``, in dB.

    Args:
        a: from `long_term_spectrum`.
        b: likewise, at the same sample rate.
    """
    return float(np.mean(np.abs(a - b)))
