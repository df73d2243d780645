"""An LSTM with peepholes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from samplernn.config import ModelConfig
from samplernn.model.cells.pointwise import PointwiseCell


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
        super().__init__(config, in_features, config.recurrent_input)
        self.peepholes = nn.Parameter(torch.zeros(3, config.dim))  # input, forget, output
        with torch.no_grad():
            self.bias[config.dim : 2 * config.dim] = config.forget_bias

    def coefficients(self) -> tuple[Tensor, ...]:
        return self.peepholes.unbind()

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        if sums:
            gates = gates + sums[0]
        open_in, keep, new, open_out = gates.unbind(dim=-2)
        to_in, to_keep, to_out = coefficients
        cell = before[..., 1, :]
        open_in, keep = (open_in + to_in * cell).sigmoid(), (keep + to_keep * cell).sigmoid()
        cell = keep * cell + open_in * new.tanh()
        return torch.stack([(open_out + to_out * cell).sigmoid() * cell.tanh(), cell], dim=-2)
