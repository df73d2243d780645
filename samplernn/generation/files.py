"""Streams to files, to a pipe, to the loudspeakers: what is written stays playable, whatever happens."""

from __future__ import annotations

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from samplernn import __version__
from samplernn.audio.io import SUFFIXES, UNSUPPORTED
from samplernn.audio.sinks import FORMATS, FileSink, Sink
from samplernn.config import UserError
from samplernn.generation.playback import Event, Generator, OnTrap, Request
from samplernn.generation.prompts import Given
from samplernn.generation.settings import Settings, facts_of, request_of, settled
from samplernn.generation.snapshots import Snapshot
from samplernn.model.checkpoint import Checkpoint


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
    if out.suffix.lower() in FORMATS and not out.is_dir():
        if num != 1:
            raise UserError(f"{out}: one file cannot hold {num} streams; name a folder, or use --num 1")
        if form is not None and out.suffix.lower() != suffix:
            raise UserError(f"{out}: its name says another format than --format {form}; leave one out")
        paths = [out]
    elif out.suffix.lower() in SUFFIXES | UNSUPPORTED and not out.is_dir():
        raise UserError(f"{out}: cannot be written; name a file of {kinds}, or a folder")
    else:
        paths = [out / f"{stream:03}{suffix}" for stream in range(num)]
    taken = [file for path in paths for file in (path, path.with_suffix(".json")) if file.exists()]
    if taken and not overwrite:
        raise UserError(f"{taken[0]}: exists already; choose another --out, or add --overwrite")
    return paths


@dataclass(frozen=True)
class Keeping:
    """Snapshots of a playback, in a file."""

    file: Path
    every: float = math.inf
    """Seconds of audio between two of them; the last moment is kept in any case."""


@dataclass
class Written:
    """What a generation came to."""

    num_samples: int = 0
    """Per stream, without the prompt."""
    seconds: float = 0.0
    """Of computing."""
    events: list[Event] = field(default_factory=list)


