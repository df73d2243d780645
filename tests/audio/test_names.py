"""Files with names that break programs: every name is read, and every message about it is one line."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio.corpus import prepare
from samplernn.audio.io import load
from samplernn.audio.sinks import FileSink
from samplernn.audio.split import split
from samplernn.config import DataConfig, UserError, one_line

NAMES = {
    "emoji": "🎹 👩‍🎤 piano.wav",
    "newline": "two\nlines.wav",
    "carriage return": "over\rwritten.wav",
    "terminal code": "\x1b[31mred\x07.wav",
    "leading dash": "--help.wav",
    "quotes": "'\"`$(date) \\ %s {}.wav",
    "space before": " .. x.wav",
    "long": "é" * 125 + ".wav",
    "right to left": "abc\u202evaw.wav",
    "line separator": "a\u2028b.wav",
    "upper case": "LOUD.WAV",
    "not unicode": os.fsdecode(b"caf\xe9 \xff.wav"),
    "two dots": "x.mp3.wav",
}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere these are no names")


def noise(seed: int) -> np.ndarray:
    half = np.random.default_rng(seed).integers(-9000, 9001, 4000)
    return np.stack([half, -half], axis=1).ravel().astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A usable file and an empty one for every name, each also in a folder of that name."""
    audio = tmp_path / "audio"
    for index, name in enumerate(NAMES.values()):
        for number, place in enumerate([audio, audio / name[:-4]]):
            place.mkdir(parents=True, exist_ok=True)
            with (place / name).open("wb") as stream:
                sf.write(stream, noise(2 * index + number), 16000, format="WAV")
            (place / f"{name[:-6]}.flac").touch()
    return audio


def test_every_name_is_read(folder: Path, tmp_path: Path) -> None:
    corpus = prepare(folder, DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache"))
    assert len(corpus.files) == 2 * len(NAMES)
    assert {Path(file.path).name for file in corpus.files} == set(NAMES.values())
    for file in corpus.files:
        sample = corpus.read(file, 0, file.num_samples)
        assert np.array_equal(sample, np.rint(32768 * load(folder / file.path, 16000)))
    assert prepare(folder, DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache")) == corpus
    parts = split(corpus, 0)
    assert json.loads(json.dumps(parts.to_dict())) == parts.to_dict()


def test_every_message_about_a_name_is_one_printable_line(folder: Path, tmp_path: Path) -> None:
    problems = prepare(folder, DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache")).problems
    assert len(problems) == 2 * len(NAMES)
    for problem in problems:
        line = str(problem)
        assert "is empty (0 bytes)" in line
        assert line.splitlines() == [line]
        assert line.replace("\u200d", "").isprintable()
        line.encode()  # goes to any log
        with pytest.raises(UserError) as caught:
            load(folder / problem.path, 16000)
        assert str(caught.value).splitlines() == [str(caught.value)]


def test_json_about_any_name_is_valid(folder: Path, tmp_path: Path) -> None:
    corpus = prepare(folder, DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache"))
    manifest = json.loads((corpus.shard_dir.parent / "manifest.json").read_text("ascii"))
    assert [problem["path"] for problem in manifest["problems"]] == [p.path for p in corpus.problems]


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_the_command_line_answers_in_one_line(tmp_path: Path, name: str) -> None:
    audio = tmp_path / name[:-4]
    audio.mkdir()
    (audio / name).touch()
    code = (
        "import sys; from samplernn.audio.corpus import prepare; from samplernn.config import *\n"
        "try: prepare(sys.argv[1], DataConfig(sample_rate=16000, cache_dir=sys.argv[2]))\n"
        "except UserError as error: print(f'error: {error}', file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, str(audio), str(tmp_path / "cache")]
    result = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 1
    assert "none of its 1 audio files can be used" in lines[0]
    assert "is empty" in lines[0]
    assert result.stdout == b""


def test_a_sink_writes_to_any_name(tmp_path: Path) -> None:
    for name in NAMES.values():
        with FileSink(tmp_path / name, 16000) as sink:
            sink.write(noise(0))
        assert np.array_equal(sf.read(os.fsencode(tmp_path / name), dtype="int16")[0], noise(0))


def test_a_path_that_is_too_long_is_named(tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    with (audio / "fine.wav").open("wb") as stream:
        sf.write(stream, noise(0), 16000, format="WAV")
    before = Path.cwd()
    os.chdir(audio)
    try:
        for _ in range(25):  # 5000 characters in all, further than a path may go
            Path("d" * 200).mkdir()
            os.chdir("d" * 200)
    finally:
        os.chdir(before)
    corpus = prepare(audio, DataConfig(sample_rate=16000, cache_dir=tmp_path / "cache"))
    assert [file.path for file in corpus.files] == ["fine.wav"]
    (problem,) = corpus.problems
    assert "File name too long" in problem.problem
    shutil.rmtree(audio)  # not left to pytest, which might not get there


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü 音 🎵.wav", "plain ü 音 🎵.wav"),
        ("a\nb\tc\\n", "a\\nb\\tc\\n"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\x1b[2J\u2028\u202e", "\\x1b[2J\\u2028\\u202e"),
    ],
)
def test_one_line(text: str, shown: str) -> None:
    assert one_line(text) == shown
    assert str(UserError(text)) == shown
