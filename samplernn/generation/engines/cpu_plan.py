"""What the compiled program of the CPU engine works on: plain values and arrays, no Numba."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FLOAT32, BFLOAT16, INT8 = 0, 1, 2
"""Kinds of matrices."""
ROWS = 64
"""Rows of a block of a packed matrix (see `cpu_kernels`)."""
FEW_STREAMS = 4
"""Up to so many streams, conditioning is upsampled for all steps of a frame at once (see `upsample`)."""
ABORT = 8
"""Where in `Streams.barrier` a thread that cannot take part tells the others to give up."""

GRU, LSTM, LEAKY, RELU, MINGRU, PEEPHOLE = range(6)
"""Programs of one step of a layer."""
CELLS = {
    "gru": GRU,
    "lstm": LSTM,
    "rnn-tanh": LEAKY,
    "rnn-relu": RELU,
    "lstm-peephole": PEEPHOLE,
    "leaky": LEAKY,
    "echo-state": LEAKY,
    "mingru": MINGRU,
}
"""The cells that the engine serves, each with its program: a simple network and a reservoir are leaky
integrators, too. (`gru-reset-before` would need a second product, and a wait, in the middle of a step.)"""


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
    table: NDArray[np.uint8]
    """Embedding times first layer, the bytes of ``[frame, q, units]``: bfloat16, or float32 (`is_wide`)."""
    is_wide: bool


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


PER_STREAM = ("uniforms", "inverse_temperature", "filters")
"""Fields of `Choice` with a row for each stream."""


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
