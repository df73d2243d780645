"""What a person may say about a generation, and where the rest comes from.

Whatever is not said is taken from the sidecar of the file that it shall be like, else from the state that
it goes on from, else from `DEFAULTS`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from samplernn import __version__
from samplernn.audio.decoding import Decoded
from samplernn.audio.sinks import FORMATS, read_tags
from samplernn.config import UserError, checked, from_dict
from samplernn.generation.envelopes import envelopes
from samplernn.generation.playback import Generator
from samplernn.generation.prompts import Given, open_prompts
from samplernn.generation.request import OnTrap, Request
from samplernn.generation.snapshots import Snapshot
from samplernn.model.checkpoint import Checkpoint
from samplernn.reading import parse_json, read_json


@dataclass(frozen=True, eq=False)
class Settings:
    """Arguments of `stream.stream` and `files.generate`; None: not said."""

    duration: float | None = None
    num: int | None = None
    seed: int | None = None
    temperature: str | float | Sequence[str | float] | None = None
    top_k: int | None = None
    top_p: float | None = None
    prompt: Given | Sequence[Given] | None = None
    include_prompt: bool | None = None
    from_state: str | Path | Snapshot | None = None
    on_trap: OnTrap | None = None
    engine: str | None = None
    dtype: str | None = None
    stream: int | None = None
    """Number of the only stream, where `num` is not said."""
    row: int | None = None
    """Which stream of the state all go on from."""
    prompt_sha256: str | None = None
    """What the prompt must be."""
    state_sha256: str | None = None
    """What the state must be."""
    checkpoint: str | None = None
    """Where the model was."""
    weights: str | None = None
    """What the model must be."""

    def over(self, other: Settings) -> Settings:
        """These settings, and those of `other` where nothing is said."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(other, **{name: value for name, value in own.items() if value is not None})


DEFAULTS = Settings(
    duration=10.0,
    seed=0,
    temperature=0.95,
    top_k=0,
    top_p=1.0,
    include_prompt=False,
    on_trap="warn",
    engine="auto",
    dtype="auto",
)


def settled(checkpoint: Checkpoint, said: Settings, like: str | Path | None = None) -> Settings:
    """Settings, filled in as far as they can be before prompts are read; a state is read.

    `num`, `stream` and `row` may be None, and the temperature where it is that of a state.

    Args:
        checkpoint: the model.
        said: what a person says.
        like: a sidecar, or the audio file beside it.

    Raises:
        UserError: one of the files cannot be read, or another model has made `like`.
    """
    if like is not None:
        model = of_sidecar(like)
        if model.weights != checkpoint.weights_hash():
            raise UserError(
                f"{checkpoint.source}: is not the model that made {like}; name that one, or drop --like"
            )
        if said.prompt is not None or said.from_state is not None:  # another past, not both
            model = replace(
                model, prompt=None, prompt_sha256=None, from_state=None, state_sha256=None, row=None
            )
        said = said.over(model)
    if said.from_state is not None:
        state = said.from_state
        snapshot = state if isinstance(state, Snapshot) else Snapshot.load(state)
        if said.state_sha256 not in (None, snapshot.sha256):
            raise UserError(f"{snapshot.source}: has changed since {like} was made; it cannot be made again")
        draws = snapshot.draws
        said = replace(said, from_state=snapshot).over(
            Settings(
                seed=draws.seed,
                top_k=draws.top_k,
                top_p=draws.top_p,
                on_trap=snapshot.on_trap,  # type: ignore[arg-type]  # checked by Request
                engine=snapshot.engine,
                dtype=snapshot.dtype,
            )
        )
    if said.include_prompt and said.prompt is None:
        raise UserError("--include-prompt: there is no prompt; name one with --prompt FILE")
    settings = said.over(DEFAULTS)
    of_state = said.temperature is None and said.from_state is not None
    return replace(settings, temperature=None) if of_state else settings


