"""The spectral peaks of a recording: little data by which its audio is found again in another file.

A peak is a place in the spectrogram that is louder than all around it. Peaks survive codecs, resampling, a
gain and a cut (Wang, 2003, "An industrial-strength audio search algorithm"), since noise that a codec adds
stays below the sound that hides it. `takes` compares them.

Where a frame begins in the sound is another place in each copy, so time and frequency of a peak are taken
from a parabola through its neighbours, to an eighth of a frame and of a bin.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BAND_RATE = 4000
"""Hz, about: samples are decimated by a whole number to the rate next to this one."""
FRAME = 512
"""Decimated samples per frame (128 ms); bins are 7.8 Hz apart."""
HOP = 128
"""Decimated samples from frame to frame (32 ms)."""
STEPS = 8
"""Times and frequencies of peaks are in this part of a frame and of a bin."""
_BATCH = 512
"""Frames that are processed at a time."""
_AROUND_FRAMES = 8
_AROUND_BINS = 10
"""A peak is the largest value within so many frames and bins on each side."""
_LOWEST_BIN = 4
"""Below (31 Hz) there is rumble, and what remains of an offset."""
_RANGE = 10**-5.0
"""Peaks of less power than this share of the file's largest (-50 dB) are noise."""
_FLOOR = 0.1
"""Power of a peak that the rounding of 16 bits may make by itself."""
_MOST_STEPS = 2**16 - 1


class Peaks(NamedTuple):
    """Peaks in order of time."""

    times: NDArray[np.int64]
    """In eighths of a frame, ``[n]``; see `steps_per_second`."""
    bins: NDArray[np.int64]
    """Frequencies in eighths of a bin, ``[n]``, never 0."""


def steps_per_second(sample_rate: int) -> float:
    """Steps of `Peaks.times` in a second of a corpus at `sample_rate` (Hz)."""
    return STEPS * sample_rate / (_factor(sample_rate) * HOP)


def _factor(sample_rate: int) -> int:
    """Samples that become one."""
    return max(1, round(sample_rate / BAND_RATE))


