"""The compiled program of the CPU engine: all that happens in a sample, as one thread of several runs it.

`run` is the program, top down: for every sample the tiers whose frame begins, the sample-level MLP, the
draw. The threads share each layer out by units (blocks of 64 rows). A layer needs all units of the
one before it, so the threads wait for each other between layers: three times per sample, and
`1 + n_rnn` times per step of a tier. Conditioning is upsampled by the thread that uses it.

Numba compiles this file when it is first used and keeps the result on disk. It is one file because Numba
compiles again when the file of `run` has changed, and does not look at others: whoever edits
`cpu_kernels.py` has to touch this one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numba import types
from numpy.typing import NDArray

from samplernn.generation.engines.cpu_cache import KEPT
from samplernn.generation.engines.cpu_kernels import (
    ROWS,
    as_bits,
    as_float,
    atomic_increment,
    atomic_load,
    dot_instruction,
    matrix_product,
    row_sum,
)

Function = TypeVar("Function", bound=Callable[..., Any])

FLOAT32, BFLOAT16, INT8 = 0, 1, 2
"""Kinds of matrices."""
GROUP = 6
"""Streams that one reading of a weight serves at most."""
SIGNED_ZERO = 128
"""The unsigned byte that stands for zero where inputs have signs; inputs after a ReLU use 0."""

ABORT = 8
"""Where in `Streams.barrier` a thread that cannot take part tells the others to give up."""

_DOT = dot_instruction()
_int8_1, _int8_2, _int8_4, _int8_6 = (matrix_product("int8", n, _DOT) for n in (1, 2, 4, 6))
_bfloat16_1, _bfloat16_2, _bfloat16_4 = (matrix_product("bfloat16", n) for n in (1, 2, 4))
_float32_1, _float32_2, _float32_4, _float32_6 = (matrix_product("float32", n) for n in (1, 2, 4, 6))
_bfloat16_pair, _float32_pair = (
    matrix_product("bfloat16", 1, blocks=2),
    matrix_product("float32", 1, blocks=2),
)
_sum_float32, _sum_bfloat16 = row_sum("float32"), row_sum("bfloat16")
FEW = 4
"""See `upsample`."""
GRU, LSTM, LEAKY, RELU, MINGRU, PEEPHOLE = range(6)
"""Cells. A simple tanh network and an echo state network are leaky integrators, too."""
_SPINS = 4096
"""Looks at the barrier before a thread lets others run."""
_yield_processor = types.ExternalFunction(
    "SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32()
)


class Plan(NamedTuple):
    """A network, packed."""

    frame_sizes: NDArray[np.int64]
    """Samples per frame, slowest tier first, ``[tiers]``."""
    q_levels: int
    n_rnn: int
    cell: int
    """`GRU`, `LSTM`, …"""
    gates: int
    """Of the cell."""
    has_recurrent: bool
    """The cell multiplies its hidden vector (otherwise that matrix is empty)."""
    blocks: int
    """Blocks of 64 units: `dim`, rounded up."""
    q_blocks: int
    """The same for the logits."""
    has_int8: bool
    """Some matrix is int8, so vectors have to be quantized."""
    matrices: NDArray[np.int64]
    """Kind, address, steps, first row and blocks of each, ``[matrices, 5]``: per tier the input projection,
    input and recurrent weights of each layer, the upsampling; then hidden and output layer of the MLP."""
    scales: NDArray[np.float32]
    """What one step of an int8 weight means, ``[rows of all matrices]``."""
    sums: NDArray[np.int32]
    """Sum of the int8 weights of each row: what an input's zero contributes."""
    biases: NDArray[np.float32]
    coefficients: NDArray[np.float32]
    """What a cell takes for each unit, ``[tiers, n_rnn, 3, units]``: `LEAKY` the share that a step renews,
    `RELU` the upper bound, `PEEPHOLE` how much input, forget and output gate see of the cell state."""
    table: NDArray[np.float32]
    """Embedding times first layer, ``[frame, q, units]``; empty if `table16` is used."""
    table16: NDArray[np.uint16]
    """The same as bfloat16."""


