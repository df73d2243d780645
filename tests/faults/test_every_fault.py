"""A folder with one file of each fault beside ten good ones, as the commands see it."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from tests.conftest import toy_arguments
from tests.decoders import LOOP, environment_acting
from tests.faults.conftest import command, finish, start, train

RATE = 16000
GOOD = [f"good {index}.flac" for index in range(10)]
HANGS = "hangs.flac"
USED_WHOLE = {
    "list.wav": "has a malformed LIST chunk",
    "list-behind.wav": "has a malformed LIST chunk",
    "joined.mp3": "is 2 recordings behind each other (2.0 + 3.0 s)",
    "joined.ogg": "is 2 recordings behind each other (2.0 + 3.0 s)",
    "joined.opus": "is 2 recordings behind each other (2.0 + 3.0 s)",
    "short.wav": "holds 5.0 s, but its header promises 1.0 s",
    "crash.wav": "holds 5.0 s, but its header promises 0.0 s",
    "peak4.wav": "peaks at 4.0, 12 dB above full scale",
    "int16.wav": "peaks at 20000: its floats are 16-bit integers",
    "peak16.wav": "has a PEAK chunk of 16 bytes",
    "named.m4a": "holds WAV audio, but is named .m4a",
}
"""Nothing is lost of these, and this is said."""
CUT = {
    "cut.wav": "is truncated: it ends after 3.0 of 5.0 s",
    "cut.flac": "is damaged after ",
    "cut.ogg": "is truncated: it ends after ",
    "cut.mp3": "is truncated: it ends after ",
}
"""Of these, what is there is used."""
LEFT_OUT = {
    "pointer.wav": "is a Git LFS pointer, not the audio itself",
    "empty.wav": "is empty (0 bytes)",
    "text.mp3": "is not readable as audio",
    HANGS: "makes the decoder hang: it has not ended after 2 s",
}


def _samples(seconds: float, seed: int) -> np.ndarray:
    """Noise that changes, int16, without a mean."""
    half = np.random.default_rng(seed).integers(-9000, 9000, round(seconds * RATE) // 2).astype("<i2")
    return np.concatenate([half, -half])


def _chunk(name: bytes, body: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("<I", len(body) if length is None else length) + body


def _wav(*chunks: bytes, tag: int = 1, bits: int = 16, channels: int = 1) -> bytes:
    width = channels * bits // 8
    form = _chunk(b"fmt ", struct.pack("<HHIIHH", tag, channels, RATE, RATE * width, width, bits))
    return _chunk(b"RIFF", b"WAVE" + form + b"".join(chunks))


def _data(seed: int, promised: float = 5.0) -> bytes:
    """A data chunk of 5 s whose header says another length."""
    return _chunk(b"data", _samples(5, seed).tobytes(), round(2 * RATE * promised))


def _file(container: str, seconds: float, seed: int, subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    sf.write(file, _samples(seconds, seed), RATE, subtype, format=container)
    return file.getvalue()


def _contents() -> dict[str, bytes]:
    """Every file that is not simply good."""
    endless = _chunk(b"LIST", b"INFO" + b"ABCD" + struct.pack("<i", -12) + bytes(20))
    sine = np.sin(np.arange(5 * RATE) * 0.05).astype("<f4")
    peak, stereo = _chunk(b"PEAK", bytes(16)), _chunk(b"data", (0.7 * sine).repeat(2).tobytes())
    cut = {f"cut.{name.lower()}": _file(name, 5, 30 + at) for at, name in enumerate(("FLAC", "OGG", "MP3"))}
    return {
        "list.wav": _wav(endless, _data(1)),
        "list-behind.wav": _wav(_data(2), endless),
        "joined.mp3": _file("MP3", 2, 3) + _file("MP3", 3, 4),
        "joined.ogg": _file("OGG", 2, 5) + _file("OGG", 3, 6),
        "joined.opus": _file("OGG", 2, 7, "OPUS") + _file("OGG", 3, 8, "OPUS"),
        "short.wav": _wav(_data(9, promised=1)),
        "crash.wav": _wav(_data(20, promised=0)),
        "peak4.wav": _wav(_chunk(b"data", (4 * sine).tobytes()), tag=3, bits=32),
        "int16.wav": _wav(_chunk(b"data", np.rint(20000 * sine).tobytes()), tag=3, bits=32),
        "peak16.wav": _wav(peak, stereo, tag=3, bits=32, channels=2),
        "named.m4a": _wav(_data(21)),
        "adpcm.wav": _file("WAV", 5, 22, "MS_ADPCM"),
        "cut.wav": _wav(_data(23))[: 44 + 2 * 3 * RATE],
        **{name: content[: 2 * len(content) // 3] for name, content in cut.items()},
        "pointer.wav": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "empty.wav": b"",
        "text.mp3": b"no audio at all " * 100,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of them, and ten good ones."""
    folder = tmp_path_factory.mktemp("every-fault")
    for index, name in enumerate([*GOOD, HANGS]):
        sf.write(folder / name, _samples(4, 100 + index), RATE)
    for name, content in _contents().items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """In which decoding one of the files never ends."""
    return environment_acting(tmp_path / "site", HANGS, LOOP)


@pytest.mark.fault(
    "a folder with a file of each fault beside ten good ones, one of which hangs the decoder",
    "`doctor` names each and says why, `train` runs on the rest",
)
def test_each_fault_is_named_and_the_rest_is_used(
    folder: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    options = [f"--data.cache_dir={tmp_path / 'cache'}", "--data.decode_timeout=2"]
    arguments = command("doctor", folder, "--json", *options, *toy_arguments())
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=240)
    found = json.loads(done.stdout)
    said = {problem["path"]: problem["problem"] for problem in found["problems"]}
    expected = USED_WHOLE | CUT | LEFT_OUT
    assert said.keys() == expected.keys()
    for name, words in expected.items():
        assert said[name].startswith(words), (name, said[name])
    arguments = train("every-fault", folder, trainer__max_steps=3, data__cache_dir=tmp_path / "cache")
    process = start([*arguments, "--data.decode_timeout=2"], env=environment)
    said_by_train = finish(process)
    assert process.returncode == 0, said_by_train
    assert HANGS in said_by_train


@pytest.mark.fault("SIGTERM while such a folder is looked through", "the command ends", few=1, many=20)
def test_sigterm_ends_it_at_any_moment(
    folder: Path, tmp_path: Path, environment: dict[str, str], times: int, rng: np.random.Generator
) -> None:
    for index in range(times):
        options = [f"--data.cache_dir={tmp_path / f'cache{index}'}"]
        process = start(command("doctor", folder, *options), env=environment)
        time.sleep(rng.uniform(0.5, 6))
        process.terminate()
        began = time.monotonic()
        said = finish(process)
        print(f"ended {time.monotonic() - began:.2f} s after SIGTERM")
        assert process.returncode in (143, -15), said
        assert "Traceback" not in said
