"""The codec: what turns int16 audio at a gain into codes, and codes back into audio.

Everything that reads or writes audio for a model goes through it: the readers of the corpus, prompts,
generated blocks, guards and baselines.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from samplernn.config import ModelConfig
from samplernn.model.quantize import Quantizer

_INT16_MIN, _INT16_MAX = -32768, 32767
_INT16_SCALE = 32768.0


@dataclass(frozen=True)
class Codec:
    """A quantizer at a gain.

    Args:
        quantizer: amplitudes in [-1, 1] to codes and back.
        gain: audio is multiplied by it before it is quantized, and divided by it afterwards.

    Example:
        >>> codec = Codec.of(ModelConfig(), gain=2.0)
        >>> codec.decode(codec.encode(np.array([0, 1000, -1000], np.int16)))
        array([    0,  1024, -1024], dtype=int16)
    """

    quantizer: Quantizer
    gain: float = 1.0

    @classmethod
    def of(cls, model: ModelConfig, gain: float) -> Codec:
        """The codec of a model that was, or will be, trained at a gain."""
        return cls(Quantizer(model.q_levels, model.quantization), gain)

    @property
    def q_levels(self) -> int:
        """Number of codes."""
        return self.quantizer.q_levels

    @property
    def q_zero(self) -> int:
        """The code of silence."""
        return self.quantizer.q_zero

    def encode(self, audio: NDArray[np.int16]) -> NDArray[np.int64]:
        """Audio without the gain, int16 of any shape, to codes of the same shape."""
        codes: NDArray[np.int64] = self._code_of_int16[audio.astype(np.int32) - _INT16_MIN]
        return codes

    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.int16]:
        """Codes of any shape to audio of the same shape, the gain undone, saturated at full scale."""
        audio: NDArray[np.int16] = self._int16_of_code[codes]
        return audio

    @functools.cached_property
    def amplitudes(self) -> NDArray[np.float64]:
        """The amplitude of each code, full scale 1.0, the gain undone: ``[q_levels]``."""
        amplitudes: NDArray[np.float64] = self.quantizer.decode(torch.arange(self.q_levels)).numpy()
        return amplitudes / self.gain

    @functools.cached_property
    def _code_of_int16(self) -> NDArray[np.int64]:
        """``[65536]``, indexed by ``sample + 32768``."""
        samples = torch.arange(_INT16_MIN, _INT16_MAX + 1, dtype=torch.float64)
        codes: NDArray[np.int64] = self.quantizer.encode(samples * (self.gain / _INT16_SCALE)).numpy()
        return codes

    @functools.cached_property
    def _int16_of_code(self) -> NDArray[np.int16]:
        """``[q_levels]``."""
        amplitude = self.quantizer.decode(torch.arange(self.q_levels)) * (_INT16_SCALE / self.gain)
        audio: NDArray[np.int16] = amplitude.round().clamp(_INT16_MIN, _INT16_MAX).to(torch.int16).numpy()
        return audio
