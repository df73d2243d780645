"""What a listener would notice in a recording, as numbers that hidden units can be compared with.

Every feature looks back: its window ends where a step of a tier begins, so that no unit is compared
with sound that it has not heard.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

FLOOR_DB = -80.0
_LOUDNESS_SECONDS = 0.025
_ONSET_SECONDS = 0.02
_PITCH_SECONDS = 0.05
_HOP_SECONDS = 0.005
LOWEST_PITCH, HIGHEST_PITCH = 60.0, 1000.0
"""Hz."""
_VOICED = 0.8
"""Periodicity from which a sound has a pitch; 1 is a wave that repeats exactly."""
_VOICED_DB = -50.0
_FIRST_PEAK = 0.9
_BLOCK = 512


def loudness(audio: NDArray[np.float64], sample_rate: int, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Level of the 25 ms before each time, in dB relative to full scale, at least -80.

    Args:
        audio: ``[T]``, full scale 1.
        sample_rate: Hz.
        times: samples, ``[n]``, each from 0 to T.

    Returns:
        ``[n]``.
    """
    window = max(1, round(_LOUDNESS_SECONDS * sample_rate))
    energy = np.concatenate([[0.0], np.cumsum(audio**2)])
    power = (energy[times] - energy[np.maximum(times - window, 0)]) / window
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DB / 10)))


def onset(audio: NDArray[np.float64], sample_rate: int, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """How much sound has newly come in: spectral flux over 10 ms, ``[n]``; arguments as for `loudness`.

    Rises of ``log(1 + 1000·|X|)``, averaged over the bins of a 20 ms window (Bello et al., 2005, 'A Tutorial
    on Onset Detection in Music Signals', section II-C; falls do not count).
    """
    window, hop = (max(1, round(length * sample_rate)) for length in (_ONSET_SECONDS, _HOP_SECONDS))
    shape = np.hanning(window + 2)[1:-1]
    frames = _ending_every(audio, window, hop)  # [F, window]
    levels = np.log1p(1000 * np.abs(np.fft.rfft(frames * shape, axis=1)) / shape.sum())
    rises = np.maximum(levels[2:] - levels[:-2], 0).mean(axis=1)
    return np.concatenate([np.zeros(min(2, len(frames))), rises])[times // hop]


def pitch(audio: NDArray[np.float64], sample_rate: int, times: NDArray[np.int64]) -> NDArray[np.float64]:
    """Pitch of the 50 ms before each time, in octaves above 1 Hz, NaN where there is none.

    Autocorrelation, normalised so that a wave that repeats exactly has 1, and of its peaks the first that
    reaches 90 % of the highest (McLeod & Wyvill, 2005, 'A Smarter Way to Find Pitch'). Below 0.8, or below
    -50 dBFS, there is no pitch. Of several notes it is that of their common period, if they have one.

    Args:
        audio: ``[T]``, full scale 1.
        sample_rate: Hz.
        times: samples, ``[n]``, each from 0 to T.

    Returns:
        ``[n]``: log2 of the frequency in Hz.
    """
    window, hop = (max(1, round(length * sample_rate)) for length in (_PITCH_SECONDS, _HOP_SECONDS))
    frames = _ending_every(audio, window, hop)
    found = np.concatenate(
        [
            _pitch_of(np.array(frames[first : first + _BLOCK]), sample_rate)
            for first in range(0, len(frames), _BLOCK)
        ]
    )
    return found[times // hop]


def _ending_every(audio: NDArray[np.float64], window: int, hop: int) -> NDArray[np.float64]:
    """Windows that end at 0, hop, 2·hop, … up to the end, with silence before: a view ``[F, window]``."""
    return sliding_window_view(np.concatenate([np.zeros(window), audio]), window)[::hop]


def _pitch_of(frames: NDArray[np.float64], sample_rate: int) -> NDArray[np.float64]:
    """Pitch of each frame ``[F, window]`` as `pitch` gives it, ``[F]``."""
    frames -= frames.mean(axis=1, keepdims=True)
    window = frames.shape[1]
    longest = min(int(sample_rate / LOWEST_PITCH) + 1, window - 2)
    spectrum = np.fft.rfft(frames, 2 * window, axis=1)
    products = np.fft.irfft(np.abs(spectrum) ** 2, axis=1)[:, : longest + 2]  # [F, lags]
    energy = np.concatenate([np.zeros((len(frames), 1)), np.cumsum(frames**2, axis=1)], axis=1)
    lags = np.arange(longest + 2)
    both = energy[:, window - lags] + energy[:, -1:] - energy[:, lags]
    likeness = 2 * products / np.maximum(both, 1e-12)  # [F, lags], 1 at lag 0

    inner = likeness[:, 1:-1]
    is_peak = (inner > likeness[:, :-2]) & (inner >= likeness[:, 2:])
    is_peak &= np.maximum.accumulate(inner < 0, axis=1)  # not on the slope that begins at lag 0
    is_peak &= lags[1:-1] >= sample_rate / HIGHEST_PITCH
    peaks = np.where(is_peak, inner, -1.0)
    best = peaks.max(axis=1)
    chosen = 1 + (peaks >= _FIRST_PEAK * best[:, None]).argmax(axis=1)
    rows = np.arange(len(frames))
    before, at, after = (likeness[rows, chosen + step] for step in (-1, 0, 1))
    bend = before - 2 * at + after  # a parabola through three points
    lag = chosen + np.where(bend < 0, (before - after) / np.minimum(2 * bend, -1e-12), 0.0)
    is_loud = energy[:, -1] / window > 10 ** (_VOICED_DB / 10)
    return np.where((best >= _VOICED) & is_loud, np.log2(sample_rate / np.maximum(lag, 1)), np.nan)
