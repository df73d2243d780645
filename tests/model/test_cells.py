"""Every cell against its equations in NumPy; the layers that train on a CPU against PyTorch's own."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from samplernn.config import CELLS, ModelConfig, UserError
from samplernn.insight.benchmark.sizes import recurrent_matrices
from samplernn.model.cells import RNN, mingru
from samplernn.model.cells import lstm as torch_lstm
from samplernn.model.cells.echo_state import reservoir
from samplernn.model.network import SampleRNN

Array = NDArray[np.float64]
DIM, BATCH, FRAMES = 12, 3, 7
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CELLS),
    ("lstm-peephole", {"recurrent_input": False}),
    ("leaky", {"time_constants": "fixed"}),
    ("echo-state", {"leak": 0.3}),
]
variants = pytest.mark.parametrize(
    ("name", "options"), VARIANTS, ids=lambda v: v if isinstance(v, str) else ""
)
stacks = pytest.mark.parametrize(
    ("n_rnn", "skips"), [(1, False), (2, False), (3, True)], ids=["one", "two", "three_with_skips"]
)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def parts(x: Array, number: int) -> list[Array]:
    """Gates of a vector or of the rows of a matrix."""
    return list(x.reshape(number, -1, *x.shape[1:]))


def simple(w: dict[str, Array], x: Array, h: Array) -> Array:
    return w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias"]


def rnn_tanh(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    return np.tanh(simple(w, x, state[0]))[None]


def rnn_relu(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    return np.clip(simple(w, x, state[0]), 0, 20)[None]


def leaky(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    decay = np.exp(-1 / np.exp(w["log_time_constants"]))
    return (decay * state[0] + (1 - decay) * np.tanh(simple(w, x, state[0])))[None]


def echo_state(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    return ((1 - config.leak) * state[0] + config.leak * np.tanh(simple(w, x, state[0])))[None]


def mingru_step(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    update, new = parts(w["weight_ih"] @ x + w["bias"], 2)
    return ((1 - sigmoid(update)) * state[0] + sigmoid(update) * new)[None]


def lstm_peephole(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    h, c = state
    enter, forget, new, out = parts(w["weight_ih"] @ x + w["bias"], 4)
    if config.recurrent_input:
        enter, forget, new, out = (
            gate + u @ h for gate, u in zip((enter, forget, new, out), parts(w["weight_hh"], 4), strict=True)
        )
    see_enter, see_forget, see_out = w["peepholes"]
    after = sigmoid(forget + see_forget * c) * c + sigmoid(enter + see_enter * c) * np.tanh(new)
    return np.stack([sigmoid(out + see_out * after) * np.tanh(after), after])


def gru_reset_before(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    (h,) = state
    reset, update, new = parts(w["weight_ih"] @ x + w["bias"], 3)
    u_reset, u_update, u_new = parts(w["weight_hh"], 3)
    z = sigmoid(update + u_update @ h)
    n = np.tanh(new + u_new @ (sigmoid(reset + u_reset @ h) * h))
    return ((1 - z) * n + z * h)[None]


def gru(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    (h,) = state
    reset, update, new = parts(w["weight_ih"] @ x + w["bias_ih"], 3)
    reset_h, update_h, new_h = parts(w["weight_hh"] @ h + w["bias_hh"], 3)
    z = sigmoid(update + update_h)
    return ((1 - z) * np.tanh(new + sigmoid(reset + reset_h) * new_h) + z * h)[None]


def lstm(w: dict[str, Array], x: Array, state: Array, config: ModelConfig) -> Array:
    h, c = state
    enter, forget, new, out = parts(w["weight_ih"] @ x + w["bias_ih"] + w["weight_hh"] @ h + w["bias_hh"], 4)
    after = sigmoid(forget) * c + sigmoid(enter) * np.tanh(new)
    return np.stack([sigmoid(out) * np.tanh(after), after])


STEPS: dict[str, Callable[[dict[str, Array], Array, Array, ModelConfig], Array]] = {
    "gru": gru,
    "lstm": lstm,
    "rnn-tanh": rnn_tanh,
    "rnn-relu": rnn_relu,
    "lstm-peephole": lstm_peephole,
    "gru-reset-before": gru_reset_before,
    "leaky": leaky,
    "echo-state": echo_state,
    "mingru": mingru_step,
}


def random_rnn(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> RNN:
    """Everything that is trained is random: as it is first, zeros would hide mistakes."""
    torch.manual_seed(0)
    rnn = RNN(ModelConfig(rnn=name, **{"dim": DIM, "n_rnn": 2, **options})).to(dtype)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in rnn.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return rnn


def inputs_of(rnn: RNN, dtype: torch.dtype = torch.float64, frames: int = FRAMES) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return (
        torch.randn(BATCH, frames, DIM, dtype=dtype),
        torch.randn(BATCH, *rnn.h0.shape, dtype=dtype).tanh(),
    )


def weights_of(rnn: RNN, layer: int) -> dict[str, Array]:
    """Of one layer, without the layer in their names."""
    of_all = {name.removeprefix("layers."): value.numpy() for name, value in rnn.state_dict().items()}
    own, of_torch = re.compile(rf"{layer}\.(\w+?)(_l0)?"), re.compile(rf"(\w+)_l{layer}")
    found = {name: own.fullmatch(name) or of_torch.fullmatch(name) for name in of_all}
    return {match[1]: of_all[name] for name, match in found.items() if match}


@variants
@stacks
def test_layers_follow_their_equations(name: str, options: dict[str, Any], n_rnn: int, skips: bool) -> None:
    config = ModelConfig(rnn=name, dim=DIM, n_rnn=n_rnn, skip_connections=skips, **options)  # type: ignore[arg-type]
    rnn = random_rnn(name, n_rnn=n_rnn, skip_connections=skips, **options)
    x, state = inputs_of(rnn)
    with torch.no_grad():
        hidden, last = rnn(x, state)
    for row in range(BATCH):
        now = state[row].numpy().copy()  # [S, n_rnn, D]
        for frame in range(FRAMES):
            below = x[row, frame].numpy()
            for layer in range(n_rnn):
                read = np.concatenate([below, x[row, frame].numpy()]) if skips and layer else below
                now[:, layer] = STEPS[name](weights_of(rnn, layer), read, now[:, layer], config)
                below = now[0, layer]
            if skips:
                skip = {key: value.numpy() for key, value in rnn.skips.state_dict().items()}
                below = skip["weight"] @ now[0].reshape(-1) + skip["bias"]
            np.testing.assert_allclose(hidden[row, frame].numpy(), below, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(last[row].numpy(), now, rtol=1e-12, atol=1e-12)


@variants
@stacks
def test_all_ways_through_a_layer_are_one_function(
    name: str, options: dict[str, Any], n_rnn: int, skips: bool
) -> None:
    """With and without gradients, in PyTorch's plain operations, and frame by frame."""
    rnn = random_rnn(name, n_rnn=n_rnn, skip_connections=skips, **options)
    x, state = inputs_of(rnn)
    hidden, last = rnn(x, state)
    with torch.no_grad():
        ways = [rnn(x, state), rnn.plain(x, state)]
        stepped, now = [], state
        for frame in x.unbind(dim=1):
            out, now = rnn.step(frame, now)
            stepped.append(out)
        ways.append((torch.stack(stepped, dim=1), now))
    for other, other_last in ways:
        torch.testing.assert_close(other, hidden, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other_last, last, rtol=1e-12, atol=1e-12)


