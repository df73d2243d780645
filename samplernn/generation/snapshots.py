"""Files that hold where streams stand: they go on from there, bit for bit, or branch off.

A snapshot is a safetensors file, so nothing in it is executed when it is read. It is bound to the model by
the hash of the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from samplernn import storage
from samplernn.config import UserError, brief, checked, from_dict
from samplernn.generation.engines.base import EngineState
from samplernn.generation.envelopes import envelopes
from samplernn.generation.sampling import Draws
from samplernn.model.network import State
from samplernn.reading import parse_json

FORMAT = 1
_ENTRY = "samplernn.snapshot"
_MOST = 2**62
"""Samples: more than can be."""
_MOST_SKIPPED_SECONDS = 600
"""How much audio may have been given out since the states; a block and two hops are usual."""
_FACTORS = (0.01, 100.0)


@dataclass(frozen=True)
class StreamState:
    """One stream between two samples."""

    engine: EngineState
    """Of this stream alone, ``B = 1``."""
    guard: dict[str, NDArray[Any]]
    """What its `guards.Guard` remembers; empty: it has none."""
    reaction: dict[str, Any] = field(default_factory=dict)
    """What is being done about its traps, as plain values."""

    def require_like(self, model: EngineState, q_levels: int) -> None:
        """Compare this state with one of the model that shall go on from it.

        Args:
            model: of one stream, whatever it has heard.
            q_levels: codes of the model.

        Raises:
            UserError: tensors are missing, or of another shape or type; or they hold no codes or numbers.
        """
        mine, other = self.engine.network, model.network
        pairs = [
            (mine.history, other.history, (torch.int64,)),
            (self.engine.position, model.position, (torch.int64,)),
            *((one, two, (torch.float32, two.dtype)) for one, two in zip(mine.rnn, other.rnn, strict=False)),
        ]
        if len(mine.rnn) != len(other.rnn) or any(
            one.shape != two.shape or one.dtype not in dtypes for one, two, dtypes in pairs
        ):
            raise UserError("its tensors are not those of this model")
        codes, position = mine.history, self.engine.position
        if codes.min() < 0 or codes.max() >= q_levels or not 0 <= position.item() < _MOST:
            raise UserError("its past holds no codes of this model")
        if not all(bool(tier.isfinite().all()) for tier in mine.rnn):
            raise UserError("its hidden vectors are not finite")


@dataclass(frozen=True)
class Snapshot:
    """Streams that can go on.

    The states are those of a little while ago: `skip` samples have been given out since then. They come
    again, the same, when the streams go on.
    """

    weights: str
    """SHA-256 of the model's weights."""
    engine: str
    dtype: str
    on_trap: str
    sample_rate: int
    time: int
    """Samples that each stream had given out at the states."""
    skip: int
    """Samples that it has given out since then."""
    streams: tuple[StreamState, ...]
    draws: Draws
    """How codes are drawn."""
    earlier: tuple[tuple[int, Draws], ...] = ()
    """How they were drawn between `time` and now, in order, each up to a time, if it was otherwise."""
    source: Path | None = None
    """The file that it was read from."""
    sha256: str = ""
    """Of that file."""

    def save(self, file: str | Path) -> None:
        """Write a file; one that is there is replaced in one instant, so it is never half a snapshot.

        Raises:
            UserError: it cannot be written.
        """
        file = Path(file)
        tensors: dict[str, Tensor] = {}
        for number, stream in enumerate(self.streams):
            tensors |= {f"{number}.{name}": value for name, value in _tensors(stream).items()}
        about = {
            "format": FORMAT,
            "weights": self.weights,
            "sample_rate": self.sample_rate,
            "time": self.time,
            "skip": self.skip,
            "engine": self.engine,
            "dtype": self.dtype,
            "on_trap": self.on_trap,
            "draws": self.draws.to_dict(),
            "earlier": [[until, draws.to_dict()] for until, draws in self.earlier],
            "reactions": [stream.reaction for stream in self.streams],
        }
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            content = save(tensors, metadata={_ENTRY: json.dumps(about)})
            storage.write_to_disk(file, lambda opened: opened.write(content))
        except OSError as error:
            raise UserError(f"{file}: cannot write the state: {error.strerror or error}") from error

    @classmethod
    def load(cls, file: str | Path) -> Snapshot:
        """Read a file.

        Raises:
            UserError: missing, damaged, or not a snapshot.
        """
        file = Path(file)
        if not file.exists():
            raise UserError(f"{file}: no such file; --save-state writes one")
        if not file.is_file():
            raise UserError(f"{file}: is no file; name one that --save-state has written")
        damaged = f"{file}: damaged, or not a state that --save-state has written"
        try:
            content = file.read_bytes()
            text, tensors = _metadata(content)[_ENTRY], load(content)
        except (
            Exception
        ) as error:  # safetensors has errors of its own, and PyTorch's for dtypes that it lacks
            raise UserError(damaged) from error
        values = parse_json(text, file)
        try:
            if isinstance(values, dict) and checked(values.get("format"), int, "format") > FORMAT:
                raise UserError("written by a newer samplernn; update samplernn")
            about: _About = from_dict(_About, values)
            streams = tuple(
                _stream(tensors, f"{number}.", reaction) for number, reaction in enumerate(about.reactions)
            )
        except UserError as error:
            raise UserError(f"{damaged}: {error}") from None
        return cls(
            weights=about.weights,
            sample_rate=about.sample_rate,
            time=about.time,
            skip=about.skip,
            streams=streams,
            engine=about.engine,
            dtype=about.dtype,
            on_trap=about.on_trap,
            draws=about.draws.draws(),
            earlier=about.draws_before(),
            source=file,
            sha256=hashlib.sha256(content).hexdigest(),
        )