def request_of(settings: Settings, sample_rate: int) -> Request:
    """What to play.

    Args:
        settings: from `settled`.
        sample_rate: of the model, in Hz.

    Raises:
        UserError: a value out of range, or a prompt that cannot be read.
    """
    assert settings.duration is not None
    if not settings.duration > 0:
        raise UserError(f"duration must be above 0 seconds, got {settings.duration}")
    if settings.num is not None and settings.num < 1:
        raise UserError(f"num must be at least 1, got {settings.num}")
    prompts = open_prompts(settings.prompt, sample_rate)
    if settings.prompt_sha256 not in (None, *(prompt.sha256 for prompt in prompts)):
        raise UserError(f"{settings.prompt}: has changed since; it cannot be continued as it was")
    temperature = () if settings.temperature is None else envelopes(settings.temperature)
    origin = settings.from_state
    assert origin is None or isinstance(origin, Snapshot)
    streams, rows = _streams(settings, origin, max(1, len(prompts), len(temperature)))
    num = len(streams)
    if origin and not temperature:
        temperature = origin.draws.rows(rows).temperature
    return Request(
        num_samples=None if math.isinf(settings.duration) else round(settings.duration * sample_rate),
        streams=streams,
        seed=settings.seed or 0,
        temperature=_dealt(temperature, num),
        top_k=settings.top_k or 0,
        top_p=1.0 if settings.top_p is None else settings.top_p,
        prompts=_dealt(prompts, num),
        origin=origin,
        rows=rows,
        on_trap=settings.on_trap or "warn",
    )


