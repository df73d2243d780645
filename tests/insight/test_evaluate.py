"""Scores on the stored split, on another folder, from every form of checkpoint."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

import samplernn
from samplernn.config import UserError
from samplernn.insight.evaluate import evaluate
from samplernn.model.checkpoint import export, load


def test_the_test_split_is_scored_beside_its_baselines(trained_run: Path, clips: Path) -> None:
    checkpoint = load(trained_run)
    result = evaluate(checkpoint, clips)
    assert result.num_samples == sum(stop - start for *_, start, stop in checkpoint.split["test"])
    assert result.baselines.uniform == 6.0
    assert result.baselines.previous_sample < result.baselines.unigram < 6.0
    assert 0 < result.bits_per_sample < 12


def test_the_validation_score_is_the_one_that_training_logged(trained_run: Path, clips: Path) -> None:
    """Training stops at validation_duration = 1 s; the clips' validation files are longer, so cut alike."""
    checkpoint = load(trained_run)
    path, digest, start, stop = checkpoint.split["validation"][0]
    assert stop - start > 4000
    checkpoint.split["validation"][:] = [[path, digest, start, start + 4000]]
    result = evaluate(checkpoint, clips, "validation")
    assert result.bits_per_sample == pytest.approx(checkpoint.results["validation_bits_per_sample"], rel=1e-6)


def test_split_and_score_survive_a_moved_folder_and_an_export(
    trained_run: Path, clips: Path, tmp_path: Path
) -> None:
    expected = evaluate(load(trained_run), clips)
    moved = tmp_path / "moved"
    shutil.copytree(clips, moved)
    for file in moved.rglob("*.flac"):
        file.rename(file.with_name("renamed-" + file.name))
    exported = export(load(trained_run), tmp_path / "exported")
    assert evaluate(load(exported), moved) == expected


def test_another_folder_is_scored_whole_on_request(trained_run: Path, clips: Path, tmp_path: Path) -> None:
    checkpoint = load(trained_run)
    held_out = {path for path, *_ in checkpoint.split["test"]}
    strange = tmp_path / "strange"
    strange.mkdir()
    source = next(
        file for file in sorted(clips.rglob("*.flac")) if str(file.relative_to(clips)) not in held_out
    )
    shutil.copy(source, strange)
    with pytest.raises(UserError, match="--split all"):
        evaluate(checkpoint, strange)
    result = evaluate(checkpoint, strange, "all")
    assert math.isfinite(result.bits_per_sample)
    assert result.num_samples > 0


def test_an_unknown_split_is_refused(trained_run: Path, clips: Path) -> None:
    with pytest.raises(UserError, match="unknown split"):
        evaluate(load(trained_run), clips, "tset")


def test_the_train_split_needs_the_run_not_its_export(trained_run: Path, clips: Path, tmp_path: Path) -> None:
    exported = export(load(trained_run), tmp_path / "exported")
    with pytest.raises(UserError, match="training files"):
        evaluate(load(exported), clips, "train")


def test_the_public_names_are_the_functions(trained_run: Path) -> None:
    assert samplernn.evaluate is evaluate
    assert samplernn.load is load
    assert {name for name in samplernn.__all__ if not hasattr(samplernn, name)} == set()
