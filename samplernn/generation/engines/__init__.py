"""Engines: ways to compute the same streams. `open_engine` picks one."""

from __future__ import annotations

import sys

from samplernn.config import ModelConfig, UserError
from samplernn.generation.engines.base import Engine
from samplernn.generation.engines.reference import ReferenceEngine
from samplernn.model.network import SampleRNN

DTYPES = {"cpu": ("int8", "bfloat16", "float32"), "reference": ("float32",)}
"""Engines, best first, and the dtypes of their weights, fastest first."""
CHOICES = ("auto", *DTYPES)
DTYPE_CHOICES = ("auto", *DTYPES["cpu"])


def open_engine(
    model: SampleRNN, engine: str = "auto", dtype: str = "auto", threads: int | None = None
) -> Engine:
    """An engine for `model`.

    Args:
        model: the network; it is copied, not changed.
        engine: one of `CHOICES`. ``auto`` looks at the model and the machine, never at the number of
            streams, so that a stream sounds the same whatever its neighbours.
        dtype: one of `DTYPE_CHOICES`; ``auto`` is the engine's fastest.
        threads: of engine cpu at most; None: one per core.

    Raises:
        UserError: an unknown engine, a dtype that the engine does not have, or a model that it cannot serve.
    """
    if engine not in CHOICES:
        raise UserError(f"unknown engine {engine!r}; there are: {', '.join(CHOICES)}")
    if dtype not in DTYPE_CHOICES:
        raise UserError(f"unknown dtype {dtype!r}; there are: {', '.join(DTYPE_CHOICES)}")
    missing = beyond_fused(model.config)
    if missing and engine == "auto":
        print(f"engine reference, the generic one: the others have no {missing}", file=sys.stderr, flush=True)
        engine = "reference"
    elif missing and engine != "reference":
        raise UserError(f"engine {engine} has no {missing}: use engine reference, or auto")
    name = "cpu" if engine == "auto" else engine
    if dtype == "auto":
        dtype = DTYPES[name][0]
    if dtype not in DTYPES[name]:
        raise UserError(f"engine {name} has no dtype {dtype}; it has: {', '.join(DTYPES[name])}")
    if name == "reference":
        return ReferenceEngine(model)
    from samplernn.generation.engines.cpu import CpuEngine  # numba takes a moment to import

    return CpuEngine(model, dtype, threads)


def beyond_fused(config: ModelConfig) -> str:
    """What of a model only the reference engine knows, in a few words; empty: the fused engines serve it."""
    if config.rnn not in ("gru", "lstm"):
        return f"cell {config.rnn}"
    if not config.top_projection and config.lookback > config.dim:
        return f"tier that reads frames of {config.lookback} samples with {config.dim} units unprojected"
    return ""