class Streams(NamedTuple):
    """The streams, and what the threads exchange. B streams, U units, Q codes, all rounded up to blocks."""

    codes: NDArray[np.int64]
    """Each thread's own copy, ``[threads, B, lookback + length]``."""
    hidden: NDArray[np.float32]
    """Two versions, old and new by turns, ``[tiers, n_rnn, 2, B, U]``."""
    cell: NDArray[np.float32]
    """Of LSTMs, ``[tiers, n_rnn, B, U]``."""
    version: NDArray[np.int64]
    """Which version of `hidden` is valid, as each thread knows, ``[threads, tiers]``."""
    conditioning: NDArray[np.float32]
    """Each tier's for the steps of the one below, ``[tiers, B, steps * U]``."""
    tier_input: NDArray[np.float32]
    """``[B, U]``."""
    first: NDArray[np.float32]
    """First layer of the MLP, ``[B, U]``."""
    second: NDArray[np.float32]
    """Second layer of the MLP, ``[B, U]``."""
    logits: NDArray[np.float32]
    """``[B, Q]``."""
    from_input: NDArray[np.float32]
    """Gates as the input has them, ``[B, 4U]``."""
    from_hidden: NDArray[np.float32]
    """Gates as the hidden vector has them, ``[B, 4U]``."""
    quantized: NDArray[np.uint8]
    """Each thread's own bytes of each vector (see `_slot`), ``[threads, slots, B, U]``."""
    quantized_scales: NDArray[np.float32]
    """What one step of them means, ``[threads, slots, B]``."""
    nll: NDArray[np.float32]
    """When codes are given: their negative log-likelihood in nats, ``[B, length]``."""
    frames: NDArray[np.float32]
    """Each thread's own input of the tier that it steps, ``[threads, B, lookback]``, rounded up to fours."""
    probabilities: NDArray[np.float32]
    """Each thread's own room to draw in, ``[threads, q]``."""
    arrivals: NDArray[np.int64]
    """At how many barriers each thread has been, ``[threads, 8]``, the first of a cache line."""
    barrier: NDArray[np.int64]
    """At 0 the arrivals; at `ABORT`, on another cache line, whether to give up."""


class Choice(NamedTuple):
    """How codes come about."""

    is_given: bool
    """They are there already, and are scored."""
    is_heard: bool
    """They are not even scored: only the tiers step."""
    uniforms: NDArray[np.float32]
    """Random numbers, ``[B, length]``."""
    inverse_temperature: NDArray[np.float32]
    """Of each draw, 0 where the most probable code is taken, ``[B, length]``."""
    filters: NDArray[np.float32]
    """Top-k and top-p of each stream, ``[B, 2]`` (see `sampling.DrawArrays`)."""


class Share(NamedTuple):
    """What one thread works on."""

    thread: int
    num_threads: int
    first: int
    """Block of units."""
    last: int
    q_first: int
    """Block of codes."""
    q_last: int


def compiled(function: Function) -> Function:
    """Compile, without Python's lock and with IEEE division; the machine code is kept on disk.

    Without reference counts too: threads that share arrays would spend their time counting.
    """
    return KEPT.compiled(function, nogil=True, error_model="numpy", _nrt=False)


def compiled_reordering(function: Function) -> Function:
    """The same for what has no order and no NaN: maxima, and sums that need not be exact."""
    return KEPT.compiled(function, nogil=True, fastmath={"nnan", "nsz", "reassoc"}, _nrt=False)


# -- arithmetic ---------------------------------------------------------------------------------------

_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_LEAST, _MOST, _TINY = np.float32(-87), np.float32(88), np.float32(1e-30)


@compiled
def exp(x: np.float32) -> np.float32:
    """e**x to about 1e-7, between e**-87 and e**88: a power of two times a polynomial (Cephes' `expf`)."""
    x = min(max(x, _LEAST), _MOST)
    n = np.floor(x * _LOG2_E + _HALF)
    r = x - n * _LN2_HIGH - n * _LN2_LOW
    p = (((((_E0 * r + _E1) * r + _E2) * r + _E3) * r + _E4) * r + _E5) * r * r + r + _ONE
    return p * as_float((np.int32(n) + np.int32(127)) << np.int32(23))


