"""`samplernn benchmark --what generate`: every engine, beside the plain one and beside its limits."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console

from samplernn.config import ModelConfig
from samplernn.generation.engines import DTYPES, open_engine
from samplernn.generation.engines.base import Engine
from samplernn.generation.engines.cpu import CpuEngine, cores
from samplernn.generation.sampling import Randomness, Sampling
from samplernn.insight.benchmark import results as shared
from samplernn.insight.benchmark.results import Benchmark, Result, preset_config
from samplernn.insight.benchmark.sizes import weights
from samplernn.model.network import SampleRNN

STREAMS = (1, 8, 64)
_SECONDS = 1.5
"""Of measuring each figure, at least; and at least one call."""
_CALLS_BEFORE = 8
"""The engine tries ways of sharing streams out to threads in its first calls."""


def benchmark(preset: str = "reference", threads: int | None = None) -> Benchmark:
    """Measure generation with every engine and dtype, fresh weights, 1, 8 and 64 streams.

    Args:
        preset: name of a configuration.
        threads: cores to use; None: all.

    Raises:
        UserError: no such preset.
    """
    config = preset_config(preset)
    torch.manual_seed(0)
    model = SampleRNN(config.model)
    limits = Limits(config.model, threads or cores())
    results: list[Result] = []
    plain: dict[int, float] = {}
    with Console(stderr=True).status("measuring …") as status:
        for name in reversed(DTYPES):
            for dtype in reversed(DTYPES[name]):
                engine = open_engine(model, name, dtype, threads)
                for streams in STREAMS:
                    status.update(f"measuring {name} {dtype}, {streams} streams …")
                    rate = samples_per_second(engine, streams)
                    if name == "reference":
                        plain[streams] = rate
                    limit = limits.samples_per_s(engine, streams) if isinstance(engine, CpuEngine) else None
                    results.append(
                        Result(
                            what="generate",
                            preset=preset,
                            engine=name,
                            dtype=dtype,
                            streams=streams,
                            samples_per_s=rate,
                            times_real_time=rate / streams / config.data.sample_rate,
                            ratio_to_reference=rate / plain[streams],
                            fraction_of_limit=None if limit is None else rate / limit,
                            limit=limit,
                        )
                    )
    return Benchmark(machine(limits), tuple(results))


def samples_per_second(engine: Engine, streams: int) -> float:
    """Rate of all streams together: the median call, after calls that warm up."""
    engine.start(streams)
    randomness, sampling = Randomness(0, tuple(range(streams))), Sampling()
    length = engine.lookback
    started = time.perf_counter()
    engine.advance(length, randomness, sampling)
    per_sample = (time.perf_counter() - started) / length
    if engine.name != "reference":
        length *= max(1, round(0.05 / per_sample / length))  # calls like those of `generate`: some 50 ms
        for _ in range(_CALLS_BEFORE):
            engine.advance(length, randomness, sampling)
    seconds: list[float] = []
    while sum(seconds) < _SECONDS:
        started = time.perf_counter()
        engine.advance(length, randomness, sampling)
        seconds.append(time.perf_counter() - started)
    return streams * length / sorted(seconds)[len(seconds) // 2]


class Limits:
    """What bandwidth and arithmetic of this machine allow, both measured by reading and multiplying alone.

    Args:
        config: sizes of the network.
        threads: cores.
    """

    def __init__(self, config: ModelConfig, threads: int) -> None:
        from samplernn.generation.engines import cpu_limits

        self.threads = threads
        self._multiplications = sum(count / period for period, count in weights(config))
        self._cpu_limits = cpu_limits
        self._multiply: dict[str, float] = {}
        self.levels = {name: cpu_limits.read_rate(size, threads) for name, size in cpu_limits.LEVELS.items()}

    def samples_per_s(self, engine: CpuEngine, streams: int) -> float:
        """All streams together: every weight read once per step, in the order of use, or multiplied."""
        reading = streams * self._cpu_limits.weights_rate(engine.plan, self.threads)
        return min(reading, self.multiply_rate(engine.dtype) / self._multiplications)

    def multiply_rate(self, dtype: str) -> float:
        """Multiplications per second of all cores."""
        if dtype not in self._multiply:
            self._multiply[dtype] = self._cpu_limits.multiply_rate(dtype, self.threads)
        return self._multiply[dtype]

    def to_dict(self) -> dict[str, Any]:
        """Gigabytes and billions of multiplications per second."""
        return {
            "read_gb_per_s": {name: round(rate / 1e9, 1) for name, rate in self.levels.items()},
            "multiply_g_per_s": {dtype: round(rate / 1e9, 1) for dtype, rate in self._multiply.items()},
        }


def machine(limits: Limits) -> dict[str, Any]:
    """What the figures were measured on."""
    from samplernn.generation.engines.cpu_kernels import dot_instruction

    return {
        **shared.machine(),
        "threads": limits.threads,
        "int8_dot_product": dot_instruction(),
        **limits.to_dict(),
        "numba": version("numba"),
    }
