"""Streams to files, to a pipe, to the loudspeakers: what is written stays playable, whatever happens."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from samplernn import __version__, storage
from samplernn.audio.io import SUFFIXES, UNSUPPORTED
from samplernn.audio.sinks import FORMATS, FileSink, Sink
from samplernn.config import UserError
from samplernn.generation.playback import Event, Generator, Playback
from samplernn.generation.prompts import Given
from samplernn.generation.request import OnTrap, Request
from samplernn.generation.settings import Settings, facts_of, request_of, settled
from samplernn.generation.snapshots import Snapshot
from samplernn.model.checkpoint import Checkpoint
from samplernn.signals import Waiting


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


@dataclass(frozen=True)
class Keeping:
    """Snapshots of a playback, in a file."""

    file: Path
    every: float = math.inf
    """Seconds of audio between two of them; the last moment is kept in any case."""


OpenSink = Callable[[int, Mapping[str, str]], Sink]
"""Opens a sink, given the sample rate in Hz and tags."""


@dataclass
class Written:
    """What a generation came to."""

    events: list[Event]
    """The traps so far."""
    num_samples: int = 0
    """Per stream, without the prompt."""
    seconds: float = 0.0
    """Since the prompts were heard."""


def generate(
    checkpoint: Checkpoint,
    out: str | Path | OpenSink | None = None,
    duration: float | None = None,
    num: int | None = None,
    seed: int | None = None,
    temperature: str | float | Sequence[str | float] | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    prompt: Given | Sequence[Given] | None = None,
    include_prompt: bool | None = None,
    from_state: str | Path | Snapshot | None = None,
    save_state: str | Path | None = None,
    every: float | None = None,
    on_trap: OnTrap | None = None,
    engine: str | None = None,
    dtype: str | None = None,
    like: str | Path | None = None,
    form: str | None = None,
    overwrite: bool = False,
    stream: int | None = None,
    quiet: bool = False,
) -> list[Path]:
    """Generate audio files; `samplernn generate` is this function.

    What is not given is as in `like`, else as in `from_state`, else the default. `stream.stream` explains the
    arguments that are not listed here.

    Args:
        checkpoint: from `samplernn.load`.
        out: a folder, a file when there is one stream, or None: a new folder below ``generated/``.
            Or a function that opens a sink for one stream, given the sample rate and tags.
        include_prompt: let each file begin with its prompt.
        save_state: file for a snapshot at the end, from which `from_state` goes on. It may replace one, and
            no other file.
        every: seconds of audio after which that file is renewed on the way.
        form: of the files in a folder: wav, flac or ogg.
        overwrite: replace existing files.
        stream: the number of the only stream, where `num` is not given: one of many again, alone.
        quiet: say nothing on standard error: no progress, warnings or traps.

    Returns:
        The files, mono, exactly ``round(duration * sample_rate)`` samples each after the prompt.
        None for a sink.

    Raises:
        UserError: an argument out of range, a file that exists or cannot be written. Nothing has been touched
            if the request was impossible.
    """
    if every is not None and not (every > 0 and save_state is not None):
        raise UserError(f"--every {every:g}: needs --save-state FILE and a time above 0 seconds")
    if stream is not None and num is not None:
        raise UserError(
            "--stream and --num exclude each other: one stream by its number, or so many from 0 on"
        )
    if stream is not None and stream < 0:
        raise UserError(f"stream must be at least 0, got {stream}")
    settings = settled(
        checkpoint,
        Settings(
            duration=duration,
            num=num,
            seed=seed,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            prompt=prompt,
            include_prompt=include_prompt,
            from_state=from_state,
            on_trap=on_trap,
            engine=engine,
            dtype=dtype,
            stream=stream,
        ),
        like,
    )
    request = request_of(settings, checkpoint.config.data.sample_rate)
    streams = len(request.streams)
    paths: list[Path] = []
    if out is None or isinstance(out, str | Path):
        paths = output_paths(out, streams, overwrite, form)
    elif streams != 1:
        raise UserError(
            f"one pipe or loudspeaker plays one stream, not {streams}; write files, or use --num 1"
        )
    keeping = None if save_state is None else Keeping(Path(save_state), every or math.inf)
    _check_targets(paths, request, keeping)
    generator = Generator(checkpoint, settings.engine or "auto", settings.dtype or "auto")
    rate = generator.sample_rate
    tell = _nothing if quiet else say
    for prompt_file in dict.fromkeys(request.prompts):
        for problem in prompt_file.problems:
            tell(f"warning: {problem}")
    tell(f"{checkpoint.source}: engine {generator.engine.name}, {generator.engine.dtype}, {rate} Hz")
    before = bool(settings.include_prompt)
    if paths:
        written = write_files(generator, request, paths, before, keeping, quiet)
    else:
        assert callable(out)
        with Waiting(patience=1) as waiting, _Bar(rate, request, quiet) as bar:
            with waiting.interruptible():
                playback = generator.stream(request, heard_so_far=bar.heard)
            written, fact = Written(playback.events), facts_of(generator, request, 0, before)
            with out(rate, _tags(fact)) as sink:
                _pour(playback, [sink], before, keeping, written, bar, tell, waiting, may_wait=True)
    speed = written.num_samples / max(written.seconds, 1e-9)
    tell(
        f"{streams} x {written.num_samples / rate:.2f} s in {written.seconds:.1f} s: "
        f"{speed * streams:,.0f} samples/s, {speed / rate:.2f}x real time per stream"
    )
    return paths


def _check_targets(paths: list[Path], request: Request, keeping: Keeping | None) -> None:
    """Raises UserError if something would be lost that nobody can mean to lose."""
    for prompt in request.prompts:
        for path in paths:
            if prompt.file and path.exists() and path.samefile(prompt.file):
                raise UserError(f"{path}: is the prompt itself; choose another --out")
    if keeping is None:
        return
    if keeping.file in [file for path in paths for file in (path, path.with_suffix(".json"))]:
        raise UserError(f"{keeping.file}: is where audio goes; choose another file for --save-state")
    if keeping.file.exists():
        try:
            Snapshot.load(keeping.file)
        except UserError:
            raise UserError(
                f"{keeping.file}: exists and is no state; choose another file for --save-state"
            ) from None


def write_files(
    generator: Generator,
    request: Request,
    paths: list[Path],
    include_prompt: bool = False,
    keeping: Keeping | None = None,
    quiet: bool = False,
) -> Written:
    """Stream a request to one file per stream, with a JSON file beside each that says how it was made.

    Memory does not grow with the duration. Whatever interrupts it, the files are playable up to
    the last block (`BLOCK_SECONDS`) that was written, or as far as their format allows (see `FileSink`).

    Args:
        generator: the model.
        request: what to generate.
        paths: one per stream; missing folders are made.
        include_prompt: let each file begin with its prompt.
        keeping: snapshots.
        quiet: say nothing on standard error.

    Raises:
        UserError: a file cannot be written.
        KeyboardInterrupt: after Ctrl-C, when the block that was begun is written.
        SystemExit: after SIGTERM or SIGHUP, likewise.
    """
    facts = [facts_of(generator, request, index, include_prompt) for index in range(len(request.streams))]

    def describe(num_samples: int | None) -> None:
        for path, fact in zip(paths, facts, strict=True):
            traps = [event.to_dict() for event in written.events if event.stream == fact["stream"]]
            total = None if num_samples is None else fact["prompt_samples"] + num_samples
            _write(path.with_suffix(".json"), {**fact, "num_samples": total, "traps": traps})

    for folder in dict.fromkeys(path.parent for path in paths):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot make this folder: {error.strerror}") from error
        if not os.access(folder, os.W_OK):  # better now than after the prompts
            raise UserError(f"{folder}: cannot be written to; check its permissions, or choose another --out")
    tell = _nothing if quiet else say
    with Waiting() as waiting, _Bar(generator.sample_rate, request, quiet) as bar, ExitStack() as stack:
        allow_open(len(paths))
        with waiting.interruptible():
            playback = generator.stream(request, heard_so_far=bar.heard)
        written = Written(playback.events)
        made: list[Path] = []
        sinks: list[FileSink] = []
        try:
            for path, fact in zip(paths, facts, strict=True):
                expected = request.num_samples and request.num_samples + fact["prompt_samples"]
                is_new = not path.exists()
                sinks.append(
                    stack.enter_context(FileSink(path, generator.sample_rate, expected, _tags(fact)))
                )
                made += [path, path.with_suffix(".json")] if is_new else []
            describe(request.num_samples)  # for a process that is killed
            _pour(playback, sinks, include_prompt, keeping, written, bar, tell, waiting)
            if waiting.number and written.num_samples == 0:
                waiting.end()
            describe(written.num_samples)
        except BaseException:
            if written.num_samples == 0 and not any(sink.num_samples for sink in sinks):
                stack.close()
                for path in made:  # they would hold nothing, and be in the way of the next try
                    path.unlink(missing_ok=True)
                raise
            with contextlib.suppress(UserError):
                describe(written.num_samples)
            raise
        finally:
            if waiting.number and any(sink.num_samples for sink in sinks):
                tell(f"stopped; what is written so far plays: {paths[0]}{' …' if len(paths) > 1 else ''}")
    return written


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
    needed = files + _FILES_BESIDE
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    with contextlib.suppress(OSError, ValueError):  # where the system has a limit of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and needed > allowed:
        raise UserError(
            f"--num {files}: too many open files: so many are written at once, and {allowed} may be; "
            "write fewer at a time, or raise the limit (ulimit -n)"
        )


_FILES_BESIDE = 256
"""That anything else has open: libraries, compiled programs, prompts, standard streams."""


def _tags(fact: dict[str, Any]) -> dict[str, str]:
    return {"software": f"samplernn {__version__}", "comment": json.dumps(fact)}


def _write(sidecar: Path, facts: dict[str, Any]) -> None:
    """Write or replace a sidecar in one instant. Raises UserError."""
    try:
        storage.write_text(sidecar, json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"{sidecar}: cannot be written: {error.strerror}") from error


def _pour(
    playback: Playback,
    sinks: Sequence[Sink],
    include_prompt: bool,
    keeping: Keeping | None,
    written: Written,
    bar: _Bar,
    tell: Callable[[str], None],
    waiting: Waiting,
    may_wait: bool = False,
) -> None:
    """Play into sinks, one per stream, until the end or a signal; `written` is kept up to date.

    A signal waits until its block is written to all sinks and the snapshot is where they are. A second one
    ends the block that is being made, which is then written nowhere.

    Args:
        playback: the audio.
        sinks: one per stream.
        include_prompt: the prompt first.
        keeping: snapshots.
        written: what has come of it.
        bar: shows it.
        tell: gets what there is to say.
        waiting: knows of signals.
        may_wait: a sink may take its time (a pipe whose reader sleeps): signals do not wait for it.
    """
    if keeping:  # whether it can be written is better known now than in the end
        playback.snapshot().save(keeping.file)
    kept, shown = 0, 0
    try:
        if include_prompt:
            with waiting.interruptible(0 if may_wait else 1):
                _write_prompts(playback.request, sinks)
        started = time.perf_counter()
        while not waiting.number:
            with waiting.interruptible(1):
                block = next(playback, None)
            if block is None:
                break
            with waiting.interruptible() if may_wait else contextlib.nullcontext():
                for sink, samples in zip(sinks, block, strict=True):
                    sink.write(samples)
            written.num_samples += block.shape[1]
            written.seconds = time.perf_counter() - started
            bar.wrote(written.num_samples)
            for event in playback.events[shown:]:
                tell(event.describe())
            shown = len(playback.events)
            if keeping and written.num_samples - kept >= keeping.every * playback.generator.sample_rate:
                _keep(playback, keeping.file, tell)
                kept = written.num_samples
    except BaseException:
        if keeping:  # a block that was not written to all sinks shall come again
            is_written = playback.num_samples == written.num_samples
            with contextlib.suppress(UserError):
                playback.snapshot(with_last_block=is_written).save(keeping.file)
        raise
    if keeping:
        playback.snapshot().save(keeping.file)


def _write_prompts(request: Request, sinks: Sequence[Sink]) -> None:
    """Begin each stream's audio with its prompt, if it has one."""
    for index, sink in enumerate(sinks):
        prompt = request.prompt_of(index)
        for block in prompt.blocks() if prompt else ():
            sink.write(block)


