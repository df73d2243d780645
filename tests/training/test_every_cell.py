"""The life of a model of each cell: trained by the real command, resumed, exported, heard."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import soundfile as sf
import torch
from torch.nn import functional as F

from samplernn.cli import main
from samplernn.config import CELLS
from samplernn.generation.engines import open_engine
from samplernn.model import cells
from samplernn.model.checkpoint import load
from samplernn.options import parse
from tests.conftest import slow, toy_arguments

ROOT = Path(__file__).parents[2]
OPTIONS = {
    "gru": ["--model.n_rnn=2", "--model.skip_connections=true"],
    "lstm": ["--model.n_rnn=3", "--model.skip_connections=true"],
    "lstm-peephole": ["--model.recurrent_input=false"],
    "leaky": ["--model.time_constants=fixed"],
    "echo-state": ["--model.leak=0.5", "--model.n_rnn=2", "--model.skip_connections=true"],
}
"""Beside the cell's name; others as they come."""


@pytest.mark.parametrize("rnn", [*map(slow, CELLS[:-1]), CELLS[-1]])
def test_a_cell_trains_resumes_exports_and_generates(
    rnn: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the default precision of a CPU with bfloat16."""
    monkeypatch.chdir(tmp_path)
    options = ["--config", "small", *toy_arguments(), "--model.rnn", rnn, *OPTIONS.get(rnn, [])]
    options += ["--samples.num=0", "--optim.schedule=constant", "--trainer.precision=bf16-mixed", "--quiet"]
    train = ["train", str(clips), *options]
    assert main([*train, "--name", "parts", "--trainer.max_steps=3"]) == 0
    first = load("runs/parts/checkpoints/last.ckpt")
    assert main(["train", "--resume", "--name", "parts", "--trainer.max_steps=5", "--quiet"]) == 0
    parts = load("runs/parts/checkpoints/last.ckpt")
    assert (first.results["step"], parts.results["step"]) == (3, 5)
    assert any(not torch.equal(value, first.weights[name]) for name, value in parts.weights.items())
    if rnn in ("lstm-peephole", "echo-state", "mingru"):  # two vectors, buffers, no recurrent matrix
        assert main([*train, "--name", "whole", "--trainer.max_steps=5"]) == 0
        whole = load("runs/whole/checkpoints/last.ckpt")
        assert whole.weights.keys() == parts.weights.keys()
        for name, value in whole.weights.items():
            assert torch.equal(value, parts.weights[name]), name

    assert main(["export", "runs/parts/checkpoints/last.ckpt", "exported"]) == 0
    exported = load("exported")
    assert exported.weights_hash() == parts.weights_hash()
    assert main(["info", "exported"]) == 0
    assert f"{exported.config.model.n_rnn} x {rnn.upper()} 16" in capsys.readouterr().out
    assert main(["generate", "exported", "--duration", "0.05", "--out", "one.wav", "--quiet"]) == 0
    audio, rate = sf.read("one.wav", dtype="int16")
    assert (len(audio), rate) == (200, 4000)
    assert len(set(audio.tolist())) > 1

    model, codes = exported.build(), torch.randint(64, (2, 48))
    engine = open_engine(model, "reference")
    engine.start(2)
    with torch.no_grad():
        logits, _ = model(codes, model.initial_state(2))
    expected = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
    torch.testing.assert_close(engine.score(codes), expected, rtol=1e-5, atol=1e-5)


def test_the_documents_name_every_cell_and_their_commands_are_understood() -> None:
    page = (ROOT / "docs" / "cells.md").read_text("utf-8")
    commands = [shlex.split(line)[1:] for line in page.splitlines() if line.startswith("samplernn train ")]
    assert len(commands) == 3
    for command in commands:
        assert parse([command[0], *command[2:]]).config.model.rnn in CELLS
    for rnn in CELLS:
        assert f"| `{rnn}` |" in page
    assert "docs/cells.md" in (ROOT / "README.md").read_text("utf-8")


def test_a_cells_name_is_written_in_one_place() -> None:
    """Beside its entry in `model.cells`: no preset has a list that would have to grow with it."""
    assert tuple(cells.CELLS) == CELLS
    for path in (ROOT / "configs").glob("*.yaml"):
        choice = [line for line in path.read_text("utf-8").splitlines() if line.startswith("  rnn: gru  ")]
        assert all("docs/cells.md" in line for line in choice)


@pytest.mark.parametrize("rnn", ["mingru", slow("lstm-peephole")])
def test_one_looks_inside_whatever_the_cell(
    rnn: str, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One without recurrent matrices, one with a cell state."""
    monkeypatch.chdir(tmp_path)
    options = [*toy_arguments(), "--model.rnn", rnn, "--trainer.max_steps=2", "--samples.num=0", "--quiet"]
    assert main(["train", str(clips), *options, "--name", "run"]) == 0
    capsys.readouterr()
    assert main(["gradients", "runs/run", str(clips), "--duration", "0.1", "--places", "2", "--json"]) == 0
    tiers = json.loads(capsys.readouterr().out)["tiers"]
    gates = {"mingru": set(), "lstm-peephole": {"input", "forget", "cell", "output"}}[rnn]
    assert {gate for tier in tiers for layer in tier["layers"] for gate in layer["singular_values"]} == gates
    assert main(["gradients", "runs/run", str(clips), "--duration", "0.1", "--places", "2"]) == 0
    assert ("no recurrent matrix" in capsys.readouterr().out) == (rnn == "mingru")
    recording = clips / "piano" / "satie_gymnopedie1_1.flac"
    assert main(["activations", "runs/run", str(recording), "--duration", "0.5", "--out", "a.png"]) == 0
    assert main(["evaluate", "runs/run", str(clips), "--json"]) == 0
