"""Counted multiplications, against those that torch counts while it computes."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from samplernn.config import CELLS, ModelConfig
from samplernn.insight.benchmark.sizes import training_multiplications
from samplernn.model.network import SampleRNN
from samplernn.training.loss import summed_nll


@pytest.mark.filterwarnings("ignore:TF32")
@pytest.mark.parametrize("first_layer", ["table", "convolution"])
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(frame_sizes=(16, 4), dim=24, n_rnn=2, q_levels=64, embedding_dim=10),
        ModelConfig(frame_sizes=(8,), rnn="lstm", dim=16, q_levels=32, embedding_dim=5, weight_norm=False),
        ModelConfig(frame_sizes=(8,), dim=16, q_levels=32, embedding_dim=0),
        *(ModelConfig((16, 4), rnn, 2, 24, q_levels=64, embedding_dim=10) for rnn in CELLS),
        *(ModelConfig((8,), rnn, 3, 16, q_levels=64, skip_connections=True) for rnn in CELLS),
        ModelConfig((8,), "lstm-peephole", 1, 16, q_levels=64, recurrent_input=False),
        ModelConfig(
            frame_sizes=(16, 4),
            dim=24,
            embedding_dim=10,
            top_projection=False,
            linear_mlp_layer=True,
            rnn_weight_norm=True,
        ),
    ],
)
def test_multiplications_are_those_of_a_real_step(
    config: ModelConfig, first_layer: Literal["table", "convolution"]
) -> None:
    lanes, length = 3, 64
    model = SampleRNN(config, first_layer)
    codes = torch.randint(config.q_levels, (lanes, length))
    # oneDNN's LSTM is one operation that is not counted.
    with torch.backends.mkldnn.flags(enabled=False), FlopCounterMode(display=False) as counter:
        logits, _ = model(codes, model.initial_state(lanes))
        summed_nll(model.head, logits, codes, torch.ones_like(codes, dtype=torch.bool)).backward()
    counted = counter.get_total_flops() / 2  # a multiplication and an addition each
    samples = lanes * length
    expected = samples * training_multiplications(config, first_layer, samples)
    readers = len(config.frame_sizes) + (0 if config.top_projection else 2)  # a GRU has three gates
    no_gradient_of_inputs = samples * readers * config.dim
    if config.embedding_dim == 0 and first_layer == "convolution":  # one-hot codes are an input, too
        no_gradient_of_inputs += samples * config.frame_sizes[-1] * config.q_levels * config.dim
    assert counted == expected - no_gradient_of_inputs
