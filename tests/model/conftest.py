"""What the tests of the model room share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from samplernn.config import ModelConfig
from samplernn.model.network import SampleRNN


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and wait long for them on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def random_model() -> Callable[..., SampleRNN]:
    """Builds a tiny model in which every parameter is random: h0, biases and weight-norm lengths too.

    At initialisation h0 and the biases are zero and g is |v|, so mistakes in them would not show.
    """

    def build(
        first_layer: str = "table", dtype: torch.dtype = torch.float64, seed: int = 1, **options: Any
    ) -> SampleRNN:
        config = ModelConfig(**{"dim": 8, "q_levels": 16, "embedding_dim": 6, **options})
        model = SampleRNN(config, first_layer=first_layer).to(dtype)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                if name.endswith(".g"):
                    values = 1 + values.tanh() / 2  # a length, 0.5 to 1.5
                elif parameter.ndim == 2:
                    values = values * (1.5 / parameter.shape[1] ** 0.5)
                parameter.copy_(values)
        return model

    return build
