"""PyTorch's LSTM."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samplernn.config import ModelConfig
from samplernn.model.cells.pointwise import Product
from samplernn.model.cells.torch_layer import TorchLayer


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

    module = nn.LSTM
    function = staticmethod(torch.lstm)
    vectors = 2
    gates = ("input", "forget", "cell", "output")

    def initialise(self, config: ModelConfig) -> None:
        super().initialise(config)
        _, _, bias_ih, _ = self.weights()
        with torch.no_grad():
            bias_ih[config.dim : 2 * config.dim] = config.forget_bias

    @classmethod
    def through_torch(cls, layers: Sequence[TorchLayer], x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        is_mixed = x.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if not is_mixed or has_narrow_lstm(torch.get_autocast_dtype("cpu")):
            return super().through_torch(layers, x, state)
        with torch.autocast("cpu", enabled=False):
            return super().through_torch(layers, x.to(layers[0].weights()[0].dtype), state)

    def step(self, projected: Tensor, state: Tensor, product: Product = F.linear) -> Tensor:
        _, weight_hh, _, bias_hh = self.weights()
        sums = projected + product(state[:, 0], weight_hh, bias_hh)
        open_in, keep, new, open_out = sums.chunk(4, dim=1)
        cell = torch.addcmul(keep.sigmoid() * state[:, 1], open_in.sigmoid(), new.tanh())
        return torch.stack([open_out.sigmoid() * cell.tanh(), cell], dim=1)


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
