"""The loader's position, and the score of a walk in chunks against one pass over each file."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samplernn.audio.corpus import Corpus, prepare
from samplernn.audio.lanes import Lanes, Segment, cut, evaluation_lanes, quick_check
from samplernn.audio.split import locate, split
from samplernn.config import Config, DataConfig, ModelConfig
from samplernn.model.baselines import count_pairs
from samplernn.model.codec import Codec
from samplernn.model.heads import SoftmaxHead
from samplernn.model.network import SampleRNN
from samplernn.model.quantize import Quantizer
from samplernn.training.data import CorpusModule, LaneLoader
from samplernn.training.loss import Batch
from samplernn.training.scoring import pair_counts, score

CODEC = Codec(Quantizer())


@pytest.fixture
def lanes(clips: Path) -> Lanes:
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    segments = cut(locate(corpus, split(corpus, 0).train), 8000, 1024, 4)
    return Lanes(corpus, segments, 4, 1024, seed=0)


def test_a_loader_goes_through_epochs_in_another_order_each(lanes: Lanes) -> None:
    loader = LaneLoader(lanes, CODEC)
    epochs = [torch.cat([batch.codes for batch in loader]) for _ in range(2)]
    assert len(epochs[0]) == len(epochs[1]) == 4 * len(loader)
    assert not torch.equal(epochs[0], epochs[1])
    assert loader.state_dict() == {"epoch": 1, "position": len(loader)}


@pytest.mark.parametrize("handed_out", [0, 5, None])
def test_a_saved_position_goes_on_exactly(lanes: Lanes, handed_out: int | None) -> None:
    """None: at the very end of the epoch, where the next chunk is the first of the next epoch."""
    loader, resumed = LaneLoader(lanes, CODEC), LaneLoader(lanes, CODEC)
    iterator = iter(loader)
    for _ in range(len(loader) if handed_out is None else handed_out):
        next(iterator)
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    expected = list(iterator) or list(loader)
    assert len(rest) == len(expected) > 0
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(rest, expected, strict=True))


@pytest.mark.parametrize("folder", ["", "guitar", "piano"])  # by file; by file of few; three files
def test_no_second_of_audio_is_in_two_parts(clips: Path, toy_config: Config, folder: str) -> None:
    """What training and validation really read, and what is kept for the test."""
    corpus = prepare(clips / folder, DataConfig(sample_rate=4000))
    _assert_apart(corpus, toy_config)


def test_no_second_of_audio_is_in_two_parts_of_one_file(
    clips: Path, toy_config: Config, tmp_path: Path
) -> None:
    """Split by time."""
    shutil.copy(clips / "piano" / "satie_gymnopedie1_1.flac", tmp_path)
    corpus = prepare(tmp_path, DataConfig(sample_rate=4000))
    assert {span.path for span in split(corpus, 0).test} == {"satie_gymnopedie1_1.flac"}
    _assert_apart(corpus, toy_config)


def _assert_apart(corpus: Corpus, config: Config) -> None:
    parts = split(corpus, 0)
    data = CorpusModule(config, corpus, parts)
    owner: dict[tuple[str, int], str] = {}
    read = {
        "train": data.train_dataloader().lanes.segments,
        "validation": data.val_dataloader().lanes.segments,
        "test": [Segment(*span) for span in locate(corpus, parts.test)],
    }
    for part, segments in read.items():
        assert segments
        for segment in segments:
            for sample in range(segment.start, segment.stop, 50):
                assert owner.setdefault((segment.file.sha256, sample // 50), part) == part


def test_a_walk_in_chunks_scores_like_one_pass_over_each_whole_file(
    clips: Path, toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of unequal length side by side, tails masked, state carried, a fresh start per file."""
    monkeypatch.setattr("samplernn.audio.lanes._EVALUATION_CHUNK", 512)
    corpus = prepare(clips / "tabla", DataConfig(sample_rate=4000))
    spans = [(file, 0, file.num_samples) for file in corpus.files[:7]]
    torch.manual_seed(0)
    model = SampleRNN(toy_config.model).eval()
    codec = Codec(Quantizer(64), corpus.gain)
    chunks = evaluation_lanes(corpus, spans, 8, 3).chunks(0)
    walked = score(model, (Batch.of(chunk, codec) for chunk in chunks))
    nats, num_samples = 0.0, 0
    for file, start, stop in spans:
        codes = torch.from_numpy(codec.encode(corpus.read(file, start, stop)))[None]
        padded = F.pad(codes, (0, -codes.shape[1] % 8))
        with torch.no_grad():
            logits, _ = model(padded, model.initial_state(1))
        nll = F.cross_entropy(logits.transpose(1, 2), padded, reduction="none")[0, : codes.shape[1]]
        nats += nll.double().sum().item()
        num_samples += codes.shape[1]
    assert walked.num_samples == num_samples
    assert walked.bits_per_sample == pytest.approx(nats / num_samples / math.log(2), rel=1e-6)


def test_pair_counts_in_pieces_are_those_of_whole_files(clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = prepare(clips / "tabla", DataConfig(sample_rate=4000))
    spans = [(file, 10, file.num_samples) for file in corpus.files[:3]]
    codec = Codec(Quantizer(64), corpus.gain)
    monkeypatch.setattr("samplernn.training.scoring._PIECE", 1000)
    streams = [codec.encode(corpus.read(*span)) for span in spans]
    whole = sum(count_pairs([stream], 64) for stream in streams)
    assert np.array_equal(pair_counts(corpus, spans, codec, SoftmaxHead(ModelConfig(q_levels=64))), whole)


@pytest.mark.parametrize("seconds", [3.0, 12.0, 25.0, 40.0])
def test_a_quick_check_takes_about_its_duration_from_all_over(clips: Path, seconds: float) -> None:
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    spans = [(file, 0, file.num_samples) for file in corpus.files]  # 36 files, 0.1 to 15 s
    chosen = quick_check(spans, DataConfig(sample_rate=4000, validation_duration=seconds))
    taken = sum(stop - start for _, start, stop in chosen)
    assert taken == pytest.approx(seconds * 4000, rel=0.5)
    assert len({(file.path, start) for file, start, _ in chosen}) == len(chosen)
    assert all(stop - start <= 10 * 4000 for _, start, stop in chosen)


def test_a_quick_check_of_one_long_recording_reaches_its_end(clips: Path) -> None:
    corpus = prepare(clips / "piano", DataConfig(sample_rate=4000))
    spans = [(file, 0, file.num_samples) for file in corpus.files]  # three of 15 s
    everything = DataConfig(sample_rate=4000, validation_duration=45.0)
    assert quick_check(spans, everything) == spans
    starts = [
        (file.path, start)
        for file, start, _ in quick_check(spans, DataConfig(sample_rate=4000, validation_duration=30.0))
    ]
    assert len({path for path, _ in starts}) == 3
    assert max(start for _, start in starts) == 40_000
