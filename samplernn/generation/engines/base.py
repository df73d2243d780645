"""What every engine can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

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
        return EngineState(self._changed(lambda tensor: tensor[which]), self.position[which])

    def copied_to(self, device: torch.device) -> EngineState:
        """A copy whose network state is on a device."""
        return EngineState(self._changed(lambda tensor: tensor.to(device, copy=True)), self.position)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> State:
        return State(change(self.network.history), tuple(change(tier) for tier in self.network.rnn))

    @classmethod
    def joined(cls, states: Sequence[EngineState]) -> EngineState:
        """The streams of all `states` in order."""
        tiers = zip(*(state.network.rnn for state in states), strict=True)
        history = torch.cat([state.network.history for state in states])
        network = State(history, tuple(torch.cat(tier) for tier in tiers))
        return cls(network, torch.cat([state.position for state in states]))


class Engine:
    """Advances B independent streams together; an engine is a subclass.

    Lengths are multiples of `lookback`, the largest frame, so that all tiers stand at the start of
    a frame between calls. For one engine, dtype and machine a stream is bit-for-bit the same
    whatever the number of streams and the lengths of the calls.

    Args:
        model: the network; it is copied.
        dtype: of the weights that the engine computes with.
        device: of the network and its state.
    """

    name: ClassVar[str]

    def __init__(self, model: SampleRNN, dtype: str, device: str | torch.device = "cpu") -> None:
        self.dtype, self.device = dtype, torch.device(device)
        self.model = model.folded().float().to(self.device)
        self.lookback = model.lookback

    @torch.inference_mode()
    def start(self, num_streams: int) -> None:
        """Forget everything; `num_streams` streams begin with silence behind them."""
        position = torch.zeros(num_streams, dtype=torch.int64)
        self._state = EngineState(self.model.initial_state(num_streams), position)

    @torch.inference_mode()
    def prefill(self, codes: Tensor) -> None:
        """Let the only stream hear a past, faster than by `score`; its position stays where it is.

        Args:
            codes: int64 ``[T]``.

        Raises:
            ValueError: there are several streams.
        """
        num = len(self._state.position)
        if num != 1:
            raise ValueError(f"prefill is for one stream, not {num}: join the states afterwards")
        for piece in codes.split(max(1, PREFILL_CHUNK // self.lookback) * self.lookback):
            self._hear(piece[None])

    def _hear(self, codes: Tensor) -> None:
        """Advance the frame-level tiers of the only stream by ``[1, T]``, all frames at once."""
        _, network = self.model.listen(codes.to(self.device), self._state.network)
        self._state = EngineState(network, self._state.position)

    def advance(self, draws: DrawArrays) -> Tensor:
        """Generate.

        Args:
            draws: how codes are drawn: random numbers, temperatures and filters.

        Returns:
            Codes, int64 ``[B, draws.length]``.
        """
        raise NotImplementedError

    def score(self, codes: Tensor) -> Tensor:
        """Step through given codes as if they had been generated: the truth test of an engine.

        Args:
            codes: int64 ``[B, T]``.

        Returns:
            Negative log-likelihood in nats of each code, float32 ``[B, T]``.
        """
        raise NotImplementedError

    def export_state(self) -> EngineState:
        """A copy of the state of all streams, on the CPU."""
        return self._state.copied_to(torch.device("cpu"))

    def import_state(self, state: EngineState) -> None:
        """Go on from an exported state; the number of streams becomes the state's."""
        self._state = state.copied_to(self.device)

    def _require_whole_frames(self, length: int) -> None:
        if length % self.lookback:
            raise ValueError(f"length {length} is not a multiple of the largest frame, {self.lookback}")


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


def round_up(count: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-count // unit) * unit
