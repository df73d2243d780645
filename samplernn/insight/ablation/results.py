"""What an ablation found: a result per run, gathered into a table (Markdown, CSV) and a picture."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samplernn import plots, storage
from samplernn.config import UserError
from samplernn.insight import runs
from samplernn.insight.ablation.tables import Row, Table, shown
from samplernn.insight.words import count
from samplernn.model.baselines import BaselineBits

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Measured:
    """What a finished run is worth."""

    parameters: int
    """Trained ones."""
    steps: int
    train_seconds: float
    bits: float
    """Per sample, on the whole test split."""
    num_samples: int
    """So many were scored."""
    baselines: BaselineBits
    gain: float
    sample_rate: int
    """Hz."""
    train_samples_per_s: float | None
    generate_samples_per_s: float
    """One stream."""
    engine: str
    """That generated, and its dtype."""


@dataclass(frozen=True)
class Result:
    """What has come of a run."""

    label: str
    seed: int
    run: str
    wall_seconds: float
    """With start, evaluation and measuring; of its last session."""
    failure: str | None = None
    """Why nothing has been measured."""
    measured: Measured | None = None


def write(result: Result, file: Path) -> None:
    """Write a result, whole or not at all."""
    storage.write_text(file, json.dumps(asdict(result), indent=1) + "\n")


def read(file: Path) -> Result | None:
    """A result; None: not yet.

    Raises:
        UserError: the file is damaged.
    """
    try:
        values: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if values["measured"]:
            baselines = BaselineBits(**values["measured"]["baselines"])
            values["measured"] = Measured(**{**values["measured"], "baselines": baselines})
        return Result(**values)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: is damaged; delete it, and the run is measured again") from error


@dataclass(frozen=True)
class Line:
    """A row of the table: the means over its seeds."""

    row: Row
    found: tuple[Measured, ...]
    """By seed, as far as they have succeeded."""
    differences: tuple[float, ...]
    """Bits less those of the first row, seed by seed."""
    failures: tuple[str, ...]

    @property
    def bits(self) -> tuple[float, float]:
        """Mean and standard deviation (not a number for one seed) over seeds."""
        return mean_and_spread([one.bits for one in self.found])

    def mean(self, name: str) -> float | None:
        """Of a figure, over seeds; None: unknown."""
        values = [value for one in self.found if (value := getattr(one, name)) is not None]
        return statistics.mean(values) if values else None


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and (sample) standard deviation; not a number of too few."""
    return (
        statistics.mean(values) if values else math.nan,
        statistics.stdev(values) if len(values) > 1 else math.nan,
    )


def lines(table: Table, results: Sequence[Result]) -> list[Line]:
    """One per row, in the order of the table."""
    by_run = {result.run: result for result in results}
    gathered = []
    for row in table.rows:
        of_row = [by_run[row.run(seed)] for seed in table.seeds if row.run(seed) in by_run]
        differences = []
        for result in of_row:
            first = by_run.get(table.rows[0].run(result.seed))
            if result.measured and first and first.measured:
                differences.append(result.measured.bits - first.measured.bits)
        gathered.append(
            Line(
                row,
                tuple(one.measured for one in of_row if one.measured),
                tuple(differences),
                tuple(f"seed {one.seed}: {one.failure}" for one in of_row if one.failure),
            )
        )
    return gathered


COLUMNS = (
    "row",
    "options",
    "budget",
    "parameters",
    "steps",
    "test_bits",
    "test_bits_std",
    "n",
    "difference_to_first",
    "difference_std",
    "train_samples_per_s",
    "generate_samples_per_s",
    "generate_times_real_time",
    "engine",
    "failures",
)


