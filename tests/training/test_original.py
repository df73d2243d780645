"""Whole runs with the keys of the Theano original: they train, resume, export and generate."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch

import samplernn
from samplernn.audio.corpus import prepare
from samplernn.audio.split import locate, split
from samplernn.cli import main
from samplernn.config import Config, DataConfig, from_dict, merged, to_dict
from samplernn.insight.gradients import gradients
from samplernn.model.checkpoint import export, load
from samplernn.model.network import SampleRNN
from samplernn.training import run
from samplernn.training.memory import RandomStep, footprint
from samplernn.training.scoring import Score
from tests.conftest import TOY

KEYS: dict[str, dict[str, Any]] = {
    "unprojected": {"model": {"top_projection": False}},
    "linear_layer": {"model": {"linear_mlp_layer": True}},
    "rnn_weight_norm": {"model": {"rnn_weight_norm": True}, "trainer": {"precision": "bf16-mixed"}},
    "lstm": {
        "model": {"rnn": "lstm", "rnn_weight_norm": True, "top_projection": False, "forget_bias": 3.0},
        "trainer": {"precision": "bf16-mixed"},
    },
    "all": {
        "model": {"top_projection": False, "linear_mlp_layer": True, "rnn_weight_norm": True, "n_rnn": 2},
        "data": {"normalise": "clip"},
        "optim": {"ema_decay": 0.9},
        "trainer": {"gradient_clip_algorithm": "value", "gradient_clip_val": 0.693},
    },
}


def _config(key: str, max_steps: int) -> Config:
    few = {
        "trainer": {"max_steps": max_steps, "precision": "32-true", "val_check_interval": 100},
        "optim": {"schedule": "constant"},
        "samples": {"num": 0},
    }
    config: Config = from_dict(Config, merged(merged(TOY, few), KEYS[key]))
    return config


@pytest.mark.parametrize("key", KEYS)
def test_each_key_trains_resumes_exports_and_generates(
    key: str, tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = run.start(clips, _config(key, 6), "whole")
    run.start(clips, _config(key, 3), "parts")
    resumed = run.resume("parts", {"trainer": {"max_steps": 6}})
    assert resumed is not None
    assert resumed.step == whole.step == 6
    trained = load("runs/parts/checkpoints/last.ckpt")
    expected = load("runs/whole/checkpoints/last.ckpt").weights
    assert all(torch.equal(value, expected[name]) for name, value in trained.weights.items())
    torch.manual_seed(_config(key, 6).seed_everything)
    fresh = SampleRNN(trained.config.model).state_dict()
    moved = [name for name, value in trained.weights.items() if not torch.equal(value, fresh[name])]
    assert len(moved) > 0.9 * len(fresh)

    exported = load(export(trained, "exported"))
    assert exported.config == trained.config
    gain = "each file's own" if key == "all" else f"{trained.gain:.4f}"
    assert f"gain ({gain})" in Path("exported/README.md").read_text()
    assert exported.weights_hash() == trained.weights_hash()
    written = [
        samplernn.generate(one, f"made-{n}", duration=0.1) for n, one in enumerate((trained, exported))
    ]
    audio = [sf.read(paths[0])[0] for paths in written]
    assert len(audio[0]) == 400
    assert np.array_equal(*audio)


_NARROW = """
import sys
from samplernn.training import run
from samplernn.model.cells.lstm import has_narrow_lstm
from tests.training.test_original import _config
import torch

assert not has_narrow_lstm(torch.bfloat16)
run.start(sys.argv[1], _config("lstm", 2), "narrow", quiet=False)
assert run.resume("narrow", {"trainer": {"max_steps": 4}}, quiet=True).step == 4
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="oneDNN can hide what x86 has")
def test_an_lstm_trains_in_bfloat16_where_the_processor_has_none(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a oneDNN that is told not to use AVX-512, as on many desktop processors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    command = [sys.executable, "-c", _NARROW, str(clips)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("PyTorch has no LSTM in bfloat16 for this processor") == 1
    weights = load("runs/narrow/checkpoints/last.ckpt").weights
    assert all(value.isfinite().all() for value in weights.values())


def test_what_looks_inside_serves_them_all(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run.start(clips, _config("all", 2), "all")
    checkpoint = load("runs/all")
    found = gradients(checkpoint, clips, duration=0.1, num_places=2, progress=False)
    assert len(found.tiers) == 2
    clip = next(clips.rglob("*.flac"))
    for argv in (
        ["info", "runs/all"],
        ["activations", "runs/all", str(clip)],
        ["evaluate", "runs/all", str(clips)],
    ):
        capsys.readouterr()
        assert main(argv) == 0
        said = capsys.readouterr().out
        if argv[0] != "activations":
            assert "each file at a gain of its own (data.normalise clip)" in said
        if argv[0] == "info":
            assert "2 x GRU 16, frames unprojected" in said
            assert "MLP 16, one linear layer more, of the last 2 samples" in said
    assert main(["evaluate", "runs/all", str(clips), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["normalise"] == "clip"


def test_memory_is_counted_with_them() -> None:
    """One layer more keeps its input, `dim` floats per sample; a projection less its output, per frame."""
    plain, more, fewer = (
        footprint(RandomStep(from_dict(Config, merged(TOY, options)), torch.device("cpu"))).lane
        for options in (
            {"trainer": {"precision": "32-true"}},
            {"trainer": {"precision": "32-true"}, "model": {"linear_mlp_layer": True}},
            {"trainer": {"precision": "32-true"}, "model": {"top_projection": False}},
        )
    )
    assert more - plain >= 64 * 16 * 4
    assert fewer < plain


def test_audio_is_counted_and_scored_at_the_gain_of_its_file(
    tmp_path: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run.start(clips, _config("all", 2), "clip")
    checkpoint = load("runs/clip")
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    assert checkpoint.gain == corpus.gain
    spans = locate(corpus, split(corpus, 0).train)
    quiet = min(spans, key=lambda span: span[0].peak)[0]
    assert quiet.peak < 0.7 * max(file.peak for file in corpus.files)
    counts = np.zeros((64, 64), np.int64)
    for file, start, stop in spans:
        louder = np.rint(corpus.read(file, start, stop) * (max(f.peak for f in corpus.files) / file.peak))
        heard = checkpoint.codec.encode(louder.clip(-32768, 32767).astype(np.int16))
        codes = np.concatenate([[32], heard])
        np.add.at(counts, (codes[:-1], codes[1:]), 1)
    assert np.array_equal(counts, checkpoint.pair_counts)

    audio, rate = sf.read(clips / quiet.path, dtype="int16")
    scores: dict[str, list[Score]] = {"clip": [], "corpus": []}
    for level in (1.0, 0.25):
        folder = tmp_path / f"level-{level}"
        folder.mkdir()
        sf.write(folder / "one.wav", np.rint(audio * level).astype(np.int16), rate)
        for normalise, found in scores.items():
            config: Config = from_dict(
                Config, merged(to_dict(checkpoint.config), {"data": {"normalise": normalise}})
            )
            found.append(samplernn.evaluate(replace(checkpoint, config=config), folder, "all"))
    bits, baseline = (
        {name: abs(one.bits_per_sample - two.bits_per_sample) for name, (one, two) in scores.items()},
        {name: abs(one.baselines.unigram - two.baselines.unigram) for name, (one, two) in scores.items()},
    )
    for change in (bits, baseline):
        assert change["clip"] < 0.02
        assert change["corpus"] > 2 * change["clip"]
