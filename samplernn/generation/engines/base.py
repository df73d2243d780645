"""What every engine can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from samplernn.generation.sampling import DrawArrays
from samplernn.model.network import FrameLevelTier, SampleRNN, State

PREFILL_CHUNK = 16384
"""Samples per prefill pass, about: bounds memory and is the same for every prompt."""


class EngineState(NamedTuple):
    """Everything that decides how B streams go on, at a boundary of the largest frame."""

    network: State
    """One row per stream."""
    position: Tensor
    """Samples that each stream has drawn so far, the place of its next random number; int64 ``[B]``."""

    def rows(self, which: slice | list[int]) -> EngineState:
        """Some of the streams."""
        network = State(self.network.history[which], tuple(tier[which] for tier in self.network.rnn))
        return EngineState(network, self.position[which])

    @classmethod
    def joined(cls, states: Sequence[EngineState]) -> EngineState:
        """The streams of all `states` in order."""
        tiers = zip(*(state.network.rnn for state in states), strict=True)
        network = State(
            torch.cat([state.network.history for state in states]),
            tuple(torch.cat(tier) for tier in tiers),
        )
        return cls(network, torch.cat([state.position for state in states]))


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
        """Let the only stream hear a past, faster than by `score`; its position stays where it is.

        Args:
            codes: int64 ``[T]``.

        Raises:
            ValueError: there are several streams.
        """
        ...

    def advance(self, draws: DrawArrays) -> Tensor:
        """Generate.

        Args:
            draws: how codes are drawn: random numbers, temperatures and filters.

        Returns:
            Codes, int64 ``[B, draws.length]``.
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
    """State after a stream has heard a past, in parallel passes of bounded size over its frames.

    Args:
        model: the network.
        state: of one stream.
        codes: int64 ``[T]``.
    """
    network = state.network
    chunk = max(1, PREFILL_CHUNK // model.lookback) * model.lookback
    for piece in codes.split(chunk):
        _, network = model.listen(piece[None], network)
    return EngineState(network, state.position)


def projection(tier: FrameLevelTier, dim: int) -> tuple[Tensor, Tensor]:
    """Weight ``[dim, frame]`` and bias of a tier's input projection, for programs that always begin with one.

    Where there is none, of one that changes nothing: the frame becomes the first of the `dim` numbers, and
    the RNN's narrow matrix reads those alone. It must not be longer.
    """
    if tier.input_projection is None:
        of = tier.upsampling.weight
        return torch.eye(dim, tier.frame_size, device=of.device), torch.zeros(dim, device=of.device)
    assert tier.input_projection.bias is not None
    return tier.input_projection.weight, tier.input_projection.bias


def require_one(state: EngineState) -> None:
    """Raises ValueError if there are several streams."""
    if len(state.position) != 1:
        raise ValueError(f"prefill is for one stream, not {len(state.position)}: join the states afterwards")
