"""A network's weights as the CPU engine's program wants them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samplernn.generation.engines.base import projection, round_up
from samplernn.generation.engines.cpu_kernels import ALIGNMENT, PER_STEP, STEPS
from samplernn.generation.engines.cpu_plan import BFLOAT16, CELLS, FLOAT32, INT8, ROWS, Plan
from samplernn.model.cells import RecurrentLayer
from samplernn.model.cells.echo_state import EchoState
from samplernn.model.cells.pointwise import PointwiseCell
from samplernn.model.cells.rnn_relu import UPPER_BOUND, ReluRNN
from samplernn.model.cells.rnn_tanh import TanhRNN
from samplernn.model.cells.torch_layer import TorchLayer
from samplernn.model.network import SampleRNN

KINDS = {"float32": FLOAT32, "bfloat16": BFLOAT16, "int8": INT8}


class PackedNetwork:
    """Packed weights, and the memory that they are in.

    Args:
        model: with weight norm folded, float32, on the CPU.
        dtype: of all matrices but those that read frames, which are small and stay float32.
    """

    def __init__(self, model: SampleRNN, dtype: str) -> None:
        config = model.config
        matrices = _Matrices()
        gates = len(model.tiers()[0].rnn.cell_class.gates)
        self.units = round_up(config.dim, ROWS)
        coefficients = np.zeros((len(config.frame_sizes), config.n_rnn, 3, self.units), np.float32)
        for level, tier in enumerate(model.tiers()):
            is_projected = tier.input_projection is not None
            matrices.add(*projection(tier, config.dim), 1, "float32")
            for layer, cell in enumerate(tier.rnn.cells()):
                of_input, of_hidden = _weights(cell)
                # Of a frame as it is, the matrix is as small as a projection, which it stands for.
                matrices.add(*of_input, gates, dtype if is_projected or layer else "float32")
                matrices.add(*of_hidden, gates, dtype)
                for index, values in enumerate(_coefficients(cell)):
                    coefficients[level, layer, index, : config.dim] = values.detach().numpy()
            matrices.add(tier.upsampling.weight, tier.upsampling.bias, tier.ratio, dtype)
        mlp = model.sample_level_mlp
        matrices.add(mlp.hidden.weight, mlp.hidden.bias, 1, dtype)
        matrices.add(mlp.output.weight, mlp.output.bias, 1, dtype)
        self.codes = round_up(config.q_levels, ROWS)
        self._memory, entries = matrices.in_memory()
        table = _padded(mlp.table().detach().numpy(), -1, ROWS)
        is_wide = dtype == "float32"
        self.plan = Plan(
            frame_sizes=np.array(config.frame_sizes, np.int64),
            q_levels=config.q_levels,
            n_rnn=config.n_rnn,
            cell=CELLS[config.rnn],
            gates=gates,
            has_recurrent=len(model.tiers()[0].rnn.cells()[0].recurrent_blocks()) > 0,
            blocks=self.units // ROWS,
            q_blocks=self.codes // ROWS,
            has_int8=dtype == "int8",
            matrices=entries,
            scales=np.concatenate(matrices.scales),
            sums=np.concatenate(matrices.sums),
            biases=np.concatenate(matrices.biases),
            coefficients=coefficients,
            table=(table.astype(np.float32) if is_wide else to_bfloat16(table)).view(np.uint8),
            is_wide=is_wide,
        )


def _weights(cell: RecurrentLayer) -> list[tuple[Tensor, Tensor]]:
    """Input and recurrent weights, each with its bias; without recurrent ones an empty matrix."""
    if isinstance(cell, TorchLayer):
        weight_ih, weight_hh, bias_ih, bias_hh = cell.weights()
        return [(weight_ih, bias_ih), (weight_hh, bias_hh)]
    assert isinstance(cell, PointwiseCell)
    (recurrent,) = cell.matrices() or (cell.weight_ih.new_empty(0, cell.dim),)
    return [(cell.weight_ih, cell.bias), (recurrent, recurrent.new_zeros(len(recurrent)))]


def _coefficients(cell: RecurrentLayer) -> tuple[Tensor, ...]:
    """`Plan.coefficients` of one layer."""
    if isinstance(cell, TanhRNN):
        return (torch.ones(cell.dim),)
    if isinstance(cell, ReluRNN):
        return (torch.full((cell.dim,), UPPER_BOUND),)
    if isinstance(cell, EchoState):
        return (torch.full((cell.dim,), cell.leak),)
    return cell.coefficients() if isinstance(cell, PointwiseCell) else ()


class _Matrices:
    """Collects matrices, then puts them into memory one after the other."""

    def __init__(self) -> None:
        self.scales: list[NDArray[np.float32]] = []
        self.sums: list[NDArray[np.int32]] = []
        self.biases: list[NDArray[np.float32]] = []
        self._packed: list[NDArray[np.uint8]] = []
        self._entries: list[tuple[int, int, int]] = []  # kind, steps, rows

    def add(self, weight: Tensor, bias: Tensor | None, parts: int, dtype: str) -> None:
        """Add a matrix.

        Args:
            weight: ``[parts * rows, inputs]``.
            bias: ``[parts * rows]``.
            parts: gates or steps, each of which begins at a block of its own.
            dtype: to store it in.
        """
        split = weight.detach().numpy().reshape(parts, -1, weight.shape[1])
        padded = _padded(_padded(split, 1, ROWS), 2, STEPS * PER_STEP[dtype])
        full = _by_block(padded).reshape(-1, padded.shape[2])  # [rows, inputs]
        rows, inputs = full.shape
        scales, sums = np.ones(rows, np.float32), np.zeros(rows, np.int32)
        stored: NDArray[Any]
        if dtype == "int8":
            scales = (np.maximum(np.abs(full).max(axis=1), 1e-30) / 127).astype(np.float32)
            stored = np.rint(full / scales[:, None]).astype(np.int8)
            sums = stored.sum(axis=1, dtype=np.int32)
        else:
            stored = to_bfloat16(full) if dtype == "bfloat16" else full.astype(np.float32)
        self._packed.append(pack(stored, PER_STEP[dtype]))
        self._entries.append((KINDS[dtype], inputs // PER_STEP[dtype], rows))
        self.scales.append(scales)
        self.sums.append(sums)
        assert bias is not None
        biases = _by_block(_padded(bias.detach().numpy().reshape(parts, -1), 1, ROWS))
        self.biases.append(biases.reshape(-1).astype(np.float32))

    def in_memory(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """All packed matrices, aligned, and `Plan.matrices`."""
        memory = np.empty(sum(len(one) for one in self._packed) + ALIGNMENT, np.uint8)
        place = -memory.ctypes.data % ALIGNMENT
        row, entries = 0, []
        for packed, (kind, steps, rows) in zip(self._packed, self._entries, strict=True):
            memory[place : place + len(packed)] = packed
            entries.append((kind, memory.ctypes.data + place, steps, row, rows // ROWS))
            place += len(packed)
            row += rows
        return memory, np.array(entries, np.int64)


def pack(stored: NDArray[np.generic], per_step: int) -> NDArray[np.uint8]:
    """Reorder a matrix ``[rows, inputs]`` as `cpu_kernels` describes, to bytes."""
    rows, inputs = stored.shape
    blocks = stored.reshape(rows // ROWS, 4, ROWS // 4, inputs // per_step, per_step)
    ordered = blocks.transpose(0, 3, 1, 2, 4)  # [block, step, vector, row, weight]
    return np.ascontiguousarray(ordered).reshape(-1).view(np.uint8)


def _by_block(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """From ``[parts, rows, …]`` to ``[blocks, parts, ROWS, …]``: what a thread works on lies in one piece."""
    parts, count = rows.shape[:2]
    return rows.reshape(parts, count // ROWS, ROWS, *rows.shape[2:]).swapaxes(0, 1)


def to_bfloat16(x: NDArray[np.floating]) -> NDArray[np.uint16]:
    """Round to the nearest bfloat16, ties to even; any shape."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def _padded(x: NDArray[np.float32], axis: int, unit: int) -> NDArray[np.float32]:
    """Zeros at the end of an axis, to a multiple of `unit`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % unit)
    return np.pad(x, widths)
