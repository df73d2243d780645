"""Hear when a stream has fallen into one of SampleRNN's traps: silence, noise, or a short loop.

A guard hears one stream, about a quarter of a second (a hop) at a time, and needs three numbers per hop:
the energy, the energy of the first difference, and how much the last two seconds resemble themselves
a little earlier. What is loud, bright or quiet is measured against the training audio
(`Expected`), so quiet or noisy training audio is no trap. The thresholds were measured on
recordings, generated streams and real traps (docs/generation.md, 'Traps').
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from samplernn.model.baselines import PairCounts
from samplernn.model.codec import Codec
from samplernn.model.heads import Head

Kind = Literal["silence", "noise", "loop"]
KINDS: tuple[Kind, ...] = ("silence", "noise", "loop")

HOP_SECONDS = 0.25
"""About the length of a hop."""
REPEAT_SECONDS = 30.0
"""A trap that goes on is reported again this often."""

_SILENCE_SECONDS = 2.0
_SILENCE_DB = -28.0  # below the training audio; recordings stay there for 1.75 s at most
_SILENCE_STEP_DB = -9.0  # below one quantization step: codes that hardly ever leave their place
_NOISE_SECONDS = 1.5
_NOISE_DIFFERENCE_DB = 6.0  # energy of the first difference above the training audio's, in every hop;
_NOISE_BRIGHTNESS_DB = 4.0  # and as a part of the hop's energy: in recordings never both for so long.
_BRIGHTNESS = (
    0.2,
    2.5,
)  # That part is at least this: a vowel has less, a fricative more. At most: white noise
# has 2, so where the training audio is noise itself only a high tone is a trap.
_LOOP_SECONDS = 2.25  # in 2 s sequenced piano repeats itself now and then
_HUM_LAGS = (0.005, 0.1)  # seconds
_HUM_DB = -7.0  # residual of a hum against itself a period earlier
_HUM_SPREAD_DB = 2.0  # loudest against quietest hop: what is played decays, what is said comes and goes
_LOOP_LONGEST = 1.0  # seconds
_LOOP_DB = -12.0  # residual of any loop; sequenced piano gets to -9 dB
_LOOP_SPREAD_DB = 1.5  # loudest against quietest period
_HUM_SCREEN_DB, _LOOP_SCREEN_DB = -3.0, -4.0  # the residual at the low rate that a closer look takes
_LOW_RATE = 4000  # Hz, about; at which periods are looked for
_OUTSIDE_HOPS = 3  # a trap is over after so many other hops: a click does not end a silence
_LONGEST_DETAIL = 200  # bytes
_LENIENT_DB = 4.0  # how far a trap must be left before it is over


@dataclass(frozen=True)
class Expected:
    """What the training audio is like, at the model's sample rate and without the gain."""

    level: float = -20.0
    """RMS in dBFS."""
    brightness: float = 0.25
    """Energy of the first difference against the energy: 0 to 4. A tone at frequency f has
    ``2 - 2 cos(2πf / sample_rate)``, white noise 2, speech 0.1, piano 0.07."""
    step: float = 0.0
    """The quantization step at silence, full scale 1.0."""

    @property
    def silence(self) -> float:
        """dBFS below which a hop is silence."""
        step = 20 * math.log10(self.step) + _SILENCE_STEP_DB if self.step > 0 else -math.inf
        return max(self.level + _SILENCE_DB, step)


def expected_of(pair_counts: PairCounts, codec: Codec, head: Head) -> Expected:
    """Level and brightness of the training audio, which follow from its pairs of codes.

    Args:
        pair_counts: of the training split, ``[Q, Q]``; of silence or without any, the defaults hold.
        codec: of the codes.
        head: says which codes are counted as one.
    """
    step = float(codec.amplitudes[codec.q_zero + 1] - codec.amplitudes[codec.q_zero])
    counted_as = head.baseline_codes(np.arange(codec.q_levels))
    levels = np.bincount(counted_as, codec.amplitudes) / np.bincount(counted_as)  # their mean amplitude
    counts = pair_counts.astype(np.float64)
    total = counts.sum()
    mean = float(counts.sum(0) @ levels / total) if total else 0.0
    energy = float(counts.sum(0) @ (levels - mean) ** 2 / total) if total else 0.0
    if energy == 0:
        return Expected(step=step)
    differences = (
        float(sum(row @ (levels - level) ** 2 for row, level in zip(counts, levels, strict=True))) / total
    )
    return Expected(10 * math.log10(energy), float(differences / energy), step)


