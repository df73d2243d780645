"""Cells without gates: one sum per unit, and a function of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from samplernn.config import ModelConfig
from samplernn.model.cells.recurrence import Pointwise, PointwiseCell

MOST = 20.0
"""Upper bound of rectified units."""
LONGEST_TIME_CONSTANT = 1000.0
"""Of leaky integrators at first, in steps; the shortest is 1."""


class TanhRNN(PointwiseCell):
    """``rnn-tanh``: the simple recurrent network (Elman, 1990, Cognitive Science 14).

    h_t = tanh(W x_t + U h_{t-1} + b). W LeCun-uniform, U orthogonal, b zero.
    """

    def pointwise(self) -> tuple[Pointwise, ...]:
        return (_tanh,)


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

    def pointwise(self) -> tuple[Pointwise, ...]:
        return (_relu,)


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

    def pointwise(self) -> tuple[Pointwise, ...]:
        return (_leaky,)

    def coefficients(self) -> tuple[Tensor, ...]:
        return (self.share(),)

    def share(self) -> Tensor:
        """a: the share of each unit that a step renews, ``[D]``."""
        return -torch.expm1(-torch.exp(-self.log_time_constants))


class EchoState(PointwiseCell):
    """``echo-state``: a fixed random reservoir, of which only what reads it is trained (Jaeger, 2001, GMD
    Report 148; with a leak: Jaeger et al., 2007).

    h_t = (1 - a) h_{t-1} + a tanh(W x_t + U h_{t-1} + b), a = `leak`. U: a share `density` of the weights is
    Gaussian, the rest zero; then it is scaled to `spectral_radius`, the largest absolute value of its
    eigenvalues. W LeCun-uniform, b uniform in ±0.1, so that units differ in silence. All of them are
    buffers: never trained, always saved.
    """

    def __init__(self, config: ModelConfig, in_features: int) -> None:
        super().__init__(config, in_features)
        self.leak = config.leak
        weight_ih, weight_hh, bias = self.weight_ih, self.weight_hh, self.bias
        for name in ("weight_ih", "weight_hh", "bias"):
            delattr(self, name)
        self.register_buffer("weight_ih", weight_ih.detach())
        weight_hh = reservoir(weight_hh.detach(), config.spectral_radius, config.density)
        self.register_buffer("weight_hh", weight_hh)
        self.register_buffer("bias", bias.detach().uniform_(-0.1, 0.1))

    def pointwise(self) -> tuple[Pointwise, ...]:
        return (partial(_leaking, leak=self.leak),)


def reservoir(weight: Tensor, spectral_radius: float, density: float) -> Tensor:
    """A sparse random matrix of a given spectral radius.

    Args:
        weight: ``[D, D]``, of which shape, type and device count.
        spectral_radius: the largest absolute value of its eigenvalues.
        density: share of the weights that are not zero; every row has at least one, so that no unit is left
            out.
    """
    dim = len(weight)
    values = torch.randn_like(weight)
    chances = torch.rand_like(weight)
    chosen = (chances < density) | (chances == chances.amin(dim=1, keepdim=True))
    values = torch.where(chosen, values, 0)
    if weight.device.type == "meta":  # shapes alone: a checkpoint brings the values
        return values
    largest = torch.linalg.eigvals(values.double()).abs().max().item()
    if largest < 1e-6:  # so sparse that no unit hears itself, not even over others: give it a ring
        values = torch.eye(dim, dtype=weight.dtype, device=weight.device).roll(1, dims=0)
        largest = 1.0
    return values * (spectral_radius / largest)


def _tanh(gates: Tensor, sums: Sequence[Tensor], before: Tensor) -> Tensor:
    return (gates + sums[0]).tanh()


def _relu(gates: Tensor, sums: Sequence[Tensor], before: Tensor) -> Tensor:
    return (gates + sums[0]).clamp(0, MOST)


def _leaky(gates: Tensor, sums: Sequence[Tensor], before: Tensor, share: Tensor) -> Tensor:
    return before + share * ((gates + sums[0]).tanh() - before)


def _leaking(gates: Tensor, sums: Sequence[Tensor], before: Tensor, leak: float) -> Tensor:
    return torch.lerp(before, (gates + sums[0]).tanh(), leak)
