"""`samplernn info`: figures that the network and the run's own files give another way, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from samplernn.audio.corpus import prepare
from samplernn.config import Config, DataConfig, from_dict
from samplernn.insight.info import describe, diagram
from samplernn.model.checkpoint import Checkpoint, export, load
from samplernn.model.network import SampleRNN


def _fresh(options: dict[str, object]) -> Checkpoint:
    import numpy as np

    config: Config = from_dict(Config, options)
    model = SampleRNN(config.model)
    counts = np.zeros((config.model.q_levels,) * 2, np.int64)
    return Checkpoint(config, dict(model.state_dict()), 1.0, counts, {})


def test_the_diagram_shows_every_tier_with_its_clock_and_size() -> None:
    checkpoint = _fresh({"model": {"frame_sizes": [64, 16], "dim": 32, "embedding_dim": 8, "n_rnn": 2}})
    title, slow, between, middle, last_ratio, samples = diagram(checkpoint).splitlines()
    assert title.split() == ["tier", "frame", "rate", "layers", "parameters"]
    assert slow.startswith("3     64 samples, 4 ms")
    assert "250 Hz  2 x GRU 32" in slow
    assert "1,000 Hz" in middle
    assert samples.startswith("1     1 sample, 0.0625 ms")
    assert "16,000 Hz  MLP 32, of the last 16 samples" in samples
    assert (between.split()[1], last_ratio.split()[1]) == ("4", "16")
    assert len({line.rindex("M") for line in (slow, middle, samples)}) == 1  # a column


def test_parameters_of_the_tiers_add_up() -> None:
    checkpoint = _fresh(
        {"model": {"frame_sizes": [8, 2], "rnn": "lstm", "dim": 512}, "data": {"tbptt_len": 512}}
    )
    tiers = [float(line.split()[-2]) for line in diagram(checkpoint).splitlines() if line.endswith("M")]
    total = sum(value.numel() for value in checkpoint.weights.values()) / 1e6
    assert sum(tiers) == pytest.approx(total, abs=0.02)


def test_a_run_is_described_from_its_own_files(trained_run: Path, clips: Path) -> None:
    said = describe(load(trained_run), trained_run)
    facts = json.loads((trained_run / "run.json").read_text())
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    assert f"of {corpus.duration / 60:.1f} minutes in {len(corpus.files)} files" in said
    train = sum(stop - start for _, _, start, stop in facts["split"]["train"]) / 4000
    assert f"{train:.0f} s of training audio" in said
    assert "6 steps" in said
    assert "trainer.max_steps is reached" in said
    assert f"test {facts['test']['bits_per_sample']:.3f} (previous sample" in said
    assert f"validation {load(trained_run).results['validation_bits_per_sample']:.3f}" in said
    assert said.splitlines()[-1].startswith(f"samplernn generate {trained_run} ")


def test_an_export_is_described_as_far_as_it_knows(trained_run: Path, tmp_path: Path) -> None:
    """Its training files are not in it, but how much audio they were."""
    folder = export(load(trained_run), tmp_path / "an export")
    said = describe(load(folder), folder)
    assert "s of training audio\n" in said
    assert "6 steps" in said
    assert ", test " not in said
    assert f"samplernn generate '{folder}'" in said  # quoted for a shell
