"""metrics.csv: growing columns, one row per step, continued and rewound."""

from __future__ import annotations

import csv
import errno
import io
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from samplernn import storage
from samplernn.training.loggers import MetricsFile, quiet_writers


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


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """While it holds an errno, metrics.csv can be read, and neither written nor replaced, as Excel holds a file."""
    found: list[int] = []
    opened, replaced = Path.open, Path.replace

    def open_(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if found and self.name == "metrics.csv" and mode not in ("r", "rb"):
            raise OSError(found[0], os.strerror(found[0]))
        return opened(self, mode, *arguments, **options)

    def replace(self: Path, target: Path) -> Path:
        if found and target.name == "metrics.csv":
            raise OSError(found[0], os.strerror(found[0]))
        return replaced(self, target)

    monkeypatch.setattr(Path, "open", open_)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(storage, "sleep", lambda seconds: None)
    return found


def test_rows_are_kept_while_another_program_holds_the_file(
    tmp_path: Path, held: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"a": 1.0}, step=1)
    held.append(errno.EACCES)
    metrics.log_metrics({"a": 2.0}, step=2)
    metrics.log_metrics({"b": 2.5}, step=2)
    metrics.log_metrics({"a": 3.0}, step=3)
    assert [row["step"] for row in _read(tmp_path / "metrics.csv")] == ["1"]
    assert capsys.readouterr().err.count("metrics.csv: cannot be written now (Permission denied)") == 1
    held.clear()
    metrics.log_metrics({"b": 3.5}, step=3)
    metrics.log_metrics({"a": 4.0}, step=4)
    metrics.finalize("success")
    assert [tuple(row.values()) for row in _read(tmp_path / "metrics.csv")] == [
        ("1", "1.0", ""),
        ("2", "2.0", "2.5"),
        ("3", "3.0", "3.5"),
        ("4", "4.0", ""),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("is_let_go", [True, False])
def test_what_could_not_be_written_is_written_at_the_end_or_beside(
    tmp_path: Path, held: list[int], capsys: pytest.CaptureFixture[str], is_let_go: bool
) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"a": 1.0}, step=1)
    held.append(errno.ESTALE)
    metrics.log_metrics({"a": 2.0}, step=2)
    metrics.log_metrics({"a": 3.0}, step=3)
    if is_let_go:
        held.clear()
    metrics.finalize("success")
    inside = [row["step"] for row in _read(tmp_path / "metrics.csv")]
    assert inside == (["1", "2", "3"] if is_let_go else ["1"])
    rest = tmp_path / "metrics-rest.csv"
    assert rest.exists() == (not is_let_go)
    if not is_let_go:
        assert [(row["step"], row["a"]) for row in _read(rest)] == [("2", "2.0"), ("3", "3.0")]
        assert "its last rows go to metrics-rest.csv" in capsys.readouterr().err


def test_a_row_that_was_torn_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network disk may fail in the middle of a row."""
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"a": 1.0}, step=1)
    metrics.log_metrics({"a": 2.0}, step=2)
    with (tmp_path / "metrics.csv").open("a") as file:  # what another program has added stays
        file.write("2,2.1\r\n")
    begin = (tmp_path / "metrics.csv").stat().st_size
    opened = Path.open

    class Torn(io.FileIO):
        def write(self, content: Any) -> int:
            super().write(content[:3])
            raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r": Torn(self, mode))
        metrics.log_metrics({"a": 3.0}, step=3)
    assert (tmp_path / "metrics.csv").stat().st_size == begin + 3
    assert opened is Path.open
    metrics.log_metrics({"a": 4.0}, step=4)
    assert [row["a"] for row in _read(tmp_path / "metrics.csv")] == ["1.0", "2.0", "2.1", "3.0", "4.0"]


def test_a_full_disk_is_said_at_once(tmp_path: Path, held: list[int]) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.log_metrics({"a": 1.0}, step=1)
    held.append(errno.ENOSPC)
    with pytest.raises(OSError, match="No space left"):
        metrics.log_metrics({"a": 2.0}, step=2)


def test_a_thread_of_tensorboard_that_cannot_write_tells_it_to_who_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It, too, would print a traceback; other threads still do."""
    printed: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: printed.append(failed.thread))
    writer = EventFileWriter(str(tmp_path))._async_writer

    def full(data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer._worker._record_writer, "write", full)
    other = threading.Thread(target=full, args=(b"",))
    with quiet_writers():
        writer.write(b"event")
        writer._worker.join(10)
        with pytest.raises(OSError, match="No space left"):
            writer.write(b"event")
        other.start()
        other.join()
    assert printed == [other]
