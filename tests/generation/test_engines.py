"""What holds for every engine: equal to teacher forcing, and streams that do not influence each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samplernn.config import CELLS, ModelConfig, UserError
from samplernn.generation import engines
from samplernn.generation.engines import open_engine
from samplernn.generation.engines.base import PREFILL_CHUNK, Engine, EngineState
from samplernn.generation.engines.reference import grouping
from samplernn.model.network import SampleRNN
from tests.generation.drawing import draws

TIERS = [(4,), (8, 2), (12, 4, 2)]
ENGINES = [("reference", "float32"), ("cpu", "float32"), ("cpu", "bfloat16"), ("cpu", "int8")]
ON_GPU = [("cuda", "float32"), ("cuda", "bfloat16")]  # interpreted on the CPU: tests/generation/test_cuda.py
GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
SERVED = engines.CELLS["cpu"]
"""Cells of the fused engine; a cell that nobody has thought of yet is not among them."""
OPTIONS: list[dict[str, Any]] = [{}, {"skip_connections": True}]
generic = pytest.mark.parametrize(
    ("rnn", "options"),
    [
        *((rnn, options) for rnn in CELLS for options in OPTIONS),
        ("lstm-peephole", {"recurrent_input": False}),
        ("echo-state", {"leak": 0.5, "dim": 33}),
        ("gru", {"dim": 21}),
        ("leaky", {"time_constants": "fixed", "dim": 134}),
    ],
)


@pytest.fixture(params=[*ENGINES, *(pytest.param(engine, marks=GPU) for engine in ON_GPU)], ids="-".join)
def choice(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each engine with each dtype."""
    choice: tuple[str, str] = request.param
    return choice


@pytest.fixture(params=["reference", "cpu", pytest.param("cuda", marks=GPU)])
def exact(request: pytest.FixtureRequest) -> str:
    """Each engine, in float32."""
    name: str = request.param
    return name


ORIGINAL = {"top_projection": False, "linear_mlp_layer": True, "rnn_weight_norm": True}
"""Keys that make the network that of the Theano original."""


