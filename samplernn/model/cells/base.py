"""What one layer of any cell can do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Maps ``x [..., in]``, ``weight [out, in]`` and a bias ``[out]`` or None to ``x @ weight.T + bias``:
`F.linear`, or an engine's own."""


class Cell(Protocol):
    """One recurrent layer of D units. S vectors make up its state, the hidden one first.

    Training and prefill call `forward` with all frames; whoever walks frame by frame calls `project`, with as
    many frames as are known, and `step`. Both ways are the same function.
    """

    vectors: ClassVar[int]
    """S: 1, or 2 where a cell state stands behind the hidden vector."""

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: ``[B, F, in]``.
            state: ``[B, S, D]``.

        Returns:
            Hidden vectors ``[B, F, D]`` and the state after the last frame.
        """
        ...

    def plain(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` with nothing but PyTorch's own operations: the yardstick for speed."""
        ...

    def project(self, x: Tensor, product: Product = ...) -> Tensor:
        """What the input adds to each gate, ``[..., in]`` to ``[..., gates·D]``: all that needs no state."""
        ...

    def step(self, projected: Tensor, state: Tensor, product: Product = ...) -> Tensor:
        """The state after a frame: ``[B, gates·D]`` and ``[B, S, D]`` to ``[B, S, D]``; changes neither.

        A row does not depend on the others, but for what `product` does.
        """
        ...

    def fold(self) -> None:
        """Multiply the weight norm of the matrices out, in place, if they have one."""
        ...

    def recurrent_blocks(self) -> dict[str, Tensor]:
        """Hidden-to-hidden matrix of each gate, ``[D, D]``; none where the hidden vector is not read."""
        ...


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
