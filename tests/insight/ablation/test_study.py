"""scripts/ablate.py on real audio: killed, continued, asked for something else; every run is a real one."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from samplernn.config import UserError
from samplernn.generation.engines import open_engine
from samplernn.insight import runs
from samplernn.insight.ablation.study import Study
from samplernn.insight.ablation.tables import define
from samplernn.insight.evaluate import evaluate
from samplernn.model.checkpoint import export, load
from tests.conftest import CLIPS, TOY

SCRIPT = Path(__file__).parents[3] / "scripts" / "ablate.py"
STEPS = 600
DEADLINE = 100.0
ROWS = ["--row", "one-hot: model.embedding_dim=0", "--row", "wild: optim.lr=1e30"]


def _command(out: Path, *options: str, steps: int = STEPS) -> list[str]:
    (out.parent / "toy.yaml").write_text(yaml.safe_dump(TOY))
    base = ["--config", str(out.parent / "toy.yaml"), "--steps", str(steps), "--out", str(out)]
    often = ["--set", "checkpoint.every_steps=50", "--set", "trainer.val_check_interval=200"]
    return [sys.executable, str(SCRIPT), str(CLIPS), *base, *often, *options]


def _run(out: Path, *options: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    command = _command(out, *options, **settings)
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """The script's own."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import ablate

    entrance: Callable[[list[str]], int] = ablate.main
    return entrance


def _wait_for(condition: Any) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, private_cache: None) -> Path:
    """A study that was killed, SIGKILL, when its first run had saved a few times."""
    out = tmp_path_factory.mktemp("ablation") / "study"
    study = subprocess.Popen(_command(out, *ROWS), stderr=subprocess.PIPE, start_new_session=True)
    last = out / "runs" / "one-hot-seed0" / "checkpoints" / "last-previous.ckpt"
    _wait_for(lambda: last.exists() or study.poll() is not None)
    assert study.poll() is None
    study.kill()  # the study alone: what it started has to notice
    study.communicate()
    return out


