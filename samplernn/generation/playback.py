"""Audio from a checkpoint as it comes, in memory that does not grow with its length.

`Generator` is a model made ready to play, `Request` what to play, `Playback` the audio as it comes: an
iterator over blocks. A stream's samples follow from the request and the stream's number alone: not from its
neighbours, nor from the length of the blocks, nor from where the playback was interrupted and went on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from samplernn.config import UserError
from samplernn.generation.engines import open_engine
from samplernn.generation.engines.base import PREFILL_CHUNK, Engine, EngineState
from samplernn.generation.forked import keep_to_one_thread, require_own_gpu
from samplernn.generation.guards import HOP_SECONDS, Guard, Kind, Trap, expected_of
from samplernn.generation.prompts import Prompt, in_pieces
from samplernn.generation.request import Request
from samplernn.generation.snapshots import Earlier, Reaction, Snapshot, StreamState
from samplernn.generation.timeline import Mark, Moment, Timeline
from samplernn.model.checkpoint import Checkpoint

BLOCK_SECONDS = 0.1
"""About the length of one block: what a killed process can lose."""
LOOKAHEAD_SECONDS = 4.0
"""How far ahead of what it gives out a playback with ``on_trap="rewind"`` is, at least."""

FACTORS: dict[Kind, float] = {"noise": 0.8, "silence": 1.25, "loop": 1.25}
"""What the temperature is multiplied by after a trap. Measured (docs/generation.md, 'Traps'): cooling ends
noise more often than waiting does; it never ended silence and loops, which a higher temperature often did."""
FACTOR_SECONDS = 2.0
"""How long."""
_MAX_ATTEMPTS = 6
"""How often a stream is rewound from one trap before it is let go on."""
_BACK_SECONDS = 0.5
"""How far before a trap's beginning a stream is rewound at first; every second attempt doubles it."""
_MAX_EVENTS = 10_000
"""Traps that `Playback.events` keeps at most."""

Heard = Callable[[int], None]
"""Is told how many samples of the prompts have been heard since it was told last."""


