"""`samplernn benchmark --what train`: real steps as training takes them, beside plain PyTorch.

Each variant trains in a process of its own, so that its memory can be told apart. Variant `table` is
what `samplernn train` does: its module, loader and Trainer, without validation, samples and
checkpoints. Variant `plain` is `plain.PlainTraining` on the same batches.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.console import Console
from torch.nn import functional as F

import samplernn
from samplernn.audio.corpus import Corpus, prepare
from samplernn.config import Config, ModelConfig
from samplernn.insight.benchmark import results as shared
from samplernn.insight.benchmark.own_process import in_fresh_process, peak_memory
from samplernn.insight.benchmark.plain import PlainTraining
from samplernn.insight.benchmark.results import Benchmark, Result, preset_config
from samplernn.insight.benchmark.sizes import training_multiplications
from samplernn.training.precision import precision as resolved
from samplernn.training.trial import Stopwatch, device_of, train_briefly, whole_loader

CPU_LANES, CPU_TBPTT_LEN = 16, 1024
"""On a CPU, where the presets for a GPU would take minutes for a step."""
LOADER_AT_LEAST = 20.0
"""Times the model's rate that the loader must reach, or it might hold the model up."""
_SECONDS = 8.0
"""Of measuring each variant, about; and at least two steps."""
_LOADER_SECONDS = 1.0
_CLIPS = Path(samplernn.__file__).parent / "clips"

Variant = Literal["table", "plain"]


@dataclass(frozen=True)
class Task:
    """What to measure."""

    variant: Variant
    config: Config
    corpus: Corpus
    seconds: float
    threads: int | None


@dataclass(frozen=True)
class Measured:
    """What was found out about one variant."""

    step_seconds: float
    """The median step."""
    dtype: str
    """In which products are computed."""
    peak_memory: float | None
    """Bytes."""
    multiply_rate: float
    """Multiplications per second in that dtype, by products alone."""
    threads: int


def benchmark(
    preset: str = "reference",
    threads: int | None = None,
    precision: str | None = None,
    lanes: int | None = None,
    tbptt_len: int | None = None,
) -> Benchmark:
    """Measure optimizer steps, as training takes them and plainly, on the device that training would use.

    Args:
        preset: name of a configuration.
        threads: cores to use; None: as many as training uses, which torch decides.
        precision: a `trainer.precision`; None: the preset's.
        lanes: rows of the batch; None: the preset's `data.batch_size`, on a CPU 16.
        tbptt_len: samples per chunk; None: the preset's `data.tbptt_len`, on a CPU 1024.

    Raises:
        UserError: no such preset, a bad value, or too little memory.
    """
    config = trial_config(preset, precision, lanes, tbptt_len)
    single = replace(config, trainer=replace(config.trainer, precision="32-true"))
    found: dict[tuple[Variant, str], Measured] = {}
    with (
        Console(stderr=True).status("preparing …") as status,
        tempfile.TemporaryDirectory(prefix="samplernn-", ignore_cleanup_errors=True) as folder,
    ):
        corpus = looped_clips(config, Path(folder))

        def add(variant: Variant, config: Config) -> tuple[Variant, str]:
            status.update(f"measuring {variant}, {config.trainer.precision}, {_describe(config)} …")
            one = in_fresh_process(measure, Task(variant, config, corpus, _SECONDS, threads))
            found[variant, one.dtype] = one
            return variant, one.dtype

        default = add("table", config)
        if default[1] != "float32":
            add("table", single)
        plain = add("plain", single)
        status.update("measuring the loader …")
        loader = loader_rate(config, corpus, _LOADER_SECONDS)
    samples_per_step = config.data.lanes * config.data.tbptt_len
    rates = {key: samples_per_step / one.step_seconds for key, one in found.items()}
    results = [
        _result(preset, config, key, found[key], rates[key], rates[plain]) for key in reversed(list(found))
    ]
    times_training = loader * samples_per_step / max(rates.values())
    besides = {
        "tbptt_len": config.data.tbptt_len,
        "training_uses": {"engine": default[0], "dtype": default[1]},
        "loader": {
            "batches_per_s": loader,
            "samples_per_s": loader * samples_per_step,
            "times_training": times_training,
            "is_fast_enough": times_training >= LOADER_AT_LEAST,
        },
    }
    remarks = (
        f"steps of {_describe(config)}; training uses variant {default[0]} in {default[1]}",
        f"the loader alone: {loader * samples_per_step:,.0f} samples/s, {times_training:,.0f} times the "
        f"fastest variant (at least {LOADER_AT_LEAST:.0f} times are wanted)",
    )
    return Benchmark(_machine(config, found, default), tuple(results), besides, remarks)