def generate(
    checkpoint: Checkpoint,
    out: str | Path | Callable[[int], Sink] | None = None,
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
    quiet: bool = False,
) -> list[Path]:
    """Generate audio files; `samplernn generate` is this function.

    What is not given is as in `like`, else as in `from_state`, else the default. `stream.stream` explains the
    arguments that are not listed here.

    Args:
        checkpoint: from `samplernn.load`.
        out: a folder, a file when there is one stream, or None: a new folder below ``generated/``.
            Or a function that opens a sink at a sample rate, such as `SpeakerSink`, for one stream.
        include_prompt: let each file begin with its prompt.
        save_state: file for a snapshot at the end, from which `from_state` goes on.
        every: seconds of audio after which that file is renewed on the way.
        form: of the files in a folder: wav, flac or ogg.
        overwrite: replace existing files.
        quiet: say nothing on standard error: no progress, warnings or traps.

    Returns:
        The files, mono, exactly ``round(duration * sample_rate)`` samples each after the prompt.

    Raises:
        UserError: an argument out of range, a file that exists or cannot be written.
    """
    if every is not None and not (every > 0 and save_state is not None):
        raise UserError(f"--every {every:g}: needs --save-state FILE and a time above 0 seconds")
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
    generator = Generator(checkpoint, settings.engine or "auto", settings.dtype or "auto")
    rate = generator.sample_rate
    if not quiet:
        for prompt_file in request.prompts:
            for problem in prompt_file.problems:
                say(f"warning: {problem}")
        say(f"{checkpoint.source}: engine {generator.engine.name}, {generator.engine.dtype}, {rate} Hz")
    before = bool(settings.include_prompt)
    if paths:
        written = write_files(generator, request, paths, before, keeping, quiet)
    else:
        assert callable(out)
        with out(rate) as sink:
            written = _pour(generator, request, [sink], before, keeping, quiet=quiet)
    speed = written.num_samples / max(written.seconds, 1e-9)
    if not quiet:
        say(
            f"{streams} x {written.num_samples / rate:.2f} s in {written.seconds:.1f} s: "
            f"{speed * streams:,.0f} samples/s, {speed / rate:.2f}x real time per stream"
        )
    return paths


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
        quiet: show no progress and no traps.

    Raises:
        UserError: a file cannot be written.
        KeyboardInterrupt: after Ctrl-C, when the block that was begun is written; SIGTERM: SystemExit.
    """
    facts = [facts_of(generator, request, index, include_prompt) for index in range(len(request.streams))]
    written = Written()

    def describe(num_samples: int | None) -> None:
        for path, fact in zip(paths, facts, strict=True):
            traps = [event.to_dict() for event in written.events if event.stream == fact["stream"]]
            total = None if num_samples is None else fact["prompt_samples"] + num_samples
            _write(path.with_suffix(".json"), {**fact, "num_samples": total, "traps": traps})

    with ExitStack() as stack:
        sinks = []
        for path, fact in zip(paths, facts, strict=True):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{path.parent}: cannot make this folder: {error.strerror}") from error
            num_samples = request.num_samples and request.num_samples + fact["prompt_samples"]
            tags = {"software": f"samplernn {__version__}", "comment": json.dumps(fact)}
            sinks.append(stack.enter_context(FileSink(path, generator.sample_rate, num_samples, tags)))
        describe(request.num_samples)  # for a process that is killed
        try:
            _pour(generator, request, sinks, include_prompt, keeping, written, quiet)
        except BaseException as error:
            with contextlib.suppress(UserError):
                describe(written.num_samples)
            if isinstance(error, KeyboardInterrupt) and not quiet:
                say(f"stopped; what is written so far plays: {paths[0]}{' …' if len(paths) > 1 else ''}")
            raise
    describe(written.num_samples)
    return written


def _write(sidecar: Path, facts: dict[str, Any]) -> None:
    """Write or replace a sidecar in one instant. Raises UserError."""
    draft = sidecar.with_name(f".{sidecar.name}.new")
    try:
        draft.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
        draft.replace(sidecar)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise UserError(f"{sidecar}: cannot be written: {error.strerror}") from error


def _pour(
    generator: Generator,
    request: Request,
    sinks: Sequence[Sink],
    include_prompt: bool,
    keeping: Keeping | None,
    written: Written | None = None,
    quiet: bool = False,
) -> Written:
    """Play a request into sinks, one per stream; `written` is kept up to date."""
    written = written or Written()
    rate = generator.sample_rate
    with _Bar(rate, request, quiet) as bar, _stop_between_blocks() as stopped_by:
        started = time.perf_counter()
        playback = generator.stream(request, heard_so_far=bar.heard)
        written.events = playback.events
        if include_prompt:
            for index, sink in enumerate(sinks):
                prompt = request.prompt_of(index)
                for block in prompt.blocks() if prompt else ():
                    sink.write(block)
        kept, shown = 0, 0
        for block in playback:
            for sink, samples in zip(sinks, block, strict=True):
                sink.write(samples)
            written.num_samples += block.shape[1]
            written.seconds = time.perf_counter() - started
            bar.wrote(written.num_samples)
            for event in playback.events[shown:] if not quiet else ():
                say(event.describe())
            shown = len(playback.events)
            if keeping and written.num_samples - kept >= keeping.every * rate:
                playback.snapshot().save(keeping.file)
                kept = written.num_samples
            if stopped_by():
                break
    if keeping:
        playback.snapshot().save(keeping.file)
    if stopped_by() == signal.SIGINT:
        raise KeyboardInterrupt
    if signal_number := stopped_by():
        sys.exit(128 + signal_number)
    return written


@contextlib.contextmanager
def _stop_between_blocks() -> Iterator[Callable[[], int]]:
    """Let Ctrl-C and SIGTERM wait for the end of a block; a second one does not wait.

    Yields:
        A function that gives the signal's number, or 0.
    """
    received: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            if callable(signal.getsignal(number)):  # neither ignored nor the system's own
                before[number] = signal.signal(number, note)
    except ValueError:  # not the main thread: signals are somebody else's
        pass
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def say(message: str) -> None:
    """To standard error."""
    print(message, file=sys.stderr, flush=True)


class _Bar:
    """Progress: how much of the prompts is heard; then seconds written, samples/s, times real time."""

    def __init__(self, sample_rate: int, request: Request, quiet: bool) -> None:
        self._rate, self._request = sample_rate, request
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=Console(file=sys.stderr),
            transient=True,
            disable=quiet or not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("starting", total=request.num_samples)

    def __enter__(self) -> _Bar:
        self._progress.start()
        self._started: float | None = None
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
        self._started = self._started or now
        if now == self._started:
            return
        per_stream = done / (now - self._started)
        together = per_stream * len(self._request.streams)
        self._progress.update(
            self._task,
            completed=done,
            total=self._request.num_samples,
            description=f"{done / self._rate:.1f} s, {together:,.0f} samples/s, "
            f"{per_stream / self._rate:.2f}x real time",
        )
