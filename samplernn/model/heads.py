"""Output distributions: from the network's output to a likelihood."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BITS_PER_NAT = 1 / math.log(2)


def softmax_nll(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood, in nats, summed over the real samples.

    Args:
        logits: ``[B, T, Q]``.
        targets: codes, int64 ``[B, T]``.
        mask: bool ``[B, T]``, True where the sample is real.

    Returns:
        A scalar, float32, or float64 if the logits are (exact zero, with a gradient, if nothing is real).
    """
    with torch.autocast(
        logits.device.type, enabled=False
    ):  # it would make a float32 copy of the logits first
        wide = torch.promote_types(logits.dtype, torch.float32)
        log_p = torch.log_softmax(logits.flatten(0, 1), dim=1, dtype=wide)
        nll = F.nll_loss(log_p, targets.flatten(), reduction="none")
        return (nll * mask.flatten()).sum()
