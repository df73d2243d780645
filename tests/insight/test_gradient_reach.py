"""Gradients over the lag, against autograd through the network itself and against equations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from samplernn.audio.corpus import prepare
from samplernn.cli import main
from samplernn.config import CELLS, DataConfig, ModelConfig, UserError
from samplernn.insight.gradients import (
    TierGradients,
    _places,
    gradient_norms,
    gradients,
    state_jacobians,
    unroll,
    walk,
)
from samplernn.model.cells import RNN
from samplernn.model.checkpoint import load
from samplernn.model.network import SampleRNN, State

STACKS = pytest.mark.parametrize(("rnn", "n_rnn"), [("gru", 1), ("gru", 2), ("lstm", 1), ("lstm", 2)])
EVERY_CELL = pytest.mark.parametrize(("rnn", "n_rnn"), [(rnn, n_rnn) for rnn in CELLS for n_rnn in (1, 2)])
SLOW, FAST = 8, 2


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def _network(rnn: str, n_rnn: int, **options: Any) -> SampleRNN:
    """Every parameter random, in float64."""
    torch.manual_seed(0)
    config = ModelConfig(
        frame_sizes=(SLOW, FAST),
        dim=6,
        rnn=rnn,
        n_rnn=n_rnn,
        q_levels=16,
        embedding_dim=4,  # type: ignore[arg-type]
        **options,
    )
    model = SampleRNN(config).double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.requires_grad_(False)


def _heard(model: SampleRNN, batch: int = 2) -> State:
    _, state = model(torch.randint(16, (batch, 2 * SLOW)), model.initial_state(batch))
    return state


@EVERY_CELL
def test_walking_step_by_step_is_what_the_layers_do(rnn: str, n_rnn: int) -> None:
    model = _network(rnn, n_rnn)
    layers = model.tiers()[0].rnn
    x = torch.randn(3, 7, 6, dtype=torch.float64)
    state = torch.randn(3, *layers.h0.shape, dtype=torch.float64).tanh()
    hidden, last = layers(x, state)
    walked = walk(layers, x, state)
    torch.testing.assert_close(torch.stack([step[:, 0] for step in walked.states[-1]], dim=1), hidden)
    torch.testing.assert_close(walked.output, hidden)
    torch.testing.assert_close(torch.stack([layer[-1] for layer in walked.states], dim=2), last)


@EVERY_CELL
def test_the_loss_is_that_of_the_network(rnn: str, n_rnn: int) -> None:
    model = _network(rnn, n_rnn)
    state, x = _heard(model), torch.randint(16, (2, 4 * SLOW))
    logits, _ = model(x, state)
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), x, reduction="none")[:, -FAST:]
    torch.testing.assert_close(unroll(model, x, state).nll, expected)


@pytest.mark.parametrize("rnn", CELLS)
def test_skip_connections_are_walked_too(rnn: str) -> None:
    model = _network(rnn, 2, skip_connections=True)
    state, x = _heard(model), torch.randint(16, (2, 4 * SLOW))
    logits, _ = model(x, state)
    expected = nn.functional.cross_entropy(logits.transpose(1, 2), x, reduction="none")[:, -FAST:]
    torch.testing.assert_close(unroll(model, x, state).nll, expected)


@pytest.mark.parametrize("rnn", CELLS)
def test_jacobians_are_those_of_the_layers_own_gradients(rnn: str) -> None:
    layers = _network(rnn, 1).tiers()[1].rnn
    walked = walk(layers, torch.randn(1, 2, 6, dtype=torch.float64), layers.initial_state(1))
    before, after = walked.states[0]
    (cell,) = layers.cells()
    rows = [torch.autograd.grad(one, before, retain_graph=True)[0].flatten() for one in after.flatten()]
    found = state_jacobians(cell, before.detach(), walked.gates_x[0][:, 1].detach())
    torch.testing.assert_close(found[0], torch.stack(rows))


def _loss(logits: Tensor, x: Tensor) -> Tensor:
    """Mean over the last frame of the fastest tier, summed over rows."""
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), x, reduction="none")
    return nll[:, -FAST:].mean(dim=1).sum()


@STACKS
def test_gradients_of_the_slow_tier_are_autograds_through_the_whole_network(rnn: str, n_rnn: int) -> None:
    """A change is added to what the slow tier's top layer gives and keeps at one step; the network itself runs on."""
    model = _network(rnn, n_rnn)
    num_steps = 5
    state, x = _heard(model), torch.randint(16, (2, num_steps * SLOW))
    is_top_only = n_rnn == 1
    found = gradient_norms(unroll(model, x, state))[0]  # [B, F]
    for step in range(num_steps):
        change = torch.zeros_like(state.rnn[0]).requires_grad_()  # [B, S, n_rnn, D]

        def disturb(
            module: nn.Module, inputs: Any, outputs: tuple[Tensor, Tensor], change: Tensor = change
        ) -> Any:
            hidden, after = outputs
            return hidden + change[:, 0, -1:], after + change

        now, pieces = state, []
        for index, piece in enumerate(x.split(SLOW, dim=1)):
            hook = model.tiers()[0].register_forward_hook(disturb) if index == step else None
            logits, now = model(piece, now)
            pieces.append(logits)
            if hook:
                hook.remove()
        (expected,) = torch.autograd.grad(_loss(torch.cat(pieces, dim=1), x), change)
        if is_top_only:
            torch.testing.assert_close(found[:, step], expected.flatten(1).norm(dim=1))
        else:  # a lower layer's also goes through the upper layer at the same step, which the hook cannot reach
            top = expected[:, :, -1].flatten(1).norm(dim=1)
            assert (found[:, step] >= top - 1e-12).all()


