"""A corpus split in three: audio to train with, to validate with, and for the test.

`split` holds out validation and test audio, and `locate` finds the same audio again in a folder that was
moved.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from samplernn.audio import takes
from samplernn.audio.corpus import Corpus
from samplernn.audio.files import AudioFile, Problem
from samplernn.config import UserError

HELD_OUT = 0.1
"""Share of the duration that test and validation take, each."""
DOMINANT = 0.8
"""If one file is longer than this share of the duration, files are split by time."""
GAP_SECONDS = 1.0
"""Audio left out between the parts of a file that is split by time."""
MIN_SPLIT_SECONDS = 0.1


@dataclass(frozen=True)
class Span:
    """A stretch of one file."""

    path: str
    """Relative to the audio folder, with forward slashes."""
    sha256: str
    """Of the file's samples: finds it again under another name."""
    start: int
    """First sample within the file."""
    stop: int
    """One past the last."""


@dataclass(frozen=True)
class Split:
    """Which audio trains, which validates during training, which is kept for the test."""

    train: tuple[Span, ...]
    validation: tuple[Span, ...]
    test: tuple[Span, ...]

    def to_dict(self) -> dict[str, list[list[Any]]]:
        """Plain lists and scalars, for JSON and checkpoints."""
        return {
            part: [[span.path, span.sha256, span.start, span.stop] for span in getattr(self, part)]
            for part in ("train", "validation", "test")
        }

    @classmethod
    def from_dict(cls, values: dict[str, list[list[Any]]]) -> Split:
        """Inverse of `to_dict`."""
        return cls(**{part: tuple(Span(*span) for span in spans) for part, spans in values.items()})


def split(corpus: Corpus, seed: int, keep_takes_together: bool = True) -> Split:
    """Holds out a tenth of the duration for test and another for validation.

    By file, in an order that depends on seed and path alone. With fewer than three files, or one that
    makes up more than 80 %, by time within every file.

    Args:
        corpus: the audio.
        seed: of the order.
        keep_takes_together: files that share audio stay on one side, as if they were one file. Where that
            leaves fewer than three, or one of more than 80 %, they cannot: then files are split as if they
            shared nothing, or by time, whichever leaves less of the held-out audio in the training part.

    Raises:
        UserError: there is too little audio.
    """
    files = [(file,) for file in corpus.files]
    units = corpus.takes if keep_takes_together else files
    if can_split_by_file(units):
        return _split_by_file(units, seed)
    if len(units) == len(files) or not can_split_by_file(files):
        return _split_by_time(corpus)
    choices = [_split_by_file(files, seed), _split_by_time(corpus)]
    return min(choices, key=lambda parts: leaked_seconds(corpus, parts) / _held_out_seconds(corpus, parts))


def _held_out_seconds(corpus: Corpus, parts: Split) -> float:
    return sum(span.stop - span.start for span in (*parts.validation, *parts.test)) / corpus.sample_rate


def can_split_by_file(units: Sequence[Sequence[AudioFile]]) -> bool:
    """Whether there are enough units of files for three parts, and none that is nearly everything."""
    sizes = [sum(file.num_samples for file in unit) for unit in units]
    return len(sizes) >= 3 and max(sizes) <= DOMINANT * sum(sizes)


def leaked_seconds(corpus: Corpus, parts: Split) -> float:
    """Seconds of validation and test audio that are in the training part too, in another file."""
    index_of = {file.sha256: index for index, file in enumerate(corpus.files)}

    def stretches(spans: Iterable[Span]) -> dict[int, list[tuple[float, float]]]:
        found: dict[int, list[tuple[float, float]]] = {}
        for file, start, stop in locate(corpus, spans):
            part = start / corpus.sample_rate, stop / corpus.sample_rate
            found.setdefault(index_of[file.sha256], []).append(part)
        return found

    held_out = stretches((*parts.validation, *parts.test))
    return takes.leaked(corpus.overlaps, stretches(parts.train), held_out)


def locate(corpus: Corpus, spans: Iterable[Span]) -> list[tuple[AudioFile, int, int]]:
    """Finds the audio of a split in a corpus: (file, start, stop) for every span that is there.

    Files are recognised by their samples, so the folder may have been moved and its files renamed.
    """
    by_hash = {file.sha256: file for file in corpus.files}
    return [(by_hash[span.sha256], span.start, span.stop) for span in spans if span.sha256 in by_hash]


def lost(corpus: Corpus, spans: Iterable[Span]) -> list[Problem]:
    """The files of a split whose audio is not in a corpus any more, each with what became of it."""
    by_hash = {file.sha256 for file in corpus.files}
    there = {file.path for file in corpus.files}
    known = {problem.path: problem.problem for problem in corpus.problems}
    found: dict[str, Problem] = {}
    for span in spans:
        if span.sha256 in by_hash:
            continue
        if span.path in there:
            problem = "has changed since the split was made, so it is not used"
        elif span.path in known:
            problem = f"was used before, and now {known[span.path]}"
        else:
            problem = "is not there any more"
        found[span.path] = Problem(span.path, problem, "put the old one back, or train a new run")
    return list(found.values())


def _split_by_file(units: Sequence[Sequence[AudioFile]], seed: int) -> Split:
    """Test, then validation, take whole units until they have a tenth; at least one for each part.

    Units above a quarter of the whole come last, so that they train where that is possible.
    """
    sizes = [sum(file.num_samples for file in unit) for unit in units]
    total = sum(sizes)

    def rank(number: int) -> tuple[bool, bytes]:
        digest = hashlib.sha256(f"{seed}\n".encode() + os.fsencode(units[number][0].path)).digest()
        return 4 * sizes[number] > total, digest

    pending = deque(sorted(range(len(units)), key=rank))

    def take(leave: int) -> tuple[Span, ...]:
        taken: list[int] = []
        missing = HELD_OUT * total
        while not taken or (missing > 0 and len(pending) > leave):
            taken.append(pending.popleft())
            missing -= sizes[taken[-1]]
        return whole(taken)

    def whole(numbers: Iterable[int]) -> tuple[Span, ...]:
        return _spans([(file, 0, file.num_samples) for number in numbers for file in units[number]])

    test, validation = take(leave=2), take(leave=1)
    return Split(whole(pending), validation, test)


def _split_by_time(corpus: Corpus) -> Split:
    """80 % of every file train, 10 % validate, the rest tests.

    The gaps between them are a second long, or 2 % of files shorter than 50 s.
    """
    if corpus.duration < MIN_SPLIT_SECONDS:
        raise UserError(
            f"{corpus.folder}: {corpus.duration:.3f} s of audio are too little to hold out a test; "
            f"at least {MIN_SPLIT_SECONDS} s are needed, and minutes to train"
        )
    train, validation, test = [], [], []
    for file in corpus.files:
        n = file.num_samples
        gap = min(round(GAP_SECONDS * corpus.sample_rate), n // 50)
        first, second = n * 8 // 10, n * 9 // 10 + gap
        train.append((file, 0, first))
        validation.append((file, first + gap, second))
        test.append((file, second + gap, n))
    return Split(*(_spans(part) for part in (train, validation, test)))


def _spans(parts: Iterable[tuple[AudioFile, int, int]]) -> tuple[Span, ...]:
    """Spans in order of path, without empty ones."""
    ordered = sorted(parts, key=lambda part: part[0].path)
    return tuple(Span(file.path, file.sha256, start, stop) for file, start, stop in ordered if start < stop)
