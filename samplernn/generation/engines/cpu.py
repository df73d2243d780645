"""The CPU engine: one compiled program, packed weights, all cores.

`cpu_program` is what happens in a sample; here streams are put before it and shared out to threads.
Streams are the same to the last bit however they are shared out, so that can be chosen by speed alone,
block by block (`_Pace`).
"""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samplernn.generation.engines import cpu_program
from samplernn.generation.engines.base import Engine, EngineState, round_up
from samplernn.generation.engines.cpu_cache import KEPT
from samplernn.generation.engines.cpu_plan import ABORT, FEW_STREAMS, PER_STREAM, Choice, Streams
from samplernn.generation.engines.cpu_weights import PackedNetwork
from samplernn.generation.sampling import DrawArrays
from samplernn.messages import say
from samplernn.model.network import SampleRNN, State

_STREAMS_AT_ONCE = 48
"""Streams that one call of the program advances: more would not fit into a core's cache."""
_BLOCKS_BETWEEN_TRIALS = 64
"""Blocks after which a way of sharing that was slower is tried again."""


class Sharing(NamedTuple):
    """How streams are shared out."""

    together: int
    """Threads that work on the same streams, layer by layer."""
    side_by_side: int
    """Groups of streams that run independently of each other."""


class CpuEngine(Engine):
    """See `samplernn.generation.engines.base.Engine`.

    Args:
        model: the network; it is copied.
        dtype: of the weights: float32, bfloat16 or int8. With int8 the inputs of the large matrices are
            rounded to 8 bits too, for each vector anew.
        threads: at most so many; None: one per core.
    """

    name = "cpu"

    def __init__(self, model: SampleRNN, dtype: str = "int8", threads: int | None = None) -> None:
        super().__init__(model, dtype)
        self._packed = PackedNetwork(self.model, dtype)
        self.plan = self._packed.plan
        self._threads = threads or cores()
        self._pools: dict[int, ThreadPoolExecutor] = {}
        self._paces: dict[int, _Pace] = {}
        self._load_program()

    @property
    def _pool(self) -> ThreadPoolExecutor:
        """The threads of this process: a forked one has none of its parent's."""
        process = os.getpid()
        if process not in self._pools:
            self._pools[process] = ThreadPoolExecutor(self._threads, thread_name_prefix="samplernn")
        return self._pools[process]

    def _hear(self, codes: Tensor) -> None:
        """Steps the frame-level tiers alone. A parallel pass would read the recurrent weights at every step,
        too, and packed ones are smaller."""
        self._run(codes.shape[1], _given(1)._replace(is_heard=True), codes.numpy())

    def advance(self, draws: DrawArrays) -> Tensor:
        position = self._state.position
        choice = Choice(
            is_given=False,
            is_heard=False,
            uniforms=draws.uniforms(position),
            inverse_temperature=draws.inverse_temperatures(),
            filters=draws.filters,
        )
        codes, _ = self._run(draws.length, choice, None)
        self._state = EngineState(self._state.network, position + draws.length)
        return torch.from_numpy(codes)

    def score(self, codes: Tensor) -> Tensor:
        return torch.from_numpy(self._run(codes.shape[1], _given(len(codes)), codes.numpy())[1])

    def _load_program(self) -> None:
        """Compile the program, or load it from disk; say so if that takes a while or is done each time."""
        said = f"each time, for {KEPT.problem}" if KEPT.problem else "once"
        said = f"compiling the engine for this machine: {said}, about 15 s …"
        notice = threading.Timer(1.0, say, (said,))
        notice.start()
        was_kept = not KEPT.problem
        try:
            KEPT.call(self._run_once)
        finally:
            notice.cancel()
        if was_kept and KEPT.problem:
            say(f"the engine will be compiled each time, for {KEPT.problem}")
        self._paces.clear()
        self.start(1)

    def _run_once(self) -> None:
        self.start(1)
        self.score(torch.zeros(1, self.lookback, dtype=torch.int64))

    def _run(
        self, length: int, choice: Choice, given: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Advance every stream; returns codes and negative log-likelihoods, ``[B, length]``."""
        self._require_whole_frames(length)
        num = len(self._state.position)
        pace = self._paces.setdefault(num, _Pace(sharings(self._threads, num, self.plan.blocks)))
        sharing = pace.next()
        started = time.monotonic()
        groups = self._advance_groups(sharing, length, choice, given)
        pace.note(sharing, (time.monotonic() - started) / length)
        history = np.concatenate([group.codes[0, :, -self.lookback :] for group in groups])
        rnn = tuple(
            torch.cat([self._exported(group, tier) for group in groups])
            for tier in range(len(self._state.network.rnn))
        )
        self._state = EngineState(State(torch.from_numpy(history), rnn), self._state.position)
        codes = np.concatenate([group.codes[0, :, self.lookback :] for group in groups])
        return codes, np.concatenate([group.nll for group in groups])

    def _advance_groups(
        self, sharing: Sharing, length: int, choice: Choice, given: NDArray[np.int64] | None
    ) -> list[Streams]:
        """Cut the streams into groups and advance each; returns them in order."""
        num = len(self._state.position)
        at_once = min(_STREAMS_AT_ONCE, -(-num // sharing.side_by_side))
        tasks = []
        for first in range(0, num, at_once):
            rows = slice(first, first + at_once)
            streams = self._imported(rows, length, sharing.together)
            if given is not None:
                streams.codes[:, :, self.lookback :] = given[rows]
            of_rows = {name: getattr(choice, name)[rows] for name in PER_STREAM}
            tasks.append((streams, choice._replace(**of_rows)))
        if sharing.side_by_side == 1:
            for task in tasks:
                self._advance_together(*task, sharing.together, length)
        else:
            plan = self.plan
            list(self._pool.map(lambda task: cpu_program.run(plan, task[0], task[1], 0, 1, length), tasks))
        return [streams for streams, _ in tasks]

    def _advance_together(self, streams: Streams, choice: Choice, threads: int, length: int) -> None:
        """Advance one group on several threads, this one among them."""
        plan = self.plan
        others: list[Future[None]] = []
        try:
            for thread in range(1, threads):
                others.append(
                    self._pool.submit(cpu_program.run, plan, streams, choice, thread, threads, length)
                )
            cpu_program.run(plan, streams, choice, 0, threads, length)
        except BaseException:  # Ctrl-C, or no more threads: those that wait for this one must not
            streams.barrier[ABORT] = 1
            raise
        finally:
            for other in others:
                other.result()

    def _imported(self, rows: slice, length: int, threads: int) -> Streams:
        """Some streams' state as the program wants it."""
        config, packed, network = self.model.config, self._packed, self._state.network
        history = network.history[rows].detach().numpy()
        num, tiers, layers = len(history), len(network.rnn), config.n_rnn
        slots, steps = tiers * layers + 3, max(tier.ratio for tier in self.model.tiers())

        def zeros(*shape: int) -> NDArray[np.float32]:
            return np.zeros(shape, np.float32)

        streams = Streams(
            codes=np.zeros((threads, num, self.lookback + length), np.int64),
            hidden=zeros(tiers, layers, 2, num, packed.units),
            cell=zeros(tiers, layers, num, packed.units),
            version=np.zeros((threads, tiers), np.int64),
            conditioning=zeros(tiers, num, packed.units * (steps if num <= FEW_STREAMS else 1)),
            tier_input=zeros(num, packed.units),
            first=zeros(num, packed.units),
            second=zeros(num, packed.units),
            logits=zeros(num, packed.codes),
            from_input=zeros(num, 4 * packed.units),
            from_hidden=zeros(num, 4 * packed.units),
            quantized=np.zeros((threads, slots, num, packed.units), np.uint8),
            quantized_scales=zeros(threads, slots, num),
            nll=zeros(num, length),
            frames=zeros(threads, num, round_up(self.lookback, 4)),
            probabilities=zeros(threads, config.q_levels),
            arrivals=np.zeros((threads, 8), np.int64),
            barrier=np.zeros(2 * ABORT, np.int64),
        )
        streams.codes[:, :, : self.lookback] = history
        for tier, state in enumerate(network.rnn):  # [B, S, n_rnn, D]
            vectors = state[rows].detach().numpy().transpose(1, 2, 0, 3)
            streams.hidden[tier, :, 0, :, : config.dim] = vectors[0]
            if len(vectors) == 2:
                streams.cell[tier, :, :, : config.dim] = vectors[1]
        return streams

    def _exported(self, streams: Streams, tier: int) -> Tensor:
        """A tier's state after the last sample, ``[B, S, n_rnn, D]``."""
        hidden, cell = streams.hidden[tier, :, streams.version[0, tier]], streams.cell[tier]
        vectors = np.stack([hidden, cell][: self._state.network.rnn[tier].shape[1]])
        return torch.from_numpy(vectors[..., : self.model.config.dim].transpose(2, 0, 1, 3).copy())


def _given(num_streams: int) -> Choice:
    """Codes are there already."""
    unused = np.zeros((num_streams, 0), np.float32)
    return Choice(True, False, unused, unused, unused)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sharings(threads: int, num_streams: int, blocks: int) -> list[Sharing]:
    """Ways worth trying to share streams out to threads."""
    counts = [2**power for power in range(threads.bit_length()) if 2**power < threads] + [threads]
    ways = [Sharing(count, 1) for count in counts if count <= blocks]
    ways += [Sharing(1, count) for count in counts if 1 < count <= num_streams]
    return ways


class _Pace:
    """Which way of sharing is the fastest: tries each, stays with the best, looks again now and then.

    Other programs may come and go, and two threads that wait for each other suffer most from them.

    Args:
        ways: to choose from.
    """

    def __init__(self, ways: list[Sharing]) -> None:
        # Each is tried twice at first, and the second time counts: the first one fills caches.
        self._first_tries = 2 * ways if len(ways) > 1 else []
        self._seconds = dict.fromkeys(ways, 0.0)
        self._blocks = 0

    def next(self) -> Sharing:
        """What to use for the next block."""
        if self._first_tries:
            return self._first_tries[0]
        self._blocks += 1
        best, *others = sorted(self._seconds, key=lambda way: self._seconds[way])
        if others and self._blocks % _BLOCKS_BETWEEN_TRIALS == 0:
            return others[self._blocks // _BLOCKS_BETWEEN_TRIALS % len(others)]
        return best

    def note(self, way: Sharing, seconds: float) -> None:
        """A block took so long per sample."""
        before = self._seconds[way]
        if self._first_tries:
            self._first_tries.pop(0)
        elif before == min(self._seconds.values()):  # in use: one hiccup is no reason to leave it
            seconds = 0.7 * before + 0.3 * min(seconds, 2 * before)
        self._seconds[way] = seconds
