"""The three forms of a checkpoint hold one model; nothing in them is executed; damage is named."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from samplernn.config import UserError, to_dict
from samplernn.model.checkpoint import export, find, load


def test_run_checkpoint_and_export_give_identical_logits(trained_run: Path, tmp_path: Path) -> None:
    codes = torch.randint(64, (2, 32))
    exported = export(load(trained_run), tmp_path / "exported")
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "config.yaml",
        "model.safetensors",
    ]
    outputs = []
    for path in (trained_run, trained_run / "checkpoints" / "best.ckpt", exported):
        model = load(path).build()
        outputs.append(model(codes, model.initial_state(2))[0])
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_an_export_keeps_what_belongs_to_the_model(trained_run: Path, tmp_path: Path) -> None:
    original = load(trained_run)
    again = load(export(original, tmp_path / "exported"))
    assert to_dict(again.config) == to_dict(original.config)
    assert again.gain == original.gain != 1.0
    assert np.array_equal(again.pair_counts, original.pair_counts)
    assert again.weights_hash() == original.weights_hash()
    assert again.split == {part: original.split[part] for part in ("validation", "test")}
    assert again.results["validation_bits_per_sample"] == original.results["validation_bits_per_sample"]
    card = (tmp_path / "exported" / "README.md").read_text()
    assert original.weights_hash()[:16] in card


def test_the_pair_counts_are_those_of_the_training_split(trained_run: Path) -> None:
    checkpoint = load(trained_run)
    seconds = sum(stop - start for *_, start, stop in checkpoint.split["train"])
    assert checkpoint.pair_counts.sum() == seconds


def test_the_hash_follows_the_weights(trained_run: Path) -> None:
    checkpoint = load(trained_run)
    changed = {name: value.clone() for name, value in checkpoint.weights.items()}
    changed["sample_level_mlp.output.bias"][0] += 1e-6
    assert dataclasses.replace(checkpoint, weights=changed).weights_hash() != checkpoint.weights_hash()


def test_a_run_gives_its_best_and_without_one_its_last(trained_run: Path, tmp_path: Path) -> None:
    assert find(trained_run).name == "best.ckpt"
    run = tmp_path / "run"
    shutil.copytree(trained_run, run)
    (run / "checkpoints" / "best.ckpt").unlink()
    assert find(run).name == "last.ckpt"


class _Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"samplernn": _Malicious()}, "bad.ckpt")
    Path("plain.ckpt").write_bytes(pickle.dumps(_Malicious()))
    for name in ("bad.ckpt", "plain.ckpt"):
        with pytest.raises(UserError, match=name):
            load(name)
    assert not Path("executed").exists()


def test_damage_and_strangers_are_named_in_one_line(trained_run: Path, tmp_path: Path) -> None:
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    text = tmp_path / "text.ckpt"
    text.write_text("not a checkpoint")
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {}}, foreign)
    (tmp_path / "empty").mkdir()
    missing = tmp_path / "missing"
    for path in (torn, text, foreign, tmp_path / "empty", missing):
        with pytest.raises(UserError, match=path.name) as caught:
            load(path)
        assert "\n" not in str(caught.value)


def test_every_form_is_read_where_files_cannot_be_mapped(
    trained_run: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    exported = export(load(trained_run), tmp_path / "exported")
    expected = load(trained_run)
    request.getfixturevalue("no_mmap")
    for path in (trained_run, trained_run / "checkpoints" / "best.ckpt", exported):
        assert load(path).weights_hash() == expected.weights_hash()
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes((trained_run / "checkpoints" / "best.ckpt").read_bytes()[:5000])
    with pytest.raises(UserError, match=r"torn.ckpt: damaged, or not a checkpoint"):
        load(torn)


def test_a_damaged_export_is_named(trained_run: Path, tmp_path: Path) -> None:
    folder = export(load(trained_run), tmp_path / "exported")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="damaged export"):
        load(folder)
    weights.write_bytes(whole)
    (folder / "config.yaml").unlink()
    with pytest.raises(UserError, match="damaged export"):
        load(folder)


def test_weights_that_do_not_fit_their_configuration_are_refused(trained_run: Path, tmp_path: Path) -> None:
    folder = export(load(trained_run), tmp_path / "exported")
    described = yaml.safe_load((folder / "config.yaml").read_text())
    described["config"]["model"]["dim"] = 24
    (folder / "config.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(UserError, match="do not fit"):
        load(folder).build()


def test_a_newer_format_asks_for_an_update(trained_run: Path, tmp_path: Path) -> None:
    folder = export(load(trained_run), tmp_path / "exported")
    described = yaml.safe_load((folder / "config.yaml").read_text())
    described.update(format=99, version="9.0")
    (folder / "config.yaml").write_text(yaml.safe_dump(described))
    with pytest.raises(UserError, match="update samplernn"):
        load(folder)


def test_an_export_does_not_overwrite(trained_run: Path, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").touch()
    with pytest.raises(UserError, match="not empty"):
        export(load(trained_run), tmp_path)


def test_the_safetensors_file_is_plain(trained_run: Path, tmp_path: Path) -> None:
    """Another program reads it by the names of the network's modules."""
    folder = export(load(trained_run), tmp_path / "exported")
    names = safetensors.torch.load_file(folder / "model.safetensors")
    assert names["sample_level_mlp.embedding.weight"].shape == (64, 8)
