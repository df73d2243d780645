"""Gradients are measured per tier, clipped and, where not finite, kept from doing harm, all on the device."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from samplernn.audio.io import load
from samplernn.config import Config
from samplernn.model.network import SampleRNN
from samplernn.model.quantize import Quantizer
from samplernn.training.gradients import Gradients, fused_optimizer_works, keep_fused


@pytest.fixture
def codes(clips: Path, toy_config: Config) -> Iterator[Tensor]:
    """Chunks ``[2, 64]`` of a clip."""
    audio = torch.from_numpy(load(next(clips.rglob("*.flac")), 4000))
    chunks = Quantizer(toy_config.model.q_levels, "linear").encode(audio).unfold(0, 64, 64)  # [N, 64]
    return iter(chunks.split(2))


@pytest.fixture
def model(toy_config: Config) -> SampleRNN:
    torch.manual_seed(0)
    return SampleRNN(toy_config.model)


def _backward(model: SampleRNN, codes: Tensor) -> None:
    model.zero_grad()
    logits, _ = model(codes, model.initial_state(len(codes)))
    F.cross_entropy(logits.flatten(0, 1), codes.flatten()).backward()


def _gradients(module: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])  # type: ignore[union-attr]


def _adam(model: SampleRNN, fused: bool) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)


@pytest.mark.parametrize("clip_val", [0.01, 1e6, None])
def test_the_norms_are_those_before_clipping_and_the_clipping_is_that_of_torch(
    model: SampleRNN, codes: Iterator[Tensor], clip_val: float | None
) -> None:
    other = copy.deepcopy(model)
    chunk = next(codes)
    for each in (model, other):
        _backward(each, chunk)
    top, middle = model.tiers()
    parts = {"/tier3": top, "/tier2": middle, "/tier1": model.sample_level_mlp, "": model}
    expected = {f"grad_norm{name}": _gradients(part).norm().item() for name, part in parts.items()}
    gradients = Gradients(model)
    gradients.judge(_adam(model, fused=True), clip_val, "norm")
    assert gradients.read().norms == pytest.approx(expected, rel=1e-5)
    nn.utils.clip_grad_norm_(other.parameters(), clip_val or math.inf)
    torch.testing.assert_close(_gradients(model), _gradients(other))


def test_values_are_clipped_one_by_one(model: SampleRNN, codes: Iterator[Tensor]) -> None:
    _backward(model, next(codes))
    expected = _gradients(model).clamp(-1e-3, 1e-3)
    gradients = Gradients(model)
    gradients.judge(_adam(model, fused=True), 1e-3, "value")
    assert torch.equal(_gradients(model), expected)
    assert gradients.read().norms["grad_norm"] > expected.norm().item()


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("harm", [math.nan, math.inf])
def test_weights_and_moments_are_those_of_a_run_without_the_bad_steps(
    model: SampleRNN, codes: Iterator[Tensor], fused: bool, harm: float
) -> None:
    """The very first step, before there are moments, two in a row, and one later."""
    healthy = copy.deepcopy(model)
    optimizer, expected = _adam(model, fused), _adam(healthy, fused)
    gradients = Gradients(model)
    for step in range(12):
        chunk = next(codes)
        _backward(model, chunk)
        if step in (0, 4, 5, 9):
            model.tiers()[1].input_projection.weight.grad[0, 0] = harm  # type: ignore[index]
            before = copy.deepcopy(model.state_dict())
        gradients.judge(optimizer, 0.5)
        optimizer.step()
        if step in (0, 4, 5, 9):
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            continue
        _backward(healthy, chunk)
        nn.utils.clip_grad_norm_(healthy.parameters(), 0.5)
        expected.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, healthy.state_dict()[name], rtol=0, atol=1e-5)
    for ours, theirs in zip(
        optimizer.state_dict()["state"].values(), expected.state_dict()["state"].values(), strict=True
    ):
        assert ours["step"] == theirs["step"] == 8
        for moment in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours[moment], theirs[moment], rtol=1e-3, atol=1e-6)


def test_a_fused_step_is_that_of_plain_adam(model: SampleRNN, codes: Iterator[Tensor]) -> None:
    plain = copy.deepcopy(model)
    fused_adam, plain_adam = _adam(model, fused=True), _adam(plain, fused=False)
    for _ in range(20):
        chunk = next(codes)
        for network, optimizer in ((model, fused_adam), (plain, plain_adam)):
            _backward(network, chunk)
            optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=0, atol=1e-5)


def test_skipped_steps_are_counted_and_left_out_of_the_means(
    model: SampleRNN, codes: Iterator[Tensor]
) -> None:
    optimizer, gradients = _adam(model, fused=True), Gradients(model)
    gradients.load_state_dict({**gradients.state_dict(), "skipped": 100})
    norms = []
    for is_bad in (False, True, False, True, True, True):
        _backward(model, next(codes))
        norms += [] if is_bad else [_gradients(model).norm().item()]
        if is_bad:
            model.sample_level_mlp.embedding.weight.grad.fill_(math.nan)  # type: ignore[union-attr]
        gradients.judge(optimizer, None)
    reading = gradients.read()
    assert reading.norms["grad_norm"] == pytest.approx(sum(norms) / 2, rel=1e-5)
    assert (reading.skipped, reading.in_a_row) == (104, 3)
    assert gradients.read() == ({}, 104, 3)
    _backward(model, next(codes))
    gradients.judge(optimizer, None)
    assert gradients.read()[1:] == (104, 0)


class _NoReading(TorchDispatchMode):
    """Fails where the host reads a tensor's value, which would wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_host_does_not_wait_for_the_verdict(model: SampleRNN, codes: Iterator[Tensor]) -> None:
    optimizer, gradients = _adam(model, fused=True), Gradients(model)
    _backward(model, next(codes))
    for algorithm in ("norm", "value"):
        with _NoReading():
            gradients.judge(optimizer, 0.1, algorithm)
            optimizer.step()
    with pytest.raises(AssertionError), _NoReading():
        gradients.judge(_adam(model, fused=False), 0.1)


