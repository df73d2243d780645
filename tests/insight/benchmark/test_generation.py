"""Generation: the benchmark's arithmetic and its output; never its speed."""

from __future__ import annotations

import json

import pytest

from samplernn.cli import main
from samplernn.config import ModelConfig
from samplernn.generation.engines import cpu_limits
from samplernn.generation.engines.cpu import CpuEngine
from samplernn.insight.benchmark import generation
from samplernn.model.network import SampleRNN


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for moments."""
    monkeypatch.setattr(generation, "_SECONDS", 0.01)
    monkeypatch.setattr(generation, "_CALLS_BEFORE", 1)
    monkeypatch.setattr(generation, "STREAMS", (1, 3))
    monkeypatch.setattr(cpu_limits, "_SECONDS", 0.005)
    monkeypatch.setattr(cpu_limits, "LEVELS", {"L2": 2**14})


def test_every_engine_and_dtype_is_measured_in_one_run(
    short: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", "--preset", "small", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    results = {(one["engine"], one["dtype"], one["streams"]): one for one in measured["results"]}
    assert set(results) == {
        (engine, dtype, streams)
        for engine, dtype in [
            ("reference", "float32"),
            ("cpu", "float32"),
            ("cpu", "bfloat16"),
            ("cpu", "int8"),
        ]
        for streams in (1, 3)
    }
    for (engine, _, streams), one in results.items():
        assert one["samples_per_s"] > 0
        assert one["times_real_time"] == pytest.approx(one["samples_per_s"] / streams / 16000)
        plain = results["reference", "float32", streams]["samples_per_s"]
        assert one["ratio_to_reference"] == pytest.approx(one["samples_per_s"] / plain)
        assert (one["limit"] is None) == (engine == "reference")
    assert measured["machine"]["read_gb_per_s"]["L2"] > 0


def test_the_table_is_for_people(short: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--preset", "small"]) == 0
    assert "times real time" in capsys.readouterr().out


def test_an_unknown_preset_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--preset", "huge"]) == 2
    assert "unknown preset 'huge'; there are: demo" in capsys.readouterr().err


def test_the_limit_is_what_reading_and_multiplying_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 gates of 2 matrices and 8 upsampling steps every 8 samples, hidden and output layer every sample."""
    config = ModelConfig(frame_sizes=(8,), dim=64, n_rnn=1, q_levels=64, embedding_dim=4)
    engine = CpuEngine(SampleRNN(config), "int8", threads=1)
    monkeypatch.setattr(cpu_limits, "LEVELS", {})
    monkeypatch.setattr(cpu_limits, "weights_rate", lambda plan, threads: 1000.0)
    monkeypatch.setattr(cpu_limits, "multiply_rate", lambda dtype, threads: 1e9)
    limits = generation.Limits(config, threads=1)
    assert limits.samples_per_s(engine, 3) == pytest.approx(3000)
    multiplications = (6 + 8) * 64 * 64 / 8 + 2 * 64 * 64
    assert limits.samples_per_s(engine, 10**6) == pytest.approx(1e9 / multiplications)


def test_reading_alone_reads_every_weight_in_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(frame_sizes=(16, 4), dim=130, n_rnn=2, q_levels=100, embedding_dim=4)
    plan = CpuEngine(SampleRNN(config), "int8", threads=1).plan
    read: dict[tuple[int, int], int] = {}

    def count(address: int, size: int) -> int:
        read[address, size] = read.get((address, size), 0) + 1
        return 0

    monkeypatch.setattr(cpu_limits, "_read", count)
    monkeypatch.setattr(cpu_limits, "_read_part", cpu_limits._read_part.py_func)
    for thread in range(2):
        cpu_limits._read_weights.py_func(plan, thread, 2, 16)
    expected: dict[tuple[int, int], int] = {}
    times = {**dict.fromkeys(range(1, 6), 1), **dict.fromkeys(range(7, 12), 4), 12: 16, 13: 16}
    for index, often in times.items():  # of two tiers, each after its input projection, and of the MLP
        _, address, steps, _, blocks = (int(number) for number in plan.matrices[index])
        half, block_size = blocks // 2, 256 * steps
        expected[address, half * block_size] = often
        expected[address + half * block_size, (blocks - half) * block_size] = often
    assert read == expected


def test_the_limit_of_a_gpu_is_reading_the_tiers_or_multiplying_it_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generation, "_read_rate", lambda device: 1e12)
    monkeypatch.setattr(generation, "multiply_rate", lambda dim, dtype, device, seconds: 1e14)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "GPU")
    limits = generation.GpuLimits(ModelConfig((8, 2), "gru", n_rnn=1, dim=10, q_levels=256))
    tiers = (6 + 4) * 100 / 8 + (6 + 2) * 100 / 2  # weights read per sample
    assert limits.samples_per_s("bfloat16", 1) == pytest.approx(1e12 / (2 * tiers))
    assert limits.samples_per_s("float32", 3) == pytest.approx(3e12 / (4 * tiers))
    assert limits.samples_per_s("bfloat16", 10**9) == pytest.approx(1e14 / (tiers + 100 + 2560))
    assert limits.to_dict()["gpu_multiply_g_per_s"] == {"bfloat16": 1e5, "float32": 1e5}
