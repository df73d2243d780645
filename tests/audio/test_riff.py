"""WAV files that libsndfile misreads: a header with wrong sizes, a malformed chunk, another name."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from samplernn.audio.io import AudioError, Decoder, to_int16

RATE = 16000


def _samples(seconds: float) -> np.ndarray:
    return (8000 * np.sin(np.arange(round(seconds * RATE)) * 0.05)).astype("<i2")


def _chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if length is None else length) + body


def _wav(path: Path, *chunks: bytes, tag: int = 1, bits: int = 16, channels: int = 1) -> Path:
    width = channels * bits // 8
    form = _chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, RATE, RATE * width, width, bits))
    body = b"WAVE" + form + b"".join(chunks)
    path.write_bytes(_chunk(b"RIFF", body))
    return path


def _decoded(path: Path) -> tuple[np.ndarray, list[str]]:
    decoder = Decoder(path, RATE)
    audio = np.concatenate(list(decoder))
    return to_int16(audio), [problem.problem for problem in decoder.problems]


def test_a_malformed_list_does_not_hang(tmp_path: Path) -> None:
    """libsndfile loops for ever in such a file."""
    wav = _wav(
        tmp_path / "a.wav",
        _chunk(b"LIST", b"INFO" + b"ISFT" + struct.pack("<i", -12) + b"lavf"),
        _chunk(b"data", _samples(3).tobytes()),
    )
    audio, problems = _decoded(wav)
    assert np.array_equal(audio, _samples(3))
    assert problems == ["has a malformed LIST chunk"]


@pytest.mark.parametrize(("promised", "said"), [(1.0, "1.0 s"), (0.0, "0.0 s")])
def test_samples_that_the_header_does_not_promise_are_used_and_named(
    tmp_path: Path, promised: float, said: str
) -> None:
    """A recorder that crashed leaves sizes of 0, other programs too small ones."""
    body = _chunk(b"data", _samples(5).tobytes(), round(promised * RATE) * 2)
    audio, problems = _decoded(_wav(tmp_path / "a.wav", body))
    assert np.array_equal(audio, _samples(5))
    assert problems == [f"holds 5.0 s, but its header promises {said}"]


def test_chunks_and_padding_behind_the_data_are_no_samples(tmp_path: Path) -> None:
    data = _chunk(b"data", _samples(1).tobytes())
    tags = _chunk(b"LIST", b"INFO" + _chunk(b"ISFT", b"editor" * 1000))
    for behind in (tags, _chunk(b"bext", bytes(8000)), bytes(32000), b"TAG" + b"x" * 125):
        audio, problems = _decoded(_wav(tmp_path / "a.wav", data, behind))
        assert np.array_equal(audio, _samples(1))
        assert problems == []


def test_a_peak_chunk_of_another_length_is_passed_over(tmp_path: Path) -> None:
    """A stereo float file as a well-known editor writes it; libsndfile refuses it."""
    stereo = np.stack([_samples(1), -_samples(1) // 2], axis=1).astype("<f4") / 32768
    peak, data = _chunk(b"PEAK", bytes(16)), _chunk(b"data", stereo.tobytes())
    audio, problems = _decoded(_wav(tmp_path / "a.wav", peak, data, tag=3, bits=32, channels=2))
    assert np.array_equal(audio, to_int16(stereo.mean(axis=1)))
    assert problems == ["has a PEAK chunk of 16 bytes"]


def test_what_follows_the_samples_of_a_misread_wav_is_no_sound(tmp_path: Path) -> None:
    wav = _wav(
        tmp_path / "a.wav",
        _chunk(b"LIST", b"INFO" + b"ISFT" + struct.pack("<i", -12) + b"lavf"),
        _chunk(b"data", _samples(1).tobytes()),
        _chunk(b"LIST", b"INFO" + _chunk(b"ISFT", b"editor" * 100)),
    )
    audio, problems = _decoded(wav)
    assert np.array_equal(audio, _samples(1))
    assert problems == ["has a malformed LIST chunk"]


def test_a_misread_wav_of_a_format_of_its_own_is_refused_in_one_line(tmp_path: Path) -> None:
    broken = _chunk(b"LIST", b"INFO" + b"ISFT" + struct.pack("<i", -12))
    wav = _wav(tmp_path / "a.wav", broken, _chunk(b"data", bytes(1000)), tag=0x11, bits=4)
    with pytest.raises(AudioError, match=r"a\.wav: has a malformed LIST chunk; convert it"):
        Decoder(wav, RATE)


def test_a_wav_named_m4a_is_read_with_a_remark(tmp_path: Path) -> None:
    audio, problems = _decoded(_wav(tmp_path / "a.m4a", _chunk(b"data", _samples(1).tobytes())))
    assert np.array_equal(audio, _samples(1))
    assert problems == ["holds WAV audio, but is named .m4a"]


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    pointer = tmp_path / "a.wav"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(AudioError, match=r"Git LFS pointer, not the audio itself; run: git lfs pull$"):
        Decoder(pointer, RATE)


def test_a_rate_of_bytes_that_differs_is_no_truncation(tmp_path: Path) -> None:
    """ffmpeg writes another rate of bytes into ADPCM files than libsndfile expects."""
    path = tmp_path / "a.wav"
    soundfile.write(path, _samples(3), RATE, subtype="MS_ADPCM")
    content = bytearray(path.read_bytes())
    content[28:32] = struct.pack("<I", RATE)
    path.write_bytes(content)
    assert _decoded(path)[1] == []