@variants
@pytest.mark.parametrize("skips", [False, True], ids=["plain", "skips"])
def test_gradients_are_those_of_finite_differences(name: str, options: dict[str, Any], skips: bool) -> None:
    rnn = random_rnn(name, dim=3, skip_connections=skips, **options)
    torch.manual_seed(2)
    x = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    state = torch.randn(2, *rnn.h0.shape, dtype=torch.float64).tanh().requires_grad_()
    parameters = {name: value for name, value in rnn.named_parameters() if name != "h0"}

    def run(x: Tensor, state: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        replaced = dict(zip(parameters, values, strict=True))
        found: tuple[Tensor, Tensor] = torch.func.functional_call(rnn, replaced, (x, state))
        return found

    assert torch.autograd.gradcheck(run, (x, state, *parameters.values()))


@variants
def test_mixed_precision_is_near_in_values_and_gradients_and_keeps_state_and_parameters_wide(
    name: str, options: dict[str, Any]
) -> None:
    rnn = random_rnn(name, torch.float32, n_rnn=1, **options)
    x, state = inputs_of(rnn, torch.float32)
    found = []
    for is_mixed in (False, True):
        rnn.zero_grad()
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            narrow = F.linear(inputs, torch.eye(DIM))  # as the network has it: bfloat16 where it is mixed
            hidden, last = rnn(narrow, state)
        (hidden.float().pow(2).sum() + last.float().pow(2).sum()).backward()
        gradients = [p.grad for n, p in rnn.named_parameters() if n != "h0" and p.grad is not None]
        assert all(gradient.dtype == torch.float32 for gradient in gradients)
        found.append([hidden.detach().float(), last.detach().float(), inputs.grad, *gradients])
        if is_mixed and name not in ("gru", "lstm"):
            assert hidden.dtype == last.dtype == torch.float32
    assert len(found[0]) == len(found[1])
    for exact, mixed in zip(*found, strict=True):
        assert exact is not None
        assert 0 < (mixed - exact).norm() < 0.03 * exact.norm()


@pytest.mark.parametrize("options", [{}, {"rnn_weight_norm": True}])
def test_an_lstm_is_computed_in_float32_where_autocast_has_none(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Whatever enters it: float32, or what autocast has narrowed."""
    monkeypatch.setattr(torch_lstm, "has_narrow_lstm", lambda dtype: False)
    rnn = random_rnn("lstm", torch.float32, n_rnn=2, **options)
    x, state = inputs_of(rnn, torch.float32)
    for inputs in (x, x.bfloat16()):
        expected = rnn(inputs.float(), state)
        with torch.autocast("cpu", torch.bfloat16):
            got = rnn(inputs, state)
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_processor_is_asked_for_a_narrow_lstm_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no random numbers, and is no part of what autograd keeps for others."""
    ask = torch_lstm.has_narrow_lstm.__wrapped__
    before = torch.get_rng_state()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x):
        answer = ask(torch.bfloat16)
    assert torch.equal(torch.get_rng_state(), before)
    assert saved == []

    def without(*arguments: Any) -> None:
        raise RuntimeError(
            "could not create a primitive descriptor for the LSTM forward propagation primitive"
        )

    monkeypatch.setattr(torch, "lstm", without)
    assert ask(torch.bfloat16) is False
    assert answer in (True, False)


@pytest.mark.parametrize("name", CELLS)
def test_all_weights_may_be_bfloat16(name: str) -> None:
    """``trainer.precision: bf16-true``."""
    rnn = random_rnn(name, torch.bfloat16)
    x, state = inputs_of(rnn, torch.bfloat16)
    hidden, last = rnn(x.requires_grad_(), state)
    (hidden.float().sum() + last.float().sum()).backward()
    assert hidden.dtype == last.dtype == torch.bfloat16
    assert hidden.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 13])
