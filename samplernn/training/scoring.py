"""The walk that scores a model on audio: whole files, state carried from chunk to chunk."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from samplernn.audio.corpus import AudioFile, Corpus
from samplernn.audio.lanes import Chunk, Lanes, Segment
from samplernn.config import DataConfig
from samplernn.model.baselines import BaselineBits, PairCounts, baseline_bits, count_pairs, verdict
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.heads import BITS_PER_NAT, softmax_nll
from samplernn.model.network import SampleRNN, State

Spans = Sequence[tuple[AudioFile, int, int]]
"""Stretches of files: (file, start, stop) in samples."""
_CHUNK = 8192
SAMPLES_PER_STEP = 1 << 16
"""Lanes times chunk of an evaluation: bounds its memory."""
OWN_GAINS = "each file at a gain of its own (data.normalise clip): no comparison with bits at one gain"
"""What has to be said beside such bits."""
_PIECE = 1 << 20
_CHECKED_SECONDS = 10


class Batch(NamedTuple):
    """A `Chunk` as tensors."""

    audio: Tensor
    """int16 ``[B, T]``."""
    mask: Tensor
    """bool ``[B, T]``, True where the sample is real."""
    reset: Tensor
    """bool ``[B]``, True where a segment starts."""


def to_batch(chunk: Chunk) -> Batch:
    """Wrap the arrays of a chunk."""
    return Batch(*(torch.from_numpy(array) for array in chunk))


@dataclass(frozen=True)
class Score:
    """Bits per sample of a model and of its yardsticks on some audio."""

    bits_per_sample: float
    num_samples: int
    baselines: BaselineBits
    split: str
    """What was scored: a part of the training corpus, or ``all``."""
    normalise: str = "corpus"
    """Whether files were scored at one gain or each at its own (``clip``): bits do not compare across."""

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        return verdict(self.bits_per_sample, self.baselines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "bits_per_sample": self.bits_per_sample,
            "num_samples": self.num_samples,
            "baselines": self.baselines.to_dict(),
            "split": self.split,
            "normalise": self.normalise,
            "verdict": self.verdict,
        }


def table(*scores: Score) -> str:
    """Scores for people to read, a line each."""
    lines = ["bits per sample (lower is better)   model  previous sample  unigram  uniform"]
    for one in scores:
        yardsticks = one.baselines
        lines.append(
            f"{one.split:>33}  {one.bits_per_sample:6.3f}  {yardsticks.previous_sample:15.3f}  "
            f"{yardsticks.unigram:7.3f}  {yardsticks.uniform:7.3f}"
        )
    if any(one.normalise == "clip" for one in scores):
        lines.append(OWN_GAINS)
    return "\n".join(lines)


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


def score_chunk(model: SampleRNN, codes: Tensor, batch: Batch, state: State) -> tuple[Tensor, State]:
    """Teacher-force one chunk.

    Args:
        model: the network.
        codes: int64 ``[B, T]``.
        batch: the chunk that the codes come from.
        state: of the chunk before.

    Returns:
        Nats summed over real samples, and the state after the chunk.
    """
    logits, state = model(codes, model.reset(state, batch.reset))
    return softmax_nll(logits, codes, batch.mask), state


def evaluation_lanes(
    corpus: Corpus, spans: Spans, lookback: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Lanes:
    """Lanes that walk each span whole, in a fixed order.

    Args:
        corpus: holds the audio.
        spans: what to walk.
        lookback: of the model; chunks are a multiple of it.
        batch_size: at most this many spans side by side (a multiple of world_size).
        rank: this process.
        world_size: processes.
    """
    segments = [Segment(file, start, stop) for file, start, stop in spans]
    lanes = min(batch_size, -(-len(segments) // world_size) * world_size)
    chunk = max(1, min(_CHUNK, SAMPLES_PER_STEP // lanes) // lookback) * lookback
    return Lanes(corpus, segments, lanes, chunk, seed=0, shuffle=False, rank=rank, world_size=world_size)


@torch.inference_mode()
def score(model: SampleRNN, batches: Iterable[Batch], int16_to_code: Tensor) -> BitCount:
    """Walk all chunks of evaluation lanes.

    Args:
        model: the network.
        batches: the chunks, in order.
        int16_to_code: lookup table, int64 ``[65536]``.
    """
    count, state = BitCount(), None
    for batch in batches:
        state = state or model.initial_state(len(batch.reset))
        codes = int16_to_code[batch.audio.long() + 32768]
        nats, state = score_chunk(model, codes, batch, state)
        count.add(nats.item(), int(batch.mask.sum()))
    return count


def score_spans(
    checkpoint: Checkpoint, corpus: Corpus, spans: Spans, split: str, progress: bool = True
) -> Score:
    """Score a checkpoint and its baselines on some audio.

    Args:
        checkpoint: the model; its gain is used, not the corpus's, or, if it was trained so, each file's own.
        corpus: holds the audio.
        spans: what to score.
        split: what the spans are called.
        progress: show a bar on a terminal.
    """
    config, model = checkpoint.config, checkpoint.build()
    corpus = replace(corpus, gain=checkpoint.gain, normalise=config.data.normalise)
    codes = checkpoint.quantizer.int16_to_code(checkpoint.gain)
    lanes = evaluation_lanes(corpus, spans, model.lookback, config.data.lanes)
    hidden = not (progress and sys.stderr.isatty())
    with Progress(console=Console(file=sys.stderr, quiet=hidden), transient=True, disable=hidden) as bar:
        chunks = bar.track(lanes.chunks(epoch=0), total=len(lanes), description=f"scoring {split}")
        count = score(model, map(to_batch, chunks), codes)
    evaluated = pair_counts(corpus, spans, codes.numpy(), config.model.q_levels)
    baselines = baseline_bits(checkpoint.pair_counts, evaluated)
    return Score(count.bits_per_sample, count.num_samples, baselines, split, corpus.normalise)


def pair_counts(corpus: Corpus, spans: Spans, int16_to_code: NDArray[np.int64], q_levels: int) -> PairCounts:
    """Code pairs of some audio, for the baselines; each span begins after silence."""
    total = np.zeros((q_levels, q_levels), dtype=np.int64)
    for file, start, stop in spans:
        pieces = (
            int16_to_code[corpus.read(file, begin, min(begin + _PIECE, stop)).astype(np.int32) + 32768]
            for begin in range(start, stop, _PIECE)
        )
        total += count_pairs(pieces, q_levels)
    return total


def quick_check(spans: Spans, data: DataConfig) -> list[tuple[AudioFile, int, int]]:
    """What is scored during training: about `data.validation_duration` from all over the spans.

    Args:
        spans: held-out audio.
        data: gives duration and rate.

    Returns:
        The spans themselves if they are no longer than that; otherwise evenly chosen pieces of them
        of at most ten seconds, each to be scored from a fresh state.
    """
    wanted = round(data.validation_duration * data.sample_rate)
    total = sum(stop - start for _, start, stop in spans)
    if total <= wanted:
        return list(spans)
    length = min(wanted, _CHECKED_SECONDS * data.sample_rate)
    pieces = [
        (file, begin, min(begin + length, stop))
        for file, start, stop in spans
        for begin in range(start, stop, length)
    ]
    count = max(1, len(pieces) * wanted // total)
    return [pieces[index * len(pieces) // count] for index in range(count)]
