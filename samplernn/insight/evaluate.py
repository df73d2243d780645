"""Bits per sample of a checkpoint on audio, beside what counting alone would reach."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from samplernn.audio.corpus import Corpus, prepare
from samplernn.audio.lanes import Spans
from samplernn.audio.split import Split, locate
from samplernn.config import UserError
from samplernn.model.checkpoint import Checkpoint
from samplernn.training.scoring import Score, score_spans

PARTS = ("test", "validation", "train", "all")


def evaluate(
    checkpoint: Checkpoint,
    folder: str | Path,
    split: str = "test",
    progress: bool = True,
    cache_dir: str | None = None,
) -> Score:
    """Score a model on a folder of audio: whole files, carried state, the training corpus's gain (or each
    file's own, if the model was trained so: `data.normalise`).

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
    data = replace(checkpoint.config.data, cache_dir=cache_dir)
    corpus = prepare(folder, data, checkpoint.gain, progress)
    return score_spans(checkpoint, corpus, _spans(checkpoint, corpus, split), split, progress)


def _spans(checkpoint: Checkpoint, corpus: Corpus, split: str) -> Spans:
    everything = [(file, 0, file.num_samples) for file in corpus.files]
    if split == "all":
        return everything
    parts = {"train": [], **checkpoint.split}
    if split == "train" and not parts["train"]:
        raise UserError("an exported model does not list its training files: evaluate the run or its .ckpt")
    wanted = getattr(Split.from_dict(parts), split)
    spans = locate(corpus, wanted)
    if not spans:
        raise UserError(
            f"{corpus.folder}: holds none of the {split} files of this model's corpus; "
            "score the whole folder with --split all"
        )
    if len(spans) < len(wanted):
        missing = len(wanted) - len(spans)
        print(f"{corpus.folder}: {missing} of {len(wanted)} {split} files are not there", file=sys.stderr)
    return spans
