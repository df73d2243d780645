"""What every engine can do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from samplernn.generation.sampling import Randomness, Sampling
from samplernn.model.network import State


class EngineState(NamedTuple):
    """Everything that decides how B streams go on, at a boundary of the largest frame."""

    network: State
    """One row per stream."""
    position: int
    """Samples generated so far: the next random number's place."""


class Engine(Protocol):
    """Advances B independent streams together.

    Lengths are multiples of `lookback`, the largest frame, so that all tiers stand at the start of
    a frame between calls. For one engine, dtype and machine a stream is bit-for-bit the same
    whatever the number of streams and the lengths of the calls.
    """

    name: str
    dtype: str
    lookback: int

    def start(self, num_streams: int) -> None:
        """Forget everything; `num_streams` streams begin with silence behind them."""
        ...

    def prefill(self, codes: Tensor) -> None:
        """Let every stream hear the same past, in one parallel pass; positions stay where they are.

        Args:
            codes: int64 ``[T]``.
        """
        ...

    def advance(self, length: int, randomness: Randomness, sampling: Sampling) -> Tensor:
        """Generate.

        Args:
            length: samples per stream.
            randomness: with one stream number per row.
            sampling: how codes are drawn.

        Returns:
            Codes, int64 ``[B, length]``.
        """
        ...

    def score(self, codes: Tensor) -> Tensor:
        """Step through given codes as if they had been generated: the truth test of an engine.

        Args:
            codes: int64 ``[B, T]``.

        Returns:
            Negative log-likelihood in nats of each code, float32 ``[B, T]``.
        """
        ...

    def export_state(self) -> EngineState:
        """The state of all streams."""
        ...

    def import_state(self, state: EngineState) -> None:
        """Go on from an exported state; the number of streams becomes the state's."""
        ...
