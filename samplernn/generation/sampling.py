"""What a draw needs: keyed random numbers, temperatures and filters. The draw itself is the head's.

Randomness is a function, not a sequence: the number for (seed, stream, sample, draw) is computed
on its own by Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3" (SC 2011). So a stream does not change with the number of its
neighbours, the block size or the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from samplernn.generation.request import Draws, Sampling
from samplernn.model.heads import LEAST_TEMPERATURE

_LARGEST_FILTER = 2**24
"""More codes than any model has; float32 holds it exactly."""

_MASK = np.uint64(0xFFFFFFFF)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85


def philox(
    counter: Sequence[NDArray[np.uint64]], key: tuple[int, int], rounds: int = 10
) -> tuple[NDArray[np.uint64], ...]:
    """Philox4x32: four 32-bit words of randomness for each counter.

    Args:
        counter: four arrays of 32-bit values (any shapes that broadcast).
        key: two 32-bit values.
        rounds: 10 is the published, statistically tested choice.

    Returns:
        Four arrays of 32-bit values, held in uint64.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & _MASK,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def uniforms(
    seed: int, streams: Sequence[int], start: int | NDArray[np.int64], count: int, draw: int = 0
) -> NDArray[np.float32]:
    """Uniform numbers in [0, 1) with 24 bits for samples start … start + count - 1, ``[B, count]``.

    Args:
        seed: from 0 to 2**64 - 1.
        streams: stream numbers, ``[B]``.
        start: of all streams, or ``[B]``, of each.
        count: per stream.
        draw: of several for one sample.
    """
    first: NDArray[np.uint64] = np.asarray(start, np.uint64).reshape(-1, 1)
    steps: NDArray[np.uint64] = np.arange(count, dtype=np.uint64)
    sample = first + steps
    stream = np.array(streams, dtype=np.uint64)[:, None]
    counter = (sample & _MASK, sample >> np.uint64(32), stream, np.full_like(stream, draw))
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))[0]
    return (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


FILTERS = tuple(option.name for option in fields(Sampling) if option.name not in ("seed", "temperature"))
"""Options that leave out codes, in the order of the columns of `DrawArrays.filters`."""
NO_FILTERS = np.array([getattr(Sampling, name) for name in FILTERS], np.float32)
"""Their defaults, which leave out none."""


class DrawArrays(NamedTuple):
    """How the codes of B streams are drawn in one call of an engine. Engines know no other form of it."""

    seed: int
    streams: tuple[int, ...]
    """Stream numbers, ``[B]``."""
    temperature: NDArray[np.float32]
    """Divides the logits of each draw; 0 takes the most probable code; ``[B, length]``."""
    filters: NDArray[np.float32]
    """`FILTERS` of each stream, ``[B, 2]``: top-k (0: all), top-p (1: all)."""

    @property
    def length(self) -> int:
        """Samples per stream."""
        return self.temperature.shape[1]

    @property
    def is_filtered(self) -> bool:
        """Whether a filter leaves out anything."""
        return bool((self.filters != NO_FILTERS).any())

    def part(self, rows: slice, samples: slice) -> DrawArrays:
        """Of some of the streams and of the samples."""
        temperature = self.temperature[rows, samples]
        return DrawArrays(self.seed, self.streams[rows], temperature, self.filters[rows])

    def uniforms(self, positions: Tensor, draw: int = 0) -> NDArray[np.float32]:
        """Random numbers from each stream's position on, ``[B, length]``; `draw`: of several per sample."""
        return uniforms(self.seed, self.streams, positions.numpy(), self.length, draw)

    def inverse_temperatures(self) -> NDArray[np.float32]:
        """1 / temperature of each draw, float32 ``[B, length]``: 0 stands for greedy."""
        with np.errstate(divide="ignore", over="ignore"):
            inverted = np.clip(
                np.float32(1) / self.temperature, np.float32(1e-25), np.float32(1 / LEAST_TEMPERATURE)
            )
        return np.where(self.temperature == 0, np.float32(0), inverted)


def draw_arrays(
    draws: Draws,
    length: int,
    start: int = 0,
    sample_rate: int = 16000,
    factors: NDArray[np.float32] | None = None,
) -> DrawArrays:
    """Arrays for an engine: what the options of some streams are in a piece of them.

    Args:
        draws: the options.
        length: of the piece, in samples.
        start: of the piece, in samples since the streams' start.
        sample_rate: Hz.
        factors: what each stream's temperature is multiplied by, ``[B]``.
    """
    num, samples = len(draws.streams), np.arange(start, start + length)
    curves = np.stack([curve.at(samples, sample_rate) for curve in draws.curves])
    if factors is not None:
        curves = curves * factors[:, None]
    temperature = np.broadcast_to(curves, (num, length)).copy()
    values = [min(getattr(draws, name), _LARGEST_FILTER) for name in FILTERS]
    return DrawArrays(draws.seed, draws.streams, temperature, np.tile(np.array(values, np.float32), (num, 1)))
