from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
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


def test_65536_linear_levels_are_int16() -> None:
    quantizer = Quantizer(65536, "linear")
    samples = torch.arange(-32768, 32768)
    codes = quantizer.int16_to_code(gain=1)
    assert torch.equal(codes, samples + 32768)
    restored = quantizer.code_to_int16(gain=1)
    assert restored.dtype == torch.int16
    assert torch.equal(restored[codes].long(), samples)


def test_256_linear_levels_worked_out_by_hand() -> None:
    """A step is 256 in int16; each is centred on its code, so ±127 is still silence."""
    table = Quantizer(256, "linear").int16_to_code(gain=1)
    samples = torch.tensor([0, 127, 128, -128, -129, 383, 384, 32767, -32768])
    assert table[samples + 32768].tolist() == [128, 128, 129, 128, 127, 129, 130, 255, 0]


@given(quantizers, gains)
@example(Quantizer(1024, "linear"), 10 ** (-1 / 20))
@settings(deadline=None, max_examples=60)
def test_int16_to_code_encodes_every_scaled_sample_to_the_nearest_code(
    quantizer: Quantizer, gain: float
) -> None:
    """In double precision: in float32, samples near the edge of a step get a neighbour's code."""
    table = quantizer.int16_to_code(gain).numpy()
    assert table.shape == (65536,)
    assert_nearest(table, np.arange(-32768, 32768) / 32768 * gain, quantizer)


@given(quantizers, gains, st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
@settings(deadline=None, max_examples=60)
def test_int16_to_code_is_encode_of_the_scaled_sample(
    quantizer: Quantizer, gain: float, samples: list[int]
) -> None:
    got = quantizer.int16_to_code(gain)[torch.tensor(samples) + 32768].numpy()
    either_side = [
        encode(quantizer, [sample / 32768 * gain + nudge for sample in samples]) for nudge in (-1e-9, 1e-9)
    ]
    assert ((got == either_side[0]) | (got == either_side[1])).all()


@given(st.integers(2, 65536), st.sampled_from(CURVES), gains)
@settings(deadline=None, max_examples=60)
def test_gain_is_applied_before_and_undone_after(q_levels: int, curve: str, gain: float) -> None:
    """Out of int16_to_code and through code_to_int16, audio is as loud as it was."""
    quantizer = Quantizer(q_levels, curve)  # type: ignore[arg-type]
    codes = torch.arange(q_levels)
    restored = quantizer.code_to_int16(gain)
    assert restored.shape == (q_levels,)
    expected = np.clip(quantizer.decode(codes).numpy() * 32768 / gain, -32768, 32767)
    assert np.abs(restored.numpy() - expected).max() <= 0.5 + 1e-6


def test_gain_makes_quiet_audio_use_more_codes() -> None:
    quantizer = Quantizer(256, "linear")
    quiet = torch.arange(-1000, 1001) + 32768
    plain, gained = quantizer.int16_to_code(1)[quiet], quantizer.int16_to_code(16)[quiet]
    assert plain.unique().numel() == 9
    assert gained.unique().numel() == 125 + 1
    error = (quantizer.code_to_int16(16)[gained] - (quiet - 32768)).abs().max()
    assert error <= 8  # half of a step of 256 / 16


def test_a_quieter_corpus_gain_saturates_instead_of_wrapping_around() -> None:
    restored = Quantizer(256, "linear").code_to_int16(gain=0.5)
    assert restored[0].item() == -32768
    assert restored[255].item() == 32767


def test_encode_keeps_shape_and_gives_int64() -> None:
    x = torch.zeros(2, 3, 4, dtype=torch.float32)
    codes = Quantizer(256, "mu-law").encode(x)
    assert codes.shape == x.shape
    assert codes.dtype == torch.int64
    assert Quantizer(256, "mu-law").decode(codes).shape == x.shape
