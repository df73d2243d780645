"""Leaky integrators."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from samplernn.config import ModelConfig
from samplernn.model.cells.pointwise import PointwiseCell

LONGEST_TIME_CONSTANT = 1000.0
"""At first, in steps; the shortest is 1."""


class Leaky(PointwiseCell):
    """``leaky``: leaky integrators, each with a time constant of its own (Jaeger, Lukosevicius, Popovici &
    Siewert, 2007, Neural Networks 20; Mozer, 1992, NIPS 4, trains them).

    h_t = (1 - a) h_{t-1} + a tanh(W x_t + U h_{t-1} + b), a = 1 - exp(-1 / tau). The time constants tau, in
    steps of the tier, are spaced evenly on a logarithmic scale from 1 to 1000 at first; log tau is learned,
    or stays (`time_constants`). W LeCun-uniform, U orthogonal, b zero.
    """

    def __init__(self, config: ModelConfig, in_features: int) -> None:
        super().__init__(config, in_features)
        logs = torch.linspace(0, math.log(LONGEST_TIME_CONSTANT), config.dim)
        self.log_time_constants: Tensor
        if config.time_constants == "learned":
            self.log_time_constants = nn.Parameter(logs)
        else:
            self.register_buffer("log_time_constants", logs)

    def coefficients(self) -> tuple[Tensor, ...]:
        """a: the share of each unit that a step renews, ``[D]``."""
        return (-torch.expm1(-torch.exp(-self.log_time_constants)),)

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        return before + coefficients[0] * ((gates + sums[0]).tanh() - before)
