"""From what a person says to what is played, and sidecars, which say it again.

Whatever is not said is taken from the sidecar of the file that it shall be like, else from the state that
it goes on from, else it is the default of `Options`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from samplernn import __version__
from samplernn.audio.decoding import Decoded
from samplernn.audio.sinks import FORMATS, read_tags
from samplernn.config import UserError, checked, from_dict
from samplernn.generation.playback import Generator
from samplernn.generation.prompts import open_prompts
from samplernn.generation.request import MAX_SAMPLES, OnTrap, Options, Request, Sampling, one_of
from samplernn.generation.snapshots import Snapshot
from samplernn.messages import require
from samplernn.model.checkpoint import Checkpoint
from samplernn.reading import parse_json, read_json


def settle(checkpoint: Checkpoint, said: Mapping[str, Any]) -> Request:
    """Make a request of what a person says.

    Args:
        checkpoint: the model.
        said: fields of `Options` by name; absent: not said.

    Raises:
        UserError: a value out of range, a file that cannot be read, or another model has made `like`.
    """
    if "num" in said and "stream" in said:
        raise UserError(
            "--stream and --num exclude each other: one stream by its number, or so many from 0 on"
        )
    like, sidecar, origin = Options(**said).like, None, None
    if like is not None:
        sidecar = read_sidecar(like)
        if sidecar.weights != checkpoint.weights_hash():
            problem = f"is not the model that made {like}; name that one, or drop --like"
            raise UserError(f"{checkpoint.source}: {problem}")
        again = sidecar.options()
        if "prompt" in said or "from_state" in said:  # another past, not both
            again = {name: value for name, value in again.items() if name not in ("prompt", "from_state")}
            sidecar = None
        said = {**again, **said}
    state = said.get("from_state")
    if state is not None:
        origin = state if isinstance(state, Snapshot) else Snapshot.load(state)
        if sidecar and sidecar.from_state and sidecar.from_state.sha256 != origin.sha256:
            problem = f"has changed since {like} was made; it cannot be made again"
            raise UserError(f"{origin.source}: {problem}")
        said = {**origin.options(), **said}
    options = Options(**said)
    if options.include_prompt and options.prompt is None:
        raise UserError("--include-prompt: there is no prompt; name one with --prompt FILE")
    sample_rate = checkpoint.config.data.sample_rate
    prompts = open_prompts(options.prompt, sample_rate)
    if sidecar and sidecar.prompt and sidecar.prompt.sha256 not in {prompt.sha256 for prompt in prompts}:
        raise UserError(f"{options.prompt}: has changed since; it cannot be continued as it was")
    temperature = options.temperature
    streams, rows = _streams(
        options, origin, max(len(prompts), len(temperature) if "temperature" in said else 1)
    )
    if sidecar and sidecar.from_state:
        rows = (sidecar.from_state.row,) * len(streams)
    if origin and "temperature" not in said:
        temperature = origin.draws.of_rows(rows).temperature
    return Request(
        None if math.isinf(options.duration) else round(options.duration * sample_rate),
        **{**options.sampling(), "temperature": _in_turn(temperature, len(streams))},
        streams=streams,
        prompts=_in_turn(prompts, len(streams)),
        include_prompt=options.include_prompt,
        origin=origin,
        rows=rows,
        on_trap=options.on_trap,
        engine=options.engine,
        dtype=options.dtype,
    )


def _streams(
    options: Options, origin: Snapshot | None, otherwise: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the streams, and which streams of the state they go on from.

    Those of a state keep their numbers, and further ones get the next; `otherwise` is how many there are if
    nobody says.
    """
    known = origin.draws.streams if origin else ()
    if options.num is None and otherwise == 1 and options.stream is not None:
        streams: tuple[int, ...] = (options.stream,)
    else:
        num, further = options.num or max(otherwise, len(known)), max(known, default=-1) + 1
        streams = (*known, *range(further, further + num))[:num]
    rows = (
        known.index(stream) if stream in known else index % len(known)
        for index, stream in enumerate(streams)
        if known
    )
    return streams, tuple(rows)


def _in_turn(each: tuple[Any, ...], num: int) -> tuple[Any, ...]:
    """One for all stays one; several are given to the streams in turn where there are more streams."""
    return tuple(each[index % len(each)] for index in range(num)) if 1 < len(each) < num else each


# -- sidecars ----------------------------------------------------------------------------------------------


