"""Heads: what the numbers mean that the network puts out for a sample.

A head owns the size of the output layer, the likelihood (the loss), the draw, and the codes that the
baselines count. It holds no parameters. `model.head` names one of `HEADS`; a new head is a class here, its
name in `config.Head`, and a line in each engine that serves it.
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


class Head(Protocol):
    """The distribution of the next code, given what the network puts out.

    Args:
        config: of the model.
    """

    num_outputs: int
    """Numbers that the network puts out per sample: the size of its output layer."""
    num_baseline_codes: int
    """How many different codes the baselines count; their pairs must fit into memory."""

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

    def baseline_codes(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """What the baselines count in place of the codes, from 0 to below `num_baseline_codes`; any shape."""
        ...


class SoftmaxHead:
    """``softmax``: a logit for each code; the paper's (Mehri et al., 2017, section 2.2)."""

    def __init__(self, config: ModelConfig) -> None:
        self.num_outputs = self.num_baseline_codes = config.q_levels

    def nll(self, outputs: Tensor, codes: Tensor) -> Tensor:
        """See `Head`."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        return F.nll_loss(torch.log_softmax(outputs, dim=1, dtype=wide), codes, reduction="none")

    def baseline_codes(self, codes: NDArray[np.int64]) -> NDArray[np.int64]:
        """The codes themselves."""
        return codes


HEADS: dict[str, type[Head]] = {"softmax": SoftmaxHead}
"""By `model.head`."""


def head_of(config: ModelConfig) -> Head:
    """The head that `model.head` names."""
    return HEADS[config.head](config)
