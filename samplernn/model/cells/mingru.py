"""A cell whose gates do not look back, so that all frames can be computed at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from samplernn.config import ModelConfig
from samplernn.model.cells.pointwise import PointwiseCell


class MinGRU(PointwiseCell):
    """``mingru`` (Feng et al., 2024, "Were RNNs all we needed?", arXiv:2410.01201).

    z_t = sigmoid(W_z x_t + b_z), n_t = W_n x_t + b_n, h_t = (1 - z_t) * h_{t-1} + z_t * n_t. There is no
    recurrent matrix. W LeCun-uniform, b zero.

    The paper scans in logarithms, for which it makes n_t and h_0 positive. Here the scan multiplies shares
    between 0 and 1, which is as stable (what underflows is forgotten anyway) and leaves states their sign.
    """

    gates = ("update", "new")

    def __init__(self, config: ModelConfig, in_features: int) -> None:
        super().__init__(config, in_features, has_recurrent_matrix=False)

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        update, new = gates.split(1, dim=-2)
        return torch.lerp(before, new, update.sigmoid())

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        update, new = self.project_frames(x).chunk(2, dim=-1)  # [F, B, D]
        hidden = LinearRecurrence.apply((-update).sigmoid(), update.sigmoid() * new, state[:, 0])
        return hidden.transpose(0, 1), hidden[-1][:, None]


class LinearRecurrence(torch.autograd.Function):
    """h_t = keep_t * h_{t-1} + add_t. Its gradient is such a recurrence too, backwards (Martin & Cundy, 2018,
    arXiv:1709.04057)."""

    @staticmethod
    def forward(ctx: Any, keep: Tensor, add: Tensor, h0: Tensor) -> Tensor:
        """``[F, B, D]`` twice and ``[B, D]`` to ``[F, B, D]``."""
        h0 = h0.to(add.dtype)
        hidden = scan(keep, add, h0)
        ctx.save_for_backward(keep, hidden, h0)
        return hidden

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        keep, hidden, h0 = ctx.saved_tensors
        keep_after = torch.cat([keep[1:], torch.zeros_like(keep[:1])])
        of_hidden = scan(keep_after.flip(0), grad.flip(0), torch.zeros_like(h0)).flip(0)
        before = torch.cat([h0[None], hidden[:-1]])
        return of_hidden * before, of_hidden, of_hidden[0] * keep[0]


def scan(keep: Tensor, add: Tensor, h0: Tensor) -> Tensor:
    """h_t = keep_t * h_{t-1} + add_t, ``[F, B, D]``.

    On a CPU frame by frame, one pass over memory. Elsewhere in log2 F passes, each of which joins stretches
    to stretches of twice the length (Kogge & Stone, 1973, IEEE Transactions on Computers 22).
    """
    return _frame_by_frame(keep, add, h0) if add.device.type == "cpu" else _by_doubling(keep, add, h0)


def _frame_by_frame(keep: Tensor, add: Tensor, h0: Tensor) -> Tensor:
    hidden = torch.empty_like(add)
    for t in range(len(add)):
        h0 = torch.addcmul(add[t], keep[t], h0, out=hidden[t])
    return hidden


def _by_doubling(keep: Tensor, add: Tensor, h0: Tensor) -> Tensor:
    add = torch.cat([torch.addcmul(add[:1], keep[:1], h0), add[1:]])
    length = 1
    while length < len(add):
        add = torch.cat([add[:length], torch.addcmul(add[length:], keep[length:], add[:-length])])
        keep = torch.cat([keep[:length], keep[length:] * keep[:-length]])
        length *= 2
    return add
