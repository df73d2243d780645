"""MP3s that say something wrong of themselves, or nothing: all of their audio is used."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.io import Decoder, load
from samplernn.audio.mpeg import layout

RATE = 16000
JUNK = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()


def _mp3(path: Path, frequency: float, seconds: float, rate: int = RATE, channels: int = 1) -> bytes:
    """A chord whose loudness changes, so that frames of a variable bit rate differ."""
    t = np.arange(round(seconds * rate)) / rate
    noise = np.random.default_rng(1).normal(size=len(t)) * (t % 1 > 0.5)
    x = 0.3 * np.sin(2 * np.pi * frequency * t) + 0.05 * noise
    with sf.SoundFile(
        path, "w", rate, channels, format="MP3", bitrate_mode="VARIABLE", compression_level=0.2
    ) as file:
        file.write(np.stack([x] * channels, axis=1))
    return path.read_bytes()


def _decoded(path: Path) -> tuple[np.ndarray, list[str]]:
    decoder = Decoder(path, RATE)
    audio = np.concatenate(list(decoder))
    return audio, [f"{problem.problem}; {problem.remedy}" for problem in decoder.problems]


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _mark(mp3: bytes) -> int:
    return max(mp3.find(b"Xing", 0, 300), mp3.find(b"Info", 0, 300))


def _promising(mp3: bytes, factor: float) -> bytes:
    """An MP3 whose first frame gives another number of frames."""
    at = _mark(mp3) + 8
    (frames,) = struct.unpack(">I", mp3[at : at + 4])
    return mp3[:at] + struct.pack(">I", round(frames * factor)) + mp3[at + 4 :]


def _without_first_frame(mp3: bytes) -> bytes:
    return mp3[mp3.index(mp3[:2], _mark(mp3)) :]


@pytest.fixture
def two(tmp_path: Path) -> tuple[bytes, bytes, np.ndarray]:
    """Two MP3s, and what they hold together."""
    first, second = tmp_path / "1.mp3", tmp_path / "2.mp3"
    contents = _mp3(first, 330, 2), _mp3(second, 550, 3)
    assert layout(first) is None
    return *contents, np.concatenate([load(first, RATE), load(second, RATE)])


def test_mp3s_behind_each_other_are_used_to_the_sample(
    tmp_path: Path, two: tuple[bytes, bytes, np.ndarray]
) -> None:
    first, second, both = two
    id3 = b"ID3\x04\0\0" + bytes([0, 0, len(JUNK) >> 7, len(JUNK) & 127]) + JUNK
    for between in (b"", b"TAG" + b"x" * 125, id3, JUNK, bytes(5000)):
        audio, problems = _decoded(_written(tmp_path / "a.mp3", first + between + second))
        assert np.array_equal(audio, both)
        assert problems == [
            "is 2 recordings behind each other (2.0 + 3.0 s); none needed: each of them is used"
        ]


def test_an_mp3_of_another_rate_and_more_channels_behind_the_first_is_used(tmp_path: Path) -> None:
    first = _mp3(tmp_path / "1.mp3", 330, 2)
    second = _mp3(tmp_path / "2.mp3", 550, 3, rate=44100, channels=2)
    audio, problems = _decoded(_written(tmp_path / "a.mp3", first + second))
    both = np.concatenate([load(tmp_path / f"{n}.mp3", RATE) for n in (1, 2)])
    assert len(audio) == len(both) == pytest.approx(5 * RATE, abs=2)
    assert np.abs(audio - both).max() < 1e-6
    assert problems == ["is 2 recordings behind each other (2.0 + 3.0 s); none needed: each of them is used"]


@pytest.mark.parametrize(("factor", "promised"), [(0.5, "1.5"), (2, "6.2")])
def test_a_wrong_number_of_frames_is_mended_and_named(tmp_path: Path, factor: float, promised: str) -> None:
    right = _mp3(tmp_path / "right.mp3", 550, 3)
    audio, problems = _decoded(_written(tmp_path / "a.mp3", _promising(right, factor)))
    assert np.array_equal(audio, load(tmp_path / "right.mp3", RATE))
    assert problems == [f"holds 3.1 s, but its header promises {promised} s; none needed: all of it is used"]


def test_a_variable_bit_rate_that_nothing_announces_is_used_in_full(tmp_path: Path) -> None:
    """Without a first frame that counts them, libsndfile guesses the length from one frame."""
    right = _mp3(tmp_path / "right.mp3", 550, 3)
    bare = _without_first_frame(right)
    expected = load(tmp_path / "right.mp3", RATE)
    for tag in (b"", bytes(60000), b"TAG" + bytes(125), b"APETAGEX" + struct.pack("<4I8x", 2000, 32, 0, 0)):
        audio, problems = _decoded(_written(tmp_path / "a.mp3", bare + tag))
        delay = len(audio) - len(expected)
        assert 0 <= delay < 3 * 1152
        best = max(
            float(np.dot(audio[d : d + len(expected)], expected[: len(audio) - d])) for d in range(delay + 1)
        )
        assert best > 0.99 * float(np.dot(expected, expected))
        assert problems == []


def test_a_cut_mp3_is_named_with_both_lengths(tmp_path: Path) -> None:
    content = _mp3(tmp_path / "right.mp3", 550, 4)
    audio, problems = _decoded(_written(tmp_path / "a.mp3", content[: len(content) // 2]))
    (problem,) = problems
    assert f"is truncated: it ends after {len(audio) / RATE:.1f} of 4.0 s" in problem


def test_garbage_within_an_mp3_costs_no_more_than_its_frame(tmp_path: Path) -> None:
    content = _mp3(tmp_path / "right.mp3", 550, 3)
    whole = load(tmp_path / "right.mp3", RATE)
    half = len(content) // 2
    for junk in (JUNK, bytes(2000), b"\xff\xf3" * 1000, JUNK * 20):
        audio, _ = _decoded(_written(tmp_path / "a.mp3", content[:half] + junk + content[half:]))
        assert abs(len(audio) - len(whole)) <= 1152
        assert np.array_equal(audio[:10000], whole[:10000])
        assert np.abs(audio[-10000:] - whole[-10000:]).max() < 1e-4


def test_what_is_missing_within_an_mp3_is_named(tmp_path: Path) -> None:
    content = _mp3(tmp_path / "right.mp3", 550, 3)
    third = len(content) // 3
    audio, problems = _decoded(
        _written(tmp_path / "a.mp3", content[:third] + bytes(third) + content[2 * third :])
    )
    (problem,) = problems
    held = float(problem.split()[1])
    assert held == pytest.approx(len(audio) / RATE, abs=0.2)
    assert 1.5 < held < 2.5
    assert problem.endswith(
        "but its header promises 3.1 s; what is there is used; copy or export the file again"
    )


def test_layer_two_behind_itself_is_used(tmp_path: Path) -> None:
    """Frames of 64 kbit/s, 48 kHz, mono, with no bits for any band; then the same in stereo."""
    mono, stereo = (b"\xff\xfd\x44" + mode + bytes(188) for mode in (b"\xc0", b"\x00"))
    decoder = Decoder(_written(tmp_path / "x.mp2", mono * 50 + JUNK + stereo * 100), 48000)
    assert sum(map(len, decoder)) == pytest.approx(150 * 1152, abs=2 * 1152)
    assert [p.problem for p in decoder.problems] == ["is 2 recordings behind each other (1.2 + 2.4 s)"]
