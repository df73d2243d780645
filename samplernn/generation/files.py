"""Streams to files, to a pipe, to the loudspeakers: what is written stays playable, whatever happens."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from samplernn import __version__, storage
from samplernn.audio.io import SUFFIXES, UNSUPPORTED
from samplernn.audio.sinks import FORMATS, FileSink, Sink
from samplernn.config import UserError
from samplernn.generation.arguments import takes_options
from samplernn.generation.playback import Generator, Playback
from samplernn.generation.request import Options, Output, Request
from samplernn.generation.settings import facts_of, settle
from samplernn.generation.snapshots import Snapshot
from samplernn.model.checkpoint import Checkpoint
from samplernn.signals import Waiting

_OPEN_FILES_BESIDE = 256
"""Files that anything else has open: libraries, compiled programs, prompts, standard streams."""


@takes_options(Output, Options)
def generate(checkpoint: Checkpoint, **said: Any) -> list[Path]:
    """Generate audio files; `samplernn generate` is this function.

    What is not given is as in `like`, else as in `from_state`, else the default.

    Args:
        checkpoint: from `samplernn.load`.
        **said: see Options.

    Returns:
        The files, mono, exactly ``round(duration * sample_rate)`` samples each after the prompt.
        None for a sink.

    Raises:
        UserError: an argument out of range, a file that exists or cannot be written. Nothing has been touched
            if the request was impossible.
    """
    names = {option.name for option in fields(Output)}
    output = Output(**{name: value for name, value in said.items() if name in names})
    request = settle(checkpoint, {name: value for name, value in said.items() if name not in names})
    num = len(request.streams)
    paths: list[Path] = []
    if output.out is None or isinstance(output.out, str | Path):
        paths = output_paths(output.out, num, output.overwrite, output.form)
    elif num != 1:
        raise UserError(f"one pipe or loudspeaker plays one stream, not {num}; write files, or use --num 1")
    _check_targets(paths, request, output)
    generator = Generator(checkpoint, request.engine, request.dtype)
    rate = generator.sample_rate
    tell = _ignore if output.quiet else say
    for prompt in dict.fromkeys(request.prompts):
        for problem in prompt.problems:
            tell(f"warning: {problem}")
    tell(f"{checkpoint.source}: engine {generator.engine.name}, {generator.engine.dtype}, {rate} Hz")
    take = write(generator, request, paths, output)
    speed = take.num_samples / max(take.seconds, 1e-9)
    tell(
        f"{num} x {take.num_samples / rate:.2f} s in {take.seconds:.1f} s: "
        f"{speed * num:,.0f} samples/s, {speed / rate:.2f}x real time per stream"
    )
    return paths


def output_paths(
    out: str | Path | None, num: int, overwrite: bool = False, form: str | None = None
) -> list[Path]:
    """Where streams go.

    Args:
        out: a folder (made if absent) for ``000.wav``, ``001.wav``, …; a file when there is one stream; None:
            a new folder below ``generated/``, named by the time.
        num: streams.
        overwrite: existing files may be replaced.
        form: of the files in a folder: ``wav`` (default), ``flac`` or ``ogg``.

    Raises:
        UserError: a file for several streams, another file type, or a file that exists.
    """
    kinds = ", ".join(FORMATS)
    suffix = f".{form or 'wav'}"
    if suffix not in FORMATS:
        raise UserError(f"--format {form}: files can be {kinds.replace('.', '')}; for --out -: au, raw")
    if out is None:
        out = Path("generated") / datetime.now().strftime("%Y%m%d-%H%M%S")
    out = Path(out)
    is_folder = os.path.isdir(out)  # noqa: PTH112  (unlike Path's it says no to names that cannot be)
    if out.suffix.lower() in FORMATS and not is_folder:
        if num != 1:
            raise UserError(f"{out}: one file cannot hold {num} streams; name a folder, or use --num 1")
        if form is not None and out.suffix.lower() != suffix:
            raise UserError(f"{out}: its name says another format than --format {form}; leave one out")
        paths = [out]
    elif out.suffix.lower() in SUFFIXES | UNSUPPORTED and not is_folder:
        raise UserError(f"{out}: cannot be written; name a file of {kinds}, or a folder")
    else:
        paths = [out / f"{stream:03}{suffix}" for stream in range(num)]
    if paths[0].parent.is_file():
        raise UserError(f"{paths[0].parent}: is a file; name a folder, or a file of {kinds}")
    try:
        taken = [file for path in paths for file in (path, path.with_suffix(".json")) if file.exists()]
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; choose another --out") from None
    if taken and not overwrite:
        raise UserError(f"{taken[0]}: exists already; choose another --out, or add --overwrite")
    return paths


def _check_targets(paths: list[Path], request: Request, output: Output) -> None:
    """Raises UserError if something would be lost that nobody can mean to lose."""
    for prompt in request.prompts:
        for path in paths:
            if prompt.file and path.exists() and path.samefile(prompt.file):
                raise UserError(f"{path}: is the prompt itself; choose another --out")
    if output.save_state is None:
        return
    file, other = Path(output.save_state), "choose another file for --save-state"
    if file in [target for path in paths for target in (path, path.with_suffix(".json"))]:
        raise UserError(f"{file}: is where audio goes; {other}")
    if file.exists():
        try:
            Snapshot.load(file)
        except UserError:
            raise UserError(f"{file}: exists and is no state; {other}") from None


def write(generator: Generator, request: Request, paths: Sequence[Path], output: Output) -> Take:
    """Stream a request to one file per stream, with a JSON file beside each that says how it was made.

    Memory does not grow with the duration. Whatever interrupts it, the files are playable up to
    the last block (`BLOCK_SECONDS`) that was written, or as far as their format allows (see `FileSink`).

    Args:
        generator: the model.
        request: what to generate.
        paths: one per stream; missing folders are made. None: `output.out` opens the sink of the only stream.
        output: where states go, and whether to say anything.

    Raises:
        UserError: a file cannot be written.
        KeyboardInterrupt: after Ctrl-C, when the block that was begun is written.
        SystemExit: after SIGTERM or SIGHUP, likewise.
    """
    facts = [facts_of(generator, request, index) for index in range(len(request.streams))]
    rate = generator.sample_rate

    def describe(num_samples: int | None) -> None:
        """Write or replace the sidecars, each in one instant."""
        for path, fact in zip(paths, facts, strict=False):
            traps = [event.to_dict() for event in take.playback.events if event.stream == fact["stream"]]
            total = None if num_samples is None else fact["prompt_samples"] + num_samples
            sidecar, content = path.with_suffix(".json"), {**fact, "num_samples": total, "traps": traps}
            try:
                storage.write_text(sidecar, json.dumps(content, indent=2) + "\n")
            except OSError as error:
                raise UserError(f"{sidecar}: cannot be written: {error.strerror}") from error

    _make_folders(paths)
    allow_open(len(paths))
    # A pipe's reader may sleep, so less is waited for.
    with (
        Waiting(patience=2 if paths else 1) as waiting,
        _Bar(rate, request, output.quiet) as bar,
        ExitStack() as stack,
    ):
        with waiting.interruptible():
            playback = generator.stream(request, heard=bar.heard)
        take = Take(playback, output, waiting, bar, may_wait=not paths)
        made: list[Path] = []
        sinks: list[Sink] = []
        try:
            for path, fact in zip(paths, facts, strict=False):
                expected = request.num_samples and request.num_samples + fact["prompt_samples"]
                is_new = not path.exists()
                sinks.append(stack.enter_context(FileSink(path, rate, expected, _tags(fact))))
                made += [path, path.with_suffix(".json")] if is_new else []
            if not paths:
                sinks.append(stack.enter_context(output.out(rate, _tags(facts[0]))))
            describe(request.num_samples)  # for a process that is killed
            take.play_into(sinks)
            if waiting.number and take.num_samples == 0:
                waiting.end()
            describe(take.num_samples)
        except BaseException:
            if paths and not any(sink.num_samples for sink in sinks):
                stack.close()
                for path in made:  # they would hold nothing, and be in the way of the next try
                    path.unlink(missing_ok=True)
                raise
            with contextlib.suppress(UserError):
                describe(take.num_samples)
            raise
        finally:
            if paths and waiting.number and any(sink.num_samples for sink in sinks) and not output.quiet:
                say(f"stopped; what is written so far plays: {paths[0]}{' …' if len(paths) > 1 else ''}")
    return take


class Take:
    """A playback on its way into sinks.

    A signal waits until its block is written to all sinks and the snapshot is where they are. A second one
    ends the block that is being made, which is then written nowhere.

    Args:
        playback: the audio.
        output: where states go.
        waiting: knows of signals.
        bar: shows the progress.
        may_wait: a sink may take its time (a pipe whose reader sleeps): signals do not wait for it.

    Attributes:
        num_samples: written so far, per stream, without the prompt.
        seconds: since the prompts were heard.
    """

    def __init__(
        self, playback: Playback, output: Output, waiting: Waiting, bar: _Bar, may_wait: bool
    ) -> None:
        self.playback, self.num_samples, self.seconds = playback, 0, 0.0
        self._output, self._waiting, self._bar, self._may_wait = output, waiting, bar, may_wait
        self._tell = _ignore if output.quiet else say

    def play_into(self, sinks: Sequence[Sink]) -> None:
        """Play until the end or a signal; one sink per stream."""
        playback, waiting = self.playback, self._waiting
        self._save_state()  # whether it can be written is better known now than in the end
        interval = (self._output.every or math.inf) * playback.generator.sample_rate
        saved_at, told = 0, 0
        try:
            if playback.request.include_prompt:
                with waiting.interruptible(0 if self._may_wait else 1):
                    self._write_prompts(sinks)
            started = time.perf_counter()
            while not waiting.number:
                with waiting.interruptible(1):
                    block = next(playback, None)
                if block is None:
                    break
                with waiting.interruptible() if self._may_wait else contextlib.nullcontext():
                    for sink, samples in zip(sinks, block, strict=True):
                        sink.write(samples)
                self.num_samples += block.shape[1]
                self.seconds = time.perf_counter() - started
                self._bar.wrote(self.num_samples)
                for event in playback.events[told:]:
                    self._tell(event.describe())
                told = len(playback.events)
                if self.num_samples - saved_at >= interval:
                    saved_at = self.num_samples
                    try:
                        self._save_state()
                    except UserError as error:  # no reason to stop
                        self._tell(f"warning: {error}; going on without it")
        except BaseException:
            with contextlib.suppress(UserError):
                # A block that was not written to all sinks shall come again.
                self._save_state(with_last_block=playback.num_samples == self.num_samples)
            raise
        self._save_state()

    def _write_prompts(self, sinks: Sequence[Sink]) -> None:
        for index, sink in enumerate(sinks):
            prompt = self.playback.request.prompt_of(index)
            for block in prompt.blocks() if prompt else ():
                sink.write(block)

    def _save_state(self, with_last_block: bool = True) -> None:
        if self._output.save_state is not None:
            self.playback.snapshot(with_last_block).save(Path(self._output.save_state))


def _make_folders(paths: Sequence[Path]) -> None:
    """Raises UserError."""
    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot make this folder: {error.strerror}") from error
        if not os.access(folder, os.W_OK):  # better now than after the prompts
            raise UserError(f"{folder}: cannot be written to; check its permissions, or choose another --out")


def allow_open(files: int) -> None:
    """See to it that this process may have so many more files open.

    Raises:
        UserError: the system does not let it.
    """
    try:
        import resource
    except ImportError:  # Windows, where the limit is the memory
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + _OPEN_FILES_BESIDE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):  # where the system has a limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        raise UserError(
            f"--num {files}: too many open files: so many are written at once, and {allowed} may be; "
            "write fewer at a time, or raise the limit (ulimit -n)"
        )


def _tags(fact: dict[str, Any]) -> dict[str, str]:
    return {"software": f"samplernn {__version__}", "comment": json.dumps(fact)}


def say(message: str) -> None:
    """To standard error."""
    print(message, file=sys.stderr, flush=True)


def _ignore(message: str) -> None:
    pass


class _Bar(Progress):
    """Progress: how much of the prompts is heard; then seconds written, samples/s, times real time."""

    def __init__(self, sample_rate: int, request: Request, quiet: bool) -> None:
        is_hidden = quiet or not sys.stderr.isatty()
        super().__init__(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            # Disabled is not enough: up to 14.2, Rich then prints an empty line at the end.
            console=Console(file=sys.stderr, quiet=is_hidden),
            transient=True,
            disable=is_hidden,
        )
        self._rate, self._request, self._heard = sample_rate, request, 0
        self._started: float | None = None
        self._shown = self.add_task("starting", total=None)

    def heard(self, samples: int) -> None:
        """So many samples more of the prompts have been heard."""
        self._heard += samples
        total = sum(prompt.num_samples for prompt in set(self._request.prompts))
        words = f"hearing the prompt: {self._heard / self._rate:.0f} of {total / self._rate:.0f} s"
        self.update(self._shown, completed=self._heard, total=total, description=words)

    def wrote(self, samples: int) -> None:
        """So many samples per stream are written."""
        now = time.perf_counter()
        if self._started is None:  # a new bar: that of the prompts may know an end and this one not
            self._started = now
            self.remove_task(self._shown)
            self._shown = self.add_task("", total=self._request.num_samples)
            return
        speed = samples / (now - self._started)
        words = (
            f"{samples / self._rate:.1f} s, {speed * len(self._request.streams):,.0f} samples/s, "
            f"{speed / self._rate:.2f}x real time"
        )
        self.update(self._shown, completed=samples, description=words)
