"""What this machine could do at best: how fast it reads, per cache level, and how fast it multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from samplernn.generation.engines import cpu_program
from samplernn.generation.engines.cpu_kernels import PER_STEP, ROWS
from samplernn.generation.engines.cpu_program import GRU, Plan, compiled

LEVELS = {"L2": 2**19, "L3": 2**23, "memory": 2**28}
"""Bytes per core that are read again and again to find a level's rate: well inside it, and outside of the
one before, on current processors."""
_SECONDS = 0.2
"""Of measuring each figure."""


@intrinsic
def _read(typing: Any, address: Any, size: Any) -> tuple[Any, Any]:
    """Load a stretch of memory, a multiple of 512 bytes, 64 bytes at a time; returns a checksum."""
    long, ints = ir.IntType(64), ir.VectorType(ir.IntType(64), 8)
    unroll = 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, size = arguments
        before = builder.basic_block
        loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        offset = builder.phi(long)
        sums = [builder.phi(ints) for _ in range(unroll)]
        new = []
        for index, total in enumerate(sums):
            place = builder.add(builder.add(address, offset), long(64 * index))
            new.append(builder.xor(total, builder.load(builder.inttoptr(place, ints.as_pointer()), align=64)))
        following = builder.add(offset, long(64 * unroll))
        builder.cbranch(builder.icmp_signed("<", following, size), loop, after)
        offset.add_incoming(long(0), before)
        offset.add_incoming(following, loop)
        for total, value in zip(sums, new, strict=True):
            total.add_incoming(ir.Constant(ints, None), before)
            total.add_incoming(value, loop)
        builder.position_at_end(after)
        everything = new[0]
        for value in new[1:]:
            everything = builder.xor(everything, value)
        return builder.extract_element(everything, ir.IntType(32)(0))

    return types.int64(types.int64, types.int64), generate


@compiled
def _read_often(address: int, size: int, times: int) -> int:
    total = 0
    for _ in range(times):
        total ^= _read(address, size)
    return total


@compiled
def _multiply_often(plan: Any, x: Any, bytes_: Any, scales: Any, out: Any, blocks: int, times: int) -> None:
    for _ in range(times):
        cpu_program.product(plan, 0, x, bytes_, scales, 0, out, 0, 0, blocks)


@compiled
def _read_weights(plan: Plan, thread: int, threads: int, length: int) -> int:
    """Read this thread's part of the weights that `length` samples need, in the order of their use."""
    total = 0
    tiers, per_tier = len(plan.frame_sizes), 2 + 2 * plan.n_rnn
    for t in range(length):
        for tier in range(tiers):
            if t % plan.frame_sizes[tier] == 0:  # all but the input projection, which is small
                for index in range(tier * per_tier + 1, (tier + 1) * per_tier):
                    total ^= _read_part(plan, index, thread, threads)
        for index in (tiers * per_tier, tiers * per_tier + 1):
            total ^= _read_part(plan, index, thread, threads)
    return total


@compiled
def _read_part(plan: Plan, index: int, thread: int, threads: int) -> int:
    """A thread's share of a matrix."""
    blocks = plan.matrices[index, 4]
    first, last = blocks * thread // threads, blocks * (thread + 1) // threads
    if first == last:
        return 0
    size = (last - first) * plan.matrices[index, 2] * (4 * ROWS)
    return _read(cpu_program._address(plan, index, first), size // 512 * 512)


def weights_rate(plan: Plan, threads: int) -> float:
    """Samples per second, if the weights of each were read in order, and nothing else were to do."""
    length = int(plan.frame_sizes[0])

    def work(thread: int, times: int) -> None:
        _read_weights(plan, thread, threads, times * length)

    return length * _rate(work, threads)


def read_rate(size: int, threads: int) -> float:
    """Bytes per second of all threads together, each reading its own `size` bytes again and again."""
    buffers = [_aligned(size) for _ in range(threads)]

    def work(thread: int, times: int) -> None:
        _read_often(buffers[thread].ctypes.data, size, times)

    return threads * size * _rate(work, threads)


def multiply_rate(dtype: str, threads: int, streams: int = 6 * 8) -> float:
    """Multiplications per second of all threads together, in a product whose weights stay in the cache."""
    from samplernn.generation.engines.cpu_weights import KINDS

    rows, inputs = 4 * ROWS, 512
    memory = _aligned(4 * rows * inputs // PER_STEP[dtype])
    none = np.zeros((0, 1, 1))
    plan = Plan(
        frame_sizes=np.array([1]),
        q_levels=1,
        n_rnn=1,
        cell=GRU,
        gates=3,
        has_recurrent=True,
        blocks=1,
        q_blocks=1,
        has_int8=True,
        matrices=np.array([[KINDS[dtype], memory.ctypes.data, inputs // PER_STEP[dtype], 0, rows // ROWS]]),
        scales=np.ones(rows, np.float32),
        sums=np.zeros(rows, np.int32),
        biases=np.zeros(rows, np.float32),
        coefficients=np.zeros((1, 1, 3, ROWS), np.float32),
        table=none.astype(np.float32),
        table16=none.astype(np.uint16),
    )

    def work(thread: int, times: int) -> None:
        x = np.zeros((streams, inputs), np.float32)
        bytes_, scales = np.zeros((streams, inputs), np.uint8), np.ones(streams, np.float32)
        out = np.zeros((streams, rows), np.float32)
        _multiply_often(plan, x, bytes_, scales, out, rows // ROWS, times)

    return threads * rows * inputs * streams * _rate(work, threads)


def _rate(work: Callable[[int, int], None], threads: int) -> float:
    """How often per second every thread can do its work, all at the same time; the median of five."""
    with ThreadPoolExecutor(threads) as pool:

        def seconds(times: int) -> float:
            started = time.perf_counter()
            list(pool.map(lambda thread: work(thread, times), range(threads)))
            return time.perf_counter() - started

        seconds(1)  # compiles
        times = 1
        while seconds(times) < _SECONDS / 10:
            times *= 2
        times = max(1, round(times * _SECONDS / seconds(times)))
        return times / sorted(seconds(times) for _ in range(5))[2]


def _aligned(size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    memory = np.ones(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size]
