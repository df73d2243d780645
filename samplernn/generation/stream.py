"""Streams of audio from a checkpoint, in memory that does not grow with their length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from samplernn.config import UserError
from samplernn.generation.engines import open_engine
from samplernn.generation.engines.base import Engine
from samplernn.generation.sampling import Randomness, Sampling
from samplernn.model.checkpoint import Checkpoint

BLOCK_SECONDS = 0.1
"""About the length of one block: what a killed process can lose."""


@dataclass(frozen=True)
class Request:
    """What to generate.

    Args:
        num_samples: per stream, without the prompt.
        streams: stream numbers; stream i of a seed is always the same.
        seed: of all random numbers.
        sampling: temperature, top-k, top-p.
        prompt: int16 samples at the model's rate, ``[T]``, that every stream continues; None: silence.
    """

    num_samples: int
    streams: tuple[int, ...] = (0,)
    seed: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    prompt: NDArray[np.int16] | None = None

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise UserError(f"duration is too short: {self.num_samples} samples")
        if not self.streams:
            raise UserError("num must be at least 1")
        Randomness(self.seed, self.streams)  # raises on a seed out of range


class Generator:
    """A checkpoint that has been made ready to play.

    Args:
        checkpoint: the model.
        engine: name of an engine, or ``auto``.
        dtype: of its arithmetic, or ``auto``.

    Example:
        >>> generator = Generator(load("runs/piano"))
        >>> for block in generator.stream(Request(num_samples=160_000)):    # int16 [1, ≈1600]
        ...     play(block)
    """

    def __init__(self, checkpoint: Checkpoint, engine: str = "auto", dtype: str = "auto") -> None:
        self.checkpoint = checkpoint
        self.sample_rate = checkpoint.config.data.sample_rate
        self.engine: Engine = open_engine(checkpoint.build(), engine, dtype)
        self._to_audio = checkpoint.quantizer.code_to_int16(checkpoint.gain).numpy()
        self._to_code = checkpoint.quantizer.int16_to_code(checkpoint.gain).numpy()

    def stream(self, request: Request) -> Iterator[NDArray[np.int16]]:
        """Generate block by block.

        Yields:
            int16 ``[B, n]`` with the gain undone; together exactly `num_samples` per stream.
        """
        engine = self.engine
        engine.start(len(request.streams))
        if request.prompt is not None and len(request.prompt):
            engine.prefill(self._prompt_codes(request.prompt))
        randomness = Randomness(request.seed, request.streams)
        frames = max(1, round(BLOCK_SECONDS * self.sample_rate / engine.lookback))
        left = request.num_samples
        while left > 0:
            length = min(frames, -(-left // engine.lookback)) * engine.lookback
            codes = engine.advance(length, randomness, request.sampling).numpy()
            yield self._to_audio[codes[:, :left]]
            left -= length

    def _prompt_codes(self, prompt: NDArray[np.int16]) -> torch.Tensor:
        """Codes of a prompt, with silence before it to fill whole frames, int64 ``[T]``."""
        codes = self._to_code[prompt.astype(np.int32) + 32768]
        missing = -len(codes) % self.engine.lookback
        return torch.from_numpy(np.pad(codes, (missing, 0), constant_values=self.checkpoint.quantizer.q_zero))


def stream(
    checkpoint: Checkpoint,
    duration: float = 10.0,
    num: int = 1,
    seed: int = 0,
    temperature: float = 0.95,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt: NDArray[np.int16] | None = None,
    engine: str = "auto",
    dtype: str = "auto",
) -> Iterator[NDArray[np.int16]]:
    """Generate audio block by block, in memory that does not grow.

    Args:
        checkpoint: from `samplernn.load`.
        duration: seconds per stream.
        num: streams.
        seed: stream i of a seed is always the same, whatever `num`.
        temperature: divides the logits; 0 is greedy.
        top_k: keep only the k most probable codes (0: all).
        top_p: keep the most probable codes up to this mass (1: all).
        prompt: int16 samples at the model's rate, ``[T]``, that every stream continues.
        engine: name of an engine, or ``auto``.
        dtype: of its arithmetic, or ``auto``.

    Yields:
        int16 ``[num, n]`` at the model's sample rate.

    Raises:
        UserError: an argument out of range.
    """
    generator = Generator(checkpoint, engine, dtype)
    request = Request(
        num_samples=round(duration * generator.sample_rate),
        streams=tuple(range(num)),
        seed=seed,
        sampling=Sampling(temperature, top_k, top_p),
        prompt=prompt,
    )
    yield from generator.stream(request)