def _keep(playback: Playback, file: Path, tell: Callable[[str], None]) -> None:
    """Save a snapshot on the way; that it fails is no reason to stop."""
    try:
        playback.snapshot().save(file)
    except UserError as error:
        tell(f"warning: {error}; going on without it")


def say(message: str) -> None:
    """To standard error."""
    print(message, file=sys.stderr, flush=True)


def _nothing(message: str) -> None:
    pass


class _Bar:
    """Progress: how much of the prompts is heard; then seconds written, samples/s, times real time."""

    def __init__(self, sample_rate: int, request: Request, quiet: bool) -> None:
        self._rate, self._request = sample_rate, request
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            # Disabled is not enough: up to 14.2, Rich then prints an empty line at the end.
            console=Console(file=sys.stderr, quiet=quiet or not sys.stderr.isatty()),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("starting", total=None)
        self._is_playing = False

    def __enter__(self) -> _Bar:
        self._progress.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def heard(self, samples: int, of: int) -> None:
        """So many samples of the prompts have been heard."""
        seconds = f"hearing the prompt: {samples / self._rate:.0f} of {of / self._rate:.0f} s"
        self._progress.update(self._task, completed=samples, total=of, description=seconds)

    def wrote(self, done: int) -> None:
        """`done` samples per stream are written."""
        now = time.perf_counter()
        if (
            not self._is_playing
        ):  # a bar of its own, for the one of the prompts may know an end and this one not
            self._is_playing, self._started = True, now
            self._progress.remove_task(self._task)
            self._task = self._progress.add_task("", total=self._request.num_samples)
            return
        per_stream = done / (now - self._started)
        together = per_stream * len(self._request.streams)
        self._progress.update(
            self._task,
            completed=done,
            description=f"{done / self._rate:.1f} s, {together:,.0f} samples/s, "
            f"{per_stream / self._rate:.2f}x real time",
        )
