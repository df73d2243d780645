"""How engines are told to draw, in short."""

from __future__ import annotations

from typing import Any

from samplernn.generation.request import Draws
from samplernn.generation.sampling import DrawArrays, draw_arrays


def draws(
    length: int, seed: int = 0, streams: tuple[int, ...] = (0,), temperature: float = 1.0, **options: Any
) -> DrawArrays:
    """For one call of an engine."""
    return draw_arrays(Draws(seed=seed, streams=streams, temperature=(temperature,), **options), length)
