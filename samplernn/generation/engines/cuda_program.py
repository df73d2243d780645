"""What happens on a GPU between two samples, in Triton: one program that stays, `advance`.

All its blocks ("programs" in Triton's words) live as long as the call. They share out the work of a stage in
tiles, then wait for each other; a sample is four such stages, a frame three or more. Nothing comes back
to the host in between, so that one stream is not bound by kernel launches.

A stream's numbers never depend on its neighbours. Tiles differ in shape with the number of streams, but each
element is the same chain of instructions (`mma.sync` of 16 x 8 x 16; wider ones of newer GPUs add in another
order, and tiles of at most 32 rows keep the compiler from them), and sums over codes always run in tiles of
`DRAWN` rows on four warps.

Everything is padded: rows to a multiple of the tile, units to a multiple of 64 with zero weights, which keeps
the padding at zero, codes to a power of two with biases that make them impossible.
"""

from __future__ import annotations

import triton
import triton.language as tl

from samplernn.generation.engines.cuda_kernels import (
    DRAWN,
    GATHERED,
    arrive,
    drawn,
    gathered,
    gathered_by_one,
    gru,
    linear,
    lstm,
    negative_log_likelihood,
    product_of_one,
    project,
    quarters_of,
    uniforms,
    wait,
    wait_for_all,
)


