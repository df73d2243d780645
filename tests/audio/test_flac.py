"""FLACs behind each other, and lengths that are wrong or left open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.flac import layout
from samplernn.audio.io import Decoder, to_int16

RATE = 16000


def _noise(num_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-9000, 9000, num_samples).astype(np.int16)


def _flac(path: Path, samples: np.ndarray, promised: int | None = None) -> bytes:
    sf.write(path, samples, RATE)
    content = bytearray(path.read_bytes())
    if promised is not None:
        content[21] &= 0xF0  # STREAMINFO's 36-bit number of samples
        content[22:26] = promised.to_bytes(4, "big")
        path.write_bytes(content)
    return bytes(content)


def _decoded(path: Path) -> tuple[np.ndarray, list[str]]:
    decoder = Decoder(path, RATE)
    return to_int16(np.concatenate(list(decoder))), [f"{p.problem}; {p.remedy}" for p in decoder.problems]


def test_flacs_behind_each_other_are_used_to_the_sample(tmp_path: Path) -> None:
    first, second = _noise(30000, 1), _noise(50001, 2)
    path = tmp_path / "a.flac"
    content = _flac(path, first) + _flac(path, second)
    for tag in (b"", b"ID3\x04\0\0\0\0\0\x04abcd"):
        path.write_bytes(tag + content)
        audio, problems = _decoded(path)
        assert np.array_equal(audio, np.concatenate([first, second]))
        assert problems == [
            "is 2 recordings behind each other (1.9 + 3.1 s); none needed: each of them is used"
        ]


@pytest.mark.parametrize("tail", [b"", b"TAG" + bytes(125)])
def test_samples_that_streaminfo_does_not_promise_are_used_and_named(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "a.flac"
    path.write_bytes(_flac(path, _noise(50001), promised=RATE) + tail)
    audio, problems = _decoded(path)
    assert np.array_equal(audio, _noise(50001))
    assert problems == ["holds 3.1 s, but its header promises 1.0 s; none needed: all of it is used"]


def test_a_flac_of_unknown_length_that_is_cut_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    content = _flac(path, _noise(50001), promised=0)
    audio, problems = _decoded(path)
    assert np.array_equal(audio, _noise(50001))
    assert problems == []
    path.write_bytes(content[: len(content) // 2])
    audio, problems = _decoded(path)
    assert np.array_equal(audio, _noise(50001)[: len(audio)])
    assert problems[0].startswith(f"is damaged after {len(audio) / RATE:.1f} s (")


@pytest.mark.parametrize("num_samples", [1, 15, 4095, 4096, 4097, 200000, 2200000])
def test_the_last_frame_tells_the_length(tmp_path: Path, num_samples: int) -> None:
    """Frame numbers of one to three bytes, blocks of one sample to 4096."""
    path = tmp_path / "a.flac"
    _flac(path, np.resize(_noise(5000), num_samples), promised=0)
    found = layout(path)
    assert found
    assert found.streams[0].seconds == num_samples / RATE
    _flac(path, np.resize(_noise(5000), num_samples))
    assert layout(path) is None
