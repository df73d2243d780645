"""How weight matrices begin, and weight norm ``g · v / |v|`` (Salimans & Kingma, 2016, arXiv:1602.07868)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def row_lengths(matrix: Tensor) -> Tensor:
    """|v| of each row of ``[rows, inputs]``: g starts there, so that the initial function stays the same."""
    return matrix.detach().norm(dim=1)


def effective(matrix: Tensor, lengths: Tensor | None) -> Tensor:
    """What multiplies the input, ``[rows, inputs]``.

    Args:
        matrix: v.
        lengths: g, ``[rows]``; None: the matrix has no weight norm, and is returned as it is.
    """
    return matrix if lengths is None else torch._weight_norm(matrix, lengths[:, None])


@torch.no_grad()
def lecun_uniform(weight: Tensor) -> None:
    """Variance 1 / inputs (LeCun et al., 1998), in place."""
    bound = math.sqrt(3 / weight.shape[1])
    weight.uniform_(-bound, bound)


@torch.no_grad()
def orthogonal_blocks(weight: Tensor) -> None:
    """An orthogonal matrix per gate of ``[gates·D, D]`` (Saxe et al., 2014, arXiv:1312.6120), in place."""
    for gate in weight.split(weight.shape[1]):
        nn.init.orthogonal_(gate)
