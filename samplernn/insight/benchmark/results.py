"""What a benchmark found, as JSON and as a table."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import yaml
from rich.table import Table

from samplernn.config import Config, UserError, from_dict, merged, presets
from samplernn.training.hardware import processor


@dataclass(frozen=True)
class Result:
    """One figure."""

    what: str
    """``generate`` or ``train``."""
    preset: str
    engine: str
    """For training: the variant."""
    dtype: str
    streams: int
    """For training: lanes."""
    samples_per_s: float
    """All streams together."""
    times_real_time: float
    """Per stream."""
    ratio_to_reference: float | None
    """Against engine `reference` with as many streams, or the plain variant of training, measured in the
    same run."""
    fraction_of_limit: float | None
    limit: float | None
    """Samples per second of all streams, if weights were read and multiplied at the measured rates and
    nothing else took time (training: if only products were computed, at the measured rate); None for an
    engine that does not aim at it."""
    peak_memory_mb: float | None = None
    """Of training, in 10^6 bytes: of the variant's own process, or what it had allocated on its GPU."""


@dataclass(frozen=True)
class Benchmark:
    """Everything that one run measured."""

    machine: dict[str, Any]
    results: tuple[Result, ...]
    besides: dict[str, Any] = field(default_factory=dict)
    """What else was found out, as plain values."""
    remarks: tuple[str, ...] = ()
    """Of that, for people."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; the remarks are in them."""
        results = [asdict(result) for result in self.results]
        return {"machine": self.machine, "results": results, **self.besides}


def preset_config(preset: str, changes: dict[str, Any] | None = None) -> Config:
    """The configuration of a preset, with some options changed.

    Raises:
        UserError: no such preset, or a bad value.
    """
    if preset not in presets():
        raise UserError(f"unknown preset {preset!r}; there are: {', '.join(presets())}")
    values = yaml.safe_load(presets()[preset].read_text("utf-8"))
    config: Config = from_dict(Config, merged(values, changes or {}))
    return config


def machine() -> dict[str, Any]:
    """What any figures were measured on."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def show(measured: Benchmark) -> Table:
    """A table for people."""
    first = measured.results[0]
    is_training = first.what == "train"
    words = {"generate": ("generation", "engine", "streams"), "train": ("training", "variant", "lanes")}
    what, engine, streams = words[first.what]
    table = Table(title=f"{what}, preset {first.preset}, fresh weights")
    columns = [engine, "dtype", streams, "samples/s", "times real time", "vs reference", "of limit"]
    if is_training:
        columns[5:] = ["vs plain", "of limit", "memory"]
    for column in columns:
        table.add_column(column, justify="left" if column in (engine, "dtype") else "right")
    for one in measured.results:
        cells = [
            one.engine,
            one.dtype,
            str(one.streams),
            f"{one.samples_per_s:,.0f}",
            f"{one.times_real_time:.2f}",
            "" if one.ratio_to_reference is None else f"{one.ratio_to_reference:.1f}x",
            "" if one.fraction_of_limit is None else f"{one.fraction_of_limit:.2f} of {one.limit:,.0f}",
        ]
        if is_training:
            cells.append("" if one.peak_memory_mb is None else f"{one.peak_memory_mb:,.0f} MB")
        table.add_row(*cells)
    return table
