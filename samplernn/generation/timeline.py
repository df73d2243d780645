"""What streams have done, hop by hop, so that one of them can be taken back and do it otherwise.

Whatever happens to a stream (a guard's word, another temperature, a step back) happens between two hops of
its own time. So nothing of it depends on how long the pieces are that somebody asks for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from samplernn.generation.engines.base import EngineState
from samplernn.generation.guards import Guard, Trap
from samplernn.generation.request import Draws
from samplernn.generation.sampling import draw_arrays
from samplernn.generation.snapshots import Earlier, Reaction

if TYPE_CHECKING:
    from samplernn.generation.playback import Generator


@dataclass(frozen=True)
class Mark:
    """One stream between two hops: all that decides how it goes on."""

    engine: EngineState
    """Of this stream alone."""
    guard: Guard | None
    reaction: Reaction


@dataclass
class Moment:
    """All streams between two hops."""

    time: int
    """Samples since their start."""
    marks: list[Mark]
    """One per stream."""


class Timeline:
    """Streams that advance together, and the moments behind them.

    Args:
        generator: the model; others may use it in between.
        hop: samples between two moments, whole frames.
        draws: how codes are drawn.
        earlier: how up to some times, where it is otherwise.
        start: the first moment.

    Attributes:
        moments: oldest first, a hop apart.
        codes: int64 ``[B, n]``, from `begin` to `time`.
        begin: samples since the streams' start.
        time: samples since the streams' start.
    """

    def __init__(
        self,
        generator: Generator,
        hop: int,
        draws: Draws,
        earlier: tuple[Earlier, ...],
        start: Moment,
    ) -> None:
        self.moments = [start]
        self.begin = self.time = start.time
        self.codes = np.zeros((len(start.marks), 0), np.int64)
        self.draws, self.earlier = draws, earlier
        self._generator, self._hop = generator, hop
        self._state = EngineState.joined([mark.engine for mark in start.marks])

    def advance(self, length: int) -> list[tuple[int, Trap]]:
        """Go on by `length` samples (whole frames), or up to the end of the hop.

        Returns:
            At the end of a hop: which streams have fallen into which traps.
        """
        last = self.moments[-1]
        end = min(self.time + length, last.time + self._hop)
        everyone = list(range(len(last.marks)))
        codes, self._state = self._draw(everyone, last.marks, self._state, self.time, end)
        self.codes = np.concatenate([self.codes, codes], axis=1)
        self.time = end
        if end < last.time + self._hop:
            return []
        hop = self.codes[:, last.time - self.begin :]
        judged = [self._judged(mark, self._state.rows([i]), hop[i]) for i, mark in enumerate(last.marks)]
        self.moments.append(Moment(end, [mark for mark, _ in judged]))
        return [(index, trap) for index, (_, trap) in enumerate(judged) if trap]

    def redo(self, index: int, at: int) -> Trap | None:
        """Let one stream do the hop after moment `at` again, from the mark that it has there now."""
        moment, after = self.moments[at : at + 2]
        mark = moment.marks[index]
        codes, engine = self._draw([index], [mark], mark.engine, moment.time, after.time)
        self.codes[index, moment.time - self.begin : after.time - self.begin] = codes[0]
        after.marks[index], trap = self._judged(mark, engine, codes[0])
        return trap

    def take_up(self) -> None:
        """Go on from the marks of the last moment, which is now."""
        self._state = EngineState.joined([mark.engine for mark in self.moments[-1].marks])

    def forget(self, before: int) -> None:
        """Drop all that going on from `before`, or a later time, does not take."""
        while len(self.moments) > 1 and self.moments[1].time <= before:
            self.moments.pop(0)
        needed = min(before, self.moments[-1].time)
        self.codes = self.codes[:, needed - self.begin :]
        self.begin = needed
        self.earlier = tuple(entry for entry in self.earlier if entry.until > self.moments[0].time)

    def _judged(self, mark: Mark, engine: EngineState, codes: NDArray[np.int64]) -> tuple[Mark, Trap | None]:
        """A stream a hop after `mark`, and what its guard says to the codes of the hop."""
        if not mark.guard:
            return replace(mark, engine=engine), None
        guard = mark.guard.copy()
        trap = guard.hear(self._generator.codec.decode(codes))
        return replace(mark, engine=engine, guard=guard), trap

    def _draw(
        self, indices: list[int], marks: list[Mark], state: EngineState, start: int, end: int
    ) -> tuple[NDArray[np.int64], EngineState]:
        """Codes ``[B, end - start]`` of some streams in one hop, and their state afterwards.

        Args:
            indices: of the streams, ``[B]``.
            marks: of them, at the beginning of the hop.
            state: of them, at `start`.
            start: samples since the streams' start.
            end: the same.
        """
        generator, pieces = self._generator, []
        while start < end:
            # How it was drawn earlier counts up to its time; what was given out then comes again.
            entry = next((entry for entry in self.earlier if start < entry.until), Earlier(end, self.draws))
            until, draws = min(entry.until, end), entry.draws
            reactions = [mark.reaction for mark in marks]
            factors = [reaction.factor if start < reaction.factor_until else 1.0 for reaction in reactions]
            if len(indices) < len(draws.streams):
                draws = draws.of_rows(indices)
            arrays = draw_arrays(
                draws, until - start, start, generator.sample_rate, np.array(factors, np.float32)
            )
            with generator.lock:
                generator.engine.import_state(state)
                codes = generator.engine.advance(arrays)
                state = generator.engine.export_state()
            pieces.append(codes.numpy())
            start = until
        return np.concatenate(pieces, axis=1), state
