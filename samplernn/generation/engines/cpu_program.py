"""The compiled program of the CPU engine: all that happens in a sample, as one thread of several runs it.

`run` is the program, top down: for every sample the tiers whose frame begins, the sample-level MLP, the
draw. The threads share each layer out by units (blocks of 64 rows). A layer needs all units of the
one before it, so the threads wait for each other between layers: three times per sample, and
`1 + n_rnn` times per step of a tier. Conditioning is upsampled by the thread that uses it.

Numba compiles it when it is first used, and `cpu_cache` keeps the result on disk.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numba import types

from samplernn.generation.engines import cpu_math, cpu_plan
from samplernn.generation.engines.cpu_cache import compiled
from samplernn.generation.engines.cpu_draw import draw, negative_log_likelihood
from samplernn.generation.engines.cpu_kernels import atomic_increment, atomic_load, row_sum
from samplernn.generation.engines.cpu_math import SIGNED_ZERO, add, relu
from samplernn.generation.engines.cpu_plan import ABORT, FEW_STREAMS, ROWS, Choice, Plan, Share, Streams
from samplernn.generation.engines.cpu_products import Vectors, product

_sum_float32, _sum_bfloat16 = row_sum("float32"), row_sum("bfloat16")
_SPINS = 4096
"""Looks at the barrier before a thread lets others run."""
_yield_processor = types.ExternalFunction(
    "SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32()
)


@compiled
def wait(streams: Streams, share: Share) -> None:
    """Wait until all threads are here: spinning, for they are a microsecond away, then letting others run."""
    if share.num_threads == 1:
        return
    streams.arrivals[share.thread, 0] += 1
    goal = streams.arrivals[share.thread, 0] * share.num_threads
    barrier = streams.barrier.ctypes.data
    atomic_increment(barrier)
    spins = 0
    while atomic_load(barrier) < goal:
        spins += 1
        if spins > _SPINS:
            _yield_processor()
            if streams.barrier[ABORT]:
                return


@compiled
def _slot(plan: Plan, tier: int, layer: int) -> int:
    """Where the bytes of a hidden vector are; after them come those of tier input, first and second layer."""
    return tier * plan.n_rnn + layer


@compiled
def _matrix(plan: Plan, tier: int) -> int:
    """A tier's first matrix."""
    return tier * (2 + 2 * plan.n_rnn)


@compiled
def _ratio(plan: Plan, tier: int) -> int:
    """Steps of the tier below during one of a tier."""
    return plan.matrices[_matrix(plan, tier) + 1 + 2 * plan.n_rnn, 4] // plan.blocks


@compiled
def quantize(plan: Plan, streams: Streams, share: Share, x: Any, slot: int, is_positive: bool) -> None:
    """The bytes of a vector of all streams. Every thread makes its own, which is cheaper than sharing."""
    if not plan.has_int8:
        return
    quantized, scales = streams.quantized[share.thread, slot], streams.quantized_scales[share.thread, slot]
    for stream in range(len(x)):
        if is_positive:
            scales[stream] = cpu_math.quantize_positive(x[stream], quantized[stream])
        else:
            scales[stream] = cpu_math.quantize_signed(x[stream], quantized[stream])


@compiled
def vectors(streams: Streams, share: Share, x: Any, slot: int, zero: int) -> Vectors:
    """A vector of all streams as an input of `product`; `slot` is where `quantize` has put its bytes."""
    bytes_, scales = streams.quantized[share.thread, slot], streams.quantized_scales[share.thread, slot]
    return Vectors(x, bytes_, scales, zero)


@compiled
def upsample(plan: Plan, streams: Streams, share: Share, tier: int, step: int) -> None:
    """Make a tier's conditioning for a step of the tier below; this thread's units of it.

    A few streams get it for all steps at once, before the first: the weights are read in one go, and those
    of the MLP stay in the core's own cache from sample to sample. For many it would fill that cache itself.
    """
    ratio, top = _ratio(plan, tier), plan.n_rnn - 1
    index, out = _matrix(plan, tier) + 1 + 2 * plan.n_rnn, streams.conditioning[tier]
    hidden = streams.hidden[tier, top, streams.version[share.thread, tier]]
    x = vectors(streams, share, hidden, _slot(plan, tier, top), SIGNED_ZERO)
    if len(hidden) > FEW_STREAMS:
        for block in range(share.first, share.last):
            row = block * ratio + step
            product(plan, index, x, out, (block - row) * ROWS, row, row + 1)
    elif step == 0:
        product(plan, index, x, out, 0, share.first * ratio, share.last * ratio)