def _ignore(samples: int) -> None:
    pass


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
        keep_to_one_thread()
        self.checkpoint = checkpoint
        self.sample_rate = checkpoint.config.data.sample_rate
        self.engine: Engine = open_engine(checkpoint.build(), engine, dtype)
        self._process = os.getpid()
        self.codec = checkpoint.codec
        """What turns prompts into codes, and codes into audio."""
        self.expected = expected_of(checkpoint.pair_counts, self.codec, checkpoint.head)
        """What its training audio is like, for guards."""
        self._weights = ""
        self.lock = Lock()
        """Held while the engine is in use."""

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
        heard: Heard = _ignore,
    ) -> Playback:
        """Generate block by block.

        Args:
            request: what to play.
            block_seconds: length of the blocks, about; the last may be shorter. It changes nothing in the
                samples.
            heard: see there.

        Returns:
            An iterator over int16 ``[B, n]`` with the gain undone; together exactly `num_samples` per stream.

        Raises:
            UserError: the state to go on from belongs to another model.
        """
        return Playback(self, request, block_seconds, heard)

    def mind_forks(self) -> None:
        """Make sure that it can go on in this process, which may be a forked one. Raises UserError."""
        keep_to_one_thread()
        require_own_gpu(self.engine.name, self._process)

    def hear(self, prompt: Prompt, heard: Heard = _ignore) -> EngineState:
        """One stream that has heard a prompt, with silence before it to fill whole frames."""
        lookback, state = self.engine.lookback, self.silence()
        missing = -prompt.num_samples % lookback
        size = max(1, PREFILL_CHUNK // lookback) * lookback
        for number, piece in enumerate(in_pieces(prompt.blocks(), size - missing, size)):
            with self.lock:
                self.engine.import_state(state)
                codes = self.codec.encode(np.pad(piece, (0 if number else missing, 0)))
                self.engine.prefill(torch.from_numpy(codes))
                state = self.engine.export_state()
            heard(len(piece))
        return state

    def silence(self) -> EngineState:
        """One stream that has heard nothing."""
        with self.lock:
            self.engine.start(1)
            return self.engine.export_state()


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


class Playback(Iterator[NDArray[np.int16]]):
    """Audio as it comes: an iterator over int16 ``[B, n]``. Made by `Generator.stream`.

    Attributes:
        events: the traps so far (see `guards`); those of ``rewind`` are not in the audio.
    """

    def __init__(self, generator: Generator, request: Request, block_seconds: float, heard: Heard) -> None:
        self.generator, self.request = generator, request
        generator.mind_forks()
        self.events: list[Event] = []
        self._block = generator.in_frames(block_seconds)
        self._hop = generator.in_frames(HOP_SECONDS)
        self._lookahead = self._in_hops(LOOKAHEAD_SECONDS)
        origin = request.origin
        start = self._resumed(origin) if origin else self._begun(heard)
        self._timeline = Timeline(
            generator,
            self._hop,
            request.draws,
            self._earlier(origin) if origin else (),
            start,
        )
        # Times are samples since the streams' start; those before `_given` have been given out.
        self._first = self._given = self._given_before = start.time + (origin.skip if origin else 0)
        self._end = None if request.num_samples is None else self._given + request.num_samples

    def __next__(self) -> NDArray[np.int16]:
        self.generator.mind_forks()
        stop = self._given + self._block
        if self._end is not None:
            stop = min(stop, self._end)
        if stop == self._given:
            raise StopIteration
        while self._certain() < stop:
            self._advance(stop - self._timeline.time)
        begin = self._timeline.begin
        codes = self._timeline.codes[:, self._given - begin : stop - begin]
        self._given_before, self._given = self._given, stop
        self._timeline.forget(self._given_before)
        return self.generator.codec.decode(codes)

    @property
    def num_samples(self) -> int:
        """How many of each stream have been given out."""
        return self._given - self._first

    def snapshot(self, with_last_block: bool = True) -> Snapshot:
        """Where the streams stand after the last block that was given out, or before it.

        Args:
            with_last_block: False: as if it had not been given out, for it could not be used.
        """
        now = self._given if with_last_block else self._given_before
        moment = [moment for moment in self._timeline.moments if moment.time <= now][-1]
        return Snapshot(
            weights=self.generator.weights,
            engine=self.generator.engine.name,
            dtype=self.generator.engine.dtype,
            on_trap=self.request.on_trap,
            sample_rate=self.generator.sample_rate,
            time=moment.time,
            skip=now - moment.time,
            draws=self.request.draws,
            earlier=tuple(entry for entry in self._timeline.earlier if entry.until > moment.time),
            reactions=tuple(mark.reaction for mark in moment.marks),
            streams=tuple(
                StreamState(mark.engine, mark.guard.export_state() if mark.guard else {})
                for mark in moment.marks
            ),
        )

    # -- beginning ------------------------------------------------------------------------------------

    def _begun(self, heard: Heard) -> Moment:
        """The streams after their prompts, or after silence."""
        prompts = [self.request.prompt_of(index) for index in range(len(self.request.streams))]
        states = {
            prompt: self.generator.hear(prompt, heard) if prompt else self.generator.silence()
            for prompt in dict.fromkeys(prompts)
        }
        return Moment(0, [Mark(states[prompt], self._new_guard(0), Reaction()) for prompt in prompts])

    def _resumed(self, origin: Snapshot) -> Moment:
        """The streams where `origin` has them."""
        generator = self.generator
        if origin.weights != generator.weights:
            raise UserError(
                f"the state belongs to another model: its weights are {origin.weights[:12]}…, "
                f"those of {generator.checkpoint.source} {generator.weights[:12]}…"
            )
        like, q_levels = generator.silence(), generator.checkpoint.config.model.q_levels
        marks = []
        try:
            for row in self._rows():
                stream = origin.streams[row]
                stream.require_like(like, q_levels)
                guard = self._new_guard(origin.time)
                if guard and stream.guard:
                    guard.import_state(stream.guard)
                    if self.request.on_trap != origin.on_trap:
                        guard.forget()  # what it has reported would otherwise not be acted on
                marks.append(Mark(stream.engine, guard, origin.reactions[row]))
        except ValueError as error:  # UserError is one
            raise UserError(f"{origin.source or 'the state'}: damaged: {error}") from None
        return Moment(origin.time, marks)

    def _earlier(self, origin: Snapshot) -> tuple[Earlier, ...]:
        """What has been given out comes again as it was drawn, up to the end of its last frame."""
        frame = self.generator.engine.lookback
        until = origin.time + -(-origin.skip // frame) * frame
        return tuple(
            Earlier(entry.until, entry.draws.of_rows(self._rows()))
            for entry in (*origin.earlier, Earlier(until, origin.draws))
        )

    def _rows(self) -> list[int]:
        return [self.request.row_of(index) for index in range(len(self.request.streams))]

    def _new_guard(self, start: int) -> Guard | None:
        generator = self.generator
        seconds = self._hop / generator.sample_rate
        if self.request.on_trap == "off" or not 0.1 <= seconds <= 0.5:  # a frame may be longer than that
            return None
        guard = Guard(generator.expected, generator.sample_rate, self._hop)
        guard.position = start
        return guard

    # -- going on -------------------------------------------------------------------------------------

    def _certain(self) -> int:
        """Up to where the codes will not be taken back."""
        if self.request.on_trap != "rewind":
            return self._timeline.time
        return self._timeline.moments[-1].time - self._lookahead

    def _advance(self, wanted: int) -> None:
        """Go on by about so many samples; see to the traps at the end of a hop."""
        frame = self.generator.engine.lookback
        traps = self._timeline.advance(max(1, -(-wanted // frame)) * frame)
        for index, trap in traps:
            if self.request.on_trap == "rewind":
                self._rewind(index, trap)
            elif self.request.on_trap == "cool":
                self._cool(index, trap)
            else:
                self._record(index, trap, "warned")
        if traps:
            self._timeline.take_up()

    def _in_hops(self, seconds: float) -> int:
        """At least so many seconds as samples, in whole hops."""
        return -(-round(seconds * self.generator.sample_rate) // self._hop) * self._hop

    # -- traps ----------------------------------------------------------------------------------------

    def _cool(self, index: int, trap: Trap) -> None:
        """Change a stream's temperature for a while."""
        now = self._timeline.moments[-1]
        mark = now.marks[index]
        assert mark.guard  # that has reported the trap
        guard = mark.guard.copy()
        guard.forget()  # so that a trap that does not end is seen again
        reaction = self._tempered(mark.reaction, now.time, trap.kind)
        now.marks[index] = replace(mark, guard=guard, reaction=reaction)
        self._record(index, trap, _tempering(trap.kind))

    def _rewind(self, index: int, trap: Trap | None) -> None:
        """Take a stream back to before its trap, then up to now with random numbers that were not used yet.

        The audio since then has not been given out. On its way it may fall into a trap again. It is never
        taken back behind where it was let go on, so this comes to an end.
        """
        moments = self._timeline.moments
        at = len(moments) - 1
        while trap:
            at = self._step_back(index, trap, at)
            trap = None
            while at + 1 < len(moments) and not trap:
                trap = self._timeline.redo(index, at)
                at += 1

    def _step_back(self, index: int, trap: Trap, at: int) -> int:
        """Change the mark that a trapped stream goes on from.

        Args:
            index: of the stream.
            trap: it.
            at: index of the moment at which the trap was recognised.

        Returns:
            Index of the moment to go on from: an earlier one, or `at` after too many attempts.
        """
        moments, rate = self._timeline.moments, self.generator.sample_rate
        now, mark = moments[at].time, moments[at].marks[index]
        before = mark.reaction
        is_the_same = before.attempts > 0 and now - before.trapped_at <= self._lookahead
        attempts = before.attempts + 1 if is_the_same else 1
        back = round(_BACK_SECONDS * 2 ** ((attempts - 1) // 2) * rate)
        times = [moment.time for moment in moments[:at]]
        # What may have been given out by now, whatever the length of blocks; and what surely has been.
        given = max(moments[-1].time - self._hop - self._lookahead, self._given)
        target = latest(times, trap.begin - back, max(given, before.not_before))
        if attempts > _MAX_ATTEMPTS or target is None:
            moments[at].marks[index] = replace(mark, reaction=replace(before, attempts=0, not_before=now))
            self._record(index, trap, f"let go on after {attempts - 1} attempts to rewind")
            return at
        earlier = moments[target].marks[index]
        reaction = replace(earlier.reaction, attempts=attempts, trapped_at=now, not_before=before.not_before)
        action = f"rewound {(now - times[target]) / rate:.1f} s"
        if attempts % 2 == 0:
            reaction = self._tempered(reaction, times[target], trap.kind)
            action += f", {_tempering(trap.kind)}"
        engine = earlier.engine._replace(position=mark.engine.position)  # random numbers not used yet
        moments[target].marks[index] = replace(earlier, engine=engine, reaction=reaction)
        self._record(index, trap, action)
        return target

    def _tempered(self, reaction: Reaction, time: int, kind: Kind) -> Reaction:
        """The same at another temperature for a while."""
        until = time + self._in_hops(FACTOR_SECONDS)
        return replace(reaction, factor=FACTORS[kind], factor_until=until)

    def _record(self, index: int, trap: Trap, action: str) -> None:
        """Note a trap, unless it is behind the end of what is asked for."""
        if len(self.events) >= _MAX_EVENTS or (self._end is not None and trap.begin >= self._end):
            return
        rate, stream = self.generator.sample_rate, self.request.streams[index]
        begin, seen = trap.begin / rate, trap.seen / rate
        self.events.append(Event(stream, trap.kind, trap.detail, begin, seen, action))


def latest(times: list[int], wanted: int, earliest: int) -> int | None:
    """Index of the last of rising times up to `wanted`, or else the first; of those from `earliest` on."""
    allowed = [index for index, time in enumerate(times) if time >= earliest]
    return max((index for index in allowed if times[index] <= wanted), default=min(allowed, default=None))


def _tempering(kind: Kind) -> str:
    return f"temperature x {FACTORS[kind]} for {FACTOR_SECONDS:g} s"
