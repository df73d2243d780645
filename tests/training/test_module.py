"""Truncated BPTT as training steps, against the same thing written out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samplernn.config import Config, from_dict, merged
from samplernn.model.checkpoint import Checkpoint
from samplernn.model.network import State
from samplernn.training.agreement import Agreement
from samplernn.training.loss import Batch, chunk_nll
from samplernn.training.module import TrainingModule
from tests.conftest import TOY


class _OneProcess:
    """The little that a step asks of its Trainer."""

    world_size, global_rank = 1, 0
    global_step = 0

    class strategy:  # noqa: N801
        @staticmethod
        def reduce(values: torch.Tensor, reduce_op: str) -> torch.Tensor:
            return values


def _module(**options: dict[str, object]) -> TrainingModule:
    torch.manual_seed(0)
    config: Config = from_dict(Config, merged(TOY, options))
    facts = Checkpoint(config, {}, gain=0.5, pair_counts=np.zeros((64, 64), np.int64), split={})
    module = TrainingModule(facts, planned_steps_per_epoch=10)
    module._trainer = _OneProcess()  # type: ignore[assignment]
    return module


def _batch(seed: int, reset: list[bool], real: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(64, (len(reset), 64), generator=generator)
    mask = torch.zeros(len(reset), 64, dtype=torch.bool)
    mask[:, :real] = True
    return Batch(codes, mask, torch.tensor(reset))


def test_the_loss_is_the_mean_over_real_samples_with_state_carried_and_rows_reset() -> None:
    module = _module()
    model = module.model
    first, second = _batch(1, [True, True, True]), _batch(2, [False, True, False], real=40)
    module.training_step(first, 0)
    loss = module.training_step(second, 1)

    _, state = model(first.codes, model.initial_state(3))
    logits, _ = model(second.codes, model.reset(state, second.reset))
    nll = F.cross_entropy(logits.transpose(1, 2), second.codes, reduction="none")[:, :40]
    torch.testing.assert_close(loss, nll.mean())


def test_no_gradient_crosses_a_chunk_boundary() -> None:
    module = _module()
    module.training_step(_batch(1, [True]), 0)
    assert module.lane_state is not None
    assert not any(tensor.requires_grad for tensor in module.lane_state.rnn)


def test_every_parameter_has_a_gradient_without_resets_and_without_real_samples() -> None:
    module = _module()
    for reset, real in (([False, False], 64), ([True, False], 64), ([False, False], 0)):
        module.zero_grad()
        loss = module.training_step(_batch(1, reset, real), 0)
        assert math.isfinite(loss.item())
        loss.backward()
        missing = [name for name, parameter in module.model.named_parameters() if parameter.grad is None]
        assert missing == []


def test_logged_bits_are_averaged_over_samples_not_over_steps() -> None:
    module = _module()
    losses = [module.training_step(_batch(seed, [True], real), 0) for seed, real in ((1, 64), (2, 8))]
    count = module.read_train_bits()
    nats = losses[0].item() * 64 + losses[1].item() * 8
    assert count.num_samples == 72
    assert count.bits_per_sample == pytest.approx(nats / 72 / math.log(2), rel=1e-5)
    assert module.read_train_bits().num_samples == 0


@pytest.mark.parametrize(
    ("options", "step", "expected"),
    [
        ({"max_steps": 100}, 50, 0.05 + 0.95 * 0.5),
        ({"max_steps": 100}, 100, 0.05),
        ({"max_steps": 100}, 0, 1 / 11),  # warm-up over 10 steps
        ({"max_epochs": 5, "max_steps": -1}, 25, 0.05 + 0.95 * 0.5),  # 10 steps per epoch
        ({"max_steps": -1}, 1000, 1.0),  # no planned end: constant
    ],
)
def test_the_learning_rate_follows_the_plan(
    options: dict[str, object], step: int, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = _module(trainer=options, optim={"warmup_steps": 10, "schedule": "cosine"})
    monkeypatch.setattr(TrainingModule, "global_step", step)
    assert module.lr_factor(step) == pytest.approx(expected, abs=1e-6)


def test_the_learning_rate_can_be_planned_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module(trainer={"max_steps": -1, "max_time": "00:00:01:40"})
    monkeypatch.setattr(TrainingModule, "global_step", 500)
    module.agreement = Agreement(75.0)
    assert module.progress() == pytest.approx(0.75)
    assert module.lr_factor(500) == pytest.approx(0.05 + 0.95 * 0.5 * (1 + math.cos(0.75 * math.pi)))


def test_the_saved_lanes_are_those_of_the_last_chunk(trained_run: Path) -> None:
    saved = torch.load(trained_run / "checkpoints" / "last.ckpt", weights_only=True)["lane_state"]
    history, *rnn = saved["lanes"]
    assert history.shape == (4, 8)
    assert [tier.shape for tier in rnn] == [(4, 1, 1, 16), (4, 1, 1, 16)]
    assert saved["best_bits"] <= saved["validation_bits"]


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("harm", [math.nan, -math.inf])
def test_a_lane_whose_state_is_not_finite_starts_afresh_and_the_others_go_on(rnn: str, harm: float) -> None:
    module = _module(model={"rnn": rnn})
    healthy = _module(model={"rnn": rnn})
    module.training_step(_batch(1, [True, True, True]), 0)
    healthy.training_step(_batch(1, [True, True, True]), 0)
    assert module.lane_state is not None
    module.lane_state.rnn[1][2, -1, 0, 5] = harm
    loss = module.training_step(_batch(2, [False, False, False]), 1)
    expected = healthy.training_step(_batch(2, [False, False, True]), 1)
    assert torch.equal(loss, expected)
    loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all()
        for parameter in module.model.parameters()
    )


def test_a_loss_that_is_not_finite_spoils_the_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """So all processes skip the step, though the gradient of an infinite loss may itself be finite."""

    def infinite(*arguments: Any) -> tuple[torch.Tensor, State]:
        nats, state = chunk_nll(*arguments)
        return nats + math.inf, state

    module = _module()
    monkeypatch.setattr("samplernn.training.module.chunk_nll", infinite)
    module.training_step(_batch(1, [True]), 0).backward()
    assert all(
        parameter.grad is not None and parameter.grad.isnan().any() for parameter in module.model.parameters()
    )
    assert module.read_train_bits().num_samples == 0
