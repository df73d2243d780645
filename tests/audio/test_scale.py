"""What must not grow with the number of files, at a hundred thousand of them."""

from __future__ import annotations

import hashlib
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from samplernn.audio import shards
from samplernn.audio.corpus import AudioFile, Corpus
from samplernn.audio.lanes import training_lanes
from samplernn.audio.split import locate, split
from samplernn.config import DataConfig

FILES, PER_SHARD, SAMPLES = 100_000, 32, 40_000
DATA = DataConfig(sample_rate=16000, batch_size=16, tbptt_len=512, segment_duration=2.0)


def _corpus(folder: Path, count: int) -> Corpus:
    """A manifest of so many files whose samples are holes in a few sparse files."""
    for shard in range(64):
        with (folder / f"{shard}.i16").open("wb") as file:
            file.truncate(2 * PER_SHARD * SAMPLES)
    files = tuple(
        AudioFile(
            path=f"{index // 1000:03d}/{index:06d}.wav",
            num_samples=SAMPLES,
            shard=f"{index // PER_SHARD % 64}.i16",
            offset=index % PER_SHARD * SAMPLES,
            peak=0.5,
            dc=0.0,
            clipped=0,
            sha256=hashlib.sha256(str(index).encode()).hexdigest(),
            size=80_044,
            mtime_ns=index,
            source_rate=16000,
            channels=1,
        )
        for index in range(count)
    )
    return Corpus(folder, 16000, 1.0, files, (), folder, count)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return _corpus(tmp_path_factory.mktemp("large"), FILES)


@pytest.mark.slow
def test_a_start_takes_little_memory_per_file(corpus: Corpus) -> None:
    """Two segments per file; the manifest itself is not counted."""
    tracemalloc.start()
    try:
        spans = locate(corpus, split(corpus, 0).train)
        lanes = training_lanes(corpus, spans, DATA, seed=0)
        next(lanes.chunks(epoch=0))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(lanes.segments) > 1.5 * FILES
    assert peak / FILES < 1000


@pytest.mark.slow
def test_a_chunk_costs_no_more_memory_than_its_samples(corpus: Corpus) -> None:
    lanes = training_lanes(corpus, locate(corpus, split(corpus, 0).train), DATA, seed=0)
    chunks = lanes.chunks(epoch=0)
    next(chunks)
    tracemalloc.start()
    try:
        for _ in range(200):
            next(chunks)
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    one = 16 * 512 * 3 + 16
    assert peak < 10 * one + shards.MAX_OPEN_SHARDS * 4000
    assert kept < 3 * one + shards.MAX_OPEN_SHARDS * 4000


@pytest.mark.slow
def test_lanes_are_evenly_filled_whatever_the_number_of_files(corpus: Corpus) -> None:
    lanes = training_lanes(corpus, locate(corpus, split(corpus, 0).train), DATA, seed=0)
    chunks = sum(-(-(segment.stop - segment.start) // 512) for segment in lanes.segments)
    assert chunks / (16 * len(lanes)) > 0.999
    assert np.unique(lanes._lane_of, return_counts=True)[1].min() > 0
