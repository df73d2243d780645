"""What samples say about a recording while they pass by: its level, its pauses, and clipping."""

from __future__ import annotations

import math

import numpy as np

FULL_SCALE = 32767 / 32768
"""The largest value that 16 bits hold, as a float."""
_CLIPPED_RUN = 3
_STEP_BESIDE = 64 / 32768
_BLOCKS_PER_SECOND = 20
_BINS = 17


class Levels:
    """Energy of a stream of int16 samples, whole and in blocks of 50 ms.

    The result depends on the samples alone, not on the pieces in which they came: blocks are counted
    from the first sample, and sums are exact.

    Args:
        sample_rate: Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        self._block = sample_rate // _BLOCKS_PER_SECOND
        self._rest = np.zeros(0, np.int16)
        self._energy = 0
        self._num_samples = 0
        self._counts = np.zeros(_BINS, np.int64)

    def add(self, samples: np.ndarray) -> None:
        """Counts samples, int16 `[n]`."""
        samples = np.concatenate([self._rest, samples])
        whole = len(samples) // self._block * self._block
        self._counts += self._count(samples[:whole].reshape(-1, self._block))
        self._rest = samples[whole:]

    def finish(self) -> None:
        """Counts what is left of the last block."""
        if len(self._rest):
            self._counts += self._count(self._rest[None])
            self._rest = self._rest[:0]

    @property
    def rms(self) -> float:
        """Of all samples, 0 to 1."""
        return math.sqrt(self._energy / self._num_samples) / 32768 if self._num_samples else 0.0

    @property
    def histogram(self) -> tuple[int, ...]:
        """Samples by the level of their block, `[17]`, in steps of 6.02 dB.

        Entry i counts blocks whose RMS lies between full scale times 2**-i and half of that; 15 takes
        what is quieter still, and 16 digital silence.
        """
        return tuple(self._counts.tolist())

    def _count(self, blocks: np.ndarray) -> np.ndarray:
        """Samples by level `[17]` of blocks `[blocks, n]`, which may be none."""
        energy = np.square(blocks, dtype=np.int32).sum(axis=1, dtype=np.int64)
        self._energy += int(energy.sum())
        self._num_samples += blocks.size
        power = np.maximum(energy, 1) / (blocks.shape[1] * 2**30)  # full scale 1.0
        bins = np.clip(np.floor(-np.log2(power) / 2), 0, _BINS - 2)
        bins[energy == 0] = _BINS - 1
        return np.bincount(bins.astype(np.int64), minlength=_BINS) * blocks.shape[1]


def silent_samples(histogram: tuple[int, ...], gain: float) -> int:
    """Samples in blocks that are silence once the gain has been applied: an RMS below -60 dBFS.

    Args:
        histogram: from `Levels`; its steps make the limit -60 to -66 dBFS.
        gain: factor that brings the corpus's peak to -1 dBFS.
    """
    first = math.ceil(10 + math.log2(gain))
    return sum(histogram[min(max(first, 0), _BINS - 1) :])


def clipped_frames(block: np.ndarray) -> int:
    """Frames in which a channel is stuck at full scale.

    Three or more samples in a row at full scale or beyond count, unless the wave gets there as gently as
    the crest of a low note does: a recording that was merely normalised to full scale is not clipped.
    A run that continues in another block is counted in each for itself.

    Args:
        block: float `[n, channels]`, full scale 1.0.
    """
    clipped = np.zeros(len(block), bool)
    for channel in block.T:
        for x in (channel, -channel):
            if x.max() >= FULL_SCALE:
                clipped |= _stuck(x)
    return int(np.count_nonzero(clipped))


def _stuck(x: np.ndarray) -> np.ndarray:
    """Where x `[n]` stays at or above full scale, bool `[n]`."""
    edges = np.flatnonzero(np.diff(x >= FULL_SCALE, prepend=False, append=False))
    starts, stops = edges[::2], edges[1::2]
    beside = np.minimum(x[np.maximum(starts - 1, 0)], x[np.minimum(stops, len(x) - 1)])
    is_clipped = (stops - starts >= _CLIPPED_RUN) & (beside < FULL_SCALE - _STEP_BESIDE)
    marks = np.zeros(len(x) + 1, np.int64)
    marks[starts[is_clipped]] += 1
    marks[stops[is_clipped]] -= 1
    return np.cumsum(marks[:-1]) > 0
