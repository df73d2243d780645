"""The recurrent part of a frame-level tier: layers of one cell, with the state that a segment starts from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samplernn.config import ModelConfig
from samplernn.model.cells.base import Cell, Product
from samplernn.model.cells.gated import PeepholeLSTM, ResetBeforeGRU
from samplernn.model.cells.mingru import MinGRU
from samplernn.model.cells.recurrence import PointwiseCell
from samplernn.model.cells.simple import EchoState, Leaky, ReluRNN, TanhRNN
from samplernn.model.cells.torch_backed import GRU, LSTM, initialise, through_torch, trains_on_cpu

_OF_TORCH: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}
_OWN: dict[str, type[PointwiseCell]] = {
    "rnn-tanh": TanhRNN,
    "rnn-relu": ReluRNN,
    "lstm-peephole": PeepholeLSTM,
    "gru-reset-before": ResetBeforeGRU,
    "leaky": Leaky,
    "echo-state": EchoState,
    "mingru": MinGRU,
}


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
        self.input_size = input_size or dim
        self.has_skips = config.skip_connections and n_rnn > 1
        above = dim + self.input_size if self.has_skips else dim
        widths = [above if index else self.input_size for index in range(n_rnn)]
        self.layers: nn.RNNBase | nn.ModuleList
        if config.rnn in _OWN:
            self.layers = nn.ModuleList(_OWN[config.rnn](config, width) for width in widths)
        elif self.has_skips:
            stack = _OF_TORCH[config.rnn]
            self.layers = nn.ModuleList(stack(width, dim, batch_first=True) for width in widths)
        else:
            self.layers = _OF_TORCH[config.rnn](self.input_size, dim, n_rnn, batch_first=True)
        self.g: nn.ParameterDict | None = None
        """With weight norm of PyTorch's layers, the length of each row of each matrix; see `_lengths`."""
        h0 = torch.zeros(self.cells()[0].vectors, n_rnn, dim)
        self.h0: Tensor
        if config.learn_h0:
            self.h0 = nn.Parameter(h0)
        else:
            self.register_buffer("h0", h0)
        for module in self.modules():
            if isinstance(module, nn.RNNBase):
                initialise(module, config.forget_bias)
        if config.rnn_weight_norm:
            self._add_weight_norm()
        if self.has_skips:
            self.skips = nn.Linear(n_rnn * dim, dim)
            with torch.no_grad():
                bound = math.sqrt(6 / (n_rnn * dim))
                self.skips.weight.uniform_(-bound, bound)
                self.skips.bias.zero_()

    def cells(self) -> list[Cell]:
        """The layers, lowest first."""
        if isinstance(self.layers, nn.RNNBase):
            lengths = self._lengths("")
            return [_view(self.layers, index, lengths) for index in range(self.layers.num_layers)]
        return [
            _view(layer, 0, self._lengths(f"{index}_"))
            if isinstance(layer, nn.RNNBase)
            else cast(Cell, layer)
            for index, layer in enumerate(self.layers)
        ]

    def recurrent_parameters(self) -> list[nn.Parameter]:
        """The hidden-to-hidden matrices of all layers, as far as they are trained (with weight norm: their
        lengths too)."""
        return [parameter for name, parameter in self.named_parameters() if "weight_hh" in name]

    def _add_weight_norm(self) -> None:
        """Give each row of each trained matrix a length of its own, at first the one that it has."""
        stacks = {"": self.layers} if isinstance(self.layers, nn.RNNBase) else {}
        if isinstance(self.layers, nn.ModuleList):
            for index, layer in enumerate(self.layers):
                if isinstance(layer, PointwiseCell):
                    layer.add_weight_norm()
                elif isinstance(layer, nn.RNNBase):
                    stacks[f"{index}_"] = layer
        if stacks:
            self.g = nn.ParameterDict(
                {
                    prefix + name: parameter.detach().norm(dim=1)
                    for prefix, stack in stacks.items()
                    for name, parameter in stack.named_parameters()
                    if name.startswith("weight")
                }
            )

    def _lengths(self, prefix: str) -> dict[str, Tensor]:
        """`g` of one of PyTorch's stacks, by the names of its parameters."""
        if self.g is None:
            return {}
        return {name.removeprefix(prefix): g for name, g in self.g.items() if name.startswith(prefix)}

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the weight norm out, in place."""
        for cell in self.cells():
            cell.fold()
        self.g = None

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
        layers = self.layers
        if isinstance(layers, nn.LSTM) or (isinstance(layers, nn.GRU) and not trains_on_cpu(x)):
            return through_torch(layers, x, state, self._lengths(""))
        return self._layer_by_layer(x, state, lambda cell: cell.forward)

    def plain(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` as one would write it with PyTorch alone: the yardstick for speed."""
        if isinstance(self.layers, nn.RNNBase):
            return through_torch(self.layers, x, state, self._lengths(""))
        return self._layer_by_layer(x, state, lambda cell: cell.plain)

    def step(self, x: Tensor, state: Tensor, product: Product = F.linear) -> tuple[Tensor, Tensor]:
        """`forward` for one frame, without a dimension for it; changes no argument.

        Args:
            x: ``[B, input_size]``.
            state: ``[B, S, n_rnn, dim]``.
            product: all matrix products go through it.
        """
        return self._layer_by_layer(
            x, state, lambda cell: lambda x, state: _stepped(cell, x, state, product), product
        )

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
        way: Callable[[Cell], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]],
        product: Product = F.linear,
    ) -> tuple[Tensor, Tensor]:
        hidden: list[Tensor] = []
        states: list[Tensor] = []
        for index, cell in enumerate(self.cells()):
            inputs = self.layer_input(x, hidden[-1] if hidden else None)
            vectors, last = way(cell)(inputs, state[:, :, index])
            hidden.append(vectors)
            states.append(last)
        return self.output(hidden, product), torch.stack(states, dim=2)


def _view(layers: nn.RNNBase, index: int, lengths: dict[str, Tensor]) -> Cell:
    return (LSTM if isinstance(layers, nn.LSTM) else GRU)(layers, index, lengths)


def _stepped(cell: Cell, x: Tensor, state: Tensor, product: Product) -> tuple[Tensor, Tensor]:
    state = cell.step(cell.project(x, product), state, product)
    return state[:, 0], state


class Matrices(NamedTuple):
    """Weights of the large matrices of one tier's recurrent layers."""

    total: int
    trained: int
    """Of them; the others only pass gradients on."""
    of_input: int
    """Of them: multiply the tier's input, not what a layer says."""


def matrices(config: ModelConfig, input_size: int | None = None) -> Matrices:
    """Count what a tier's `RNN` multiplies per step, biases and whatever works unit by unit apart."""
    with torch.device("meta"):
        rnn = RNN(config, input_size)
    weights = {
        name: value
        for name, value in rnn.state_dict(keep_vars=True).items()
        if name.rpartition(".")[2].startswith("weight") and value.dim() == 2
    }
    readers = [weight for name, weight in weights.items() if "weight_ih" in name]
    readers = readers if rnn.has_skips else readers[:1]
    return Matrices(
        sum(weight.numel() for weight in weights.values()),
        sum(weight.numel() for weight in weights.values() if isinstance(weight, nn.Parameter)),
        sum(len(weight) * rnn.input_size for weight in readers),
    )