def test_scans_agree(frames: int) -> None:
    torch.manual_seed(0)
    keep, add = torch.rand(frames, 2, 3, dtype=torch.float64), torch.randn(frames, 2, 3, dtype=torch.float64)
    h0 = torch.randn(2, 3, dtype=torch.float64)
    in_turn = mingru._frame_by_frame(keep, add, h0)
    torch.testing.assert_close(mingru._by_doubling(keep, add, h0), in_turn, rtol=0, atol=1e-12)


def test_a_scan_forgets_for_thousands_of_frames_without_harm() -> None:
    """Products of thousands of shares underflow; that is no NaN, and what is near is exact."""
    keep = torch.full((5000, 1, 4), 0.5)
    keep[:, :, 1], keep[:, :, 2], keep[:, :, 3] = 0.0, 1.0, 1e-30
    add = torch.ones(5000, 1, 4)
    for scan in (mingru._frame_by_frame, mingru._by_doubling):
        last = scan(keep, add, torch.ones(1, 4))[-1, 0]
        torch.testing.assert_close(last, torch.tensor([2.0, 1.0, 5001.0, 1.0]))


def test_an_irnn_begins_by_remembering_everything() -> None:
    rnn = RNN(ModelConfig(rnn="rnn-relu", dim=DIM))
    state = torch.rand(BATCH, 1, 1, DIM)
    _, last = rnn(torch.zeros(BATCH, 100, DIM), state)
    assert torch.equal(last, state)


