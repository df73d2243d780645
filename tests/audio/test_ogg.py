"""Ogg files with several streams behind each other, and FLAC in Ogg."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.io import AudioError, Decoder, load, to_int16

RATE = 16000
EACH_USED = "none needed: each of them is used"


def _tone(seconds: float, rate: int, frequency: float = 440) -> np.ndarray:
    return 0.4 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def _ogg(path: Path, subtype: str, seconds: float, rate: int = RATE, channels: int = 1) -> bytes:
    x = np.stack([_tone(seconds, rate)] * channels, axis=1)
    with sf.SoundFile(path, "w", rate, channels, subtype, format="OGG") as file:
        for start in range(0, len(x), 4096):
            file.write(x[start : start + 4096])
    return path.read_bytes()


def _decoded(path: Path, rate: int = RATE) -> tuple[np.ndarray, list[str]]:
    decoder = Decoder(path, rate)
    return np.concatenate(list(decoder)), [f"{p.problem}; {p.remedy}" for p in decoder.problems]


@pytest.mark.parametrize("second", [("VORBIS", RATE, 1), ("OPUS", 48000, 1), ("VORBIS", 44100, 2)])
@pytest.mark.parametrize("first", ["VORBIS", "OPUS"])
def test_streams_behind_each_other_are_used_to_the_sample(
    tmp_path: Path, first: str, second: tuple[str, int, int]
) -> None:
    one, two, both = (tmp_path / f"{name}.ogg" for name in ("1", "2", "both"))
    subtype, rate, channels = second
    content = _ogg(one, first, 2) + _ogg(two, subtype, 3, rate, channels)
    parts = np.concatenate([load(one, RATE), load(two, RATE)])
    for between in (b"", b"garbage" * 100):
        half = len(one.read_bytes())
        both.write_bytes(content[:half] + between + content[half:])
        audio, problems = _decoded(both)
        assert len(audio) == len(parts) == pytest.approx(5 * RATE, abs=3)
        assert np.abs(audio - parts).max() < 1e-6
        assert problems == [f"is 2 recordings behind each other (2.0 + 3.0 s); {EACH_USED}"]


def test_a_stream_that_is_cut_does_not_hide_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ogg"
    sf.write(path, np.random.default_rng(0).normal(size=4 * RATE) * 0.1, RATE)
    whole = path.read_bytes()
    alone = load(path, RATE)
    path.write_bytes(whole[: len(whole) // 2 + 11] + whole)
    audio, problems = _decoded(path)
    assert np.array_equal(audio[-len(alone) :], alone)
    first = len(audio) / RATE - 4
    assert first > 0.2
    assert problems[0].startswith(f"is truncated: a recording in it ends after {first:.1f} s")
    assert problems[1] == f"is 2 recordings behind each other ({first:.1f} + 4.0 s); {EACH_USED}"


def _pages(packets: list[bytes], serial: int, granules: list[int]) -> bytes:
    """Ogg pages of one packet each (RFC 3533), checksums left out."""
    pages = b""
    for number, (packet, granule) in enumerate(zip(packets, granules, strict=True)):
        flags = 2 * (number == 0) | 4 * (number == len(packets) - 1)
        sizes = [255] * (len(packet) // 255) + [len(packet) % 255]
        for at in range(0, len(sizes), 255):
            some = sizes[at : at + 255]
            body = packet[255 * at : 255 * at + sum(some)]
            head = struct.pack(
                "<4sBBqIIIB", b"OggS", 0, flags | (at > 0), granule, serial, number, 0, len(some)
            )
            pages += head + bytes(some) + body
    return pages


def _ogg_flac(path: Path, samples: np.ndarray, serial: int) -> bytes:
    """FLAC in Ogg (RFC 9639, section 10.1)."""
    sf.write(path.with_suffix(".flac"), samples, RATE)
    flac = path.with_suffix(".flac").read_bytes()
    first, position = b"\x7fFLAC\x01\x00\x00\x01" + flac[:42], 42
    is_last = bool(flac[4] & 128)
    packets = [first]
    while not is_last:
        is_last, length = bool(flac[position] & 128), int.from_bytes(flac[position + 1 : position + 4], "big")
        packets.append(flac[position : position + 4 + length])
        position += 4 + length
    packets += [flac[position : position + 9000], flac[position + 9000 :]]
    return _pages(packets, serial, [0] * (len(packets) - 2) + [4096, len(samples)])


def test_flac_in_ogg_is_read_alone_and_behind_another(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(-9000, 9000, n).astype(np.int16) for n in (20000, 30001))
    path = tmp_path / "a.oga"
    one, two = _ogg_flac(path, first, 1), _ogg_flac(path, second, 2)
    path.write_bytes(one)
    audio, problems = _decoded(path)
    assert np.array_equal(to_int16(audio), first)
    assert problems == []
    path.write_bytes(one + two)
    audio, problems = _decoded(path)
    assert np.array_equal(to_int16(audio), np.concatenate([first, second]))
    assert problems == [f"is 2 recordings behind each other (1.2 + 1.9 s); {EACH_USED}"]
    path.write_bytes(one[: len(one) // 2])
    audio, problems = _decoded(path)
    assert np.array_equal(to_int16(audio), first[: len(audio)])
    assert problems[0].startswith(f"is damaged after {len(audio) / RATE:.1f} of 1.2 s")


@pytest.mark.parametrize(
    "command",
    [
        "flac --totally-silent --ogg x.wav -o x.oga",
        "ffmpeg -loglevel error -i x.wav -c:a flac -f ogg x.oga",
        "sh -c 'ffmpeg -loglevel error -i x.wav -c:a flac -f ogg - | cat > x.oga'",
    ],
)
def test_flac_in_ogg_of_other_programs_is_read(tmp_path: Path, command: str) -> None:
    if not shutil.which(program := "flac" if command.startswith("flac") else "ffmpeg"):
        pytest.skip(f"{program} is not installed")
    sf.write(tmp_path / "x.wav", _tone(2, RATE), RATE)
    subprocess.run(
        command if "sh -c" in command else command.split(), cwd=tmp_path, check=True, shell="sh -c" in command
    )
    assert np.array_equal(load(tmp_path / "x.oga", RATE), load(tmp_path / "x.wav", RATE))


def test_speex_is_refused_alone_and_named_behind_another(tmp_path: Path) -> None:
    path = tmp_path / "my voice.ogg"
    speex = _pages([b"Speex   1.2" + bytes(69), bytes(40), bytes(400)], 7, [0, 0, 16000])
    path.write_bytes(speex)
    with pytest.raises(AudioError) as caught:
        Decoder(path, RATE)
    assert caught.value.problem == "holds Speex, which cannot be read"
    assert caught.value.remedy == "convert it to WAV or FLAC (ffmpeg -i 'my voice.ogg' 'my voice.flac')"
    path.write_bytes(_ogg(tmp_path / "a.ogg", "VORBIS", 2) + speex)
    audio, problems = _decoded(path)
    assert len(audio) == 2 * RATE
    assert len(problems) == 1
    assert problems[0].startswith("has a part after 2.0 s (length unknown) that holds Speex")
