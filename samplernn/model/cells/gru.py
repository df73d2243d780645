"""PyTorch's GRU, and one that trains faster on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from samplernn.model.cells.pointwise import Product
from samplernn.model.cells.torch_layer import TorchLayer


class GRU(TorchLayer):
    """``gru``: Cho et al., 2014, arXiv:1406.1078, in cuDNN's variant, which multiplies before it resets.

    ::

        r_t = sigmoid(W_r x_t + b_r + U_r h_{t-1} + d_r)
        z_t = sigmoid(W_z x_t + b_z + U_z h_{t-1} + d_z)
        n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} + d_n))
        h_t = (1 - z_t) * n_t + z_t * h_{t-1}

    W LeCun-uniform, U orthogonal per gate, b and d zero. With gradients on a CPU it runs through `GRULayer`.
    """

    module = nn.GRU
    function = staticmethod(torch.gru)
    gates = ("reset", "update", "new")

    @classmethod
    def is_faster_than_torch(cls, x: Tensor) -> bool:
        return x.device.type == "cpu" and torch.is_grad_enabled()

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        if not self.is_faster_than_torch(x):
            return self.plain(x, state)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        hidden = GRULayer.apply(x.transpose(0, 1), state[:, 0], dtype, *self.weights())  # [F, B, D]
        return hidden.transpose(0, 1), hidden[-1][:, None]

    def step(self, projected: Tensor, state: Tensor, product: Product = F.linear) -> Tensor:
        _, weight_hh, _, bias_hh = self.weights()
        hidden = state[:, 0]
        reset_x, update_x, new_x = projected.chunk(3, dim=1)
        reset_h, update_h, new_h = product(hidden, weight_hh, bias_hh).chunk(3, dim=1)
        new = torch.addcmul(new_x, (reset_x + reset_h).sigmoid(), new_h).tanh()
        return torch.lerp(new, hidden, (update_x + update_h).sigmoid())[:, None]


class GRULayer(torch.autograd.Function):
    """A layer of `nn.GRU` for training on a CPU: products of all steps at once where that is possible.

    PyTorch's own backward multiplies out and adds up the gradient of the recurrent weights step by step, each
    time a whole matrix for a few rows. Here the steps do only what depends on the step before. Products
    are in `dtype`; hidden vectors and gates stay in the parameters' precision, also when that is bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, h0: Tensor, dtype: torch.dtype, *weights: Tensor) -> Tensor:
        """
        Args:
            ctx: for the backward pass.
            x: ``[F, B, in]``.
            h0: ``[B, dim]``.
            dtype: of the products.
            weights: of the input ``[3 dim, in]`` (reset, update, new), recurrent ones ``[3 dim, dim]``, and
                their biases, ``[3 dim]`` each.

        Returns:
            Hidden vectors, ``[F, B, dim]``, in the parameters' precision.
        """
        num_frames, batch, dim = len(x), *h0.shape
        weight_ih, weight_hh, bias_ih, bias_hh = weights
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
