"""What the CUDA engine's program is made of, in Triton: meetings, products, cells, the first layer, drawing.

A tile of a product or of a pointwise stage is one block's work (a "program" in Triton's words), the same
block's at every step. Capitals are constants of compilation.
"""

from __future__ import annotations

import triton
import triton.language as tl

WARPS = 4
"""Of every variant: the order of a sum depends on it."""
GATHERED = tl.constexpr(4)
"""Rows of the first layer that are added up together."""
DRAWN = tl.constexpr(8)
"""Rows that are drawn together. Another number than `GATHERED`: the compiler lays tensors of one shape out
alike, and how codes are laid out decides in which order they are added up."""
IMPOSSIBLE = -1e30
"""Bias of a code that only fills up."""

_COUNTED = tl.constexpr(4)
"""Codes that all others are compared with at a time."""


@triton.jit
def arrive(counter):
    """Tell the other blocks that this one has written what it had to."""
    tl.debug_barrier()
    tl.atomic_add(counter, 1, sem="release", scope="gpu")


@triton.jit
def wait(counter, target):
    """Wait until so many arrived, and see what they wrote."""
    arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    while arrived < target:
        arrived = tl.atomic_add(counter, 0, sem="acquire", scope="gpu")
    tl.debug_barrier()


@triton.jit
def load_rows(at, rows, num, IS_MASKED: tl.constexpr):
    """What lies there, ``[rows, …]``; of few streams only their rows are read, the others are zero."""
    if IS_MASKED:
        return tl.load(at, rows[:, None] < num, 0.0)
    return tl.load(at)


