"""Recurrent cells of the frame-level tiers, behind one interface.

An `RNN` maps ``[B, F, dim]`` and a state ``[B, S, n_rnn, dim]`` to the same shapes; S counts the vectors
that a layer carries (1 for GRU, 2 for LSTM: hidden, then cell). The batch is always the first
dimension of a state, so that rows can be reset, copied and moved without knowing the cell.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samplernn.config import ModelConfig

_CELLS: dict[str, type[nn.GRU] | type[nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """`n_rnn` stacked layers of one cell, with the state that a segment starts from.

    Args:
        config: takes `rnn`, `n_rnn`, `dim`, `learn_h0`, `forget_bias`, `rnn_weight_norm`.
        input_size: numbers that enter per step; None: `dim`.
    """

    def __init__(self, config: ModelConfig, input_size: int | None = None) -> None:
        super().__init__()
        self.layers = _CELLS[config.rnn](input_size or config.dim, config.dim, config.n_rnn, batch_first=True)
        self.is_lstm = config.rnn == "lstm"
        h0 = torch.zeros(2 if self.is_lstm else 1, config.n_rnn, config.dim)
        self.h0: Tensor
        if config.learn_h0:
            self.h0 = nn.Parameter(h0)
        else:
            self.register_buffer("h0", h0)
        initialise(self.layers, config.forget_bias)
        self.g: nn.ParameterDict | None = None
        """With weight norm, the length of each row of each matrix, by the matrix's name."""
        if config.rnn_weight_norm:
            matrices = {name: p for name, p in self.layers.named_parameters() if name.startswith("weight")}
            self.g = nn.ParameterDict({name: p.detach().norm(dim=1) for name, p in matrices.items()})

    def weights(self, layer: int) -> list[Tensor]:
        """What a layer computes with: weights of input and hidden vector, then their biases."""
        names = (f"{name}_l{layer}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        return [self._effective(name) for name in names]

    def _effective(self, name: str) -> Tensor:
        """One of the layers' parameters, with the weight norm multiplied out if it has one."""
        parameter: Tensor = getattr(self.layers, name)
        if self.g is None or name not in self.g:
            return parameter
        return torch._weight_norm(parameter, self.g[name][:, None])

    @torch.no_grad()
    def fold(self) -> None:
        """Multiply the weight norm out, in place."""
        for name in self.g or ():
            getattr(self.layers, name).copy_(self._effective(name))
        self.g = None

    def recurrent_parameters(self) -> list[nn.Parameter]:
        """The hidden-to-hidden matrices of all layers (with weight norm: their lengths too)."""
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
            The top layer's hidden vectors ``[B, F, dim]`` and the state after the last frame.
        """
        if x.device.type == "cpu" and torch.is_grad_enabled() and isinstance(self.layers, nn.GRU):
            return self._train_on_cpu(x, state, self.layers)
        return self._through_torch(x, state)

    def _through_torch(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` by PyTorch's own layers."""
        vectors = state.to(x.dtype).permute(1, 2, 0, 3).contiguous()  # [S, n_rnn, B, dim]
        if self.g is not None:
            hidden, *last = self._with_weight_norm(x, vectors)
        elif self.is_lstm:
            hidden, last = self.layers(x, (vectors[0], vectors[1]))
        else:
            hidden, *last = self.layers(x, vectors[0])
        return hidden, torch.stack(list(last)).permute(2, 0, 1, 3)

    def _with_weight_norm(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, ...]:
        """PyTorch's layers on other weights than those that they hold: hidden vectors, then the last of each
        kind."""
        flat = [weight for layer in range(self.layers.num_layers) for weight in self.weights(layer)]
        options = (True, self.layers.num_layers, 0.0, self.training, False, True)
        if self.is_lstm:
            found: tuple[Tensor, ...] = torch.lstm(x, tuple(vectors), flat, *options)
        else:
            found = torch.gru(x, vectors[0], flat, *options)
        return found

    def _train_on_cpu(self, x: Tensor, state: Tensor, layers: nn.GRU) -> tuple[Tensor, Tensor]:
        """The same through `GRULayer`, which is faster there."""
        is_mixed = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if is_mixed else x.dtype
        hidden, last = x.transpose(0, 1), []  # [F, B, input_size]
        for layer in range(layers.num_layers):
            hidden = GRULayer.apply(hidden, state[:, 0, layer], dtype, *self.weights(layer))
            last.append(hidden[-1])
        return hidden.transpose(0, 1), torch.stack(last, dim=1)[:, None]


class GRULayer(torch.autograd.Function):
    """A layer of `nn.GRU` for training on a CPU: products of all steps at once where that is possible.

    PyTorch's own backward multiplies out and adds up the gradient of the recurrent weights step by step, each
    time a whole matrix for a few rows. Here the steps do only what depends on the step before. Products
    are in `dtype`; hidden vectors and gates stay in the parameters' precision, also when that is bfloat16.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        dtype: torch.dtype,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor,
        bias_hh: Tensor,
    ) -> Tensor:
        """
        Args:
            ctx: for the backward pass.
            x: ``[F, B, input_size]``.
            h0: ``[B, dim]``.
            dtype: of the products.
            weight_ih: ``[3 dim, input_size]``; reset, update, new.
            weight_hh: ``[3 dim, dim]``, alike.
            bias_ih: ``[3 dim]``.
            bias_hh: alike.

        Returns:
            Hidden vectors, ``[F, B, dim]``, in the parameters' precision.
        """
        num_frames, batch, dim = *x.shape[:2], weight_hh.shape[1]
        x, weights_x, weights_h = x.to(dtype).contiguous(), weight_ih.to(dtype), weight_hh.to(dtype)
        gates_x = F.linear(x.flatten(0, 1), weights_x).view(num_frames, batch, -1) + bias_ih  # [F, B, 3 dim]
        hidden = gates_x.new_empty(num_frames + 1, batch, dim)
        hidden[0] = h0
        reset_update = gates_x.new_empty(num_frames, batch, 2 * dim)
        new, new_h = gates_x.new_empty(2, num_frames, batch, dim)
        for t in range(num_frames):
            gates_h = F.linear(hidden[t].to(dtype), weights_h) + bias_hh
            torch.sigmoid(gates_x[t, :, : 2 * dim] + gates_h[:, : 2 * dim], out=reset_update[t])
            new_h[t] = gates_h[:, 2 * dim :]
            candidate = torch.addcmul(gates_x[t, :, 2 * dim :], reset_update[t, :, :dim], new_h[t])
            torch.tanh(candidate, out=new[t])
            torch.lerp(new[t], hidden[t], reset_update[t, :, dim:], out=hidden[t + 1])
        ctx.save_for_backward(x, weights_x, weights_h, hidden, reset_update, new, new_h)
        return hidden[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of all but the dtype."""
        x, weights_x, weights_h, hidden, reset_update, new, new_h = ctx.saved_tensors
        dim, dtype, before = hidden.shape[2], x.dtype, hidden[:-1]
        reset, update = reset_update[..., :dim], reset_update[..., dim:]
        # What a change of each gate's sum does to the hidden vector, for all steps at once.
        of_new = (1 - update) * (1 - new * new)
        of_update = (before - new) * update * (1 - update)
        of_reset = new_h * reset * (1 - reset)
        grad_gates_h = x.new_empty(*x.shape[:2], 3 * dim)
        grad_new = torch.empty_like(of_new)
        carried = torch.zeros_like(hidden[0])
        for t in range(len(x) - 1, -1, -1):
            carried = carried + grad[t]
            torch.mul(carried, of_new[t], out=grad_new[t])
            gates = grad_gates_h[t]
            gates[:, :dim] = grad_new[t] * of_reset[t]
            gates[:, dim : 2 * dim] = carried * of_update[t]
            gates[:, 2 * dim :] = grad_new[t] * reset[t]
            carried = torch.addcmul((gates @ weights_h).to(carried.dtype), carried, update[t])
        flat_h = grad_gates_h.flatten(0, 1)
        flat_x = flat_h.clone()
        flat_x[:, 2 * dim :] = grad_new.flatten(0, 1)
        return (
            (flat_x @ weights_x).view_as(x).to(hidden.dtype) if ctx.needs_input_grad[0] else None,
            carried,
            None,
            (flat_x.t() @ x.flatten(0, 1)).to(hidden.dtype),
            (flat_h.t() @ before.flatten(0, 1).to(dtype)).to(hidden.dtype),
            flat_x.sum(0, dtype=hidden.dtype),
            flat_h.sum(0, dtype=hidden.dtype),
        )


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
