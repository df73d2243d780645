"""Audio from a checkpoint as it comes, in memory that does not grow with its length.

`Generator` is a model made ready to play, `Request` what to play, `Playback` the audio as it comes: an
iterator over blocks. A stream's samples follow from the request and the stream's number alone: not from its
neighbours, nor from the length of the blocks, nor from where the playback was interrupted and went on.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from samplernn.config import UserError
from samplernn.generation.engines import open_engine
from samplernn.generation.engines.base import PREFILL_CHUNK, Engine, EngineState
from samplernn.generation.envelopes import Envelope, envelopes
from samplernn.generation.guards import HOP_SECONDS, Guard, Kind, Trap, expected_of
from samplernn.generation.prompts import Prompt, in_pieces
from samplernn.generation.sampling import Randomness, Sampling
from samplernn.generation.snapshots import Snapshot, StreamState
from samplernn.model.checkpoint import Checkpoint

BLOCK_SECONDS = 0.1
"""About the length of one block: what a killed process can lose."""
LOOKAHEAD_SECONDS = 4.0
"""How far ahead of what it gives out a playback with ``on_trap="rewind"`` is, at least."""

OnTrap = Literal["off", "warn", "cool", "rewind"]
FACTORS: dict[Kind, float] = {"noise": 0.8, "silence": 1.25, "loop": 1.25}
"""What the temperature is multiplied by after a trap. Measured (docs/generation.md, 'Traps'): cooling ends
noise more often than waiting does; silence and loops it never ended, warmth often."""
FACTOR_SECONDS = 2.0
"""How long."""
_ATTEMPTS = 6
"""How often a stream is rewound from one trap before it is let go on."""
_BACK_SECONDS = 0.5
"""How far before a trap's beginning a stream is rewound at first; every second attempt doubles it."""

HeardSoFar = Callable[[int, int], None]
"""Is told while prompts are heard: samples so far, samples in all."""


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
            raises it after silence or a loop (`FACTORS`); ``rewind`` goes back before it and on with fresh
            random numbers, every second time at that other temperature, so that it is never heard.

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
        num = len(self.streams)
        if not num:
            raise UserError("num must be at least 1")
        Randomness(self.seed, self.streams)  # raises on a seed out of range
        Sampling(1.0, self.top_k, self.top_p)
        for what, count in (("temperature", len(self.temperature)), ("prompt", len(self.prompts))):
            if count > 1 and count != num:
                raise UserError(f"{count} of --{what} for {num} streams: give one for all, or one for each")
        if self.on_trap not in get_args(OnTrap):
            raise UserError(f"on_trap must be one of {', '.join(get_args(OnTrap))}, got {self.on_trap!r}")
        if self.prompts and self.origin:
            raise UserError("--prompt and --from-state exclude each other: a state has its past already")
        if self.origin and not all(0 <= row < len(self.origin.streams) for row in self.rows):
            raise UserError(f"the state holds {len(self.origin.streams)} streams, so there is no such row")

    def temperature_of(self, index: int) -> Envelope:
        """Of the stream at a place in `streams`."""
        return self.temperature[index if len(self.temperature) > 1 else 0]

    def prompt_of(self, index: int) -> Prompt | None:
        """Of the stream at a place in `streams`."""
        return self.prompts[index if len(self.prompts) > 1 else 0] if self.prompts else None

    def row_of(self, index: int) -> int:
        """Of `origin`, for the stream at a place in `streams`."""
        assert self.origin
        return self.rows[index] if self.rows else index % len(self.origin.streams)


