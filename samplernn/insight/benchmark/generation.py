"""`samplernn benchmark --what generate`: every engine, beside the plain one and beside its limits."""

from __future__ import annotations

import time
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console

from samplernn.config import ModelConfig
from samplernn.generation.engines import DTYPES, open_engine, without_cuda
from samplernn.generation.engines.base import Engine
from samplernn.generation.engines.cpu import CpuEngine, cores
from samplernn.generation.request import Draws
from samplernn.generation.sampling import draw_arrays
from samplernn.insight.benchmark import results as shared
from samplernn.insight.benchmark.results import Benchmark, Result, preset_config
from samplernn.insight.benchmark.sizes import weights
from samplernn.insight.benchmark.training import multiply_rate
from samplernn.model.network import SampleRNN

STREAMS = (1, 8, 64)
GPU_STREAMS = (*STREAMS, 256, 1024, 4096)
_SECONDS = 1.5
"""Of measuring each figure, at least; and at least one call."""
_CALL = 0.04
"""Seconds that a call takes at least."""
_CALLS_BEFORE = 8
"""The engine tries ways of sharing streams out to threads in its first calls."""


def benchmark(preset: str = "reference", threads: int | None = None) -> Benchmark:
    """Measure generation with every engine and dtype that runs here, fresh weights, 1, 8 and 64 streams, on a
    GPU also more.

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
    gpu_limits = None if without_cuda() else GpuLimits(config.model)
    results: list[Result] = []
    plain: dict[int, float] = {}
    with Console(stderr=True).status("measuring …") as status:
        for name in reversed(DTYPES):
            if name == "cuda" and gpu_limits is None:
                continue
            for dtype in reversed(DTYPES[name]):
                engine = open_engine(model, name, dtype, threads)
                for streams in GPU_STREAMS if name == "cuda" else STREAMS:
                    status.update(f"measuring {name} {dtype}, {streams} streams …")
                    rate = samples_per_second(engine, streams)
                    if name == "reference":
                        plain[streams] = rate
                    limit = None
                    if isinstance(engine, CpuEngine):
                        limit = limits.samples_per_s(engine, streams)
                    elif gpu_limits is not None and name == "cuda":
                        limit = gpu_limits.samples_per_s(dtype, streams)
                    results.append(
                        Result(
                            what="generate",
                            preset=preset,
                            engine=name,
                            dtype=dtype,
                            streams=streams,
                            samples_per_s=rate,
                            times_real_time=rate / streams / config.data.sample_rate,
                            ratio_to_reference=rate / plain[streams] if streams in plain else None,
                            fraction_of_limit=None if limit is None else rate / limit,
                            limit=limit,
                        )
                    )
    found = machine(limits) if gpu_limits is None else {**machine(limits), **gpu_limits.to_dict()}
    return Benchmark(found, tuple(results))


def samples_per_second(engine: Engine, streams: int) -> float:
    """Rate of all streams together: the median call, after calls that warm up."""
    engine.start(streams)
    options, length = Draws(streams=tuple(range(streams))), engine.lookback

    def call() -> float:
        """Seconds."""
        draws = draw_arrays(options, length)
        started = time.perf_counter()
        engine.advance(draws)
        return time.perf_counter() - started

    call()  # may compile
    if engine.name != "reference":
        while call() < _CALL and length * streams < 2**24:  # as those of `generate`
            length *= 2
        for _ in range(_CALLS_BEFORE):
            call()
    seconds: list[float] = []
    while sum(seconds) < _SECONDS:
        seconds.append(call())
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


class GpuLimits:
    """What a GPU allows: the frame-level tiers' weights are read from memory at each of their steps, those of
    the sample level stay on the chip; or all are multiplied.

    Args:
        config: sizes of the network.
    """

    def __init__(self, config: ModelConfig) -> None:
        device = torch.device("cuda")
        self._dim = config.dim
        self._weights = [(period, count) for period, count in weights(config)]
        self.read_rate = _read_rate(device)
        self.name = torch.cuda.get_device_name(device)
        self._multiply: dict[str, float] = {}

    def samples_per_s(self, dtype: str, streams: int) -> float:
        """All streams together."""
        kind: torch.dtype = getattr(torch, dtype)
        if dtype not in self._multiply:
            self._multiply[dtype] = multiply_rate(self._dim, kind, torch.device("cuda"), 0.5)
        read = sum(count / period for period, count in self._weights if period > 1) * kind.itemsize
        multiplied = sum(count / period for period, count in self._weights)
        return min(streams * self.read_rate / read, self._multiply[dtype] / multiplied)

    def to_dict(self) -> dict[str, Any]:
        """Gigabytes and billions of multiplications per second."""
        return {
            "gpu": self.name,
            "gpu_read_gb_per_s": round(self.read_rate / 1e9, 1),
            "gpu_multiply_g_per_s": {dtype: round(rate / 1e9, 1) for dtype, rate in self._multiply.items()},
        }


def _read_rate(device: torch.device) -> float:
    """Bytes per second at which a sum goes through a gigabyte of a GPU's memory."""
    numbers = torch.ones(2**28, device=device)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize(device)
        started = time.perf_counter()
        numbers.sum()
        torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return numbers.nbytes / min(seconds)


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
