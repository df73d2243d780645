"""metrics.csv: one row per step that logged anything, continued by a resumed run."""

from __future__ import annotations

import contextlib
import csv
import io
import threading
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from samplernn import storage
from samplernn.messages import say

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
        """The last row, which may still grow, and those before it that were refused."""
        self._has_new_columns = self._is_refused = False
        self._begin: int | None = None
        """Where these rows begin in the file, in bytes; None: they are not in it, and are appended."""
        if path.exists():
            columns = self._reader().fieldnames or []
            if "step" in columns:
                self._columns = list(columns)
            elif path.stat().st_size:
                aside = path.with_name("metrics-damaged.csv")  # no use to us, but maybe to somebody
                storage.replace(path, aside)
                say(f"{path}: damaged (no column of steps); kept as {aside.name}")

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
            self._is_refused = False
        except OSError as error:
            if not storage.may_pass(error, replaces=True):
                raise
            if not self._is_refused:
                say(f"{self.path}: cannot be written now ({error.strerror}); rows are kept until it can")
            self._is_refused = True

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
            say(f"{self.path}: cannot be written ({error.strerror}); its last rows go to {rest.name}")
            with contextlib.suppress(OSError):  # the same may hold there
                storage.write_bytes(rest, rows)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Forget what was logged after `step`, or was cut short: a resumed run will do it again.

        A row of `step` itself is completed if more of that step is logged.
        """
        self._rows, self._begin = [], None
        if not self.path.exists():
            return

        def keep(row: Row) -> bool:
            return None not in row.values() and None not in row and -1 < _step(row) <= step

        storage.patiently(lambda: self._rewrite(keep), replaces=True)
        rows = list(self._reader())
        if rows and _step(rows[-1]) == step:
            self._rows = [{**rows[-1], "step": step}]
            self._begin = self.path.stat().st_size - len(self._lines(self._rows))

    def _write(self) -> None:
        """Write all rows that are not in the file as they are now. Raises OSError."""
        if self._has_new_columns or not self.path.exists():
            self._rewrite()
            self._has_new_columns = False
        with self.path.open("r+b") as file:
            end = file.seek(0, io.SEEK_END)
            self._begin = end if self._begin is None else min(self._begin, end)
            file.truncate(self._begin)
            file.seek(self._begin)
            file.write(self._lines(self._rows))

    def _rewrite(self, keep: Callable[[Row], bool] = lambda row: True) -> None:
        """Write the file anew, with the present columns and the rows to keep of those before ours."""
        kept: list[Row] = []
        with contextlib.suppress(csv.Error):  # a line of megabytes: damage, and the end of what is left
            kept.extend(row for row in self._reader() if keep(row))
        lines = self._lines(kept, header=True)
        partial = self.path.with_suffix(".partial")
        partial.write_bytes(lines)
        partial.replace(self.path)
        self._begin = len(lines)

    def _reader(self) -> csv.DictReader[str]:
        """The rows before ours as far as they can be read, whatever bytes the file holds."""
        content = self.path.read_bytes()[: self._begin] if self.path.exists() else b""
        text = content.decode("utf-8", errors="replace").replace("\0", "")
        return csv.DictReader(io.StringIO(text, newline=""))

    def _lines(self, rows: Iterable[Row], header: bool = False) -> bytes:
        """Rows as they stand in the file."""
        lines = io.StringIO(newline="")
        writer = csv.DictWriter(lines, self._columns, extrasaction="ignore")
        if header:
            writer.writeheader()
        writer.writerows(rows)
        return lines.getvalue().encode()


@contextlib.contextmanager
def quiet_writers() -> Iterator[None]:
    """Inside, TensorBoard's thread prints no traceback when it cannot write: who logs next hears of it."""
    before = threading.excepthook

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not type(failed.thread).__module__.startswith("tensorboard."):
            before(failed)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _step(row: Row) -> int:
    """Of a row; -1 where it says none, for it is damaged."""
    try:
        return int(row["step"])
    except (KeyError, TypeError, ValueError):
        return -1
