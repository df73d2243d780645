"""Folders of runs that are damaged: each command says it in one line, or goes on without the damaged part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from samplernn.cli import main
from samplernn.training.loggers import MetricsFile

DAMAGE: dict[str, bytes] = {
    "empty": b"",
    "no text": b"\xff\xfe\x00\x01\x80",
    "a list": b"[1, 2]",
    "deep": b"[" * 5000,
    "zeros": bytes(200),
}


def _said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, list[str]]:
    """Exit code, standard output and the lines of standard error, but those about files of the corpus."""
    capsys.readouterr()
    code = main(arguments)
    said = capsys.readouterr()
    return code, said.out, [line for line in said.err.splitlines() if not line.startswith("  ")]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["run.json", "config.yaml"])
def test_a_damaged_file_is_named_and_only_it_is_lost(
    run_copy: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_copy / name).write_bytes(DAMAGE[damage])
    file = str(run_copy / name)
    code, _, lines = _said(["report", str(run_copy)], capsys)
    assert (code, len(lines)) == (0, 1), lines
    assert lines[0].startswith(file)
    assert lines[0].endswith("; left out")
    code, out, lines = _said(["info", str(run_copy)], capsys)
    assert code == 0
    assert "6 steps" in out  # the checkpoint knows
    assert [line.split(":")[0] for line in lines] == ([file] if name == "run.json" else [])
    code, _, lines = _said(["train", "--resume", "--name", "toy", "--trainer.max_steps=8"], capsys)
    assert (code, len(lines)) == (2, 1), lines
    assert lines[0].startswith(f"error: {file}")
    assert (run_copy / name).read_bytes() == DAMAGE[damage]


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("folder", None, "folder must be of type str, got None"),
        ("gain", 0, "gain must be from 0.1 to 100000, got 0"),
        ("gain", "loud", "gain must be of type float, got 'loud'"),
        ("split", "all", "split must be a table, got 'all'"),
        ("split", {"train": [[1, 2]]}, "split.train must hold [path, SHA-256, first sample, last sample]"),
        ("split", {"validation": [], "test": []}, "split.train is missing"),
        ("state", 7, "state must be of type str, got 7"),
        ("split", ..., "split is missing"),
    ],
)
def test_facts_that_a_resumed_run_needs_are_checked(
    run_copy: Path, key: str, value: Any, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.loads((run_copy / "run.json").read_text("utf-8"))
    if value is ...:
        del facts[key]
    else:
        facts[key] = value
    (run_copy / "run.json").write_text(json.dumps(facts), "utf-8")
    code, _, lines = _said(["train", "--resume", "--name", "toy", "--trainer.max_steps=8"], capsys)
    assert code == 2
    assert lines == [
        line for line in lines if line.startswith("error: runs/toy/run.json: damaged, so the run cannot")
    ]
    assert complaint in lines[0]


def _leaves(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    for key in values if isinstance(values, dict) else ():
        found += _leaves(values[key], (*path, key))
    return found


def test_whatever_a_value_of_run_json_is_it_can_be_reported(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every value in turn, at every level, becomes something else."""
    whole = (run_copy / "run.json").read_text("utf-8")
    shutil.rmtree(run_copy / "samples")  # they take the time
    for number, path in enumerate(_leaves(json.loads(whole))):
        facts = json.loads(whole)
        inner = facts
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = [None, "text", [1], {"a": 1}, -1e300][number % 5]
        (run_copy / "run.json").write_text(json.dumps(facts), "utf-8")
        for command in ("report",) if path[0] == "about" and len(path) > 2 else ("report", "info"):
            code, _, lines = _said([command, str(run_copy)], capsys)
            assert (code, lines) == (0, []), (command, path)


