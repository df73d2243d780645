"""metrics.csv: one row per step that logged anything, continued by a resumed run."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

Row = dict[str, Any]


class MetricsFile(Logger):
    """Appends to a CSV file (Lightning's own CSVLogger deletes an existing one).

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._last: Row = {}
        self._last_at = 0  # where the last row starts in the file, in bytes
        if path.exists():
            columns = self._reader().fieldnames or []
            if "step" in columns:
                self._columns = list(columns)
            elif path.stat().st_size:
                self._put_aside()

    @property
    def name(self) -> str:
        """Of the logger."""
        return "metrics"

    @property
    def version(self) -> str:
        """There is one per run."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Kept in config.yaml instead."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a row, or complete the row of the same step."""
        same_step = self._last.get("step") == step
        row = {**self._last, **metrics} if same_step else {"step": step, **metrics}
        new_columns = [name for name in row if name not in self._columns]
        if new_columns or not self.path.exists():
            self._columns += new_columns
            self._rewrite(keep=lambda old: not (same_step and _step(old) == step))
        elif same_step:
            with self.path.open("r+b") as file:
                file.truncate(self._last_at)
        self._last, self._last_at = row, self.path.stat().st_size
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(self._line(row))

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, or was cut short: a resumed run will do it again.

        A row of `step` itself is completed if more of that step is logged.
        """
        self._last = {}
        if not self.path.exists():
            return
        self._rewrite(
            keep=lambda old: None not in old.values() and None not in old and -1 < _step(old) <= step
        )
        with self.path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and _step(rows[-1]) == step:
            self._last = {**rows[-1], "step": step}
            self._last_at = self.path.stat().st_size - len(self._line(self._last).encode())

    def _line(self, row: Row) -> str:
        line = io.StringIO()
        csv.DictWriter(line, self._columns, extrasaction="ignore").writerow(row)
        return line.getvalue()

    def _reader(self) -> csv.DictReader[str]:
        """The rows of the file as far as they can be read, whatever bytes it holds."""
        text = self.path.read_text("utf-8", errors="replace").replace("\0", "")
        return csv.DictReader(io.StringIO(text, newline=""))

    def _put_aside(self) -> None:
        """A file without a column of steps is no use, but may be of some to somebody."""
        aside = self.path.with_name("metrics-damaged.csv")
        self.path.replace(aside)
        print(f"{self.path}: damaged (no column of steps); kept as {aside.name}", file=sys.stderr, flush=True)

    def _rewrite(self, keep: Callable[[Row], bool]) -> None:
        """Write the file anew, with the present columns and the rows to keep."""
        partial = self.path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8", newline="") as new:
            csv.DictWriter(new, self._columns).writeheader()
            if self.path.exists():
                with contextlib.suppress(
                    csv.Error
                ):  # a line of megabytes: damage, and the end of what is left
                    for row in self._reader():
                        if keep(row):
                            new.write(self._line(row))
        partial.replace(self.path)


def _step(row: Row) -> int:
    """Of a row; -1 where it says none, for it is damaged."""
    try:
        return int(row["step"])
    except (KeyError, TypeError, ValueError):
        return -1
