"""Cells with gates that PyTorch does not have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from samplernn.config import ModelConfig
from samplernn.model.cells.recurrence import Pointwise, PointwiseCell


class PeepholeLSTM(PointwiseCell):
    """``lstm-peephole``: an LSTM whose gates see the cell state (Gers & Schmidhuber, 2000, "Recurrent
    nets that time and count", IJCNN; Gers, Schraudolph & Schmidhuber, 2002, JMLR 3).

    ::

        i_t = sigmoid(W_i x_t + U_i h_{t-1} + p_i * c_{t-1} + b_i)
        f_t = sigmoid(W_f x_t + U_f h_{t-1} + p_f * c_{t-1} + b_f)
        c_t = f_t * c_{t-1} + i_t * tanh(W_c x_t + U_c h_{t-1} + b_c)
        o_t = sigmoid(W_o x_t + U_o h_{t-1} + p_o * c_t + b_o)
        h_t = o_t * tanh(c_t)

    Each gate sees its own unit's state only. `recurrent_input: false` leaves all U out: then the state is all
    that a unit knows of the past. W LeCun-uniform, U orthogonal per gate, p zero, so that it begins as an
    `lstm`; b zero but for b_f, `forget_bias`.
    """

    vectors = 2
    gates = ("input", "forget", "cell", "output")

    def __init__(self, config: ModelConfig, in_features: int) -> None:
        super().__init__(config, in_features)
        self.has_recurrent_input = config.recurrent_input
        self.peepholes = nn.Parameter(torch.zeros(3, config.dim))  # input, forget, output
        with torch.no_grad():
            self.bias[config.dim : 2 * config.dim] = config.forget_bias

    @classmethod
    def recurrent_gates(cls, config: ModelConfig) -> int:
        return 4 if config.recurrent_input else 0

    def pointwise(self) -> tuple[Pointwise, ...]:
        return (_peephole,)

    def matrices(self) -> tuple[Tensor, ...]:
        return super().matrices() if self.has_recurrent_input else ()

    def coefficients(self) -> tuple[Tensor, ...]:
        return self.peepholes.unbind()


class ResetBeforeGRU(PointwiseCell):
    """``gru-reset-before``: the GRU as it was published (Cho et al., 2014, arXiv:1406.1078) and as the
    original SampleRNN has it, the reset gate before the recurrent product.

    ::

        r_t = sigmoid(W_r x_t + U_r h_{t-1} + b_r)
        z_t = sigmoid(W_z x_t + U_z h_{t-1} + b_z)
        n_t = tanh(W_n x_t + U_n (r_t * h_{t-1}) + b_n)
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    (`gru` multiplies first: r_t * (U_n h_{t-1} + d_n). The original's update gate is 1 - z_t, the same up to
    a sign.) W LeCun-uniform, U orthogonal per gate, b zero.
    """

    gates = ("reset", "update", "new")

    def pointwise(self) -> tuple[Pointwise, ...]:
        return _reset, _update

    def matrices(self) -> tuple[Tensor, ...]:
        (matrix,) = super().matrices()
        return matrix[: 2 * self.dim], matrix[2 * self.dim :]


def _peephole(
    gates: Tensor, sums: Sequence[Tensor], before: Tensor, to_in: Tensor, to_keep: Tensor, to_out: Tensor
) -> Tensor:
    if sums:
        gates = gates + sums[0]
    open_in, keep, new, open_out = gates.unbind(dim=-2)
    cell = before[..., 1, :]
    open_in, keep = (open_in + to_in * cell).sigmoid(), (keep + to_keep * cell).sigmoid()
    cell = keep * cell + open_in * new.tanh()
    return torch.stack([(open_out + to_out * cell).sigmoid() * cell.tanh(), cell], dim=-2)


def _reset(gates: Tensor, sums: Sequence[Tensor], before: Tensor) -> Tensor:
    return (gates[..., :1, :] + sums[0][..., :1, :]).sigmoid() * before


def _update(gates: Tensor, sums: Sequence[Tensor], before: Tensor) -> Tensor:
    update = (gates[..., 1:2, :] + sums[0][..., 1:, :]).sigmoid()
    return torch.lerp((gates[..., 2:, :] + sums[1]).tanh(), before, update)
