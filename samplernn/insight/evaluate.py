"""Bits per sample of a checkpoint on audio, beside what counting alone would reach."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from samplernn.audio.corpus import Corpus, Split, locate, prepare
from samplernn.config import UserError
from samplernn.model.baselines import BaselineBits, baseline_bits, verdict
from samplernn.model.checkpoint import Checkpoint
from samplernn.training.scoring import (
    Spans,
    evaluation_lanes,
    pair_counts,
    score,
    to_batch,
)

PARTS = ("test", "validation", "train", "all")


@dataclass(frozen=True)
class Evaluation:
    """A model's score and its yardsticks, in bits per sample."""

    bits_per_sample: float
    num_samples: int
    baselines: BaselineBits
    split: str
    """What was scored: a part of the training corpus, or ``all``."""

    @property
    def verdict(self) -> str:
        """One plain sentence."""
        return verdict(self.bits_per_sample, self.baselines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "bits_per_sample": self.bits_per_sample,
            "num_samples": self.num_samples,
            "baselines": self.baselines.to_dict(),
            "split": self.split,
            "verdict": self.verdict,
        }


def evaluate(
    checkpoint: Checkpoint,
    folder: str | Path,
    split: str = "test",
    progress: bool = True,
    cache_dir: str | None = None,
) -> Evaluation:
    """Score a model on a folder of audio: whole files, carried state, the training corpus's gain.

    Args:
        checkpoint: the model.
        folder: of the audio.
        split: ``test``, ``validation`` or ``train`` as the training run split this corpus (found again by
            content, wherever the folder is now), or ``all`` files.
        progress: show a bar on a terminal.
        cache_dir: for decoded audio; None: the default.

    Raises:
        UserError: the folder holds nothing to score.
    """
    if split not in PARTS:
        raise UserError(f"unknown split {split!r}; there are: {', '.join(PARTS)}")
    config = checkpoint.config
    corpus = replace(prepare(folder, config.data.sample_rate, cache_dir, progress), gain=checkpoint.gain)
    spans = _spans(checkpoint, corpus, split)
    model = checkpoint.build()
    int16_to_code = checkpoint.quantizer.int16_to_code(checkpoint.gain)
    lanes = evaluation_lanes(corpus, spans, model, config.data.batch_size)
    hidden = not (progress and sys.stderr.isatty())
    with Progress(console=Console(file=sys.stderr), transient=True, disable=hidden) as bar:
        chunks = bar.track(lanes.chunks(epoch=0), total=len(lanes), description="scoring")
        count = score(model, map(to_batch, chunks), int16_to_code)
    evaluated = pair_counts(corpus, spans, int16_to_code.numpy(), config.model.q_levels)
    baselines = baseline_bits(checkpoint.pair_counts, evaluated)
    return Evaluation(count.bits_per_sample, count.num_samples, baselines, split)


def _spans(checkpoint: Checkpoint, corpus: Corpus, split: str) -> Spans:
    everything = [(file, 0, file.num_samples) for file in corpus.files]
    if split == "all":
        return everything
    parts = {"train": [], **checkpoint.split}
    if split == "train" and not parts["train"]:
        raise UserError("an exported model does not list its training files: evaluate the run or its .ckpt")
    spans = locate(corpus, getattr(Split.from_dict(parts), split))
    if not spans:
        raise UserError(
            f"{corpus.folder}: holds none of the {split} files of this model's corpus; "
            "score the whole folder with --split all"
        )
    return spans
