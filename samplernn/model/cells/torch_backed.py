"""Cells that PyTorch has: `nn.GRU` and `nn.LSTM` layer by layer, and a GRU that trains faster on a CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samplernn.model.cells.base import Product, lecun_uniform, orthogonal_blocks


class TorchLayer:
    """One layer of `nn.GRU` or `nn.LSTM`; holds no parameters itself.

    Args:
        layers: the stack.
        index: which of its layers.
        lengths: with weight norm, of the rows of the stack's matrices, by name; see `effective`.
    """

    gates: ClassVar[tuple[str, ...]]

    def __init__(self, layers: nn.RNNBase, index: int, lengths: dict[str, Tensor]) -> None:
        self.layers, self.index, self.lengths = layers, index, lengths

    def weights(self) -> tuple[Tensor, ...]:
        """What the layer computes with: weight_ih, weight_hh, bias_ih, bias_hh."""
        return effective(self.layers, self.index, self.lengths)

    def fold(self) -> None:
        """See `Cell`."""
        for name, weight in zip(_names(self.index), self.weights(), strict=True):
            getattr(self.layers, name).copy_(weight)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cell`."""
        return self.plain(x, state)

    def plain(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cell`; for stacks of one layer."""
        hidden, last = through_torch(self.layers, x, state[:, :, None], self.lengths)
        return hidden, last[:, :, 0]

    def project(self, x: Tensor, product: Product = F.linear) -> Tensor:
        """See `Cell`."""
        weight_ih, _, bias_ih, _ = self.weights()
        return product(x, weight_ih, bias_ih)

    def recurrent_blocks(self) -> dict[str, Tensor]:
        """See `Cell`."""
        weight_hh = self.weights()[1]
        return dict(zip(self.gates, weight_hh.split(weight_hh.shape[1]), strict=True))


class GRU(TorchLayer):
    """``gru``: Cho et al., 2014, arXiv:1406.1078, in cuDNN's variant, which multiplies before it resets.

    ::

        r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1} + d_r)
        z_t = sigmoid(W_z x_t + b_z + U_z h_{t-1} + d_z)
        n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + d_n))
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    W LeCun-uniform, U orthogonal per gate, b and d zero. With gradients on a CPU it runs through `GRULayer`.
    """

    vectors: ClassVar[int] = 1
    gates = ("reset", "update", "new")

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """See `Cell`."""
        if not trains_on_cpu(x):
            return self.plain(x, state)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        hidden = GRULayer.apply(x.transpose(0, 1), state[:, 0], dtype, *self.weights())  # [F, B, D]
        return hidden.transpose(0, 1), hidden[-1][:, None]

    def step(self, projected: Tensor, state: Tensor, product: Product = F.linear) -> Tensor:
        """See `Cell`."""
        _, weight_hh, _, bias_hh = self.weights()
        hidden = state[:, 0]
        reset_x, update_x, new_x = projected.chunk(3, dim=1)
        reset_h, update_h, new_h = product(hidden, weight_hh, bias_hh).chunk(3, dim=1)
        new = torch.addcmul(new_x, (reset_x + reset_h).sigmoid(), new_h).tanh()
        return torch.lerp(new, hidden, (update_x + update_h).sigmoid())[:, None]


class LSTM(TorchLayer):
    """``lstm``: Hochreiter & Schmidhuber, 1997, Neural Computation 9, with a forget gate (Gers, Schmidhuber &
    Cummins, 2000, Neural Computation 12).

    ::

        i_t, f_t, o_t = sigmoid(W_i x_t + b_i + U_i h_{t-1} + d_i), …
        c_t = f_t * c_{t-1} + i_t * tanh(W_c x_t + b_c + U_c h_{t-1} + d_c)
        h_t = o_t * tanh(c_t)

    W LeCun-uniform, U orthogonal per gate, b and d zero but for b_f, `forget_bias`. Under autocast on a CPU
    that has no narrow LSTM it is computed as if there were no autocast (see `has_narrow_lstm`).
    """

    vectors: ClassVar[int] = 2
    gates = ("input", "forget", "cell", "output")

    def step(self, projected: Tensor, state: Tensor, product: Product = F.linear) -> Tensor:
        """See `Cell`."""
        _, weight_hh, _, bias_hh = self.weights()
        sums = projected + product(state[:, 0], weight_hh, bias_hh)
        open_in, keep, new, open_out = sums.chunk(4, dim=1)
        cell = torch.addcmul(keep.sigmoid() * state[:, 1], open_in.sigmoid(), new.tanh())
        return torch.stack([open_out.sigmoid() * cell.tanh(), cell], dim=1)


def trains_on_cpu(x: Tensor) -> bool:
    """Whether `GRULayer` is the faster one."""
    return x.device.type == "cpu" and torch.is_grad_enabled()


@functools.cache
def has_narrow_lstm(dtype: torch.dtype) -> bool:
    """Whether PyTorch's LSTM trains on this CPU under autocast to a narrow dtype.

    oneDNN has a bfloat16 LSTM only for processors with AVX-512, and only a failure says so. So it is tried,
    once per process. Draws no random numbers; hooks on what autograd saves are not called.

    Args:
        dtype: that autocast computes products in, such as `torch.bfloat16`.
    """
    cpu, sizes = torch.device("cpu"), ((4, 1), (4, 1), (4,), (4,))
    own_hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    autocast = torch.autocast("cpu", dtype, cache_enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), own_hooks, autocast:
        weights = [torch.zeros(size, device=cpu, requires_grad=True) for size in sizes]
        state = torch.zeros(1, 1, 1, device=cpu)
        try:
            hidden, *_ = torch.lstm(state, (state, state), weights, True, 1, 0.0, True, False, True)
            hidden.float().sum().backward()
        except RuntimeError:
            return False
    return True


def _is_too_narrow(layers: nn.RNNBase, x: Tensor) -> bool:
    """Whether autocast would ask this CPU for an LSTM that it does not have."""
    if not isinstance(layers, nn.LSTM) or x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return False
    return not has_narrow_lstm(torch.get_autocast_dtype("cpu"))


def _names(index: int) -> tuple[str, ...]:
    return tuple(f"{name}_l{index}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))


def effective(layers: nn.RNNBase, index: int, lengths: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Parameters of one layer, with the weight norm of its matrices multiplied out.

    Args:
        layers: `nn.GRU` or `nn.LSTM`.
        index: of the layer.
        lengths: of each row of each matrix, by name; none without weight norm.
    """
    parameters = []
    for name in _names(index):
        parameter = getattr(layers, name)
        if name in lengths:
            parameter = torch._weight_norm(parameter, lengths[name][:, None])
        parameters.append(parameter)
    return tuple(parameters)


def through_torch(
    layers: nn.RNNBase, x: Tensor, state: Tensor, lengths: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """A whole stack of PyTorch's.

    Args:
        layers: `nn.GRU` or `nn.LSTM`.
        x: ``[B, F, in]``.
        state: ``[B, S, layers, D]``.
        lengths: see `effective`.

    Returns:
        The top layer's hidden vectors ``[B, F, D]`` and the state after the last frame.
    """
    if _is_too_narrow(layers, x):
        with torch.autocast("cpu", enabled=False):
            return through_torch(layers, x.to(next(layers.parameters()).dtype), state, lengths)
    vectors = state.to(x.dtype).permute(1, 2, 0, 3).contiguous()  # [S, layers, B, D]
    last: Sequence[Tensor]
    if lengths:  # on other weights than those that the layers hold
        flat = [each for index in range(layers.num_layers) for each in effective(layers, index, lengths)]
        options = (True, layers.num_layers, 0.0, layers.training, False, True)
        if isinstance(layers, nn.LSTM):
            hidden, *last = torch.lstm(x, tuple(vectors), flat, *options)
        else:
            hidden, *last = torch.gru(x, vectors[0], flat, *options)
    elif isinstance(layers, nn.LSTM):
        hidden, last = layers(x, (vectors[0], vectors[1]))
    else:
        hidden, *last = layers(x, vectors[0])
    return hidden, torch.stack(list(last)).permute(2, 0, 1, 3)


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
            x: ``[F, B, in]``.
            h0: ``[B, dim]``.
            dtype: of the products.
            weight_ih: ``[3 dim, in]``; reset, update, new.
            weight_hh: ``[3 dim, dim]``.
            bias_ih: ``[3 dim]``.
            bias_hh: alike.

        Returns:
            Hidden vectors, ``[F, B, dim]``, in the parameters' precision.
        """
        num_frames, batch, dim = len(x), *h0.shape
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
            lecun_uniform(parameter)
        elif name.startswith("weight_hh"):
            orthogonal_blocks(parameter)
        else:
            parameter.zero_()
            if isinstance(layers, nn.LSTM) and name.startswith("bias_ih"):
                parameter[dim : 2 * dim] = forget_bias
