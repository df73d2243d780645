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
from samplernn.config import Config, from_dict, merged
from samplernn.model.network import SampleRNN
from samplernn.model.quantize import Quantizer
from samplernn.training import run
from samplernn.training.gradients import GradientControl, fused_optimizer_works, keep_fused
from tests.conftest import TOY


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
    gradients = GradientControl(model)
    gradients.judge(_adam(model, fused=True), clip_val, "norm")
    assert gradients.read().norms == pytest.approx(expected, rel=1e-5)
    nn.utils.clip_grad_norm_(other.parameters(), clip_val or math.inf)
    torch.testing.assert_close(_gradients(model), _gradients(other))


def test_values_are_clipped_one_by_one(model: SampleRNN, codes: Iterator[Tensor]) -> None:
    _backward(model, next(codes))
    expected = _gradients(model).clamp(-1e-3, 1e-3)
    gradients = GradientControl(model)
    gradients.judge(_adam(model, fused=True), 1e-3, "value")
    assert torch.equal(_gradients(model), expected)
    assert gradients.read().norms["grad_norm"] > expected.norm().item()


def _recurrent(model: SampleRNN) -> list[Tensor]:
    """Gradients of the hidden-to-hidden matrices; nothing else has their shape."""
    dim = model.config.dim
    return [p.grad for p in model.parameters() if p.shape == (3 * dim, dim) and p.grad is not None][1::2]


@pytest.mark.parametrize(("limit", "algorithm"), [(1e-3, "norm"), (1e6, "norm"), (1e-4, "value")])
def test_recurrent_weights_can_be_clipped_alone(
    model: SampleRNN, codes: Iterator[Tensor], limit: float, algorithm: str
) -> None:
    _backward(model, next(codes))
    before = {name: p.grad.clone() for name, p in model.named_parameters()}  # type: ignore[union-attr]
    whole, theirs = _gradients(model).norm().item(), torch.cat([g.flatten() for g in _recurrent(model)])
    gradients = GradientControl(model, "recurrent")
    gradients.judge(_adam(model, fused=True), limit, algorithm)
    assert gradients.read().norms["grad_norm"] == pytest.approx(whole, rel=1e-5)  # of all, before clipping
    changed = {name for name, p in model.named_parameters() if not torch.equal(p.grad, before[name])}  # type: ignore[arg-type]
    names = {f"frame_level_tiers.{tier}.rnn.layers.weight_hh_l0" for tier in (0, 1)}
    assert changed == (set() if limit > 1 else names)
    after = torch.cat([g.flatten() for g in _recurrent(model)])
    if algorithm == "value":
        assert torch.equal(after, theirs.clamp(-limit, limit))
    elif limit < theirs.norm():
        torch.testing.assert_close(after, theirs * (limit / theirs.norm()))
        assert after.norm().item() == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize(
    ("precision", "algorithm", "parameters"),
    [
        ("32-true", "value", "all"),
        ("bf16-mixed", "value", "recurrent"),
        ("bf16-true", "value", "all"),
        ("16-mixed", "value", "all"),  # plain Adam; bf16 on the CPU
        ("64-true", "norm", "recurrent"),
    ],
)
def test_the_trainer_clips_what_the_keys_say_in_every_precision(
    clips: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    algorithm: str,
    parameters: str,
) -> None:
    """With accumulation: what is clipped is the sum of two chunks."""
    found: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    judge = GradientControl.judge

    def watched(self: GradientControl, optimizer: torch.optim.Optimizer, *arguments: Any) -> None:
        every = optimizer.param_groups[0]["params"]
        dim = TOY["model"]["dim"]
        square = [p for p in every if p.shape == (3 * dim, dim)][1::2]  # type: ignore[operator]

        def now() -> dict[str, Tensor]:
            others = [p for p in every if not any(p is one for one in square)]
            return {
                name: torch.cat([p.grad.flatten().double() for p in part])
                for name, part in (("recurrent", square), ("other", others))
            }

        before = now()
        judge(self, optimizer, *arguments)
        found.append((before, now()))

    monkeypatch.setattr(GradientControl, "judge", watched)
    monkeypatch.chdir(tmp_path)
    trainer = {
        "precision": precision,
        "gradient_clip_val": 1e-3,
        "gradient_clip_algorithm": algorithm,
        "gradient_clip_parameters": parameters,
        "accumulate_grad_batches": 2,
        "max_steps": 3,
    }
    run.start(clips, from_dict(Config, merged(TOY, {"trainer": trainer, "samples": {"num": 0}})), "clipped")
    assert len(found) == 3
    for before, after in found:
        assert torch.equal(after["other"], before["other"]) == (parameters == "recurrent")
        assert not torch.equal(after["recurrent"], before["recurrent"])
        assert before["recurrent"].abs().max() > 1e-3
        if algorithm == "value":
            for name in ("recurrent",) if parameters == "recurrent" else ("recurrent", "other"):
                torch.testing.assert_close(after[name], before[name].clamp(-1e-3, 1e-3), rtol=5e-3, atol=0)
        else:
            assert after["recurrent"].norm().item() == pytest.approx(1e-3, rel=2e-3)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("harm", [math.nan, math.inf])
def test_weights_and_moments_are_those_of_a_run_without_the_bad_steps(
    model: SampleRNN, codes: Iterator[Tensor], fused: bool, harm: float
) -> None:
    """The very first step, before there are moments, two in a row, and one later."""
    healthy = copy.deepcopy(model)
    optimizer, expected = _adam(model, fused), _adam(healthy, fused)
    gradients = GradientControl(model)
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
    optimizer, gradients = _adam(model, fused=True), GradientControl(model)
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
    optimizer, gradients = _adam(model, fused=True), GradientControl(model)
    _backward(model, next(codes))
    for judging in (gradients, GradientControl(model, "recurrent")):
        for algorithm in ("norm", "value"):
            with _NoReading():
                judging.judge(optimizer, 0.1, algorithm)
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
    GradientControl(model).judge(new, 1.0)
    new.step()
    saved = new.state_dict()["state"].values()
    assert all(state["step"] == 1 and state["exp_avg"].isfinite().all() for state in saved)


def test_where_a_fused_optimizer_is_used() -> None:
    assert fused_optimizer_works(torch.device("cpu"), "32-true")
    assert fused_optimizer_works(torch.device("cuda", 1), "bf16-mixed")
    assert not fused_optimizer_works(torch.device("cuda"), "16-mixed")
    assert not fused_optimizer_works(torch.device("mps"), "32-true")


def test_a_resumed_run_reads_the_means_of_all_steps(model: SampleRNN, codes: Iterator[Tensor]) -> None:
    optimizer, whole, before, after = _adam(model, fused=True), *(GradientControl(model) for _ in range(3))
    for step in range(6):
        _backward(model, next(codes))
        whole.judge(optimizer, None)
        if step == 3:
            after.load_state_dict(before.state_dict())
        (before if step < 3 else after).judge(optimizer, None)
    assert after.read() == whole.read()
