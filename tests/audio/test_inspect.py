"""`inspect`: what `prepare` finds, without writing."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio import files
from samplernn.audio.corpus import inspect, prepare
from samplernn.audio.measures import silent_samples
from samplernn.config import DataConfig, UserError
from tests.conftest import CLIPS

RATE = 16000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Clips at their own rate and at another, one with DC, a duplicate, a truncated and two bad ones."""
    folder = tmp_path / "audio"
    shutil.copytree(CLIPS / "tabla", folder)
    clip = next(iter(sorted((CLIPS / "guitar").iterdir())))
    samples, rate = sf.read(clip)
    sf.write(folder / "offset.wav", 0.5 * samples + 0.1, rate)
    sf.write(folder / "resampled.flac", samples, 44100)
    shutil.copy(clip, folder / "cut.flac")
    os.truncate(folder / "cut.flac", clip.stat().st_size * 2 // 3)
    shutil.copy(folder / "resampled.flac", folder / "twice.flac")
    (folder / "words.wav").write_text("words")
    sf.write(folder / "silent.wav", np.zeros(RATE), RATE)
    return folder


def everything(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_inspect_finds_what_prepare_finds_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    before = everything(tmp_path)
    inspected = inspect(folder, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache"))
    assert everything(tmp_path) == before
    assert {problem.path for problem in inspected.problems} == {
        "cut.flac",
        "silent.wav",
        "twice.flac",
        "words.wav",
    }
    assert inspected == prepare(folder, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache"))


def test_inspect_reads_the_cache_where_there_is_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    prepared = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    before = everything(cache)

    def decoder(path: Path, sample_rate: int) -> files.Decoder:
        raise AssertionError(f"{path} is decoded again")

    monkeypatch.setattr(files, "Decoder", decoder)
    assert inspect(folder, DataConfig(sample_rate=RATE, cache_dir=cache)) == prepared
    assert everything(cache) == before


def test_nothing_usable_is_a_corpus_without_files(tmp_path: Path) -> None:
    assert inspect(tmp_path, DataConfig(sample_rate=RATE, cache_dir=tmp_path.parent / "cache")).found == 0
    (tmp_path / "words.wav").write_text("words")
    corpus = inspect(tmp_path, DataConfig(sample_rate=RATE, cache_dir=tmp_path.parent / "cache"))
    assert (corpus.files, corpus.found, corpus.num_samples, corpus.gain) == ((), 1, 0, 1.0)
    assert [problem.path for problem in corpus.problems] == ["words.wav"]


@pytest.mark.parametrize("name", ["missing", "file.wav"])
def test_inspect_wants_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.wav").touch()
    with pytest.raises(UserError, match=name):
        inspect(tmp_path / name, DataConfig(sample_rate=RATE))


@pytest.mark.skipif(sys.platform == "win32", reason="needs FIFOs, sockets and links")
def test_what_is_no_file_is_reported_and_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    Path("audio/folder.wav").mkdir(parents=True)
    shutil.copy(next((CLIPS / "tabla").iterdir()), "audio/folder.wav/inside.FLAC")
    os.mkfifo("audio/pipe.wav")
    Path("audio/dangling.ogg").symlink_to("nothing.ogg")
    Path("audio/circle.wav").symlink_to("circle.wav")
    Path("audio/device.wav").symlink_to("/dev/zero")
    Path("audio/notes").symlink_to("nowhere")  # does not claim to be audio
    os.mkfifo("audio/.hidden.wav")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("audio/socket.wav")
        corpus = inspect("audio", DataConfig(sample_rate=RATE, cache_dir="cache"))
        assert prepare("audio", DataConfig(sample_rate=RATE, cache_dir="cache")) == corpus
    assert {problem.path: problem.problem for problem in corpus.problems} == {
        "circle.wav": f"cannot be reached ({os.strerror(errno.ELOOP)})",
        "dangling.ogg": "is a link to nothing",
        "device.wav": "is a device, not a file",
        "pipe.wav": "is a FIFO, not a file",
        "socket.wav": "is a socket, not a file",
    }
    assert [file.path for file in corpus.files] == ["folder.wav/inside.FLAC"]
    assert corpus.found == 6


def test_pauses_and_level_are_those_of_the_samples(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    loud = 0.25 * rng.standard_normal(RATE).clip(-3, 3)
    (tmp_path / "audio").mkdir()
    sf.write(tmp_path / "audio" / "x.wav", np.concatenate([loud, np.zeros(3 * RATE), 1e-4 * loud]), RATE)
    (file,) = inspect(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=tmp_path / "cache")).files
    assert sum(file.levels) == file.num_samples == 5 * RATE
    assert silent_samples(file.levels, gain=1.0) == 4 * RATE
    assert file.rms == pytest.approx(0.25 / np.sqrt(5), rel=0.02)