@pytest.mark.parametrize("fused", [True, False])
def test_an_optimizer_goes_on_from_the_state_of_the_other_kind(
    model: SampleRNN, codes: Iterator[Tensor], fused: bool
) -> None:
    """Checkpoints of before, of another device and of another precision."""
    old, new = _adam(model, not fused), _adam(model, fused)
    _backward(model, next(codes))
    old.step()
    keep_fused(new)
    new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert new.param_groups[0]["fused"] is fused
    model.sample_level_mlp.embedding.weight.grad.fill_(math.nan)  # type: ignore[union-attr]
    Gradients(model).judge(new, 1.0)
    new.step()
    saved = new.state_dict()["state"].values()
    assert all(state["step"] == 1 and state["exp_avg"].isfinite().all() for state in saved)


def test_where_a_fused_optimizer_is_used() -> None:
    assert fused_optimizer_works(torch.device("cpu"), "32-true")
    assert fused_optimizer_works(torch.device("cuda", 1), "bf16-mixed")
    assert not fused_optimizer_works(torch.device("cuda"), "16-mixed")
    assert not fused_optimizer_works(torch.device("mps"), "32-true")


def test_a_resumed_run_reads_the_means_of_all_steps(model: SampleRNN, codes: Iterator[Tensor]) -> None:
    optimizer, whole, before, after = _adam(model, fused=True), *(Gradients(model) for _ in range(3))
    for step in range(6):
        _backward(model, next(codes))
        whole.judge(optimizer, None)
        if step == 3:
            after.load_state_dict(before.state_dict())
        (before if step < 3 else after).judge(optimizer, None)
    assert after.read() == whole.read()
