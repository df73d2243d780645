"""Arithmetic of the CPU engine's program that works unit by unit: cells, activations, quantized vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

from samplernn.generation.engines.cpu_cache import compiled, compiled_reordering
from samplernn.generation.engines.cpu_kernels import as_bits, as_float
from samplernn.generation.engines.cpu_plan import ROWS

SIGNED_ZERO = 128
"""The unsigned byte that stands for zero where inputs have signs; inputs after a ReLU use 0."""

_LOG2_E, _LN2_HIGH, _LN2_LOW = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_E0, _E1, _E2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_E3, _E4, _E5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_ZERO, _HALF, _ONE, _TWO = np.float32(0), np.float32(0.5), np.float32(1), np.float32(2)
_LOWEST, _HIGHEST = np.float32(-87), np.float32(88)
"""Exponents that float32 has room for."""
_TINY = np.float32(1e-30)


@compiled
def exp(x: np.float32) -> np.float32:
    """e**x to about 1e-7, between e**-87 and e**88: a power of two times a polynomial (Cephes' `expf`)."""
    x = min(max(x, _LOWEST), _HIGHEST)
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
def quantize(x: Any, out: Any, largest_byte: np.float32, zero: np.float32) -> np.float32:
    """Numbers as bytes around `zero`, where the largest magnitude lies `largest_byte` away from it.

    Returns:
        What one step of the bytes means.
    """
    largest = magnitude(x)
    per_unit = largest_byte / largest
    for i in range(x.shape[0]):
        out[i] = np.uint8(np.int32(x[i] * per_unit + (zero + _HALF)))
    return largest / largest_byte
