"""A network's weights as `cuda_program.advance` takes them: padded, multiplied out, in few tensors."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from samplernn.generation.engines.base import projection, round_up
from samplernn.generation.engines.cuda_kernels import IMPOSSIBLE
from samplernn.model.cells.torch_layer import TorchLayer
from samplernn.model.network import SampleRNN

UNITS = 64
"""Hidden units are padded to a multiple: four chains of products over sixteen inputs."""


class Packed:
    """Weights on a device.

    Args:
        model: folded.
        dtype: of the products' weights; biases and the projections of frames are float32.
        device: where to.
    """

    def __init__(self, model: SampleRNN, dtype: torch.dtype, device: torch.device) -> None:
        config, tiers, mlp = model.config, model.tiers(), model.sample_level_mlp
        self.dim = dim = round_up(config.dim, UNITS)
        self.codes = max(16, 1 << (config.q_levels - 1).bit_length())
        gates = 4 if config.rnn == "lstm" else 3

        def square(weight: Tensor, parts: int) -> Tensor:
            """``[parts · D, D]`` to ``[parts, dim, dim]``."""
            return _padded(weight.unflatten(0, (parts, -1)), (parts, dim, dim))

        def vectors(bias: Tensor | None, parts: int) -> Tensor:
            return _padded(_present(bias).unflatten(0, (parts, -1)), (parts, dim))

        # Of all layers of all tiers: weight_ih, weight_hh, bias_ih, bias_hh.
        layers = [cast(TorchLayer, cell).weights() for tier in tiers for cell in tier.rnn.cells()]
        padded_frames = [round_up(tier.frame_size, 16) for tier in tiers]
        projections = [
            _padded(projection(tier, config.dim)[0], (dim, frame))
            for tier, frame in zip(tiers, padded_frames, strict=True)
        ]
        self.tiers = []
        in_projections = in_upsampling = 0
        for tier, frame in zip(tiers, padded_frames, strict=True):
            self.tiers.append((tier.frame_size, frame, tier.ratio, in_projections, in_upsampling))
            in_projections += dim * frame
            in_upsampling += tier.ratio
        self.ratios = in_upsampling
        exact = {
            "projections": torch.cat([weight.flatten() for weight in projections]),
            "projection_biases": torch.cat([vectors(projection(tier, config.dim)[1], 1) for tier in tiers]),
            "cell_biases": torch.stack([vectors(bias, gates) for layer in layers for bias in layer[2:]]),
            "upsampling_biases": torch.cat([vectors(tier.upsampling.bias, tier.ratio) for tier in tiers]),
            "hidden_biases": vectors(mlp.hidden.bias, 1),
            "output_biases": F.pad(
                _present(mlp.output.bias), (0, self.codes - config.q_levels), value=IMPOSSIBLE
            ),
        }
        rounded = {
            "cells": torch.stack([square(weight, gates) for layer in layers for weight in layer[:2]]),
            "upsampling": torch.cat([square(tier.upsampling.weight, tier.ratio) for tier in tiers]),
            "table": _padded(mlp.table().detach(), (tiers[-1].frame_size, config.q_levels, dim)),
            "hidden_weights": square(mlp.hidden.weight, 1),
            "output_weights": _padded(mlp.output.weight, (self.codes, dim)),
        }
        self.tensors = {
            name: tensor.detach().to(device, torch.float32).contiguous() for name, tensor in exact.items()
        } | {name: tensor.detach().to(device, dtype).contiguous() for name, tensor in rounded.items()}


def _present(bias: Tensor | None) -> Tensor:
    assert bias is not None
    return bias


def _padded(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Zeros at the end of each axis, up to a shape."""
    widths = [
        width
        for size, whole in zip(reversed(x.shape), reversed(shape), strict=True)
        for width in (0, whole - size)
    ]
    return F.pad(x, widths)
