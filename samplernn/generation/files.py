"""Streams to WAV files."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from samplernn import __version__
from samplernn.audio.io import SUFFIXES, UNSUPPORTED, load, to_int16
from samplernn.audio.sinks import FileSink
from samplernn.config import UserError
from samplernn.generation.sampling import Sampling
from samplernn.generation.stream import Generator, Request
from samplernn.model.checkpoint import Checkpoint


def output_paths(out: str | Path | None, num: int, overwrite: bool = False) -> list[Path]:
    """Where streams 0 … num - 1 go.

    Args:
        out: a folder (made if absent) for ``000.wav``, ``001.wav``, …; a ``.wav`` file when there is one
            stream; None: a new folder below ``generated/``, named by the time.
        num: streams.
        overwrite: existing files may be replaced.

    Raises:
        UserError: a file for several streams, another file type, or a file that exists.
    """
    if out is None:
        out = Path("generated") / datetime.now().strftime("%Y%m%d-%H%M%S")
    out = Path(out)
    if str(out) == "-":
        raise UserError(
            "--out -: streaming to standard output is not there yet; name a .wav file or a folder"
        )
    if out.suffix.lower() == ".wav" and not out.is_dir():
        if num != 1:
            raise UserError(f"{out}: one file cannot hold {num} streams; name a folder, or use --num 1")
        paths = [out]
    elif out.suffix.lower() in SUFFIXES | UNSUPPORTED and not out.is_dir():
        raise UserError(f"{out}: only .wav files can be written; name a .wav file or a folder")
    else:
        paths = [out / f"{stream:03}.wav" for stream in range(num)]
    taken = [file for path in paths for file in (path, path.with_suffix(".json")) if file.exists()]
    if taken and not overwrite:
        raise UserError(f"{taken[0]}: exists already; choose another --out, or add --overwrite")
    return paths


def load_recording(path: str | Path, sample_rate: int) -> NDArray[np.int16]:
    """A recording of any format and rate as int16 ``[T]`` at `sample_rate`.

    Raises:
        UserError: it cannot be read.
    """
    return to_int16(load(path, sample_rate))


def generate(
    checkpoint: Checkpoint,
    out: str | Path | None = None,
    duration: float = 10.0,
    num: int = 1,
    seed: int = 0,
    temperature: float = 0.95,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt: str | Path | None = None,
    include_prompt: bool = False,
    engine: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
) -> list[Path]:
    """Generate WAV files; `samplernn generate` is this function.

    Args:
        checkpoint: from `samplernn.load`.
        out: a folder, a ``.wav`` file when `num` is 1, or None: a new folder below ``generated/``.
        duration: seconds per stream, without the prompt.
        num: streams.
        seed: stream i of a seed is always the same, whatever `num`.
        temperature: divides the logits; 0 is greedy.
        top_k: keep only the k most probable codes (0: all).
        top_p: keep the most probable codes up to this mass (1: all).
        prompt: a recording, of any format and rate, that every stream continues.
        include_prompt: let the files begin with the prompt.
        engine: name of an engine, or ``auto``.
        dtype: of its arithmetic, or ``auto``.
        overwrite: replace existing files.

    Returns:
        The files, mono 16-bit, exactly ``round(duration * sample_rate)`` samples each.

    Raises:
        UserError: an argument out of range, a file that exists or cannot be written.
    """
    if num < 1:
        raise UserError(f"num must be at least 1, got {num}")
    if not 0 < duration < float("inf"):
        raise UserError(f"duration must be above 0 seconds, got {duration}")
    sampling = Sampling(temperature, top_k, top_p)
    paths = output_paths(out, num, overwrite)
    generator = Generator(checkpoint, engine, dtype)
    rate = generator.sample_rate
    request = Request(
        num_samples=round(duration * rate),
        streams=tuple(range(num)),
        seed=seed,
        sampling=sampling,
        prompt=None if prompt is None else load_recording(prompt, rate),
    )
    _say(f"{checkpoint.source}: engine {generator.engine.name}, {generator.engine.dtype}, {rate} Hz")
    facts = {"checkpoint": str(checkpoint.source), "prompt": None if prompt is None else str(prompt)}
    seconds = write_files(generator, request, paths, include_prompt, facts)
    speed = request.num_samples / seconds
    _say(
        f"{num} x {request.num_samples / rate:.2f} s in {seconds:.1f} s: "
        f"{speed * num:,.0f} samples/s, {speed / rate:.2f}x real time per stream"
    )
    return paths


def write_files(
    generator: Generator,
    request: Request,
    paths: list[Path],
    include_prompt: bool = False,
    facts: dict[str, Any] | None = None,
    progress: bool = True,
) -> float:
    """Stream a request to one WAV file per stream, with a JSON file beside each that says how it was made.

    Memory does not grow with the duration. Whatever interrupts it, the files are playable up to
    the last block (`BLOCK_SECONDS`) that was written.

    Args:
        generator: the model.
        request: what to generate.
        paths: one per stream; missing folders are made.
        include_prompt: let each file begin with the prompt.
        facts: more entries for the JSON.
        progress: show a bar on a terminal.

    Returns:
        Seconds of computing.

    Raises:
        UserError: a file cannot be written.
    """
    before = request.prompt if include_prompt and request.prompt is not None else np.zeros(0, np.int16)
    expected = request.num_samples + len(before)
    started, done = time.perf_counter(), 0
    with ExitStack() as stack:
        sinks = []
        for path in paths:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{path.parent}: cannot make this folder: {error.strerror}") from error
            sinks.append(stack.enter_context(FileSink(path, generator.sample_rate, expected)))
        try:
            for sink in sinks:
                sink.write(before)
            show = stack.enter_context(_Bar(progress, generator.sample_rate, request))
            for block in generator.stream(request):
                for sink, samples in zip(sinks, block, strict=True):
                    sink.write(samples)
                done += block.shape[1]
                show.update(done)
        except BaseException as error:
            with contextlib.suppress(OSError):
                _write_sidecars(generator, request, paths, done + len(before), facts or {})
            if isinstance(error, KeyboardInterrupt):
                _say(f"stopped; what is written so far plays: {paths[0]}{' …' if len(paths) > 1 else ''}")
            raise
        seconds = time.perf_counter() - started
    try:
        _write_sidecars(generator, request, paths, done + len(before), facts or {})
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written: {error.strerror}") from error
    return seconds


def _write_sidecars(
    generator: Generator, request: Request, paths: list[Path], num_samples: int, facts: dict[str, Any]
) -> None:
    weights = generator.checkpoint.weights_hash()
    for path, stream in zip(paths, request.streams, strict=True):
        made_by = {
            "samplernn": __version__,
            "weights": weights,
            "engine": generator.engine.name,
            "dtype": generator.engine.dtype,
            "sample_rate": generator.sample_rate,
            "num_samples": num_samples,
            "seed": request.seed,
            "stream": stream,
            "temperature": request.sampling.temperature,
            "top_k": request.sampling.top_k,
            "top_p": request.sampling.top_p,
            **facts,
        }
        path.with_suffix(".json").write_text(json.dumps(made_by, indent=2) + "\n", "utf-8")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class _Bar:
    """Progress of a generation: seconds written, samples/s, times real time."""

    def __init__(self, show: bool, sample_rate: int, request: Request) -> None:
        self._rate, self._request = sample_rate, request
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.description}"),
            console=Console(file=sys.stderr),
            transient=True,
            disable=not (show and sys.stderr.isatty()),
        )
        self._task = self._progress.add_task("starting", total=request.num_samples)

    def __enter__(self) -> _Bar:
        self._progress.start()
        self._started = time.perf_counter()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, done: int) -> None:
        """`done` samples per stream are written."""
        per_stream = done / (time.perf_counter() - self._started)
        together = per_stream * len(self._request.streams)
        self._progress.update(
            self._task,
            completed=done,
            description=f"{done / self._rate:.1f} s, {together:,.0f} samples/s, "
            f"{per_stream / self._rate:.2f}x real time",
        )
