from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samplernn.audio.corpus import AudioFile, prepare
from samplernn.audio.lanes import Chunk, Lanes, Segment, cut
from samplernn.audio.sinks import FileSink
from samplernn.config import DataConfig, UserError

T = 4


@dataclass(frozen=True)
class Counting:
    """Stands in for a corpus: sample i of the file at `offset` is offset + i + 1, unique and never 0."""

    folder: Path = Path("folder")

    def read(self, file: AudioFile, start: int, stop: int) -> np.ndarray:
        assert 0 <= start < stop <= file.num_samples
        return np.arange(file.offset + start + 1, file.offset + stop + 1).astype(np.int16)


def files_of(lengths: list[int]) -> list[AudioFile]:
    offsets = [0, *itertools.accumulate(lengths)]
    return [
        AudioFile(f"{i}.wav", n, "s.i16", offset, 0.5, 0.0, 0, str(i), 0, 0, 16000, 1)
        for i, (n, offset) in enumerate(zip(lengths, offsets, strict=False))
    ]


def whole(lengths: list[int]) -> list[tuple[AudioFile, int, int]]:
    return [(file, 0, file.num_samples) for file in files_of(lengths)]


def lanes_of(segments: list[Segment], batch_size: int, seed: int = 0, **options: int) -> Lanes:
    return Lanes(Counting(), segments, batch_size, T, seed, **options)  # type: ignore[arg-type]


def stack(chunks: list[Chunk]) -> Chunk:
    """All chunks as one, `[chunks, B, ...]`."""
    return Chunk(*(np.stack(parts) for parts in zip(*chunks, strict=True)))


def equal(one: Chunk, other: Chunk) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


LENGTHS = st.lists(st.integers(1, 90), min_size=1, max_size=30)


@settings(max_examples=150)
@given(LENGTHS, st.integers(1, 7), st.integers(1, 40), st.integers(0, 3), st.booleans())
def test_every_sample_is_a_target_exactly_once(
    lengths: list[int], batch_size: int, segment_len: int, epoch: int, shuffle: bool
) -> None:
    segments = cut(whole(lengths), segment_len, T, batch_size)
    lanes = lanes_of(segments, batch_size, shuffle=shuffle)
    epoch_ = stack(list(lanes.chunks(epoch)))
    assert sorted(epoch_.audio[epoch_.mask]) == list(range(1, sum(lengths) + 1))
    assert not epoch_.audio[~epoch_.mask].any()
    assert len(epoch_.audio) == len(lanes)
    assert epoch_.audio.dtype == np.int16


@settings(max_examples=100)
@given(LENGTHS, st.integers(1, 7), st.integers(1, 40))
def test_lanes_read_contiguously_and_reset_exactly_where_a_segment_begins(
    lengths: list[int], batch_size: int, segment_len: int
) -> None:
    segments = cut(whole(lengths), segment_len, T, batch_size)
    chunks = stack(list(lanes_of(segments, batch_size).chunks(0)))
    starts = [segment.file.offset + segment.start + 1 for segment in segments]
    firsts = chunks.audio[:, :, 0][chunks.reset]
    assert sorted(firsts) == sorted(starts)
    for lane in range(batch_size):
        audio, mask, reset = (part[:, lane] for part in chunks)
        for i in range(len(audio)):
            count = int(mask[i].sum())
            assert mask[i, :count].all()  # real samples first, padding after
            if count and not reset[i]:
                assert mask[i - 1].all()
                assert audio[i, 0] == audio[i - 1, -1] + 1
            if not count:
                assert not reset[i]
                assert not mask[i:].any()  # once it has run out


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 6), st.integers(1, 40))
def test_the_number_of_chunks_is_the_same_in_every_epoch_and_on_every_rank(
    lengths: list[int], share: int, segment_len: int
) -> None:
    segments = cut(whole(lengths), segment_len, T, 3 * share)
    for rank in range(3):
        lanes = lanes_of(segments, 3 * share, rank=rank, world_size=3)
        assert {len(list(lanes.chunks(epoch))) for epoch in range(4)} == {len(lanes)}
    assert len(lanes) == len(lanes_of(segments, 3 * share, seed=5))


@settings(max_examples=50)
@given(LENGTHS, st.sampled_from([1, 2, 3, 6]), st.integers(0, 3))
def test_ranks_together_read_what_one_process_reads(lengths: list[int], world_size: int, epoch: int) -> None:
    segments = cut(whole(lengths), 12, T, 6)
    alone = stack(list(lanes_of(segments, 6).chunks(epoch)))
    ranks = [
        stack(list(lanes_of(segments, 6, rank=rank, world_size=world_size).chunks(epoch)))
        for rank in range(world_size)
    ]
    together = Chunk(*(np.concatenate(parts, axis=1) for parts in zip(*ranks, strict=True)))
    assert equal(alone, together)


@settings(max_examples=50)
@given(LENGTHS, st.integers(1, 5), st.data())
def test_any_start_gives_the_tail_of_the_epoch(
    lengths: list[int], batch_size: int, data: st.DataObject
) -> None:
    lanes = lanes_of(cut(whole(lengths), 12, T, batch_size), batch_size)
    everything = list(lanes.chunks(2))
    start = data.draw(st.integers(0, len(lanes)))
    tail = list(lanes.chunks(2, start))
    assert len(tail) == len(lanes) - start
    assert all(equal(a, b) for a, b in zip(tail, everything[start:], strict=True))


