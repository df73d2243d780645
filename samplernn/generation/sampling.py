"""Choosing codes: keyed random numbers and the temperature, top-k, top-p family.

Randomness is a function, not a sequence: the number for (seed, stream, sample, draw) is computed
on its own by Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3" (SC 2011). So a stream does not change with the number of its
neighbours, the block size or the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samplernn.config import UserError
from samplernn.generation.envelopes import Envelope

LEAST = 1e-30
"""Temperatures below this are as good as this, or logits would overflow; 0 is greedy."""

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


@dataclass(frozen=True)
class Randomness:
    """The random numbers of some streams of one seed.

    Args:
        seed: any integer from 0 to 2**64 - 1.
        streams: stream numbers, one per row.
    """

    seed: int
    streams: tuple[int, ...]

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**64:
            raise UserError(f"seed must be from 0 to 2**64 - 1, got {self.seed}")

    def uniforms(self, start: int | NDArray[np.int64], count: int, draw: int = 0) -> NDArray[np.float32]:
        """Uniform numbers in [0, 1) with 24 bits for samples start … start + count - 1, ``[B, count]``.

        Args:
            start: of all streams, or ``[B]``, of each.
            count: per stream.
            draw: of several for one sample.
        """
        first: NDArray[np.uint64] = np.asarray(start, np.uint64).reshape(-1, 1)
        steps: NDArray[np.uint64] = np.arange(count, dtype=np.uint64)
        sample = first + steps
        stream = np.array(self.streams, dtype=np.uint64)[:, None]
        counter = (sample & _MASK, sample >> np.uint64(32), stream, np.full_like(stream, draw))
        words = philox(counter, (self.seed & 0xFFFFFFFF, self.seed >> 32))[0]
        return (words >> np.uint64(8)).astype(np.float32) * np.float32(2.0**-24)


@dataclass(frozen=True, eq=False)
class Sampling:
    """How codes are drawn from the logits.

    Args:
        temperature: divides the logits; 0 takes the most probable code. A number, or float32
            ``[B, length]``, one for each draw of a call.
        top_k: keep only the k most probable codes (0: all).
        top_p: keep the smallest set of codes with at least this probability (1: all).

    Raises:
        UserError: a value out of range.
    """

    temperature: float | NDArray[np.float32] = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        temperature = np.asarray(self.temperature)
        valid = (temperature >= 0) & (temperature < np.inf)
        if not valid.all():
            raise UserError(f"temperature must be at least 0, got {temperature[~valid].flat[0]}")
        if self.top_k < 0:
            raise UserError(f"top_k must be at least 1 (or 0 for all codes), got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def temperatures(self, num_streams: int, length: int) -> NDArray[np.float32]:
        """Of each draw of a call, float32 ``[B, length]``; read only."""
        return np.broadcast_to(np.asarray(self.temperature, np.float32), (num_streams, length))

    def inverse_temperatures(self, num_streams: int, length: int) -> NDArray[np.float32]:
        """1 / temperature of each draw, float32 ``[B, length]``: 0 stands for greedy."""
        temperatures = self.temperatures(num_streams, length)
        with np.errstate(divide="ignore", over="ignore"):
            inverted = np.clip(np.float32(1) / temperatures, np.float32(1e-25), np.float32(1 / LEAST))
        return np.where(temperatures == 0, np.float32(0), inverted)

    def draw(self, logits: Tensor, uniform: Tensor, temperature: Tensor) -> Tensor:
        """One code per row, by inverting the cumulative distribution.

        Args:
            logits: ``[B, Q]``.
            uniform: numbers in [0, 1), ``[B, 1]``.
            temperature: of this draw, ``[B, 1]``.

        Returns:
            Codes, int64 ``[B, 1]``.
        """
        is_greedy = temperature == 0
        cumulative = self._probabilities(logits / temperature.clamp(min=LEAST)).cumsum(-1)
        total = cumulative[:, -1:]
        # The first code whose cumulative weight exceeds the target: never one of weight zero, for
        # the target is kept below the total even if the product rounds up.
        target = torch.minimum(uniform * total, torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(cumulative, target, right=True)
        return torch.where(is_greedy, logits.argmax(dim=-1, keepdim=True), drawn)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """What is drawn from, ``[B, Q]``: a row sums to 1, or less with top-k or top-p."""
        probabilities = torch.softmax(logits, dim=-1)
        if 0 < self.top_k < logits.shape[-1]:
            least = probabilities.topk(self.top_k).values[:, -1:]
            probabilities = probabilities.where(probabilities >= least, 0.0)
        if self.top_p < 1:
            descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
            before = descending.cumsum(-1) - descending  # mass of the more probable codes
            kept = descending.where(before < self.top_p * descending.sum(-1, keepdim=True), 0.0)
            probabilities = torch.zeros_like(probabilities).scatter(-1, order, kept)
        return probabilities


@dataclass(frozen=True)
class Draws:
    """How the codes of B streams are drawn, at any time: plain values, and what an engine needs of them.

    Args:
        seed: of all random numbers.
        streams: stream numbers, ``[B]``; stream i of a seed is always the same.
        temperature: one envelope for all streams, or one for each.
        top_k: keep only the k most probable codes (0: all).
        top_p: keep the most probable codes up to this mass (1: all).

    Raises:
        UserError: a value out of range.
    """

    seed: int
    streams: tuple[int, ...]
    temperature: tuple[Envelope, ...]
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        num = len(self.streams)
        if not num:
            raise UserError("num must be at least 1")
        if len(self.temperature) not in (1, num):
            raise UserError(
                f"{len(self.temperature)} of --temperature for {num} streams: one for all, or one for each"
            )
        Randomness(self.seed, self.streams)  # raises on a seed out of range
        Sampling(1.0, self.top_k, self.top_p)

    def temperature_of(self, index: int) -> Envelope:
        """Of the stream at a place in `streams`."""
        return self.temperature[index if len(self.temperature) > 1 else 0]

    def rows(self, which: Sequence[int]) -> Draws:
        """Of the streams at some places in `streams`."""
        return Draws(
            self.seed,
            tuple(self.streams[index] for index in which),
            tuple(self.temperature_of(index) for index in which),
            self.top_k,
            self.top_p,
        )

    def randomness(self) -> Randomness:
        """The random numbers."""
        return Randomness(self.seed, self.streams)

    def sampling(self, start: int, length: int, sample_rate: int, factors: NDArray[np.float32]) -> Sampling:
        """How a piece of the streams is drawn.

        Args:
            start: samples since the streams' start.
            length: of the piece, in samples.
            sample_rate: Hz.
            factors: what each stream's temperature is multiplied by, ``[B]``.
        """
        samples = np.arange(start, start + length)
        curves = np.stack([envelope.at(samples, sample_rate) for envelope in self.temperature])
        return Sampling(curves * factors[:, None], self.top_k, self.top_p)

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "seed": self.seed,
            "streams": list(self.streams),
            "temperature": [str(envelope) for envelope in self.temperature],
            "top_k": self.top_k,
            "top_p": self.top_p,
        }
