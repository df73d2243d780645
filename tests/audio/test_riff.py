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


def _endless(order: str = "<", kind: bytes = b"INFO", item: int = -12) -> bytes:
    """A LIST chunk in which libsndfile loops for ever: an item that goes back."""
    body = kind + b"ABCD" + struct.pack(f"{order}i", item) + bytes(20)
    return b"LIST" + struct.pack(f"{order}I", len(body)) + body


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("kind", [b"INFO", b"adtl"])
@pytest.mark.parametrize("item", [-12, -8])
def test_a_malformed_list_does_not_hang(tmp_path: Path, where: str, kind: bytes, item: int) -> None:
    data = _chunk(b"data", _samples(3).tobytes())
    chunks = [_endless(kind=kind, item=item), data]
    wav = _wav(tmp_path / "a.wav", *(chunks if where == "before" else reversed(chunks)))
    audio, problems = _decoded(wav)
    assert np.array_equal(audio, _samples(3))
    assert problems == ["has a malformed LIST chunk"]


def test_a_malformed_list_in_an_rf64_does_not_hang(tmp_path: Path) -> None:
    samples = _samples(3).tobytes()
    form = _chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, RATE, 2 * RATE, 2, 16))
    sizes = _chunk(b"ds64", struct.pack("<QQQI", 120 + len(samples), len(samples), 3 * RATE, 0))
    chunks = sizes + form + _endless() + b"data\xff\xff\xff\xff" + samples
    (tmp_path / "a.wav").write_bytes(b"RF64\xff\xff\xff\xffWAVE" + chunks)
    audio, problems = _decoded(tmp_path / "a.wav")
    assert np.array_equal(audio, _samples(3))
    assert problems == ["has a malformed LIST chunk"]


@pytest.mark.parametrize(("item", "said"), [(4, []), (-12, ["has a malformed LIST chunk"])])
def test_numbers_of_a_big_endian_wav_are_read_as_such(tmp_path: Path, item: int, said: list[str]) -> None:
    samples = _samples(1).astype(">i2").tobytes()
    chunks = b"WAVEfmt " + struct.pack(">IHHIIHH", 16, 1, 1, RATE, 2 * RATE, 2, 16)
    chunks += _endless(">", item=item) + b"data" + struct.pack(">I", len(samples)) + samples
    (tmp_path / "a.wav").write_bytes(b"RIFX" + struct.pack(">I", len(chunks)) + chunks)
    audio, problems = _decoded(tmp_path / "a.wav")
    assert np.array_equal(audio, _samples(1))
    assert problems == said


def test_a_malformed_list_hides_no_loss(tmp_path: Path) -> None:
    """The same file is cut, too."""
    wav = _wav(tmp_path / "a.wav", _endless(), _chunk(b"data", _samples(4).tobytes()))
    wav.write_bytes(wav.read_bytes()[: -2 * RATE])
    audio, problems = _decoded(wav)
    assert np.array_equal(audio, _samples(4)[: 3 * RATE])
    assert problems == ["has a malformed LIST chunk", "is truncated: it ends after 3.0 of 4.0 s"]


def test_a_malformed_list_and_a_wrong_length_are_both_named(tmp_path: Path) -> None:
    wav = _wav(tmp_path / "a.wav", _endless(), _chunk(b"data", _samples(4).tobytes(), 2 * RATE))
    audio, problems = _decoded(wav)
    assert np.array_equal(audio, _samples(4))
    assert problems == ["has a malformed LIST chunk and holds 4.0 s, but its header promises 1.0 s"]


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
        _endless(),
        _chunk(b"data", _samples(1).tobytes()),
        _chunk(b"LIST", b"INFO" + _chunk(b"ISFT", b"editor" * 100)),
    )
    audio, problems = _decoded(wav)
    assert np.array_equal(audio, _samples(1))
    assert problems == ["has a malformed LIST chunk"]


def test_a_malformed_list_is_taken_out_of_any_format(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, _samples(3), RATE, subtype="IMA_ADPCM")
    whole, _ = _decoded(path)
    content = path.read_bytes()
    path.write_bytes(content[:12] + _endless() + content[12:])
    audio, problems = _decoded(path)
    assert np.array_equal(audio, whole)
    assert problems == ["has a malformed LIST chunk"]


def test_a_wav_named_m4a_is_read_with_a_remark(tmp_path: Path) -> None:
    audio, problems = _decoded(_wav(tmp_path / "a.m4a", _chunk(b"data", _samples(1).tobytes())))
    assert np.array_equal(audio, _samples(1))
    assert problems == ["holds WAV audio, but is named .m4a"]


def test_a_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    pointer = tmp_path / "a.wav"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(AudioError, match=r"Git LFS pointer, not the audio itself; run: git lfs pull$"):
        Decoder(pointer, RATE)


@pytest.mark.parametrize("subtype", ["MS_ADPCM", "IMA_ADPCM", "GSM610"])
@pytest.mark.parametrize("fact", [None, 0, -1])
def test_adpcm_of_other_programs_is_not_called_truncated(
    tmp_path: Path, subtype: str, fact: int | None
) -> None:
    """ffmpeg writes another rate of bytes than libsndfile expects, others no number of samples."""
    path = tmp_path / "a.wav"
    soundfile.write(path, _samples(3), RATE, subtype=subtype)
    whole, _ = _decoded(path)
    content = bytearray(path.read_bytes())
    content[28:32] = struct.pack("<I", RATE)
    if fact is not None:
        at = content.index(b"fact") + 8
        content[at : at + 4] = struct.pack("<i", fact)
    path.write_bytes(content)
    audio, problems = _decoded(path)
    assert np.array_equal(audio[: 3 * RATE], whole[: 3 * RATE])
    assert 3 * RATE <= len(audio) < 3.1 * RATE
    assert problems == []


@pytest.mark.parametrize("subtype", ["MS_ADPCM", "IMA_ADPCM", "GSM610"])
def test_adpcm_that_is_cut_is_named_and_a_wrong_length_is_mended(tmp_path: Path, subtype: str) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, _samples(4), RATE, subtype=subtype)
    whole, _ = _decoded(path)
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    audio, (problem,) = _decoded(path)
    assert problem.startswith(f"is truncated: it ends after {len(audio) / RATE:.1f} of ")
    assert float(problem.split()[7]) == pytest.approx(4, abs=0.25)
    at = content.index(b"data") + 4
    content[4:8] = content[at : at + 4] = bytes(4)
    path.write_bytes(content)
    audio, (problem,) = _decoded(path)
    assert np.array_equal(audio, whole)
    assert problem == "holds 4.0 s, but its header promises 0.0 s"