@given(LENGTHS, st.integers(1, 8), st.integers(1, 60))
def test_lanes_are_filled_evenly(lengths: list[int], batch_size: int, segment_len: int) -> None:
    segments = cut(whole(lengths), segment_len, T, batch_size)
    sizes = [-(-(segment.stop - segment.start) // T) for segment in segments]
    lanes = lanes_of(segments, batch_size)
    chunks = stack(list(lanes.chunks(0)))
    loads = chunks.mask.any(axis=2).sum(axis=0)  # [B]
    assert loads.sum() == sum(sizes)
    assert loads.max() == len(lanes)
    assert loads.max() - loads.min() <= max(sizes)


def test_the_order_changes_with_epoch_and_seed_alone() -> None:
    segments = cut(whole([40, 100, 60, 80]), 8, T, 3)

    def order(seed: int, epoch: int, **options: bool) -> list[int]:
        return stack(list(lanes_of(segments, 3, seed, **options).chunks(epoch))).audio.ravel().tolist()

    orders = [order(0, 0), order(0, 1), order(1, 0), order(1, 1)]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    assert order(0, 1) == orders[1]
    assert order(0, 0, shuffle=False) == order(7, 3, shuffle=False)


def test_short_segments_are_not_always_read_last() -> None:
    segments = cut(whole([20] * 20 + [3] * 20), 20, T, 2)
    lanes = lanes_of(segments, 2)
    chunks = stack(list(lanes.chunks(0)))
    is_short = chunks.mask.sum(axis=2) == 3
    assert is_short[: len(lanes) // 2].sum() > 3


def test_every_segment_reaches_every_lane_over_the_epochs() -> None:
    segments = cut(whole([8] * 6), 8, T, 3)
    lanes = lanes_of(segments, 3)
    seen = Counter()  # type: ignore[var-annotated]
    for epoch in range(60):
        chunk = stack(list(lanes.chunks(epoch)))
        for lane in range(3):
            seen.update((lane, int(first)) for first in chunk.audio[:, lane, 0][chunk.reset[:, lane]])
    assert len(seen) == 3 * 6


def test_without_shuffling_whole_files_come_longest_first() -> None:
    segments = [Segment(*span) for span in whole([5, 30, 12, 21])]
    chunks = stack(list(lanes_of(segments, 1, shuffle=False).chunks(0)))
    lengths = np.diff([*np.flatnonzero(chunks.reset[:, 0]), len(chunks.reset)])
    assert lengths.tolist() == [8, 6, 3, 2]


def test_segments_are_whole_chunks_inside_their_span() -> None:
    file = files_of([100])[0]
    segments = cut([(file, 10, 55)], 19, T, 1)
    assert [(segment.start, segment.stop) for segment in segments] == [(10, 26), (26, 42), (42, 55)]
    assert [s.stop - s.start for s in cut([(file, 0, 9)], 1, T, 1)] == [4, 4, 1]  # at least one chunk


@given(LENGTHS, st.integers(1, 60), st.integers(1, 20))
def test_segments_shrink_only_as_far_as_all_lanes_need(
    lengths: list[int], segment_len: int, batch_size: int
) -> None:
    def count(chunks: int) -> int:
        return sum(-(-n // (chunks * T)) for n in lengths)

    segments = cut(whole(lengths), segment_len, T, batch_size)
    wanted = max(1, segment_len // T)
    fitting = [chunks for chunks in range(1, wanted + 1) if count(chunks) >= batch_size]
    assert len(segments) == count(max(fitting, default=1))


def test_uneven_ranks_and_empty_parts_are_named() -> None:
    segments = cut(whole([50]), 8, T, 4)
    with pytest.raises(UserError, match=r"data\.batch_size 4 cannot be shared out evenly to 3.*take 6"):
        lanes_of(segments, 4, world_size=3)
    with pytest.raises(UserError, match="no audio to read"):
        lanes_of([], 4)


def test_a_real_corpus_is_read_through_lanes(tmp_path: Path) -> None:
    expected = []
    (tmp_path / "audio").mkdir()
    for index, n in enumerate([5000, 7001, 300]):
        samples = np.random.default_rng(index).integers(-9000, 9000, n).astype(np.int16)
        samples = np.concatenate([samples, -samples])  # no DC to be removed
        expected.append(samples)
        with FileSink(tmp_path / "audio" / f"{index}.wav", 16000) as sink:
            sink.write(samples)
    corpus = prepare(tmp_path / "audio", DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache"))
    segments = [Segment(file, 0, file.num_samples) for file in corpus.files]
    lanes = Lanes(corpus, segments, 3, 64, seed=0, shuffle=False)
    chunks = stack(list(lanes.chunks(0)))
    for lane, index in enumerate([1, 0, 2]):  # longest first
        assert np.array_equal(chunks.audio[:, lane][chunks.mask[:, lane]], expected[index])
