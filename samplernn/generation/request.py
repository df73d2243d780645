"""What is to be played."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from samplernn.config import UserError
from samplernn.generation.envelopes import Envelope
from samplernn.generation.prompts import Prompt
from samplernn.generation.sampling import Draws
from samplernn.generation.snapshots import Snapshot

OnTrap = Literal["off", "warn", "cool", "rewind"]


@dataclass(frozen=True, eq=False)
class Request:
    """What to play.

    Args:
        num_samples: per stream, without the prompt; None: without end.
        streams: stream numbers; stream i of a seed is always the same.
        seed: of all random numbers.
        temperature: divides the logits; one envelope for all streams, or one for each.
        top_k: keep only the k most probable codes (0: all).
        top_p: keep the most probable codes up to this mass (1: all).
        prompts: what the streams hear first: one for all, or one for each; none: silence.
        origin: where to go on instead of beginning anew. The time of envelopes goes on, too.
        rows: which stream of `origin` each stream goes on from; empty: one after the other.
        on_trap: what to do when a stream is silent, noisy or in a loop (see `guards`): ``off`` does not even
            look; ``warn`` notes it in `Playback.events`; ``cool`` lowers the temperature for a while too, or
            raises it after silence or a loop; ``rewind`` goes back before it and on with fresh random
            numbers, every second time at that other temperature, so that it is never heard.

    Raises:
        UserError: a value out of range.
    """

    num_samples: int | None
    streams: tuple[int, ...] = (0,)
    seed: int = 0
    temperature: tuple[Envelope, ...] = (Envelope(((0.0, 1.0),)),)
    top_k: int = 0
    top_p: float = 1.0
    prompts: tuple[Prompt, ...] = ()
    origin: Snapshot | None = None
    rows: tuple[int, ...] = ()
    on_trap: OnTrap = "warn"

    def __post_init__(self) -> None:
        if self.num_samples is not None and self.num_samples < 1:
            raise UserError(f"duration is too short: {self.num_samples} samples")
        num = len(self.draws.streams)  # raises what is wrong with them
        if len(self.prompts) not in (0, 1, num):
            raise UserError(
                f"{len(self.prompts)} of --prompt for {num} streams: one for all, or one for each"
            )
        if self.on_trap not in get_args(OnTrap):
            raise UserError(f"on_trap must be one of {', '.join(get_args(OnTrap))}, got {self.on_trap!r}")
        if self.prompts and self.origin:
            raise UserError("--prompt and --from-state exclude each other: a state has its past already")
        if self.origin and not all(0 <= row < len(self.origin.streams) for row in self.rows):
            raise UserError(f"the state holds {len(self.origin.streams)} streams, so there is no such row")

    @property
    def draws(self) -> Draws:
        """How codes are drawn."""
        return Draws(self.seed, self.streams, self.temperature, self.top_k, self.top_p)

    def prompt_of(self, index: int) -> Prompt | None:
        """Of the stream at a place in `streams`."""
        return self.prompts[index if len(self.prompts) > 1 else 0] if self.prompts else None

    def row_of(self, index: int) -> int:
        """Of `origin`, for the stream at a place in `streams`."""
        assert self.origin
        return self.rows[index] if self.rows else index % len(self.origin.streams)
