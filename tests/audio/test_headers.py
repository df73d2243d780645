"""Headers of WAV, RF64, AIFF, AU and CAF files that promise too little, or nothing that can be used."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.io import Decoder, to_int16

RATE = 16000
SAMPLES = np.random.default_rng(0).integers(-9000, 9000, 5 * RATE).astype(np.int16)
PROMISED = 2 * RATE
"""Bytes of one second."""


def _put(content: bytearray, mark: bytes, offset: int, sign: str, value: int) -> None:
    at = content.index(mark) + offset
    content[at : at + struct.calcsize(sign)] = struct.pack(sign, value)


def _aiff(content: bytearray, length: int) -> None:
    _put(content, b"FORM", 4, ">I", length)
    _put(content, b"COMM", 10, ">I", length // 2)
    _put(content, b"SSND", 4, ">I", length + 8 if length else 0)


def _au(content: bytearray, length: int) -> None:
    _put(content, b".snd", 8, ">I", length)


def _little_au(content: bytearray, length: int) -> None:
    _put(content, b"dns.", 8, "<I", length)


def _caf(content: bytearray, length: int) -> None:
    _put(content, b"data", 4, ">q", length + 4 if length > 0 else length)


def _w64(content: bytearray, length: int) -> None:
    _put(content, b"riff", 16, "<q", length)
    _put(content, b"data", 16, "<q", length + 24 if length > 0 else length)


def _rf64(content: bytearray, length: int) -> None:
    for offset, value in ((8, length), (16, length), (24, length // 2)):
        _put(content, b"ds64", offset, "<q", value)


def _rifx(content: bytearray, length: int) -> None:
    _put(content, b"RIFX", 4, ">I", length)
    _put(content, b"data", 4, ">I", length)


Fault = Callable[[bytearray, int], None]
FAULTS: list[tuple[str, str, Fault]] = [
    *[("AIFF", "FILE", _aiff), ("AU", "FILE", _au), ("AU", "LITTLE", _little_au), ("CAF", "FILE", _caf)],
    *[("W64", "FILE", _w64), ("RF64", "FILE", _rf64), ("WAV", "BIG", _rifx)],
]


def _decoded(path: Path) -> tuple[np.ndarray, list[str]]:
    decoder = Decoder(path, RATE)
    return to_int16(np.concatenate(list(decoder))), [f"{p.problem}; {p.remedy}" for p in decoder.problems]


def _damaged(path: Path, container: str, endian: str, fault: Fault, length: int, behind: bytes = b"") -> Path:
    sf.write(path, SAMPLES, RATE, "PCM_16", endian, container)
    content = bytearray(path.read_bytes())
    if not behind:
        fault(content, length)
    path.write_bytes(content + behind)
    return path


@pytest.mark.parametrize("promised", [0, PROMISED])
@pytest.mark.parametrize(("container", "endian", "fault"), FAULTS)
def test_all_samples_are_used_whatever_the_header_promises(
    tmp_path: Path, container: str, endian: str, fault: Fault, promised: int
) -> None:
    audio, problems = _decoded(_damaged(tmp_path / "a.wav", container, endian, fault, promised))
    assert np.array_equal(audio, SAMPLES)
    words = f"holds 5.0 s, but its header promises {promised // PROMISED}.0 s; none needed: all of it is used"
    # Of an AIFF that promises nothing, as ffmpeg writes it to a pipe, libsndfile takes what is there.
    assert problems == ([] if container == "AIFF" and not promised else [words])


@pytest.mark.parametrize(("container", "endian", "fault"), [FAULTS[3], FAULTS[4], FAULTS[5]])
def test_a_length_that_is_left_open_is_no_fault(
    tmp_path: Path, container: str, endian: str, fault: Fault
) -> None:
    """What programs write that write to a pipe."""
    audio, problems = _decoded(_damaged(tmp_path / "a.wav", container, endian, fault, -1))
    assert np.array_equal(audio, SAMPLES)
    assert problems == []


def test_an_aiff_that_sox_writes_to_a_pipe_is_not_called_truncated(tmp_path: Path) -> None:
    path = tmp_path / "a.aiff"
    sf.write(path, SAMPLES, RATE)
    content = bytearray(path.read_bytes())
    _put(content, b"FORM", 4, ">I", 0x7F000050)
    _put(content, b"COMM", 10, ">I", 0x3F800000)
    _put(content, b"SSND", 4, ">I", 0x7F000008)
    path.write_bytes(content)
    audio, problems = _decoded(path)
    assert np.array_equal(audio, SAMPLES)
    assert problems == []


@pytest.mark.parametrize(("container", "endian", "fault"), FAULTS)
def test_padding_and_chunks_behind_the_samples_are_no_sound(
    tmp_path: Path, container: str, endian: str, fault: Fault
) -> None:
    order = ">" if container in ("AIFF", "CAF") or endian == "BIG" else "<"
    notes = struct.pack(f"{order}4s{'q' if container == 'CAF' else 'I'}", b"note", 8000) + b"words..." * 1000
    for behind in (bytes(32000), notes):
        if container == "AU" and behind == notes:
            continue  # it has no chunks
        if container == "W64" and behind == notes:
            behind = b"levl" + bytes(12) + struct.pack("<q", 8024) + notes[8:]
        audio, problems = _decoded(_damaged(tmp_path / "a.wav", container, endian, fault, 0, behind))
        assert np.array_equal(audio, SAMPLES)
        assert problems == []


@pytest.mark.parametrize("bits", [16, 24, 32])
@pytest.mark.parametrize("is_boxed", [False, True])
def test_alac_in_caf_is_read_as_ffmpeg_writes_it(tmp_path: Path, bits: int, is_boxed: bool) -> None:
    """No flags in the description; the decoder's configuration alone, or in Apple's older boxes."""
    path = tmp_path / "a.caf"
    sf.write(path, SAMPLES, RATE, f"ALAC_{bits}")
    content = bytearray(path.read_bytes())
    _put(content, b"desc", 12 + 12, ">I", 0)
    if is_boxed:
        at = content.index(b"kuki")
        boxes = b"\0\0\0\x0cfrmaalac" + b"\0\0\0\x24alac\0\0\0\0"
        content[at + 4 : at + 12] = struct.pack(">q", 48)
        content[at + 12 : at + 12] = boxes
    path.write_bytes(content)
    audio, problems = _decoded(path)
    assert np.array_equal(audio[: len(SAMPLES)], SAMPLES)
    assert len(audio) == len(SAMPLES)
    assert problems == []