def facts_of(generator: Generator, request: Request, index: int) -> dict[str, Any]:
    """What a sidecar says of the stream at a place in `request.streams`, as plain values; files as named."""
    prompt, origin = request.prompt_of(index), request.origin
    temperature = one_of(request.temperature, index)
    return {
        "samplernn": __version__,
        "checkpoint": str(generator.checkpoint.source),
        "weights": generator.weights,
        "engine": generator.engine.name,
        "dtype": generator.engine.dtype,
        "sample_rate": generator.sample_rate,
        "seed": request.seed,
        "stream": request.streams[index],
        **request.sampling(),
        "temperature": temperature if ":" in str(temperature) else float(temperature),
        "on_trap": request.on_trap,
        "prompt": prompt and {"file": prompt.file and str(prompt.file), "sha256": prompt.sha256},
        "prompt_samples": prompt.num_samples if prompt and request.include_prompt else 0,
        "from_state": origin
        and {
            "file": origin.source and str(origin.source),
            "sha256": origin.sha256,
            "row": request.row_of(index),
        },
    }


@dataclass(frozen=True)
class _File:
    """A file that a stream went on from."""

    file: str | None
    sha256: str


@dataclass(frozen=True)
class _State(_File):
    """A state, and which of its streams."""

    row: int


@dataclass(frozen=True, kw_only=True)
class Sidecar(Sampling):
    """What is read of a sidecar: see `facts_of`."""

    checkpoint: str
    weights: str
    engine: str
    dtype: str
    sample_rate: int
    seed: int = field()
    temperature: tuple[str | float, ...] = field()
    stream: int
    on_trap: OnTrap
    prompt: _File | None
    prompt_samples: int
    from_state: _State | None
    num_samples: int | None = None
    """With the prompt; None: of a stream without end, that was killed. What is in an audio file lacks it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            1000 <= self.sample_rate <= 384000 and 0 <= self.stream < MAX_SAMPLES,
            f"sample_rate {self.sample_rate} or stream {self.stream} is out of range",
        )
        for count in (self.prompt_samples, self.num_samples or 0):
            require(0 <= count < MAX_SAMPLES, f"{count} samples are out of range")

    def options(self) -> dict[str, Any]:
        """What a person would say to make the file again: fields of `Options` by name."""
        length = math.inf if self.num_samples is None else self.num_samples - self.prompt_samples
        same = ("stream", "on_trap", "engine", "dtype")
        found = {
            **self.sampling(),
            **{name: getattr(self, name) for name in same},
            "duration": length / self.sample_rate,
            "prompt": self.prompt and self.prompt.file,
            "include_prompt": self.prompt_samples > 0,
            "from_state": self.from_state and self.from_state.file,
        }
        return {name: value for name, value in found.items() if value is not None}


def read_sidecar(file: str | Path) -> Sidecar:
    """Read how a file was made.

    Args:
        file: the JSON beside it, or the audio file itself, in which the same is written.

    Raises:
        UserError: it is neither, or was made from something that is in no file.
    """
    file = Path(file)
    is_audio = file.suffix.lower() in FORMATS
    values = _comment(file) if is_audio else read_json(file)
    known = {entry.name for entry in fields(Sidecar)}
    try:
        facts = {
            name: value for name, value in checked(values, dict[str, Any], "it").items() if name in known
        }
        if "temperature" in facts:
            facts["temperature"] = [facts["temperature"]]
        sidecar: Sidecar = from_dict(Sidecar, facts)
    except UserError as error:
        problem = f"says nothing about how samplernn made it ({error}); give the .json file"
        raise UserError(f"{file}: {problem}") from None
    found: dict[str, Any] = {"checkpoint": _beside(sidecar.checkpoint, file)}
    for what, name in (("prompt", "prompt"), ("state", "from_state")):
        given = getattr(sidecar, name)
        if given and not given.file:
            raise UserError(f"{file}: its {what} was in no file, so give it again, or use Python")
        found[name] = given and replace(given, file=_beside(given.file, file))
    if is_audio:
        found["num_samples"] = _length(file, sidecar.sample_rate)
    elif sidecar.num_samples is None:  # its process was killed
        audio = [other for suffix in FORMATS if (other := file.with_suffix(suffix)).is_file()]
        found["num_samples"] = _length(audio[0], sidecar.sample_rate) if audio else None
    return replace(sidecar, **found)


def _comment(file: Path) -> Any:
    """The facts in the comment of an audio file. Raises UserError."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    comment = read_tags(file).get("comment")
    if comment is None:
        raise UserError(f"{file}: says nothing about how samplernn made it; give the .json file")
    return parse_json(comment, file)


def _length(audio: Path, sample_rate: int) -> int:
    """Samples in an audio file."""
    return sum(map(len, Decoded(audio, sample_rate)))


def _beside(named: str, file: Path) -> str:
    """A file by its name, or where it lies from `file`'s folder, if it is there and not here."""
    is_there = not Path(named).exists() and (file.parent / named).exists()
    return str(file.parent / named) if is_there else named
