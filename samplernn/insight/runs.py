"""What a run's folder tells, whatever state it is in.

A run may be training while it is read, or have been killed: files may be missing, half written, or from
an older samplernn, or damaged. Nothing of that is an error; what cannot be read is as if it were not there,
and one line on standard error says which file that is.
"""

from __future__ import annotations

import csv
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from samplernn.config import UserError, checked
from samplernn.insight.page import Sound
from samplernn.model.baselines import BaselineBits
from samplernn.reading import read_json, read_yaml

_STEP = re.compile(
    r"step-(\d+)-(?:t(?P<temperature>[\d.]+)-(?P<seed>\d+)|prompt(?P<prompt>\d+)|(?P<stream>\d+))"
)
_BITS = "bits_per_sample"
Curve = dict[int, float]
"""Step -> value."""


@dataclass(frozen=True)
class Sample:
    """Audio that training generated, with what its JSON file says (None: it does not)."""

    file: Path
    step: int
    temperature: float | None = None
    seed: int | None = None
    """Number among those of its temperature."""
    prompt: int | None = None
    """Of the recording that it continues; None: it is free."""
    bits: float | None = None
    """Of the validation."""
    level_db: float | None = None
    spectral_distance_db: float | None = None
    traps: tuple[str, ...] | None = None
    """Kinds; None: nobody has looked."""


@dataclass(frozen=True)
class Stage:
    """One validation's audio."""

    step: int
    bits: float | None
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Prompt:
    """A held-out recording that every stage continues."""

    number: int
    heard: Path
    truth: Path | None
    """How it goes on."""
    source: str
    """Which file it is, and from where."""


@dataclass(frozen=True)
class Run:
    """A run's folder, read."""

    path: Path
    config: dict[str, dict[str, Any]]
    """Options by part; those without a part under an empty name."""
    facts: dict[str, Any]
    """`run.json`."""
    metrics: dict[str, Curve]
    """Columns of `metrics.csv`, values that are not finite included."""
    stages: tuple[Stage, ...]
    """In order."""
    prompts: tuple[Prompt, ...]
    recording: Path | None
    """Held-out audio, to compare with."""
    last_written: float
    """When, in seconds since 1970; 0: never."""

    @property
    def name(self) -> str:
        """Of the folder."""
        return self.path.resolve().name

    @property
    def validation(self) -> Curve:
        """Bits per sample."""
        return self.metrics.get(f"validation/{_BITS}", {})

    @property
    def best(self) -> tuple[int, float] | None:
        """Step and bits of the best validation; None before the first that is finite."""
        found = [(bits, step) for step, bits in self.validation.items() if math.isfinite(bits)]
        return (min(found)[1], min(found)[0]) if found else None

    @property
    def baselines(self) -> BaselineBits | None:
        """Of the validation; None before the first."""
        curves = [self.metrics.get(f"validation/{name}_{_BITS}", {}) for name in BaselineBits.__annotations__]
        last = [curve[max(curve)] for curve in curves if curve]
        return BaselineBits(*last) if len(last) == len(curves) else None

    @property
    def last_step(self) -> int:
        """The last one of which anything is known."""
        return max((step for curve in self.metrics.values() for step in curve), default=0)

    @property
    def samples_per_s(self) -> float | None:
        """Median speed of training."""
        speeds = [
            speed for speed in self.metrics.get("train/samples_per_s", {}).values() if math.isfinite(speed)
        ]
        return float(np.median(speeds)) if speeds else None

    def option(self, part: str, key: str) -> Any:
        """What config.yaml says; None: nothing."""
        return self.config.get(part, {}).get(key)

    @property
    def best_stage(self) -> Stage | None:
        """The one with the lowest bits; the last one if no bits are known."""
        known = [stage for stage in self.stages if stage.bits is not None]
        return min(known, key=lambda stage: stage.bits or 0) if known else next(iter(self.stages[::-1]), None)


