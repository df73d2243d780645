"""scripts/ablate.py, run as a user does: at toy size, interrupted by a failing row, begun again."""

from __future__ import annotations

import csv
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.conftest import toy_arguments

ROOT = Path(__file__).parents[1]
DOCS = (ROOT / "docs" / "ablations.md").read_text("utf-8")


@pytest.fixture(autouse=True)
def _script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)


def _ablate(*arguments: str) -> int:
    import ablate

    return ablate.main(list(arguments))


def _options() -> list[str]:
    """The toy model's, for all rows; the script gives steps and no audio itself."""
    keys = [
        key.removeprefix("--") for key in toy_arguments() if "max_steps" not in key and "samples" not in key
    ]
    return [part for key in keys for part in ("--set", key)]


def test_a_study_goes_on_where_it_stood(clips: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row that fails is recorded, the rest is done; a later command does only what is missing."""
    rows = ["--row", "gru", "--row", "wide: model.dim=24", "--row", "fails: trainer.devices=1000"]
    command = [str(clips), "--steps", "4", "--out", "study", *_options()]
    assert _ablate(*command, *rows) == 1
    assert "- fails: seed 0: error: " in capsys.readouterr().out
    with Path("study/ablation.csv").open(newline="") as file:
        gru, wide, failed = csv.DictReader(file)
    assert (gru["row"], gru["n"], gru["steps"], gru["difference"]) == ("gru", "1", "4", "0.0")
    assert 3 < float(gru["bits"]) < 8
    assert float(wide["parameters"]) > float(gru["parameters"])
    assert float(wide["difference"]) == pytest.approx(float(wide["bits"]) - float(gru["bits"]))
    assert float(wide["generate_samples_per_s"]) > 100
    assert (failed["n"], failed["bits"]) == ("0", "nan")
    assert Path("study/ablation.png").read_bytes().startswith(b"\x89PNG")

    before = Path("study/runs/gru-seed0/checkpoints/last.ckpt").stat().st_mtime_ns
    assert _ablate(*command, *rows[:4]) == 0
    assert Path("study/runs/gru-seed0/checkpoints/last.ckpt").stat().st_mtime_ns == before
    assert "samples (gain" in Path("study/ablation.md").read_text("utf-8")
    assert _ablate(*command, "--row", "gru: model.dim=8") == 2
    assert "this run had other options" in capsys.readouterr().err


def test_a_run_that_was_begun_is_resumed(clips: Path, tmp_path: Path) -> None:
    command = [str(clips), "--steps", "6", "--out", "study", "--row", "gru", *_options()]
    import ablate

    table = ablate.define(ablate.definition_of(ablate.parser().parse_args(command)))
    config = table.config(table.rows[0], 0)
    assert config.trainer.max_steps == 6
    Path("study").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir("study")
        from samplernn.training import callbacks, run

        def stop(self: callbacks.Stopping, trainer: object, *rest: object) -> None:
            raise RuntimeError("pulled out")

        patch.setattr(callbacks.Stopping, "on_validation_end", stop, raising=False)
        with pytest.raises(RuntimeError, match="pulled out"):
            run.start(clips, config, "gru-seed0", quiet=True)
    assert _ablate(*command) == 0
    assert "| gru |" in Path("study/ablation.md").read_text("utf-8")
    assert "\n6," in Path("study/runs/gru-seed0/metrics.csv").read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--row", "a", "--row", "b: model.q_levels=128"], "bits compare only at equal head"),
        (["--row", "a: model.dimension=3"], "row a: unknown option model.dimension"),
        (["--row", "a: trainer.max_steps=3"], "is the same for all rows"),
        (["--grid", "model.dim=all"], "all is for options that are a choice"),
        (["--row", "a", "--time", "soon"], "budget soon: write the time"),
        (["--table", "none"], "name a --table of"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, clips: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _ablate(str(clips), "--dry-run", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1


def test_the_commands_and_the_table_of_the_page_are_understood(
    clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = DOCS.replace("\\\n", " ").splitlines()
    commands = [line.strip() for line in lines if line.startswith("    python scripts/ablate.py ")]
    assert len(commands) == 3
    for command in commands:
        assert _ablate(*shlex.split(command.replace("FOLDER", str(clips)))[2:], "--dry-run") == 0
        assert "to be done" in capsys.readouterr().out
    (example,) = re.findall(r"```yaml\n(.*?)```", DOCS, flags=re.S)
    (tmp_path / "mine.yaml").write_text(example)
    assert _ablate(str(clips), "--tables", "mine.yaml", "--table", "rates", "--dry-run") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:6]] == [
        "usual-seed0",
        "slow-and-wide-seed0",
        "lr-2e-3-ema_decay-0.0-seed0",
        "lr-2e-3-ema_decay-0.999-seed0",
        "lr-8e-3-ema_decay-0.0-seed0",
        "lr-8e-3-ema_decay-0.999-seed0",
    ]
    assert len(said) == 12
    assert "scripts" in sys.modules["ablate"].__file__  # type: ignore[operator]
