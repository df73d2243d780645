"""Very long files and very many files: memory, open files, what comes back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf

import samplernn
from tests.conftest import slow

ROOT = Path(next(iter(samplernn.__path__))).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

CHILD = """
import json, os, resource, sys

def limit_open_files(when):
    if when in sys.argv:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

limit_open_files("early")
from tests.conftest import slow
from tests.conftest import slow
from samplernn.audio import lanes
from samplernn.audio.corpus import prepare
from samplernn.audio.split import locate, split
from samplernn.config import DataConfig

folder, cache, rate = sys.argv[1], sys.argv[2], int(sys.argv[3])
limit_open_files("late")

def peak():  # MB of this program; ru_maxrss counts the parent's from before exec
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))

before = peak()
corpus = prepare(folder, DataConfig(sample_rate=rate, cache_dir=cache), workers=0)
decoding = peak() - before
parts = split(corpus, 0)
epoch = lanes.Lanes(corpus, lanes.cut(locate(corpus, parts.train), 8 * rate, 512, 16), 16, 512, seed=0)
heard = sum(int(chunk.mask.sum()) for chunk in epoch.chunks(0))
print(json.dumps({
    "decoding": decoding,
    "files": len(corpus.files),
    "problems": [str(problem) for problem in corpus.problems],
    "samples": corpus.num_samples,
    "train": sum(span.stop - span.start for span in parts.train),
    "heard": heard,
    "ends": [corpus.read(0, 0, 4).tolist(), corpus.read(0, corpus.files[0].num_samples - 4,
             corpus.files[0].num_samples).tolist()],
}))
"""


def measure(folder: Path, rate: int, limit: str = "") -> dict[str, Any]:
    """What a process of its own finds in a folder, and the megabytes by which decoding made it grow.

    Args:
        folder: of the audio.
        rate: Hz.
        limit: when the process may open 64 files only: `early`, before it begins, or `late`.
    """
    arguments = [str(folder), str(folder.with_name("cache")), str(rate), limit]
    result = subprocess.run(
        [sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return json.loads(result.stdout)


def write_long(path: Path, hours: float, sample_rate: int, container: str = "FLAC") -> None:
    """A faint noise, the same minute again and again, with a mark at both ends."""
    path.parent.mkdir(exist_ok=True)
    minute = np.random.default_rng(0).integers(-3, 4, 60 * sample_rate).astype(np.int16)
    with sf.SoundFile(path, "w", sample_rate, 1, "PCM_16", format=container) as file:
        file.write(np.array([100, -200, 300, -400], np.int16))
        for _ in range(round(60 * hours)):
            file.write(minute)
        file.write(np.array([-400, 300, -200, 100], np.int16))


LIMIT = 30
"""MB that decoding may take, whatever the length: two threads, a second of audio each, its resampler."""


@pytest.mark.parametrize("container", ["FLAC", "OGG"])
def test_a_file_of_three_hours_takes_no_memory(tmp_path: Path, container: str) -> None:
    path = tmp_path / "audio" / f"x.{container.lower()}"
    if container == "FLAC":
        write_long(path, 3, 4000)
    else:
        path.parent.mkdir()
        block = 0.1 * np.random.default_rng(0).normal(size=8000).astype(np.float32)
        with sf.SoundFile(path, "w", 8000, 1, "VORBIS", format="OGG", compression_level=1.0) as file:
            for _ in range(1200):
                file.write(block)
    found = measure(path.parent, 4000)
    seconds = 3 * 3600 if container == "FLAC" else 1200
    assert found["samples"] == pytest.approx(4000 * seconds, abs=10)
    assert found["problems"] == []
    assert found["heard"] == found["train"]
    assert found["decoding"] < LIMIT  # the samples alone are 86 MB as int16, and 173 MB as floats
    if container == "FLAC":
        assert found["ends"] == [[100, -200, 300, -400], [-400, 300, -200, 100]]


@pytest.mark.slow
def test_a_file_of_thirty_hours_takes_no_memory(tmp_path: Path) -> None:
    write_long(tmp_path / "audio" / "x.flac", 30, 8000)
    found = measure(tmp_path / "audio", 8000)
    assert found["samples"] == 30 * 3600 * 8000 + 8
    assert found["ends"] == [[100, -200, 300, -400], [-400, 300, -200, 100]]
    assert found["heard"] == found["train"]
    assert found["decoding"] < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("container", ["W64", "RF64"])
def test_a_file_beyond_four_gibibytes_is_read_to_its_end(tmp_path: Path, container: str) -> None:
    """Eight channels at 192 kHz; a hole in the file, so that it takes no space on most file systems."""
    path = tmp_path / "audio" / f"x.{container.lower()}"
    path.parent.mkdir()
    frames = 2**32 // 24 + 10**6
    start, end = (np.full((192000, 8), value, np.int32) * 2**16 for value in (3000, -3000))
    with sf.SoundFile(path, "w", 192000, 8, "PCM_24", format=container) as file:
        file.write(start)
        file.seek(frames - 192000)
        file.write(end)
    assert path.stat().st_size > 2**32
    found = measure(path.parent, 1000)
    assert found["problems"] == []
    assert found["samples"] == pytest.approx(frames / 192, abs=1)
    assert found["decoding"] < LIMIT


@pytest.mark.parametrize("count", [*map(slow, [2500, 10_000])])
def test_thousands_of_tiny_files_need_few_open_files(tmp_path: Path, count: int) -> None:
    """64 of them; a system's default is 256 or more."""
    audio = tmp_path / "audio"
    for index in range(count):
        if index % 100 == 0:
            (audio / f"{index // 100:03}").mkdir(parents=True)
        noise = np.random.default_rng(index).integers(-9000, 9001, 400).astype(np.int16)
        sf.write(audio / f"{index // 100:03}" / f"{index:05}.wav", noise, 8000)
    found = measure(audio, 8000, "early")
    assert found["problems"] == []
    assert found["files"] == count
    assert found["samples"] == 400 * count
    assert found["heard"] == found["train"]
    assert found["decoding"] < LIMIT
    before = {path: path.stat().st_ino for path in tmp_path.glob("cache/*/shards/*")}
    assert len(before) > 2 * 64  # more shards than may be open at a time
    assert measure(audio, 8000, "late")["samples"] == found["samples"]
    assert {path: path.stat().st_ino for path in tmp_path.glob("cache/*/shards/*")} == before
