"""Recurrent cells of the frame-level tiers, behind one interface.

An `RNN` maps ``[B, F, dim]`` and a state ``[B, S, n_rnn, dim]`` to the same shapes; S counts the vectors
that a layer carries (1 for GRU, 2 for LSTM: hidden, then cell). The batch is always the first
dimension of a state, so that rows can be reset, copied and moved without knowing the cell.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from samplernn.config import ModelConfig

_CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """`n_rnn` stacked layers of one cell, with the state that a segment starts from.

    Args:
        config: takes `rnn`, `n_rnn`, `dim`, `learn_h0`, `forget_bias`.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = _CELLS[config.rnn](config.dim, config.dim, config.n_rnn, batch_first=True)
        self.is_lstm = config.rnn == "lstm"
        h0 = torch.zeros(2 if self.is_lstm else 1, config.n_rnn, config.dim)
        self.h0: Tensor
        if config.learn_h0:
            self.h0 = nn.Parameter(h0)
        else:
            self.register_buffer("h0", h0)
        initialise(self.layers, config.forget_bias)

    def initial_state(self, batch_size: int) -> Tensor:
        """h0 for every row, ``[B, S, n_rnn, dim]``."""
        return self.h0.expand(batch_size, -1, -1, -1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: ``[B, F, dim]``.
            state: ``[B, S, n_rnn, dim]``.

        Returns:
            The top layer's hidden vectors ``[B, F, dim]`` and the state after the last frame.
        """
        vectors = state.to(x.dtype).permute(1, 2, 0, 3).contiguous()  # [S, n_rnn, B, dim]
        if self.is_lstm:
            hidden, last = self.layers(x, (vectors[0], vectors[1]))
            vectors = torch.stack(last)
        else:
            hidden, last = self.layers(x, vectors[0])
            vectors = last[None]
        return hidden, vectors.permute(2, 0, 1, 3)


@torch.no_grad()
def initialise(layers: nn.RNNBase, forget_bias: float) -> None:
    """LeCun-uniform input weights, orthogonal recurrent block per gate, zero biases.

    The LSTM's forget gate starts at `forget_bias`; PyTorch adds two bias vectors, so one carries
    it and the other stays zero. Gate order in PyTorch's LSTM: input, forget, cell, output.
    """
    dim = layers.hidden_size
    for name, parameter in layers.named_parameters():
        if name.startswith("weight_ih"):
            bound = math.sqrt(3 / parameter.shape[1])
            parameter.uniform_(-bound, bound)
        elif name.startswith("weight_hh"):
            for gate in parameter.split(dim):
                nn.init.orthogonal_(gate)
        else:
            parameter.zero_()
            if isinstance(layers, nn.LSTM) and name.startswith("bias_ih"):
                parameter[dim : 2 * dim] = forget_bias
