"""The CUDA engine, its kernels interpreted on the CPU; on a GPU tests/generation/test_engines.py has it, too."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from samplernn.config import ModelConfig, UserError
from samplernn.generation import engines
from samplernn.generation.engines import open_engine
from samplernn.generation.engines.base import EngineState
from samplernn.generation.engines.reference import ReferenceEngine
from samplernn.model.network import SampleRNN
from tests.conftest import slow
from tests.generation.drawing import draws

triton = pytest.importorskip("triton", reason="Triton is not installed")


@pytest.fixture(scope="module")
def cuda() -> ModuleType:
    """The engine's module, with its kernels interpreted: tests/conftest.py sees to it."""
    from samplernn.generation.engines import cuda

    if not cuda.interpreted():
        pytest.skip("there is a GPU, which runs the kernels themselves")
    return cuda


def _model(
    frame_sizes: tuple[int, ...] = (8, 2), rnn: str = "gru", dim: int = 20, n_rnn: int = 2, q_levels: int = 33
) -> SampleRNN:
    """All parameters random; by default nothing is a multiple of a tile."""
    torch.manual_seed(1)
    model = SampleRNN(
        ModelConfig(frame_sizes, rnn, n_rnn, dim, embedding_dim=7, q_levels=q_levels)  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def _teacher_forced(model: SampleRNN, codes: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits, _ = model(codes, model.initial_state(len(codes)))
    return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")


@pytest.mark.parametrize("num", [1, slow(3)], ids=["alone", "three"])
@pytest.mark.parametrize(
    ("frame_sizes", "rnn", "dim", "n_rnn"),
    [
        pytest.param((8, 2), "gru", 20, 2, marks=pytest.mark.slow),
        pytest.param((12, 4, 2), "lstm", 64, 1, marks=pytest.mark.slow),
        ((4,), "lstm", 70, 2),
        pytest.param((3, 1), "gru", 128, 1, marks=pytest.mark.slow),
    ],
)
def test_stepping_equals_teacher_forcing(
    cuda: ModuleType, frame_sizes: tuple[int, ...], rnn: str, dim: int, n_rnn: int, num: int
) -> None:
    model = _model(frame_sizes, rnn, dim, n_rnn)
    codes = torch.randint(33, (num, {8: 16, 12: 12, 4: 8, 3: 6}[frame_sizes[0]]))
    engine = cuda.CudaEngine(model, "float32")
    engine.start(num)
    half = codes.shape[1] // 2 // engine.lookback * engine.lookback
    parts = [engine.score(part) for part in codes.tensor_split([half], dim=1) if part.shape[1]]
    torch.testing.assert_close(torch.cat(parts, dim=1), _teacher_forced(model, codes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("is_masked", [False, True])
def test_a_linear_layer_with_and_without_rows_that_count(cuda: ModuleType, is_masked: bool) -> None:
    num, num_rows, inputs, columns, width = 50, 64, 128, 96, 48
    x, weights, biases = torch.randn(num_rows, inputs), torch.randn(columns, inputs), torch.randn(columns)
    out = torch.zeros(columns // width, num_rows, width)
    shape = {"BM": 16, "BN": 16, "BK": 16, "STAGES": 2, "IS_MASKED": is_masked}
    cuda.cuda_kernels.linear[(1,)](
        x, weights, biases, out, num, num_rows, columns, width, inputs, True, **shape
    )
    expected = F.relu(x @ weights.T + biases).view(num_rows, -1, width).transpose(0, 1)
    torch.testing.assert_close(out[:, :num], expected[:, :num], atol=1e-4, rtol=1e-4)
    padding = F.relu(biases).view(-1, 1, width).expand(-1, 14, -1) if is_masked else expected[:, num:]
    torch.testing.assert_close(out[:, num:], padding, atol=1e-4, rtol=1e-4)


@pytest.fixture
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter holds bfloat16 as its bits, and multiplies those."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    dot = builder.create_dot

    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        if a.dtype == triton.language.bfloat16:
            a, b = (
                interpreter.TensorHandle(
                    (x.data.astype(np.uint32) << 16).view(np.float32), triton.language.float32
                )
                for x in (a, b)
            )
        return dot(a, b, *rest)

    monkeypatch.setattr(builder, "create_dot", create_dot)


@pytest.mark.usefixtures("bfloat16_products")
@pytest.mark.parametrize("num", [slow(1), slow(5)], ids=["alone", "five"])
def test_bfloat16_is_close_to_the_network(cuda: ModuleType, num: int) -> None:
    model = _model((4, 2), n_rnn=1)
    codes = torch.randint(33, (num, 16))
    engine = cuda.CudaEngine(model, "bfloat16")
    engine.start(num)
    difference = (engine.score(codes) - _teacher_forced(model, codes)) / np.log(2)
    assert 1e-5 < difference.abs().max() < 0.5  # of a model whose logits are far apart
    assert abs(difference.mean()) < 0.05


@pytest.mark.parametrize(
    "options",
    [
        slow({}),
        slow({"temperature": 0.0}),
        {"temperature": 0.9, "top_k": 5},
        slow({"temperature": 1.1, "top_p": 0.8}),
    ],
    ids=["plain", "greedy", "top-k", "top-p"],
)
def test_the_same_numbers_draw_the_same_codes_as_in_the_reference(
    cuda: ModuleType, options: dict[str, float]
) -> None:
    model = _model((4, 2), n_rnn=1)
    drawn = []
    for engine in (ReferenceEngine(model), cuda.CudaEngine(model, "float32")):
        for streams in ((2**32 - 1, 5), (5,)):
            engine.start(len(streams))
            arrays = draws(4, 2**63 + 11, streams, **options)
            drawn.append([engine.advance(arrays) for _ in range(2)])
    for expected, codes in zip(drawn[:2], drawn[2:], strict=True):
        assert torch.equal(torch.cat(codes, dim=1), torch.cat(expected, dim=1))


@pytest.mark.slow
def test_each_stream_has_its_own_temperature_at_each_sample(cuda: ModuleType) -> None:
    model = _model((2,), n_rnn=1)
    temperatures = np.array([[0, 0, 1, 1], [2, 0, 0, 0.5]], np.float32)
    drawn = []
    for engine in (ReferenceEngine(model), cuda.CudaEngine(model, "float32")):
        engine.start(2)
        drawn.append(engine.advance(draws(4, 3, (0, 1))._replace(temperature=temperatures)))
    assert torch.equal(*drawn)


@pytest.mark.slow
def test_a_long_call_is_several_launches_of_the_same_stream(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = cuda.CudaEngine(_model((2,), n_rnn=1), "float32")
    arrays, codes = draws(6, 5, (0, 1, 2)), torch.randint(33, (3, 6))
    engine.start(3)
    expected = engine.advance(arrays)
    scores = engine.score(codes)
    monkeypatch.setattr(cuda, "_SAMPLES_PER_LAUNCH", 5)  # samples: two largest frames, then one
    monkeypatch.setattr(cuda, "_STREAMS_AT_ONCE", 2)  # streams
    engine.start(3)
    assert torch.equal(engine.advance(arrays), expected)
    torch.testing.assert_close(engine.score(codes), scores)


@pytest.mark.slow
def test_a_state_goes_on_where_it_was_taken(cuda: ModuleType) -> None:
    engine = cuda.CudaEngine(_model((4, 2), rnn="lstm", n_rnn=1), "float32")
    arrays = draws(4, 5, (4, 7))
    engine.start(2)
    engine.advance(arrays)
    state = engine.export_state()
    expected = engine.advance(arrays)
    assert state.position.tolist() == [4, 4]
    engine.start(5)
    engine.import_state(state.rows([1]))
    assert torch.equal(engine.advance(draws(4, 5, (7,))), expected[1:])
    engine.import_state(EngineState.joined([state.rows([1]), state.rows([0])]))
    assert torch.equal(engine.advance(draws(4, 5, (7, 4))), expected[[1, 0]])


@pytest.mark.slow
def test_prefill_hears_what_score_hears(cuda: ModuleType) -> None:
    engine = cuda.CudaEngine(_model(n_rnn=1), "float32")
    codes = torch.randint(33, (24,))
    engine.start(1)
    engine.score(codes[None])
    stepped = engine.export_state()
    engine.start(1)
    engine.prefill(codes)
    heard = engine.export_state()
    assert torch.equal(heard.network.history, stepped.network.history)
    torch.testing.assert_close(heard.network.rnn, stepped.network.rnn, atol=1e-5, rtol=1e-5)
    engine.start(2)
    with pytest.raises(ValueError, match="one stream"):
        engine.prefill(codes)


def test_a_length_is_a_multiple_of_the_largest_frame(cuda: ModuleType) -> None:
    engine = cuda.CudaEngine(_model(n_rnn=1), "float32")
    with pytest.raises(ValueError, match="multiple of the largest frame, 8"):
        engine.score(torch.zeros(1, 12, dtype=torch.int64))


def _run_block(block: int, blocks: int, arguments: dict[str, Any]) -> None:
    """In a process of its own: one block of a grid."""
    from triton.runtime import interpreter

    from samplernn.generation.engines import cuda_program

    builder = interpreter.interpreter_builder
    set_dim, set_index = builder.set_grid_dim, builder.set_grid_idx
    builder.set_grid_dim = lambda *_: set_dim(blocks, 1, 1)
    builder.set_grid_idx = lambda *_: set_index(block, 0, 0)
    interpreter.GridExecutor._restore_args_dev = lambda *_: None  # tensors are shared, not copied
    cuda_program.advance[(1,)](**arguments)


@pytest.mark.parametrize("num", [1, slow(18)], ids=["alone", "eighteen"])
def test_blocks_that_run_at_the_same_time_wait_for_each_other(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch, num: int
) -> None:
    """The interpreter runs blocks one after the other, and a block would wait for the next for ever. So each gets
    a process, and what they share is shared memory, with real atomic operations."""
    model = _model((4, 2), n_rnn=1, dim=64)
    arrays, codes = draws(4, 9, tuple(range(num))), torch.randint(33, (num, 4))
    engine = cuda.CudaEngine(model, "float32")
    engine.start(num)
    expected = engine.advance(arrays), engine.score(codes)

    def launch(blocks: int, device: torch.device, **arguments: Any) -> None:
        for value in arguments.values():
            if isinstance(value, torch.Tensor):
                value.share_memory_()
        context = multiprocessing.get_context("fork")
        running = [
            context.Process(target=_run_block, args=(block, blocks, arguments)) for block in range(blocks)
        ]
        for process in running:
            process.start()
        for process in running:
            process.join(120)
            assert process.exitcode == 0

    monkeypatch.setattr(cuda, "launch", launch)
    engine._blocks = 3
    engine.start(num)
    assert torch.equal(engine.advance(arrays), expected[0])
    torch.testing.assert_close(engine.score(codes), expected[1], atol=1e-5, rtol=1e-5)


_COMPILE = """
import re, subprocess, sys, tempfile, torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from samplernn.generation.engines import cuda, cuda_kernels, cuda_program

NARROW = "cells upsampling table hidden_weights output_weights narrow tier_input first second".split()
OTHERS = dict(codes="*i32", positions="*i64", streams="*i64", seeds="*i64", counter="*i32", top_k="i32",
    top_p="fp32", num="i32", num_rows="i32", length="i32")
architecture, blocks, shared = (int(word) for word in sys.argv[1:4])
for variant in sys.argv[4:]:
    num, dim, filtered, given, is_lstm = (int(word) for word in variant.split("-"))
    constants = dict(TIERS=((64, 64, 4, 0, 0), (16, 16, 16, 64 * dim, 4)), LAYERS=2, D=dim, Q=256, Q_LEVELS=256,
        IS_LSTM=is_lstm, IS_GIVEN=given, IS_FILTERED=filtered)
    constants |= cuda.tiles(num, dim, 256, blocks, torch.bfloat16, shared)._asdict()
    names = cuda_program.advance.arg_names
    kinds = {name: "constexpr" if name in constants else OTHERS.get(name) or ("*bf16" if name in NARROW else "*fp32")
        for name in names}
    places = {name: (place,) for place, name in enumerate(names)}
    source = ASTSource(cuda_program.advance, kinds, {places[name]: value for name, value in constants.items()},
        {places[name]: [["tt.divisibility", 16]] for name in names if kinds[name].startswith("*")})
    kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32),
        options=dict(num_warps=cuda_kernels.WARPS, launch_cooperative_grid=True))
    instructions = set(re.findall(r"(?:wg)?mma[.]\\S+", kernel.asm["ptx"]))
    layouts = dict(re.findall(r"^(#\\w+) = (.*)$", kernel.asm["ttgir"], re.M))
    sums = re.findall(r'"tt[.](?:scan|reduce)".*?}[)] : [(]tensor<(\\w+f32), (#\\w+)>', kernel.asm["ttgir"], re.S)
    sums = sorted({(shape, layouts[layout]) for shape, layout in sums if "256xf32" in shape})
    print(num, kernel.metadata.shared, sorted(instructions), sums, sep="|")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "blocks", "shared", "variants"),
    [
        pytest.param(
            90,
            132,
            232448,
            ["1-1024-0-0-0", "1-256-0-0-0", "40-256-0-0-0", "600-1024-0-0-0"],
            id="H200",
            marks=pytest.mark.slow,
        ),
        pytest.param(86, 82, 101376, ["1-512-0-1-0", "8-512-1-0-0", "300-1024-0-1-1"], id="RTX 3090"),
    ],
)
def test_the_program_compiles_for_gpus_that_are_not_here(
    architecture: int, blocks: int, shared: int, variants: list[str]
) -> None:
    """Triton needs no GPU to compile. Whatever the number of streams, the instructions that multiply and the order
    of sums over codes are the same, so that streams do not depend on their neighbours."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    found = subprocess.run(
        [sys.executable, "-c", _COMPILE, *(str(x) for x in (architecture, blocks, shared)), *variants],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert found.returncode == 0, found.stderr
    compiled = [line.split("|") for line in found.stdout.splitlines()]
    assert [num for num, *_ in compiled] == [variant.split("-")[0] for variant in variants]
    for _, memory, instructions, _ in compiled:
        assert 0 < int(memory) <= shared
        assert instructions == "['mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32']"
    assert len({sums for *_, sums in compiled if "256, 4" not in sums}) == 1  # top-k and top-p count, too
    assert "8x256xf32" in compiled[0][3]


def test_all_units_and_codes_have_a_block_where_one_stream_is_alone(cuda: ModuleType) -> None:
    for dim in (64, 256, 512, 1024, 2048):
        for codes in (16, 256, 1024):
            for blocks in (1, 20, 82, 132, 200):
                shapes = cuda.tiles(1, dim, codes, blocks, torch.bfloat16, 0)
                assert shapes.IS_ALONE
                assert shapes.BN * blocks >= dim
                assert shapes.BN_OUT * blocks >= codes
                assert dim % shapes.BN == codes % shapes.BN_OUT == dim % shapes.BN_UP == dim % shapes.BK == 0
                assert dim // 4 % shapes.BK_QUARTER == 0
    assert not cuda.tiles(1, 320, 256, 132, torch.bfloat16, 0).IS_ALONE  # a quarter is no power of two
    assert not cuda.tiles(1, 2048, 256, 20, torch.bfloat16, 101376).IS_ALONE  # too much to keep in a block


def test_without_a_gpu_the_cuda_engine_says_so_and_auto_takes_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match=r"engine cuda cannot run here: there is no NVIDIA GPU.*; use engine cpu"
    ):
        open_engine(_model(), "cuda")
    assert open_engine(_model()).name == "cpu"
    assert "GPU" not in capsys.readouterr().err  # nothing is missing


def test_a_gpu_that_is_too_old_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100")
    with pytest.raises(UserError, match="cannot run here: Tesla V100 is older than Ampere"):
        open_engine(_model(), "cuda")


def _fail(*_: object) -> None:
    raise RuntimeError("Triton Error [CUDA]: too many blocks in cooperative launch\nmore")


def test_auto_leaves_the_cuda_engine_alone_until_it_has_run_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "without_cuda", lambda: "")
    monkeypatch.setattr(engines, "_opened", lambda model, name, *rest: name)
    assert open_engine(_model()) == "cpu"
    assert capsys.readouterr().err == ""
    assert open_engine(_model(), "cuda") == "cuda"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("engine cuda is an experiment: it has not run on a GPU before")
    monkeypatch.setattr(engines, "CUDA_HAS_RUN_ON_A_GPU", True)
    assert open_engine(_model()) == open_engine(_model(), "cuda") == "cuda"
    assert open_engine(_model(rnn="mingru")) == open_engine(_model(), dtype="int8") == "cpu"
    assert capsys.readouterr().err == ""


def test_a_gpu_on_which_the_engine_fails_is_not_used_and_a_line_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engines, "CUDA_HAS_RUN_ON_A_GPU", True)
    monkeypatch.setattr(engines, "without_cuda", lambda: "")
    monkeypatch.setattr(engines, "_opened", lambda model, name, *rest: _fail() if name == "cuda" else name)
    assert open_engine(_model()) == "cpu"
    assert capsys.readouterr().err == (
        "engine cpu, although there is a GPU: engine cuda fails on this GPU "
        "(RuntimeError: Triton Error [CUDA]: too many blocks in cooperative launch); use engine cpu\n"
    )


def test_a_program_that_computes_something_else_is_refused(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = cuda.CudaEngine(_model((2,), n_rnn=1), "float32")
    engine._try()
    advance = engine.advance
    monkeypatch.setattr(engine, "advance", lambda *rest: advance(*rest) + len(engine.export_state().position))
    with pytest.raises(RuntimeError, match=r"depends on its neighbours|out of range"):
        engine._try()
    engine._packed.tensors["hidden_weights"][:] = 0
    with pytest.raises(RuntimeError, match="negative log-likelihood is off by"):
        engine._try()


def test_who_asks_for_an_engine_that_fails_hears_why_in_one_line(
    cuda: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "without_cuda", lambda: "")
    monkeypatch.setattr(cuda, "CudaEngine", _fail)
    with pytest.raises(UserError, match=r"too many blocks in cooperative launch.; use engine cpu"):
        open_engine(_model(), "cuda")


def test_a_launch_of_many_streams_is_short(cuda: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def launch(blocks: int, device: torch.device, **arguments: Any) -> None:
        lengths.append((arguments["num_rows"], arguments["length"]))

    monkeypatch.setattr(cuda, "launch", launch)
    engine = cuda.CudaEngine(_model((4, 2), n_rnn=1), "float32")
    for num, length in ((1, 9000), (4096, 200), (5000, 8)):
        engine.start(num)
        engine.advance(draws(length, 0, tuple(range(num))))
    assert lengths == [(16, 8192), (16, 808), (4096, 128), (4096, 72), (4096, 8), (912, 8)]  # (rows, samples)
