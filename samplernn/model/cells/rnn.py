"""The recurrent part of a frame-level tier: layers of one cell, with the state that a segment starts from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samplernn.config import CellName, ModelConfig
from samplernn.model.cells.echo_state import EchoState
from samplernn.model.cells.gru import GRU
from samplernn.model.cells.gru_reset_before import ResetBeforeGRU
from samplernn.model.cells.leaky import Leaky
from samplernn.model.cells.lstm import LSTM
from samplernn.model.cells.lstm_peephole import PeepholeLSTM
from samplernn.model.cells.mingru import MinGRU
from samplernn.model.cells.pointwise import PointwiseCell, Product
from samplernn.model.cells.rnn_relu import ReluRNN
from samplernn.model.cells.rnn_tanh import TanhRNN
from samplernn.model.cells.torch_layer import TorchLayer
from samplernn.model.weights import row_lengths

CELLS: dict[CellName, type[TorchLayer] | type[PointwiseCell]] = {
    "gru": GRU,
    "lstm": LSTM,
    "rnn-tanh": TanhRNN,
    "rnn-relu": ReluRNN,
    "lstm-peephole": PeepholeLSTM,
    "gru-reset-before": ResetBeforeGRU,
    "leaky": Leaky,
    "echo-state": EchoState,
    "mingru": MinGRU,
}
"""Every cell by its name."""

RecurrentLayer = TorchLayer | PointwiseCell
"""One layer of any cell."""


class RNN(nn.Module):
    """`n_rnn` layers of one cell: ``[B, F, input_size]``, a state ``[B, S, n_rnn, dim]`` to ``[B, F, dim]``
    and the next state.

    S counts the vectors that a layer carries (1, or 2 for LSTMs: hidden, then cell). The batch is always the
    first dimension of a state, so that rows can be reset, copied and moved without knowing the cell.

    With `skip_connections` every layer but the first reads the hidden vector of the one below and, beside it,
    the input of the first, and the output is an affine function of the hidden vectors of all layers (Graves,
    2013, arXiv:1308.0850, equations 1 to 5; `skip_conn` of SampleRNN's original). Its weights are He-uniform.

    Args:
        config: takes `rnn`, `n_rnn`, `dim`, `learn_h0`, `skip_connections`, `rnn_weight_norm`, and what the
            cell says.
        input_size: numbers that enter per step; None: `dim`.
    """

    def __init__(self, config: ModelConfig, input_size: int | None = None) -> None:
        super().__init__()
        dim, n_rnn = config.dim, config.n_rnn
        self.cell_class = cell_class = CELLS[config.rnn]
        self.input_size = input_size or dim
        self.has_skips = config.skip_connections and n_rnn > 1
        above = dim + self.input_size if self.has_skips else dim
        widths = [above if index else self.input_size for index in range(n_rnn)]
        self.layers: nn.RNNBase | nn.ModuleList
        if issubclass(cell_class, PointwiseCell):
            self.layers = nn.ModuleList(cell_class(config, width) for width in widths)
        elif self.has_skips:
            self.layers = nn.ModuleList(cell_class.module(width, dim, batch_first=True) for width in widths)
        else:
            self.layers = cell_class.module(self.input_size, dim, n_rnn, batch_first=True)
        self.g: nn.ParameterDict | None = None
        """With weight norm of PyTorch's modules, the length of each row of each matrix; see `_stacks`."""
        h0 = torch.zeros(cell_class.vectors, n_rnn, dim)
        self.h0: Tensor
        if config.learn_h0:
            self.h0 = nn.Parameter(h0)
        else:
            self.register_buffer("h0", h0)
        for cell in self.cells():
            if isinstance(cell, TorchLayer):
                cell.initialise(config)
        if config.rnn_weight_norm:
            self._add_weight_norm()
        if self.has_skips:
            self.skips = nn.Linear(n_rnn * dim, dim)
            with torch.no_grad():
                bound = math.sqrt(6 / (n_rnn * dim))
                self.skips.weight.uniform_(-bound, bound)
                self.skips.bias.zero_()

    def cells(self) -> list[RecurrentLayer]:
        """The layers, lowest first."""
        layers: Any = self.layers
        if issubclass(self.cell_class, PointwiseCell):
            return list(layers)
        return [
            self.cell_class(stack, index, self.g, prefix)
            for prefix, stack in self._stacks().items()
            for index in range(stack.num_layers)
        ]

    def _stacks(self) -> dict[str, nn.RNNBase]:
        """PyTorch's modules, by what stands before the names of their matrices in `g`."""
        if isinstance(self.layers, nn.RNNBase):
            return {"": self.layers}
        stacks = enumerate(self.layers)
        return {f"{index}_": stack for index, stack in stacks if isinstance(stack, nn.RNNBase)}

    def _add_weight_norm(self) -> None:
        """Give each row of each trained matrix a length of its own, at first the one that it has."""
        if self._stacks():
            self.g = nn.ParameterDict(
                {
                    prefix + name: row_lengths(parameter)
                    for prefix, stack in self._stacks().items()
                    for name, parameter in stack.named_parameters()
                    if name.startswith("weight")
                }
            )
        for cell in self.cells():
            if isinstance(cell, PointwiseCell):
                cell.add_weight_norm()

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the weight norm out, in place."""
        for cell in self.cells():
            cell.fold()
        self.g = None

    def recurrent_parameters(self) -> list[nn.Parameter]:
        """The hidden-to-hidden matrices of all layers, as far as they are trained (with weight norm: their
        lengths too)."""
        return [parameter for name, parameter in self.named_parameters() if "weight_hh" in name]

    def initial_state(self, batch_size: int) -> Tensor:
        """h0 for every row, ``[B, S, n_rnn, dim]``."""
        return self.h0.expand(batch_size, -1, -1, -1)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: ``[B, F, input_size]``.
            state: ``[B, S, n_rnn, dim]``.

        Returns:
            The output of the layers ``[B, F, dim]`` and the state after the last frame.
        """
        if isinstance(self.layers, nn.RNNBase):
            cells: list[Any] = self.cells()
            if not cells[0].is_faster_than_torch(x):
                return cells[0].through_torch(cells, x, state)
        return self._layer_by_layer(x, state, lambda cell, x, state: cell.forward(x, state))

    def plain(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` as one would write it with PyTorch alone: the yardstick for speed."""
        if isinstance(self.layers, nn.RNNBase):
            cells: list[Any] = self.cells()
            return cells[0].through_torch(cells, x, state)
        return self._layer_by_layer(x, state, lambda cell, x, state: cell.plain(x, state))

    def step(self, x: Tensor, state: Tensor, product: Product = F.linear) -> tuple[Tensor, Tensor]:
        """`forward` for one frame, without a dimension for it; changes no argument.

        Args:
            x: ``[B, input_size]``.
            state: ``[B, S, n_rnn, dim]``.
            product: all matrix products go through it.
        """

        def one_step(cell: RecurrentLayer, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
            state = cell.step(cell.project(x, product), state, product)
            return state[:, 0], state

        return self._layer_by_layer(x, state, one_step, product)

    def layer_input(self, x: Tensor, below: Tensor | None) -> Tensor:
        """What a layer reads.

        Args:
            x: input of the first layer, ``[..., input_size]``.
            below: hidden vectors of the layer below, None for the first layer.
        """
        if below is None:
            return x
        return torch.cat([below, x], dim=-1) if self.has_skips else below

    def output(self, hidden: list[Tensor], product: Product = F.linear) -> Tensor:
        """What comes of the hidden vectors of all layers, lowest first, each ``[..., dim]``."""
        if not self.has_skips:
            return hidden[-1]
        return product(torch.cat(hidden, dim=-1), self.skips.weight, self.skips.bias)

    def _layer_by_layer(
        self,
        x: Tensor,
        state: Tensor,
        run: Callable[[RecurrentLayer, Tensor, Tensor], tuple[Tensor, Tensor]],
        product: Product = F.linear,
    ) -> tuple[Tensor, Tensor]:
        hidden: list[Tensor] = []
        states: list[Tensor] = []
        for index, cell in enumerate(self.cells()):
            inputs = self.layer_input(x, hidden[-1] if hidden else None)
            vectors, last = run(cell, inputs, state[:, :, index])
            hidden.append(vectors)
            states.append(last)
        return self.output(hidden, product), torch.stack(states, dim=2)
