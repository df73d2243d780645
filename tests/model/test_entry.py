"""A checkpoint of a stranger's, or a damaged one: one line that says what is wrong and where, and no memory."""

from __future__ import annotations

import contextlib
import copy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from samplernn.cli import main
from samplernn.config import Config, UserError, from_dict
from samplernn.model.checkpoint import Checkpoint, export, load
from samplernn.model.entry import shapes
from samplernn.model.network import SampleRNN
from tests.conftest import TOY

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def checkpoint() -> Checkpoint:
    """A toy model that nobody has trained."""
    config: Config = from_dict(Config, TOY)
    spans = [["a.wav", "0" * 64, 0, 4000]]
    return Checkpoint(
        config,
        dict(SampleRNN(config.model).state_dict()),
        gain=2.0,
        pair_counts=np.ones((64, 64), np.int64),
        split={"train": spans, "validation": spans, "test": spans},
        results={"step": 1, "validation_bits_per_sample": 5.0},
    )


@pytest.fixture
def exported(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """The same as a folder."""
    return export(checkpoint, tmp_path / "model")


def _save(checkpoint: Checkpoint, file: Path, **changes: Any) -> Path:
    """As a Lightning checkpoint."""
    tensors = {f"model.{name}": value for name, value in checkpoint.weights.items()}
    torch.save({"samplernn": checkpoint.entry(), "state_dict": tensors, **changes}, file)
    return file


def _set(path: str, value: Any) -> Change:
    def change(values: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for key in above:
            values = values[key]
        values[last] = value

    return change


def _without(key: str) -> Change:
    return lambda values: values.pop(key)


VALUES: list[tuple[str, Change, str]] = [
    ("dim", _set("config.model.dim", 10**9), "model.dim must be from 1 to 65536, got 1000000000"),
    ("layers", _set("config.model.n_rnn", 10**9), "model.n_rnn must be from 1 to 100, got 1000000000"),
    ("frame", _set("config.model.frame_sizes", [2**60, 2]), "frames of more than 1048576 samples"),
    ("embedding", _set("config.model.embedding_dim", 10**9), "model.embedding_dim must be from 0 to 65536"),
    ("levels", _set("config.model.q_levels", 10**9), "model.q_levels must be from 2 to 1024"),
    ("long number", _set("config.model.dim", 10**70), "model.dim must have at most 64 bits"),
    ("long float", _set("config.optim.lr", 10**400), "optim.lr must be of type float, got 1000"),
    ("bias", _set("config.model.forget_bias", float("nan")), "model.forget_bias must be finite, got nan"),
    ("rate", _set("config.data.sample_rate", 10**12), "data.sample_rate must be from 1000 to 384000 Hz"),
    ("no config", _without("config"), "config is missing"),
    ("no format", _without("format"), "format is missing"),
    ("no split", _without("split"), "split is missing"),
    ("no gain", _without("gain"), "gain is missing"),
    ("no results", _without("results"), "results is missing"),
    ("text for a table", _set("config", "large"), "config must be a table, got 'large'"),
    ("text for a part", _set("config.model", "large"), "model must hold options of its own, got 'large'"),
    ("text for a number", _set("config.model.dim", "large"), "model.dim must be of type int, got 'large'"),
    ("unknown option", _set("config.model.colour", 1), "unknown option model.colour"),
    ("much text", _set("config.model.rnn", "x" * 10**6), "model.rnn must be one of gru, lstm"),
    ("a list", _set("config.model.rnn", ["gru"]), "model.rnn must be one of gru, lstm"),
    ("format", _set("format", "one"), "format must be of type int, got 'one'"),
    ("format 0", _set("format", 0), "format must be at least 1, got 0"),
    ("gain 0", _set("gain", 0), "gain must be from 0.1 to 100000, got 0"),
    ("gain -1", _set("gain", -1.0), "gain must be from 0.1 to 100000, got -1"),
    ("gain NaN", _set("gain", float("nan")), "gain must be from 0.1 to 100000, got nan"),
    ("gain text", _set("gain", "loud"), "gain must be of type float, got 'loud'"),
    ("split text", _set("split", "test"), "split must be a table, got 'test'"),
    ("split part", _set("split.rest", []), "split has a part 'rest'"),
    ("split span", _set("split.test", [["a", "b", 1]]), "split.test must hold [path, SHA-256, first sample"),
    ("split order", _set("split.test", [["a", "b", 2, 1]]), "got ['a', 'b', 2, 1]"),
    ("split without test", lambda values: values["split"].pop("test"), "split.test is missing"),
    ("results list", _set("results", []), "results must be a table, got []"),
    ("step", _set("results.step", "many"), "results.step must be of type int, got 'many'"),
    ("bits", _set("results.validation_bits_per_sample", "few"), "validation_bits_per_sample must be of type"),
    ("a table in results", _set("results.other", {}), "results.other must be a number or text, got {}"),
]


@pytest.mark.parametrize(
    ("change", "complaint"), [each[1:] for each in VALUES], ids=[each[0] for each in VALUES]
)
def test_values_are_checked_in_an_export_and_in_a_checkpoint(
    exported: Path, checkpoint: Checkpoint, tmp_path: Path, change: Change, complaint: str
) -> None:
    sidecar = exported / "config.yaml"
    described = yaml.safe_load(sidecar.read_text("utf-8"))
    change(described)
    sidecar.write_text(yaml.safe_dump(described), "utf-8")
    with pytest.raises(UserError) as caught:
        load(exported)
    assert str(caught.value).startswith(f"{sidecar}: ")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(sidecar))
    entry = copy.deepcopy(checkpoint.entry())
    change(entry)
    file = _save(checkpoint, tmp_path / "it.ckpt", samplernn=entry)
    with pytest.raises(UserError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"\xff\xfe\x00\x01", "is not text in UTF-8"),
        (b"", "what it says must be a table, got None"),
        (b"- 1\n- 2\n", "what it says must be a table, got [1, 2]"),
        (b"1: 2\n", "what it says must be a table, got {1: 2}"),
        (b"[" * 5000, "too deep"),
    ],
)
def test_a_description_of_another_kind_is_named(exported: Path, content: bytes, complaint: str) -> None:
    (exported / "config.yaml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        load(exported)
    assert str(caught.value).startswith(str(exported / "config.yaml"))
    assert complaint in str(caught.value)


_OUTPUT = "sample_level_mlp.output.bias"
TENSORS: list[tuple[str, Change, str]] = [
    ("NaN", lambda them: them[_OUTPUT].fill_(float("nan")), "its weights are not finite"),
    ("infinite", lambda them: them[_OUTPUT].fill_(float("inf")), "its weights are not finite"),
    ("too many", lambda them: them.update({"more": torch.zeros(1)}), "there is no place for 'more'"),
    ("missing", _without(_OUTPUT), f"{_OUTPUT} is missing"),
    (
        "other shape",
        lambda them: them.update({_OUTPUT: torch.zeros(3)}),
        f"{_OUTPUT} has shape [3], not [64]",
    ),
    (
        "integers",
        lambda them: them.update({_OUTPUT: torch.zeros(64, dtype=torch.int32)}),
        "got float32, int32",
    ),
    ("two types", lambda them: them.update({_OUTPUT: torch.zeros(64).half()}), "got float16, float32"),
]


@pytest.mark.parametrize(
    ("change", "complaint"), [each[1:] for each in TENSORS], ids=[each[0] for each in TENSORS]
)
def test_tensors_are_checked_in_an_export_and_in_a_checkpoint(
    exported: Path, checkpoint: Checkpoint, tmp_path: Path, change: Change, complaint: str
) -> None:
    file = exported / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())  # not mapped, for it is written over
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    tensors.pop("baselines.pair_counts")
    saved = _save(
        checkpoint,
        tmp_path / "it.ckpt",
        state_dict={f"model.{name}": value for name, value in tensors.items()},
    )
    for path in (exported, saved):
        with pytest.raises(UserError) as caught:
            load(path)
        assert complaint in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        (torch.ones(64, 63, dtype=torch.int64), "must be whole numbers [64, 64], got int64 [64, 63]"),
        (torch.ones(64, 64), "got float32 [64, 64]"),
        (torch.full((64, 64), -1), "from 0 to 2**40, got -1 to -1"),
        (torch.full((64, 64), 2**62), "from 0 to 2**40"),
        (None, "'pair_counts' must be a plain tensor, got NoneType"),
        (torch.ones(64, 64, device="meta"), "'pair_counts' must be a plain tensor"),
    ],
)
def test_the_counts_of_the_baselines_are_checked(
    checkpoint: Checkpoint, tmp_path: Path, counts: Any, complaint: str
) -> None:
    entry = {**checkpoint.entry(), "pair_counts": counts}
    with pytest.raises(UserError) as caught:
        load(_save(checkpoint, tmp_path / "it.ckpt", samplernn=entry))
    assert complaint in str(caught.value)


