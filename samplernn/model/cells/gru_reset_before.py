"""A GRU that resets before it multiplies."""

from __future__ import annotations

import torch
from torch import Tensor

from samplernn.model.cells.pointwise import PointwiseCell, UnitFunction


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

    def functions(self) -> tuple[UnitFunction, ...]:
        return self.reset_hidden, self.next_state

    def matrices(self) -> tuple[Tensor, ...]:
        (matrix,) = super().matrices()
        return matrix[: 2 * self.dim], matrix[2 * self.dim :]

    def reset_hidden(
        self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor
    ) -> Tensor:
        """What U_n multiplies."""
        return (gates[..., :1, :] + sums[0][..., :1, :]).sigmoid() * before

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        update = (gates[..., 1:2, :] + sums[0][..., 1:, :]).sigmoid()
        return torch.lerp((gates[..., 2:, :] + sums[1]).tanh(), before, update)
