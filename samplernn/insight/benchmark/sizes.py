"""What a model multiplies, from its sizes alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal

from samplernn.config import ModelConfig


def weights(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(n, weights of the large matrices that are used every n samples in generation), the fastest last.

    Those that read frames are not among them; a linear layer of the MLP is folded away.
    """
    for frame, ratio in zip(config.frame_sizes, _ratios(config), strict=True):
        matrices = 2 * _gates(config) * config.n_rnn + ratio
        if frame == config.lookback and not config.top_projection:
            matrices -= _gates(config)
        yield frame, matrices * config.dim**2
    yield 1, config.dim**2 + config.q_levels * config.dim


def training_multiplications(
    config: ModelConfig, first_layer: Literal["table", "convolution"], samples_per_step: int
) -> float:
    """Multiplications in the matrix products of forward and backward pass, per sample.

    The backward pass multiplies each matrix twice, for the gradient of its input and for its own: that
    makes three times the forward pass. (The frames that enter a tier need no gradient; counted all the
    same, it is less than a thousandth.)

    Args:
        config: sizes of the network.
        first_layer: of the MLP. A table costs products once per step, when it is made; looking up and
            adding are none.
        samples_per_step: lanes times chunk.
    """
    forward = sum(count / period for period, count in weights(config))
    forward += len(config.frame_sizes) * config.dim  # input projections: frame x dim weights per frame
    if not config.top_projection:  # the RNN's own matrix reads the frames
        forward += (_gates(config) - 1) * config.dim
    if config.linear_mlp_layer:
        forward += config.dim**2
    first = config.frame_sizes[-1] * config.embedding_dim * config.dim
    if first_layer == "table":
        first *= config.q_levels
    return 3 * (forward + (first if first_layer == "convolution" else first / samples_per_step))


def _gates(config: ModelConfig) -> int:
    return 4 if config.rnn == "lstm" else 3


def _ratios(config: ModelConfig) -> list[int]:
    clocks = (*config.frame_sizes, 1)
    return [slow // fast for slow, fast in itertools.pairwise(clocks)]
