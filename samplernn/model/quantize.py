"""Quantizers: amplitudes in [-1, 1] to codes 0 … q-1 and back.

All three share one uniform quantizer with silence in the middle of its own step::

    encode: k = clip(floor(y·q/2 + 1/2) + q//2, 0, q-1)        decode: y = (k - q//2) / (q/2)

and differ in the companding y = c(x) before it: identity, mu-law (mu = q - 1) or A-law (A = 87.6)
(ITU-T G.711 gives the curves). Then ``encode(decode(k)) == k`` for every k, silence is code
``q_zero = q // 2`` and the error is at most half a step in the companded domain, except above the
topmost code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

_A = 87.6


@dataclass(frozen=True)
class Quantizer:
    """Maps amplitude to code and back.

    Args:
        q_levels: number of codes.
        quantization: ``linear``, ``mu-law`` or ``a-law``.
    """

    q_levels: int = 256
    quantization: Literal["linear", "mu-law", "a-law"] = "linear"

    @property
    def q_zero(self) -> int:
        """The code of silence."""
        return self.q_levels // 2

    def encode(self, x: Tensor) -> Tensor:
        """Amplitudes (any shape; beyond ±1 saturates) to codes, int64 of the same shape."""
        y = self._compress(x.double().clamp(-1, 1))
        return ((y * (self.q_levels / 2) + 0.5).floor().long() + self.q_zero).clamp(0, self.q_levels - 1)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes to amplitudes from -1 to below 1, float64 of the same shape."""
        return self._expand((codes.double() - self.q_zero) / (self.q_levels / 2))

    def _compress(self, x: Tensor) -> Tensor:
        if self.quantization == "linear":
            return x
        if self.quantization == "mu-law":
            mu = self.q_levels - 1
            return x.sign() * torch.log1p(mu * x.abs()) / math.log1p(mu)
        a = _A * x.abs()
        return x.sign() * torch.where(a < 1, a, 1 + a.clamp(min=1).log()) / (1 + math.log(_A))

    def _expand(self, y: Tensor) -> Tensor:
        if self.quantization == "linear":
            return y
        if self.quantization == "mu-law":
            mu = self.q_levels - 1
            return y.sign() * torch.expm1(y.abs() * math.log1p(mu)) / mu
        scaled = y.abs() * (1 + math.log(_A))
        return y.sign() * torch.where(scaled < 1, scaled, (scaled - 1).clamp(min=0).exp()) / _A
