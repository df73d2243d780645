"""The walk that scores a model on audio: whole files, state carried from chunk to chunk."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from samplernn.audio.corpus import Corpus
from samplernn.audio.lanes import Spans, evaluation_lanes
from samplernn.model.baselines import BaselineBits, PairCounts, baseline_bits, count_pairs, verdict
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.codec import Codec
from samplernn.model.heads import Head
from samplernn.model.network import SampleRNN
from samplernn.training.loss import Batch, BitCount, chunk_nll

OWN_GAINS = "each file at a gain of its own (data.normalise clip): no comparison with bits at one gain"
"""What has to be said beside such bits."""
_PIECE = 1 << 20  # samples


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


@torch.inference_mode()
def score(model: SampleRNN, batches: Iterable[Batch]) -> BitCount:
    """Walk all chunks of evaluation lanes, in order."""
    count, state = BitCount(), None
    for batch in batches:
        nats, state = chunk_nll(model, batch, state or model.initial_state(len(batch.reset)))
        count.add(nats.item(), int(batch.mask.sum()))
    return count


def score_spans(
    checkpoint: Checkpoint, corpus: Corpus, spans: Spans, split: str, progress: bool = True
) -> Score:
    """Score a checkpoint and its baselines on some audio.

    Args:
        checkpoint: the model.
        corpus: holds the audio, at the gain of the model (see `prepare`).
        spans: what to score.
        split: what the spans are called.
        progress: show a bar on a terminal.

    Raises:
        ValueError: the corpus is at another gain.
    """
    config, model, codec = checkpoint.config, checkpoint.build(), checkpoint.codec
    if corpus.gain != codec.gain:
        raise ValueError(f"a corpus at gain {corpus.gain}, and a model trained at gain {codec.gain}")
    lanes = evaluation_lanes(corpus, spans, model.lookback, config.data.lanes)
    hidden = not (progress and sys.stderr.isatty())
    with Progress(console=Console(file=sys.stderr, quiet=hidden), transient=True, disable=hidden) as bar:
        chunks = bar.track(lanes.chunks(epoch=0), total=len(lanes), description=f"scoring {split}")
        count = score(model, (Batch.of(chunk, codec) for chunk in chunks))
    evaluated = pair_counts(corpus, spans, codec, model.head)
    baselines = baseline_bits(checkpoint.pair_counts, evaluated)
    return Score(count.bits_per_sample, count.num_samples, baselines, split, corpus.normalise)


def pair_counts(corpus: Corpus, spans: Spans, codec: Codec, head: Head) -> PairCounts:
    """Code pairs of some audio, for the baselines; each span begins after silence."""
    total = np.zeros((head.num_baseline_codes, head.num_baseline_codes), dtype=np.int64)
    for file, start, stop in spans:
        pieces = (
            head.baseline_codes(codec.encode(corpus.read(file, begin, min(begin + _PIECE, stop))))
            for begin in range(start, stop, _PIECE)
        )
        total += count_pairs(pieces, head.num_baseline_codes)
    return total
