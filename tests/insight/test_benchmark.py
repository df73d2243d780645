"""The benchmark's arithmetic and its output; never its speed."""

from __future__ import annotations

import json

import pytest

from samplernn.cli import main
from samplernn.config import ModelConfig
from samplernn.generation.engines import cpu_limits
from samplernn.insight import benchmark


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure for moments."""
    monkeypatch.setattr(benchmark, "_SECONDS", 0.01)
    monkeypatch.setattr(benchmark, "_CALLS_BEFORE", 1)
    monkeypatch.setattr(benchmark, "STREAMS", (1, 3))
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
    """Two tiers: 3 x 4 x 2 gate matrices and 8 upsampling steps every 8 samples, the MLP every sample."""
    monkeypatch.setattr(cpu_limits, "read_rate", lambda size, threads: 1e9 if size < 20_000 else 1e8)
    monkeypatch.setattr(cpu_limits, "multiply_rate", lambda dtype, threads: 1e10)
    config = ModelConfig(frame_sizes=(8,), dim=64, n_rnn=1, q_levels=64)
    limits = benchmark.Limits(config, threads=1)
    tier, mlp = (6 + 8) * 64 * 64, 2 * 64 * 64
    # The MLP is read again after itself and an eighth of the tier, the tier after all.
    slow = tier / 8 / 1e8 + mlp / 1e9
    assert limits.samples_per_s("int8", 1) == pytest.approx(1 / slow)
    multiplying = (tier / 8 + mlp) / 1e10
    assert limits.samples_per_s("int8", 1000) == pytest.approx(1 / multiplying)
