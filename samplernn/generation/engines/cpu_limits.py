"""What this machine could do at best: how fast it reads, per cache level, and how fast it multiplies."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from samplernn.config import ModelConfig
from samplernn.generation.engines.cpu_cache import compiled
from samplernn.generation.engines.cpu_kernels import loop
from samplernn.generation.engines.cpu_plan import ROWS, Plan
from samplernn.generation.engines.cpu_products import Vectors, address_of, product
from samplernn.generation.engines.cpu_weights import PackedNetwork
from samplernn.model.network import SampleRNN

LEVELS = {"L2": 2**19, "L3": 2**23, "memory": 2**28}
"""Bytes per core that are read again and again to find a level's rate: well inside it, and outside of the
one before, on current processors."""
_SECONDS = 0.2
"""Of measuring each figure."""


@intrinsic
def _read(typing: Any, address: Any, size: Any) -> tuple[Any, Any]:
    """Load a stretch of memory, a multiple of 512 bytes, 64 bytes at a time; returns a checksum."""
    ints, unroll = ir.VectorType(ir.IntType(64), 8), 8

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        address, size = arguments

        def turn(offset: Any, sums: Sequence[Any]) -> Sequence[Any]:
            first, new = builder.add(address, offset), []
            for index, total in enumerate(sums):
                place = builder.inttoptr(builder.add(first, offset.type(64 * index)), ints.as_pointer())
                new.append(builder.xor(total, builder.load(place, align=64)))
            return new

        everything, *others = loop(builder, size, 64 * unroll, [ir.Constant(ints, None)] * unroll, turn)
        for value in others:
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
def _multiply_often(plan: Plan, index: int, x: Vectors, out: Any, blocks: int, times: int) -> None:
    for _ in range(times):
        product(plan, index, x, out, 0, 0, blocks)


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
    return _read(address_of(plan, index, first), size // 512 * 512)


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
    inputs, blocks = 512, 4
    model = SampleRNN(ModelConfig((4,), dim=inputs, embedding_dim=0, q_levels=2))
    packed = PackedNetwork(model.folded(), dtype)  # its memory must live as long as the plan
    hidden = 2 + 2 * model.config.n_rnn  # the MLP's hidden layer, [inputs, inputs], follows the only tier's

    def work(thread: int, times: int) -> None:
        bytes_, scales = np.zeros((streams, inputs), np.uint8), np.ones(streams, np.float32)
        x = Vectors(np.zeros((streams, inputs), np.float32), bytes_, scales, 0)
        out = np.zeros((streams, inputs), np.float32)
        _multiply_often(packed.plan, hidden, x, out, blocks, times)

    return threads * blocks * ROWS * inputs * streams * _rate(work, threads)


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
