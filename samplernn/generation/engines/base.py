"""What every engine can do."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from samplernn.generation.sampling import Randomness, Sampling
from samplernn.model.network import SampleRNN, State

PREFILL_CHUNK = 16384
"""Samples per prefill pass, about: bounds memory and is the same for every prompt."""


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


@torch.inference_mode()
def heard(model: SampleRNN, state: EngineState, codes: Tensor) -> EngineState:
    """State after all streams have heard the same past, in parallel passes of bounded size.

    Args:
        model: the network.
        state: of streams that share one past.
        codes: int64 ``[T]``.

    Raises:
        ValueError: the streams have already diverged from each other.
    """
    everyone = [state.network.history, *state.network.rnn]
    if any((rows != rows[:1]).any() for rows in everyone):
        raise ValueError("prefill needs streams that share one past: call start first")
    network = State(state.network.history[:1], tuple(tier[:1] for tier in state.network.rnn))
    chunk = max(1, PREFILL_CHUNK // model.lookback) * model.lookback
    for piece in codes.split(chunk):
        _, network = model(piece[None], network)
    num = len(state.network.history)
    rnn = tuple(tier.repeat(num, 1, 1, 1) for tier in network.rnn)
    return EngineState(State(network.history.repeat(num, 1), rnn), state.position)
