"""What to generate. Every option stands here once, with its default, its range and its help text.

`Options` is what a person may say: the options of `samplernn generate` and the arguments of
`samplernn.generate` and `samplernn.stream` are made of its fields (see `arguments`), and so is the table in
docs/generation.md. `settings.settle` makes a `Request` of them: files are opened, and what was not said is
filled in. Nothing here imports torch, so `--help` is instant.

A field's metadata is what argparse needs beside the type of its default, and its group in the help.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from samplernn.generation.envelopes import Envelope, envelopes
from samplernn.messages import require

if TYPE_CHECKING:
    from samplernn.generation.prompts import Prompt
    from samplernn.generation.snapshots import Snapshot

T = TypeVar("T")

OnTrap = Literal["off", "warn", "cool", "rewind"]

MAX_SAMPLES = 2**62
"""Bound of times and stream numbers."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How codes are drawn from the probabilities that the network gives.

    A state and a sidecar hold these fields under their names. A new field needs a default that changes
    nothing, for files that lack it.
    """

    seed: int = 0
    """Of all random numbers; stream i of a seed is always the same."""
    temperature: tuple[str | float, ...] = field(default=(0.95,), metadata={"nargs": "+", "metavar": "T"})
    """Divides the logits; 0 takes the most probable code. A number, or an envelope
    SECONDS:T,SECONDS:T,… (straight lines between its points); several: one per stream."""
    top_k: int = 0
    """Keep only the k most probable codes (0: all)."""
    top_p: float = 1.0
    """Keep the most probable codes up to this probability in all (1: all)."""

    def __post_init__(self) -> None:
        texts = tuple(str(envelope) for envelope in envelopes(self.temperature))
        object.__setattr__(self, "temperature", texts)
        require(0 <= self.seed < 2**64, f"seed must be from 0 to 2**64 - 1, got {self.seed}")
        require(self.top_k >= 0, f"top_k must be at least 1 (or 0 for all codes), got {self.top_k}")
        require(0 < self.top_p <= 1, f"top_p must be above 0 and at most 1, got {self.top_p}")

    @functools.cached_property
    def curves(self) -> tuple[Envelope, ...]:
        """The temperatures over time."""
        return envelopes(self.temperature)

    def sampling(self) -> dict[str, Any]:
        """These fields alone by name, also of a subclass: plain values for JSON."""
        return {option.name: getattr(self, option.name) for option in fields(Sampling)}


@dataclass(frozen=True, kw_only=True)
class Draws(Sampling):
    """How the codes of some streams are drawn."""

    streams: tuple[int, ...]
    """Stream numbers. There is one temperature for all of them, or one for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        num, temperatures = len(self.streams), len(self.temperature)
        require(num > 0, "num must be at least 1")
        for stream in self.streams:
            require(0 <= stream < MAX_SAMPLES, f"stream must be at least 0, got {stream}")
        require(
            temperatures in (1, num),
            f"{temperatures} of --temperature for {num} streams: one for all, or one for each",
        )

    def of_rows(self, which: Sequence[int]) -> Draws:
        """Of the streams at some places in `streams`."""
        own = {
            "streams": tuple(self.streams[index] for index in which),
            "temperature": tuple(one_of(self.temperature, index) for index in which),
        }
        return Draws(**{**self.sampling(), **own})

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for JSON."""
        return {"seed": self.seed, "streams": list(self.streams), **self.sampling()}


@dataclass(frozen=True, kw_only=True)
class Options(Sampling):
    """What a person may say about a generation; a `Request` comes of it."""

    duration: float = 10.0
    """Seconds per stream, or inf."""
    num: int | None = field(default=None, metadata={"type": int})
    """Number of streams (default: that of prompts, temperatures, or streams of the state; else 1)."""
    prompt: Any = field(default=None, metadata={"nargs": "+", "metavar": "FILE"})
    """A recording that the streams continue; several, or a folder: one per stream. In Python also int16
    samples [T] at the model's rate."""
    include_prompt: bool = False
    """Let the audio begin with the prompt."""
    on_trap: OnTrap = field(default="warn", metadata={"choices": get_args(OnTrap)})
    """Silence, noise or a loop: do not look, warn, change the temperature for a while, or go back before it
    and try again (audio then comes 4 s late)."""
    like: Any = field(default=None, metadata={"metavar": "FILE"})
    """The .json beside generated audio, or that audio: the same again."""
    from_state: Any = field(default=None, metadata={"group": "states", "metavar": "FILE"})
    """Go on from there; with another seed or more streams: branch off. In Python also a snapshot."""
    engine: str = field(default="auto", metadata={"group": "how"})
    """Auto (cpu, or reference for what cpu does not serve), cpu, reference, or cuda (an experiment)."""
    dtype: str = field(default="auto", metadata={"group": "how"})
    """Auto, int8, bfloat16 or float32."""

    stream: int | None = field(default=None, metadata={"type": int})
    """Only the stream of this number, instead of `num`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.duration > 0, f"duration must be above 0 seconds, got {self.duration}")
        require(self.num is None or self.num >= 1, f"num must be at least 1, got {self.num}")
        require(self.stream is None or self.stream >= 0, f"stream must be at least 0, got {self.stream}")


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where audio and states go: options of `samplernn generate` that say nothing about the samples."""

    out: Any = field(default=None, metadata={"group": "output"})
    """A folder; a .wav, .flac or .ogg file; - for a pipe (default: a new folder below generated/). In Python
    also a function that opens a sink for one stream, given the sample rate and tags."""
    form: str | None = field(
        default=None,
        metadata={"group": "output", "flag": "--format", "choices": ["wav", "flac", "ogg", "au", "raw"]},
    )
    """In a folder: wav (default), flac, ogg; in a pipe: au (default), raw (16 bits, little-endian)."""
    overwrite: bool = field(default=False, metadata={"group": "output"})
    """Replace existing files."""
    save_state: Any = field(default=None, metadata={"group": "states", "metavar": "FILE"})
    """Where to write the state of the streams at the end; it may replace a state, and no other file."""
    every: float | None = field(
        default=None, metadata={"group": "states", "type": float, "metavar": "SECONDS"}
    )
    """Save it on the way, too."""
    quiet: bool = field(default=False, metadata={"group": "how"})
    """Print only errors (and, of files that are written, their paths)."""

    def __post_init__(self) -> None:
        if self.every is not None:
            is_possible = self.every > 0 and self.save_state is not None
            require(
                is_possible, f"--every {self.every:g}: needs --save-state FILE and a time above 0 seconds"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Request(Draws):
    """What to play: options that are filled in, with files that are open.

    Raises:
        UserError: a value out of range.
    """

    num_samples: int | None = field(kw_only=False)
    """Per stream, without the prompt; None: without end."""
    streams: tuple[int, ...] = (0,)
    """Stream numbers; stream i of a seed is always the same."""
    prompts: tuple[Prompt, ...] = ()
    """What the streams hear first: one for all, or one for each; none: silence."""
    include_prompt: bool = False
    """Let the audio begin with it."""
    origin: Snapshot | None = None
    """Where to go on instead of beginning anew. The time of envelopes goes on, too."""
    rows: tuple[int, ...] = ()
    """Which stream of `origin` each stream goes on from; empty: one after the other."""
    on_trap: OnTrap = Options.on_trap
    """What to do when a stream is silent, noisy or in a loop (see `guards`): ``off`` does not even look;
    ``warn`` notes it in `Playback.events`; ``cool`` lowers the temperature for a while too, or raises it
    after silence or a loop; ``rewind`` goes back before it and on with fresh random numbers, every second
    time at that other temperature, so that it is never heard."""
    engine: str = Options.engine
    """Name of an engine."""
    dtype: str = Options.dtype
    """Of its arithmetic."""

    def __post_init__(self) -> None:
        super().__post_init__()
        num, traps = len(self.streams), get_args(OnTrap)
        if self.num_samples is not None:
            require(self.num_samples >= 1, f"duration is too short: {self.num_samples} samples")
        require(
            len(self.prompts) in (0, 1, num),
            f"{len(self.prompts)} of --prompt for {num} streams: one for all, or one for each",
        )
        require(self.on_trap in traps, f"on_trap must be one of {', '.join(traps)}, got {self.on_trap!r}")
        if self.origin:
            known = len(self.origin.streams)
            require(
                not self.prompts, "--prompt and --from-state exclude each other: a state has its past already"
            )
            require(
                all(0 <= row < known for row in self.rows),
                f"the state holds {known} streams, so there is no such row",
            )

    @property
    def draws(self) -> Draws:
        """How codes are drawn."""
        return Draws(streams=self.streams, **self.sampling())

    def prompt_of(self, index: int) -> Prompt | None:
        """Of the stream at a place in `streams`."""
        return one_of(self.prompts, index) if self.prompts else None

    def row_of(self, index: int) -> int:
        """Of `origin`, for the stream at a place in `streams`."""
        assert self.origin
        return self.rows[index] if self.rows else index % len(self.origin.streams)


def one_of(each: Sequence[T], index: int) -> T:
    """What belongs to the stream at a place, of one for all streams or one for each."""
    return each[index if len(each) > 1 else 0]
