from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from samplernn.config import CELLS, ModelConfig, presets
from samplernn.model.network import (
    Linear,
    SampleRNN,
    State,
    table_gradient_by_adding,
    table_gradient_by_products,
)

Builder = Callable[..., SampleRNN]
Array = NDArray[np.float64]

TIERS = [(4,), (8, 2), (12, 4, 2)]
tiers = pytest.mark.parametrize("frame_sizes", TIERS, ids=lambda sizes: f"{len(sizes) + 1}tiers")
cells = pytest.mark.parametrize("rnn", ["gru", "lstm"])
every_cell = pytest.mark.parametrize("rnn", CELLS)
norms = pytest.mark.parametrize("weight_norm", [True, False], ids=["weight_norm", "plain"])


def codes(model: SampleRNN, batch_size: int, num_samples: int, seed: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(model.config.q_levels, (batch_size, num_samples), generator=generator)


def random_state(model: SampleRNN, batch_size: int, seed: int = 11) -> State:
    """Some state in the middle of audio: nothing in it is h0 or silence."""
    generator = torch.Generator().manual_seed(seed)
    fresh = model.initial_state(batch_size)
    rnn = tuple(
        torch.randn(tier.shape, generator=generator, dtype=torch.float64).tanh().to(tier.dtype)
        for tier in fresh.rnn
    )
    return State(codes(model, batch_size, model.lookback, seed), rnn)


def assert_states_close(got: State, expected: State, rtol: float = 0) -> None:
    assert torch.equal(got.history, expected.history)
    assert len(got.rnn) == len(expected.rnn)
    for mine, theirs in zip(got.rnn, expected.rnn, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=1e-12)


@tiers
@every_cell
@pytest.mark.parametrize("chunk_frames", [1, 2, 3], ids=lambda n: f"chunks_of_{n}_frames")
def test_carried_state_over_chunks_equals_one_long_pass(
    random_model: Builder, frame_sizes: tuple[int, ...], rnn: str, chunk_frames: int
) -> None:
    model = random_model(frame_sizes=frame_sizes, rnn=rnn, n_rnn=2)
    x = codes(model, 3, 6 * model.lookback)
    whole, end = model(x, model.initial_state(3))
    state, parts = model.initial_state(3), []
    for chunk in x.split(chunk_frames * model.lookback, dim=1):
        logits, state = model(chunk, state)
        parts.append(logits)
    # Units of rnn-relu have no bound: there the last digit is relative.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-12 * (rnn == "rnn-relu"), atol=1e-12)
    assert_states_close(state, end, rtol=1e-12 * (rnn == "rnn-relu"))


def test_uneven_chunks_equal_one_long_pass(random_model: Builder) -> None:
    model = random_model(frame_sizes=(8, 4, 2))
    x = codes(model, 2, 48)
    whole, _ = model(x, model.initial_state(2))
    state, parts = model.initial_state(2), []
    for chunk in x.split([8, 24, 16], dim=1):
        logits, state = model(chunk, state)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0, atol=1e-12)


def test_forward_leaves_its_state_argument_alone(random_model: Builder) -> None:
    """The same state can be continued twice, as sampling from a snapshot does."""
    model = random_model(frame_sizes=(8, 2), rnn="lstm")
    state = random_state(model, 2)
    before = State(state.history.clone(), tuple(tier.clone() for tier in state.rnn))
    first, _ = model(codes(model, 2, 16), state)
    assert_states_close(state, before)
    again, _ = model(codes(model, 2, 16), state)
    assert torch.equal(first, again)


@tiers
@every_cell
def test_reset_rows_start_afresh_and_the_others_do_not_notice(
    random_model: Builder, frame_sizes: tuple[int, ...], rnn: str
) -> None:
    model = random_model(frame_sizes=frame_sizes, rnn=rnn, n_rnn=2)
    x, y = codes(model, 4, 2 * model.lookback), codes(model, 4, 2 * model.lookback, seed=8)
    rows = torch.tensor([False, True, False, True])
    _, middle = model(x, model.initial_state(4))
    after_reset, end = model(y, model.reset(middle, rows))
    carried, carried_end = model(y, middle)
    fresh, fresh_end = model(y, model.initial_state(4))
    expected = torch.where(rows[:, None, None], fresh, carried)
    torch.testing.assert_close(after_reset, expected, rtol=0, atol=1e-12)
    for got, new, old in zip(end.rnn, fresh_end.rnn, carried_end.rnn, strict=True):
        expected_state = torch.where(rows[:, None, None, None], new, old)
        torch.testing.assert_close(got, expected_state, rtol=0, atol=1e-12)
    assert (carried - fresh).abs().amax(dim=(1, 2)).min() > 1e-3, "the past made no difference: vacuous"


@every_cell
def test_a_segment_starts_with_silence_behind_and_h0(random_model: Builder, rnn: str) -> None:
    model = random_model(frame_sizes=(8, 2), rnn=rnn, n_rnn=2, q_levels=15)
    fresh = model.initial_state(3)
    assert fresh.history.shape == (3, 8)
    assert (fresh.history == 7).all()  # q_zero = 15 // 2
    for tier, state in zip(model.tiers(), fresh.rnn, strict=True):
        assert state.shape == (3, 2 if "lstm" in rnn else 1, 2, model.config.dim)
        for row in state:
            assert torch.equal(row, tier.rnn.h0)
    reset = model.reset(random_state(model, 3), torch.tensor([True, True, True]))
    assert_states_close(reset, fresh)