@dataclass(frozen=True)
class Trap:
    """A trap that a stream is in."""

    kind: Kind
    begin: int
    """Sample of the stream, counted from its start, before which all was well: the trap began there or
    up to two hops later."""
    seen: int
    """Sample of the stream by which the trap was known (when it is reported again: by which it went on)."""
    detail: str
    """A few words, such as ``-71 dBFS`` or ``every 12.4 ms``."""

    def describe(self, sample_rate: int) -> str:
        """One line: ``silence since 12.3 s (-71 dBFS)``."""
        return f"{self.kind} since {self.begin / sample_rate:.1f} s ({self.detail})"


class _Hop:
    """A hop and what is known of it: a function of its samples alone, never changed, so copies share it."""

    def __init__(self, samples: NDArray[np.int16], factor: int) -> None:
        self.samples = samples
        x = samples.astype(np.float32) * np.float32(2.0**-15)
        self.low = x[: len(x) // factor * factor].reshape(-1, factor).mean(axis=1)
        centred = x - x.mean()  # an offset is not heard
        difference = x[1:] - x[:-1]
        self.energy = float(centred @ centred) / len(x)
        self.difference = float(difference @ difference) / max(1, len(difference))


class Guard:
    """Watches one stream. What it says is a function of the samples it has heard.

    A trap is reported when it is recognised, at most 2.5 s after it began; if it goes on, again every
    30 s, with the same `begin`. Once it is over (or after `forget`), the next one is reported anew.

    Args:
        expected: what the training audio is like.
        sample_rate: Hz.
        hop: samples per call of `hear`, about `HOP_SECONDS`.

    Raises:
        ValueError: a hop below 0.1 s or above 0.5 s.

    Example:
        >>> guard = Guard(expected_of(counts, codec, head), sample_rate=16000, hop=4032)
        >>> if trap := guard.hear(samples):
        ...     print(trap.describe(16000))
    """

    def __init__(self, expected: Expected, sample_rate: int, hop: int) -> None:
        if not 0.1 <= hop / sample_rate <= 0.5:
            raise ValueError(f"hop must be 0.1 s to 0.5 s, got {hop} samples at {sample_rate} Hz")
        self.expected, self.sample_rate, self.hop = expected, sample_rate, hop
        self.position = 0
        """Samples heard since the stream's start."""
        self.trap: Trap | None = None
        """The trap that the stream is in; its `seen` is the last report's."""
        self._hops: tuple[_Hop, ...] = ()
        self._outside = 0  # hops in a row that were not like the trap
        self._factor = max(1, sample_rate // _LOW_RATE)
        self._silence_hops = self._count(_SILENCE_SECONDS)
        self._noise_hops = self._count(_NOISE_SECONDS)
        self._loop_hops = self._count(_LOOP_SECONDS)

    def hear(self, samples: NDArray[np.int16] | NDArray[np.float32]) -> Trap | None:
        """The next hop of the stream.

        Args:
            samples: int16, or float32 with full scale 1.0 (rounded to 16 bits), ``[hop]``.

        Returns:
            A trap that is to be reported now.

        Raises:
            ValueError: not exactly a hop.
        """
        if samples.shape != (self.hop,):
            raise ValueError(f"a guard hears {self.hop} samples at a time, got shape {samples.shape}")
        if samples.dtype != np.int16:
            samples = np.clip(np.rint(samples * np.float32(32768)), -32768, 32767)
        longest = max(self._silence_hops, self._noise_hops, self._loop_hops)
        hop = _Hop(samples.astype(np.int16), self._factor)  # a copy: the caller may reuse its buffer
        self._hops = (*self._hops, hop)[-longest:]
        self.position += self.hop
        if self.trap is not None:
            self._outside = 0 if self._goes_on(self.trap.kind) else self._outside + 1
            if self._outside < _OUTSIDE_HOPS:
                if self.position - self.trap.seen < REPEAT_SECONDS * self.sample_rate:
                    return None
                self.trap = replace(self.trap, seen=self.position)
                return self.trap
            self.trap, self._outside = None, 0
        self.trap = self._recognised()
        return self.trap

    def forget(self) -> None:
        """Begin anew, after something was done about a trap: what was heard counts no more, the time does."""
        self._hops, self.trap, self._outside = (), None, 0

    def copy(self) -> Guard:
        """An independent guard in the same state, cheap: hops are shared."""
        other = Guard(self.expected, self.sample_rate, self.hop)
        other.position, other.trap = self.position, self.trap
        other._hops, other._outside = self._hops, self._outside
        return other

    def export_state(self) -> dict[str, NDArray[Any]]:
        """Everything that decides what it says next, besides the constructor's arguments.

        Returns:
            ``samples`` int16 ``[hops, hop]``; ``numbers`` int64 ``[5]``; ``detail`` uint8, the text's UTF-8.
        """
        hops = [hop.samples for hop in self._hops]
        trap = self.trap
        kind, begin, seen, detail = (
            (KINDS.index(trap.kind), trap.begin, trap.seen, trap.detail) if trap else (-1, 0, 0, "")
        )
        return {
            "samples": np.stack(hops) if hops else np.zeros((0, self.hop), np.int16),
            "numbers": np.array([self.position, self._outside, kind, begin, seen], np.int64),
            "detail": np.frombuffer(detail.encode(), np.uint8).copy(),
        }

    def import_state(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Exact inverse of `export_state`, for a guard with the same arguments.

        Raises:
            ValueError: of a guard with another hop, or of none.
        """
        if state.keys() != {"samples", "numbers", "detail"}:
            raise ValueError(f"state of no guard: {', '.join(sorted(state))}"[:200])
        samples, numbers, detail = state["samples"], state["numbers"], state["detail"]
        if samples.ndim != 2 or samples.shape[1] != self.hop:
            raise ValueError(f"state of a guard with another hop: {samples.shape}, not [hops, {self.hop}]")
        if (samples.dtype, numbers.dtype, detail.dtype) != (np.int16, np.int64, np.uint8):
            raise ValueError("state of a guard with other types")
        longest = max(self._silence_hops, self._noise_hops, self._loop_hops)
        if len(samples) > longest or numbers.shape != (5,) or detail.size > _LONGEST_DETAIL:
            raise ValueError("state of a guard that remembers more than one can")
        position, outside, kind, begin, seen = (int(number) for number in numbers)
        if not (-1 <= kind < len(KINDS) and 0 <= begin <= seen <= position < 2**62):
            raise ValueError("state of a guard that counts otherwise")
        self._hops = tuple(_Hop(hop, self._factor) for hop in samples)
        self.position, self._outside = position, outside
        words = detail.tobytes().decode()
        self.trap = Trap(KINDS[kind], begin, seen, words) if kind >= 0 else None

    def _count(self, seconds: float) -> int:
        return max(2, round(seconds * self.sample_rate / self.hop))

    def _recognised(self) -> Trap | None:
        """The trap that the hops heard last amount to."""
        silent = self._hops[-self._silence_hops :]
        if len(silent) == self._silence_hops and all(self._is_silent(hop) for hop in silent):
            return self._found("silence", len(silent), self._level())
        noisy = self._hops[-self._noise_hops :]
        if len(noisy) == self._noise_hops and all(self._is_noisy(hop) for hop in noisy):
            more = 10 * math.log10(noisy[-1].difference) - self._expected_difference
            return self._found("noise", len(noisy), f"{more:.0f} dB more treble than the training audio")
        period = self._period()
        return self._found("loop", self._loop_hops, f"every {1000 * period:.1f} ms") if period else None

    def _goes_on(self, kind: Kind) -> bool:
        """Whether the last hop is still like the trap, on lenient terms."""
        if kind == "silence":
            return self._is_silent(self._hops[-1], _LENIENT_DB)
        if kind == "noise":
            return self._is_noisy(self._hops[-1], _LENIENT_DB)
        return self._period(_LENIENT_DB) is not None

    def _found(self, kind: Kind, hops: int, detail: str) -> Trap:
        begin = max(0, self.position - (hops + 1) * self.hop)  # it may have begun within the hop before
        return Trap(kind, begin, self.position, detail)

    def _level(self) -> str:
        energy = float(np.mean([hop.energy for hop in self._hops[-self._silence_hops :]]))
        return f"{10 * math.log10(energy):.0f} dBFS" if energy > 1e-9 else "no sound at all"

    @property
    def _expected_difference(self) -> float:
        """Energy of the training audio's first difference, dB."""
        return self.expected.level + 10 * math.log10(self.expected.brightness)

    def _is_silent(self, hop: _Hop, lenient: float = 0.0) -> bool:
        return hop.energy < 10 ** ((self.expected.silence + lenient) / 10)

    def _is_noisy(self, hop: _Hop, lenient: float = 0.0) -> bool:
        loud = 10 ** ((self._expected_difference + _NOISE_DIFFERENCE_DB - lenient) / 10)
        least, most = _BRIGHTNESS
        bright = min(max(self.expected.brightness * 10 ** (_NOISE_BRIGHTNESS_DB / 10), least), most)
        return hop.difference > loud and hop.difference > bright * 10 ** (-lenient / 20) * hop.energy

    def _period(self, lenient: float = 0.0) -> float | None:
        """Seconds after which the last two seconds repeat themselves, None if they do not.

        Periods are looked for at a low rate, by an autocorrelation, and measured at the full rate.
        """
        hops = self._hops[-self._loop_hops :]
        energies = np.array([hop.energy for hop in hops])
        if len(hops) < self._loop_hops or energies.mean() < 10 ** (self.expected.silence / 10):
            return None
        residual = _residuals(np.concatenate([hop.low for hop in hops]), int(_LOOP_LONGEST * self._low_rate))
        shortest, middle = (int(seconds * self._low_rate) for seconds in _HUM_LAGS)
        best = shortest + int(residual[shortest:middle].argmin())
        # Of a rumble the residual only grows with the lag; of a hum it has risen and come back.
        if (
            _spread(energies) < 10 ** ((_HUM_SPREAD_DB + lenient / 2) / 10)
            and residual[best] < 10 ** ((_HUM_SCREEN_DB + lenient / 2) / 10)
            and residual[:best].max() > 4 * residual[best]
        ):
            value, period = self._measured(hops, best)
            if value < 10 ** ((_HUM_DB + lenient / 2) / 10):
                return period / self.sample_rate
        best = middle + int(residual[middle:].argmin())
        if residual[best] < 10 ** (_LOOP_SCREEN_DB / 10):
            value, period = self._measured(hops, best)
            if value < 10 ** ((_LOOP_DB + lenient) / 10):
                x = _joined(hops)
                periods = x[len(x) % period :].reshape(-1, period)
                if _spread((periods**2).mean(axis=1)) < 10 ** ((_LOOP_SPREAD_DB + lenient / 2) / 10):
                    return period / self.sample_rate
        return None

    @property
    def _low_rate(self) -> float:
        return self.sample_rate / self._factor

    def _measured(self, hops: tuple[_Hop, ...], lag: int) -> tuple[float, int]:
        """The least residual at the full rate around a lag of the low rate, and the period in samples.

        The lag may be a multiple of the period; the period is its smallest part that is nearly as good.
        """
        x, factor = _joined(hops), self._factor
        middle = lag * factor
        value, best = min((_residual(x, n), n) for n in range(middle - factor, middle + factor + 1))
        for parts in range(int(best / (_HUM_LAGS[0] * self.sample_rate)), 1, -1):
            part = round(best / parts)
            if _residual(x, part) < max(1.3 * value, value + 0.02):
                return value, part
        return value, best


def traps_in(audio: NDArray[np.int16], expected: Expected, sample_rate: int, hop: int) -> list[Trap]:
    """The traps in a whole recording, as a guard hears them; what is left of the last hop is not heard.

    Args:
        audio: int16 ``[T]``.
        expected: what the training audio is like.
        sample_rate: Hz.
        hop: samples, about `HOP_SECONDS`.

    Raises:
        ValueError: a hop below 0.1 s or above 0.5 s.
    """
    guard = Guard(expected, sample_rate, hop)
    heard = (guard.hear(audio[start : start + hop]) for start in range(0, len(audio) - hop + 1, hop))
    return [trap for trap in heard if trap]


def _joined(hops: tuple[_Hop, ...]) -> NDArray[np.float32]:
    """Samples at the full rate without their offset, ``[n]``."""
    x = np.concatenate([hop.samples for hop in hops]).astype(np.float32) * np.float32(2.0**-15)
    return x - x.mean()


def _residuals(x: NDArray[np.float32], longest: int) -> NDArray[np.float64]:
    """What is left of x when it is predicted by itself `lag` samples ago, for lags 0 … longest.

    Args:
        x: ``[n]``.
        longest: below n.

    Returns:
        Energy of ``x[t] - x[t - lag]`` against the sum of both energies, ``[longest + 1]``:
        0 where x repeats itself, 1 where the two have nothing in common, 2 where one is the negative.
    """
    x = x - x.mean()
    spectrum = np.fft.rfft(x, 1 << (len(x) + longest - 1).bit_length())
    power = spectrum.real**2 + spectrum.imag**2
    products = np.fft.irfft(power)[: longest + 1]
    energy = np.concatenate([[0.0], np.cumsum(x.astype(np.float64) ** 2)])
    both = energy[-1] - energy[: longest + 1] + energy[len(x) - longest :][::-1]
    return (both - 2 * products) / np.maximum(both, 1e-12)


def _residual(x: NDArray[np.float32], lag: int) -> float:
    """One of `_residuals`, computed directly."""
    late, early = x[lag:], x[:-lag]
    both = float(late @ late) + float(early @ early)
    return 1 - 2 * float(late @ early) / max(both, 1e-12)


def _spread(energies: NDArray[Any]) -> float:
    """Largest against smallest, a ratio."""
    return float(energies.max() / max(energies.min(), 1e-12))