@compiled
def sigmoid(x: np.float32) -> np.float32:
    return _ONE / (_ONE + exp(-x))


@compiled
def tanh(x: np.float32) -> np.float32:
    return _ONE - _TWO / (exp(_TWO * x) + _ONE)


@compiled
def gru(x: Any, h: Any, old: Any, new: Any) -> None:
    """One step of some blocks of units (Cho et al., 2014; reset after the recurrent product, as in cuDNN).

    Args:
        x: gates from the input, float32 ``[blocks * 3 * 64]``: of each block reset, update, new.
        h: gates from the hidden vector, alike.
        old: hidden vector, ``[blocks * 64]``.
        new: the next one.
    """
    for lo in range(0, old.shape[0], ROWS):
        for i in range(ROWS):
            gate, unit = 3 * lo + i, lo + i
            reset = sigmoid(x[gate] + h[gate])
            update = sigmoid(x[gate + ROWS] + h[gate + ROWS])
            fresh = tanh(x[gate + 2 * ROWS] + reset * h[gate + 2 * ROWS])
            new[unit] = fresh + update * (old[unit] - fresh)


@compiled
def lstm(x: Any, h: Any, cell: Any, new: Any) -> None:
    """One step of some blocks (Hochreiter & Schmidhuber, 1997); input, forget, cell, output. As `gru`."""
    for lo in range(0, cell.shape[0], ROWS):
        for i in range(ROWS):
            gate, unit = 4 * lo + i, lo + i
            keep = sigmoid(x[gate + ROWS] + h[gate + ROWS]) * cell[unit]
            fresh = tanh(x[gate + 2 * ROWS] + h[gate + 2 * ROWS])
            value = keep + sigmoid(x[gate] + h[gate]) * fresh
            cell[unit] = value
            new[unit] = sigmoid(x[gate + 3 * ROWS] + h[gate + 3 * ROWS]) * tanh(value)


@compiled
def leaky(x: Any, h: Any, coefficients: Any, old: Any, new: Any) -> None:
    """One step of some blocks of leaky integrators. As `gru`."""
    for unit in range(old.shape[0]):
        new[unit] = old[unit] + coefficients[0, unit] * (tanh(x[unit] + h[unit]) - old[unit])


@compiled
def bounded_relu(x: Any, h: Any, coefficients: Any, new: Any) -> None:
    """One step of some blocks of rectified units. As `gru`."""
    for unit in range(new.shape[0]):
        new[unit] = min(max(x[unit] + h[unit], _ZERO), coefficients[0, unit])


@compiled
def mingru(x: Any, old: Any, new: Any) -> None:
    """One step of some blocks (Feng et al., 2024); update, new. As `gru`."""
    for lo in range(0, old.shape[0], ROWS):
        for i in range(ROWS):
            gate, unit = 2 * lo + i, lo + i
            new[unit] = old[unit] + sigmoid(x[gate]) * (x[gate + ROWS] - old[unit])


@compiled
def peephole(x: Any, h: Any, coefficients: Any, cell: Any, new: Any) -> None:
    """As `lstm`, with gates that see the cell (Gers & Schmidhuber, 2000)."""
    for lo in range(0, cell.shape[0], ROWS):
        for i in range(ROWS):
            gate, unit = 4 * lo + i, lo + i
            value = cell[unit]
            enter = sigmoid(x[gate] + h[gate] + coefficients[0, unit] * value)
            keep = sigmoid(x[gate + ROWS] + h[gate + ROWS] + coefficients[1, unit] * value)
            value = keep * value + enter * tanh(x[gate + 2 * ROWS] + h[gate + 2 * ROWS])
            cell[unit] = value
            leave = x[gate + 3 * ROWS] + h[gate + 3 * ROWS] + coefficients[2, unit] * value
            new[unit] = sigmoid(leave) * tanh(value)


@compiled
def add(total: Any, x: Any) -> None:
    for i in range(total.shape[0]):
        total[i] += x[i]


