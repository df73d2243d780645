"""What an earlier version wrote is read, and sounds the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from samplernn.cli import main
from samplernn.config import CELLS
from samplernn.model.checkpoint import load
from tests.conftest import CLIPS

EARLIER = Path(__file__).parent / "data" / "0.1.0"


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the files, as current directory: the sidecars name them by relative paths."""
    shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(tmp_path / "earlier")
    return tmp_path / "earlier"


def _generate(*arguments: str) -> None:
    assert main(["generate", *arguments, "--engine", "reference", "--quiet"]) == 0


def _read(file: str | Path) -> NDArray[np.int16]:
    return sf.read(file, dtype="int16")[0]


def _same(new: str, old: str) -> bool:
    return np.array_equal(_read(new), _read(old))


def test_a_model_of_each_cell_and_a_run_sound_the_same(earlier: Path) -> None:
    """Bit for bit where the processor rounds alike; another one may turn a draw now and then."""
    models = {cell: f"exports/{cell}" for cell in CELLS} | {"run": "run"}
    same = []
    for name, model in models.items():
        _generate(model, "--duration", "0.2", "--num", "3", "--seed", "5", "--out", f"new/{name}")
        same += [_same(f"new/{name}/{i:03}.wav", f"audio/{name}/{i:03}.wav") for i in range(3)]
    assert len(same) == 30
    assert sum(same) >= 27


def test_a_state_goes_on_and_a_sidecar_makes_it_again(earlier: Path) -> None:
    _generate("exports/gru", "--from-state", "here.state", "--num", "2", "--duration", "0.5", "--out", "new")
    _generate("--like", "forks/001.json", "--out", "again.wav")
    _generate("--like", "take.json", "--out", "take-again.wav")
    pairs = {"new/000.wav": "forks/000.wav", "new/001.wav": "forks/001.wav", "again.wav": "forks/001.wav"}
    same = [_same(new, old) for new, old in pairs.items()]
    assert sum(same) >= 2  # see above
    # The take was cooled where it was in a trap: every draw before must have been the same.
    assert len(_read("take-again.wav")) == len(_read("take.wav"))
    facts = json.loads(Path("take-again.json").read_text())
    assert [trap["action"] for trap in facts["traps"]] == [
        trap["action"] for trap in json.loads(Path("take.json").read_text())["traps"]
    ]


def test_a_run_goes_on(earlier: Path) -> None:
    """Its weights, its average, its lanes; 40 steps were done."""
    Path("runs").mkdir()
    shutil.move("run", "runs/run")
    before = load("runs/run/checkpoints/last.ckpt")
    options = ["--trainer.max_steps=44", "--trainer.val_check_interval=2", "--quiet"]
    assert main(["train", str(CLIPS), "--resume", "--name", "run", *options]) == 0
    after = load("runs/run/checkpoints/last.ckpt")
    assert (before.results["step"], after.results["step"]) == (40, 44)
    assert after.gain == before.gain
    change = {name: float((after.weights[name] - before.weights[name]).abs().max()) for name in after.weights}
    assert 0 < max(change.values()) < 0.05  # four steps of a moving average, not a fresh start
    bits = [after.results["validation_bits_per_sample"], before.results["validation_bits_per_sample"]]
    assert bits[0] == pytest.approx(bits[1], abs=0.2)