def test_the_state_after_a_chunk_holds_its_last_codes(random_model: Builder) -> None:
    model = random_model(frame_sizes=(8, 2))
    x = codes(model, 2, 24)
    _, state = model(x, model.initial_state(2))
    assert torch.equal(state.history, x[:, -8:])
    assert not any(tier.requires_grad for tier in state.detach().rnn)


@tiers
@every_cell
@norms
@pytest.mark.parametrize("rows", [[False, False], [True, False]], ids=["no_reset", "one_reset"])
def test_every_parameter_has_a_gradient_whether_or_not_a_row_is_reset(
    random_model: Builder, frame_sizes: tuple[int, ...], rnn: str, weight_norm: bool, rows: list[bool]
) -> None:
    """DistributedDataParallel hangs or raises on a parameter that takes no part in a step."""
    model = random_model(frame_sizes=frame_sizes, rnn=rnn, weight_norm=weight_norm, n_rnn=2)
    state = model.reset(random_state(model, 2), torch.tensor(rows))
    logits, _ = model(codes(model, 2, 2 * model.lookback), state)
    logits.pow(2).sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if rnn != "echo-state":  # whose reservoir and what enters it are fixed
        assert trained.keys() == dict(model.named_parameters()).keys()
    missing = [name for name, parameter in trained.items() if parameter.grad is None]
    assert missing == []
    for name, parameter in trained.items():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all(), name
        learns = any(rows) or not name.endswith("h0")
        assert bool(parameter.grad.abs().sum() > 0) == learns, name


def test_h0_is_zero_and_no_parameter_when_it_is_not_learned() -> None:
    model = SampleRNN(ModelConfig(frame_sizes=(8, 2), dim=8, learn_h0=False))
    assert not any("h0" in name for name, _ in model.named_parameters())
    assert all((tier == 0).all() for tier in model.initial_state(2).rnn)


