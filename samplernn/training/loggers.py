"""metrics.csv: one row per step that logged anything, continued by a resumed run."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from samplernn import storage

Row = dict[str, Any]


class MetricsFile(Logger):
    """Appends to a CSV file (Lightning's own CSVLogger deletes an existing one).

    Where it cannot be written for a while, as on Windows while a spreadsheet has it open, rows are kept and
    written with the next one; at the end what is left goes to a file beside.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._columns = ["step"]
        self._rows: list[Row] = []
        """The last row, which may still grow, and those before it that could not be written."""
        self._has_new_columns = self._is_refused = False
        self._begin: int | None = None
        """Where these rows begin in the file, in bytes; None: they are not in it, and are appended."""
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                self._columns = list(csv.DictReader(file).fieldnames or self._columns)

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
        if self._rows and self._rows[-1]["step"] == step:
            self._rows[-1].update(metrics)
        else:
            if not self._is_refused:  # those before are in the file, and complete
                self._rows, self._begin = [], None
            self._rows.append({"step": step, **metrics})
        new_columns = [name for name in self._rows[-1] if name not in self._columns]
        self._columns += new_columns
        self._has_new_columns |= bool(new_columns)
        try:
            self._write()
        except OSError as error:
            if not storage.may_pass(error, replaces=True):
                raise
            if not self._is_refused:
                self._say(f"cannot be written now ({error.strerror}); rows are kept until it can")
            self._is_refused = True
        else:
            self._is_refused = False

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what could not be written so far, beside the file if there is no other way."""
        if not self._is_refused:
            return
        try:
            storage.patiently(self._write, replaces=True)
            self._is_refused = False
        except OSError as error:
            rest = self.path.with_name(f"{self.path.stem}-rest{self.path.suffix}")
            rows = self._lines(self._rows, header=True)
            self._say(f"cannot be written ({error.strerror}); its last rows go to {rest.name}")
            with contextlib.suppress(OSError):  # the same may hold there
                storage.write_whole(rest, lambda partial: partial.write_bytes(rows))

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, or was cut short: a resumed run will do it again."""
        if self.path.exists():
            self._rows = []
            self._begin = None

            def keep(row: Row) -> bool:
                return None not in row.values() and int(row["step"]) <= step

            storage.patiently(lambda: self._rewrite(keep), replaces=True)

    def _write(self) -> None:
        """Write all rows that are not in the file as they are now. Raises OSError."""
        if self._has_new_columns or not self.path.exists():
            self._rewrite()
            self._has_new_columns = False
        lines = [self._lines([row]) for row in self._rows]
        with self.path.open("r+b") as file:
            end = file.seek(0, io.SEEK_END)
            self._begin = end if self._begin is None else min(self._begin, end)
            file.truncate(self._begin)
            file.seek(self._begin)
            file.write(b"".join(lines))
        self._begin += sum(map(len, lines[:-1]))
        del self._rows[:-1]

    def _rewrite(self, keep: Callable[[Row], bool] = lambda row: True) -> None:
        """Write the file anew, with the present columns and the rows to keep of those before ours."""
        content = self.path.read_bytes()[: self._begin].decode() if self.path.exists() else ""
        old = csv.DictReader(io.StringIO(content, newline=""))
        lines = self._lines((row for row in old if keep(row)), header=True)
        partial = self.path.with_suffix(".partial")
        partial.write_bytes(lines)
        partial.replace(self.path)
        self._begin = len(lines)

    def _lines(self, rows: Iterable[Row], header: bool = False) -> bytes:
        """Rows as they stand in the file."""
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, self._columns)
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return lines.getvalue().encode()

    def _say(self, problem: str) -> None:
        print(f"{self.path}: {problem}", file=sys.stderr, flush=True)
