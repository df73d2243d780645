"""`samplernn doctor`: is a folder of audio fit for training, and what would training be like?

`examine` finds out and writes nothing; a `Diagnosis` holds what it found, as values (`to_dict`) and for
people (`show`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from samplernn.audio.corpus import Corpus, Problem, inspect
from samplernn.audio.health import ONE_RECORDING, remarks
from samplernn.audio.io import SUFFIXES
from samplernn.audio.split import can_split_by_file
from samplernn.audio.takes import shared
from samplernn.config import Config, UserError
from samplernn.insight import forecast
from samplernn.insight.advice import advise, silence_share
from samplernn.insight.forecast import Cost, Plan
from samplernn.insight.wording import count, decibels, duration, percent, printable, size

_PIPE_WIDTH = 100_000
"""Columns where there is no terminal: nothing is wrapped or cut."""
_PAIRS_SHOWN = 5
"""Files that share audio; `--json` has them all."""


@dataclass(frozen=True)
class Diagnosis:
    """What `examine` found."""

    corpus: Corpus
    config: Config
    """With `data.batch_size` as a number where there is a plan."""
    problems: tuple[Problem, ...]
    """Files that are left out, then files that are used all the same."""
    obstacle: str | None
    """Why the folder cannot be trained on; None if it can."""
    plan: Plan | None
    """What training would do; None if it cannot be."""
    cost: Cost | None
    """What training would take; None if it cannot be."""
    advice: tuple[str, ...]

    @property
    def trainable(self) -> bool:
        """Whether `samplernn train` with the same options would begin."""
        return self.obstacle is None

    @property
    def rms(self) -> float:
        """Of all usable samples, without gain, 0 to 1."""
        energy = sum(file.rms**2 * file.num_samples for file in self.corpus.files)
        return (energy / self.corpus.num_samples) ** 0.5 if self.corpus.files else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON. Seconds, Hz, bytes; level as amplitude, 0 to 1."""
        corpus = self.corpus
        used = {file.path for file in corpus.files}
        rates = _tally(file.source_rate for file in corpus.files)
        widths = _tally(file.channels for file in corpus.files)
        result: dict[str, Any] = {
            "trainable": self.trainable,
            "obstacle": self.obstacle,
            "files": corpus.found,
            "usable_files": len(corpus.files),
            "usable_seconds": corpus.duration,
            "problems": [{**asdict(problem), "used": problem.path in used} for problem in self.problems],
            "advice": list(self.advice),
            "sample_rate": corpus.sample_rate,
            "rates": {str(rate): number for rate, number in rates.items()},
            "channels": {str(channels): number for channels, number in widths.items()},
            "level": {
                "peak": max((file.peak for file in corpus.files), default=0.0),
                "rms": self.rms,
                "gain": corpus.gain,
            },
            "silence_share": silence_share(corpus),
            "takes": _takes(corpus),
            "cache_bytes": 2 * corpus.num_samples,
        }
        if self.plan:
            plan = self.plan
            result["split"] = {
                "by": plan.split_by,
                "train_seconds": plan.train_seconds,
                "validation_seconds": plan.validation_seconds,
                "test_seconds": plan.test_seconds,
            }
            result["segments"] = plan.segments
            result["segment_seconds"] = plan.segment_seconds
            result["filled"] = plan.filled
            result["lanes"] = self.config.data.lanes
            result["steps_per_epoch"] = plan.steps_per_epoch
        if self.plan and self.cost:
            steps, seconds = forecast.first_run(self.config, self.plan, self.cost.step_seconds)
            result["parameters"] = self.cost.parameters
            result["memory_bytes"] = self.cost.memory_bytes
            result["time"] = {
                "device": self.cost.device,
                "step_seconds": self.cost.step_seconds,
                "epoch_seconds": self.plan.steps_per_epoch * self.cost.step_seconds,
                "first_run_steps": steps,
                "first_run_seconds": seconds,
            }
        return result


