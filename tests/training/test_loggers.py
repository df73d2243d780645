"""metrics.csv: growing columns, one row per step, continued and rewound."""

from __future__ import annotations

import csv
from pathlib import Path

from samplernn.training.loggers import MetricsFile


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_of_one_step_are_one_row_and_columns_grow(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"a": 1.0}, step=1)
    metrics.log_metrics({"a": 2.0}, step=2)
    metrics.log_metrics({"b": 3.0}, step=2)
    metrics.log_metrics({"a": 4.0}, step=3)
    metrics.log_metrics({"b": 5.0}, step=3)
    assert _read(tmp_path / "metrics.csv") == [
        {"step": "1", "a": "1.0", "b": ""},
        {"step": "2", "a": "2.0", "b": "3.0"},
        {"step": "3", "a": "4.0", "b": "5.0"},
    ]


def test_a_second_logger_continues_the_file(tmp_path: Path) -> None:
    MetricsFile(tmp_path / "metrics.csv").log_metrics({"a": 1.0}, step=1)
    MetricsFile(tmp_path / "metrics.csv").log_metrics({"a": 2.0, "b": 0.5}, step=2)
    assert [row["a"] for row in _read(tmp_path / "metrics.csv")] == ["1.0", "2.0"]


def test_rewinding_drops_the_steps_that_will_be_done_again(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in range(1, 6):
        metrics.log_metrics({"a": float(step)}, step=step)
    resumed = MetricsFile(tmp_path / "metrics.csv")
    resumed.rewind(3)
    resumed.log_metrics({"a": 40.0}, step=4)
    assert [(row["step"], row["a"]) for row in _read(tmp_path / "metrics.csv")] == [
        ("1", "1.0"),
        ("2", "2.0"),
        ("3", "3.0"),
        ("4", "40.0"),
    ]


def test_rewinding_drops_a_row_that_a_full_disk_has_cut_short(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    for step in (10, 20, 30):
        metrics.log_metrics({"a": float(step), "b": 1.0}, step=step)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("4")  # of "40,40.0,1.0"
    resumed = MetricsFile(tmp_path / "metrics.csv")
    resumed.rewind(20)
    assert [row["step"] for row in _read(tmp_path / "metrics.csv")] == ["10", "20"]