def test_rectified_units_have_an_upper_bound() -> None:
    """Or a stream that goes on for hours would overflow."""
    rnn = RNN(ModelConfig(rnn="rnn-relu", dim=DIM))
    with torch.no_grad():
        rnn.layers[0].weight_hh.mul_(1.1)  # type: ignore[index, union-attr]
        _, last = rnn(torch.zeros(1, 2000, DIM), torch.ones(1, 1, 1, DIM))
    assert (last == 20).all()


def test_leaky_units_fade_with_log_spaced_time_constants() -> None:
    rnn = RNN(ModelConfig(rnn="leaky", dim=4))
    with torch.no_grad():
        rnn.layers[0].weight_hh.zero_()  # type: ignore[index, union-attr]
    _, last = rnn(torch.zeros(1, 10, 4), torch.ones(1, 1, 1, 4))
    expected = [math.exp(-10 / tau) for tau in (1, 10, 100, 1000)]
    torch.testing.assert_close(last.flatten(), torch.tensor(expected))


def test_time_constants_are_learned_or_not() -> None:
    learned, fixed = (
        RNN(ModelConfig(rnn="leaky", dim=4, time_constants=how))  # type: ignore[arg-type]
        for how in ("learned", "fixed")
    )
    assert learned.state_dict().keys() == fixed.state_dict().keys()
    name = "layers.0.log_time_constants"
    assert (name in dict(learned.named_parameters()), name in dict(fixed.named_parameters())) == (True, False)


@pytest.mark.parametrize("forget_bias", [1.0, 3.0])
def test_a_peephole_lstm_begins_as_an_lstm_with_its_forget_bias(forget_bias: float) -> None:
    peephole, plain = (
        RNN(ModelConfig(rnn=name, dim=DIM, forget_bias=forget_bias))  # type: ignore[arg-type]
        for name in ("lstm-peephole", "lstm")
    )
    weights = weights_of(peephole, 0)
    biases = weights["bias"].reshape(4, DIM)
    assert (biases == np.array([[0], [forget_bias], [0], [0]])).all()
    plain.load_state_dict(
        {
            "h0": peephole.h0,
            "layers.weight_ih_l0": torch.from_numpy(weights["weight_ih"]),
            "layers.weight_hh_l0": torch.from_numpy(weights["weight_hh"]),
            "layers.bias_ih_l0": torch.from_numpy(weights["bias"]),
            "layers.bias_hh_l0": torch.zeros(4 * DIM),
        }
    )
    x, state = inputs_of(peephole, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(peephole(x, state[:, :, :1]), plain(x, state[:, :, :1]))


@pytest.mark.parametrize("name", sorted(set(CELLS) - {"gru", "lstm", "rnn-relu", "echo-state", "mingru"}))
def test_own_cells_begin_orthogonal_lecun_uniform_and_without_bias(name: str) -> None:
    torch.manual_seed(0)
    weights = weights_of(RNN(ModelConfig(rnn=name, dim=64)), 0)  # type: ignore[arg-type]
    for block in weights["weight_hh"].reshape(-1, 64, 64):
        np.testing.assert_allclose(block @ block.T, np.eye(64), atol=1e-5)
    assert 0.95 * math.sqrt(3 / 64) < np.abs(weights["weight_ih"]).max() <= math.sqrt(3 / 64)
    assert (np.delete(weights["bias"], slice(64, 128)) == 0).all()  # the forget gate of one has one


@pytest.mark.parametrize(("radius", "density"), [(0.9, 0.1), (1.3, 1.0), (0.5, 1e-9)])
def test_a_reservoir_has_its_spectral_radius_and_density(radius: float, density: float) -> None:
    torch.manual_seed(0)
    weight = reservoir(torch.empty(200, 200), radius, density).double().numpy()
    assert np.abs(np.linalg.eigvals(weight)).max() == pytest.approx(radius, rel=1e-3)
    assert np.count_nonzero(weight) / weight.size == pytest.approx(max(density, 1 / 200), rel=0.1)
    assert (np.count_nonzero(weight, axis=1) > 0).all()


def test_of_an_echo_state_network_only_what_reads_it_is_trained() -> None:
    model = SampleRNN(ModelConfig(frame_sizes=(8, 2), rnn="echo-state", dim=8, learn_h0=False))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".upsampling." in name or name.startswith("sample_level_mlp.") for name in trained)
    assert any(".upsampling." in name for name in trained)
    stored = set(model.state_dict())
    for tier, name in itertools.product((0, 1), ("weight_ih", "weight_hh", "bias")):
        assert f"frame_level_tiers.{tier}.rnn.layers.0.{name}" in stored


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("skips", [False, True])
def test_names_and_sizes_are_known_without_memory(name: str, skips: bool) -> None:
    """A checkpoint is built on the meta device, whatever a cell does at first."""
    config = ModelConfig(rnn=name, dim=8, n_rnn=2, skip_connections=skips)  # type: ignore[arg-type]
    with torch.device("meta"):
        empty = RNN(config)
    full = RNN(config)
    assert {n: v.shape for n, v in empty.state_dict().items()} == {
        n: v.shape for n, v in full.state_dict().items()
    }
    assert 0 <= recurrent_matrices(config).trained <= recurrent_matrices(config).total


