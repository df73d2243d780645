"""What Numba has no words for, as LLVM instructions: packed matrix products, bit patterns, atomics.

A packed matrix is a sequence of blocks of 64 rows, a block a sequence of steps along the input, a
step four vectors of 64 bytes. A vector belongs to 16 rows and holds, for each, as many neighbouring
weights as fit into four bytes (`PER_STEP`). So a product reads every weight once, in order, and never has
to add up the lanes of a vector::

    float32     1 weight  per row and step     fused multiply-add
    bfloat16    2 weights per row and step     widened to float32 on the way
    int8        4 weights per row and step     times unsigned bytes, summed as int32: exact in any order

A float product adds along the input in one fixed order, whatever the number of streams, so a stream is
the same to the last bit alone and among others.

Vectors are written 16 lanes wide and LLVM splits them for narrower machines. What it does not find by
itself, the dot product of four bytes (`vpdpbusd`), is named where the processor has it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from samplernn.generation.engines.cpu_plan import ROWS

STEPS = 4
"""Steps come in multiples of this."""
PER_STEP = {"float32": 1, "bfloat16": 2, "int8": 4}
"""Inputs of a step: weights in four bytes."""
ALIGNMENT = 64
"""Bytes; of every packed matrix."""

_LANES = 16
_VECTORS = ROWS // _LANES
_BYTE, _INT, _LONG, _FLOAT = ir.IntType(8), ir.IntType(32), ir.IntType(64), ir.FloatType()
_INTS, _FLOATS = ir.VectorType(_INT, _LANES), ir.VectorType(_FLOAT, _LANES)

Values = Sequence[Any]
Multiply = Callable[[Any, Values, Any, Any, Values], Values]
"""(builder, a step's vectors, address of the input, step, sums so far) to the new sums."""


def dot_instruction() -> str:
    """The processor's dot product of four unsigned and four signed bytes: avx512, avx or none."""
    features = dict(llvm.get_host_cpu_features())
    if config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES: compile as for another processor
        features = {name[1:]: name[0] == "+" for name in config.CPU_FEATURES.split(",") if name}
    if features.get("avx512vnni"):
        return "avx512"
    return "avx" if features.get("avxvnni") else "none"


def matrix_product(dtype: str, streams: int, dot: str = "none", blocks: int = 1) -> Any:
    """A function for Numba: a block of a packed matrix times the inputs of some streams.

    A sum has to wait for the one before it, so a single stream needs more sums than a block has vectors to
    keep the processor busy. Sums of integers are split by steps: the weights are then read in one sequence,
    which caches deliver fastest. Floats would add up to something else, and take two blocks side by side.

    Args:
        dtype: of the weights.
        streams: inputs side by side; each weight that is read serves all of them.
        dot: for int8, see `dot_instruction`.
        blocks: adjacent blocks side by side.

    Returns:
        ``kernel(weights, x, x_stride, steps, out, out_stride)``, all int64: addresses of the first block, the
        first input and the first output, and the bytes from one stream's to the next. Inputs are float32,
        or unsigned bytes for int8; outputs are 64 float32 per block, or int32 for int8.
    """
    multiply = {"float32": _multiply_float32, "bfloat16": _multiply_bfloat16, "int8": _MULTIPLY_INT8[dot]}[
        dtype
    ]
    is_split = dtype == "int8" and streams == 1
    shape = _Shape(streams, blocks, STEPS if is_split else 1, 2 if is_split else 1)
    sums = _INTS if dtype == "int8" else _FLOATS

    @intrinsic
    def kernel(
        typing: Any, weights: Any, x: Any, x_stride: Any, steps: Any, out: Any, out_stride: Any
    ) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            _product_loop(builder, multiply, sums, shape, arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), generate

    return kernel


class _Shape(NamedTuple):
    """What one turn of the loop does."""

    streams: int
    blocks: int
    steps: int
    chains: int
    """Sums that take steps by turns, and are added up at the end."""


def _product_loop(
    builder: Any, multiply: Multiply, sum_type: Any, shape: _Shape, arguments: Sequence[Any]
) -> None:
    """for step in range(steps): sums += weights[step] * x[step]; then store the sums."""
    weights, x, x_stride, steps, out, out_stride = arguments
    per_chain = shape.blocks * shape.streams * _VECTORS

    def turn(first: Any, before: Values) -> Values:
        sums = list(before)  # of the first chain, then of the others
        for index in range(shape.steps):
            step, chain = builder.add(first, _LONG(index)), index % shape.chains * per_chain
            for block in range(shape.blocks):
                here = builder.add(weights, builder.mul(steps, _LONG(4 * ROWS * block)))
                here = builder.add(here, builder.mul(step, _LONG(4 * ROWS)))
                vectors = [_load(builder, here, ALIGNMENT * v, _INTS, ALIGNMENT) for v in range(_VECTORS)]
                for stream in range(shape.streams):
                    mine = builder.add(x, builder.mul(x_stride, _LONG(stream)))
                    begin = chain + (block * shape.streams + stream) * _VECTORS
                    part = slice(begin, begin + _VECTORS)
                    sums[part] = multiply(builder, vectors, mine, step, sums[part])
        return sums

    zeros = [ir.Constant(sum_type, None)] * (shape.chains * per_chain)
    sums = loop(builder, steps, shape.steps, zeros, turn)
    for index in range(per_chain):
        value = sums[index]
        for other in sums[index + per_chain :: per_chain]:
            value = builder.add(value, other)
        rest, vector = divmod(index, _VECTORS)
        block, stream = divmod(rest, shape.streams)
        place = builder.add(out, builder.mul(out_stride, _LONG(stream)))
        place = builder.add(place, _LONG(4 * (ROWS * block + _LANES * vector)))
        builder.store(value, builder.inttoptr(place, sum_type.as_pointer()), align=4)


def loop(builder: Any, end: Any, step: int, initial: Values, turn: Callable[[Any, Values], Values]) -> Values:
    """Instructions for: values = initial; for index in range(0, end, step): values = turn(index, values).

    Args:
        builder: of the instructions.
        end: int64, above 0: the first turn is always taken.
        step: of the index.
        initial: values before the first turn.
        turn: makes the instructions of a turn.

    Returns:
        The values after the last turn.
    """
    before = builder.basic_block
    inside, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(inside)
    builder.position_at_end(inside)
    index, values = builder.phi(_LONG), [builder.phi(value.type) for value in initial]
    lasts = turn(index, values)
    following = builder.add(index, _LONG(step))
    builder.cbranch(builder.icmp_signed("<", following, end), inside, after)
    for phi, first, last in zip([index, *values], [_LONG(0), *initial], [following, *lasts], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, inside)
    builder.position_at_end(after)
    return lasts


def row_sum(dtype: str) -> Any:
    """A function for Numba: 64 numbers of a vector plus those of one row of each of several tables.

    Args:
        dtype: of the tables: float32 or bfloat16.

    Returns:
        ``kernel(start, tables, table_stride, row_stride, rows, count, out)``, all int64: addresses of the
        vector and of the first table; bytes from one table to the next and from row to row; address of the
        row numbers (int64), how many they are, and address of the result, float32.
    """
    lanes = ir.VectorType(ir.IntType(16), _LANES)

    def load(builder: Any, address: Any, vector: int) -> Any:
        if dtype == "float32":
            return _load(builder, address, ALIGNMENT * vector, _FLOATS, 4)
        half = _load(builder, address, ALIGNMENT // 2 * vector, lanes, 2)
        return builder.bitcast(builder.shl(builder.zext(half, _INTS), _constant(16)), _FLOATS)

    @intrinsic
    def kernel(
        typing: Any,
        start: Any,
        tables: Any,
        table_stride: Any,
        row_stride: Any,
        rows: Any,
        count: Any,
        out: Any,
    ) -> tuple[Any, Any]:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            start, tables, table_stride, row_stride, rows, count, out = arguments

            def turn(index: Any, sums: Values) -> Values:
                row = _load(builder, _at(builder, rows, index, 8), 0, _LONG, 8)
                here = builder.add(tables, builder.mul(index, table_stride))
                here = builder.add(here, builder.mul(row, row_stride))
                return [builder.fadd(total, load(builder, here, v)) for v, total in enumerate(sums)]

            vectors = [_load(builder, start, ALIGNMENT * v, _FLOATS, 4) for v in range(_VECTORS)]
            for v, value in enumerate(loop(builder, count, 1, vectors, turn)):
                place = builder.inttoptr(builder.add(out, _LONG(ALIGNMENT * v)), _FLOATS.as_pointer())
                builder.store(value, place, align=4)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return kernel


def _multiply_float32(builder: Any, vectors: Values, x: Any, step: Any, sums: Values) -> Values:
    value = _broadcast(builder, _load(builder, _at(builder, x, step, 4), 0, _FLOAT, 4), _FLOATS)
    return [_fma(builder, builder.bitcast(v, _FLOATS), value, s) for v, s in zip(vectors, sums, strict=True)]


def _multiply_bfloat16(builder: Any, vectors: Values, x: Any, step: Any, sums: Values) -> Values:
    """A bfloat16 is the upper half of a float32: shift the lower of a pair up, cut the upper out."""
    pair = _at(builder, x, step, 8)
    low, high = (_broadcast(builder, _load(builder, pair, 4 * i, _FLOAT, 4), _FLOATS) for i in (0, 1))
    new = []
    for vector, total in zip(vectors, sums, strict=True):
        weights = builder.bitcast(builder.shl(vector, _constant(16)), _FLOATS)
        total = _fma(builder, weights, low, total)
        weights = builder.bitcast(builder.and_(vector, _constant(0xFFFF0000)), _FLOATS)
        new.append(_fma(builder, weights, high, total))
    return new


def _multiply_int8(builder: Any, vectors: Values, x: Any, step: Any, sums: Values) -> Values:
    """Any processor: byte by byte in lanes of 32 bits."""
    quad, new = _at(builder, x, step, 4), list(sums)
    for byte in range(4):
        value = builder.zext(_load(builder, quad, byte, _BYTE, 1), _INT)
        inputs = _broadcast(builder, value, _INTS)
        for index, vector in enumerate(vectors):
            weights = builder.ashr(builder.shl(vector, _constant(24 - 8 * byte)), _constant(24))
            new[index] = builder.add(new[index], builder.mul(weights, inputs))
    return new


def _multiply_int8_avx512(builder: Any, vectors: Values, x: Any, step: Any, sums: Values) -> Values:
    """Four bytes of 16 rows per instruction."""
    dot = _function(builder, "llvm.x86.avx512.vpdpbusd.512", _INTS)
    quad = _broadcast(builder, _load(builder, _at(builder, x, step, 4), 0, _INT, 4), _INTS)
    return [builder.call(dot, (s, quad, v)) for v, s in zip(vectors, sums, strict=True)]


def _multiply_int8_avx(builder: Any, vectors: Values, x: Any, step: Any, sums: Values) -> Values:
    """Four bytes of 8 rows per instruction."""
    half = ir.VectorType(_INT, _LANES // 2)
    dot = _function(builder, "llvm.x86.avx512.vpdpbusd.256", half)
    quad = _broadcast(builder, _load(builder, _at(builder, x, step, 4), 0, _INT, 4), half)
    new = []
    for vector, total in zip(vectors, sums, strict=True):
        parts = []
        for first in (0, _LANES // 2):
            lanes = ir.Constant(half, list(range(first, first + _LANES // 2)))
            rows, part = (builder.shuffle_vector(whole, whole, lanes) for whole in (vector, total))
            parts.append(builder.call(dot, (part, quad, rows)))
        everything = ir.Constant(_INTS, list(range(_LANES)))
        new.append(builder.shuffle_vector(parts[0], parts[1], everything))
    return new


_MULTIPLY_INT8 = {"none": _multiply_int8, "avx": _multiply_int8_avx, "avx512": _multiply_int8_avx512}


def _at(builder: Any, base: Any, index: Any, size: int) -> Any:
    return builder.add(base, builder.mul(index, _LONG(size)))


def _load(builder: Any, address: Any, offset: int, kind: Any, align: int) -> Any:
    place = builder.inttoptr(builder.add(address, _LONG(offset)), kind.as_pointer())
    return builder.load(place, align=align)


def _broadcast(builder: Any, scalar: Any, vector: Any) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, _INT(0))
    lanes = ir.Constant(ir.VectorType(_INT, vector.count), None)
    return builder.shuffle_vector(first, undefined, lanes)


def _constant(value: int) -> Any:
    return ir.Constant(_INTS, [value] * _LANES)


def _fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    return builder.call(_function(builder, "llvm.fma.v16f32", _FLOATS), (a, b, c))


def _function(builder: Any, name: str, kind: Any) -> Any:
    return builder.module.declare_intrinsic(name, (), ir.FunctionType(kind, (kind, kind, kind)))


@intrinsic
def as_float(typing: Any, bits: Any) -> tuple[Any, Any]:
    """The float32 that these 32 bits are."""
    return types.float32(types.int32), lambda c, builder, s, args: builder.bitcast(args[0], _FLOAT)


@intrinsic
def as_bits(typing: Any, value: Any) -> tuple[Any, Any]:
    """The bits of a float32 as int32."""
    return types.int32(types.float32), lambda c, builder, s, args: builder.bitcast(args[0], _INT)


@intrinsic
def atomic_increment(typing: Any, address: Any) -> tuple[Any, Any]:
    """Add one to the int64 at an address, for all threads to see."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.atomic_rmw("add", place, _LONG(1), "acq_rel")

    return types.int64(types.int64), generate


@intrinsic
def atomic_load(typing: Any, address: Any) -> tuple[Any, Any]:
    """The int64 at an address, as other threads have left it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _LONG.as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), generate