def examine(
    folder: str | Path, config: Config | None = None, progress: bool = True, seconds: float = 3.0
) -> Diagnosis:
    """Look at a folder of audio as `train` would; nothing is written anywhere.

    Args:
        folder: of the audio.
        config: for the run; None: the defaults, which are the preset `small`.
        progress: show what is being done if standard error is a terminal.
        seconds: for timing training steps, about.

    Raises:
        UserError: no such folder, or the cache would lie in it.
    """
    config = config or Config()
    corpus = inspect(folder, config.data, progress)
    problems = tuple(remarks(corpus, config.data.tbptt_len))
    obstacle, plan, cost = _obstacle(folder, corpus), None, None
    if not obstacle:
        try:
            config = forecast.with_lanes(corpus, config)
            plan = forecast.plan(corpus, config)
        except UserError as error:
            obstacle = str(error)
    if plan:
        terminal = Console(stderr=True, quiet=not progress)
        with terminal.status("timing training steps …") if terminal.is_terminal else nullcontext():
            cost = forecast.measure(config, plan, seconds)
    advice = advise(corpus, problems, config, plan, cost)
    return Diagnosis(corpus, config, problems, obstacle, plan, cost, tuple(advice))


def show(diagnosis: Diagnosis, console: Console, command: str) -> None:
    """Print a diagnosis for people: bad files, facts, advice, verdict.

    Where there is no terminal, every row is one line and no path is cut.

    Args:
        diagnosis: from `examine`.
        console: where to.
        command: that trains on the folder.
    """
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    if diagnosis.problems:
        _print(console, _problems(diagnosis, console.is_terminal))
        console.print()
    if diagnosis.corpus.files:
        _print(console, _facts(diagnosis))
    for number, advice in enumerate(diagnosis.advice, 1):
        row = Table.grid(padding=(0, 1))
        row.add_row(f"{number}.", Text(printable(advice)))
        if number == 1:
            console.print(Text("\nadvice", style="bold"))
        _print(console, row)
    console.print()
    _print(console, _verdict(diagnosis, command))


def _print(console: Console, what: Table | Text) -> None:
    """Print without the blanks that rich puts at the ends of lines when there is no terminal."""
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as capture:
        console.print(what)
    text = "\n".join(line.rstrip() for line in capture.get().splitlines())
    console.print(Text(text), soft_wrap=True)


def _problems(diagnosis: Diagnosis, terminal: bool) -> Table:
    """A row per problem."""
    table = Table(box=box.SIMPLE_HEAD if terminal else None, show_edge=False, pad_edge=False)
    table.add_column("file", overflow="fold", style="bold")
    table.add_column("", overflow="fold")
    table.add_column("problem", overflow="fold")
    table.add_column("what to do", overflow="fold")
    used = {file.path for file in diagnosis.corpus.files}
    for problem in diagnosis.problems:
        mark = Text("used", style="yellow") if problem.path in used else Text("left out", style="red")
        table.add_row(
            Text(printable(problem.path)),
            mark,
            Text(printable(problem.problem)),
            Text(printable(problem.remedy)),
        )
    return table


