"""The loss: from a chunk of audio to the negative log-likelihood of its samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from samplernn.audio.lanes import Chunk
from samplernn.model.codec import Codec
from samplernn.model.heads import BITS_PER_NAT, Head
from samplernn.model.network import SampleRNN, State


class Batch(NamedTuple):
    """What one step reads: one row per lane."""

    codes: Tensor
    """int64 ``[B, T]``."""
    mask: Tensor
    """bool ``[B, T]``, True where the sample is real, that is, a target."""
    reset: Tensor
    """bool ``[B]``, True where a segment starts."""

    @classmethod
    def of(cls, chunk: Chunk, codec: Codec) -> Batch:
        """The codes of a chunk of audio."""
        codes, mask, reset = codec.encode(chunk.audio), chunk.mask, chunk.reset
        return cls(torch.from_numpy(codes), torch.from_numpy(mask), torch.from_numpy(reset))


def chunk_nll(model: SampleRNN, batch: Batch, state: State) -> tuple[Tensor, State]:
    """Negative log-likelihood of one chunk, teacher-forced.

    Args:
        model: the network.
        batch: the chunk.
        state: after the chunk before.

    Returns:
        Nats summed over the real samples (see `summed_nll`), and the state after the chunk.
    """
    outputs, state = model(batch.codes, model.reset(state, batch.reset))
    return summed_nll(model.head, outputs, batch.codes, batch.mask), state


def summed_nll(head: Head, outputs: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood in nats, summed over the real samples.

    Args:
        head: of the network.
        outputs: of the network, ``[B, T, num_outputs]``.
        codes: int64 ``[B, T]``.
        mask: bool ``[B, T]``, True where the sample is real.

    Returns:
        A scalar, float32, or float64 if the outputs are (exact zero, with a gradient, if nothing is real).
    """
    # Autocast would make a float32 copy of the outputs first.
    with torch.autocast(outputs.device.type, enabled=False):
        nats = head.nll(outputs.flatten(0, 1), codes.flatten())  # [B·T]
        return (nats * mask.flatten()).sum()


@dataclass
class BitCount:
    """Mean negative log-likelihood over real samples, in bits, of any number of chunks."""

    nats: float = 0.0
    num_samples: int = 0

    def add(self, nats: float, num_samples: int) -> None:
        """Count one chunk's sum of nats over its real samples."""
        self.nats += nats
        self.num_samples += num_samples

    @property
    def bits_per_sample(self) -> float:
        """Not a number when nothing was counted."""
        return self.nats / self.num_samples * BITS_PER_NAT if self.num_samples else float("nan")
