"""The simple recurrent network."""

from __future__ import annotations

from torch import Tensor

from samplernn.model.cells.pointwise import PointwiseCell


class TanhRNN(PointwiseCell):
    """``rnn-tanh``: the simple recurrent network (Elman, 1990, Cognitive Science 14).

    h_t = tanh(W x_t + U h_{t-1} + b). W LeCun-uniform, U orthogonal, b zero.
    """

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        return (gates + sums[0]).tanh()
