"""The recurrent layer that trains on a CPU, against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from samplernn.config import ModelConfig
from samplernn.model.cells import RNN

DIM, BATCH, FRAMES = 12, 3, 7


def _both(rnn: RNN, dtype: torch.dtype) -> list[tuple[str, Tensor, Tensor]]:
    """Outputs and gradients of `RNN` and of the `nn.GRU` in it, on the same input."""
    torch.manual_seed(1)
    assert isinstance(rnn.layers, nn.GRU)
    x, state = torch.randn(BATCH, FRAMES, DIM, dtype=dtype), torch.randn(BATCH, 1, 2, DIM, dtype=dtype)
    weights = torch.randn(BATCH, FRAMES, DIM, dtype=dtype), torch.randn(BATCH, 1, 2, DIM, dtype=dtype)
    found: list[dict[str, Tensor]] = []
    for ours in (True, False):
        inputs = x.clone().requires_grad_(), state.clone().requires_grad_()
        rnn.zero_grad()
        if ours:
            hidden, last = rnn(*inputs)
        else:
            hidden, end = rnn.layers(inputs[0], inputs[1][:, 0].transpose(0, 1).contiguous())
            last = end.transpose(0, 1)[:, None]
        ((hidden * weights[0]).sum() + (last * weights[1]).sum()).backward()
        grads = {name: p.grad for name, p in rnn.layers.named_parameters() if p.grad is not None}
        assert inputs[0].grad is not None
        assert inputs[1].grad is not None
        of_inputs = {"x": inputs[0].grad, "state": inputs[1].grad}
        found.append({"hidden": hidden.detach(), "last": last.detach(), **of_inputs, **grads})
    assert len(found[0]) == 4 + 8
    return [(name, found[0][name], found[1][name]) for name in found[1]]


def _random(dtype: torch.dtype) -> RNN:
    torch.manual_seed(0)
    rnn = RNN(ModelConfig(dim=DIM, n_rnn=2)).to(dtype)
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.normal_(0, 0.5)
    return rnn


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_layer_is_that_of_torch_in_values_and_in_all_gradients(
    dtype: torch.dtype, tolerance: float
) -> None:
    for name, ours, theirs in _both(_random(dtype), dtype):
        torch.testing.assert_close(
            ours, theirs, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_in_mixed_precision_only_the_products_are_narrow() -> None:
    rnn = _random(torch.float32)
    exact = {name: theirs for name, _, theirs in _both(rnn, torch.float32)}
    with torch.autocast("cpu", torch.bfloat16):
        for name, ours, theirs in _both(rnn, torch.float32):
            assert ours.dtype == torch.float32, name
            of_ours = (ours - exact[name]).abs().mean()
            of_theirs = (theirs.float() - exact[name]).abs().mean()
            assert 0 < of_ours < 1.2 * of_theirs, name
