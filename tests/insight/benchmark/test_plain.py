"""The yardstick trains what `samplernn train` trains, and does so plainly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import Node

from samplernn.config import CELLS, Config, from_dict, merged
from samplernn.insight.benchmark.plain import PlainTraining
from samplernn.insight.benchmark.training import looped_clips
from samplernn.model.network import SampleRNN
from samplernn.training import trial
from samplernn.training.trial import train_briefly, whole_loader
from tests.conftest import TOY

CPU = torch.device("cpu")


ORIGINAL = {"rnn_weight_norm": True, "top_projection": False, "linear_mlp_layer": True}


@pytest.mark.parametrize(
    ("trainer", "model"),
    [
        ({}, {}),
        ({"gradient_clip_algorithm": "value", "gradient_clip_val": 1e-3}, ORIGINAL),
        ({"gradient_clip_parameters": "recurrent", "gradient_clip_val": 1e-2}, {}),
    ],
    ids=["usual", "original", "recurrent"],
)
def test_it_learns_the_same_as_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer: dict[str, Any], model: dict[str, Any]
) -> None:
    """Same batches, same order, state carried, gradients clipped: after some steps, the same weights."""
    alike = {
        "optim": {"warmup_steps": 0, "schedule": "constant"},
        "trainer": {"gradient_clip_val": 0.1, "precision": "32-true", **trainer},
        "model": model,
    }
    config: Config = from_dict(Config, merged(TOY, alike))
    corpus = looped_clips(config, tmp_path)
    in_an_epoch = len(whole_loader(config, corpus))
    steps = 0

    def step_done() -> bool:
        nonlocal steps
        steps += 1
        return steps == in_an_epoch + 3

    monkeypatch.setattr(trial.Stopwatch, "step_done", lambda self: step_done())
    trained = train_briefly(config, corpus, seconds=1.0)
    assert steps == in_an_epoch + 3
    steps = 0
    plain = PlainTraining(config, CPU)
    before = {name: value.clone() for name, value in plain.model.state_dict().items()}
    plain.run(whole_loader(config, corpus), step_done)
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, trained.model.state_dict()[name], rtol=1e-3, atol=1e-4)
        assert not torch.equal(value, before[name]), name


@pytest.mark.parametrize("rnn", CELLS)
def test_nothing_in_it_is_there_for_speed(rnn: str, tmp_path: Path) -> None:
    """No compiling, no fused optimizer, no lower precision, and no operation but PyTorch's own."""
    config: Config = from_dict(Config, merged(TOY, {"model": {"rnn": rnn, "n_rnn": 2}}))
    corpus = looped_clips(config, tmp_path)
    plain = PlainTraining(config, CPU)
    assert type(plain.optimizer) is torch.optim.AdamW
    assert not any(plain.optimizer.defaults[name] for name in ("fused", "foreach", "capturable"))
    assert all(module._compiled_call_impl is None for module in plain.model.modules())
    assert {parameter.dtype for parameter in plain.model.parameters()} == {torch.float32}
    seen: set[tuple[torch.dtype, bool]] = set()
    nodes: set[Node] = set()

    def note(model: SampleRNN, inputs: object, output: tuple[torch.Tensor, object]) -> None:
        logits = output[0]
        seen.add((logits.dtype, torch.is_autocast_enabled("cpu")))
        nodes.update(_graph(logits.grad_fn))

    plain.model.register_forward_hook(note)
    plain.run(whole_loader(config, corpus), lambda: True)
    assert seen == {(torch.float32, False)}
    assert [node for node in nodes if _is_own(node)] == []
    assert [type(node).__name__ for node in nodes if "mbedding" in type(node).__name__] == [
        "EmbeddingBackward0"
    ]


def test_the_search_finds_what_is_not_pytorchs_own(toy_config: Config) -> None:
    """The network that is trained by default has such operations."""
    model = SampleRNN(toy_config.model)
    logits, _ = model(torch.zeros(1, 64, dtype=torch.int64), model.initial_state(1))
    assert any(_is_own(node) for node in _graph(logits.grad_fn))


def _graph(node: Node | None) -> set[Node]:
    """All operations that lead there."""
    found: set[Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in found:
            found.add(one)
            waiting += [before for before, _ in one.next_functions]
    return found


def _is_own(node: Node) -> bool:
    """An `autograd.Function` of somebody's."""
    return isinstance(node, torch.autograd.function.BackwardCFunction)