def test_a_checkpoint_of_another_make_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = tmp_path / "it.ckpt"
    for changes in (
        {"state_dict": [1, 2]},
        {"state_dict": {"model.x": "text"}},
        {"samplernn": [1]},
        {"samplernn": None},
        {"state_dict": {"model.x": torch.eye(2).to_sparse()}},
    ):
        with pytest.raises(UserError, match=r"it\.ckpt: ") as caught:
            load(_save(checkpoint, file, **changes))
        assert "\n" not in str(caught.value)


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    """It would take 100 MB from 100 KB; so would a file of a terabyte."""
    file = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", bytes(10**7))
        archive.writestr("bomb/version", "3")
    with pytest.raises(UserError, match="an archive of another kind"):
        load(file)


def test_a_checkpoint_cannot_ask_for_memory(tmp_path: Path) -> None:
    """PyTorch's reader of checkpoints makes a bytearray of any length."""

    class Hungry:
        def __reduce__(self) -> tuple[Any, tuple[int]]:
            return bytearray, (2**50,)

    file = tmp_path / "hungry.ckpt"
    torch.save({"samplernn": Hungry()}, file)
    with pytest.raises(UserError, match="it asks for memory"):
        load(file)


def test_a_checkpoint_damaged_anywhere_loads_or_is_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    file = _save(checkpoint, tmp_path / "it.ckpt")
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        torn = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 40)):
            torn[place] = rng.integers(256)
        file.write_bytes(torn[: rng.integers(len(torn)) if rng.random() < 0.2 else len(torn)])
        with contextlib.suppress(UserError):
            load(file).build()


