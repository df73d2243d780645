"""States and sidecars of strangers: one line that says what is wrong, before anything is generated."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

import samplernn
from samplernn.config import Config, UserError, from_dict
from samplernn.generation.files import generate
from samplernn.generation.settings import read_sidecar
from samplernn.generation.snapshots import Snapshot
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.network import SampleRNN
from tests.conftest import TOY

_ENTRY = "samplernn.snapshot"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """A toy model that nobody has trained."""
    config: Config = from_dict(Config, TOY)
    weights = dict(SampleRNN(config.model).state_dict())
    counts = np.ones((64, 64), np.int64)
    return Checkpoint(config, weights, gain=1.0, pair_counts=counts, split={}, source=Path("toy"))


@pytest.fixture(scope="module")
def made(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tenth of a second of it, with its sidecar, and the state at its end as ``x.state``."""
    folder = tmp_path_factory.mktemp("made")
    return generate(
        checkpoint,
        folder / "x.wav",
        duration=0.1,
        num=1,
        save_state=folder / "x.state",
        engine="reference",
        quiet=True,
    )[0]


def _set(path: str, value: Any) -> Change:
    def change(values: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            values = values[key]
        values[last] = value

    return change


def _without(key: str) -> Change:
    return lambda values: values.pop(key)


def _changed_state(made: Path, file: Path, change: Change, tensors_too: bool) -> Path:
    with safetensors.safe_open(made.with_name("x.state"), framework="pt") as opened:
        about = json.loads(opened.metadata()[_ENTRY])
        tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(tensors if tensors_too else about)
    save_file(tensors, file, metadata={_ENTRY: json.dumps(about)})
    return file


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_without("weights"), "weights is missing"),
        (_without("format"), "format must be of type int, got None"),
        (_set("format", 99), "written by a newer samplernn"),
        (_set("time", "late"), "time must be of type int, got 'late'"),
        (_set("time", -1), "times are out of range: "),
        (_set("skip", 10**15), "times are out of range: 1000000000000000 samples"),
        (_set("sample_rate", 0), "times are out of range"),
        (_set("engine", ["cpu"]), "engine must be of type str, got ['cpu']"),
        (_set("draws", 1), "draws must hold options of its own, got 1"),
        (_set("draws.seed", 1.5), "draws.seed must be of type int, got 1.5"),
        (_set("draws.seed", -1), "seed must be from 0 to 2**64 - 1, got -1"),
        (_set("draws.streams", [-1]), "stream must be at least 0, got -1"),
        (_set("draws.streams", [0, 1]), "1 reactions for 2 streams"),
        (_set("draws.streams", []), "num must be at least 1"),
        (_set("draws.temperature", ["hot"]), "temperature 'hot': expected a number"),
        (_set("draws.top_p", 2), "top_p must be above 0 and at most 1"),
        (_set("draws.more", 2), "unknown option draws.more"),
        (_set("earlier", [[1]]), "earlier must hold [time, draws], got [1]"),
        (_set("earlier", [["a", {}]]), "earlier.until must be of type int, got 'a'"),
        (_set("reactions", [{"factor": "x"}]), "reactions.factor must be of type float"),
        (lambda about: about["reactions"][0].update(factor=float("nan")), "reactions are out of range"),
        (lambda about: about["reactions"][0].update(factor=0), "reactions are out of range"),
    ],
)
def test_what_a_state_says_is_checked(made: Path, tmp_path: Path, change: Change, complaint: str) -> None:
    file = _changed_state(made, tmp_path / "bad.state", change, tensors_too=False)
    with pytest.raises(UserError) as caught:
        Snapshot.load(file)
    assert str(caught.value).startswith(f"{file}: damaged, or not a state that --save-state has written: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_without("0.history"), "0.history is missing"),
        (_set("0.history", torch.full((1, 8), 64)), "its past holds no codes of this model"),
        (_set("0.history", torch.full((1, 8), -1)), "its past holds no codes of this model"),
        (_set("0.history", torch.zeros(1, 9, dtype=torch.int64)), "its tensors are not those of this model"),
        (_set("0.history", torch.zeros(1, 8)), "its tensors are not those of this model"),
        (_without("0.rnn.1"), "its tensors are not those of this model"),
        (_set("0.rnn.0", torch.zeros(1, 1, 1, 17)), "its tensors are not those of this model"),
        (_set("0.rnn.0", torch.full((1, 1, 1, 16), torch.nan)), "its hidden vectors are not finite"),
        (_set("0.position", torch.tensor([-1])), "its past holds no codes of this model"),
        (_set("0.guard.numbers", torch.zeros(4, dtype=torch.int64)), "remembers more than one can"),
        (_set("0.guard.numbers", torch.tensor([0, 0, 7, 0, 0])), "counts otherwise"),
        (_set("0.guard.more", torch.zeros(4)), "state of no guard"),
        (_set("0.guard.detail", torch.zeros(4)), "with other types"),
        (_set("0.guard.samples", torch.zeros(4, dtype=torch.int16)), "of a guard with another hop"),
        (_set("0.guard.samples", torch.zeros(4, dtype=torch.bfloat16)), "guard is of another type"),
    ],
)
def test_the_tensors_of_a_state_are_those_of_the_model(
    made: Path, checkpoint: Checkpoint, tmp_path: Path, change: Change, complaint: str
) -> None:
    file = _changed_state(made, tmp_path / "bad.state", lambda them: _dotted(them, change), tensors_too=True)
    with pytest.raises(UserError) as caught:
        next(samplernn.stream(checkpoint, duration=0.1, from_state=file))
    assert str(caught.value).startswith(f"{file}: damaged")
    assert complaint in str(caught.value)


