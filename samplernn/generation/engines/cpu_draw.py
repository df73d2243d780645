"""How the CPU engine draws a code from logits, and scores one."""

from __future__ import annotations

from typing import Any

import numpy as np

from samplernn.generation.engines.cpu_cache import compiled, compiled_reordering
from samplernn.generation.engines.cpu_kernels import as_bits, as_float
from samplernn.generation.engines.cpu_math import exp, maximum

_ZERO = np.float32(0)


@compiled
def draw(logits: Any, filters: Any, inverse_temperature: Any, uniform: Any, p: Any) -> int:
    """A code by inverting the cumulative distribution (see `heads.SoftmaxHead.draw`).

    Args:
        logits: ``[q]``.
        filters: top-k, top-p, ``[2]``.
        inverse_temperature: of this draw; 0 is greedy.
        uniform: in [0, 1).
        p: room for the probabilities, ``[q]``.
    """
    if inverse_temperature == 0:
        return int(np.argmax(logits))
    top = maximum(logits)
    for i in range(len(p)):
        p[i] = exp((logits[i] - top) * inverse_temperature)
    top_k, top_p = int(filters[0]), filters[1]
    if 0 < top_k < len(p):
        _keep_top_k(p, top_k)
    if top_p < 1:
        _keep_top_p(p, top_p)
    total = _ZERO
    for i in range(len(p)):
        total += p[i]
        p[i] = total
    target = min(uniform * total, np.nextafter(total, _ZERO))
    return int(np.searchsorted(p, target, side="right"))


@compiled
def _keep_top_k(p: Any, top_k: int) -> None:
    """Set all to zero but the `top_k` most probable codes, and those as probable as the last of them."""
    least = as_float(_threshold(p, top_k, True))
    for i in range(len(p)):
        if p[i] < least:
            p[i] = _ZERO


@compiled
def _keep_top_p(p: Any, top_p: Any) -> None:
    """Set all to zero but the most probable codes up to a share of the whole; of equal ones the first."""
    wanted = top_p * _mass_from(p, _ZERO)
    threshold = _threshold(p, wanted, False)
    least, above = as_float(threshold), as_float(threshold + np.int32(1))
    kept = _mass_from(p, above)
    for i in range(len(p)):
        if p[i] == least and kept < wanted:
            kept += p[i]
        elif p[i] < above:
            p[i] = _ZERO


@compiled
def _threshold(p: Any, wanted: Any, counts: bool) -> np.int32:
    """The bits of the largest probability from which on there are `wanted` codes, or codes of that mass.

    Positive floats are ordered as their bits are, so bisection of the bits finds it.
    """
    enough, too_little = np.int32(0), as_bits(maximum(p)) + np.int32(1)
    while too_little - enough > 1:
        middle = enough + (too_little - enough) // np.int32(2)
        least = as_float(middle)
        if (_count_from(p, least) if counts else _mass_from(p, least)) >= wanted:
            enough = middle
        else:
            too_little = middle
    return enough


@compiled_reordering
def _count_from(p: Any, least: Any) -> int:
    """Codes at least as probable as `least`."""
    count = 0
    for i in range(p.shape[0]):
        if p[i] >= least:
            count += 1
    return count


@compiled_reordering
def _mass_from(p: Any, least: Any) -> Any:
    """Their probability."""
    mass = _ZERO
    for i in range(p.shape[0]):
        if p[i] >= least:
            mass += p[i]
    return mass


@compiled
def negative_log_likelihood(logits: Any, code: int) -> float:
    """In nats."""
    top = maximum(logits)
    total = 0.0
    for value in logits:
        total += float(exp(value - top))
    return float(np.log(total)) - float(logits[code] - top)
