"""A reservoir: a recurrent layer that is not trained."""

from __future__ import annotations

import torch
from torch import Tensor

from samplernn.config import ModelConfig
from samplernn.model.cells.pointwise import PointwiseCell


class EchoState(PointwiseCell):
    """``echo-state``: a fixed random reservoir, of which only what reads it is trained (Jaeger, 2001, GMD
    Report 148; with a leak: Jaeger et al., 2007).

    h_t = (1 - a) h_{t-1} + a tanh(W x_t + U h_{t-1} + b), a = `leak`. U: a share `density` of the weights is
    Gaussian, the rest zero; then it is scaled to `spectral_radius`, the largest absolute value of its
    eigenvalues. W LeCun-uniform, b uniform in ±0.1, so that units differ in silence. All of them are
    buffers: never trained, always saved.
    """

    has_fixed_inputs = True

    def __init__(self, config: ModelConfig, in_features: int) -> None:
        super().__init__(config, in_features)
        self.leak = config.leak
        fixed = {name: parameter.detach() for name, parameter in self.named_parameters()}
        fixed["weight_hh"] = reservoir(fixed["weight_hh"], config.spectral_radius, config.density)
        fixed["bias"].uniform_(-0.1, 0.1)
        for name in ("weight_ih", "weight_hh", "bias"):
            delattr(self, name)
            self.register_buffer(name, fixed[name])

    def next_state(self, gates: Tensor, sums: list[Tensor], before: Tensor, *coefficients: Tensor) -> Tensor:
        return torch.lerp(before, (gates + sums[0]).tanh(), self.leak)


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