@triton.jit
def product(
    x, weights, row, column, num, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
    STAGES: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of ``x @ weights.T``: rows from `row`, columns from `column`; float32 ``[BM, BN]``.

    Four chains over a quarter of the inputs each, which do not wait for one another.

    Args:
        x: ``[rows, K]``.
        weights: ``[columns, K]``.
        num: rows that count; with IS_MASKED the others are not read.
    """
    rows, columns, inputs = row + tl.arange(0, BM), column + tl.arange(0, BN), tl.arange(0, BK)
    x_at = x + rows[:, None] * K + inputs[None, :]
    w_at = weights + columns[None, :] * K + inputs[:, None]
    quarter: tl.constexpr = K // 4
    first = tl.zeros((BM, BN), tl.float32)
    second = tl.zeros((BM, BN), tl.float32)
    third = tl.zeros((BM, BN), tl.float32)
    fourth = tl.zeros((BM, BN), tl.float32)
    for k in tl.range(0, quarter, BK, num_stages=STAGES):
        first = tl.dot(
            load_rows(x_at + k, rows, num, IS_MASKED), tl.load(w_at + k), first, input_precision="ieee"
        )
        part = load_rows(x_at + (quarter + k), rows, num, IS_MASKED)
        second = tl.dot(part, tl.load(w_at + (quarter + k)), second, input_precision="ieee")
        part = load_rows(x_at + (2 * quarter + k), rows, num, IS_MASKED)
        third = tl.dot(part, tl.load(w_at + (2 * quarter + k)), third, input_precision="ieee")
        part = load_rows(x_at + (3 * quarter + k), rows, num, IS_MASKED)
        fourth = tl.dot(part, tl.load(w_at + (3 * quarter + k)), fourth, input_precision="ieee")
    return (first + second) + (third + fourth)


@triton.jit
def project(
    codes, weights, biases, conditioning, out, row, column, code_stride, Q_ZERO: tl.constexpr,
    SCALE: tl.constexpr, FRAME: tl.constexpr, PADDED: tl.constexpr, HAS_ABOVE: tl.constexpr, D: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A tile of a tier's input: the projected frame, plus what the tier above passes down.

    Args:
        codes: at the frame's first sample, of row 0.
        weights: float32 ``[D, PADDED]``.
        conditioning: of this step, ``[rows, D]``.
        out: ``[rows, D]``.
    """
    rows, columns = row + tl.arange(0, BM), column + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for first in tl.range(0, PADDED, 16):
        sample = first + tl.arange(0, 16)
        code = tl.load(codes + rows[:, None] * code_stride + sample[None, :], sample[None, :] < FRAME, Q_ZERO)
        amplitude = (code - Q_ZERO).to(tl.float32) * SCALE
        weight = tl.load(weights + columns[None, :] * PADDED + sample[:, None])
        total = tl.dot(amplitude, weight, total, input_precision="ieee")
    total += tl.load(biases + columns)[None, :]
    at = rows[:, None] * D + columns[None, :]
    if HAS_ABOVE:
        total += tl.load(conditioning + at)
    tl.store(out + at, total.to(out.dtype.element_ty))


@triton.jit
def tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def gru(
    x, before, weights, biases, hidden, after, row, unit, num, D: tl.constexpr, BM: tl.constexpr,
    BU: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of a GRU layer's step, as `reference.gru_step`.

    Args:
        x: ``[rows, D]``.
        before: hidden vectors in the precision of products, ``[rows, D]``.
        weights: ``[2, 3, D, D]``: of the input, of the hidden vector.
        biases: float32 ``[2, 3, D]``.
        hidden: the same in float32; replaced.
        after: as `before`, of this step.
        num: rows that count; see `load_rows`.
    """
    rows, units, inputs = row + tl.arange(0, BM), unit + tl.arange(0, BU), tl.arange(0, BK)
    x_at = rows[:, None] * D + inputs[None, :]
    w_at = weights + units[None, :] * D + inputs[:, None]
    gate: tl.constexpr = D * D
    # Sums of each gate over the inputs and over the hidden vector, apart, each [BM, BU].
    reset_x = tl.zeros((BM, BU), tl.float32)
    update_x = tl.zeros((BM, BU), tl.float32)
    new_x = tl.zeros((BM, BU), tl.float32)
    reset_h = tl.zeros((BM, BU), tl.float32)
    update_h = tl.zeros((BM, BU), tl.float32)
    new_h = tl.zeros((BM, BU), tl.float32)
    for k in tl.range(0, D, BK, num_stages=STAGES):
        part = load_rows(x + x_at + k, rows, num, IS_MASKED)
        reset_x = tl.dot(part, tl.load(w_at + k), reset_x, input_precision="ieee")
        update_x = tl.dot(part, tl.load(w_at + (gate + k)), update_x, input_precision="ieee")
        new_x = tl.dot(part, tl.load(w_at + (2 * gate + k)), new_x, input_precision="ieee")
        part = load_rows(before + x_at + k, rows, num, IS_MASKED)
        reset_h = tl.dot(part, tl.load(w_at + (3 * gate + k)), reset_h, input_precision="ieee")
        update_h = tl.dot(part, tl.load(w_at + (4 * gate + k)), update_h, input_precision="ieee")
        new_h = tl.dot(part, tl.load(w_at + (5 * gate + k)), new_h, input_precision="ieee")
    # The gates, then the new hidden vector, unit by unit.
    bias = biases + units
    reset = tl.sigmoid(reset_x + reset_h + (tl.load(bias) + tl.load(bias + 3 * D))[None, :])
    update = tl.sigmoid(update_x + update_h + (tl.load(bias + D) + tl.load(bias + 4 * D))[None, :])
    new_h += tl.load(bias + 5 * D)[None, :]
    new = tanh(new_x + tl.load(bias + 2 * D)[None, :] + reset * new_h)
    at = rows[:, None] * D + units[None, :]
    result = new + update * (tl.load(hidden + at) - new)
    tl.store(hidden + at, result)
    tl.store(after + at, result.to(after.dtype.element_ty))


@triton.jit
def lstm(
    x, before, weights, biases, hidden, cell, after, row, unit, num, D: tl.constexpr, BM: tl.constexpr,
    BU: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """A tile of an LSTM layer's step, as `reference.lstm_step`; arguments as of `gru`, with four gates.

    Args:
        cell: float32 ``[rows, D]``; replaced.
    """
    rows, units, inputs = row + tl.arange(0, BM), unit + tl.arange(0, BU), tl.arange(0, BK)
    x_at = rows[:, None] * D + inputs[None, :]
    w_at = weights + units[None, :] * D + inputs[:, None]
    gate: tl.constexpr = D * D
    # Sums of each gate over the inputs and over the hidden vector, apart, each [BM, BU].
    in_x = tl.zeros((BM, BU), tl.float32)
    keep_x = tl.zeros((BM, BU), tl.float32)
    new_x = tl.zeros((BM, BU), tl.float32)
    out_x = tl.zeros((BM, BU), tl.float32)
    in_h = tl.zeros((BM, BU), tl.float32)
    keep_h = tl.zeros((BM, BU), tl.float32)
    new_h = tl.zeros((BM, BU), tl.float32)
    out_h = tl.zeros((BM, BU), tl.float32)
    for k in tl.range(0, D, BK, num_stages=STAGES):
        part = load_rows(x + x_at + k, rows, num, IS_MASKED)
        in_x = tl.dot(part, tl.load(w_at + k), in_x, input_precision="ieee")
        keep_x = tl.dot(part, tl.load(w_at + (gate + k)), keep_x, input_precision="ieee")
        new_x = tl.dot(part, tl.load(w_at + (2 * gate + k)), new_x, input_precision="ieee")
        out_x = tl.dot(part, tl.load(w_at + (3 * gate + k)), out_x, input_precision="ieee")
        part = load_rows(before + x_at + k, rows, num, IS_MASKED)
        in_h = tl.dot(part, tl.load(w_at + (4 * gate + k)), in_h, input_precision="ieee")
        keep_h = tl.dot(part, tl.load(w_at + (5 * gate + k)), keep_h, input_precision="ieee")
        new_h = tl.dot(part, tl.load(w_at + (6 * gate + k)), new_h, input_precision="ieee")
        out_h = tl.dot(part, tl.load(w_at + (7 * gate + k)), out_h, input_precision="ieee")
    # The gates, then the new cell state and hidden vector, unit by unit.
    bias = biases + units
    let_in = tl.sigmoid(in_x + in_h + (tl.load(bias) + tl.load(bias + 4 * D))[None, :])
    keep = tl.sigmoid(keep_x + keep_h + (tl.load(bias + D) + tl.load(bias + 5 * D))[None, :])
    new = tanh(new_x + new_h + (tl.load(bias + 2 * D) + tl.load(bias + 6 * D))[None, :])
    let_out = tl.sigmoid(out_x + out_h + (tl.load(bias + 3 * D) + tl.load(bias + 7 * D))[None, :])
    at = rows[:, None] * D + units[None, :]
    remembered = keep * tl.load(cell + at) + let_in * new
    result = let_out * tanh(remembered)
    tl.store(cell + at, remembered)
    tl.store(hidden + at, result)
    tl.store(after + at, result.to(after.dtype.element_ty))


@triton.jit
def gathered(
    codes, table, rows, units, code_stride, PLACES: tl.constexpr, Q_LEVELS: tl.constexpr, D: tl.constexpr
):  # fmt: skip
    """The first layer without conditioning: what the codes of the window add, float32 ``[rows, units]``.

    Args:
        codes: at the window's first sample, of row 0.
        table: ``[frame, Q_LEVELS, D]``.
    """
    total = tl.zeros((rows.shape[0], units.shape[0]), tl.float32)
    for place in tl.static_range(PLACES):
        code = tl.load(codes + rows * code_stride + place)
        total += tl.load(table + (place * Q_LEVELS + code)[:, None] * D + units[None, :]).to(tl.float32)
    return total


@triton.jit
def gathered_by_one(codes, table, units, PLACES: tl.constexpr, Q_LEVELS: tl.constexpr, D: tl.constexpr):
    """`gathered` of the only row over the first places of the window, in the shape of `units`."""
    total = tl.zeros(units.shape, tl.float32)
    for place in tl.static_range(PLACES):
        code = tl.load(codes + place)
        total += tl.load(table + (place * Q_LEVELS + code) * D + units).to(tl.float32)
    return total


@triton.jit
def drawn(
    logits, rows, uniform, inverse_temperature, filters, Q: tl.constexpr, Q_LEVELS: tl.constexpr,
    FILTERED: tl.constexpr,
):  # fmt: skip
    """A code for each row, as `sampling.draw`; int32 ``[rows]``.

    Args:
        logits: float32 ``[all rows, Q]``.
        uniform: ``[rows]``.
        inverse_temperature: ``[rows]``; 0 takes the most probable code.
        filters: top-k and top-p, ``[all rows, 2]``.
    """
    code = tl.arange(0, Q)
    logit = tl.load(logits + rows[:, None] * Q + code[None, :])
    highest = tl.max(logit, axis=1)
    weight = tl.exp((logit - highest[:, None]) * inverse_temperature[:, None])
    weight = tl.where(code[None, :] < Q_LEVELS, weight, 0.0)
    if FILTERED:
        weight = filtered(logits, rows, weight, highest, inverse_temperature, filters, Q)
    cumulative = tl.cumsum(weight, axis=1)
    target = uniform * tl.max(cumulative, axis=1)
    is_possible = weight > 0
    is_above = is_possible & (cumulative > target[:, None])
    # Rounding may leave none above the target; and as sums run in a tree, one of weight zero may be.
    last = tl.max(tl.where(is_possible, code[None, :], 0), axis=1)
    chosen = tl.minimum(tl.min(tl.where(is_above, code[None, :], Q), axis=1), last)
    likeliest = tl.min(tl.where(logit == highest[:, None], code[None, :], Q_LEVELS - 1), axis=1)
    return tl.where(inverse_temperature == 0, likeliest, chosen)


@triton.jit
def filtered(logits, rows, weight, highest, inverse_temperature, filters, Q: tl.constexpr):
    """The weights ``[rows, Q]`` without those that top-k or top-p leave out.

    A code stays if fewer than top_k are more probable, and if those before it in the order of probability
    (of equal ones, the lower code) have less than top_p of the weight.
    """
    code = tl.arange(0, Q)
    more_probable = tl.zeros(weight.shape, tl.int32)
    weight_before = tl.zeros(weight.shape, tl.float32)
    for first in tl.range(0, Q, _COUNTED):
        other = first + tl.arange(0, _COUNTED)
        logit = tl.load(logits + rows[:, None] * Q + other[None, :])
        theirs = tl.exp((logit - highest[:, None]) * inverse_temperature[:, None])[:, None, :]
        mine = weight[:, :, None]
        is_more = theirs > mine
        is_before = is_more | ((theirs == mine) & (other[None, None, :] < code[None, :, None]))
        more_probable += tl.sum(is_more.to(tl.int32), axis=2)
        weight_before += tl.sum(tl.where(is_before, theirs, 0.0), axis=2)
    top_k = tl.load(filters + 2 * rows)[:, None]
    weight = tl.where((top_k <= 0) | (more_probable < top_k), weight, 0.0)
    top_p = tl.load(filters + 2 * rows + 1)[:, None]
    limit = top_p * tl.sum(weight, axis=1)[:, None]
    return tl.where((top_p >= 1) | (weight_before < limit), weight, 0.0)


@triton.jit
def negative_log_likelihood(logits, rows, codes, Q: tl.constexpr):
    """Negative log-likelihood of a code for each row, in nats."""
    code = tl.arange(0, Q)
    logit = tl.load(logits + rows[:, None] * Q + code[None, :])
    highest = tl.max(logit, axis=1)
    total = tl.sum(tl.exp(logit - highest[:, None]), axis=1)
    mine = tl.sum(tl.where(code[None, :] == codes[:, None], logit, 0.0), axis=1)
    return tl.log(total) + highest - mine


@triton.jit
def wait_for_all(counter, target):
    """All blocks wait for each other; returns the next target."""
    target += tl.num_programs(0)
    arrive(counter)
    wait(counter, target)
    return target


@triton.jit
def quarters_of(weights, column, K: tl.constexpr, BN: tl.constexpr):
    """The weights of some columns as `product_of_one` takes them, ``[4, K / 4, BN]``."""
    quarter: tl.constexpr = K // 4
    part, inputs, columns = tl.arange(0, 4), tl.arange(0, quarter), column + tl.arange(0, BN)
    at = columns[None, None, :] * K + part[:, None, None] * quarter + inputs[None, :, None]
    return tl.load(weights + at)


@triton.jit
def linear(
    x, weights, biases, out, num, num_rows, COLUMNS: tl.constexpr, WIDTH: tl.constexpr, K: tl.constexpr,
    IS_RECTIFIED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    IS_MASKED: tl.constexpr,
):  # fmt: skip
    """This block's share of ``out = x @ weights.T + biases``, rectified or not.

    Args:
        x: ``[num_rows, K]``.
        weights: ``[COLUMNS, K]``.
        biases: float32 ``[COLUMNS]``.
        out: ``[COLUMNS / WIDTH, num_rows, WIDTH]``.
        num: rows that count; see `load_rows`.
    """
    row_tiles = num_rows // BM
    tile = tl.program_id(0)
    while tile < row_tiles * (COLUMNS // BN):
        row, column = tile % row_tiles * BM, tile // row_tiles * BN
        total = product(x, weights, row, column, num, K, BM, BN, BK, STAGES, IS_MASKED)
        rows, columns = row + tl.arange(0, BM), tl.arange(0, BN)
        total += tl.load(biases + column + columns)[None, :]
        if IS_RECTIFIED:
            total = tl.maximum(total, 0.0)
        here = out + column // WIDTH * (num_rows * WIDTH) + column % WIDTH
        tl.store(here + rows[:, None] * WIDTH + columns[None, :], total.to(out.dtype.element_ty))
        tile += tl.num_programs(0)


@triton.jit
def product_of_one(x, weights, BN: tl.constexpr):
    """What `product` gives for the only row, to the last bit: a warp for each quarter of the inputs.

    Args:
        x: ``[4, K / 4]``.
        weights: `quarters_of`.

    Returns:
        float32 ``[16, BN]``: sixteen times the same row, as the instruction has sixteen.
    """
    rows = tl.broadcast_to(x.to(weights.dtype)[:, None, :], (4, 16, x.shape[1]))
    parts = tl.dot(rows, weights, input_precision="ieee")  # [4, 16, BN]
    even, odd = tl.split(tl.permute(tl.reshape(parts, (2, 2, 16, BN)), (0, 2, 3, 1)))
    left, right = tl.split(tl.permute(even + odd, (1, 2, 0)))
    return left + right


@triton.jit
def uniforms(seed, streams, samples):
    """As `sampling.uniforms`: of streams ``[rows]`` at their samples, int64 ``[rows]``."""
    low = (samples & 0xFFFFFFFF).to(tl.uint32)
    high = (samples >> 32).to(tl.uint32)
    word, _, _, _ = tl.philox(seed, low, high, streams.to(tl.uint32), tl.zeros_like(low))
    return (word >> 8).to(tl.float32) * (1 / 16777216)