def test_the_shapes_of_a_huge_network_take_no_memory() -> None:
    config: Config = from_dict(Config, {"model": {"dim": 2**16, "n_rnn": 3}})
    found = shapes(config.model)
    assert found["frame_level_tiers.0.rnn.layers.weight_hh_l2"] == (3 * 2**16, 2**16)


@pytest.mark.parametrize(
    "command",
    [
        ["info", "model"],
        ["info", "model", "--json"],
        ["generate", "model"],
        ["play", "model"],
        ["evaluate", "model", "audio"],
        ["export", "model", "other"],
        ["audition", "model"],
        ["activations", "model", "a.wav"],
        ["gradients", "model", "audio"],
    ],
    ids=" ".join,
)
def test_every_command_says_it_in_one_line(
    exported: Path, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(exported.parent)
    sidecar = exported / "config.yaml"
    described = yaml.safe_load(sidecar.read_text("utf-8"))
    described["config"]["model"]["dim"] = 10**9
    sidecar.write_text(yaml.safe_dump(described), "utf-8")
    assert main(command) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "error: model/config.yaml: model.dim must be from 1 to 65536, got 1000000000\n"


def test_info_refuses_what_cannot_generate(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = exported / "model.safetensors"
    tensors = safetensors.torch.load(file.read_bytes())  # not mapped, for it is written over
    tensors[_OUTPUT][0] = float("nan")
    safetensors.torch.save_file(tensors, file)
    assert main(["info", str(exported)]) == 2
    assert "its weights are not finite" in capsys.readouterr().err