class Generator:
    """A checkpoint that has been made ready to play.

    Args:
        checkpoint: the model.
        engine: name of an engine, or ``auto``.
        dtype: of its arithmetic, or ``auto``.

    Example:
        >>> generator = Generator(load("runs/piano"))
        >>> for block in generator.stream(Request(num_samples=160_000)):    # int16 [1, ≈1600]
        ...     play(block)
    """

    def __init__(self, checkpoint: Checkpoint, engine: str = "auto", dtype: str = "auto") -> None:
        self.checkpoint = checkpoint
        self.sample_rate = checkpoint.config.data.sample_rate
        self.engine: Engine = open_engine(checkpoint.build(), engine, dtype)
        self.to_audio: NDArray[np.int16] = checkpoint.quantizer.code_to_int16(checkpoint.gain).numpy()
        """What each code sounds like, the gain undone, ``[Q]``."""
        self.expected = expected_of(checkpoint.pair_counts, checkpoint.quantizer, checkpoint.gain)
        """What its training audio is like, for guards."""
        self._to_code = checkpoint.quantizer.int16_to_code(checkpoint.gain).numpy()
        self._weights = ""

    @property
    def weights(self) -> str:
        """SHA-256 of the model's weights."""
        self._weights = self._weights or self.checkpoint.weights_hash()
        return self._weights

    def in_frames(self, seconds: float) -> int:
        """About so many seconds as samples, in whole frames of the slowest tier, at least one."""
        return max(1, round(seconds * self.sample_rate / self.engine.lookback)) * self.engine.lookback

    def stream(
        self,
        request: Request,
        block_seconds: float = BLOCK_SECONDS,
        heard_so_far: HeardSoFar = lambda heard, of: None,
    ) -> Playback:
        """Generate block by block.

        Args:
            request: what to play.
            block_seconds: length of the blocks, about; it changes nothing in the samples.
            heard_so_far: see there.

        Returns:
            An iterator over int16 ``[B, n]`` with the gain undone; together exactly `num_samples` per stream.

        Raises:
            UserError: the state to go on from belongs to another model.
        """
        return Playback(self, request, block_seconds, heard_so_far)

    def hear(self, prompt: Prompt, heard_so_far: Callable[[int], None] = lambda heard: None) -> EngineState:
        """One stream that has heard a prompt, with silence before it to fill whole frames."""
        lookback, engine = self.engine.lookback, self.engine
        engine.start(1)
        missing = -prompt.num_samples % lookback
        size = max(1, PREFILL_CHUNK // lookback) * lookback
        heard = 0
        for number, piece in enumerate(in_pieces(prompt.blocks(), size - missing, size)):
            engine.prefill(torch.from_numpy(self.to_codes(np.pad(piece, (0 if number else missing, 0)))))
            heard += len(piece)
            heard_so_far(heard)
        return engine.export_state()

    def to_codes(self, samples: NDArray[np.int16]) -> NDArray[np.int64]:
        """What the model takes audio for: codes int64 of the same shape, the gain applied."""
        return self._to_code[samples.astype(np.int32) + 32768]


@dataclass(frozen=True)
class Event:
    """A trap that a stream fell into, and what was done about it."""

    stream: int
    """Its number."""
    kind: str
    """``silence``, ``noise`` or ``loop``."""
    detail: str
    seconds: float
    """When it began, since the stream's start."""
    until: float
    """When it was recognised, or by when it still went on."""
    action: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values by name, for a sidecar."""
        return asdict(self)

    def describe(self) -> str:
        """One line."""
        where, length = f"stream {self.stream} at {self.seconds:.1f} s", self.until - self.seconds
        return f"{where}: {self.kind} for {length:.1f} s ({self.detail}), {self.action}"


@dataclass(frozen=True)
class Mark:
    """One stream at a moment between two frames: all that decides how it goes on."""

    engine: EngineState
    """Of this stream alone."""
    unjudged: NDArray[np.int64]
    """Codes since the last hop began."""
    guard: Guard | None
    factor: float = 1.0
    """What its temperature is multiplied by."""
    factor_until: int = 0
    """How long, in samples since the stream's start."""
    attempts: int = 0
    """How often it has been rewound from the trap that it fell into last."""
    trapped_at: int = 0
    """When that was recognised, in samples since the stream's start."""


class Playback(Iterator[NDArray[np.int16]]):
    """Audio as it comes: an iterator over int16 ``[B, n]``. Made by `Generator.stream`.

    Attributes:
        events: the traps so far (see `guards`); those of ``rewind`` are not in the audio.
    """

    def __init__(
        self, generator: Generator, request: Request, block_seconds: float, heard_so_far: HeardSoFar
    ) -> None:
        self.generator, self.request = generator, request
        self.events: list[Event] = []
        self._block = generator.in_frames(block_seconds)
        self._hop = generator.in_frames(HOP_SECONDS)
        self._lookahead = -(-round(LOOKAHEAD_SECONDS * generator.sample_rate) // self._hop) * self._hop
        # Times are samples since the start of the streams. `_codes` begin at `_begin` and end at `_time`,
        # where `_state` is; those before `_given` have been given out.
        self._time = self._begin = self._given = 0
        self._codes = np.zeros((len(request.streams), 0), np.int64)
        marks = self._resumed(request.origin) if request.origin else self._begun(heard_so_far)
        self._state = EngineState.joined([mark.engine for mark in marks])
        self._marks = [(self._time, marks)]
        self._end = None if request.num_samples is None else self._given + request.num_samples
        if self._time > 0 and self._time % self._hop == 0 and len(marks[0].unjudged):
            self._end_hop()

    def __next__(self) -> NDArray[np.int16]:
        if self._end is not None and self._given >= self._end:
            raise StopIteration
        while self._certain() <= self._given:
            self._advance()
        stop = self._certain() if self._end is None else min(self._certain(), self._end)
        codes = self._codes[:, self._given - self._begin : stop - self._begin]
        self._given = stop
        self._forget()
        return self.generator.to_audio[codes]

    def snapshot(self) -> Snapshot:
        """Where the streams stand after the last block that was given out."""
        time, marks = self._marks[0]
        if time > self._given:  # less than a frame after it went on from one
            assert self.request.origin
            return replace(
                self.request.origin, skip=self.request.origin.skip + self._given - self._resumed_at
            )
        return Snapshot(
            weights=self.generator.weights,
            sample_rate=self.generator.sample_rate,
            time=time,
            skip=self._given - time,
            streams=tuple(_exported(mark) for mark in marks),
            settings={
                "engine": self.generator.engine.name,
                "dtype": self.generator.engine.dtype,
                "seed": self.request.seed,
                "streams": list(self.request.streams),
                "temperature": [str(envelope) for envelope in self.request.temperature],
                "top_k": self.request.top_k,
                "top_p": self.request.top_p,
                "on_trap": self.request.on_trap,
            },
        )

    def _begun(self, heard_so_far: HeardSoFar) -> list[Mark]:
        """The streams after their prompts, or after silence."""
        engine, request = self.generator.engine, self.request
        ends = np.cumsum([prompt.num_samples for prompt in request.prompts])
        states = []
        for prompt, end in zip(request.prompts, ends, strict=True):
            before, total = int(end) - prompt.num_samples, int(ends[-1])
            states.append(self.generator.hear(prompt, partial(_later, heard_so_far, before, total)))
        if not states:
            engine.start(1)
            states = [engine.export_state()]
        none = np.zeros(0, np.int64)
        return [
            Mark(states[index if len(states) > 1 else 0], none, self._new_guard(0))
            for index in range(len(request.streams))
        ]

    def _resumed(self, origin: Snapshot) -> list[Mark]:
        """The streams where `origin` left them, or at the next beginning of a frame: the samples until there
        are drawn as they would have been."""
        generator, request = self.generator, self.request
        if origin.weights != generator.weights:
            raise UserError(
                f"the state belongs to another model: its weights are {origin.weights[:12]}…, "
                f"those of {generator.checkpoint.source} {generator.weights[:12]}…"
            )
        rows = [request.row_of(index) for index in range(len(request.streams))]
        marks = []
        for row in rows:
            stream = origin.streams[row]
            guard = self._new_guard(origin.time - len(stream.unjudged))
            if guard and stream.guard:
                guard.import_state(stream.guard)
            marks.append(Mark(stream.engine, stream.unjudged, guard, **stream.reaction))
        self._time = self._begin = origin.time
        self._given = self._resumed_at = origin.time + origin.skip
        if not origin.skip:
            return marks
        settings = origin.settings
        before = Request(
            None,
            tuple(settings["streams"]),
            settings["seed"],
            envelopes(settings["temperature"]),
            settings["top_k"],
            settings["top_p"],
        )
        state = EngineState.joined([mark.engine for mark in marks])
        frames = -(-origin.skip // generator.engine.lookback)
        codes, state = self._draw(before, rows, marks, state, frames * generator.engine.lookback)
        self._append(codes)
        return [
            replace(mark, engine=state.rows([index]), unjudged=np.concatenate([mark.unjudged, codes[index]]))
            for index, mark in enumerate(marks)
        ]

    def _new_guard(self, start: int) -> Guard | None:
        generator = self.generator
        seconds = self._hop / generator.sample_rate
        if self.request.on_trap == "off" or not 0.1 <= seconds <= 0.5:  # a frame may be longer than that
            return None
        guard = Guard(generator.expected, generator.sample_rate, self._hop)
        guard.position = start
        return guard

    # -- generating -----------------------------------------------------------------------------------

    def _certain(self) -> int:
        """Up to where the codes will not be taken back."""
        if self.request.on_trap != "rewind":
            return self._time
        return self._time // self._hop * self._hop - self._lookahead

    def _advance(self) -> None:
        """One block more, or what is left of the hop."""
        length = min(self._block, self._hop - self._time % self._hop)
        everyone, marks = list(range(len(self.request.streams))), self._marks[-1][1]
        codes, self._state = self._draw(self.request, everyone, marks, self._state, length)
        self._append(codes)
        if self._time % self._hop == 0:
            self._end_hop()

    def _draw(
        self,
        request: Request,
        indices: list[int],
        marks: list[Mark],
        state: EngineState,
        length: int,
        time: int | None = None,
    ) -> tuple[NDArray[np.int64], EngineState]:
        """Codes ``[B, length]`` of some streams of a request, within one hop, and their state afterwards.

        Args:
            request: how they are drawn.
            indices: of the streams in `request`, ``[B]``.
            marks: since when they have been in this hop, ``[B]``.
            state: of them.
            length: samples per stream.
            time: of `state`; None: now.
        """
        time = self._time if time is None else time
        rate, engine = self.generator.sample_rate, self.generator.engine
        samples = np.arange(time, time + length)
        if len(request.temperature) == 1:
            curves = [request.temperature[0].at(samples, rate)] * len(indices)
        else:
            curves = [request.temperature[index].at(samples, rate) for index in indices]
        factors = [mark.factor if time < mark.factor_until else 1.0 for mark in marks]
        temperature = np.stack(curves) * np.array(factors, np.float32)[:, None]
        randomness = Randomness(request.seed, tuple(request.streams[index] for index in indices))
        engine.import_state(state)
        codes = engine.advance(length, randomness, Sampling(temperature, request.top_k, request.top_p))
        return codes.numpy(), engine.export_state()

    def _append(self, codes: NDArray[np.int64]) -> None:
        self._codes = np.concatenate([self._codes, codes], axis=1)
        self._time += codes.shape[1]

    def _forget(self) -> None:
        """Drop what is behind everything that could still be asked for."""
        while len(self._marks) > 1 and self._marks[1][0] <= self._given:
            self._marks.pop(0)
        needed = min(self._given, self._marks[-1][0])
        self._codes = self._codes[:, needed - self._begin :]
        self._begin = needed

    # -- traps ----------------------------------------------------------------------------------------

    def _end_hop(self) -> None:
        """Mark where the streams are, and look whether they are in a trap."""
        begin, marks = self._marks[-1]
        judged = [
            self._judge(mark, self._state.rows([index]), self._codes[index, begin - self._begin :])
            for index, mark in enumerate(marks)
        ]
        self._marks.append((self._time, [mark for mark, _ in judged]))
        traps = [(index, trap) for index, (_, trap) in enumerate(judged) if trap]
        for index, trap in traps:
            if self.request.on_trap == "rewind":
                self._rewind(index, trap)
            else:
                self._note(index, trap)
        if traps:
            self._state = EngineState.joined([mark.engine for mark in self._marks[-1][1]])

    def _judge(self, mark: Mark, engine: EngineState, codes: NDArray[np.int64]) -> tuple[Mark, Trap | None]:
        """A stream at the end of a hop: what its guard says to the codes since `mark`."""
        none = codes[:0]
        if not mark.guard:
            return replace(mark, engine=engine, unjudged=none), None
        guard = mark.guard.copy()
        trap = guard.hear(self.generator.to_audio[np.concatenate([mark.unjudged, codes])])
        return replace(mark, engine=engine, unjudged=none, guard=guard), trap

    def _note(self, index: int, trap: Trap) -> None:
        """Remember a trap; change the stream's temperature if that is wanted."""
        if self.request.on_trap == "warn":
            self._record(index, trap, "warned")
            return
        mark = self._marks[-1][1][index]
        guard = self._new_guard(self._time)  # so that a trap that does not end is seen again
        self._marks[-1][1][index] = self._tempered(replace(mark, guard=guard), self._time, trap.kind)
        self._record(index, trap, f"temperature x {FACTORS[trap.kind]} for {FACTOR_SECONDS:g} s")

    def _tempered(self, mark: Mark, time: int, kind: Kind) -> Mark:
        """The same stream at another temperature for a while, in whole hops."""
        hops = -(-round(FACTOR_SECONDS * self.generator.sample_rate) // self._hop)
        return replace(mark, factor=FACTORS[kind], factor_until=time + hops * self._hop)

    def _rewind(self, index: int, trap: Trap | None) -> None:
        """Take a stream back to before its trap, on with random numbers that were not used yet, up to now.

        The audio since then has not been given out. After `_ATTEMPTS` in vain it is let go on.
        """
        at = len(self._marks) - 1
        while trap:
            time, mark = self._marks[at][0], self._marks[at][1][index]
            is_the_same = mark.attempts > 0 and time - mark.trapped_at <= self._lookahead
            attempts = mark.attempts + 1 if is_the_same else 1
            if attempts > _ATTEMPTS:
                self._marks[at][1][index] = replace(mark, attempts=0)
                self._record(index, trap, f"let go on after {_ATTEMPTS} attempts to rewind")
            else:
                back = round(_BACK_SECONDS * 2 ** ((attempts - 1) // 2) * self.generator.sample_rate)
                at = max(0, bisect_right(self._marks, trap.begin - back, key=lambda entry: entry[0]) - 1)
                target = self._marks[at][0]
                before = self._marks[at][1][index]
                before = replace(
                    before,
                    engine=before.engine._replace(position=mark.engine.position),
                    attempts=attempts,
                    trapped_at=time,
                )
                action = f"rewound {(time - target) / self.generator.sample_rate:.1f} s"
                if attempts % 2 == 0:
                    before = self._tempered(before, target, trap.kind)
                    action += f", temperature x {FACTORS[trap.kind]} for {FACTOR_SECONDS:g} s"
                self._marks[at][1][index] = before
                self._record(index, trap, action)
            trap = None
            while at + 1 < len(self._marks) and not trap:
                trap = self._redo(index, at)
                at += 1

    def _redo(self, index: int, at: int) -> Trap | None:
        """Generate one stream anew from one mark to the next."""
        time, end = self._marks[at][0], self._marks[at + 1][0]
        mark = self._marks[at][1][index]
        codes, engine = self._draw(self.request, [index], [mark], mark.engine, end - time, time)
        self._codes[index, time - self._begin : end - self._begin] = codes[0]
        self._marks[at + 1][1][index], trap = self._judge(mark, engine, codes[0])
        return trap

    def _record(self, index: int, trap: Trap, action: str) -> None:
        rate = self.generator.sample_rate
        self.events.append(
            Event(
                self.request.streams[index],
                trap.kind,
                trap.detail,
                trap.begin / rate,
                trap.seen / rate,
                action,
            )
        )


def _later(heard_so_far: HeardSoFar, before: int, total: int, heard: int) -> None:
    heard_so_far(before + heard, total)


def _exported(mark: Mark) -> StreamState:
    guard = mark.guard.export_state() if mark.guard else {}
    reaction = {
        "factor": mark.factor,
        "factor_until": mark.factor_until,
        "attempts": mark.attempts,
        "trapped_at": mark.trapped_at,
    }
    return StreamState(mark.engine, mark.unjudged, guard, reaction)
