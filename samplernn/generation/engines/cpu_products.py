"""Products of packed matrices with the vectors of all streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from samplernn.generation.engines.cpu_cache import OPTIONS, compiled
from samplernn.generation.engines.cpu_kernels import as_bits, dot_instruction, matrix_product
from samplernn.generation.engines.cpu_math import add
from samplernn.generation.engines.cpu_plan import BFLOAT16, INT8, ROWS, Plan


class Vectors(NamedTuple):
    """One vector of each stream, as input of a product."""

    floats: NDArray[np.float32]
    """``[B, inputs]``."""
    bytes: NDArray[np.uint8]
    """The same quantized, ``[B, inputs]``; used if the matrix is int8."""
    scales: NDArray[np.float32]
    """What one step of the bytes means, ``[B]``."""
    zero: int
    """The byte that stands for zero."""


def _block_products(dtype: str, most: int, dot: str = "none") -> Callable[..., None]:
    """A compiled function: adjacent blocks of a packed matrix times the inputs of all streams.

    Args:
        dtype: of the weights.
        most: streams that one reading of a weight serves at most, as there are registers: 4 or more.
        dot: see `matrix_product`.
    """
    by_most, by_4, by_2, by_1 = (matrix_product(dtype, count, dot) for count in (most, 4, 2, 1))
    side_by_side = 1 if dtype == "int8" else 2
    alone = matrix_product(dtype, 1, dot, side_by_side)

    @njit(**OPTIONS)  # not kept on disk for itself: it is a part of `product`
    def multiply(
        weights: int, blocks: int, x: int, x_stride: int, steps: int, out: int, out_stride: int, num: int
    ) -> None:
        block = 0
        while block < blocks:
            here, place = weights + block * steps * (4 * ROWS), out + block * (4 * ROWS)
            if num == 1 and blocks - block >= side_by_side:
                alone(here, x, x_stride, steps, place, out_stride)
                block += side_by_side
                continue
            done = 0
            while num - done >= most:
                by_most(here, x + done * x_stride, x_stride, steps, place + done * out_stride, out_stride)
                done += most
            if num - done >= 4:
                by_4(here, x + done * x_stride, x_stride, steps, place + done * out_stride, out_stride)
                done += 4
            if num - done >= 2:
                by_2(here, x + done * x_stride, x_stride, steps, place + done * out_stride, out_stride)
                done += 2
            if num > done:
                by_1(here, x + done * x_stride, x_stride, steps, place + done * out_stride, out_stride)
            block += 1

    return multiply


_int8 = _block_products("int8", 6, dot_instruction())
_bfloat16 = _block_products("bfloat16", 4)
_float32 = _block_products("float32", 6)


@compiled
def address_of(plan: Plan, index: int, block: int) -> int:
    """Where in memory a block of a matrix begins."""
    return plan.matrices[index, 1] + block * plan.matrices[index, 2] * (4 * ROWS)


@compiled
def product(plan: Plan, index: int, x: Vectors, out: Any, shift: int, first: int, last: int) -> None:
    """Some rows of a matrix times the inputs of all streams, plus bias.

    Args:
        plan: has the matrices.
        index: of the matrix.
        x: the inputs.
        out: float32 ``[B, …]``; row r of the matrix goes to column r + shift.
        shift: see there.
        first: block of rows.
        last: one past the last block.
    """
    kind, steps = plan.matrices[index, 0], plan.matrices[index, 2]
    num, lo, hi = len(x.floats), first * ROWS, last * ROWS
    weights, place = address_of(plan, index, first), out.ctypes.data + (lo + shift) * 4
    if kind == INT8:
        _int8(
            weights, last - first, x.bytes.ctypes.data, x.bytes.strides[0], steps, place, out.strides[0], num
        )
    else:
        address, stride = x.floats.ctypes.data, x.floats.strides[0]
        if kind == BFLOAT16:
            _bfloat16(weights, last - first, address, stride, steps, place, out.strides[0], num)
        else:
            _float32(weights, last - first, address, stride, steps, place, out.strides[0], num)
    row = plan.matrices[index, 3]
    biases = plan.biases[row + lo : row + hi]
    for stream in range(num):
        here = out[stream, lo + shift : hi + shift]
        if kind == INT8:
            scales, sums = plan.scales[row + lo : row + hi], plan.sums[row + lo : row + hi]
            _from_int8(here, scales, sums, biases, x.scales[stream], x.zero)
        else:
            add(here, biases)


@compiled
def _from_int8(y: Any, scales: Any, sums: Any, biases: Any, byte_scale: Any, zero: int) -> None:
    """In place: sums of bytes (int32) to float32."""
    for i in range(y.shape[0]):
        total = as_bits(y[i]) - np.int32(zero) * sums[i]
        y[i] = np.float32(total) * (scales[i] * byte_scale) + biases[i]