@dataclass(frozen=True)
class _Drawn:
    """`Draws` as plain values."""

    seed: int
    streams: tuple[int, ...]
    temperature: tuple[str, ...]
    top_k: int
    top_p: float

    def __post_init__(self) -> None:
        if not all(0 <= number < _MOST for number in self.streams):
            raise UserError("draws.streams must be numbers from 0 on")
        self.draws()  # raises what else is wrong with them

    def draws(self) -> Draws:
        """The same."""
        return Draws(self.seed, self.streams, envelopes(self.temperature), self.top_k, self.top_p)


@dataclass(frozen=True)
class _Reaction:
    """What is being done about a stream's traps: the fields of `timeline.Mark` that are plain values."""

    factor: float
    factor_until: int
    attempts: int
    trapped_at: int
    not_before: int

    def __post_init__(self) -> None:
        times = (self.factor_until, self.attempts, self.trapped_at, self.not_before)
        if not (_FACTORS[0] <= self.factor <= _FACTORS[1] and all(0 <= value < _MOST for value in times)):
            raise UserError(f"reactions are out of range: {asdict(self)}")


@dataclass(frozen=True)
class _About:
    """What a file says beside its tensors."""

    format: int
    weights: str
    sample_rate: int
    time: int
    skip: int
    engine: str
    dtype: str
    on_trap: str
    draws: _Drawn
    earlier: tuple[tuple[Any, ...], ...]
    reactions: tuple[_Reaction, ...]

    def __post_init__(self) -> None:
        most_skipped = _MOST_SKIPPED_SECONDS * self.sample_rate
        if not (
            1 <= self.sample_rate <= 384000 and 0 <= self.time < _MOST and 0 <= self.skip <= most_skipped
        ):
            raise UserError(f"times are out of range: {self.skip} samples after {self.time}")
        if len(self.reactions) != len(self.draws.streams):
            raise UserError(f"{len(self.reactions)} reactions for {len(self.draws.streams)} streams")
        self.draws_before()

    def draws_before(self) -> tuple[tuple[int, Draws], ...]:
        """`Snapshot.earlier`."""
        found = []
        for entry in self.earlier:
            if len(entry) != 2:
                raise UserError(f"earlier must hold [time, draws], got {brief(entry)}")
            until, drawn = checked(entry[0], int, "earlier"), checked(entry[1], _Drawn, "earlier")
            if not 0 <= until < _MOST or len(drawn.streams) != len(self.draws.streams):
                raise UserError(f"earlier is out of range: until {until}, {len(drawn.streams)} streams")
            found.append((until, drawn.draws()))
        return tuple(found)


def _metadata(content: bytes) -> dict[str, Any]:
    """What a safetensors file says beside its tensors: an entry of the JSON after the length of that."""
    length = int.from_bytes(content[:8], "little")
    found: dict[str, Any] = json.loads(content[8 : 8 + length])["__metadata__"]
    return found


def _tensors(stream: StreamState) -> dict[str, Tensor]:
    network = stream.engine.network
    tensors = {"history": network.history, "position": stream.engine.position}
    tensors |= {f"rnn.{tier}": value for tier, value in enumerate(network.rnn)}
    tensors |= {f"guard.{name}": torch.from_numpy(np.array(value)) for name, value in stream.guard.items()}
    return {name: value.clone().contiguous() for name, value in tensors.items()}


def _stream(tensors: dict[str, Tensor], prefix: str, reaction: _Reaction) -> StreamState:
    """One stream; whether it fits a model is for `StreamState.require_like` to say. Raises UserError."""
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    tiers = sum(name.startswith("rnn.") for name in own)
    needed = ["history", "position", *(f"rnn.{tier}" for tier in range(tiers))]
    if missing := [name for name in needed if name not in own]:
        raise UserError(f"{prefix}{missing[0]} is missing")
    network = State(own["history"], tuple(own[f"rnn.{tier}"] for tier in range(tiers)))
    try:
        guard = {
            name.removeprefix("guard."): value.numpy()
            for name, value in own.items()
            if name.startswith("guard.")
        }
    except TypeError:  # NumPy has fewer types
        raise UserError(f"{prefix}guard is of another type") from None
    return StreamState(EngineState(network, own["position"]), guard, asdict(reaction))