def influence_by_gradients(model: SampleRNN) -> Array:
    """How much every sample moves every logit, through amplitudes and embeddings together.

    Every code of history and chunk is unique, so a frame or window that the model cut tells by its own
    values which samples it holds, and no slicing is taken for granted.

    Returns:
        ``[T, lookback + T]`` summed absolute gradients, row t for ``logits[:, t]``, column s + lookback
        for sample s; and the code in each column.
    """
    lookback, q_levels = model.lookback, model.config.q_levels
    num_samples = 3 * lookback
    assert lookback + num_samples <= q_levels
    order = torch.randperm(q_levels, generator=torch.Generator().manual_seed(3))[: lookback + num_samples]
    column = {int(code): index for index, code in enumerate(order)}
    leaves: list[tuple[Tensor, Tensor]] = []  # a leaf, and the column of each of its samples

    def columns(of: Tensor) -> Tensor:
        return torch.tensor([column[int(code)] for code in of.flatten()])

    def frames_become_a_leaf(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        frames = args[0].detach().requires_grad_()
        leaves.append((frames, columns((frames.detach() * q_levels / 4).round() + q_levels // 2)))
        return (frames, *args[1:])

    def embedded_samples_become_a_leaf(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        embedded = output.detach().requires_grad_()
        leaves.append((embedded, columns(args[0])))
        return embedded

    for tier in model.tiers():
        tier.register_forward_pre_hook(frames_become_a_leaf)
    model.sample_level_mlp.embedding.register_forward_hook(embedded_samples_become_a_leaf)

    state = State(order[None, :lookback], model.initial_state(1).rnn)
    logits, _ = model(order[None, lookback:], state)
    assert len(leaves) == model.config.n_tiers
    influence = np.zeros((num_samples, lookback + num_samples))
    direction = torch.linspace(-1, 2, q_levels, dtype=logits.dtype)
    for t in range(num_samples):
        gradients = torch.autograd.grad(
            logits[0, t] @ direction, [leaf for leaf, _ in leaves], retain_graph=True
        )
        for (_, where), gradient in zip(leaves, gradients, strict=True):
            amount = gradient.abs().reshape(len(where), -1).sum(dim=1)
            np.add.at(influence[t], where.numpy(), amount.numpy())
    return influence


@tiers
@cells
def test_a_logit_depends_on_every_earlier_sample_and_on_no_later_one(
    random_model: Builder, frame_sizes: tuple[int, ...], rnn: str
) -> None:
    """By gradients, on the convolution path: the whole past counts, the present and the future do not."""
    model = random_model("convolution", frame_sizes=frame_sizes, rnn=rnn, q_levels=64)
    influence = influence_by_gradients(model)
    lookback = model.lookback
    for t, row in enumerate(influence):
        now = lookback + t
        assert (row[now:] == 0).all(), f"logit {t} sees itself or the future"
        assert row[now - 1] > 1e-6, f"logit {t} does not see the sample just before"
        assert row[now - lookback] > 1e-6, f"logit {t} does not see a whole lookback back"
        assert (row[:now] > 0).all(), f"logit {t} is blind to part of its past"


@tiers
@cells
@pytest.mark.parametrize("first_layer", ["table", "convolution"])
def test_changing_one_code_changes_the_next_logit_and_none_before_it(
    random_model: Builder, frame_sizes: tuple[int, ...], rnn: str, first_layer: str
) -> None:
    """Every sample of history and chunk in turn: row s of a batch has sample s replaced."""
    model = random_model(first_layer, frame_sizes=frame_sizes, rnn=rnn)
    lookback, num_samples = model.lookback, 2 * model.lookback
    total = lookback + num_samples
    past_and_x = torch.cat([random_state(model, 1).history, codes(model, 1, num_samples)], dim=1)
    rows = past_and_x.repeat(total + 1, 1)  # the last row stays as it is
    changed = torch.arange(total)
    rows[changed, changed] = (rows[changed, changed] + model.q_zero + 1) % model.config.q_levels
    state = State(rows[:, :lookback], model.initial_state(total + 1).rnn)
    with torch.no_grad():
        logits, _ = model(rows[:, lookback:], state)
    difference = (logits[:-1] - logits[-1]).abs().amax(dim=2)  # [changed sample, t]
    for sample, moved in enumerate(difference):
        after = max(sample - lookback + 1, 0)  # the first t that may know
        assert (moved[:after] < 1e-13).all(), f"sample {sample - lookback} is seen too early"
        if sample - lookback + 1 < num_samples:
            assert moved[after:].min() > 1e-9, f"sample {sample - lookback} is overlooked or forgotten"


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def naive_logits(model: SampleRNN, history: list[int], x: list[int]) -> tuple[Array, list[Array]]:
    """Mehri et al. (2017), equations 1-9, with the changes that DESIGN.md lists, one sample at a time.

    Starts from h0. Shares nothing with the package but the names of the parameters.

    Returns:
        Logits ``[T, Q]`` and the RNN state of every tier at the end, ``[S, n_rnn, dim]``.
    """
    config = model.config
    parameters = {name: value.detach().numpy() for name, value in model.named_parameters()}
    dim, q_levels, n_rnn = config.dim, config.q_levels, config.n_rnn
    clocks = [*config.frame_sizes, 1]

    def normed(v: Array, g: Array) -> Array:
        return np.stack([g[unit] * v[unit] / math.sqrt(sum(v[unit] ** 2)) for unit in range(len(v))])

    def matrix(name: str) -> Array:
        v = parameters[f"{name}.weight"]
        return normed(v, parameters[f"{name}.g"]) if config.weight_norm else v

    def gate(rnn: str, layer: int, index: int, inputs: Array, hidden: Array) -> tuple[Array, Array]:
        """One gate's two halves before its nonlinearity: from the inputs and from the hidden vector."""
        rows = slice(index * dim, (index + 1) * dim)
        of = {
            kind: parameters[f"{rnn}.layers.{kind}_l{layer}"][rows]
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        }
        for kind in ("weight_ih", "weight_hh") if config.rnn_weight_norm else ():
            of[kind] = normed(of[kind], parameters[f"{rnn}.g.{kind}_l{layer}"][rows])
        return of["weight_ih"] @ inputs + of["bias_ih"], of["weight_hh"] @ hidden + of["bias_hh"]

    def rnn_step(rnn: str, inputs: Array, state: Array) -> Array:
        for layer in range(n_rnn):
            hidden = state[0, layer].copy()
            halves = [gate(rnn, layer, i, inputs, hidden) for i in range(3 if config.rnn == "gru" else 4)]
            if config.rnn == "gru":
                reset, update = (sigmoid(a + b) for a, b in halves[:2])
                candidate = np.tanh(halves[2][0] + reset * halves[2][1])
                state[0, layer] = (1 - update) * candidate + update * hidden
            else:
                enter, forget, cell, out = (a + b for a, b in halves)
                state[1, layer] = sigmoid(forget) * state[1, layer] + sigmoid(enter) * np.tanh(cell)
                state[0, layer] = sigmoid(out) * np.tanh(state[1, layer])
            inputs = state[0, layer]
        return inputs

    past = list(history)
    states = [parameters[f"frame_level_tiers.{k}.rnn.h0"].copy() for k in range(len(config.frame_sizes))]
    passed_down: list[Array] = [np.zeros(0)] * len(config.frame_sizes)  # each tier's [ratio, dim], newest
    logits = []
    for t, code in enumerate(x):
        for k, frame_size in enumerate(config.frame_sizes):
            if t % frame_size != 0:
                continue
            name = f"frame_level_tiers.{k}"
            frame = np.array([2 * (c - q_levels // 2) / (q_levels / 2) for c in past[-frame_size:]])
            inputs = frame
            if k > 0 or config.top_projection:
                inputs = matrix(f"{name}.input_projection") @ frame
                inputs = inputs + parameters[f"{name}.input_projection.bias"]
            if k > 0:
                inputs = inputs + passed_down[k - 1][t % clocks[k - 1] // frame_size]
            top = rnn_step(f"{name}.rnn", inputs, states[k])
            ratio = frame_size // clocks[k + 1]
            up = matrix(f"{name}.upsampling") @ top + parameters[f"{name}.upsampling.bias"]
            passed_down[k] = np.stack([up[j * dim : (j + 1) * dim] for j in range(ratio)])
        fastest = clocks[-2]
        embedded = [parameters["sample_level_mlp.embedding.weight"][c] for c in past[-fastest:]]
        first = matrix("sample_level_mlp.input") @ np.concatenate(embedded) + passed_down[-1][t % fastest]
        if config.linear_mlp_layer:
            first = matrix("sample_level_mlp.linear") @ first + parameters["sample_level_mlp.linear.bias"]
        hidden = matrix("sample_level_mlp.hidden") @ np.maximum(first, 0)
        hidden = np.maximum(hidden + parameters["sample_level_mlp.hidden.bias"], 0)
        logits.append(matrix("sample_level_mlp.output") @ hidden + parameters["sample_level_mlp.output.bias"])
        past.append(code)
    return np.stack(logits), states


@tiers
@cells
@norms
@pytest.mark.parametrize("n_rnn", [1, 2])
@pytest.mark.parametrize("first_layer", ["table", "convolution"])
def test_logits_follow_the_equations(
    random_model: Builder,
    frame_sizes: tuple[int, ...],
    rnn: str,
    weight_norm: bool,
    n_rnn: int,
    first_layer: str,
) -> None:
    model = random_model(
        first_layer, frame_sizes=frame_sizes, rnn=rnn, weight_norm=weight_norm, n_rnn=n_rnn, q_levels=17
    )
    x, history = codes(model, 2, 2 * model.lookback), random_state(model, 2).history
    with torch.no_grad():
        logits, end = model(x, State(history, model.initial_state(2).rnn))
    for row in range(2):
        expected, states = naive_logits(model, history[row].tolist(), x[row].tolist())
        np.testing.assert_allclose(logits[row].numpy(), expected, rtol=0, atol=1e-9)
        for got, wanted in zip(end.rnn, states, strict=True):
            np.testing.assert_allclose(got[row].numpy(), wanted, rtol=0, atol=1e-9)


ORIGINAL = {
    "unprojected": {"top_projection": False},
    "linear_layer": {"linear_mlp_layer": True},
    "rnn_weight_norm": {"rnn_weight_norm": True},
    "all": {"top_projection": False, "linear_mlp_layer": True, "rnn_weight_norm": True},
}
original = pytest.mark.parametrize("options", ORIGINAL.values(), ids=ORIGINAL)
"""Keys that make the network that of the Theano original."""


@original
@cells
@pytest.mark.parametrize("frame_sizes", [(4,), (12, 4, 2)])
def test_the_keys_of_the_original_follow_the_equations(
    random_model: Builder, frame_sizes: tuple[int, ...], rnn: str, options: dict[str, bool]
) -> None:
    """As parallel pass with and without gradients, which compute a GRU differently, and folded."""
    model = random_model(frame_sizes=frame_sizes, rnn=rnn, n_rnn=2, q_levels=17, **options)
    x, history = codes(model, 2, 2 * model.lookback), random_state(model, 2).history
    folded = model.folded()
    outcomes = [one(x, State(history, one.initial_state(2).rnn)) for one in (model, folded)]
    with torch.no_grad():
        outcomes.append(model(x, State(history, model.initial_state(2).rnn)))
    for row in range(2):
        expected, states = naive_logits(model, history[row].tolist(), x[row].tolist())
        for logits, end in outcomes:
            np.testing.assert_allclose(logits[row].detach().numpy(), expected, rtol=0, atol=1e-9)
            for got, wanted in zip(end.rnn, states, strict=True):
                np.testing.assert_allclose(got[row].detach().numpy(), wanted, rtol=0, atol=1e-9)


@original
@cells
def test_the_keys_of_the_original_train_every_parameter_as_plain_torch_does(
    random_model: Builder, rnn: str, options: dict[str, bool]
) -> None:
    """Gradients of each cell's own path for training, against those of PyTorch's layers."""
    model = random_model(frame_sizes=(8, 2), rnn=rnn, n_rnn=2, **options)
    plain = copy.deepcopy(model)
    for tier in plain.tiers():
        tier.rnn._train_on_cpu = lambda x, state, _, rnn=tier.rnn: rnn._through_torch(x, state)  # type: ignore[method-assign]
    x = codes(model, 3, 32)
    for one in (model, plain):
        logits, _ = one(x, random_state(one, 3))
        (logits.pow(2).mean() + logits[..., 3].mean()).backward()
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        if not name.endswith("rnn.h0"):  # the state is not h0
            assert ours.grad is not None, name
            assert ours.grad.abs().max() > 0, name
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)


@original
def test_the_keys_of_the_original_change_the_parameters_by_what_they_say(options: dict[str, bool]) -> None:
    sizes: dict[str, Any] = {"frame_sizes": (8, 2), "dim": 20, "n_rnn": 2, "embedding_dim": 6, "q_levels": 16}
    counts = [
        sum(p.numel() for p in SampleRNN(ModelConfig(**sizes, **extra)).parameters())
        for extra in ({}, options)
    ]
    more = 0
    if "top_projection" in options:  # its weights, g and bias; the RNN reads 8 numbers, not 20
        more -= (8 + 2) * 20 + 60 * (20 - 8)
    if "linear_mlp_layer" in options:
        more += 20 * (20 + 2)
    if "rnn_weight_norm" in options:  # tiers x layers x sides x gates x units
        more += 2 * 2 * 2 * 3 * 20
    assert counts[1] - counts[0] == more


def theano_parameters(frame_sizes: tuple[int, ...], n_rnn: int, dim: int, q: int, embedding: int) -> int:
    """What `models/two_tier/two_tier.py` and `three_tier.py` train, layer by layer; both with weight norm.

    Without the predictions that the slowest of three tiers makes by itself: its cost has updates of its own.
    """

    def linear(inputs: int, outputs: int, bias: bool = True) -> int:
        return (inputs + 1 + bias) * outputs  # lib/ops.py, Linear: W, g and b

    total = q * embedding + linear(frame_sizes[-1] * embedding, dim, bias=False)
    total += 2 * linear(dim, dim) + linear(dim, q)  # L2, L3, Output
    for frame, faster in zip(frame_sizes, (*frame_sizes[1:], 1), strict=True):
        total += n_rnn * dim + linear(dim, frame // faster * dim)  # h0, Output
        inputs = frame
        if frame != frame_sizes[0]:
            total, inputs = total + linear(frame, dim), dim  # InputExpand
        for _ in range(n_rnn):  # Input, Recurrent_Gates, Recurrent_Candidate
            total += linear(inputs, 3 * dim) + linear(dim, 2 * dim, bias=False) + linear(dim, dim, bias=False)
            inputs = dim
    return total


@pytest.mark.parametrize(("name", "expected"), [("mehri-2tier", 39_243_264), ("mehri-3tier", 18_744_832)])
def test_presets_of_the_original_have_its_parameters(name: str, expected: int) -> None:
    """All of them and no more."""
    options = yaml.safe_load(presets()[name].read_text("utf-8"))["model"]
    config = ModelConfig(**{**options, "frame_sizes": tuple(options["frame_sizes"])})
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in SampleRNN(config).parameters()) == expected
    assert expected == theano_parameters(
        config.frame_sizes, config.n_rnn, config.dim, config.q_levels, config.embedding_dim
    )


@pytest.mark.parametrize("skip_connections", [False, True])
@pytest.mark.parametrize("rnn", CELLS)
def test_weight_norm_of_any_cell_is_folded_into_the_same_function(rnn: Any, skip_connections: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        (8, 2), rnn, n_rnn=2, dim=12, embedding_dim=5, skip_connections=skip_connections, rnn_weight_norm=True
    )
    model = SampleRNN(config)
    lengths = {name: p for name, p in model.named_parameters() if ".rnn." in name and ".g." in name}
    assert bool(lengths) == (rnn != "echo-state")  # whose weights are fixed
    with torch.no_grad():
        for length in lengths.values():
            length.mul_(torch.rand_like(length) + 0.5)
    x = torch.randint(256, (3, 24))
    logits, state = model(x, model.initial_state(3))
    folded = model.folded()
    expected, after = folded(x, folded.initial_state(3))
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(state.rnn, after.rnn)
    assert not any(".g." in name for name, _ in folded.frame_level_tiers.named_parameters())
    logits.sum().backward()
    assert all(length.grad is not None and length.grad.abs().sum() > 0 for length in lengths.values())


def test_folding_a_linear_layer_makes_the_model_that_is_usual(random_model: Builder) -> None:
    model = random_model(frame_sizes=(8, 2), **ORIGINAL["all"])
    names = model.folded().state_dict().keys()
    assert not any(".g" in name or "linear" in name for name in names)
    assert (
        len(model.sample_level_mlp.state_dict()) - len(model.folded().sample_level_mlp.state_dict()) == 3 + 3
    )


def put(model: SampleRNN, values: dict[str, Any]) -> SampleRNN:
    """The model in float64 with every parameter written by hand."""
    assert values.keys() == dict(model.named_parameters()).keys()
    model.double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.tensor(values[name], dtype=torch.float64).view_as(parameter))
    return model


def test_two_tiers_of_dimension_one_worked_out_by_hand() -> None:
    config = ModelConfig(frame_sizes=(2,), dim=1, embedding_dim=1, q_levels=4, weight_norm=False)
    model = put(
        SampleRNN(config),
        {
            "frame_level_tiers.0.input_projection.weight": [1, 2],
            "frame_level_tiers.0.input_projection.bias": [0],
            "frame_level_tiers.0.rnn.h0": [1],
            "frame_level_tiers.0.rnn.layers.weight_ih_l0": [0, 0, 1],  # reset, update, candidate
            "frame_level_tiers.0.rnn.layers.weight_hh_l0": [0, 0, 2],
            "frame_level_tiers.0.rnn.layers.bias_ih_l0": [0, 0, 0],
            "frame_level_tiers.0.rnn.layers.bias_hh_l0": [0, 0, 0],
            "frame_level_tiers.0.upsampling.weight": [2, -2],
            "frame_level_tiers.0.upsampling.bias": [0, 3],
            "sample_level_mlp.embedding.weight": [-2, 1, 2, -1],
            "sample_level_mlp.input.weight": [1, 2],
            "sample_level_mlp.hidden.weight": [2],
            "sample_level_mlp.hidden.bias": [-1],
            "sample_level_mlp.output.weight": [1, -1, 2, 0],
            "sample_level_mlp.output.bias": [0, 0, 0, 1],
        },
    )
    history, x = torch.tensor([[3, 1]]), torch.tensor([[0, 3, 1, 2]])
    logits, end = model(x, State(history, model.initial_state(1).rnn))
    # Frame 1 is codes 3, 1. Amplitude 2(k - 2)/2 = k - 2: (1, -1). Projection: 1·1 + 2·(-1) = -1.
    # GRU: reset = update = sigmoid(0) = 1/2. Candidate: tanh(-1 + 1/2 · 2·h0) = tanh(-1 + 1) = 0.
    #      h = 1/2 · 0 + 1/2 · 1 = 1/2. Upsampled: 2·1/2 = 1 for sample 0, -2·1/2 + 3 = 2 for sample 1.
    # Sample 0: before it codes 3, 1, embedded -1, 1. First layer: 1·(-1) + 2·1 + 1 = 2. Hidden: 2·2 - 1 = 3.
    assert logits[0, 0].tolist() == pytest.approx([3, -3, 6, 1])
    # Sample 1: before it codes 1, 0, embedded 1, -2. First layer: 1 - 4 + 2 = -1 -> 0. Hidden: -1 -> 0.
    assert logits[0, 1].tolist() == pytest.approx([0, 0, 0, 1])
    # Frame 2 is codes 0, 3: amplitudes (-2, 1). Projection: -2 + 2 = 0. Candidate: tanh(0 + 1/2 · 2·1/2)
    #      = tanh(1/2) = 0.46212. h = 0.23106 + 0.25 = 0.48106. Upsampled: 0.96212 and 2.03788.
    # Sample 2: codes 0, 3, embedded -2, -1: -2 - 2 + 0.96212 < 0 -> 0. Hidden 0.
    assert logits[0, 2].tolist() == pytest.approx([0, 0, 0, 1])
    # Sample 3: codes 3, 1, embedded -1, 1: -1 + 2 + 2.03788 = 3.03788. Hidden: 2 · 3.03788 - 1 = 5.07577.
    assert logits[0, 3].tolist() == pytest.approx([5.07577, -5.07577, 10.15153, 1], abs=1e-5)
    assert end.rnn[0].item() == pytest.approx(0.48106, abs=1e-5)
    assert end.history.tolist() == [[1, 2]]


def test_three_tiers_of_lstm_worked_out_by_hand() -> None:
    """The slow tier's vectors reach the right steps of the fast one; no two gates are mixed up."""
    config = ModelConfig(
        frame_sizes=(2, 1), rnn="lstm", dim=1, embedding_dim=1, q_levels=4, weight_norm=False
    )
    off, on = -1000, 1000  # a gate driven shut or open by its bias alone
    zeros = [0, 0, 0, 0]
    model = put(
        SampleRNN(config),
        {
            # The slow tier keeps its cell (forget open, input shut), so h = tanh(c0) = tanh(2) throughout.
            "frame_level_tiers.0.input_projection.weight": [1, 1],
            "frame_level_tiers.0.input_projection.bias": [5],
            "frame_level_tiers.0.rnn.h0": [0, 2],  # hidden, cell
            "frame_level_tiers.0.rnn.layers.weight_ih_l0": [0, 0, 1, 0],  # input, forget, cell, output
            "frame_level_tiers.0.rnn.layers.weight_hh_l0": zeros,
            "frame_level_tiers.0.rnn.layers.bias_ih_l0": [off, on, 0, on],
            "frame_level_tiers.0.rnn.layers.bias_hh_l0": zeros,
            "frame_level_tiers.0.upsampling.weight": [0, 0],
            "frame_level_tiers.0.upsampling.bias": [1, -1],
            # The fast tier replaces its cell (forget shut, input open): c = tanh(its input), h = tanh(c).
            "frame_level_tiers.1.input_projection.weight": [1],
            "frame_level_tiers.1.input_projection.bias": [0],
            "frame_level_tiers.1.rnn.h0": [9, 9],
            "frame_level_tiers.1.rnn.layers.weight_ih_l0": [0, 0, 1, 0],
            "frame_level_tiers.1.rnn.layers.weight_hh_l0": zeros,
            "frame_level_tiers.1.rnn.layers.bias_ih_l0": [on, off, 0, 0],
            "frame_level_tiers.1.rnn.layers.bias_hh_l0": [0, 0, 0, on],
            "frame_level_tiers.1.upsampling.weight": [1],
            "frame_level_tiers.1.upsampling.bias": [0],
            "sample_level_mlp.embedding.weight": [10, 20, 30, 40],
            "sample_level_mlp.input.weight": [1],
            "sample_level_mlp.hidden.weight": [1],
            "sample_level_mlp.hidden.bias": [0],
            "sample_level_mlp.output.weight": [1, 0, 0, 0],
            "sample_level_mlp.output.bias": [0, 0, 0, 0],
        },
    )
    logits, end = model(torch.tensor([[3, 0]]), State(torch.tensor([[2, 1]]), model.initial_state(1).rnn))
    # Sample 0: the code before it is 1, amplitude -1; plus the slow tier's first vector, 1: 0. h = 0.
    #           Embedded 20, so the first logit is 20 + 0.
    # Sample 1: the code before it is 3, amplitude 1; plus the second vector, -1: 0. 40 + 0.
    assert logits[0, :, 0].tolist() == pytest.approx([20, 40])
    assert end.rnn[0].flatten().tolist() == pytest.approx([math.tanh(2), 2])
    assert end.rnn[1].flatten().tolist() == pytest.approx([0, 0])


def test_weight_norm_is_g_times_v_over_its_length() -> None:
    layer = Linear(2, 2, weight_norm=True)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
        assert layer.g is not None
        layer.g.copy_(torch.tensor([10.0, 0.5]))
    torch.testing.assert_close(layer.effective_weight(), torch.tensor([[6.0, 8.0], [0.0, -0.5]]))


def test_weight_norm_gradients_are_those_of_torch() -> None:
    """A direction's gradient has no part along the direction (Salimans & Kingma, equation 3)."""
    torch.manual_seed(0)
    ours = Linear(5, 4, weight_norm=True, bias=False).double()
    theirs = nn.utils.parametrizations.weight_norm(nn.Linear(5, 4, bias=False).double())
    length, direction = theirs.parametrizations.weight.original0, theirs.parametrizations.weight.original1
    assert ours.g is not None
    with torch.no_grad():
        ours.g.mul_(3)
        length.copy_(ours.g[:, None])
        direction.copy_(ours.weight)
    x = torch.randn(7, 5, dtype=torch.float64)
    for layer in (ours, theirs):
        layer(x).pow(3).sum().backward()
    assert ours.weight.grad is not None
    torch.testing.assert_close(ours.weight.grad, direction.grad)
    torch.testing.assert_close(ours.g.grad, length.grad[:, 0])
    along = (ours.weight.grad * ours.weight).sum(dim=1)
    torch.testing.assert_close(along, torch.zeros_like(along), rtol=0, atol=1e-10)


@tiers
@cells
@norms
def test_table_and_convolution_agree_in_values_and_in_all_gradients(
    random_model: Builder, frame_sizes: tuple[int, ...], rnn: str, weight_norm: bool
) -> None:
    outcomes = []
    for first_layer in ("table", "convolution"):
        model = random_model(first_layer, frame_sizes=frame_sizes, rnn=rnn, weight_norm=weight_norm)
        logits, _ = model(codes(model, 3, 2 * model.lookback), model.initial_state(3))
        logits.log_softmax(dim=2)[..., 3].sum().backward()
        outcomes.append((logits, {name: p.grad for name, p in model.named_parameters()}))
    (table, table_gradients), (convolution, convolution_gradients) = outcomes
    torch.testing.assert_close(table, convolution, rtol=0, atol=1e-12)
    assert table_gradients.keys() == convolution_gradients.keys()
    for name, gradient in table_gradients.items():
        torch.testing.assert_close(gradient, convolution_gradients[name], rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_of_the_table_is_the_same_by_adding_and_by_products(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    codes = torch.randint(7, (3, 12))
    codes[:, ::2] = 5  # a common code, and some that never occur
    windows, grad = codes.unfold(1, 4, 1), torch.randn(3 * 9, 10).to(dtype)
    by_adding, by_products = (
        sums(windows, grad, (4, 8, 10)) for sums in (table_gradient_by_adding, table_gradient_by_products)
    )
    assert by_products.dtype == by_adding.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(by_products, by_adding)
    assert (by_products[:, 7] == 0).all()
    one = grad.double()[(windows[..., 2] == 5).flatten()].sum(0)
    torch.testing.assert_close(by_products[2, 5].double(), one, atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("is_mixed", [False, True], ids=["float32", "bfloat16"])
def test_a_gpu_computes_the_gradients_of_the_cpu_and_always_the_same(rnn: Any, is_mixed: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig((16, 4), rnn, n_rnn=2, dim=64, embedding_dim=16)
    model, codes = SampleRNN(config), torch.randint(256, (8, 256))

    def gradients(device: str) -> dict[str, Tensor]:
        there, x = SampleRNN(config).to(device), codes.to(device)
        there.load_state_dict(model.state_dict())
        with torch.autocast(device, torch.bfloat16, enabled=is_mixed and device == "cuda"):
            logits, _ = there(x, there.initial_state(8))
        nn.functional.cross_entropy(logits.float().transpose(1, 2), x).backward()
        return {name: parameter.grad.cpu() for name, parameter in there.named_parameters()}  # type: ignore[union-attr]

    expected, found, again = gradients("cpu"), gradients("cuda"), gradients("cuda")
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(
            found[name], gradient, atol=largest * (0.1 if is_mixed else 1e-3), rtol=0.1
        )
        assert torch.equal(found[name], again[name]), name


@cells
@norms
def test_folding_keeps_the_function_and_leaves_the_original_alone(
    random_model: Builder, rnn: str, weight_norm: bool
) -> None:
    model = random_model(frame_sizes=(8, 4, 2), rnn=rnn, weight_norm=weight_norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = model.folded()
    x = codes(model, 2, 16)
    expected, end = model(x, model.initial_state(2))
    got, folded_end = folded(x, folded.initial_state(2))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert_states_close(folded_end, end)
    assert not any(name.endswith(".g") for name in folded.state_dict())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert before.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        if name in folded.state_dict():
            assert value.data_ptr() != folded.state_dict()[name].data_ptr(), f"{name} is shared"


@tiers
@cells
def test_weight_norm_does_not_change_the_initial_function(frame_sizes: tuple[int, ...], rnn: Any) -> None:
    logits = []
    for weight_norm in (True, False):
        torch.manual_seed(5)
        config = ModelConfig(
            frame_sizes=frame_sizes, rnn=rnn, dim=8, q_levels=16, embedding_dim=6, weight_norm=weight_norm
        )
        model = SampleRNN(config)
        logits.append(model(codes(model, 2, 2 * model.lookback), model.initial_state(2))[0])
    torch.testing.assert_close(logits[0], logits[1])


@norms
@pytest.mark.parametrize("first_layer", ["table", "convolution"])
def test_one_hot_codes_are_an_embedding_by_the_identity(
    random_model: Builder, first_layer: str, weight_norm: bool
) -> None:
    options: dict[str, Any] = {"frame_sizes": (8, 2), "weight_norm": weight_norm, "q_levels": 16}
    one_hot = random_model(first_layer, embedding_dim=0, **options)
    embedded = random_model("convolution", embedding_dim=16, seed=2, **options)
    assert one_hot.sample_level_mlp.embedding is None
    identity = {"sample_level_mlp.embedding.weight": torch.eye(16, dtype=torch.float64)}
    embedded.load_state_dict({**one_hot.state_dict(), **identity})
    x = codes(one_hot, 2, 32)
    expected, _ = embedded(x, embedded.initial_state(2))
    got, state = one_hot(x[:, :8], one_hot.initial_state(2))
    rest, _ = one_hot(x[:, 8:], state)
    torch.testing.assert_close(torch.cat([got, rest], dim=1), expected, rtol=0, atol=1e-12)
    expected.square().sum().backward()
    torch.cat([got, rest], dim=1).square().sum().backward()
    theirs = dict(embedded.named_parameters())
    for name, parameter in one_hot.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-9, atol=1e-9)


def test_one_hot_codes_start_at_the_scale_of_embedded_ones() -> None:
    """So many inputs of the layer are 1 as a frame has samples: that is what its first values reckon with."""
    scales = []
    for embedding_dim in (256, 0):
        torch.manual_seed(0)
        table = SampleRNN(ModelConfig(dim=64, embedding_dim=embedding_dim)).sample_level_mlp.table()
        scales.append(float(table.detach().std()))
    assert scales[0] == pytest.approx(math.sqrt(2 / 16), rel=0.05)
    assert scales[1] == pytest.approx(scales[0], rel=0.05)


def test_state_dict_round_trip(random_model: Builder) -> None:
    options: dict[str, Any] = {"frame_sizes": (8, 4, 2), "rnn": "lstm", "n_rnn": 2}
    one, other = random_model(seed=1, **options), random_model("convolution", seed=2, **options)
    x = codes(one, 2, 16)
    expected, _ = one(x, one.initial_state(2))
    before, _ = other(x, other.initial_state(2))
    assert not torch.allclose(before, expected)
    other.load_state_dict(one.state_dict())
    got, _ = other(x, other.initial_state(2))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@every_cell
def test_bfloat16_autocast_stays_close_over_chunks_and_resets(random_model: Builder, rnn: str) -> None:
    """`trainer.precision: bf16-mixed` carries a bfloat16 state into `reset` and into the next chunk."""
    model = random_model(dtype=torch.float32, frame_sizes=(8, 2), rnn=rnn, n_rnn=2)
    x = codes(model, 2, 16)
    rows = torch.tensor([True, False])

    def two_chunks() -> Tensor:
        first, state = model(x[:, :8], model.reset(random_state(model, 2), rows))
        second, _ = model(x[:, 8:], model.reset(state, rows))
        return torch.cat([first, second], dim=1)

    expected = two_chunks()
    with torch.autocast("cpu", torch.bfloat16):
        got = two_chunks()
    error = (got.float() - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.05
    got.float().pow(2).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("num_samples", [1, 7, 9, 12])
def test_a_chunk_of_broken_frames_is_refused(random_model: Builder, num_samples: int) -> None:
    model = random_model(frame_sizes=(8, 2))
    with pytest.raises(ValueError, match=f"{num_samples} samples.* multiple of 8"):
        model(codes(model, 1, num_samples), model.initial_state(1))


def test_the_reference_sizes_have_51_867_136_parameters() -> None:
    """deepsound's README run has 51.85 M."""
    config = ModelConfig(frame_sizes=(64, 16), rnn="gru", n_rnn=2, dim=1024, q_levels=256, embedding_dim=256)
    with torch.device("meta"):
        model = SampleRNN(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == 51_867_136


@pytest.mark.parametrize("forget_bias", [1.0, 3.0])
def test_initial_rnn_has_orthogonal_blocks_and_zero_biases_but_the_forget_gate(forget_bias: float) -> None:
    torch.manual_seed(0)
    config = ModelConfig(frame_sizes=(8, 2), rnn="lstm", n_rnn=2, dim=16, forget_bias=forget_bias)
    for tier in SampleRNN(config).tiers():
        weights = dict(tier.rnn.layers.named_parameters())
        assert (tier.rnn.h0 == 0).all()
        for layer in range(2):
            for block in weights[f"weight_hh_l{layer}"].split(16):
                torch.testing.assert_close(block @ block.T, torch.eye(16), rtol=0, atol=1e-5)
            biases = (weights[f"bias_ih_l{layer}"] + weights[f"bias_hh_l{layer}"]).view(4, 16)
            assert (biases[1] == forget_bias).all()  # PyTorch's order: input, forget, cell, output
            assert (biases[[0, 2, 3]] == 0).all()


def test_initial_gru_has_orthogonal_blocks_and_zero_biases() -> None:
    torch.manual_seed(0)
    for tier in SampleRNN(ModelConfig(frame_sizes=(8, 2), dim=16)).tiers():
        weights = dict(tier.rnn.layers.named_parameters())
        blocks = weights["weight_hh_l0"].split(16)
        for block in blocks:
            torch.testing.assert_close(block @ block.T, torch.eye(16), rtol=0, atol=1e-5)
        assert not torch.allclose(blocks[0], blocks[1]), "each gate draws its own"
        assert (weights["bias_ih_l0"] == 0).all()
        assert (weights["bias_hh_l0"] == 0).all()


@norms
def test_initial_weights_are_uniform_within_he_and_lecun_bounds(weight_norm: bool) -> None:
    torch.manual_seed(0)
    config = ModelConfig(frame_sizes=(32, 8), dim=32, embedding_dim=16, q_levels=64, weight_norm=weight_norm)
    model = SampleRNN(config)
    he, lecun = 6, 3
    fan_ins = {
        "frame_level_tiers.0.input_projection.weight": (he, 32),
        "frame_level_tiers.1.input_projection.weight": (he, 8),
        "frame_level_tiers.0.upsampling.weight": (he, 32),
        "frame_level_tiers.0.rnn.layers.weight_ih_l0": (lecun, 32),
        "sample_level_mlp.input.weight": (he, 8 * 16),
        "sample_level_mlp.hidden.weight": (he, 32),
        "sample_level_mlp.output.weight": (lecun, 32),
    }
    parameters = dict(model.named_parameters())
    for name, (numerator, fan_in) in fan_ins.items():
        bound = math.sqrt(numerator / fan_in)
        weight = parameters[name]
        assert weight.abs().max() <= bound, name
        assert weight.abs().max() > 0.95 * bound, name
        # The standard deviation of a uniform distribution is bound/sqrt(3).
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15), name
    for name, parameter in parameters.items():
        if name.endswith("bias") and ".rnn." not in name:
            assert (parameter == 0).all(), name
    assert "sample_level_mlp.input.bias" not in parameters
