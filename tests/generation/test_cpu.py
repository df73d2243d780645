"""The CPU engine's parts: kernels against NumPy, its draw against torch's, its threads against each other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from samplernn.config import ModelConfig
from samplernn.generation.engines import cpu_draw, cpu_math, cpu_program, open_engine
from samplernn.generation.engines.cpu import CpuEngine, Sharing, _Pace, sharings
from samplernn.generation.engines.cpu_kernels import PER_STEP, STEPS, dot_instruction, matrix_product
from samplernn.generation.engines.cpu_plan import ROWS
from samplernn.generation.engines.cpu_weights import pack, to_bfloat16
from samplernn.model.checkpoint import load
from samplernn.model.heads import SoftmaxHead
from samplernn.model.network import SampleRNN
from tests.generation.drawing import draws

DOTS = {"avx512": ("none", "avx", "avx512"), "avx": ("none", "avx"), "none": ("none",)}[dot_instruction()]


@pytest.mark.parametrize(
    ("dtype", "dot"), [("float32", "none"), ("bfloat16", "none"), *(("int8", dot) for dot in DOTS)]
)
@pytest.mark.parametrize("streams", [1, 2, 6])
def test_a_packed_product_is_the_product(dtype: str, dot: str, streams: int) -> None:
    rng = np.random.default_rng(streams)
    rows, inputs = 2 * ROWS, 3 * STEPS * PER_STEP[dtype]
    if dtype == "int8":  # the extremes too: sums of 255 * -127 must not saturate
        weights = rng.choice(np.array([-127, -1, 0, 5, 127]), (rows, inputs)).astype(np.int8)
        x = rng.choice(np.array([0, 1, 128, 255]), (streams, inputs)).astype(np.uint8)
        stored, out = weights, np.zeros((streams, rows), np.int32)
    else:
        weights = rng.normal(size=(rows, inputs)).astype(np.float32)
        x = rng.normal(size=(streams, inputs)).astype(np.float32)
        stored, out = weights, np.zeros((streams, rows), np.float32)
        if dtype == "bfloat16":
            stored = to_bfloat16(weights)
            weights = (stored.astype(np.uint32) << 16).view(np.float32)
    packed = pack(stored, PER_STEP[dtype])
    memory = np.zeros(len(packed) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + len(packed)] = packed
    kernel = matrix_product(dtype, streams, dot)

    @njit
    def multiply(weights: int, x: int, stride: int, steps: int, out: int, out_stride: int) -> None:
        kernel(weights, x, stride, steps, out, out_stride)
        kernel(weights + steps * 256, x, stride, steps, out + 256, out_stride)

    steps = inputs // PER_STEP[dtype]
    address = memory.ctypes.data + start
    multiply(address, x.ctypes.data, x.strides[0], steps, out.ctypes.data, out.strides[0])
    expected = x.astype(np.float64) @ weights.T.astype(np.float64)
    if dtype == "int8":
        assert np.array_equal(out, expected)
    else:
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_the_exponential_is_good_to_float32_and_does_not_overflow() -> None:
    x = np.linspace(-86.9, 87.9, 20001).astype(np.float32)
    y = np.array([cpu_math.exp(value) for value in x])
    np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=3e-7)
    assert 0 < cpu_math.exp(np.float32(-1e9)) < 1e-37
    assert cpu_math.exp(np.float32(1e9)) > 1e38


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.2]),
)
def test_a_code_is_drawn_as_by_the_reference(seed: int, temperature: float, top_k: int, top_p: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (40, 37)).astype(np.float32)
    uniforms = rng.random((40, 1), np.float32)
    arrays = draws(1, 0, tuple(range(40)), temperature, top_k=top_k, top_p=top_p)
    columns = (torch.from_numpy(x) for x in (logits, uniforms, arrays.temperature, arrays.filters))
    expected = SoftmaxHead(ModelConfig()).draw(*columns)[:, 0]
    room = np.empty(37, np.float32)
    drawn = [
        cpu_draw.draw(row, filters, inverse[0], uniform[0], room)
        for row, filters, inverse, uniform in zip(
            logits, arrays.filters, arrays.inverse_temperatures(), uniforms, strict=True
        )
    ]
    assert (torch.tensor(drawn) != expected).sum() <= 1  # a number at the very border of two codes


@pytest.mark.parametrize(
    "options", [{"q_levels": 1024}, {"q_levels": 2}, {"dim": 65}, {"frame_sizes": (6, 3, 1)}]
)
def test_any_size_can_be_stepped(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    config = ModelConfig(**{"frame_sizes": (8, 2), "dim": 12, "embedding_dim": 4, "q_levels": 50, **options})  # type: ignore[arg-type]
    model = SampleRNN(config)
    codes = torch.randint(config.q_levels, (2, 4 * config.lookback))
    expected = open_engine(model, "reference")
    expected.start(2)
    engine = open_engine(model, "cpu", "float32")
    engine.start(2)
    torch.testing.assert_close(engine.score(codes), expected.score(codes), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_hearing_leaves_the_state_that_scoring_leaves(dtype: str) -> None:
    torch.manual_seed(0)
    model = SampleRNN(ModelConfig(frame_sizes=(8, 2), dim=150, embedding_dim=8, q_levels=130))
    engine = CpuEngine(model, dtype, threads=2)
    codes = torch.randint(130, (1, 400))
    engine.start(1)
    engine.score(codes)
    scored = engine.export_state()
    for way in (Sharing(1, 1), Sharing(2, 1)):
        engine._paces[1] = _Pace([way])
        engine.start(1)
        engine.prefill(codes[0])
        heard = engine.export_state()
        assert torch.equal(heard.network.history, scored.network.history)
        assert all(map(torch.equal, heard.network.rnn, scored.network.rnn))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_stream_is_the_same_however_streams_are_shared_out(dtype: str) -> None:
    torch.manual_seed(0)
    model = SampleRNN(ModelConfig(frame_sizes=(8, 2), dim=150, embedding_dim=8, q_levels=130))
    engine = CpuEngine(model, dtype, threads=3)
    results = []
    for way in (Sharing(1, 1), Sharing(2, 1), Sharing(3, 1), Sharing(1, 2), Sharing(1, 3)):
        engine.start(7)
        engine._paces[7] = _Pace([way])
        results.append(engine.advance(draws(64, 1, tuple(range(7)))))
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_int8_and_bfloat16_cost_little_on_a_trained_model(trained_run: Path) -> None:
    checkpoint = load(trained_run)
    model = checkpoint.build()
    engine = open_engine(model, "cpu", "float32")
    codes = engine.advance(draws(512, 0, (0,)))
    bits = {}
    for dtype in ("float32", "bfloat16", "int8"):
        engine = open_engine(model, "cpu", dtype)
        bits[dtype] = float(engine.score(codes).mean()) / np.log(2)
    reference = open_engine(model, "reference")
    exact = float(reference.score(codes).mean()) / np.log(2)
    assert abs(bits["float32"] - exact) < 1e-4
    assert abs(bits["bfloat16"] - exact) < 0.01
    assert abs(bits["int8"] - exact) < 0.01


def test_the_ways_of_sharing_depend_on_streams_and_size() -> None:
    assert sharings(1, 9, 16) == [Sharing(1, 1)]
    assert sharings(6, 1, 4) == [Sharing(1, 1), Sharing(2, 1), Sharing(4, 1)]
    assert sharings(2, 8, 4) == [Sharing(1, 1), Sharing(2, 1), Sharing(1, 2)]


def test_the_fastest_way_is_found_and_found_again() -> None:
    slow, fast = Sharing(2, 1), Sharing(1, 1)
    pace = _Pace([slow, fast])

    def blocks(count: int, seconds: dict[Sharing, float]) -> list[Sharing]:
        used = []
        for _ in range(count):
            used.append(pace.next())
            pace.note(used[-1], seconds[used[-1]])
        return used

    used = blocks(100, {slow: 2.0, fast: 1.0})
    assert used.count(fast) > 90
    assert slow in used[10:]
    used = blocks(300, {slow: 0.5, fast: 1.0})
    assert used[-100:].count(slow) > 90


_PROGRAM = """
import os, sys, time
import torch
from samplernn.config import ModelConfig
from samplernn.generation.engines import cpu_program
from samplernn.generation.engines.cpu import CpuEngine, Sharing, _Pace
from samplernn.generation.request import Draws
from samplernn.generation.sampling import draw_arrays
from samplernn.model.heads import SoftmaxHead
from samplernn.model.network import SampleRNN

