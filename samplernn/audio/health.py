"""What is worth knowing of files before training: unusable, damaged, clipped, too short, shared audio, …

`train` and `doctor` say the same of a file, and this is where they get it from.
"""

from __future__ import annotations

from collections.abc import Iterator

from samplernn.audio.corpus import AudioFile, Corpus, Problem
from samplernn.audio.split import Split, can_split_by_file, leaked_seconds

CLIPPED_LIMIT = 1e-4
"""A file is clipped if more than this share of its frames are."""
DC_REPORTED = 5e-3
"""A mean further than this from zero is a fault of the recording (the corpus removes smaller ones too)."""

ONE_RECORDING = "they hold one recording, or little else"


def remarks(corpus: Corpus, tbptt_len: int) -> list[Problem]:
    """The corpus's problems, and what is wrong with files that are used all the same.

    Args:
        corpus: from `prepare` or `inspect`.
        tbptt_len: samples per chunk; a shorter file is one chunk, mostly padding.

    Returns:
        Files that are left out first, then the others, each in order of path.
    """
    found = list(corpus.problems)
    for file in corpus.files:
        found += [Problem(file.path, *remark) for remark in _of_file(file, corpus.sample_rate, tbptt_len)]
    used = {file.path for file in corpus.files}
    return sorted(found, key=lambda problem: (problem.path in used, problem.path))


def kept_together(corpus: Corpus) -> str | None:
    """How many files share audio with others and what the split makes of it; None if none do."""
    sharing = sum(len(take) for take in corpus.takes if len(take) > 1)
    if not sharing:
        return None
    if can_split_by_file(corpus.takes):
        return f"{sharing} files share audio and are kept together"
    return f"{sharing} files share audio: {ONE_RECORDING}, which cannot be kept on one side of the split"


def leak(corpus: Corpus, parts: Split, keep_takes_together: bool) -> str | None:
    """That held-out audio is in the training part too, how much of it, and what to do; None if none is.

    Args:
        corpus: the audio.
        parts: its split.
        keep_takes_together: as `data.keep_takes_together` of the run.
    """
    seconds = leaked_seconds(corpus, parts)
    if seconds <= 0:
        return None
    held_out = sum(span.stop - span.start for span in (*parts.validation, *parts.test)) / corpus.sample_rate
    if not keep_takes_together:
        remedy = "leave data.keep_takes_together on"
    elif can_split_by_file(corpus.takes):
        remedy = "the split is from before such files were kept together; a new run does so"
    else:
        remedy = f"{ONE_RECORDING}, so add others, or remove the copies"
    return (
        f"{seconds:.1f} s of the {held_out:.1f} s held out are in other files that train, "
        f"so bits per sample come out too low: {remedy}"
    )


def _of_file(file: AudioFile, sample_rate: int, tbptt_len: int) -> Iterator[tuple[str, str]]:
    """Problem and remedy."""
    share = file.clipped * sample_rate / (file.num_samples * file.source_rate)
    if share > CLIPPED_LIMIT:
        yield f"is clipped ({_percent(share)} of it is at full scale)", "record or export it with less gain"
    if abs(file.dc) > DC_REPORTED:
        yield f"has a DC offset of {_percent(abs(file.dc))} of full scale", "none needed: it is removed"
    if file.num_samples < tbptt_len:
        duration = file.num_samples / sample_rate
        yield (
            f"lasts {1000 * duration:.0f} ms, less than a chunk ({1000 * tbptt_len / sample_rate:.0f} ms)",
            "join it with its neighbours, or remove it",
        )


def _percent(share: float) -> str:
    """Two significant digits."""
    return f"{100 * share:.2g} %" if share < 0.995 else "100 %"