def as_csv(table: Table, results: Sequence[Result]) -> str:
    """The table as CSV; what is not known is empty."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in lines(table, results):
        bits, difference = line.bits, mean_and_spread(line.differences)
        generating = line.mean("generate_samples_per_s")
        row = {
            "row": line.row.label,
            "options": " ".join(f"{key}={json.dumps(value)}" for key, value in line.row.changes.items()),
            "budget": str(table.budget),
            "parameters": line.found[0].parameters if line.found else None,
            "steps": _rounded(line.mean("steps"), 0),
            "test_bits": _rounded(bits[0], 4),
            "test_bits_std": _rounded(bits[1], 4),
            "n": len(line.found),
            "difference_to_first": _rounded(difference[0], 4),
            "difference_std": _rounded(difference[1], 4),
            "train_samples_per_s": _rounded(line.mean("train_samples_per_s"), 0),
            "generate_samples_per_s": _rounded(generating, 0),
            "generate_times_real_time": _rounded(_times_real_time(line), 2),
            "engine": line.found[0].engine if line.found else None,
            "failures": "; ".join(line.failures),
        }
        writer.writerow({key: "" if value is None else value for key, value in row.items()})
    return file.getvalue()


def as_markdown(table: Table, results: Sequence[Result], about: str) -> str:
    """The table, what it was made of, and what went wrong.

    Args:
        table: its definition.
        results: of the runs that have ended.
        about: where it comes from, a sentence or two.
    """
    found = lines(table, results)
    first = table.rows[0].label
    heads = ["row", "budget", "parameters", "steps", "test bits", f"against {_cell(first)}", "n"]
    heads += ["training, samples/s", "generation, samples/s (times real time)"]
    text = [f"# {table.title}", "", about, ""]
    text += [f"| {' | '.join(heads)} |", f"| {' | '.join(['---'] * len(heads))} |"]
    text += [f"| {' | '.join(_markdown_row(table, line, line is found[0]))} |" for line in found]
    ended = sum(len(line.found) + len(line.failures) for line in found)
    text += ["", _what_it_means(table, found, ended)]
    text += [f"- {_cell(line.row.label)}, {_cell(failure)}" for line in found for failure in line.failures]
    if table.incomparable:
        text += [
            "",
            f"**Bits of these rows do not compare: they differ in {', '.join(table.incomparable)}.**",
        ]
    return "\n".join(text).rstrip() + "\n"


def _markdown_row(table: Table, line: Line, is_first: bool) -> list[str]:
    if not line.found:
        state = "failed" if line.failures else "–"
        return [_cell(line.row.label), str(table.budget), "–", "–", state, "–", "0", "–", "–"]
    training, times = line.mean("train_samples_per_s"), _times_real_time(line)
    return [
        _cell(line.row.label),
        str(table.budget),
        f"{line.found[0].parameters / 1e6:.2f} M",
        f"{line.mean('steps'):,.0f}",
        _with_spread(line.bits, ""),
        "" if is_first else _with_spread(mean_and_spread(line.differences), "+"),
        str(len(line.found)),
        "–" if training is None else f"{training:,.0f}",
        f"{line.mean('generate_samples_per_s'):,.0f} ({times:.2f}x, {line.found[0].engine})",
    ]


def _what_it_means(table: Table, found: Sequence[Line], ended: int) -> str:
    """How to read the table, and its yardsticks."""
    known = [one for line in found for one in line.found]
    total = len(table.rows) * len(table.seeds)
    said = ["Bits per sample of the best checkpoint on the whole test split (lower is better)"]
    if len(table.seeds) > 1:
        said[0] += f", mean ± standard deviation over n of {count(len(table.seeds), 'seed')}"
    said[0] += "; differences are seed by seed."
    if known:
        one = known[0]
        said.append(
            f"On these {one.num_samples:,} samples (gain {one.gain:.3f}): previous sample "
            f"{one.baselines.previous_sample:.3f}, unigram {one.baselines.unigram:.3f}, "
            f"uniform {one.baselines.uniform:.3f}."
        )
    if ended < total:
        said.append(f"**Not finished: {ended} of {total} runs.**")
    return " ".join(said)


def draw(table: Table, results: Sequence[Result], folder: Path) -> Figure | None:
    """Test bits of each row, and validation bits over the time of training.

    Args:
        table: its definition.
        results: of the runs that have ended.
        folder: holds the runs.

    Returns:
        The picture; None while nothing has been measured.
    """
    found = [line for line in lines(table, results) if line.found]
    if not found:
        return None
    drawn = []
    for line in found:
        curves = [curve for seed in table.seeds if (curve := _curve(folder / line.row.run(seed)))]
        drawn.append(plots.Variant(line.row.label, *line.bits, tuple(curves)))
    baseline = found[0].found[0].baselines.previous_sample
    n = max(len(line.found) for line in found)
    return plots.ablation(f"{table.title} ({table.budget} per run, {count(n, 'seed')})", drawn, baseline)


def _curve(folder: Path) -> list[tuple[float, float]]:
    """Seconds of training and validation bits of a run."""
    try:
        run = runs.read(folder)
    except UserError:
        return []
    seconds = run.metrics.get("train/seconds", {})
    pairs = [(seconds[step], bits) for step, bits in sorted(run.validation.items()) if step in seconds]
    return [pair for pair in pairs if all(map(math.isfinite, pair))]


def _times_real_time(line: Line) -> float | None:
    rate = line.mean("generate_samples_per_s")
    return None if rate is None else rate / line.found[0].sample_rate


def _with_spread(values: tuple[float, float], sign: str) -> str:
    mean, spread = values
    if math.isnan(mean):
        return "–"
    return f"{mean:{sign}.3f}" + ("" if math.isnan(spread) else f" ± {spread:.3f}")


def _rounded(value: float | None, digits: int) -> float | int | None:
    if value is None or math.isnan(value):
        return None
    return round(value, digits) if digits else round(value)


def _cell(text: str) -> str:
    return shown(text).replace("|", "\\|").replace("\n", " ")