@triton.jit
def step_tier(
    now, t, above, projections, projection_biases, cells, cell_biases, upsampling, upsampling_biases,
    hidden, cell, narrow, tier_input, conditioning, counter, target, num, num_rows, code_stride,
    version_stride,
    FRAME: tl.constexpr, PADDED: tl.constexpr, RATIO: tl.constexpr, HAS_ABOVE: tl.constexpr,
    LAYERS: tl.constexpr, D: tl.constexpr, Q_LEVELS: tl.constexpr, IS_LSTM: tl.constexpr,
    BM: tl.constexpr, BN_UP: tl.constexpr, BU: tl.constexpr, BK: tl.constexpr, BK_QUARTER: tl.constexpr,
    STAGES: tl.constexpr, IS_MASKED: tl.constexpr,
):  # fmt: skip
    """One step of a tier: project its frame, step its layers, upsample; returns the next target.

    All pointers but `now` begin at what is the tier's own; see `advance`.
    """
    block, blocks = tl.program_id(0), tl.num_programs(0)
    row_tiles = num_rows // BM
    MATRICES: tl.constexpr = 8 if IS_LSTM else 6
    # The tier's input, [num_rows, D].
    tile = block
    while tile < row_tiles * (D // BU):
        project(
            now - FRAME, projections, projection_biases, above, tier_input, tile % row_tiles * BM,
            tile // row_tiles * BU, code_stride, Q_LEVELS // 2, 4 / Q_LEVELS, FRAME, PADDED, HAS_ABOVE, D,
            BM, BU,
        )  # fmt: skip
        tile += blocks
    target = wait_for_all(counter, target)
    # The layers: each reads one version of its hidden vectors and writes the other, [num_rows, D].
    version = t // FRAME % 2
    x = tier_input
    for layer in tl.static_range(LAYERS):
        before = narrow + version * version_stride + layer * (num_rows * D)
        after = narrow + (1 - version) * version_stride + layer * (num_rows * D)
        weights, biases = cells + layer * (MATRICES * D * D), cell_biases + layer * (MATRICES * D)
        state = hidden + layer * (num_rows * D)
        tile = block
        while tile < row_tiles * (D // BU):
            row, unit = tile % row_tiles * BM, tile // row_tiles * BU
            if IS_LSTM:
                remembered = cell + layer * (num_rows * D)
                lstm(
                    x, before, weights, biases, state, remembered, after, row, unit, num, D, BM, BU, BK,
                    STAGES, IS_MASKED,
                )  # fmt: skip
            else:
                gru(
                    x, before, weights, biases, state, after, row, unit, num, D, BM, BU, BK, STAGES, IS_MASKED
                )
            tile += blocks
        target = wait_for_all(counter, target)
        x = after
    # Conditioning for all steps of the tier below, [RATIO, num_rows, D].
    linear(
        x, upsampling, upsampling_biases, conditioning, num, num_rows, RATIO * D, D, D, False, BM, BN_UP,
        BK_QUARTER, STAGES, IS_MASKED,
    )  # fmt: skip
    return wait_for_all(counter, target)


@triton.jit(do_not_specialize=["num", "num_rows", "length"])
def advance(
    # The network, as `cuda_weights` packs it.
    projections, projection_biases, cells, cell_biases, upsampling, upsampling_biases, table,
    hidden_weights, hidden_biases, output_weights, output_biases,
    # The streams' state, and what stages pass on.
    codes, hidden, cell, narrow, tier_input, conditioning, first, second, logits, nll,
    # How codes are drawn.
    inverse_temperatures, filters, positions, streams, seeds,
    # The call.
    counter, num, num_rows, length, TIERS: tl.constexpr, LAYERS: tl.constexpr, D: tl.constexpr,
    Q: tl.constexpr,
    Q_LEVELS: tl.constexpr, IS_LSTM: tl.constexpr, IS_ALONE: tl.constexpr, IS_MASKED: tl.constexpr,
    IS_GIVEN: tl.constexpr, IS_FILTERED: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BN_UP: tl.constexpr, BN_OUT: tl.constexpr, BU: tl.constexpr, BK: tl.constexpr, BK_QUARTER: tl.constexpr,
    BD: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Advance all streams by `length` samples.

    Args:
        projections: of each tier float32 ``[D, padded frame]``, one after the other.
        projection_biases: float32 ``[tiers, D]``.
        cells: ``[tiers, LAYERS, 2, gates, D, D]``.
        cell_biases: float32 ``[tiers, LAYERS, 2, gates, D]``.
        upsampling: of each tier ``[ratio, D, D]``, one after the other.
        upsampling_biases: alike, float32 ``[ratio, D]``.
        table: ``[frame, Q_LEVELS, D]``.
        hidden_weights: ``[D, D]``.
        hidden_biases: float32 ``[D]``.
        output_weights: ``[Q, D]``.
        output_biases: float32 ``[Q]``.
        codes: int32 ``[num_rows, lookback + length]``: the past, then what is drawn or given.
        hidden: float32 ``[tiers, LAYERS, num_rows, D]``.
        cell: of an LSTM, alike.
        narrow: `hidden` in the precision of products, before and after a step by turns, ``[2, …]``.
        tier_input: ``[num_rows, D]``.
        conditioning: of each tier float32 ``[ratio, num_rows, D]``, one after the other.
        first: ``[num_rows, D]``.
        second: ``[num_rows, D]``.
        logits: float32 ``[num_rows, Q]``.
        nll: float32 ``[num_rows, length]``, written where codes are given.
        inverse_temperatures: float32 ``[num_rows, length]``; 0 takes the most probable code.
        filters: top-k and top-p, float32 ``[num_rows, 2]`` (see `sampling.DrawArrays`).
        positions: int64 ``[num_rows]``.
        streams: int64 ``[num_rows]``.
        seeds: int64 ``[1]``, the bits of the seed.
        counter: int32, zero.
        num: streams.
        num_rows: a multiple of BM; streams and padding.
        length: a multiple of the largest frame.
        TIERS: of each tier (frame, padded frame, ratio, start in `projections`, vectors before its own in
            `upsampling`).
        IS_ALONE: one stream: every block draws and adds up the first layer for itself, which saves two
            meetings per sample, and keeps its share of the MLP's weights in shared memory.
        IS_MASKED: few streams: see `load_rows`.
    """
    block, blocks = tl.program_id(0), tl.num_programs(0)
    N_TIERS: tl.constexpr = len(TIERS)
    LOOKBACK: tl.constexpr = TIERS[0][0]
    FASTEST: tl.constexpr = TIERS[N_TIERS - 1][0]
    GATES: tl.constexpr = 4 if IS_LSTM else 3
    drawing = tl.arange(0, DRAWN)
    code_stride = length + LOOKBACK
    seed = tl.load(seeds)
    target = 0
    if IS_ALONE:
        quarters = tl.arange(0, 4)[:, None] * (D // 4) + tl.arange(0, D // 4)[None, :]  # all units
        hidden_tile = quarters_of(hidden_weights, block * BN % D, D, BN)
        output_tile = quarters_of(output_weights, block * BN_OUT % Q, D, BN_OUT)
        early = gathered_by_one(codes + (LOOKBACK - FASTEST), table, quarters, FASTEST - 1, Q_LEVELS, D)
        latest = tl.load(codes + (LOOKBACK - 1))
        # Compared as a vector: the interpreter of Triton 3.9 takes no scalar for a mask.
        is_writer = drawing * 0 + block == 0
        numbers, places = tl.load(streams + drawing), tl.load(positions + drawing)
    t = 0
    while t < length:
        now = codes + LOOKBACK + t
        if IS_ALONE:  # noqa: SIM102 (a condition of its own, so that the compiler sees that it is constant)
            if t % FASTEST == 0:
                target = wait_for_all(counter, target)  # the last code is written by one block
        # The tiers whose frame begins, slowest first.
        for tier in tl.static_range(N_TIERS):
            if t % TIERS[tier][0] == 0:
                above = conditioning
                if tier > 0:
                    step = t % TIERS[tier - 1][0] // TIERS[tier][0]
                    above += (TIERS[tier - 1][4] + step) * (num_rows * D)
                layers = tier * LAYERS
                target = step_tier(
                    now, t, above, projections + TIERS[tier][3], projection_biases + tier * D,
                    cells + layers * (2 * GATES * D * D), cell_biases + layers * (2 * GATES * D),
                    upsampling + TIERS[tier][4] * D * D, upsampling_biases + TIERS[tier][4] * D,
                    hidden + layers * (num_rows * D), cell + layers * (num_rows * D),
                    narrow + layers * (num_rows * D), tier_input,
                    conditioning + TIERS[tier][4] * (num_rows * D), counter, target, num, num_rows,
                    code_stride, N_TIERS * LAYERS * num_rows * D, TIERS[tier][0], TIERS[tier][1],
                    TIERS[tier][2], tier > 0, LAYERS, D, Q_LEVELS, IS_LSTM, BM, BN_UP, BU, BK, BK_QUARTER,
                    STAGES, IS_MASKED,
                )  # fmt: skip
        # The sample-level MLP and the draw.
        above = conditioning + (TIERS[N_TIERS - 1][4] + t % FASTEST) * (num_rows * D)
        if IS_ALONE:
            x = early + tl.load(table + ((FASTEST - 1) * Q_LEVELS + latest) * D + quarters).to(tl.float32)
            x = tl.maximum(x + tl.load(above + quarters), 0.0)
            # This block's columns of the hidden layer, then of the logits; only row 0 counts.
            is_first = (tl.arange(0, 16) == 0)[:, None]
            if block * BN < D:
                units = block * BN + tl.arange(0, BN)
                total = product_of_one(x, hidden_tile, BN) + tl.load(hidden_biases + units)[None, :]
                at = second + tl.arange(0, 16)[:, None] * D + units[None, :]
                tl.store(at, tl.maximum(total, 0.0).to(second.dtype.element_ty), is_first)
            target = wait_for_all(counter, target)
            if block * BN_OUT < Q:
                columns = block * BN_OUT + tl.arange(0, BN_OUT)
                total = product_of_one(tl.load(second + quarters), output_tile, BN_OUT)
                total += tl.load(output_biases + columns)[None, :]
                tl.store(logits + tl.arange(0, 16)[:, None] * Q + columns[None, :], total, is_first)
            arrive(counter)
            # What needs no logits is done while the others arrive.
            early = gathered_by_one(now + (1 - FASTEST), table, quarters, FASTEST - 1, Q_LEVELS, D)
            if not IS_GIVEN:
                uniform = uniforms(seed, numbers, places + t)
                inverse_temperature = tl.load(inverse_temperatures + drawing * length + t)
            target += blocks
            wait(counter, target)
            if IS_GIVEN:
                chosen = tl.load(now + drawing * code_stride)
                tl.store(
                    nll + drawing * length + t, negative_log_likelihood(logits, drawing, chosen, Q), is_writer
                )
            else:
                chosen = drawn(
                    logits, drawing, uniform, inverse_temperature, filters, Q, Q_LEVELS, IS_FILTERED
                )
                tl.store(now + drawing * code_stride, chosen, is_writer & (drawing == 0))
            latest = tl.sum(tl.where(drawing == 0, chosen, 0))
        else:
            # First layer, [num_rows, D]: conditioning and rows of the table.
            tile = block
            while tile < (num_rows // GATHERED) * (D // BD):
                rows = tile % (num_rows // GATHERED) * GATHERED + tl.arange(0, GATHERED)
                units = tile // (num_rows // GATHERED) * BD + tl.arange(0, BD)
                x = gathered(now - FASTEST, table, rows, units, code_stride, FASTEST, Q_LEVELS, D)
                at = rows[:, None] * D + units[None, :]
                x = tl.maximum(x + tl.load(above + at), 0.0)
                tl.store(first + at, x.to(first.dtype.element_ty))
                tile += blocks
            target = wait_for_all(counter, target)
            # Hidden layer, [num_rows, D], then logits, [num_rows, Q].
            linear(
                first, hidden_weights, hidden_biases, second, num, num_rows, D, D, D, True, BM, BN,
                BK_QUARTER, STAGES, IS_MASKED,
            )  # fmt: skip
            target = wait_for_all(counter, target)
            linear(
                second, output_weights, output_biases, logits, num, num_rows, Q, Q, D, False, BM, BN_OUT,
                BK_QUARTER, STAGES, IS_MASKED,
            )  # fmt: skip
            target = wait_for_all(counter, target)
            # A code of each stream, DRAWN at a time.
            tile = block
            while tile < num_rows // DRAWN:
                rows = tile * DRAWN + drawing
                if IS_GIVEN:
                    chosen = tl.load(now + rows * code_stride)
                    tl.store(nll + rows * length + t, negative_log_likelihood(logits, rows, chosen, Q))
                else:
                    uniform = uniforms(seed, tl.load(streams + rows), tl.load(positions + rows) + t)
                    inverse_temperature = tl.load(inverse_temperatures + rows * length + t)
                    chosen = drawn(
                        logits, rows, uniform, inverse_temperature, filters, Q, Q_LEVELS, IS_FILTERED
                    )
                    tl.store(now + rows * code_stride, chosen)
                tile += blocks
            target = wait_for_all(counter, target)
        t += 1