@pytest.mark.parametrize(
    "content",
    [
        *DAMAGE.values(),
        b"step,train/lr\nx,1\n,,,\n2,nan\n3,1,4,5\n",
        b"epoch\n1\n",
        b"step,step\n1,2\n",
        b'step,train/lr\n1,"' + b"x" * 200_000 + b"\n2,1\n",
    ],
)
def test_metrics_that_are_no_table_do_no_harm(
    run_copy: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_copy / "metrics.csv").write_bytes(content)
    code, _, lines = _said(["report", str(run_copy)], capsys)
    assert (code, lines) == (0, [])
    log = MetricsFile(run_copy / "metrics.csv")
    log.rewind(5)
    log.log_metrics({"train/bits_per_sample": 3.5}, 6)
    log.log_metrics({"train/lr": 0.1}, 6)
    again = MetricsFile(run_copy / "metrics.csv")
    assert {row["train/bits_per_sample"] for row in again._reader() if row["step"] == "6"} == {"3.5"}
    kept = run_copy / "metrics-damaged.csv"
    assert not kept.exists() or kept.read_bytes() == content


def _foreign(file: Path) -> None:
    torch.save({"state_dict": {"layer.weight": torch.zeros(3)}}, file)


def _without(key: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        saved = torch.load(file, weights_only=True)
        *above, last = key.split(".")
        table = saved
        for each in above:
            table = table[each]
        del table[last]
        torch.save(saved, file)

    return change


def _other_moments(file: Path) -> None:
    saved = torch.load(file, weights_only=True)
    saved["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(1)
    torch.save(saved, file)


def _other_lanes(file: Path) -> None:
    saved = torch.load(file, weights_only=True)
    saved["lane_state"]["lanes"][0] = torch.zeros(3, 8, dtype=torch.int64)
    torch.save(saved, file)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_foreign, "global_step is missing"),
        (_without("lane_state"), "lane_state must be a table, got None"),
        (_without("lane_state.loader"), "lane_state.loader is missing"),
        (_without("optimizer_states"), "optimizer_states is missing"),
        (_without("samplernn"), "belongs to another model"),
        (_without("state_dict"), "state_dict must be a table, got None"),
        (_other_moments, "optimizer_states are those of another model"),
        (_other_lanes, "lane_state.lanes are those of another model"),
    ],
)
def test_a_checkpoint_that_cannot_be_continued_is_passed_over(
    run_copy: Path, change: Callable[[Path], None], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run_copy / "checkpoints" / "last.ckpt"
    change(last)
    shutil.copy(last, last.with_name("last-previous.ckpt"))
    code, _, lines = _said(["train", "--resume", "--name", "toy", "--trainer.max_steps=8", "--quiet"], capsys)
    assert code == 2
    assert len(lines) == 3
    assert lines[0].startswith(f"{last}: ")
    assert complaint in lines[0]
    assert lines[0].endswith("; it is passed over")
    assert lines[2].startswith("error: runs/toy: no checkpoint to continue from is whole")


@pytest.mark.parametrize("name", ["checkpoints", "metrics.csv", "samples", "run.json", "config.yaml"])
def test_a_file_in_place_of_a_folder_and_the_reverse_is_one_line(
    run_copy: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_copy / name
    if path.is_dir():
        shutil.rmtree(path)
        path.touch()
    else:
        path.unlink()
        path.mkdir()
    code, _, lines = _said(["report", str(run_copy)], capsys)
    assert code == 0
    assert len(lines) <= 1
    code, _, lines = _said(["train", "--resume", "--name", "toy", "--trainer.max_steps=8", "--quiet"], capsys)
    assert (code, len(lines)) == (2, 1), lines
    assert name in lines[0]


def test_without_checkpoints_a_run_begins_again_and_says_so(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_copy / "checkpoints")
    code, _, lines = _said(["train", "--resume", "--name", "toy", "--trainer.max_steps=8"], capsys)
    assert code == 0
    said = "runs/toy: no checkpoint was saved, or they are gone; it begins from the first step"
    assert lines.count(said) == 1
    steps = [int(row["step"]) for row in MetricsFile(run_copy / "metrics.csv")._reader()]
    assert steps == sorted(set(steps))
    assert max(steps) == 8