def test_checkpoints_of_earlier_versions_have_the_names_of_pytorchs_layers() -> None:
    for name, vectors, gates in (("gru", 1, 3), ("lstm", 2, 4)):
        rnn = RNN(ModelConfig(rnn=name, dim=8, n_rnn=2))  # type: ignore[arg-type]
        shapes = {key: tuple(value.shape) for key, value in rnn.state_dict().items()}
        expected: dict[str, tuple[int, ...]] = {"h0": (vectors, 2, 8)}
        for layer in range(2):
            for side in ("ih", "hh"):
                expected[f"layers.weight_{side}_l{layer}"] = (gates * 8, 8)
                expected[f"layers.bias_{side}_l{layer}"] = (gates * 8,)
        assert shapes == expected


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("skips", [False, True])
def test_the_input_may_be_narrower(name: str, skips: bool) -> None:
    config = ModelConfig(rnn=name, dim=8, n_rnn=2, skip_connections=skips)  # type: ignore[arg-type]
    rnn = RNN(config, input_size=3).double()
    x, state = torch.randn(2, 4, 3, dtype=torch.float64), rnn.initial_state(2)
    hidden, last = rnn(x, state)
    for frame in range(4):
        out, state = rnn.step(x[:, frame], state)
        torch.testing.assert_close(out, hidden[:, frame])
    torch.testing.assert_close(state, last)


def test_recurrent_parameters_are_those_that_multiply_the_hidden_vector() -> None:
    for name, gates in {
        "gru": 3,
        "gru-reset-before": 3,
        "lstm-peephole": 4,
        "mingru": 0,
        "echo-state": 0,
    }.items():
        rnn = RNN(ModelConfig(rnn=name, dim=8, n_rnn=2))  # type: ignore[arg-type]
        shapes = [tuple(parameter.shape) for parameter in rnn.recurrent_parameters()]
        assert shapes == ([(8 * gates, 8)] * 2 if gates else []), name


def test_one_layer_has_no_skips() -> None:
    plain, skipping = (RNN(ModelConfig(dim=8, skip_connections=skips)) for skips in (False, True))
    assert plain.state_dict().keys() == skipping.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"leak": 0.0}, "model.leak must be from above 0 to 1, got 0.0"),
        ({"density": 1.5}, "model.density must be from above 0 to 1, got 1.5"),
        ({"density": math.nan}, "model.density"),
        ({"spectral_radius": 0.0}, "model.spectral_radius must be above 0, got 0.0"),
        ({"spectral_radius": math.inf}, "model.spectral_radius"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        ModelConfig(**options)
    assert said in str(caught.value)


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