torch.manual_seed(0)
model = SampleRNN(ModelConfig(frame_sizes=(8, 2), dim=256, embedding_dim=8, q_levels=64))
engine = CpuEngine(model, threads=4)
engine._paces[1] = _Pace([Sharing(4, 1)])
codes = engine.advance(draw_arrays(Draws(streams=(0,)), 400))
print(int(codes.sum()), sum(cpu_program.run.stats.cache_misses.values()))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processors cannot be chosen here")
def test_threads_on_one_core_wait_for_each_other_without_blocking_and_compiled_code_is_kept() -> None:
    def start(cores: set[int] | None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=None if cores is None else lambda: os.sched_setaffinity(0, cores),
        )

    core = next(iter(os.sched_getaffinity(0)))
    free = start(None).communicate(timeout=120)[0].split()
    pinned = start({core}).communicate(timeout=60)[0].split()
    assert pinned[0] == free[0]
    assert pinned[1] == "0"  # the first has left its machine code on disk


def test_threads_are_released_when_one_cannot_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's own thread fails after the others have begun: they would wait for it for ever."""
    torch.manual_seed(0)
    engine = CpuEngine(SampleRNN(ModelConfig(dim=128, embedding_dim=8)), threads=2)
    engine._paces[1] = _Pace([Sharing(2, 1)])
    run = cpu_program.run

    def interrupted(plan: object, streams: object, choice: object, thread: int, *rest: int) -> None:
        if thread == 0:
            raise KeyboardInterrupt
        run(plan, streams, choice, thread, *rest)

    monkeypatch.setattr(cpu_program, "run", interrupted)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        engine.advance(draws(6400, 0, (0,)))
    assert time.monotonic() - started < 30
    monkeypatch.undo()
    assert engine.advance(draws(64, 0, (0,))).shape == (1, 64)
