"""What is worth knowing of single files before training: unusable, damaged, clipped, too short, …

`train` and `doctor` say the same of a file, and this is where they get it from.
"""

from __future__ import annotations

from collections.abc import Iterator

from samplernn.audio.corpus import AudioFile, Corpus, Problem

CLIPPED_LIMIT = 1e-4
"""A file is clipped if more than this share of its frames are."""
DC_REPORTED = 5e-3
"""A mean further than this from zero is a fault of the recording (the corpus removes smaller ones too)."""


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