@compiled
def relu(x: Any) -> None:
    for i in range(x.shape[0]):
        x[i] = max(x[i], _ZERO)


@compiled_reordering
def maximum(x: Any) -> np.float32:
    top = x[0]
    for i in range(x.shape[0]):
        top = max(top, x[i])
    return top


@compiled
def magnitude(x: Any) -> np.float32:
    """Largest absolute value; without a sign the order of bit patterns is that of numbers."""
    top = np.int32(0)
    for i in range(x.shape[0]):
        top = max(top, as_bits(x[i]) & np.int32(0x7FFFFFFF))
    return max(as_float(top), _TINY)


@compiled
def quantize_signed(x: Any, out: Any) -> np.float32:
    """Bytes 1 to 255 around `SIGNED_ZERO`; returns what one step means."""
    largest = magnitude(x)
    per_unit = np.float32(127) / largest
    for i in range(x.shape[0]):
        out[i] = np.uint8(np.int32(x[i] * per_unit + np.float32(SIGNED_ZERO + 0.5)))
    return largest / np.float32(127)


@compiled
def quantize_positive(x: Any, out: Any) -> np.float32:
    """Bytes 0 to 255; returns what one step means."""
    largest = magnitude(x)
    per_unit = np.float32(255) / largest
    for i in range(x.shape[0]):
        out[i] = np.uint8(np.int32(x[i] * per_unit + _HALF))
    return largest / np.float32(255)


# -- products -----------------------------------------------------------------------------------------


@compiled
def _address(plan: Plan, index: int, block: int) -> int:
    """Of a block of a matrix."""
    return plan.matrices[index, 1] + block * plan.matrices[index, 2] * (4 * ROWS)


@compiled
def product(
    plan: Plan,
    index: int,
    x: Any,
    bytes_: Any,
    byte_scales: Any,
    zero: int,
    out: Any,
    shift: int,
    first: int,
    last: int,
) -> None:
    """Some rows of a matrix times the inputs of all streams, plus bias.

    Args:
        plan: has the matrices.
        index: of the matrix.
        x: float32 ``[B, inputs]``.
        bytes_: the same quantized, uint8 ``[B, inputs]``; used if the matrix is int8.
        byte_scales: what one step of them means, ``[B]``.
        zero: the byte that stands for zero.
        out: float32 ``[B, …]``; row r goes to column r + shift.
        shift: see there.
        first: block of rows.
        last: one past the last block.
    """
    kind, steps = plan.matrices[index, 0], plan.matrices[index, 2]
    out_stride, num = out.strides[0], len(x)
    address, stride = x.ctypes.data, x.strides[0]
    if kind == INT8:
        address, stride = bytes_.ctypes.data, bytes_.strides[0]
    block = first
    while block < last:
        weights = _address(plan, index, block)
        place = out.ctypes.data + (block * ROWS + shift) * 4
        if num == 1 and kind != INT8 and last - block >= 2:
            if kind == BFLOAT16:
                _bfloat16_pair(weights, address, stride, steps, place, out_stride)
            else:
                _float32_pair(weights, address, stride, steps, place, out_stride)
            block += 2
            continue
        if kind == INT8:
            _block_int8(weights, address, stride, steps, place, out_stride, num)
        elif kind == BFLOAT16:
            _block_bfloat16(weights, address, stride, steps, place, out_stride, num)
        else:
            _block_float32(weights, address, stride, steps, place, out_stride, num)
        block += 1
    lo, hi = first * ROWS, last * ROWS
    row = plan.matrices[index, 3] + lo
    biases = plan.biases[row : row + hi - lo]
    for stream in range(len(x)):
        here = out[stream, lo + shift : hi + shift]
        if kind == INT8:
            scales, sums = plan.scales[row : row + hi - lo], plan.sums[row : row + hi - lo]
            _from_int8(here, scales, sums, biases, byte_scales[stream], zero)
        else:
            add(here, biases)


