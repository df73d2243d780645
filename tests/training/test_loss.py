from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from samplernn.config import ModelConfig
from samplernn.model.heads import BITS_PER_NAT, SoftmaxHead
from samplernn.training.loss import summed_nll


@pytest.fixture
def logits() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (3 * torch.randn(2, 5, 7, generator=generator, dtype=torch.float64)).requires_grad_()


TARGETS = torch.tensor([[0, 1, 2, 3, 4], [5, 6, 0, 1, 2]])
MASK = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])


def _nll(logits: Tensor, codes: Tensor, mask: Tensor) -> Tensor:
    return summed_nll(SoftmaxHead(ModelConfig(q_levels=logits.shape[-1])), logits, codes, mask)


def naive_nll(logits: Tensor) -> float:
    total = 0.0
    for b, t in np.ndindex(2, 5):
        if MASK[b, t]:
            row = logits[b, t].tolist()
            total += math.log(sum(math.exp(value) for value in row)) - row[TARGETS[b, t]]
    return total


def test_nll_is_summed_over_the_real_samples(logits: Tensor) -> None:
    """In the precision of the logits: what is left of the rounding of float32 depends on the processor."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        got = _nll(logits.to(dtype), TARGETS, MASK)
        assert got.dtype == dtype
        assert got.shape == ()
        assert got.item() == pytest.approx(naive_nll(logits), rel=tolerance)


def test_uniform_logits_cost_log2_q_bits() -> None:
    nats = _nll(torch.zeros(1, 4, 256), torch.tensor([[0, 9, 200, 255]]), torch.ones(1, 4).bool())
    assert nats.item() * BITS_PER_NAT / 4 == pytest.approx(8)


def test_masked_samples_count_nothing_and_give_no_gradient(logits: Tensor) -> None:
    nll = _nll(logits, TARGETS, MASK)
    nll.backward()
    assert logits.grad is not None
    assert (logits.grad[~MASK] == 0).all()
    assert (logits.grad[MASK].abs().sum(dim=1) > 0).all()
    elsewhere = torch.where(MASK[..., None], logits, 50 * torch.arange(7.0))
    other_targets = torch.where(MASK, TARGETS, 6 - TARGETS)
    assert _nll(elsewhere, other_targets, MASK).item() == nll.item()


def test_a_fully_masked_chunk_is_exactly_zero_and_still_runs_backward(logits: Tensor) -> None:
    """A rank whose lanes have all run out must take part in the gradient exchange."""
    nll = _nll(logits, TARGETS, torch.zeros(2, 5, dtype=torch.bool))
    assert nll.item() == 0
    nll.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_bfloat16_logits_are_scored_in_float32(logits: Tensor) -> None:
    """A sum in bfloat16 would stop growing after a few hundred samples."""
    half = logits.detach().bfloat16().repeat(400, 1, 1)
    got = _nll(half, TARGETS.repeat(400, 1), MASK.repeat(400, 1))
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx(400 * naive_nll(half[:2].double()), rel=1e-5)