@STACKS
def test_gradients_of_the_fast_tier_are_autograds_through_the_whole_network(rnn: str, n_rnn: int) -> None:
    """At the borders of slow frames, where the network can be stopped and its state taken out.

    What the fast tier gives at a step only speaks to the samples of that step, so before the last one only the
    state that it keeps matters.
    """
    model = _network(rnn, n_rnn)
    num_chunks = 5
    state, x = _heard(model), torch.randint(16, (2, num_chunks * SLOW))
    found = gradient_norms(unroll(model, x, state))[1]
    assert found.shape == (2, num_chunks * SLOW // FAST)
    for chunk in range(1, num_chunks):
        border = chunk * SLOW
        _, before = model(x[:, :border], state)
        kept = before.rnn[1].clone().requires_grad_()
        logits, _ = model(x[:, border:], State(before.history, (before.rnn[0], kept)))
        (expected,) = torch.autograd.grad(_loss(logits, x[:, border:]), kept)
        at_step = found[:, border // FAST - 1]
        if n_rnn == 1:
            torch.testing.assert_close(at_step, expected.flatten(1).norm(dim=1))
        else:
            top = expected[:, :, -1].flatten(1).norm(dim=1)
            assert (at_step >= top - 1e-12).all()


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
def test_jacobians_are_those_of_pytorchs_own_cells(rnn: str) -> None:
    layers = _network(rnn, 2).tiers()[1].rnn
    size = 2 if rnn == "lstm" else 1
    states = torch.randn(3, size, 6, dtype=torch.float64).tanh()
    x = torch.randn(3, 6, dtype=torch.float64)
    own = layers.layers
    gates_x = nn.functional.linear(x, own.weight_ih_l1, own.bias_ih_l1)
    found = state_jacobians(layers.cells()[1], states, gates_x)
    cell = (nn.LSTMCell if rnn == "lstm" else nn.GRUCell)(6, 6).double()
    cell.load_state_dict({name: getattr(own, f"{name}_l1") for name in cell.state_dict()})

    for row in range(3):

        def step(flat: Tensor, row: int = row) -> Tensor:
            if rnn == "lstm":
                return torch.cat(cell(x[row], (flat[:6], flat[6:])))
            return cell(x[row], flat)  # type: ignore[no-any-return]

        expected = torch.autograd.functional.jacobian(step, states[row].flatten())
        torch.testing.assert_close(found[row], expected)


def _leaky(update: float) -> RNN:
    """A GRU without recurrent weights: its state fades by `update` per step and that is all."""
    layers = RNN(ModelConfig(dim=4))
    for parameter in layers.parameters():
        parameter.data.zero_()
    layers.layers.bias_ih_l0.data[4:8] = math.log(update / (1 - update))
    return layers.requires_grad_(False)


def test_a_state_that_fades_has_the_jacobian_of_its_fading() -> None:
    walked = walk(_leaky(0.9), torch.randn(2, 20, 4), torch.zeros(2, 1, 1, 4))
    values = walked.jacobians(5)
    assert values.shape == (1, 5, 4)
    torch.testing.assert_close(values, torch.full_like(values, 0.9))


def _tier(share_per_step: float, steps: int = 500) -> TierGradients:
    """A tier of 1 ms whose gradients change by one factor per step."""
    lags = np.arange(1, steps + 1) / 1000
    norms = np.tile(share_per_step ** np.arange(steps), (3, 1))
    return TierGradients(2, 16, lags, norms, ())


def test_reach_is_the_lag_at_which_a_share_is_left() -> None:
    tier = _tier(0.98)
    expected = math.log(0.1) / math.log(0.98) / 1000  # s
    assert tier.reach(0.1) == pytest.approx(expected, rel=0.15)  # lags come in sixteenths of a decade
    assert tier.reach(0.01) == pytest.approx(2 * expected, rel=0.15)
    assert tier.verdict(16000).startswith("tier 2 (a step every 1 ms) hears 1")
    assert "to a hundredth" in tier.verdict(16000)


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        (_tier(1.02), "it explodes"),
        (_tier(1.0), "hears further back than"),
        (_tier(0.993), "of it is left"),
        (_tier(0.0), "hears 1 ms back"),
        (TierGradients(2, 16, np.array([0.001, 0.002]), np.array([[1.0, np.inf]]), ()), "not finite"),
        (TierGradients(2, 16, np.array([0.001, 0.002]), np.zeros((1, 2)), ()), "no gradient arrives"),
    ],
)
def test_the_verdict_names_vanishing_and_exploding(tier: TierGradients, said: str) -> None:
    assert said in tier.verdict(16000)


