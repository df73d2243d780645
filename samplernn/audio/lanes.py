"""Segments dealt to lanes: the order in which training hears the corpus, chunk after chunk.

A lane is one row of the batch. It reads its segments one after the other, in chunks of `tbptt_len`
samples; the state that a model carries from chunk to chunk is reset where a segment begins. Every
sample of every segment is read exactly once per epoch.

The segments are permuted by (seed, epoch), sorted by descending length and each given to the lane
with the least to read. Which lane gets the i-th longest segment therefore depends on the lengths
alone and is computed once; the number of chunks is the same in every epoch and on every rank.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from samplernn.audio.corpus import AudioFile, Corpus
from samplernn.config import DataConfig, UserError

Spans = Sequence[tuple[AudioFile, int, int]]
"""Stretches of files: (file, start, stop) in samples."""
SAMPLES_PER_STEP = 1 << 16
"""Lanes times chunk of an evaluation, at most: bounds its memory."""
_EVALUATION_CHUNK = 8192  # samples
_CHECKED_SECONDS = 10


@dataclass(frozen=True)
class Segment:
    """A stretch of contiguous audio that is read from a fresh state."""

    file: AudioFile
    start: int
    """First sample within the file."""
    stop: int
    """One past the last."""


class Chunk(NamedTuple):
    """What one step reads: one row per lane."""

    audio: np.ndarray
    """int16 `[B, T]`, without gain, 0 where there is no audio."""
    mask: np.ndarray
    """bool `[B, T]`: true where there is audio, that is, a target."""
    reset: np.ndarray
    """bool `[B]`: true where a segment begins."""


def cut(spans: Spans, segment_len: int, tbptt_len: int, batch_size: int) -> list[Segment]:
    """Cuts spans into segments; the last one of a span may be shorter.

    Args:
        spans: (file, start, stop), as from `locate`.
        segment_len: samples per segment, rounded down to whole chunks, at least one; less where there
            would be fewer segments than lanes.
        tbptt_len: samples per chunk.
        batch_size: lanes.
    """
    lengths = np.array([stop - start for _, start, stop in spans], np.int64)

    def segments(chunks: int) -> int:
        return int((-(-lengths // (chunks * tbptt_len))).sum())

    low, chunks = 1, max(1, segment_len // tbptt_len)
    if segments(chunks) < batch_size:
        while low < chunks:  # the longest segments that fill all lanes, else single chunks
            middle = (low + chunks + 1) // 2
            low, chunks = (middle, chunks) if segments(middle) >= batch_size else (low, middle - 1)
    step = chunks * tbptt_len
    return [
        Segment(file, begin, min(begin + step, stop))
        for file, start, stop in spans
        for begin in range(start, stop, step)
    ]


class Lanes:
    """Segments as a fixed number of chunks per epoch, in an order that (seed, epoch) decides.

    Args:
        corpus: where the samples are.
        segments: what to read, from `cut`, or whole files.
        batch_size: lanes over all ranks.
        tbptt_len: samples per chunk.
        seed: of the order.
        shuffle: whether the order changes from epoch to epoch; if not, longest first.
        rank: which share of the lanes to read: lanes `rank * B / N` to `(rank + 1) * B / N`.
        world_size: number of ranks N. What a lane reads does not depend on it.

    Raises:
        UserError: there is nothing to read, or the lanes cannot be shared out evenly.
    """

    def __init__(
        self,
        corpus: Corpus,
        segments: Sequence[Segment],
        batch_size: int,
        tbptt_len: int,
        seed: int,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise UserError(
                f"data.batch_size {batch_size} cannot be shared out evenly to {world_size} devices: "
                f"take {-(-batch_size // world_size) * world_size}"
            )
        if not segments:
            raise UserError(f"{corpus.folder}: no audio to read in this part; add more or longer files")
        self.corpus = corpus
        self.segments = segments
        self.batch_size = batch_size
        self.tbptt_len = tbptt_len
        self.seed = seed
        self.shuffle = shuffle
        share = batch_size // world_size
        self.lanes = range(rank * share, (rank + 1) * share)
        lengths = np.array([segment.stop - segment.start for segment in segments], np.int64)
        self._chunks = -(-lengths // tbptt_len)  # [segments]
        self._longest_first = np.argsort(-self._chunks, kind="stable")
        self._lane_of, self._len = _deal(self._chunks[self._longest_first], batch_size)

    def __len__(self) -> int:
        """Chunks per epoch, the same in every epoch and on every rank."""
        return self._len

    def chunks(self, epoch: int, start: int = 0) -> Iterator[Chunk]:
        """Chunks `start` to the last of an epoch, for this rank's lanes; nothing before is read."""
        lanes = [_Lane(order, self._chunks[order]) for order in self._orders(epoch)]
        for index in range(start, len(self)):
            yield self._chunk(lanes, index)

    def _orders(self, epoch: int) -> list[np.ndarray]:
        """For each of this rank's lanes, the indices of its segments in the order of reading."""
        order = self._longest_first
        within_lane = np.arange(len(order))
        if self.shuffle:
            rng = np.random.default_rng([self.seed, epoch])
            permutation = rng.permutation(len(order))
            order = permutation[np.argsort(-self._chunks[permutation], kind="stable")]
            within_lane = rng.permutation(len(order))
        by_lane = np.lexsort((within_lane, self._lane_of))
        bounds = np.searchsorted(self._lane_of[by_lane], np.arange(self.batch_size + 1))
        return [order[by_lane[bounds[lane] : bounds[lane + 1]]] for lane in self.lanes]

    def _chunk(self, lanes: list[_Lane], index: int) -> Chunk:
        size = (len(lanes), self.tbptt_len)
        chunk = Chunk(np.zeros(size, np.int16), np.zeros(size, bool), np.zeros(len(lanes), bool))
        for row, lane in enumerate(lanes):
            place = lane.at(index)
            if place is None:
                continue
            segment = self.segments[place[0]]
            begin = segment.start + place[1] * self.tbptt_len
            samples = self.corpus.read(segment.file, begin, min(begin + self.tbptt_len, segment.stop))
            chunk.audio[row, : len(samples)] = samples
            chunk.mask[row, : len(samples)] = True
            chunk.reset[row] = place[1] == 0
        return chunk


