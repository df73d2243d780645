"""Files that hold where streams stand: they go on from there, bit for bit, or branch off.

A snapshot is a safetensors file, so nothing in it is executed when it is read. It is bound to the model by
the hash of the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
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
from samplernn.generation.request import MAX_SAMPLES, Draws
from samplernn.messages import require
from samplernn.model.network import State
from samplernn.reading import parse_json

FORMAT = 1
_ENTRY = "samplernn.snapshot"
_MAX_SKIPPED_SECONDS = 600
"""How much audio may have been given out since the states; a block and two hops are usual."""
_FACTORS = (0.01, 100.0)
"""Range of what a temperature is multiplied by."""


@dataclass(frozen=True)
class Reaction:
    """What is being done about a stream's traps. Times are samples since its start."""

    factor: float = 1.0
    """What its temperature is multiplied by."""
    factor_until: int = 0
    """How long."""
    attempts: int = 0
    """How often it has been rewound from the trap that it fell into last."""
    trapped_at: int = 0
    """When that was recognised."""
    not_before: int = 0
    """How far it may be rewound: where it was last let go on."""

    def __post_init__(self) -> None:
        times = (self.factor_until, self.attempts, self.trapped_at, self.not_before)
        require(
            _FACTORS[0] <= self.factor <= _FACTORS[1] and all(0 <= value < MAX_SAMPLES for value in times),
            f"reactions are out of range: {asdict(self)}",
        )


@dataclass(frozen=True)
class StreamState:
    """One stream between two samples."""

    engine: EngineState
    """Of this stream alone, ``B = 1``."""
    guard: dict[str, NDArray[Any]]
    """What its `guards.Guard` remembers; empty: it has none."""

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
        if codes.min() < 0 or codes.max() >= q_levels or not 0 <= position.item() < MAX_SAMPLES:
            raise UserError("its past holds no codes of this model")
        if not all(bool(tier.isfinite().all()) for tier in mine.rnn):
            raise UserError("its hidden vectors are not finite")


@dataclass(frozen=True)
class Earlier:
    """How codes were drawn up to a time, if it was otherwise than after it."""

    until: int
    draws: Draws


@dataclass(frozen=True, kw_only=True)
class StateFacts:
    """What a file says beside its tensors."""

    format: int = FORMAT
    weights: str
    """SHA-256 of the model's weights."""
    sample_rate: int
    time: int
    """Samples that each stream had given out at the states."""
    skip: int
    """Samples that it has given out since then."""
    engine: str
    dtype: str
    on_trap: str
    draws: Draws
    """How codes are drawn."""
    earlier: tuple[Earlier, ...] = ()
    """How they were drawn between `time` and now, in order, if it was otherwise."""
    reactions: tuple[Reaction, ...]
    """Of each stream."""

    def __post_init__(self) -> None:
        num, longest = len(self.draws.streams), _MAX_SKIPPED_SECONDS * self.sample_rate
        require(
            1 <= self.sample_rate <= 384000 and 0 <= self.time < MAX_SAMPLES and 0 <= self.skip <= longest,
            f"times are out of range: {self.skip} samples after {self.time}",
        )
        require(len(self.reactions) == num, f"{len(self.reactions)} reactions for {num} streams")
        for entry in self.earlier:
            known = len(entry.draws.streams)
            require(
                0 <= entry.until < MAX_SAMPLES and known == num,
                f"earlier is out of range: until {entry.until}, {known} streams",
            )


@dataclass(frozen=True, kw_only=True)
class Snapshot(StateFacts):
    """Streams that can go on.

    The states are those of a little while ago: `skip` samples have been given out since then. They come
    again, the same, when the streams go on.
    """

    streams: tuple[StreamState, ...]
    source: Path | None = None
    """The file that it was read from."""
    sha256: str = ""
    """Of that file."""

    def options(self) -> dict[str, Any]:
        """What the streams go on with unless a person says otherwise: fields of `Options` by name.

        Temperatures are left out: streams keep their own (see `settings.settle`).
        """
        same = {name: getattr(self, name) for name in ("on_trap", "engine", "dtype")}
        sampling = {name: value for name, value in self.draws.sampling().items() if name != "temperature"}
        return {**sampling, **same}

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
            **{entry.name: getattr(self, entry.name) for entry in fields(StateFacts)},
            "draws": self.draws.to_dict(),
            "earlier": [[entry.until, entry.draws.to_dict()] for entry in self.earlier],
            "reactions": [asdict(reaction) for reaction in self.reactions],
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
            facts = _facts(values)
            streams = tuple(_stream(tensors, f"{number}.") for number in range(len(facts.reactions)))
        except UserError as error:
            raise UserError(f"{damaged}: {error}") from None
        return cls(**vars(facts), streams=streams, source=file, sha256=hashlib.sha256(content).hexdigest())


def _facts(values: Any) -> StateFacts:
    """What a file says, checked. Raises UserError."""
    if isinstance(values, dict):
        if checked(values.get("format"), int, "format") > FORMAT:
            raise UserError("written by a newer samplernn; update samplernn")
        entries = checked(values.get("earlier"), list[Any], "earlier")
        for entry in entries:
            is_pair = isinstance(entry, list) and len(entry) == 2
            require(is_pair, f"earlier must hold [time, draws], got {brief(entry)}")
        values = {**values, "earlier": [{"until": until, "draws": draws} for until, draws in entries]}
    facts: StateFacts = from_dict(StateFacts, values)
    return facts


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


def _stream(tensors: dict[str, Tensor], prefix: str) -> StreamState:
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
    return StreamState(EngineState(network, own["position"]), guard)