def test_a_trained_model_on_real_audio(trained_run: Path, clips: Path) -> None:
    found = gradients(load(trained_run), clips, duration=0.2, num_places=6)
    assert found.duration == 0.2
    assert found.num_places == 6
    for tier, frame_size in zip(found.tiers, (8, 2), strict=True):
        assert tier.frame_size == frame_size
        assert tier.norms.shape == (6, 800 // frame_size)
        assert tier.lags[0] == pytest.approx(frame_size / 4000)
        assert tier.lags[-1] == pytest.approx(0.2)
        assert (tier.norms[:, 0] > 0).all()
        (layer,) = tier.layers
        assert list(layer.gates) == ["reset", "update", "new"]
        assert all(len(values) == 16 for values in layer.gates.values())
        assert 0 < layer.typical < layer.largest
    (axis, spectra) = found.draw().axes
    assert len(axis.lines) == 2 + 1  # tiers, and where training cuts
    assert len(spectra.get_yticklabels()) == 2 * 4


def test_passes_of_fewer_places_find_the_same(
    trained_run: Path, clips: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load(trained_run)
    at_once = gradients(checkpoint, clips, duration=0.1, num_places=4)
    monkeypatch.setattr("samplernn.insight.gradients._MAX_BYTES", 1)
    one_by_one = gradients(checkpoint, clips, duration=0.1, num_places=4)
    for first, second in zip(at_once.tiers, one_by_one.tiers, strict=True):
        np.testing.assert_allclose(first.norms, second.norms, rtol=1e-3)


def test_places_are_held_out_and_not_silent(trained_run: Path, clips: Path) -> None:
    checkpoint = load(trained_run)
    corpus = prepare(clips, DataConfig(sample_rate=4000))
    held_out = {digest for part in ("test", "validation") for _, digest, *_ in checkpoint.split[part]}
    places = _places(checkpoint, corpus, 800, 10)
    assert len(places) > 5
    for file, start in places:
        assert file.sha256 in held_out
        assert start + 800 <= file.num_samples
        assert corpus.read(file, start + 600, start + 800).any()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"duration": 0.001}, "duration must be from"),
        ({"duration": float("inf")}, "duration must be from"),
        ({"duration": float("nan")}, "duration must be from"),
        ({"duration": 29.0}, "too short for stretches of 29.00 s"),
        ({"num_places": 0}, "places"),
    ],
)
def test_mistakes_are_named(trained_run: Path, clips: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(UserError, match=named):
        gradients(load(trained_run), clips, **options)


def test_the_verb_prints_one_object_or_lines_and_a_picture(
    trained_run: Path, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["gradients", str(trained_run), str(clips), "--duration", "0.1", "--places", "2"]
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [tier["tier"] for tier in printed["tiers"]] == [3, 2]
    curve = printed["tiers"][0]["curve"]
    assert len(curve["lag_seconds"]) == len(curve["median"]) > 3
    assert main([*command, "--out", str(tmp_path / "x.png")]) == 0
    assert "training cut the gradients after 16 ms" in capsys.readouterr().out
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