@pytest.fixture(scope="module")
def finished(killed: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """That study, begun again with the same command."""
    return killed, _run(killed, *ROWS)


def test_a_killed_study_goes_on_with_its_unfinished_run(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = finished
    assert done.returncode == 1, done.stderr  # one row failed
    log = (out / "logs" / "one-hot-seed0.log").read_text()
    assert log.count("continuing from") == 1
    run = runs.read(out / "runs" / "one-hot-seed0")
    assert run.facts["step"] == STEPS
    assert sorted(run.validation) == [200, 400, 600]
    assert "[1/2] one-hot, seed 0: 600 steps" in done.stderr
    assert "samples/s; generates" in done.stderr


def test_the_table_says_what_evaluate_says(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, done = finished
    one_hot, wild = csv.DictReader((out / "ablation.csv").open(newline=""))
    checkpoint = load(out / "runs" / "one-hot-seed0")
    score = evaluate(checkpoint, CLIPS)
    assert float(one_hot["test_bits"]) == pytest.approx(score.bits_per_sample, abs=1e-4)
    assert int(one_hot["parameters"]) == sum(each.numel() for each in checkpoint.build().parameters())
    assert int(one_hot["steps"]) == STEPS
    assert float(one_hot["train_samples_per_s"]) > 0
    assert float(one_hot["generate_samples_per_s"]) > 0
    assert one_hot["engine"] == "cpu int8"
    assert f"{score.baselines.previous_sample:.3f}" in (out / "ablation.md").read_text()
    assert (out / "ablation.md").read_text() in done.stdout
    assert (out / "ablation.png").read_bytes().startswith(b"\x89PNG")
    assert wild["n"] == "0"


def test_a_failing_row_is_recorded_and_the_study_goes_on(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, done = finished
    result = json.loads((out / "results" / "wild-seed0.json").read_text())
    assert result["measured"] is None
    assert "finite" in result["failure"] or "diverged" in result["failure"]
    assert "- wild, seed 0: " in (out / "ablation.md").read_text()
    assert "[2/2] wild, seed 0: failed: " in done.stderr


def test_what_is_finished_is_not_done_again(
    finished: tuple[Path, subprocess.CompletedProcess[str]], capfd: pytest.CaptureFixture[str]
) -> None:
    out, _ = finished
    before = {file: file.stat().st_mtime_ns for file in out.glob("r*/**/*") if file.is_file()}
    again = _run(out, *ROWS)
    assert again.returncode == 1
    assert "[1/2]" not in again.stderr
    assert {file: file.stat().st_mtime_ns for file in out.glob("r*/**/*") if file.is_file()} == before


@pytest.mark.parametrize(
    ("rows", "steps", "named"),
    [
        (["--row", "one-hot: model.embedding_dim=0 optim.lr=0.001"], STEPS, "optim.lr: 0.004 -> 0.001"),
        (ROWS, STEPS + 1, "trainer.max_steps: 600 -> 601"),
    ],
)
def test_a_changed_definition_is_refused_in_one_line(
    finished: tuple[Path, subprocess.CompletedProcess[str]],
    main: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    rows: list[str],
    steps: int,
    named: str,
) -> None:
    assert main(_command(finished[0], *rows, steps=steps)[2:]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"one-hot-seed0 was made otherwise ({named})" in said
    assert "--redo" in said


def test_one_hot_models_export_and_generate(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out, _ = finished
    checkpoint = load(out / "runs" / "one-hot-seed0")
    exported = load(export(checkpoint, tmp_path / "exported"))
    assert "sample_level_mlp.embedding.weight" not in exported.weights
    assert exported.weights_hash() == checkpoint.weights_hash()
    assert evaluate(exported, CLIPS).bits_per_sample == pytest.approx(
        evaluate(checkpoint, CLIPS).bits_per_sample
    )
    assert open_engine(exported.build()).name == "cpu"


def test_other_audio_and_redo(
    finished: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """Without training: `--redo` is looked at up to the deletion."""
    out, _ = finished
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(TOY))
    options = {"checkpoint.every_steps": 50, "trainer.val_check_interval": 200}
    rows = {"one-hot": {"model.embedding_dim": 0}, "wild": {"optim.lr": 1e30}}
    definition = {"config": str(tmp_path / "toy.yaml"), "budget": f"{STEPS} steps", "options": options}
    study = Study(define({**definition, "rows": rows}), CLIPS, out)
    assert [line.split()[0] for line in study.plan()] == ["one-hot-seed0", "wild-seed0"]
    facts = study._facts()
    other = {**facts, "audio": {**facts["audio"], "gain": 0.5}}
    with pytest.raises(UserError, match=r"was made otherwise .other audio.; choose another folder"):
        study._agree_with_before(other, redo=False)
    study._agree_with_before(facts, redo=True)  # failed: once more
    assert not (out / "runs" / "wild-seed0").exists()
    assert (out / "runs" / "one-hot-seed0").exists()
    changed = {**definition, "rows": {**rows, "one-hot": {"model.embedding_dim": 0, "model.dim": 8}}}
    study = Study(define(changed), CLIPS, out)
    assert "model.dim: 16 -> 8" in study.plan()[0]
    study._agree_with_before(study._facts(), redo=True)
    assert not (out / "runs" / "one-hot-seed0").exists()
    assert all("to be done" in line for line in study.plan())


def test_ctrl_c_saves_and_stops(tmp_path: Path) -> None:
    out = tmp_path / "study"
    study = subprocess.Popen(
        _command(out, "--row", "gru", steps=100_000),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _wait_for(lambda: (out / "runs" / "gru-seed0" / "checkpoints" / "last.ckpt").exists())
    os.killpg(study.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, said = study.communicate(timeout=DEADLINE)
    assert study.returncode == 130
    assert said.splitlines()[-1] == "stopped by SIGINT; the same command goes on"
    assert runs.read(out / "runs" / "gru-seed0").facts["saved"] is True
    assert not list((out / "results").iterdir())


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--row", "x: model.foo=1"], "row x: unknown option model.foo"),
        (["--row", "gru", "--row", "x: model.q_levels=32"], "row x has model.q_levels 32, row gru 64"),
        (["--table", "nothing"], "--table nothing: no such table"),
        ([], "name a --table, or give a --row"),
        (["--row", "x: model.dim"], "'model.dim' is no option; write KEY=VALUE"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(
    tmp_path: Path,
    main: Callable[[list[str]], int],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    complaint: str,
) -> None:
    assert main(_command(tmp_path / "study", *options)[2:]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.count("\n") == 1
    assert not (tmp_path / "study").exists()
