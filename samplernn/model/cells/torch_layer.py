"""The base of the two cells that PyTorch has, `nn.GRU` and `nn.LSTM`.

Their parameters stay in PyTorch's modules, with PyTorch's names, which checkpoints have; on a GPU these
modules keep them in one piece of memory, as cuDNN wants them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samplernn.config import ModelConfig
from samplernn.model.cells.pointwise import Product
from samplernn.model.weights import effective, lecun_uniform, orthogonal_blocks


class TorchLayer:
    """One layer of a module of PyTorch's, with the methods of `PointwiseCell`; holds no parameters itself.

    Args:
        stack: the module.
        index: which of its layers.
        lengths: with weight norm, a dictionary of the lengths of the rows of the stack's matrices; or None.
        prefix: what stands before the names of the stack's parameters in `lengths`.
    """

    module: ClassVar[type[nn.GRU] | type[nn.LSTM]]
    function: ClassVar[Callable[..., Any]]
    """What the module calls."""
    vectors: ClassVar[int] = 1
    gates: ClassVar[tuple[str, ...]]
    has_fixed_inputs: ClassVar[bool] = False

    def __init__(self, stack: nn.RNNBase, index: int, lengths: Any, prefix: str) -> None:
        self.stack, self.lengths, self.prefix = stack, lengths, prefix
        self.names = [f"{name}_l{index}" for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]

    @torch.no_grad()
    def initialise(self, config: ModelConfig) -> None:
        """LeCun-uniform input weights, an orthogonal recurrent block per gate, zero biases.

        PyTorch adds two bias vectors, so one of them is enough for what a bias begins with.
        """
        weight_ih, weight_hh, bias_ih, bias_hh = self.weights()
        lecun_uniform(weight_ih)
        orthogonal_blocks(weight_hh)
        bias_ih.zero_()
        bias_hh.zero_()

    def weights(self) -> tuple[Tensor, ...]:
        """weight_ih, weight_hh, bias_ih and bias_hh as the layer computes with them, without weight norm."""
        lengths = self.lengths or {}
        return tuple(
            effective(getattr(self.stack, name), lengths.get(self.prefix + name)) for name in self.names
        )

    def fold(self) -> None:
        """Multiply the weight norm out, in place."""
        for name, weight in zip(self.names, self.weights(), strict=True):
            getattr(self.stack, name).copy_(weight)

    @classmethod
    def is_faster_than_torch(cls, x: Tensor) -> bool:
        """Whether `forward`, layer by layer, is faster than PyTorch's whole stack."""
        return False

    @classmethod
    def through_torch(cls, layers: Sequence[TorchLayer], x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Compute layers that follow each other in one call.

        Args:
            layers: lowest first.
            x: ``[B, F, in]``.
            state: ``[B, S, layers, D]``.

        Returns:
            The top layer's hidden vectors ``[B, F, D]`` and the state after the last frame.
        """
        vectors = state.to(x.dtype).permute(1, 2, 0, 3).contiguous()  # [S, layers, B, D]
        weights = [weight for layer in layers for weight in layer.weights()]
        before = vectors[0] if cls.vectors == 1 else tuple(vectors)
        # With biases; without dropout; not in both directions; the batch first.
        options = (True, len(layers), 0.0, layers[0].stack.training, False, True)
        hidden, *last = cls.function(x, before, weights, *options)
        return hidden, torch.stack(last).permute(2, 0, 1, 3)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden vectors ``[B, F, D]`` and the last state, of ``[B, F, in]`` and a state ``[B, S, D]``."""
        return self.plain(x, state)

    def plain(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` with PyTorch's own operations."""
        hidden, last = self.through_torch([self], x, state[:, :, None])
        return hidden, last[:, :, 0]

    def project(self, x: Tensor, product: Product = F.linear) -> Tensor:
        """What the input adds to each gate, ``[..., in]`` to ``[..., gates·D]``."""
        weight_ih, _, bias_ih, _ = self.weights()
        return product(x, weight_ih, bias_ih)

    def step(self, projected: Tensor, state: Tensor, product: Product = F.linear) -> Tensor:
        """The state after a frame: ``[B, gates·D]`` and ``[B, S, D]`` to ``[B, S, D]``; changes neither."""
        raise NotImplementedError

    def recurrent_blocks(self) -> dict[str, Tensor]:
        """The recurrent matrix of each gate, ``[D, D]``."""
        return dict(zip(self.gates, self.weights()[1].chunk(len(self.gates)), strict=True))
