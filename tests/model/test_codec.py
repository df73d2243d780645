"""The codec: int16 audio at a gain to codes and back."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from samplernn.config import ModelConfig
from samplernn.model.codec import Codec
from samplernn.model.quantize import Quantizer
from tests.model.test_quantize import CURVES, assert_nearest, encode, gains, quantizers

EVERY_INT16 = np.arange(-32768, 32768).astype(np.int16)


def test_65536_linear_levels_are_int16() -> None:
    codec = Codec(Quantizer(65536, "linear"))
    codes = codec.encode(EVERY_INT16)
    assert np.array_equal(codes, EVERY_INT16.astype(int) + 32768)
    restored = codec.decode(codes)
    assert restored.dtype == np.int16
    assert np.array_equal(restored, EVERY_INT16)


def test_256_linear_levels_worked_out_by_hand() -> None:
    """A step is 256 in int16; each is centred on its code, so ±127 is still silence."""
    samples = np.array([0, 127, 128, -128, -129, 383, 384, 32767, -32768], np.int16)
    codes = Codec.of(ModelConfig(q_levels=256), gain=1).encode(samples)
    assert codes.tolist() == [128, 128, 129, 128, 127, 129, 130, 255, 0]


def test_any_shape_is_kept() -> None:
    codec = Codec(Quantizer())
    codes = codec.encode(np.zeros((2, 3), np.int16))
    assert codes.shape == codec.decode(codes).shape == (2, 3)
    assert (codes == codec.q_zero).all()


@given(quantizers, gains)
@example(Quantizer(1024, "linear"), 10 ** (-1 / 20))
@settings(deadline=None, max_examples=60)
def test_every_scaled_sample_gets_the_nearest_code(quantizer: Quantizer, gain: float) -> None:
    """In double precision: in float32, samples near the edge of a step get a neighbour's code."""
    codes = Codec(quantizer, gain).encode(EVERY_INT16)
    assert_nearest(codes, EVERY_INT16 / 32768 * gain, quantizer)


@given(quantizers, gains, st.lists(st.integers(-32768, 32767), min_size=1, max_size=50))
@settings(deadline=None, max_examples=60)
def test_it_encodes_the_scaled_sample(quantizer: Quantizer, gain: float, samples: list[int]) -> None:
    got = Codec(quantizer, gain).encode(np.array(samples, np.int16))
    either_side = [
        encode(quantizer, [sample / 32768 * gain + nudge for sample in samples]) for nudge in (-1e-9, 1e-9)
    ]
    assert ((got == either_side[0]) | (got == either_side[1])).all()


@given(st.integers(2, 65536), st.sampled_from(CURVES), gains)
@settings(deadline=None, max_examples=60)
def test_gain_is_applied_before_and_undone_after(q_levels: int, curve: str, gain: float) -> None:
    """Encoded and decoded, audio is as loud as it was."""
    codec = Codec(Quantizer(q_levels, curve), gain)  # type: ignore[arg-type]
    restored = codec.decode(np.arange(q_levels))
    expected = np.clip(codec.amplitudes * 32768, -32768, 32767)
    assert np.abs(restored - expected).max() <= 0.5 + 1e-6


def test_gain_makes_quiet_audio_use_more_codes() -> None:
    quiet: NDArray[np.int16] = np.arange(-1000, 1001).astype(np.int16)
    plain, gained = Codec(Quantizer()), Codec(Quantizer(), 16)
    assert len(np.unique(plain.encode(quiet))) == 9
    assert len(np.unique(gained.encode(quiet))) == 125 + 1
    error = np.abs(gained.decode(gained.encode(quiet)).astype(int) - quiet).max()
    assert error <= 8  # half of a step of 256 / 16


def test_a_quieter_corpus_gain_saturates_instead_of_wrapping_around() -> None:
    assert Codec(Quantizer(), 0.5).decode(np.array([0, 255])).tolist() == [-32768, 32767]