def _streams(
    settings: Settings, origin: Snapshot | None, otherwise: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers of the streams, and which streams of the state they go on from.

    Those of a state keep their numbers, and further ones get the next; `otherwise` is how many there are if
    nobody says.
    """
    known = origin.draws.streams if origin else ()
    if settings.num is None and otherwise == 1 and settings.stream is not None:
        streams: tuple[int, ...] = (settings.stream,)
    else:
        num, further = settings.num or max(otherwise, len(known)), max(known, default=-1) + 1
        streams = (*known, *range(further, further + num))[:num]
    if not known:
        return streams, ()
    if settings.row is not None:
        return streams, (settings.row,) * len(streams)
    return streams, tuple(
        known.index(stream) if stream in known else index % len(known) for index, stream in enumerate(streams)
    )


def _dealt(each: tuple[Any, ...], num: int) -> tuple[Any, ...]:
    """One for all stays one; several are dealt out in turn where there are more streams."""
    return tuple(each[index % len(each)] for index in range(num)) if 1 < len(each) < num else each


def facts_of(generator: Generator, request: Request, index: int, include_prompt: bool) -> dict[str, Any]:
    """What a sidecar says of the stream at a place in `request.streams`, as plain values; files as named."""
    prompt, origin = request.prompt_of(index), request.origin
    return {
        "samplernn": __version__,
        "checkpoint": str(generator.checkpoint.source),
        "weights": generator.weights,
        "engine": generator.engine.name,
        "dtype": generator.engine.dtype,
        "sample_rate": generator.sample_rate,
        "seed": request.seed,
        "stream": request.streams[index],
        "temperature": _plain(str(request.draws.temperature_of(index))),
        "top_k": request.top_k,
        "top_p": request.top_p,
        "on_trap": request.on_trap,
        "prompt": prompt and {"file": prompt.file and str(prompt.file), "sha256": prompt.sha256},
        "prompt_samples": prompt.num_samples if prompt and include_prompt else 0,
        "from_state": origin
        and {
            "file": origin.source and str(origin.source),
            "sha256": origin.sha256,
            "row": request.row_of(index),
        },
    }


def of_sidecar(file: str | Path) -> Settings:
    """Settings that make a file again.

    Args:
        file: the JSON beside it, or the audio file itself, in which the same is written.

    Raises:
        UserError: it is neither, or was made from something that is in no file.
    """
    file = Path(file)
    is_audio = file.suffix.lower() in FORMATS
    values = _said_by_audio(file) if is_audio else read_json(file)
    try:
        known = {field.name for field in fields(_Sidecar)}
        facts: _Sidecar = from_dict(
            _Sidecar,
            {key: value for key, value in checked(values, dict[str, Any], "it").items() if key in known},
        )
    except UserError as error:
        raise UserError(
            f"{file}: says nothing about how samplernn made it ({error}); give the .json file"
        ) from None
    num_samples, prompt, state = facts.num_samples, facts.prompt, facts.from_state
    if is_audio:
        num_samples = sum(map(len, Decoded(file, facts.sample_rate)))
    elif num_samples is None:  # its process was killed
        num_samples = _length_beside(file, facts.sample_rate)
    for what, given in (("prompt", prompt), ("state", state)):
        if given and not given.file:
            raise UserError(f"{file}: its {what} was in no file, so give it again, or use Python")
    return Settings(
        duration=_duration(num_samples, facts.prompt_samples, facts.sample_rate),
        seed=facts.seed,
        stream=facts.stream,
        temperature=facts.temperature,
        top_k=facts.top_k,
        top_p=facts.top_p,
        on_trap=facts.on_trap,
        engine=facts.engine,
        dtype=facts.dtype,
        prompt=_beside(prompt.file, file) if prompt else None,
        prompt_sha256=prompt.sha256 if prompt else None,
        include_prompt=facts.prompt_samples > 0,
        from_state=_beside(state.file, file) if state else None,
        state_sha256=state.sha256 if state else None,
        row=state.row if state else None,
        checkpoint=_beside(facts.checkpoint, file),
        weights=facts.weights,
    )


@dataclass(frozen=True)
class _File:
    """A file that a stream went on from."""

    file: str | None
    sha256: str


@dataclass(frozen=True)
class _State(_File):
    """A state, and which of its streams."""

    row: int


@dataclass(frozen=True)
class _Sidecar:
    """What is read of a sidecar: see `facts_of`."""

    checkpoint: str
    weights: str
    engine: str
    dtype: str
    sample_rate: int
    seed: int
    stream: int
    temperature: str | float
    top_k: int
    top_p: float
    on_trap: OnTrap
    prompt: _File | None
    prompt_samples: int
    from_state: _State | None
    num_samples: int | None = None
    """With the prompt; None: of a stream without end, that was killed. What is in an audio file lacks it."""

    def __post_init__(self) -> None:
        total = self.num_samples
        if not (1000 <= self.sample_rate <= 384000 and 0 <= self.stream < 2**62):
            raise UserError(f"sample_rate {self.sample_rate} or stream {self.stream} is out of range")
        if not 0 <= self.prompt_samples < 2**62 or (total is not None and not 0 <= total < 2**62):
            raise UserError(f"{self.prompt_samples} and {total} samples are out of range")


def _said_by_audio(file: Path) -> Any:
    """The facts in the comment of an audio file. Raises UserError."""
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    comment = read_tags(file).get("comment")
    if comment is None:
        raise UserError(f"{file}: says nothing about how samplernn made it; give the .json file")
    return parse_json(comment, file)


def _length_beside(sidecar: Path, sample_rate: int) -> int | None:
    """Samples in the audio file beside a sidecar."""
    for suffix in FORMATS:
        if (audio := sidecar.with_suffix(suffix)).is_file():
            return sum(map(len, Decoded(audio, sample_rate)))
    return None


def _beside(named: str | None, file: Path) -> str | None:
    """A file by its name, or where it lies from `file`'s folder, if it is there and not here."""
    if named is None or Path(named).exists() or not (file.parent / named).exists():
        return named
    return str(file.parent / named)


def _duration(num_samples: int | None, prompt_samples: int, sample_rate: int) -> float:
    """In seconds; of a stream without end, which was killed, None samples are known."""
    return math.inf if num_samples is None else (num_samples - prompt_samples) / sample_rate


def _plain(envelope: str) -> str | float:
    """A number where an envelope is one."""
    return envelope if ":" in envelope else float(envelope)