def _dotted(tensors: dict[str, Any], change: Change) -> None:
    """Let a change that reads dots as levels change names that hold dots."""

    class Level(dict[str, Any]):
        def __init__(self, prefix: str) -> None:
            self.prefix = prefix

        def __getitem__(self, key: str) -> Any:
            return Level(f"{self.prefix}{key}.")

        def __setitem__(self, key: str, value: Any) -> None:
            tensors[self.prefix + key] = value

        def pop(self, key: str, *default: Any) -> Any:
            return tensors.pop(self.prefix + key)

    change(Level(""))


def test_a_state_of_another_make_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.state").write_text("no state")
    save_file({"a": torch.zeros(1)}, tmp_path / "none.state")
    save_file({"a": torch.zeros(1)}, tmp_path / "deep.state", metadata={_ENTRY: "[" * 100_000})
    save_file({"a": torch.zeros(1)}, tmp_path / "list.state", metadata={_ENTRY: "[1]"})
    for name in ("text.state", "none.state", "deep.state", "list.state", ".", "missing"):
        with pytest.raises(UserError) as caught:
            Snapshot.load(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_without("seed"), "seed is missing"),
        (_set("seed", "x"), "seed must be of type int, got 'x'"),
        (_set("sample_rate", 0), "sample_rate 0 or stream 0 is out of range"),
        (_set("num_samples", -5), "-5 samples are out of range"),
        (_set("num_samples", 10**400), "num_samples must have at most 64 bits"),
        (_set("prompt_samples", None), "prompt_samples must be of type int, got None"),
        (_set("temperature", [0.9]), "temperature must be of type str or float, got [0.9]"),
        (_set("top_p", "much"), "top_p must be of type float, got 'much'"),
        (_set("prompt", "a.wav"), "prompt must be of type table, got 'a.wav'"),
        (_set("prompt", {"file": 3, "sha256": ""}), "prompt.file must be of type str"),
        (_set("from_state", {"file": "a", "sha256": ""}), "from_state.row is missing"),
        (_set("checkpoint", 5), "checkpoint must be of type str, got 5"),
        (_set("weights", None), "weights must be of type str, got None"),
    ],
)
def test_what_a_sidecar_says_is_checked(made: Path, tmp_path: Path, change: Change, complaint: str) -> None:
    facts = json.loads(made.with_suffix(".json").read_text("utf-8"))
    change(facts)
    file = tmp_path / "bad.json"
    file.write_text(json.dumps(facts), "utf-8")
    with pytest.raises(UserError) as caught:
        read_sidecar(file)
    assert str(caught.value).startswith(f"{file}: says nothing about how samplernn made it (")
    assert complaint in str(caught.value)


def test_a_sidecar_of_another_make_is_named(tmp_path: Path) -> None:
    for content, complaint in (
        (b"[1]", "it must be a table, got [1]"),
        (b"[" * 100_000, "too deep"),
        (b"\xff", "is not text in UTF-8"),
        (b"", "not JSON"),
    ):
        (tmp_path / "it.json").write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_sidecar(tmp_path / "it.json")
        assert str(caught.value).startswith(str(tmp_path / "it.json"))
        assert complaint in str(caught.value)
