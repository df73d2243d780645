"""The loader's position, and the score of a walk in chunks against one pass over each file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samplernn.audio.corpus import locate, prepare, split
from samplernn.audio.lanes import Lanes, cut
from samplernn.config import Config
from samplernn.model.baselines import count_pairs
from samplernn.model.network import SampleRNN
from samplernn.model.quantize import Quantizer
from samplernn.training.data import CorpusModule, LaneLoader
from samplernn.training.scoring import at_most, evaluation_lanes, pair_counts, score, to_batch


@pytest.fixture
def lanes(clips: Path) -> Lanes:
    corpus = prepare(clips, 4000)
    segments = cut(locate(corpus, split(corpus, 0).train), 8000, 1024, 4)
    return Lanes(corpus, segments, 4, 1024, seed=0)


def test_a_loader_goes_through_epochs_in_another_order_each(lanes: Lanes) -> None:
    loader = LaneLoader(lanes)
    epochs = [torch.cat([batch.audio for batch in loader]) for _ in range(2)]
    assert len(epochs[0]) == len(epochs[1]) == 4 * len(loader)
    assert not torch.equal(epochs[0], epochs[1])
    assert loader.state_dict() == {"epoch": 1, "position": len(loader)}


@pytest.mark.parametrize("handed_out", [0, 5, None])
def test_a_saved_position_goes_on_exactly(lanes: Lanes, handed_out: int | None) -> None:
    """None: at the very end of the epoch, where the next chunk is the first of the next epoch."""
    loader, resumed = LaneLoader(lanes), LaneLoader(lanes)
    iterator = iter(loader)
    for _ in range(len(loader) if handed_out is None else handed_out):
        next(iterator)
    resumed.load_state_dict(loader.state_dict())
    rest = list(resumed)
    expected = list(iterator) or list(loader)
    assert len(rest) == len(expected) > 0
    assert all(torch.equal(a.audio, b.audio) for a, b in zip(rest, expected, strict=True))


def test_no_audio_is_in_two_parts(clips: Path, toy_config: Config) -> None:
    """What the training lanes read and what validation reads have no second in common."""
    corpus = prepare(clips, 4000)
    data = CorpusModule(toy_config, corpus, split(corpus, 0), SampleRNN(toy_config.model))
    train = {(segment.file.path, segment.start) for segment in data.train_dataloader().lanes.segments}
    validation = data.val_dataloader().lanes.segments
    assert {path for path, _ in train}.isdisjoint({segment.file.path for segment in validation})
    assert sum(segment.stop - segment.start for segment in validation) == 4000  # validation_duration 1 s


def test_a_walk_in_chunks_scores_like_one_pass_over_each_whole_file(
    clips: Path, toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of unequal length side by side, tails masked, state carried, a fresh start per file."""
    monkeypatch.setattr("samplernn.training.scoring._CHUNK", 512)
    corpus = prepare(clips / "tabla", 4000)
    spans = [(file, 0, file.num_samples) for file in corpus.files[:7]]
    torch.manual_seed(0)
    model = SampleRNN(toy_config.model).eval()
    codes_of = Quantizer(64).int16_to_code(corpus.gain)
    walked = score(model, map(to_batch, evaluation_lanes(corpus, spans, model, 3).chunks(0)), codes_of)
    nats, num_samples = 0.0, 0
    for file, start, stop in spans:
        codes = codes_of[torch.from_numpy(corpus.read(file, start, stop).astype(np.int64)) + 32768][None]
        padded = F.pad(codes, (0, -codes.shape[1] % 8))
        with torch.no_grad():
            logits, _ = model(padded, model.initial_state(1))
        nll = F.cross_entropy(logits.transpose(1, 2), padded, reduction="none")[0, : codes.shape[1]]
        nats += nll.double().sum().item()
        num_samples += codes.shape[1]
    assert walked.num_samples == num_samples
    assert walked.bits_per_sample == pytest.approx(nats / num_samples / math.log(2), rel=1e-6)


def test_pair_counts_count_every_sample_once(clips: Path) -> None:
    corpus = prepare(clips / "tabla", 4000)
    spans = [(file, 10, file.num_samples) for file in corpus.files[:3]]
    codes_of = Quantizer(64).int16_to_code(corpus.gain).numpy()
    streams = [codes_of[corpus.read(*span).astype(int) + 32768] for span in spans]
    assert np.array_equal(pair_counts(corpus, spans, codes_of, 64), count_pairs(streams, 64))


def test_a_quick_check_takes_evenly_from_all_over(clips: Path) -> None:
    corpus = prepare(clips / "piano", 4000)
    spans = [(file, 0, file.num_samples) for file in corpus.files]  # three of 15 s
    assert at_most(spans, 10**9) == spans
    assert at_most(spans, 30_000) == [(file, 0, 10_000) for file in corpus.files]
    assert at_most(spans, 30_000, at_least=15_000) == [(spans[0][0], 0, 15_000), (spans[1][0], 0, 15_000)]
    assert at_most(spans, 5_000, at_least=15_000) == [(spans[0][0], 0, 5_000)]
