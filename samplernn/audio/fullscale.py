"""Floating-point files whose samples go beyond full scale: what to divide them by.

Such a file is not clipped, so cutting it off at full scale would be the first damage done to it. It is
divided by its peak instead, or, if a program wrote integers as floats, by the full scale of these integers.
"""

from __future__ import annotations

import math

import numpy as np
import soundfile as sf

SUBTYPES = ("FLOAT", "DOUBLE")
"""soundfile's names of samples that may go beyond full scale without loss."""
_INTEGER_BITS = (16, 24, 32)
_MIXED_AT_MOST = 256.0
"""A peak above this (48 dB) is no mix that is too hot, but integers."""
LARGEST = 2.0**31
"""A finite peak above this is neither: the file is damaged."""
_PULSES_AT_MOST = 8.0
"""A peak above this is one of integers if all samples are whole numbers, and no train of pulses."""
_BLOCK_VALUES = 2**18


class Peak:
    """The largest magnitude of samples, and whether all of them are whole numbers."""

    def __init__(self) -> None:
        self.value = 0.0
        self.is_whole = True

    def read(self, file: sf.SoundFile) -> None:
        """Takes in the rest of a file, as far as it can be read."""
        block = np.empty((max(1, _BLOCK_VALUES // file.channels), file.channels), np.float32)
        while True:
            try:
                samples = file.read(out=block)
            except sf.SoundFileError:  # whoever decodes the file will say so
                return
            if not len(samples):
                return
            self.value = max(self.value, float(samples.max()), -float(samples.min()))
            self.is_whole = self.is_whole and bool((samples == np.rint(samples)).all())

    @property
    def _bits(self) -> int:
        """Of the integers that the samples are; 0 if they are floats."""
        if self.value <= (_PULSES_AT_MOST if self.is_whole else _MIXED_AT_MOST):
            return 0
        return next((bits for bits in _INTEGER_BITS if self.value <= 2.0 ** (bits - 1)), 0)

    @property
    def scale(self) -> float:
        """What to divide the samples by, at least 1."""
        if self.value <= 1 or not math.isfinite(self.value):
            return 1.0
        return 2.0 ** (self._bits - 1) if self._bits else self.value

    def __str__(self) -> str:
        if self._bits:
            return f"peaks at {self.value:.0f}: its floats are {self._bits}-bit integers"
        digits = 1 if self.value > 1.05 else 4
        return f"peaks at {self.value:.{digits}f}, {20 * math.log10(self.value):.2g} dB above full scale"
