"""What a model multiplies, from its sizes alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import nn

from samplernn.config import ModelConfig
from samplernn.model.cells import CELLS, RNN


def weights(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(n, weights of the large matrices that are used every n samples in generation), the fastest last.

    Those that read frames are not among them; a linear layer of the MLP is folded away.
    """
    for frame, ratio in zip(config.frame_sizes, _ratios(config), strict=True):
        yield frame, _recurrent(config, frame).total - _of_frames(config, frame) + ratio * config.dim**2
    yield 1, config.dim**2 + config.q_levels * config.dim


def training_multiplications(
    config: ModelConfig, first_layer: Literal["table", "convolution"], samples_per_step: int
) -> float:
    """Multiplications in the matrix products of forward and backward pass, per sample.

    The backward pass multiplies each matrix twice, for the gradient of its input and for its own: that
    makes three times the forward pass. (The frames that enter a tier need no gradient; counted all the
    same, it is less than a thousandth. Nor do one-hot codes, which only the convolution form multiplies.)
    A matrix that is not trained is multiplied once less; what enters a reservoir in the slowest tier needs
    no gradient at all.

    Args:
        config: sizes of the network.
        first_layer: of the MLP. A table costs products once per step, when it is made; looking up and
            adding are none.
        samples_per_step: lanes times chunk.
    """
    forward = sum(count / period for period, count in weights(config))
    for frame in config.frame_sizes:  # what reads frames: a projection, or the RNN's own matrix
        forward += (_of_frames(config, frame) or frame * config.dim) / frame
    if config.linear_mlp_layer:
        forward += config.dim**2
    first = config.frame_sizes[-1] * (config.embedding_dim or config.q_levels) * config.dim
    if first_layer == "table":  # one-hot codes: the weights are the table
        first *= config.q_levels if config.embedding_dim else 0
    fixed = 0.0
    for frame in config.frame_sizes:
        recurrent = _recurrent(config, frame)
        fixed += (recurrent.total - recurrent.trained) / frame
    if CELLS[config.rnn].has_fixed_inputs:
        projected = [frame for frame in config.frame_sizes if not _of_frames(config, frame)]
        fixed += len(projected) * config.dim + config.dim**2 / config.frame_sizes[0]
    return 3 * (forward + (first if first_layer == "convolution" else first / samples_per_step)) - fixed


class RecurrentMatrices(NamedTuple):
    """How many weights the large matrices of one tier's recurrent layers have."""

    total: int
    trained: int
    """Of them; the others only pass gradients on."""
    of_input: int
    """Of them: multiply the tier's input, not what a layer says."""


def recurrent_matrices(config: ModelConfig, input_size: int | None = None) -> RecurrentMatrices:
    """Count what a tier's `RNN` multiplies per step, biases and whatever works unit by unit apart."""
    with torch.device("meta"):
        rnn = RNN(config, input_size)
    named = rnn.state_dict(keep_vars=True).items()
    weights = {name: value for name, value in named if "weight" in name and value.dim() == 2}
    readers = [weight for name, weight in weights.items() if "weight_ih" in name]
    return RecurrentMatrices(
        sum(weight.numel() for weight in weights.values()),
        sum(weight.numel() for weight in weights.values() if isinstance(weight, nn.Parameter)),
        sum(len(weight) * rnn.input_size for weight in readers[: None if rnn.has_skips else 1]),
    )


def _recurrent(config: ModelConfig, frame: int) -> RecurrentMatrices:
    """Of the tier with this frame size."""
    return recurrent_matrices(config, None if config.top_projection or frame < config.lookback else frame)


def _of_frames(config: ModelConfig, frame: int) -> int:
    """Recurrent layers' weights that read frames; 0 where a projection does."""
    return 0 if config.top_projection or frame < config.lookback else _recurrent(config, frame).of_input


def _ratios(config: ModelConfig) -> list[int]:
    clocks = (*config.frame_sizes, 1)
    return [slow // fast for slow, fast in itertools.pairwise(clocks)]
