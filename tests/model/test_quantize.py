from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samplernn.model.quantize import Quantizer

LEVELS = [2, 3, 16, 255, 256, 1024, 65536]
CURVES = ["linear", "mu-law", "a-law"]
Floats = NDArray[np.float64]
every_quantizer = pytest.mark.parametrize(
    "quantizer",
    [Quantizer(q_levels, curve) for curve in CURVES for q_levels in LEVELS],  # type: ignore[arg-type]
    ids=lambda quantizer: f"{quantizer.quantization}-{quantizer.q_levels}",
)
quantizers = st.builds(Quantizer, st.sampled_from(LEVELS), st.sampled_from(CURVES))
amplitudes = st.lists(st.floats(-1, 1), min_size=1, max_size=50)
gains = st.floats(0.05, 20)


def companded(x: Floats, quantizer: Quantizer) -> Floats:
    """ITU-T G.711's curves."""
    size = np.abs(x)
    if quantizer.quantization == "mu-law":
        mu = quantizer.q_levels - 1
        size = np.log(1 + mu * size) / math.log(1 + mu)
    elif quantizer.quantization == "a-law":
        a = 87.6
        below, above = a * size, 1 + np.log(np.maximum(a * size, 1))
        size = np.where(size < 1 / a, below, above) / (1 + math.log(a))
    return np.copysign(size, x)


def assert_nearest(codes: NDArray[np.int64], x: Floats, quantizer: Quantizer) -> None:
    """Each code is at most half a step from its amplitude, companded, unless the topmost saturates."""
    half_step = 1 / quantizer.q_levels
    top = (quantizer.q_levels - 1 - quantizer.q_zero) * 2 * half_step  # what the topmost code stands for
    y = companded(np.clip(x, -1, 1), quantizer)
    saturated = y > top + half_step
    assert (codes[saturated] == quantizer.q_levels - 1).all()
    error = np.abs(y - (codes - quantizer.q_zero) * 2 * half_step)[~saturated]
    assert error.max(initial=0) <= half_step * (1 + 1e-9) + 1e-15


def encode(quantizer: Quantizer, values: list[float]) -> NDArray[np.int64]:
    return quantizer.encode(torch.tensor(values, dtype=torch.float64)).numpy()


@every_quantizer
def test_every_code_survives_decoding_and_encoding(quantizer: Quantizer) -> None:
    codes = torch.arange(quantizer.q_levels)
    amplitudes = quantizer.decode(codes)
    assert torch.equal(quantizer.encode(amplitudes), codes)
    assert amplitudes.abs().max() <= 1 + 1e-12
    assert (amplitudes.diff() > 0).all()


@every_quantizer
def test_codes_survive_float32_audio(quantizer: Quantizer) -> None:
    """Decoded audio goes through float32 arrays and files; no code may flip."""
    codes = torch.arange(quantizer.q_levels)
    assert torch.equal(quantizer.encode(quantizer.decode(codes).float()), codes)


@every_quantizer
def test_silence_is_the_middle_code(quantizer: Quantizer) -> None:
    assert quantizer.q_zero == quantizer.q_levels // 2
    assert encode(quantizer, [0.0, -0.0]).tolist() == [quantizer.q_zero] * 2
    assert quantizer.decode(torch.tensor(quantizer.q_zero)).item() == 0


@every_quantizer
def test_full_scale_and_beyond_saturate(quantizer: Quantizer) -> None:
    top, huge = quantizer.q_levels - 1, 1e30
    assert encode(quantizer, [1, 1.5, huge, math.inf]).tolist() == [top] * 4
    assert encode(quantizer, [-1, -1.5, -huge, -math.inf]).tolist() == [0] * 4


@every_quantizer
def test_decoded_codes_lie_evenly_on_the_companding_curve(quantizer: Quantizer) -> None:
    """Code k stands for the companded amplitude (k - q_zero) / (q/2)."""
    q_levels = quantizer.q_levels
    codes = np.unique(np.linspace(0, q_levels - 1, 1000).round().astype(int))
    decoded = quantizer.decode(torch.from_numpy(codes)).numpy()
    got = companded(decoded, quantizer)
    np.testing.assert_allclose(got, (codes - q_levels // 2) / (q_levels / 2), rtol=0, atol=1e-12)


@given(quantizers, amplitudes)
@settings(deadline=None)
def test_error_is_at_most_half_a_step_of_the_companded_amplitude(
    quantizer: Quantizer, values: list[float]
) -> None:
    assert_nearest(encode(quantizer, values), np.array(values), quantizer)


@given(quantizers, amplitudes)
@settings(deadline=None)
def test_louder_never_gets_a_smaller_code(quantizer: Quantizer, values: list[float]) -> None:
    assert (np.diff(encode(quantizer, sorted(values))) >= 0).all()