def _facts(diagnosis: Diagnosis) -> Table:
    """What is usable, and what training would do with it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in [*_about_audio(diagnosis), *_about_run(diagnosis)]:
        table.add_row(name, Text(value))
    return table


def _about_audio(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    corpus = diagnosis.corpus
    rates = _tally(file.source_rate for file in corpus.files)
    channels = _tally(file.channels for file in corpus.files)
    peak = max(file.peak for file in corpus.files)
    raised = f"a gain of {corpus.gain:.2g} brings the peak to -1 dBFS"
    if corpus.normalise == "clip":
        gains = [corpus.gain_of(file) for file in corpus.files]
        raised = f"gains of {min(gains):.2g} to {max(gains):.2g} bring each file's peak to -1 dBFS"
    return [
        ("usable", f"{duration(corpus.duration)} in {len(corpus.files)} of {count(corpus.found, 'file')}"),
        ("rates", _listed(rates, " Hz", f"resampled to {corpus.sample_rate} Hz", corpus.sample_rate)),
        ("channels", _listed(channels, "", "mixed to mono", 1)),
        (
            "level",
            f"peak {decibels(peak)}, RMS {decibels(diagnosis.rms)}; {raised}",
        ),
        ("silence", percent(silence_share(corpus))),
        *([("takes", _shared(corpus))] if corpus.overlaps else []),
        ("cache", f"{size(2 * corpus.num_samples)} of decoded audio"),
    ]


def _about_run(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    plan, cost, data = diagnosis.plan, diagnosis.cost, diagnosis.config.data
    if not (plan and cost):
        return []
    steps, seconds = forecast.first_run(diagnosis.config, plan, cost.step_seconds)
    epoch = plan.steps_per_epoch * cost.step_seconds
    speed = plan.filled * data.lanes * data.tbptt_len / cost.step_seconds
    machine = f" of {size(cost.available_bytes)} available" if cost.available_bytes else ""
    where = "this CPU" if cost.device == "cpu" else cost.device
    return [
        (
            "split",
            f"by {plan.split_by}: train {duration(plan.train_seconds)}, "
            f"validation {duration(plan.validation_seconds)}, test {duration(plan.test_seconds)}",
        ),
        (
            "lanes",
            f"{count(plan.segments, 'segment')} of up to {plan.segment_seconds:.3g} s in "
            f"{count(data.lanes, 'lane')}, {percent(1 - plan.filled)} padding",
        ),
        (
            "epoch",
            f"{count(plan.steps_per_epoch, 'step')} of {data.lanes} x {data.tbptt_len} samples, "
            f"about {duration(epoch)}",
        ),
        (
            "first run",
            f"{count(steps, 'step')}, about {duration(seconds)} at {speed:,.0f} samples/s on {where}",
        ),
        ("memory", f"about {size(cost.memory_bytes)}{machine}"),
        ("model", f"{diagnosis.config.model.n_tiers} tiers, {cost.parameters / 1e6:.2f} M parameters"),
    ]


def _shared(corpus: Corpus) -> str:
    """Which files share audio with which: the pairs with most of it."""
    seconds = shared(corpus.overlaps)
    longest = sorted(corpus.overlaps, key=lambda overlap: -overlap.seconds)
    pairs = [
        f"{corpus.files[one.first].path} with {corpus.files[one.second].path} "
        f"({one.seconds:.1f} s, from {one.start:.1f} s)"
        for one in longest[:_PAIRS_SHOWN]
    ]
    if len(longest) > _PAIRS_SHOWN:
        pairs.append(f"and {count(len(longest) - _PAIRS_SHOWN, 'more pair')}")
    total = f"{len(seconds)} files share {duration(sum(seconds.values()))} with others"
    one = "" if can_split_by_file(corpus.takes) else f"; {ONE_RECORDING}"
    return printable(f"{total}{one}: {', '.join(pairs)}")


def _takes(corpus: Corpus) -> dict[str, Any]:
    """What files share, for JSON."""
    seconds = shared(corpus.overlaps)
    return {
        "files": len(seconds),
        "seconds": sum(seconds.values()),
        "overlaps": [
            {
                "first": corpus.files[one.first].path,
                "second": corpus.files[one.second].path,
                "first_start": one.start,
                "second_start": one.start + one.shift,
                "seconds": one.seconds,
            }
            for one in corpus.overlaps
        ],
    }


def _verdict(diagnosis: Diagnosis, command: str) -> Text:
    corpus = diagnosis.corpus
    if diagnosis.obstacle:
        return Text.assemble(("not trainable: ", "bold red"), printable(diagnosis.obstacle))
    files = count(len(corpus.files), "file")
    return Text.assemble(
        ("trainable: ", "bold green"),
        f"{duration(corpus.duration)} in {files}. Next: {printable(command)}",
    )


def _obstacle(folder: str | Path, corpus: Corpus) -> str | None:
    """Why there is nothing to train on."""
    if corpus.files:
        return None
    if not corpus.problems:
        return f"{folder}: no audio files found ({', '.join(sorted(SUFFIXES))})"
    return f"{folder}: none of its {count(corpus.found, 'audio file')} can be used"


def _tally(values: Iterable[int]) -> dict[int, int]:
    """How many files have a value, most frequent first."""
    return dict(Counter(values).most_common())


def _listed(tally: dict[int, int], unit: str, change: str, wanted: int) -> str:
    """``44100 Hz (3 files), 8000 Hz (1 file), resampled to …``; the change only where there is one."""
    if len(tally) == 1:
        shown = f"{next(iter(tally))}{unit}"
    else:
        shown = ", ".join(f"{value}{unit} ({count(number, 'file')})" for value, number in tally.items())
    return shown if set(tally) == {wanted} else f"{shown}, {change}"