def training_lanes(
    corpus: Corpus,
    spans: Spans,
    data: DataConfig,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> Lanes:
    """The lanes of a training run.

    Args:
        corpus: where the samples are.
        spans: (file, start, stop) of the training split, as from `locate`.
        data: segments, chunks and lanes.
        seed: of the order.
        rank: see `Lanes`.
        world_size: see `Lanes`.

    Raises:
        UserError: as `Lanes`.
    """
    segment_len = round(data.segment_duration * data.sample_rate)
    segments = cut(spans, segment_len, data.tbptt_len, data.lanes)
    return Lanes(corpus, segments, data.lanes, data.tbptt_len, seed=seed, rank=rank, world_size=world_size)


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
    chunk = max(1, min(_EVALUATION_CHUNK, SAMPLES_PER_STEP // lanes) // lookback) * lookback
    return Lanes(corpus, segments, lanes, chunk, seed=0, shuffle=False, rank=rank, world_size=world_size)


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


class _Lane:
    """One lane's segments in one epoch, with random access by chunk.

    Args:
        segments: indices of its segments, in order.
        chunks: number of chunks of each.
    """

    def __init__(self, segments: np.ndarray, chunks: np.ndarray) -> None:
        self._segments = segments
        self._ends = np.cumsum(chunks)
        self._starts = self._ends - chunks

    def at(self, index: int) -> tuple[int, int] | None:
        """(segment, chunk within it) that the lane reads at chunk `index`; None when it has run out."""
        place = int(self._ends.searchsorted(index, side="right"))
        if place == len(self._ends):
            return None
        return int(self._segments[place]), index - int(self._starts[place])


def _deal(chunks: np.ndarray, batch_size: int) -> tuple[np.ndarray, int]:
    """Gives each segment, longest first, to the lane with the least to read (the lowest if several).

    Args:
        chunks: chunks of each segment, descending `[segments]`.
        batch_size: lanes.

    Returns:
        the lane of each segment `[segments]`, and the chunks of the fullest lane.
    """
    loads = [(0, lane) for lane in range(batch_size)]  # a heap
    lane_of = np.empty(len(chunks), np.int64)
    for index, size in enumerate(chunks.tolist()):
        load, lane = loads[0]
        lane_of[index] = lane
        heapq.heapreplace(loads, (load + size, lane))
    return lane_of, max(load for load, _ in loads)