@compiled
def _column(plan: Plan, streams: Streams, tier: int, step: int, block: int) -> int:
    """Where `upsample` puts a block of units."""
    if len(streams.first) > FEW_STREAMS:
        return block * ROWS
    return (block * _ratio(plan, tier) + step) * ROWS


@compiled
def step_tier(plan: Plan, streams: Streams, share: Share, frames: Any, tier: int, t: int) -> None:
    """One step of a frame-level tier: frame and conditioning in, new hidden vectors out."""
    thread, num = share.thread, len(streams.tier_input)
    # Project the frame, to [B, U]. The matrix is small and always float32, so no bytes are needed.
    x = streams.tier_input
    product(plan, _matrix(plan, tier), vectors(streams, share, frames, 0, 0), x, 0, share.first, share.last)
    if tier > 0:  # add what the tier above passes down for this step
        step = t % plan.frame_sizes[tier - 1] // plan.frame_sizes[tier]
        upsample(plan, streams, share, tier - 1, step)
        for stream in range(num):
            for block in range(share.first, share.last):
                lo, there = block * ROWS, _column(plan, streams, tier - 1, step, block)
                conditioning = streams.conditioning[tier - 1, stream, there : there + ROWS]
                add(x[stream, lo : lo + ROWS], conditioning)
    wait(streams, share)
    slot = len(plan.frame_sizes) * plan.n_rnn
    quantize(plan, streams, share, x, slot, False)
    # Step the layers; all read the old version of their hidden vectors and write the new one.
    old = streams.version[thread, tier]
    for layer in range(plan.n_rnn):
        _step_layer(plan, streams, share, x, slot, tier, layer, old)
        wait(streams, share)
        x, slot = streams.hidden[tier, layer, 1 - old], _slot(plan, tier, layer)
        quantize(plan, streams, share, x, slot, False)
    streams.version[thread, tier] = 1 - old


@compiled
def _step_layer(
    plan: Plan, streams: Streams, share: Share, x: Any, slot: int, tier: int, layer: int, old: int
) -> None:
    """One step of one RNN layer; this thread's units of it."""
    lo, hi = share.first * ROWS, share.last * ROWS
    hidden, new = streams.hidden[tier, layer, old], streams.hidden[tier, layer, 1 - old]
    # Sums of all gates, [B, gates·U], of which this thread has columns first·64 to last·64.
    index = _matrix(plan, tier) + 1 + 2 * layer
    first, last = share.first * plan.gates, share.last * plan.gates
    from_input, from_hidden = streams.from_input, streams.from_hidden
    product(plan, index, vectors(streams, share, x, slot, SIGNED_ZERO), from_input, 0, first, last)
    if plan.has_recurrent:  # else these sums stay zero
        before = vectors(streams, share, hidden, _slot(plan, tier, layer), SIGNED_ZERO)
        product(plan, index + 1, before, from_hidden, 0, first, last)
    # The cell itself, unit by unit.
    for stream in range(len(x)):
        gates_x = from_input[stream, first * ROWS : last * ROWS]
        gates_h = from_hidden[stream, first * ROWS : last * ROWS]
        if plan.cell == cpu_plan.LSTM:
            cpu_math.lstm(gates_x, gates_h, streams.cell[tier, layer, stream, lo:hi], new[stream, lo:hi])
        elif plan.cell == cpu_plan.GRU:
            cpu_math.gru(gates_x, gates_h, hidden[stream, lo:hi], new[stream, lo:hi])
        else:
            coefficients = plan.coefficients[tier, layer, :, lo:hi]
            cell = streams.cell[tier, layer, stream, lo:hi]
            _step_rarer(
                plan.cell, gates_x, gates_h, coefficients, cell, hidden[stream, lo:hi], new[stream, lo:hi]
            )


@compiled
def _step_rarer(
    which: int, gates_x: Any, gates_h: Any, coefficients: Any, cell: Any, before: Any, after: Any
) -> None:
    """Cells other than GRU and LSTM: a function of its own leaves the code around those two as it was."""
    if which == cpu_plan.PEEPHOLE:
        cpu_math.peephole(gates_x, gates_h, coefficients, cell, after)
    elif which == cpu_plan.LEAKY:
        cpu_math.leaky(gates_x, gates_h, coefficients, before, after)
    elif which == cpu_plan.RELU:
        cpu_math.bounded_relu(gates_x, gates_h, coefficients, after)
    else:
        cpu_math.mingru(gates_x, before, after)


