"""What a training run on a corpus would be like: its split, lanes and steps, its memory and its time.

`plan` runs the very code that training runs, so its figures are exact. `measure` times real steps of the
configured network for a few seconds and extrapolates: those figures are approximate.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from samplernn.audio.corpus import Corpus
from samplernn.audio.health import leak
from samplernn.audio.lanes import evaluation_lanes, quick_check, training_lanes
from samplernn.audio.split import locate, split
from samplernn.config import Config, TrainerConfig
from samplernn.training.auto_lanes import resolve
from samplernn.training.memory import RandomStep, available_bytes, footprint

FIRST_RUN_STEPS = 3000
"""Steps after which a first listen is worth while, if the configuration plans no end."""
_MAX_REPEATS = 10


@dataclass(frozen=True)
class Plan:
    """How training would walk a corpus."""

    split_by: Literal["file", "time"]
    """Whether whole files are held out, or the end of every file."""
    train_seconds: float
    validation_seconds: float
    test_seconds: float
    segments: int
    segment_seconds: float
    """Length of the longest segment; below `data.segment_duration` where lanes would be empty."""
    steps_per_epoch: int
    filled: float
    """Share of an epoch's samples that are audio; the rest is padding."""
    validation_samples: int
    """Samples of one validation step, all lanes together."""
    leak: str | None = None
    """That held-out audio is in the training part too, see `health.leak`."""


@dataclass(frozen=True)
class Cost:
    """What a run would take on this machine, about."""

    device: str
    """``cpu``, or the name of the GPU: where the steps were timed and where the memory is needed."""
    parameters: int
    memory_bytes: int
    """Peak of the training process (on a GPU: of its memory)."""
    available_bytes: int
    """Memory of the machine that this process may use, or of the GPU, free now; 0: unknown."""
    step_seconds: float
    """One training step; validation and samples come on top."""


def with_lanes(corpus: Corpus, config: Config) -> Config:
    """The configuration with the lanes that training would choose where `data.batch_size` is auto."""
    trainer, parts = config.trainer, split(corpus, config.data.split_seed, config.data.keep_takes_together)
    return resolve(config, corpus, parts, _device(trainer), _devices(trainer), trainer.num_nodes)[0]


def plan(corpus: Corpus, config: Config) -> Plan:
    """Split a corpus and deal it to the lanes as training does.

    Raises:
        UserError: training would refuse it, with the same words.
    """
    data = config.data
    parts = split(corpus, data.split_seed, data.keep_takes_together)
    spans = {name: locate(corpus, getattr(parts, name)) for name in ("train", "validation", "test")}
    seconds = {
        name: sum(stop - start for _, start, stop in found) / data.sample_rate
        for name, found in spans.items()
    }
    lanes = training_lanes(
        corpus, spans["train"], data, config.seed_everything, world_size=_world_size(config.trainer)
    )
    checked = quick_check(spans["validation"], data)
    validation = evaluation_lanes(corpus, checked, config.model.lookback, data.lanes)
    capacity = len(lanes) * data.lanes * data.tbptt_len
    trained = {span.path for span in parts.train}
    return Plan(
        split_by="time" if any(span.path in trained for span in parts.test) else "file",
        train_seconds=seconds["train"],
        validation_seconds=seconds["validation"],
        test_seconds=seconds["test"],
        segments=len(lanes.segments),
        segment_seconds=max(part.stop - part.start for part in lanes.segments) / data.sample_rate,
        steps_per_epoch=len(lanes),
        filled=seconds["train"] * data.sample_rate / capacity,
        validation_samples=validation.batch_size * validation.tbptt_len,
        leak=leak(corpus, parts, data.keep_takes_together),
    )


def measure(config: Config, plan: Plan, seconds: float = 3.0) -> Cost:
    """Time training steps and count the memory that they keep.

    A step's time is a constant (the table, the optimizer) and a part that grows with the length of
    the chunk, so short chunks are enough where whole ones would take too long.

    Args:
        config: of the run.
        plan: of the run.
        seconds: that the measurement may take, about.
    """
    device = _device(config.trainer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        step = RandomStep(config, device)
        shortest, lanes = config.model.lookback, config.data.lanes
        memory = footprint(step)
        step_seconds = _time(lambda n: step(lanes, n * shortest), config.data.tbptt_len // shortest, seconds)
    parameters = sum(parameter.numel() for parameter in step.model.parameters())
    return Cost(
        device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device),
        parameters=parameters,
        memory_bytes=memory.peak(lanes, plan.validation_samples),
        available_bytes=available_bytes(device),
        step_seconds=step_seconds,
    )


def first_run(config: Config, plan: Plan, step_seconds: float) -> tuple[int, float]:
    """Steps and seconds of a run: to the end that the configuration plans, or to a first listen.

    Without a planned end training goes on until it no longer improves.
    """
    trainer = config.trainer
    steps = trainer.max_steps if trainer.max_steps > 0 else FIRST_RUN_STEPS
    if trainer.max_epochs > 0:
        in_epochs = trainer.max_epochs * plan.steps_per_epoch
        steps = min(steps, in_epochs) if trainer.max_steps > 0 else in_epochs
    elif trainer.max_steps < 0 and math.isfinite(trainer.max_seconds):
        steps = max(1, int(trainer.max_seconds / step_seconds))
    within = min(steps * step_seconds, trainer.max_seconds)
    return min(steps, max(1, round(within / step_seconds))), within


def _time(step: Callable[[int], float], whole: int, seconds: float) -> float:
    """Seconds of a whole step, measured, or extrapolated from shorter ones if it would take too long.

    Args:
        step: takes a step of some length and returns its seconds.
        whole: the length.
        seconds: to spend, about.
    """
    ends = time.perf_counter() + seconds
    warming = step(1)
    shortest = (1, step(1)) if 2 * warming < seconds else (1, warming)
    longest = shortest
    predict = _linear([(0, 0.0), shortest])  # pessimistic: as if nothing of it were constant
    while longest[0] < whole:
        length = longest[0]
        while length < whole and predict(min(2 * length, whole)) < (ends - time.perf_counter()) / 2:
            length = min(2 * length, whole)
        if length == longest[0]:
            break
        step(length)  # the first one also waits for its memory
        longest = (length, step(length))
        predict = _linear([shortest, longest])
    if longest[0] < whole:
        return predict(whole)
    taken = [longest[1]]
    while len(taken) < _MAX_REPEATS and time.perf_counter() + taken[-1] < ends:
        taken.append(step(whole))
    return statistics.median(taken)


def _linear(points: list[tuple[int, float]]) -> Callable[[int], float]:
    """The line through two points; through one: constant. Never falling."""
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = max(0.0, (y1 - y0) / (x1 - x0)) if x1 > x0 else 0.0
    return lambda x: y0 + slope * (x - x0)


def _device(trainer: TrainerConfig) -> torch.device:
    """Where training would run, as far as steps can be timed there: a CUDA device, else the CPU."""
    wants_gpu = trainer.accelerator in ("auto", "gpu", "cuda")
    return torch.device("cuda" if wants_gpu and torch.cuda.is_available() else "cpu")


def _devices(trainer: TrainerConfig) -> int:
    """Processes on this machine: as configured, or all GPUs for `auto`."""
    if str(trainer.devices).isdecimal():
        return max(1, int(trainer.devices))
    return torch.cuda.device_count() if _device(trainer).type == "cuda" else 1


def _world_size(trainer: TrainerConfig) -> int:
    """Processes, where the configuration gives a number."""
    return trainer.num_nodes * (_devices(trainer) if str(trainer.devices).isdecimal() else 1)
