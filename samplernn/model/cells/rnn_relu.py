"""The simple recurrent network with rectified units."""

from __future__ import annotations

from torch import Tensor, nn

from samplernn.config import ModelConfig
from samplernn.model.cells.pointwise import PointwiseCell

UPPER_BOUND = 20.0
"""Of a unit."""


class ReluRNN(PointwiseCell):
    """``rnn-relu``: rectified units that begin by remembering everything: IRNN (Le, Jaitly & Hinton, 2015,
    arXiv:1504.00941).

    h_t = min(max(0, W x_t + U h_{t-1} + b), 20). U is the identity at first, b zero, W Gaussian with a
    standard deviation of 0.001, all as there. The upper bound is that of Deep Speech (Hannun et al., 2014,
    arXiv:1412.5567): audio goes on for thousands of steps, and once a single eigenvalue of U passes 1 a state
    without bounds overflows.
    """

    def __init__(self, config: ModelConfig, in_features: int) -> None:
        super().__init__(config, in_features)
        nn.init.normal_(self.weight_ih, std=0.001)
        nn.init.eye_(self.weight_hh)

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        return (gates + sums[0]).clamp(0, UPPER_BOUND)
