"""Heads: what the numbers mean that the network puts out for a sample.

A head owns the size of the output layer, the likelihood (the loss), the draw, and the codes that the
baselines count. It holds no parameters. `model.head` names one of `HEADS`. A new head is a class, its name in
`config.HeadName`, a line in `HEADS`, and the draw in each compiled engine that is to serve it; engine
reference serves every head as it is.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from samplernn.config import ModelConfig

BITS_PER_NAT = 1 / math.log(2)
LEAST_TEMPERATURE = 1e-30
"""Temperatures below this are as good as this, or logits would overflow; 0 is greedy."""


class Head(Protocol):
    """The distribution of the next code, given what the network puts out.

    Args:
        config: of the model.
    """

    num_outputs: int
    """Numbers that the network puts out per sample: the size of its output layer."""
    num_baseline_codes: int
    """How many different codes the baselines count; their pairs must fit into memory."""
    num_uniforms: int
    """Random numbers that one draw takes."""

    def __init__(self, config: ModelConfig) -> None: ...

    def nll(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """Negative log-likelihood of each code in nats.

        Args:
            outputs: of the network, ``[N, num_outputs]``, of any floating-point type.
            codes: int64 ``[N]``.

        Returns:
            ``[N]``, float32, or float64 if the outputs are.
        """
        ...

    def draw(self, outputs: Tensor, uniforms: Tensor, temperature: Tensor, filters: Tensor) -> Tensor:
        """One code per row.

        Args:
            outputs: of the network, float32 ``[B, num_outputs]``.
            uniforms: numbers in [0, 1), ``[B, num_uniforms]``.
            temperature: of this draw, ``[B, 1]``; 0 takes the most probable code.
            filters: `generation.sampling.FILTERS` of each row, ``[B, 2]``: top-k (0: all), top-p (1: all).

        Returns:
            Codes, int64 ``[B, 1]``.
        """
        ...

    def baseline_codes(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the baselines count in place of the codes, from 0 to below `num_baseline_codes`; any shape."""
        ...


class SoftmaxHead:
    """``softmax``: a logit for each code; the paper's (Mehri et al., 2017, section 2.2)."""

    num_uniforms = 1

    def __init__(self, config: ModelConfig) -> None:
        self.num_outputs = self.num_baseline_codes = config.q_levels

    def nll(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """See `Head`."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        return F.nll_loss(torch.log_softmax(outputs, dim=1, dtype=wide), codes, reduction="none")

    def draw(self, outputs: Tensor, uniforms: Tensor, temperature: Tensor, filters: Tensor) -> Tensor:
        """By inverting the cumulative distribution; see `Head`."""
        probabilities = torch.softmax(outputs / temperature.clamp(min=LEAST_TEMPERATURE), dim=-1)
        if bool(((filters[:, 0] > 0) | (filters[:, 1] < 1)).any()):
            probabilities = _filtered(probabilities, filters)
        cumulative = probabilities.cumsum(-1)
        total = cumulative[:, -1:]
        # The first code whose cumulative weight exceeds the target: never one of weight zero, for
        # the target is kept below the total even if the product rounds up.
        target = torch.minimum(uniforms * total, torch.nextafter(total, torch.zeros_like(total)))
        drawn = torch.searchsorted(cumulative, target, right=True)
        return torch.where(temperature == 0, outputs.argmax(dim=-1, keepdim=True), drawn)

    def baseline_codes(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The codes themselves."""
        return codes


def _filtered(probabilities: Tensor, filters: Tensor) -> Tensor:
    """Probabilities ``[B, Q]`` with zeros for the codes that are left out."""
    top_k, top_p = filters[:, :1], filters[:, 1:2]
    q_levels = probabilities.shape[-1]
    descending, order = probabilities.sort(dim=-1, descending=True, stable=True)
    last = torch.where(top_k > 0, top_k.clamp(1, q_levels), q_levels).long() - 1
    descending = descending.where(descending >= descending.gather(-1, last), 0.0)
    before = descending.cumsum(-1) - descending  # mass of the more probable codes
    is_kept = (before < top_p * descending.sum(-1, keepdim=True)) | (top_p >= 1)
    return torch.zeros_like(probabilities).scatter(-1, order, descending.where(is_kept, 0.0))


HEADS: dict[str, type[Head]] = {"softmax": SoftmaxHead}
"""By `model.head`."""


def head_of(config: ModelConfig) -> Head:
    """The head that `model.head` names."""
    return HEADS[config.head](config)