def trial_config(
    preset: str, precision: str | None = None, lanes: int | None = None, tbptt_len: int | None = None
) -> Config:
    """A preset's configuration for one process, at the size that is measured; arguments as `benchmark`."""
    config = preset_config(preset, {"trainer": {"precision": precision}} if precision else None)
    arithmetic = resolved(config)
    trainer = replace(config.trainer, precision=arithmetic, devices=1, num_nodes=1, accumulate_grad_batches=1)
    config = replace(config, trainer=trainer)
    default = config.data
    if device_of(config).type == "cpu":
        lookback = config.model.lookback
        whole_frames = max(1, CPU_TBPTT_LEN // lookback) * lookback
        default = replace(default, batch_size=CPU_LANES, tbptt_len=whole_frames)
    data = replace(
        default,
        batch_size=default.lanes if lanes is None else lanes,
        tbptt_len=default.tbptt_len if tbptt_len is None else tbptt_len,
    )
    return replace(config, data=data)


def looped_clips(config: Config, folder: Path) -> Corpus:
    """A corpus without an end that is padded: the embedded clips over and over, a segment for each lane.

    Args:
        config: gives rate, lanes, chunks and segments.
        folder: for the samples; empty.
    """
    data = config.data
    clips = prepare(_CLIPS, replace(data, cache_dir=str(folder / "cache")), progress=False)
    audio = np.concatenate([clips.read(file, 0, file.num_samples) for file in clips.files])
    chunks = max(1, round(data.segment_duration * data.sample_rate) // data.tbptt_len)
    samples = np.resize(audio, data.lanes * chunks * data.tbptt_len)
    samples.astype("<i2").tofile(folder / "clips.i16")
    file = replace(clips.files[0], path="clips", shard="clips.i16", offset=0, num_samples=len(samples))
    return replace(clips, files=(file,), shard_dir=folder)


def measure(task: Task) -> Measured:
    """Train for some seconds; then find out how fast this process multiplies."""
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    config = task.config
    device = device_of(config)
    if task.variant == "plain":
        watch = Stopwatch(device, task.seconds)
        PlainTraining(config, device).run(whole_loader(config, task.corpus), watch.step_done)
        step_seconds, dtype = watch.step_seconds, torch.float32
    else:
        trial = train_briefly(config, task.corpus, task.seconds)
        step_seconds, dtype = trial.step_seconds, _dtype(trial.precision)
    peak = peak_memory(device)
    return Measured(
        step_seconds=statistics.median(step_seconds),
        dtype=str(dtype).removeprefix("torch."),
        peak_memory=peak,
        multiply_rate=multiply_rate(config.model.dim, dtype, device, min(0.5, task.seconds)),
        threads=torch.get_num_threads(),
    )


def _dtype(precision: str) -> torch.dtype:
    """In which a Trainer of this precision computes products."""
    kinds = {"32": torch.float32, "64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}
    return kinds[precision.partition("-")[0]]


def multiply_rate(dim: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    """Multiplications per second in a product of large matrices, the better of two sizes.

    Args:
        dim: of the model: one size is that of its layers.
        dtype: of the factors.
        device: where.
        seconds: to measure, about.
    """
    large = 2048 if device.type == "cpu" else 8192
    return max(_multiply_rate(large, size, dtype, device, seconds / 2) for size in (dim, large))


def _multiply_rate(rows: int, dim: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    x = torch.randn(rows, dim, device=device).to(dtype)
    weight = torch.randn(dim, dim, device=device).to(dtype)

    def duration(times: int) -> float:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        started = time.perf_counter()
        for _ in range(times):
            F.linear(x, weight)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return time.perf_counter() - started

    with torch.inference_mode():
        duration(1)
        times = 1
        while duration(times) < seconds / 10:
            times *= 2
        return times * rows * dim * dim / statistics.median(duration(times) for _ in range(5))


def loader_rate(config: Config, corpus: Corpus, seconds: float) -> float:
    """Batches per second of the loader that training has, alone, with the samples in memory."""
    loader, batches = whole_loader(config, corpus), 0
    started = time.perf_counter()
    while (taken := time.perf_counter() - started) < seconds or batches == 0:
        batches += sum(1 for _ in loader)
    return batches / taken


def limit(model: ModelConfig, variant: Variant, samples_per_step: int, multiply_rate: float) -> float:
    """Samples per second, if a step were its matrix products and nothing else."""
    first_layer: Literal["table", "convolution"] = "table" if variant == "table" else "convolution"
    return multiply_rate / training_multiplications(model, first_layer, samples_per_step)


def _result(
    preset: str, config: Config, key: tuple[Variant, str], one: Measured, rate: float, plain: float
) -> Result:
    lanes = config.data.lanes
    bound = limit(config.model, key[0], lanes * config.data.tbptt_len, one.multiply_rate)
    return Result(
        what="train",
        preset=preset,
        engine=key[0],
        dtype=key[1],
        streams=lanes,
        samples_per_s=rate,
        times_real_time=rate / lanes / config.data.sample_rate,
        ratio_to_reference=rate / plain,
        fraction_of_limit=rate / bound,
        limit=bound,
        peak_memory_mb=None if one.peak_memory is None else one.peak_memory / 1e6,
    )


def _machine(
    config: Config, found: dict[tuple[Variant, str], Measured], default: tuple[Variant, str]
) -> dict[str, Any]:
    device = device_of(config)
    multiply: dict[str, float] = {}
    for (_, dtype), one in found.items():
        multiply[dtype] = max(multiply.get(dtype, 0.0), one.multiply_rate)
    return {
        **shared.machine(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": found[default].threads,
        "multiply_g_per_s": {dtype: round(rate / 1e9, 1) for dtype, rate in multiply.items()},
        "lightning": version("lightning"),
    }


def _describe(config: Config) -> str:
    return f"{config.data.lanes} x {config.data.tbptt_len} samples"