class Fingerprint:
    """The peaks of a stream of int16 samples.

    The result depends on the samples alone, not on the pieces in which they came.

    Args:
        sample_rate: Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._factor = _factor(sample_rate)
        self._filter = _triangle(self._factor)
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._frame = 0
        """Of the first pending sample."""
        self._context = 0
        """Pending frames that were searched before."""
        self._found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, samples: np.ndarray) -> None:
        """Takes samples, int16 `[n]`."""
        self._pending.append(samples)
        self._num_pending += len(samples)
        while self._num_pending >= self._span(_BATCH + 2 * _AROUND_FRAMES):
            self._search(_BATCH + 2 * _AROUND_FRAMES, _BATCH + _AROUND_FRAMES)

    def finish(self) -> None:
        """Searches the frames that are left."""
        frames = (self._num_pending // self._factor - FRAME - 1) // HOP + 1
        if frames > self._context:
            self._search(frames, frames)

    @property
    def encoded(self) -> str:
        """The peaks as text, for `decode`."""
        if not self._found:
            return ""
        times, bins, powers = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        kept = powers > _RANGE * powers.max(initial=0.0)
        order = np.lexsort((bins[kept], times[kept]))
        return encode(Peaks(times[kept][order], bins[kept][order]))

    def _span(self, frames: int) -> int:
        """Samples that so many frames take."""
        return self._factor * (FRAME + 1 + (frames - 1) * HOP)

    def _search(self, frames: int, stop: int) -> None:
        """Finds the peaks of the pending frames before `stop` that were not searched before."""
        samples = np.concatenate(self._pending)
        power = _spectrogram(self._decimate(samples[: self._span(frames)]))
        times, bins, powers = _peaks(power, self._context, stop)
        self._found.append((times + STEPS * self._frame, bins, powers))
        used = max(0, stop - _AROUND_FRAMES)
        self._context, self._frame = stop - used, self._frame + used
        self._pending = [samples[used * HOP * self._factor :]]
        self._num_pending = len(self._pending[0])

    def _decimate(self, samples: np.ndarray) -> np.ndarray:
        """Low-passed samples, every so many: int16 `[n]` -> float32 `[n // factor - 1]`."""
        rows = samples[: len(samples) // self._factor * self._factor].reshape(-1, self._factor)
        halves = rows.astype(np.float32) @ self._filter
        return halves[:-1, 0] + halves[1:, 1]


def _triangle(factor: int) -> np.ndarray:
    """A triangle twice as long as the factor: the two halves as columns, float32 `[factor, 2]`.

    What it lets through from above the band is folded into it, in all copies alike.
    """
    rising = np.arange(1, factor + 1) / factor**2
    return np.stack([rising, rising[::-1] - 1 / factor**2], 1).astype(np.float32)


_WINDOW = np.hanning(FRAME + 1)[:-1].astype(np.float32)


def _spectrogram(x: np.ndarray) -> np.ndarray:
    """Power of all whole frames of float32 x `[n]`: float32 `[frames, FRAME // 2 + 1]`."""
    frames = np.lib.stride_tricks.sliding_window_view(x, FRAME)[::HOP]
    spectrum = np.fft.rfft(frames * _WINDOW, norm="forward")
    return (spectrum.real**2 + spectrum.imag**2).astype(np.float32, copy=False)


def _peaks(power: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Times and bins in steps, and powers, of the peaks in the frames from `start` to `stop`."""
    # The upper half of a float32 keeps the order, to 0.03 dB, and has half the bytes to compare.
    coarse = (power.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    around = np.pad(coarse, ((_AROUND_FRAMES, _AROUND_FRAMES), (_AROUND_BINS, _AROUND_BINS)))
    around = _running_max(_running_max(around, 2 * _AROUND_FRAMES + 1, 0), 2 * _AROUND_BINS + 1, 1)
    is_peak = (coarse == around) & (power > _FLOOR)
    is_peak[:, :_LOWEST_BIN] = is_peak[:, -1] = is_peak[0] = is_peak[-1] = False  # no neighbours
    frames, bins = np.divmod(np.flatnonzero(is_peak[start:stop]), is_peak.shape[1])
    frames += start
    here = power[frames, bins]
    earlier, later = power[frames - 1, bins], power[frames + 1, bins]
    lower, higher = power[frames, bins - 1], power[frames, bins + 1]
    is_top = (here >= np.maximum(earlier, later)) & (here >= np.maximum(lower, higher))
    time = STEPS * (frames + _vertex(earlier, here, later))
    bin_ = STEPS * (bins + _vertex(lower, here, higher))
    times, bins = np.rint(time[is_top]).astype(np.int64), np.rint(bin_[is_top]).astype(np.int64)
    return times, bins, here[is_top]


def _running_max(x: np.ndarray, width: int, axis: int) -> np.ndarray:
    """Maxima of all runs of `width` values along an axis, which becomes shorter by width - 1."""

    def shifted(by: int) -> np.ndarray:
        first, last = (x[:-by], x[by:]) if axis == 0 else (x[:, :-by], x[:, by:])
        return np.maximum(first, last)

    done = 1
    while done < width:
        step = min(done, width - done)
        x = shifted(step)
        done += step
    return x


def _vertex(before: np.ndarray, here: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where the parabola through the logarithms of three values at -1, 0, 1 has its maximum, -0.5 to 0.5."""
    before, here, after = (np.log(value + _FLOOR / 100) for value in (before, here, after))
    bend = np.maximum(2 * here - before - after, 1e-6)
    return np.clip((after - before) / (2 * bend), -0.5, 0.5)


def encode(peaks: Peaks) -> str:
    """Peaks as text: of each, the steps since the one before and the bin, as 16 bits."""
    times, bins = np.diff(peaks.times, prepend=0), peaks.bins
    gaps = np.flatnonzero(times > _MOST_STEPS)
    if len(gaps):  # a peak in bin 0 is none: it only lets time pass
        fillers = times[gaps] // _MOST_STEPS
        times[gaps] -= fillers * _MOST_STEPS
        times = np.insert(times, np.repeat(gaps, fillers), _MOST_STEPS)
        bins = np.insert(bins, np.repeat(gaps, fillers), 0)
    return base64.b64encode(np.stack([times, bins], 1).astype("<u2").tobytes()).decode("ascii")


def decode(text: str) -> Peaks:
    """Inverse of `encode`. Raises ValueError."""
    pairs = np.frombuffer(base64.b64decode(text, validate=True), "<u2").reshape(-1, 2).astype(np.int64)
    times, bins = np.cumsum(pairs[:, 0]), pairs[:, 1]
    return Peaks(times[bins > 0], bins[bins > 0])
