"""Engines: ways to compute the same streams. `open_engine` picks one."""

from __future__ import annotations

from samplernn.config import UserError
from samplernn.generation.engines.base import Engine
from samplernn.generation.engines.reference import ReferenceEngine
from samplernn.model.network import SampleRNN

ENGINES: dict[str, type[ReferenceEngine]] = {"reference": ReferenceEngine}
"""Every engine by name."""
CHOICES = ("auto", *ENGINES)
DTYPES = ("auto", "float32")


def open_engine(model: SampleRNN, engine: str = "auto", dtype: str = "auto") -> Engine:
    """An engine for `model`.

    Args:
        model: the network; it is copied, not changed.
        engine: one of `CHOICES`. ``auto`` looks at the model and the machine, never at the number of
            streams, so that a stream sounds the same whatever its neighbours.
        dtype: one of `DTYPES`.

    Raises:
        UserError: an unknown engine or dtype.
    """
    if engine not in CHOICES:
        raise UserError(f"unknown engine {engine!r}; there are: {', '.join(CHOICES)}")
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; there are: {', '.join(DTYPES)}")
    return ENGINES["reference" if engine == "auto" else engine](model)
