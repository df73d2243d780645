"""Files that hold where streams stand: they go on from there, bit for bit, or branch off.

A snapshot is a safetensors file, so nothing in it is executed when it is read. It is bound to the model by
the hash of the weights.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor

from samplernn import storage
from samplernn.config import UserError
from samplernn.generation.engines.base import EngineState
from samplernn.generation.sampling import Draws
from samplernn.model.network import State

FORMAT = 1
_ENTRY = "samplernn.snapshot"


@dataclass(frozen=True)
class StreamState:
    """One stream between two samples."""

    engine: EngineState
    """Of this stream alone, ``B = 1``."""
    guard: dict[str, NDArray[Any]]
    """What its `guards.Guard` remembers; empty: it has none."""
    reaction: dict[str, Any] = field(default_factory=dict)
    """What is being done about its traps, as plain values."""


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
            storage.write_to_disk(file, save(tensors, metadata={_ENTRY: json.dumps(about)}))
        except OSError as error:
            raise UserError(f"{file}: cannot write the state: {error.strerror or error}") from error

    @classmethod
    def load(cls, file: str | Path) -> Snapshot:
        """Read a file.

        Raises:
            UserError: missing, damaged, or not a snapshot.
        """
        try:
            content = Path(file).read_bytes()
            about, tensors = json.loads(_metadata(content)[_ENTRY]), load(content)
            if about["format"] > FORMAT:
                raise UserError(f"{file}: written by a newer samplernn; update samplernn")
            return cls(
                weights=about["weights"],
                sample_rate=about["sample_rate"],
                time=about["time"],
                skip=about["skip"],
                streams=tuple(
                    _stream(tensors, f"{number}.", reaction)
                    for number, reaction in enumerate(about["reactions"])
                ),
                engine=about["engine"],
                dtype=about["dtype"],
                on_trap=about["on_trap"],
                draws=Draws.from_dict(about["draws"]),
                earlier=tuple((until, Draws.from_dict(draws)) for until, draws in about["earlier"]),
                source=Path(file),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        except UserError:
            raise
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; --save-state writes one") from None
        except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: damaged, or not a state that --save-state has written") from error


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


def _stream(tensors: dict[str, Tensor], prefix: str, reaction: dict[str, Any]) -> StreamState:
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    tiers = sum(name.startswith("rnn.") for name in own)
    network = State(own["history"], tuple(own[f"rnn.{tier}"] for tier in range(tiers)))
    guard = {
        name.removeprefix("guard."): value.numpy() for name, value in own.items() if name.startswith("guard.")
    }
    return StreamState(EngineState(network, own["position"]), guard, reaction)