@compiled
def _from_int8(y: Any, scales: Any, sums: Any, biases: Any, byte_scale: Any, zero: int) -> None:
    """In place: sums of bytes (int32) to float32."""
    for i in range(y.shape[0]):
        total = as_bits(y[i]) - np.int32(zero) * sums[i]
        y[i] = np.float32(total) * (scales[i] * byte_scale) + biases[i]


@compiled
def _block_int8(weights: int, x: int, x_stride: int, steps: int, out: int, out_stride: int, num: int) -> None:
    """One block for all streams, as many at a time as there are registers for."""
    done = 0
    while num - done >= 6:
        _int8_6(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 6
    if num - done >= 4:
        _int8_4(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 4
    if num - done >= 2:
        _int8_2(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 2
    if num > done:
        _int8_1(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)


@compiled
def _block_bfloat16(
    weights: int, x: int, x_stride: int, steps: int, out: int, out_stride: int, num: int
) -> None:
    done = 0
    while num - done >= 4:
        _bfloat16_4(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 4
    if num - done >= 2:
        _bfloat16_2(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 2
    if num > done:
        _bfloat16_1(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)


@compiled
def _block_float32(
    weights: int, x: int, x_stride: int, steps: int, out: int, out_stride: int, num: int
) -> None:
    done = 0
    while num - done >= 6:
        _float32_6(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 6
    if num - done >= 4:
        _float32_4(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 4
    if num - done >= 2:
        _float32_2(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)
        done += 2
    if num > done:
        _float32_1(weights, x + done * x_stride, x_stride, steps, out + done * out_stride, out_stride)


# -- threads ------------------------------------------------------------------------------------------


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


# -- the network --------------------------------------------------------------------------------------


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
def quantize(plan: Plan, streams: Streams, share: Share, x: Any, slot: int, positive: bool) -> None:
    """The bytes of a vector of all streams. Every thread makes its own, which is cheaper than sharing."""
    if not plan.has_int8:
        return
    for stream in range(len(x)):
        out = streams.quantized[share.thread, slot, stream]
        scale = quantize_positive(x[stream], out) if positive else quantize_signed(x[stream], out)
        streams.quantized_scales[share.thread, slot, stream] = scale


@compiled
def upsample(plan: Plan, streams: Streams, share: Share, tier: int, step: int) -> None:
    """Make a tier's conditioning for a step of the tier below; this thread's units of it.

    A few streams get it for all steps at once, before the first: the weights are read in one go, and those
    of the MLP stay in the core's own cache from sample to sample. For many it would fill that cache itself.
    """
    ratio, thread = _ratio(plan, tier), share.thread
    index, slot = _matrix(plan, tier) + 1 + 2 * plan.n_rnn, _slot(plan, tier, plan.n_rnn - 1)
    hidden = streams.hidden[tier, plan.n_rnn - 1, streams.version[thread, tier]]
    bytes_, scales = streams.quantized[thread, slot], streams.quantized_scales[thread, slot]
    out = streams.conditioning[tier]
    if len(hidden) > FEW:
        for block in range(share.first, share.last):
            row = block * ratio + step
            product(plan, index, hidden, bytes_, scales, SIGNED_ZERO, out, (block - row) * ROWS, row, row + 1)
    elif step == 0:
        first, last = share.first * ratio, share.last * ratio
        product(plan, index, hidden, bytes_, scales, SIGNED_ZERO, out, 0, first, last)


@compiled
def _column(plan: Plan, streams: Streams, tier: int, step: int, block: int) -> int:
    """Where `upsample` puts a block of units."""
    if len(streams.first) > FEW:
        return block * ROWS
    return (block * _ratio(plan, tier) + step) * ROWS


@compiled
def step_tier(plan: Plan, streams: Streams, share: Share, frames: Any, tier: int, t: int) -> None:
    """One step of a frame-level tier: frame and conditioning in, new hidden vectors out."""
    thread, num = share.thread, len(streams.tier_input)
    no_bytes, no_scales = streams.quantized[thread, 0], streams.quantized_scales[thread, 0]
    # The input projection is small, and always float32.
    x = streams.tier_input
    product(plan, _matrix(plan, tier), frames, no_bytes, no_scales, 0, x, 0, share.first, share.last)
    if tier > 0:
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
    thread, lo, hi = share.thread, share.first * ROWS, share.last * ROWS
    hidden, mine = streams.hidden[tier, layer, old], _slot(plan, tier, layer)
    new = streams.hidden[tier, layer, 1 - old]
    index = _matrix(plan, tier) + 1 + 2 * layer
    first, last = share.first * plan.gates, share.last * plan.gates
    bytes_, scales = streams.quantized[thread], streams.quantized_scales[thread]
    from_input, from_hidden = streams.from_input, streams.from_hidden
    product(plan, index, x, bytes_[slot], scales[slot], SIGNED_ZERO, from_input, 0, first, last)
    if plan.has_recurrent:  # else these sums stay zero
        product(plan, index + 1, hidden, bytes_[mine], scales[mine], SIGNED_ZERO, from_hidden, 0, first, last)
    for stream in range(len(x)):
        gates_x = from_input[stream, first * ROWS : last * ROWS]
        gates_h = from_hidden[stream, first * ROWS : last * ROWS]
        if plan.cell == LSTM:
            lstm(gates_x, gates_h, streams.cell[tier, layer, stream, lo:hi], new[stream, lo:hi])
        elif plan.cell == GRU:
            gru(gates_x, gates_h, hidden[stream, lo:hi], new[stream, lo:hi])
        else:
            coefficients, cell = (
                plan.coefficients[tier, layer, :, lo:hi],
                streams.cell[tier, layer, stream, lo:hi],
            )
            before, after = hidden[stream, lo:hi], new[stream, lo:hi]
            _step_rarer(plan.cell, gates_x, gates_h, coefficients, cell, before, after)


@compiled
def _step_rarer(
    which: int, gates_x: Any, gates_h: Any, coefficients: Any, cell: Any, before: Any, after: Any
) -> None:
    """Cells other than GRU and LSTM: a function of its own leaves the code around those two as it was."""
    if which == PEEPHOLE:
        peephole(gates_x, gates_h, coefficients, cell, after)
    elif which == LEAKY:
        leaky(gates_x, gates_h, coefficients, before, after)
    elif which == RELU:
        bounded_relu(gates_x, gates_h, coefficients, after)
    else:
        mingru(gates_x, before, after)


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
    for block in range(share.first, share.last):
        start = conditioning + _column(plan, streams, tier, step, block) * 4
        here = out + block * (4 * ROWS)
        if len(plan.table):
            table, stride, row = plan.table.ctypes.data, plan.table.strides[0], plan.table.strides[1]
            _sum_float32(start, table + block * (4 * ROWS), stride, row, rows, count, here)
        else:
            table, stride, row = plan.table16.ctypes.data, plan.table16.strides[0], plan.table16.strides[1]
            _sum_bfloat16(start, table + block * (2 * ROWS), stride, row, rows, count, here)
    relu(streams.first[stream, share.first * ROWS : share.last * ROWS])


@compiled
def sample_level_mlp(plan: Plan, streams: Streams, share: Share, codes: Any, t: int) -> None:
    """Logits of sample t."""
    lo, hi = share.first * ROWS, share.last * ROWS
    tiers, thread = len(plan.frame_sizes), share.thread
    fastest = plan.frame_sizes[tiers - 1]
    now = plan.frame_sizes[0] + t
    first, second = streams.first, streams.second
    slot, index = tiers * plan.n_rnn + 1, tiers * (2 + 2 * plan.n_rnn)
    upsample(plan, streams, share, tiers - 1, t % fastest)
    for stream in range(len(first)):
        first_layer(plan, streams, share, stream, codes[stream, now - fastest : now], t % fastest)
    wait(streams, share)
    bytes_, scales = streams.quantized[thread], streams.quantized_scales[thread]
    quantize(plan, streams, share, first, slot, True)
    product(plan, index, first, bytes_[slot], scales[slot], 0, second, 0, share.first, share.last)
    for stream in range(len(second)):
        relu(second[stream, lo:hi])
    wait(streams, share)
    quantize(plan, streams, share, second, slot + 1, True)
    out = streams.logits
    product(
        plan, index + 1, second, bytes_[slot + 1], scales[slot + 1], 0, out, 0, share.q_first, share.q_last
    )
    wait(streams, share)


@compiled
def draw(logits: Any, filters: Any, inverse_temperature: Any, uniform: Any, p: Any) -> int:
    """A code by inverting the cumulative distribution (see `sampling.draw`).

    Args:
        logits: ``[q]``.
        filters: top-k, top-p, ``[2]``.
        inverse_temperature: of this draw; 0 is greedy.
        uniform: in [0, 1).
        p: room for the probabilities, ``[q]``.
    """
    if inverse_temperature == 0:
        return int(np.argmax(logits))
    top = maximum(logits)
    for i in range(len(p)):
        p[i] = exp((logits[i] - top) * inverse_temperature)
    top_k, top_p = int(filters[0]), filters[1]
    if 0 < top_k < len(p):
        _keep_most(p, top_k)
    if top_p < 1:
        _keep_mass(p, top_p)
    total = _ZERO
    for i in range(len(p)):
        total += p[i]
        p[i] = total
    target = min(uniform * total, np.nextafter(total, _ZERO))
    return int(np.searchsorted(p, target, side="right"))


@compiled
def _keep_most(p: Any, top_k: int) -> None:
    """Keep the `top_k` most probable codes, and those that are as probable as the last of them.

    Positive floats are ordered as their bits are, so the least of them is found by bisection.
    """
    least, beyond = np.int32(0), as_bits(maximum(p)) + np.int32(1)
    while beyond - least > 1:
        middle = least + (beyond - least) // np.int32(2)
        if _count_from(p, as_float(middle)) >= top_k:
            least = middle
        else:
            beyond = middle
    for i in range(len(p)):
        if p[i] < as_float(least):
            p[i] = _ZERO


@compiled
def _keep_mass(p: Any, top_p: Any) -> None:
    """Keep the most probable codes up to a share of the whole; of equal ones the first. As `_keep_most`."""
    wanted = top_p * _mass_from(p, _ZERO)
    least, beyond = np.int32(0), as_bits(maximum(p)) + np.int32(1)
    while beyond - least > 1:
        middle = least + (beyond - least) // np.int32(2)
        if _mass_from(p, as_float(middle)) >= wanted:
            least = middle
        else:
            beyond = middle
    kept = _mass_from(p, as_float(beyond))
    for i in range(len(p)):
        if p[i] == as_float(least) and kept < wanted:
            kept += p[i]
        elif p[i] < as_float(beyond):
            p[i] = _ZERO


@compiled_reordering
def _count_from(p: Any, least: Any) -> int:
    """Codes at least as probable as `least`."""
    count = 0
    for i in range(p.shape[0]):
        if p[i] >= least:
            count += 1
    return count


@compiled_reordering
def _mass_from(p: Any, least: Any) -> Any:
    """Their probability."""
    mass = _ZERO
    for i in range(p.shape[0]):
        if p[i] >= least:
            mass += p[i]
    return mass


@compiled
def _nll(logits: Any, code: int) -> float:
    """In nats."""
    top = maximum(logits)
    total = 0.0
    for value in logits:
        total += float(exp(value - top))
    return float(np.log(total)) - float(logits[code] - top)


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
    for tier in range(tiers):
        for layer in range(plan.n_rnn):
            hidden = streams.hidden[tier, layer, streams.version[thread, tier]]
            quantize(plan, streams, share, hidden, _slot(plan, tier, layer), False)
    for t in range(length):
        now = lookback + t
        for tier in range(tiers):
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
        for stream in range(num):
            logits = streams.logits[stream, : plan.q_levels]
            if not choice.is_given:
                uniform, inverse = choice.uniforms[stream, t], choice.inverse_temperature[stream, t]
                room = streams.probabilities[thread]
                codes[stream, now] = draw(logits, choice.filters[stream], inverse, uniform, room)
            elif thread == 0:
                streams.nll[stream, t] = _nll(logits, codes[stream, now])