@compiled
def first_layer(plan: Plan, streams: Streams, share: Share, stream: int, codes: Any, step: int) -> None:
    """First layer of the MLP for one sample of a stream: conditioning, and per sample heard a row of a table.

    Args:
        plan: has the tables.
        streams: have the conditioning.
        share: this thread, which does its own units.
        stream: which one.
        codes: the last frame of the fastest tier.
        step: of the fastest tier's conditioning.
    """
    tier = len(plan.frame_sizes) - 1
    conditioning, out = streams.conditioning[tier, stream].ctypes.data, streams.first[stream].ctypes.data
    rows, count = codes.ctypes.data, len(codes)
    table, stride, row = plan.table.ctypes.data, plan.table.strides[0], plan.table.strides[1]
    for block in range(share.first, share.last):
        start = conditioning + _column(plan, streams, tier, step, block) * 4
        here = out + block * (4 * ROWS)
        if plan.is_wide:
            _sum_float32(start, table + block * (4 * ROWS), stride, row, rows, count, here)
        else:
            _sum_bfloat16(start, table + block * (2 * ROWS), stride, row, rows, count, here)
    relu(streams.first[stream, share.first * ROWS : share.last * ROWS])


@compiled
def sample_level_mlp(plan: Plan, streams: Streams, share: Share, codes: Any, t: int) -> None:
    """Logits of sample t."""
    lo, hi = share.first * ROWS, share.last * ROWS
    tiers = len(plan.frame_sizes)
    fastest = plan.frame_sizes[tiers - 1]
    now = plan.frame_sizes[0] + t
    first, second = streams.first, streams.second
    slot, index = tiers * plan.n_rnn + 1, tiers * (2 + 2 * plan.n_rnn)
    # First layer, [B, U]: conditioning and rows of the table.
    upsample(plan, streams, share, tiers - 1, t % fastest)
    for stream in range(len(first)):
        first_layer(plan, streams, share, stream, codes[stream, now - fastest : now], t % fastest)
    wait(streams, share)
    # Hidden layer, [B, U].
    quantize(plan, streams, share, first, slot, True)
    product(plan, index, vectors(streams, share, first, slot, 0), second, 0, share.first, share.last)
    for stream in range(len(second)):
        relu(second[stream, lo:hi])
    wait(streams, share)
    # Output layer, [B, Q].
    quantize(plan, streams, share, second, slot + 1, True)
    x = vectors(streams, share, second, slot + 1, 0)
    product(plan, index + 1, x, streams.logits, 0, share.q_first, share.q_last)
    wait(streams, share)


@compiled
def run(plan: Plan, streams: Streams, choice: Choice, thread: int, num_threads: int, length: int) -> None:
    """Advance all streams by `length` samples, as thread number `thread` of `num_threads` that do so."""
    share = Share(
        thread,
        num_threads,
        plan.blocks * thread // num_threads,
        plan.blocks * (thread + 1) // num_threads,
        plan.q_blocks * thread // num_threads,
        plan.q_blocks * (thread + 1) // num_threads,
    )
    codes = streams.codes[thread]
    num, lookback, tiers = len(codes), plan.frame_sizes[0], len(plan.frame_sizes)
    frames = streams.frames[thread]
    amplitude = np.float32(4) / np.float32(plan.q_levels)
    for tier in range(tiers):  # every thread makes the bytes of the states that it was given
        for layer in range(plan.n_rnn):
            hidden = streams.hidden[tier, layer, streams.version[thread, tier]]
            quantize(plan, streams, share, hidden, _slot(plan, tier, layer), False)
    for t in range(length):
        now = lookback + t
        for tier in range(tiers):  # those whose frame begins, slowest first
            frame_size = plan.frame_sizes[tier]
            if t % frame_size == 0:
                for stream in range(num):
                    for i in range(frame_size):
                        code = codes[stream, now - frame_size + i] - plan.q_levels // 2
                        frames[stream, i] = np.float32(code) * amplitude
                step_tier(plan, streams, share, frames, tier, t)
        if streams.barrier[ABORT]:
            return
        if choice.is_heard:
            continue
        sample_level_mlp(plan, streams, share, codes, t)
        if streams.barrier[ABORT]:
            return
        for stream in range(num):  # every thread draws, into its own copy of the codes
            logits = streams.logits[stream, : plan.q_levels]
            if not choice.is_given:
                uniform, inverse = choice.uniforms[stream, t], choice.inverse_temperature[stream, t]
                room = streams.probabilities[thread]
                codes[stream, now] = draw(logits, choice.filters[stream], inverse, uniform, room)
            elif thread == 0:
                streams.nll[stream, t] = negative_log_likelihood(logits, codes[stream, now])
