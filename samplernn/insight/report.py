"""`samplernn report`: what a run has learned, to see and to hear, in one file that can be sent to somebody.

Made from the run's folder alone, also while training writes to it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from samplernn import __version__
from samplernn.config import UserError
from samplernn.insight import page, run_parts
from samplernn.insight.comparison import compare
from samplernn.insight.page import Html, html
from samplernn.insight.runs import Run, read

MOST_STAGES = 7
"""Validations that one can listen to in the report of one run."""


def report(runs: str | Path | Sequence[str | Path], out: str | Path | None = None) -> Path:
    """Write one self-contained HTML file about a run, or about several beside each other.

    Args:
        runs: folders of runs, finished or not.
        out: the file; default: ``report.html`` in the run's folder, of several runs in the current one.

    Returns:
        The file.

    Raises:
        UserError: one is not a run, or the file cannot be written.

    Example:
        >>> samplernn.report("runs/first")
        PosixPath('runs/first/report.html')
    """
    paths = [runs] if isinstance(runs, str | Path) else list(runs)
    if not paths:
        raise UserError("name at least one run")
    found = [read(path) for path in paths]
    if out is None:
        out = found[0].path / "report.html" if len(found) == 1 else Path("report.html")
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out}: is a folder; name a file, such as {out / 'report.html'}")
    title, parts = _portray(found[0]) if len(found) == 1 else compare(found)
    return page.save(page.page(f"{title} – samplernn report", *parts, _footer()), out)


def _portray(run: Run) -> tuple[str, list[Html]]:
    """Title and parts of a page about one run."""
    room = page.Room(page.LIMIT)  # taken in the order of importance
    hero = run_parts.hero(run, room)
    pictures = run_parts.beside_corpus(run, room)
    continuations = run_parts.continuations(run, room)
    stages = page.section("Hear it learn", *run_parts.stages_to_hear(run, room, MOST_STAGES))
    curves = page.section("Curves", run_parts.curves(run))
    settings = page.section("Settings", run_parts.settings(run))
    parts = [hero, curves, stages, *continuations, *pictures, settings]
    return run.name, parts


def _footer() -> Html:
    made = time.strftime("%Y-%m-%d %H:%M")
    return Html(f"<footer>Made by samplernn {html(__version__)} on {made}.</footer>")