def read(path: str | Path) -> Run:
    """Read a run's folder.

    Raises:
        UserError: it is none.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's folder, such as runs/first")
    marks = [path / name for name in ("config.yaml", "run.json", "metrics.csv")]
    if not any(mark.is_file() for mark in marks):
        raise UserError(f"{path}: not a run (no config.yaml, run.json or metrics.csv); give a run's folder")
    metrics, samples = _metrics(path / "metrics.csv"), path / "samples"
    recording = samples / "recording.wav"
    return Run(
        path,
        _config(path / "config.yaml"),
        _json(path / "run.json"),
        metrics,
        _stages(samples, metrics.get(f"validation/{_BITS}", {})),
        _prompts(samples),
        recording if recording.is_file() else None,
        max((mark.stat().st_mtime for mark in marks if mark.is_file()), default=0.0),
    )


def sound(file: Path, before: Path | None = None, tail_seconds: float = 2.0) -> Sound | None:
    """A recording to listen to; None if it cannot be read or is empty.

    Args:
        file: the recording.
        before: what it continues; its end comes before it.
        tail_seconds: how much of that.
    """
    try:
        audio, rate = sf.read(file, dtype="int16", always_2d=True)
    except (OSError, sf.SoundFileError):
        return None
    if not len(audio):
        return None
    prompt = sound(before) if before else None
    if prompt is None or prompt.sample_rate != rate:
        return Sound(audio[:, 0], rate)
    tail = prompt.audio[-round(tail_seconds * rate) :]
    return Sound(np.concatenate([tail, audio[:, 0]]), rate, len(tail) / rate)


def _metrics(file: Path) -> dict[str, Curve]:
    columns: dict[str, Curve] = {}
    try:
        lines = file.read_text("utf-8", errors="replace").replace("\0", "").splitlines(keepends=True)
        for row in csv.DictReader(line for line in lines if line.endswith("\n")):  # else half written
            step = _whole(row.pop("step", None))
            if step is None or None in row.values() or None in row:  # cut short
                continue
            for name, text in row.items():
                value = _number(text)
                if value is not None:
                    columns.setdefault(name, {})[step] = value
    except (OSError, csv.Error):
        pass
    return columns


def _config(file: Path) -> dict[str, dict[str, Any]]:
    values = _table(file, read_yaml)
    parts = {str(name): part for name, part in values.items() if isinstance(part, dict)}
    alone = {str(name): value for name, value in values.items() if not isinstance(value, dict)}
    return {**parts, "": alone} if alone else parts


def _json(file: Path) -> dict[str, Any]:
    return _table(file, read_json)


def _table(file: Path, read: Callable[[Path], Any]) -> dict[str, Any]:
    """What a file holds; says so and goes on without it if it cannot be read."""
    if not file.exists():
        return {}
    try:
        found: dict[str, Any] = checked(read(file), dict[str, Any], f"{file}: what it says")
    except UserError as error:
        print(f"{error}; left out", file=sys.stderr, flush=True)
        return {}
    return found


def _stages(folder: Path, validation: Curve) -> tuple[Stage, ...]:
    by_step: dict[int, list[Sample]] = {}
    for file in sorted(folder.glob("step-*.wav")):
        if match := _STEP.fullmatch(file.stem):
            sample = _sample(file, match)
            by_step.setdefault(sample.step, []).append(sample)
    stages = []
    for step, samples in sorted(by_step.items()):
        known = [sample.bits for sample in samples if sample.bits is not None]
        bits = known[0] if known else validation.get(step)
        samples.sort(
            key=lambda one: (one.prompt is not None, one.prompt or 0, one.temperature or 0, one.seed or 0)
        )
        stages.append(Stage(step, bits if bits is not None and math.isfinite(bits) else None, tuple(samples)))
    return tuple(stages)


def _sample(file: Path, named: re.Match[str]) -> Sample:
    facts = _json(file.with_suffix(".json"))
    step, in_name = int(named[1]), named.groupdict()
    temperature = _finite(facts.get("temperature"))
    prompt = _whole(in_name["prompt"])
    # The number in the name is that of the stream: a run's streams differ in it, their seed is one.
    traps = facts.get("traps")
    return Sample(
        file,
        step,
        _number(in_name["temperature"]) if temperature is None else temperature,
        _whole(in_name["seed"] or in_name["stream"] or facts.get("stream")),
        prompt,
        _finite(facts.get("validation_bits_per_sample")),
        _finite(facts.get("level_db")),
        _finite(facts.get("spectral_distance_db")),
        tuple(dict.fromkeys(_kind(trap) for trap in traps)) if isinstance(traps, list) else None,
    )


def _kind(trap: Any) -> str:
    return str(trap.get("kind", "trap") if isinstance(trap, dict) else trap)


def _prompts(folder: Path) -> tuple[Prompt, ...]:
    found = []
    for heard in sorted(folder.glob("prompt*.wav")):
        number = heard.stem.removeprefix("prompt")
        if not number.isdecimal():
            continue
        facts, truth = _json(heard.with_suffix(".json")), heard.with_name(f"{heard.stem}-truth.wav")
        start = _finite(facts.get("start_seconds"))
        source = str(facts.get("file", "")) + (f" from {start:.1f} s" if start is not None else "")
        found.append(Prompt(int(number), heard, truth if truth.is_file() else None, source.strip()))
    return tuple(sorted(found, key=lambda prompt: prompt.number))


def _number(value: Any) -> float | None:
    """Whatever was read, as a number; None if it is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def _finite(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None
