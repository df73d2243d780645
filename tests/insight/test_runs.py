"""What is read from a run's folder, in whatever state it is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from samplernn.config import UserError
from samplernn.insight.runs import read, sound
from tests.insight.conftest import RATE


def test_a_finished_run_says_what_metrics_and_config_say(run_copy: Path) -> None:
    run = read(run_copy)
    assert run.name == "toy"
    assert sorted(run.validation) == [4, 6]
    assert run.best == min(((step, bits) for step, bits in run.validation.items()), key=lambda pair: pair[1])
    assert run.baselines is not None
    assert run.baselines.uniform == 6.0
    assert run.option("model", "dim") == 16
    assert run.option("", "seed_everything") == 0
    assert run.facts["state"] == "finished"
    assert run.last_step == 6


def test_samples_of_the_new_layout(new_run: Path) -> None:
    run = read(new_run)
    assert [stage.step for stage in run.stages] == [2, 4, 6]
    first = run.stages[0]
    assert first.bits == 5.8
    assert [(one.temperature, one.seed, one.prompt) for one in first.samples] == [
        (0.8, 0, None),
        (0.8, 1, None),
        (1.0, 0, None),
        (1.0, 1, None),
        (0.8, 0, 0),
    ]
    assert [one.traps for one in first.samples[:2]] == [("noise",), ()]
    assert first.samples[0].spectral_distance_db == 5.0
    assert run.best_stage is run.stages[2]
    (prompt,) = run.prompts
    assert prompt.source == "held/out.flac from 1.2 s"
    assert prompt.truth == new_run / "samples" / "prompt0-truth.wav"
    assert run.recording == new_run / "samples" / "recording.wav"


def test_samples_of_the_old_layout(old_run: Path) -> None:
    run = read(old_run)
    assert [stage.step for stage in run.stages] == [4, 6]
    sample = run.stages[1].samples[1]
    assert (sample.temperature, sample.seed, sample.prompt, sample.bits) == (0.95, 1, None, 5.4)
    assert (sample.traps, sample.level_db) == (None, None)
    assert (run.prompts, run.recording) == ((), None)


def test_a_row_that_is_being_written_is_not_read(run_copy: Path) -> None:
    metrics = run_copy / "metrics.csv"
    before = read(run_copy).metrics
    with metrics.open("a") as file:
        file.write(metrics.read_text().splitlines()[-1].replace("6,", "8,", 1)[:-3])  # no end of line
    assert read(run_copy).metrics == before
    with metrics.open("a") as file:
        file.write("\nnonsense\n9,1\n")
    assert read(run_copy).last_step == 6 or 8 in read(run_copy).validation


def test_half_written_files_are_as_if_they_were_not_there(new_run: Path) -> None:
    for name in ("run.json", "samples/step-0000002-t0.80-0.json", "samples/prompt0.json"):
        content = (new_run / name).read_bytes()
        (new_run / name).write_bytes(content[: len(content) // 2])
    (new_run / "config.yaml").write_text("model: {dim: [")
    (new_run / "samples" / "step-0000004-t0.80-0.json").write_text("[1, 2]")
    (new_run / "samples" / "step-0000006-t0.80-0.json").write_text('{"level_db": NaN, "temperature": "<b>"}')
    run = read(new_run)
    assert run.config == {}
    assert run.facts == {}
    samples = [stage.samples[0] for stage in run.stages]
    assert [(one.step, one.temperature, one.level_db) for one in samples] == [
        (2, 0.8, None),
        (4, 0.8, None),
        (6, 0.8, None),
    ]


def test_an_empty_run_has_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    run = read(tmp_path)
    assert (run.best, run.baselines, run.stages, run.best_stage, run.last_step) == (None, None, (), None, 0)
    assert run.samples_per_s is None


def test_a_validation_that_is_not_finite_is_kept_but_never_best(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,validation/bits_per_sample\n1,3.5\n2,nan\n3,inf\n")
    run = read(tmp_path)
    assert run.best == (1, 3.5)
    assert math.isnan(run.validation[2])


@pytest.mark.parametrize("name", ["nowhere", ".", "file"])
def test_what_is_no_run_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(UserError, match="run's folder"):
        read(name)


def test_a_continuation_is_heard_after_the_end_of_its_prompt(
    tmp_path: Path, speech: NDArray[np.int16]
) -> None:
    sf.write(tmp_path / "a.wav", speech[:4000], RATE)
    sf.write(tmp_path / "b.wav", speech[4000:5000], RATE)
    heard = sound(tmp_path / "b.wav", tmp_path / "a.wav", tail_seconds=0.5)
    assert heard is not None
    np.testing.assert_array_equal(heard.audio, speech[2000:5000])
    assert heard.mark == 0.5
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    assert sound(tmp_path / "c.wav") is None
    assert sound(tmp_path / "none.wav") is None
    sf.write(tmp_path / "d.wav", speech[:0], RATE)
    assert sound(tmp_path / "d.wav") is None