def _model(
    frame_sizes: tuple[int, ...] = (8, 2), rnn: str = "gru", weight_norm: bool = True, **options: Any
) -> SampleRNN:
    """All parameters random; dim 20 is no multiple of a vector register."""
    torch.manual_seed(1)
    config = ModelConfig(
        frame_sizes=frame_sizes,
        rnn=rnn,  # type: ignore[arg-type]
        q_levels=33,
        weight_norm=weight_norm,
        **{"n_rnn": 2, "dim": 20, "embedding_dim": 7, **options},
    )
    model = SampleRNN(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if rnn == "rnn-relu":  # whose units would grow from step to step
            for name, parameter in model.named_parameters():
                parameter.mul_(0.3 if "weight_hh" in name else 1)
    return model


def _teacher_forced(model: SampleRNN, codes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits, _ = model(codes, model.initial_state(len(codes)))
    return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")


def _generate(engine: Engine, streams: tuple[int, ...], lengths: list[int], seed: int = 5) -> torch.Tensor:
    engine.start(len(streams))
    return torch.cat([engine.advance(draws(length, seed, streams)) for length in lengths], dim=1)


@pytest.mark.parametrize("weight_norm", [True, False])
@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("frame_sizes", TIERS)
def test_stepping_equals_teacher_forcing(
    exact: str, frame_sizes: tuple[int, ...], rnn: str, weight_norm: bool
) -> None:
    model = _model(frame_sizes, rnn, weight_norm)
    codes = torch.randint(33, (3, 48))
    engine = open_engine(model, exact, "float32")
    engine.start(3)
    stepped = torch.cat([engine.score(codes[:, :24]), engine.score(codes[:, 24:])], dim=1)
    torch.testing.assert_close(stepped, _teacher_forced(model, codes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weight_norm", [True, False])
def test_stepping_equals_teacher_forcing_with_one_hot_codes(exact: str, weight_norm: bool) -> None:
    model = _model(weight_norm=weight_norm, embedding_dim=0)
    codes = torch.randint(33, (3, 48))
    engine = open_engine(model, exact, "float32")
    engine.start(3)
    torch.testing.assert_close(engine.score(codes), _teacher_forced(model, codes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("frame_sizes", [(4,), (12, 4)])
@pytest.mark.parametrize("key", [*ORIGINAL, "all"])
def test_stepping_equals_teacher_forcing_with_the_keys_of_the_original(
    exact: str, key: str, frame_sizes: tuple[int, ...], rnn: str
) -> None:
    model = _model(frame_sizes, rnn, **{name: ORIGINAL[name] for name in ORIGINAL if key in (name, "all")})
    codes = torch.randint(33, (3, 48))
    engine = open_engine(model, exact, "float32")
    engine.start(3)
    stepped = torch.cat([engine.score(codes[:, :24]), engine.score(codes[:, 24:])], dim=1)
    torch.testing.assert_close(stepped, _teacher_forced(model, codes), atol=2e-5, rtol=2e-5)


def test_streams_of_a_model_like_the_original_do_not_influence_each_other(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(**ORIGINAL), *choice)
    alone = _generate(engine, (3,), [48])
    for count in (4, 37, 450):
        assert torch.equal(_generate(engine, tuple(range(count)), [16, 32])[3], alone[0])


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_narrow_weights_cost_a_model_like_the_original_no_more_than_another(dtype: str) -> None:
    codes, worst = torch.randint(33, (8, 96)), []
    for options in ({}, ORIGINAL):
        model = _model((16, 4), **options)
        engine = open_engine(model, "cpu", dtype)
        engine.start(8)
        worst.append((engine.score(codes) - _teacher_forced(model, codes)).abs().mean())
    assert worst[1] < 2 * worst[0]


def test_frames_longer_than_the_units_are_many_are_for_the_generic_engine(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = _model((24, 4), top_projection=False)
    assert open_engine(model).name == "reference"
    assert "frames of 24 samples with 20 units unprojected" in capsys.readouterr().err
    with pytest.raises(UserError, match="use engine reference"):
        open_engine(model, "cpu")
    codes = torch.randint(33, (2, 48))
    engine = open_engine(model, "reference")
    engine.start(2)
    torch.testing.assert_close(engine.score(codes), _teacher_forced(model, codes), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
@pytest.mark.parametrize("frame_sizes", TIERS)
def test_stepping_equals_teacher_forcing_after_single_rows_were_reset(
    exact: str, frame_sizes: tuple[int, ...], rnn: str
) -> None:
    model = _model(frame_sizes, rnn)
    before, after = torch.randint(33, (2, 3, 24))
    rows = torch.tensor([False, True, False])
    engine = open_engine(model, exact, "float32")
    engine.start(3)
    engine.score(before)
    state = engine.export_state()
    engine.import_state(state._replace(network=model.reset(state.network, rows)))
    stepped = engine.score(after)
    with torch.no_grad():
        _, carried = model(before, model.initial_state(3))
        logits, _ = model(after, model.reset(carried, rows))
    expected = F.cross_entropy(logits.transpose(1, 2), after, reduction="none")
    torch.testing.assert_close(stepped, expected, atol=1e-5, rtol=1e-5)
    fresh = _teacher_forced(model, after)
    torch.testing.assert_close(stepped[1], fresh[1], atol=1e-5, rtol=1e-5)
    assert (stepped[0] - fresh[0]).abs().max() > 1e-3


@pytest.mark.parametrize("rnn", ["gru", "lstm"])
def test_a_stream_is_bit_for_bit_the_same_whatever_its_neighbours(choice: tuple[str, str], rnn: str) -> None:
    engine = open_engine(_model(rnn=rnn), *choice)
    alone = _generate(engine, (3,), [48])
    state = engine.export_state().network.rnn[0]
    for count in (4, 5, 37, 450):  # 450 rows are stepped in two groups
        together = _generate(engine, tuple(range(count)), [48])
        assert torch.equal(together[3], alone[0])
        assert torch.equal(engine.export_state().network.rnn[0][3], state[0])


@generic
def test_the_generic_engine_steps_whatever_can_be_trained(rnn: str, options: dict[str, Any]) -> None:
    model = _model((12, 4, 2), rnn, **options)
    codes = torch.randint(33, (3, 48))
    engine = open_engine(model)
    if rnn not in SERVED or "skip_connections" in options:
        assert engine.name == "reference"
    engine = open_engine(model, "reference")
    engine.start(3)
    stepped = torch.cat([engine.score(codes[:, :24]), engine.score(codes[:, 24:])], dim=1)
    torch.testing.assert_close(stepped, _teacher_forced(model, codes), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_rnn", [1, 2])
@pytest.mark.parametrize(
    ("rnn", "options"),
    [
        *((rnn, {}) for rnn in SERVED),
        ("lstm-peephole", {"recurrent_input": False}),
        ("echo-state", {"leak": 0.5}),
    ],
)
def test_the_fused_engine_steps_the_cells_that_it_serves(
    rnn: str, options: dict[str, Any], n_rnn: int
) -> None:
    model = _model((12, 4, 2), rnn, dim=70, n_rnn=n_rnn, **options)
    assert open_engine(model).name == "cpu"
    codes = torch.randint(33, (3, 48))
    expected = _teacher_forced(model, codes)
    engine = open_engine(model, "cpu", "float32")
    engine.start(3)
    stepped = torch.cat([engine.score(codes[:, :24]), engine.score(codes[:, 24:])], dim=1)
    largest = float(expected.max())  # logits of cells without bounds are large
    torch.testing.assert_close(stepped, expected, atol=2e-5 * max(1, largest), rtol=1e-5)
    if rnn != "mingru":  # at random weights its units reach into the tens, which 8 bits tell badly apart
        engine = open_engine(model, "cpu", "int8")
        engine.start(3)
        assert (engine.score(codes) - expected).abs().mean() < 0.02 * expected.abs().mean()


@generic
def test_the_generic_engine_keeps_streams_apart_in_every_bit(rnn: str, options: dict[str, Any]) -> None:
    engine = open_engine(_model(rnn=rnn, **options), "reference")
    alone = _generate(engine, (3,), [24])
    states = engine.export_state().network.rnn
    for count in (4, 21, 450):
        together = _generate(engine, tuple(range(count)), [24])
        assert torch.equal(together[3], alone[0])
        after = engine.export_state().network.rnn
        assert all(torch.equal(many[3], one[0]) for many, one in zip(after, states, strict=True))


@pytest.mark.parametrize("dim", [1, 7, 64, 600, 1001])
def test_rows_are_grouped_into_whole_vectors_below_the_grain(dim: int) -> None:
    most, unit = grouping(dim)
    assert most % unit == 0
    assert most == 1 or (unit * dim % 64 == 0 and 4 * most * dim <= 32768)


@pytest.mark.parametrize("options", [{"rnn": "gru-reset-before"}, {"skip_connections": True}])
def test_a_fused_engine_says_what_it_does_not_serve(options: dict[str, Any]) -> None:
    model = _model(**options)
    with pytest.raises(
        UserError, match=r"engine cpu has no (cell gru-reset-before|skip connections): use engine ref"
    ):
        open_engine(model, "cpu")


def test_the_fused_engines_serve_cells_that_there_are() -> None:
    assert set(engines.CELLS["cuda"]) < set(SERVED) < set(CELLS)
    assert "gru-reset-before" not in SERVED  # a second product in the middle of a step


def test_a_cell_that_no_engine_lists_is_for_the_generic_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "CELLS", {"cuda": (), "cpu": ()})
    assert open_engine(_model(rnn="mingru")).name == "reference"
    assert capsys.readouterr().err == "engine reference, the generic one: engine cpu has no cell mingru\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dim", [256, 320, 512, 1024])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_long_stream_on_a_gpu_is_the_same_whatever_its_neighbours(dim: int, dtype: str) -> None:
    torch.manual_seed(0)
    model = SampleRNN(ModelConfig((64, 16), n_rnn=2, dim=dim))
    engine = open_engine(model, "cuda", dtype)
    alone = _generate(engine, (3,), [8192])
    assert len(alone.unique()) > 100
    for count in (4, 16, 40, 300):
        assert torch.equal(_generate(engine, tuple(range(count)), [8192])[3], alone[0])


@pytest.mark.parametrize("lengths", [[8] * 6, [16, 32], [40, 8]])
def test_a_stream_does_not_depend_on_the_lengths_of_the_calls(
    choice: tuple[str, str], lengths: list[int]
) -> None:
    engine = open_engine(_model(), *choice)
    whole = _generate(engine, (0, 1), [48])
    assert torch.equal(_generate(engine, (0, 1), lengths), whole)


def test_a_stream_does_not_depend_on_the_number_of_threads(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(), *choice)
    before = torch.get_num_threads()
    try:
        outputs = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outputs.append(_generate(engine, tuple(range(6)), [96]))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_another_seed_and_another_stream_sound_different(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(), *choice)
    streams = _generate(engine, (0, 1), [96])
    assert (streams[0] != streams[1]).float().mean() > 0.5
    assert (_generate(engine, (0, 1), [96], seed=6) != streams).float().mean() > 0.5


def test_an_exported_state_goes_on_as_if_nothing_had_happened(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(rnn="lstm"), *choice)
    whole = _generate(engine, (0, 1), [24, 24])
    _generate(engine, (0, 1), [24])
    state = engine.export_state()
    _generate(engine, (5,), [8], seed=9)  # something else in between
    engine.import_state(state)
    assert torch.equal(engine.advance(draws(24, 5, (0, 1))), whole[:, 24:])


@pytest.mark.parametrize("frame_sizes", TIERS)
def test_prefill_is_the_same_past_as_stepping_through_it(exact: str, frame_sizes: tuple[int, ...]) -> None:
    engine = open_engine(_model(frame_sizes), exact, "float32")
    past, future = torch.randint(33, (2, 1, 24))
    engine.start(1)
    engine.score(past)
    stepped = engine.score(future)
    engine.start(1)
    engine.prefill(past[0])
    torch.testing.assert_close(engine.score(future), stepped, atol=1e-5, rtol=1e-5)


def test_prefill_does_not_depend_on_its_pieces(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(), *choice)
    past = torch.randint(33, (PREFILL_CHUNK + 24,))
    states = []
    for pieces in ([PREFILL_CHUNK + 24], [PREFILL_CHUNK, 24]):
        engine.start(1)
        for piece in past.split(pieces):
            engine.prefill(piece)
        states.append(engine.export_state())
    assert all(map(torch.equal, states[0].network.rnn, states[1].network.rnn))
    assert torch.equal(states[0].network.history[0], past[-8:])
    assert states[0].position.tolist() == [0]


def test_prefill_is_for_one_stream(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(), *choice)
    _generate(engine, (0, 1), [48])
    with pytest.raises(ValueError, match="one stream, not 2"):
        engine.prefill(torch.zeros(8, dtype=torch.int64))


def test_streams_are_taken_apart_and_joined(choice: tuple[str, str]) -> None:
    """Each goes on as in its old company, at its own place in the random numbers."""
    engine = open_engine(_model(rnn="lstm"), *choice)
    first, second = _generate(engine, (0, 1), [24]), engine.export_state()
    _generate(engine, (0,), [16])
    third = engine.export_state()
    engine.import_state(EngineState.joined([third, second.rows([1])]))
    together = engine.advance(draws(24, 5, (0, 1)))
    whole = _generate(engine, (0, 1), [48])
    assert torch.equal(first, whole[:, :24])
    assert torch.equal(together[0], whole[0, 16:40])
    assert torch.equal(together[1], whole[1, 24:])


def test_each_draw_has_its_own_temperature(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(), *choice)
    rows = np.ones((2, 48), np.float32)
    rows[1, 24:] = 0
    engine.start(2)
    mixed = engine.advance(draws(48, 5, (0, 1))._replace(temperature=rows))
    warm = _generate(engine, (0, 1), [48])
    assert torch.equal(mixed[0], warm[0])
    assert torch.equal(mixed[1, :24], warm[1, :24])
    engine.start(2)
    engine.advance(draws(24, 5, (0, 1)))
    greedy = engine.advance(draws(24, 6, (0, 1), 0.0))  # no chance in it
    assert torch.equal(mixed[1, 24:], greedy[1])


def test_lengths_must_be_whole_frames(choice: tuple[str, str]) -> None:
    engine = open_engine(_model(), *choice)
    with pytest.raises(ValueError, match="multiple of the largest frame, 8"):
        engine.advance(draws(12, 0, (0,)))


def test_the_model_is_not_changed_by_its_engine(choice: tuple[str, str]) -> None:
    model = _model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    _generate(open_engine(model, *choice), (0,), [16])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("engine", "dtype"), [("warp", "auto"), ("auto", "float12")])
def test_unknown_engines_and_dtypes_are_refused(engine: str, dtype: str) -> None:
    with pytest.raises(UserError, match="there are: auto"):
        open_engine(_model(), engine, dtype)


def test_an_engine_has_only_its_own_dtypes() -> None:
    with pytest.raises(UserError, match="reference has no dtype int8; it has: float32"):
        open_engine(_model(), "reference", "int8")
    engine = open_engine(_model())
    assert (engine.name, engine.dtype) == ("cpu", "int8")
