from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf
from rich.console import Console

import samplernn
from samplernn.audio import corpus as corpus_module
from samplernn.audio import files, shards
from samplernn.audio.corpus import Corpus, prepare, scan
from samplernn.config import DataConfig, UserError

CLIPS = Path(next(iter(samplernn.__path__))) / "clips"
RATE = 16000


def noise(num_samples: int, seed: int, peak: int = 10000) -> np.ndarray:
    """Without DC, also in a part of it."""
    half = np.random.default_rng(seed).integers(-peak, peak + 1, (num_samples + 1) // 2)
    half[0] = peak
    return np.stack([half, -half], axis=1).ravel()[:num_samples].astype(np.int16)


def write(path: Path, samples: np.ndarray, sample_rate: int = RATE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, samples, sample_rate)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five files, 1 to 5 seconds."""
    for index in range(1, 6):
        write(tmp_path / "audio" / f"{index}.wav", noise(index * RATE, index))
    return tmp_path / "audio"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def one_per_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_FILES", 1)


def identities(shard_dir: Path) -> dict[str, int]:
    """Inodes: a shard that is built again gets another."""
    return {path.name: path.stat().st_ino for path in shard_dir.iterdir()}


class Decoded(list[str]):
    """Names of the files that are decoded from now on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        original = files.Decoder

        def decoder(path: Path, sample_rate: int) -> files.Decoder:
            self.append(path.name)
            return original(path, sample_rate)

        monkeypatch.setattr(files, "Decoder", decoder)


def test_scan_finds_audio_files_only_in_order_of_path(tmp_path: Path) -> None:
    for name in [
        "b.WAV",
        "a/z.flac",
        "a/notes.txt",
        ".hidden.wav",
        ".git/x.wav",
        "song.m4a",
        "a.mp3",
        "cover.jpg",
    ]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in scan(tmp_path)]
    assert found == ["a.mp3", "a/z.flac", "b.WAV", "song.m4a"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs FIFOs and links")
def test_scan_follows_links_once_and_opens_no_fifo(tmp_path: Path) -> None:
    audio, elsewhere = tmp_path / "audio", tmp_path / "elsewhere"
    write(audio / "real" / "x.wav", noise(100, 0))
    write(elsewhere / "y.wav", noise(100, 1))
    os.mkfifo(audio / "pipe.wav")
    (audio / "again").symlink_to(audio / "real")
    (audio / "real" / "loop").symlink_to(audio)
    (audio / "link").symlink_to(elsewhere)
    (audio / "broken.wav").symlink_to(tmp_path / "nothing.wav")
    (audio / "z.wav").symlink_to(elsewhere / "y.wav")
    found = [path.relative_to(audio).as_posix() for path in scan(audio)]
    assert found == ["link/y.wav", "real/x.wav", "z.wav"]


@pytest.mark.parametrize("name", ["missing", "file.wav"])
def test_scan_wants_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.wav").touch()
    with pytest.raises(UserError, match=name):
        scan(tmp_path / name)


def test_samples_come_back_bit_for_bit(folder: Path, cache: Path) -> None:
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert [file.path for file in corpus.files] == [f"{i}.wav" for i in range(1, 6)]
    assert corpus.duration == 15.0
    assert corpus.problems == ()
    for index, file in enumerate(corpus.files):
        expected = noise((index + 1) * RATE, index + 1)
        assert np.array_equal(corpus.read(file, 0, file.num_samples), expected)
        assert np.array_equal(corpus.read(index, 100, 250), expected[100:250])
        assert file.sha256 == hashlib.sha256(expected.tobytes()).hexdigest()


def test_read_stays_inside_its_file(folder: Path, cache: Path) -> None:
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    for start, stop in [(-1, 10), (0, RATE + 1), (20, 10)]:
        with pytest.raises(IndexError, match=r"1\.wav"):
            corpus.read(0, start, stop)
    with pytest.raises(ValueError, match="read-only"):
        corpus.read(0, 0, 10)[0] = 1


def test_other_rates_are_resampled(tmp_path: Path, cache: Path) -> None:
    t = np.arange(3 * 44100) / 44100
    for name, channels in [("mono", 1), ("stereo", 2)]:
        x = np.repeat((0.5 * np.sin(2 * np.pi * 440 * t))[:, None], channels, axis=1)
        write(tmp_path / "audio" / f"{name}.flac", x * (1 if channels == 1 else 0.5), 44100)
    corpus = prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache))
    for file, level in zip(corpus.files, [0.5, 0.25], strict=True):
        assert file.num_samples == 3 * RATE
        spectrum = np.abs(np.fft.rfft(corpus.read(file, RATE, 2 * RATE)))
        assert spectrum.argmax() == 440
        assert spectrum[440] / (RATE / 2) / 32768 == pytest.approx(level, rel=1e-3)


def test_one_gain_brings_the_corpus_to_minus_one_decibel(tmp_path: Path, cache: Path) -> None:
    write(tmp_path / "audio" / "quiet.wav", noise(1000, 0, peak=100))
    write(tmp_path / "audio" / "loud.wav", noise(1000, 1, peak=8192))
    corpus = prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache))
    assert corpus.gain == pytest.approx(10 ** (-1 / 20) / 0.25)
    assert {file.path: file.peak for file in corpus.files} == {"loud.wav": 0.25, "quiet.wav": 100 / 32768}
    assert np.abs(corpus.read(1, 0, 1000)).max() == 100  # the cache is without gain


def test_each_file_can_reach_the_peak_of_the_loudest(tmp_path: Path, cache: Path) -> None:
    """At the corpus's gain, which the loudest needs, all of them are then at -1 dBFS."""
    write(tmp_path / "audio" / "quiet.wav", noise(1000, 0, peak=100))
    write(tmp_path / "audio" / "loud.wav", noise(1000, 1, peak=8192))
    corpus = replace(
        prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache)), normalise="clip"
    )
    quiet, loud = noise(1000, 0, peak=100), noise(1000, 1, peak=8192)
    assert np.array_equal(corpus.read(0, 0, 1000), loud)
    assert np.array_equal(corpus.read(1, 200, 800), np.rint(quiet[200:800] * 81.92).astype(np.int16))
    assert [corpus.gain_of(file) * file.peak for file in corpus.files] == pytest.approx([10 ** (-1 / 20)] * 2)
    # A model of other audio has another gain; above full scale nothing wraps around.
    lower, over = (replace(corpus, gain=gain).read(1, 0, 1000) for gain in (7.2, 0.5))
    assert np.abs(lower).max() * 7.2 / 32768 == pytest.approx(10 ** (-1 / 20), rel=1e-3)
    assert (over.min(), over.max()) == (-32768, 32767)
    assert np.array_equal(over > 0, quiet > 0)


def test_dc_is_removed_where_it_is_audible_only(tmp_path: Path, cache: Path) -> None:
    base = noise(5000, 0)
    for name, dc in [("a", 0), ("b", 20), ("c", 3000)]:  # 1e-3 is 33 steps
        write(tmp_path / "audio" / f"{name}.wav", np.roll(base, 2 * dc) + np.int16(dc))
    corpus = prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache))
    means = [corpus.read(i, 0, 5000).mean() for i in range(3)]
    assert means == [0, 20, 0]
    assert np.array_equal(corpus.read(2, 0, 5000), np.roll(base, 6000))
    c = corpus.files[2]
    assert c.dc == 3000 / 32768
    assert c.peak == 10000 / 32768
    assert c.sha256 == hashlib.sha256(corpus.read(c, 0, 5000).tobytes()).hexdigest()


def test_dc_of_a_long_file_is_removed_piece_by_piece(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_PIECE", 700)
    base = noise(5000, 0)
    write(tmp_path / "audio" / "a.wav", noise(300, 1))
    write(tmp_path / "audio" / "b.wav", base + np.int16(1000))
    write(tmp_path / "audio" / "c.wav", noise(300, 2))
    corpus = prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache))
    expected = [noise(300, 1), base, noise(300, 2)]
    for file, samples in zip(corpus.files, expected, strict=True):
        assert np.array_equal(corpus.read(file, 0, file.num_samples), samples)


def test_clipped_samples_are_counted(tmp_path: Path, cache: Path) -> None:
    x = noise(1000, 0)
    x[100:110], x[200:205] = 32767, -32768
    write(tmp_path / "audio" / "x.wav", x)
    assert prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache)).files[0].clipped == 15


def test_bad_files_are_reported_and_do_not_stop_the_others(folder: Path, cache: Path) -> None:
    (folder / "empty.wav").touch()
    (folder / "song.m4a").write_bytes(b"ftypM4A")
    (folder / "text.flac").write_text("no audio")
    write(folder / "silent.wav", np.zeros(1000, np.int16))
    write(folder / "constant.wav", np.full(1000, 500, np.int16))
    sf.write(folder / "nan.wav", np.append(np.ones(40000, "f4"), np.nan), RATE, "FLOAT")
    sf.write(folder / "header.wav", np.zeros(0), RATE)
    write(folder / "3 again.flac", noise(3 * RATE, 3))
    write(folder / "cut.flac", noise(50000, 9))
    os.truncate(folder / "cut.flac", 60000)
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    words = {
        "3.wav": "exact duplicate of 3 again.flac",
        "constant.wav": "silent",
        "cut.flac": "damaged after",
        "empty.wav": "0 bytes",
        "header.wav": "no samples",
        "nan.wav": "NaN",
        "silent.wav": "silent",
        "song.m4a": ".m4a files cannot be read",
        "text.flac": "not readable as audio",
    }
    assert [problem.path for problem in corpus.problems] == sorted(words)
    for problem in corpus.problems:
        assert words[problem.path] in problem.problem
        assert problem.remedy
    names = ["1.wav", "2.wav", "3 again.flac", "4.wav", "5.wav", "cut.flac"]
    assert [file.path for file in corpus.files] == names
    for file, seed in zip(corpus.files, [1, 2, 3, 4, 5, 9], strict=True):  # offsets survive the rejects
        start = noise(50000 if seed == 9 else seed * RATE, seed)[: file.num_samples]
        assert np.array_equal(corpus.read(file, 0, file.num_samples), start)
    assert (
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache)) == corpus
    )  # problems are remembered too


def test_no_usable_file_is_an_error_that_names_the_first(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "audio").mkdir()
    with pytest.raises(UserError, match="no audio files found"):
        prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache))
    for index in range(5):
        (tmp_path / "audio" / f"{index}.wav").touch()
    with pytest.raises(UserError, match=r"none of its 5 audio files(.|\n)*0\.wav: is empty(.|\n)*2\.wav"):
        prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache))


def test_an_unchanged_folder_is_not_decoded_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    before = identities(first.shard_dir)
    decoded = Decoded(monkeypatch)
    assert prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache)) == first
    assert decoded == []
    assert identities(first.shard_dir) == before
    assert (
        prepare(folder, DataConfig(sample_rate=8000, cache_dir=cache)).shard_dir != first.shard_dir
    )  # another rate, another cache
    assert len(decoded) == 5


def test_the_audio_folder_is_left_alone(folder: Path, cache: Path) -> None:
    def state() -> dict[Path, tuple[int, bytes]]:
        return {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in [*folder.iterdir()]}

    before = state()
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert state() == before
    with pytest.raises(UserError, match="inside the audio folder"):
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=folder / "cache"))
    assert state() == before


def test_the_default_cache_is_the_users(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_module.platformdirs, "user_cache_path", lambda name: tmp_path / "home" / name)
    corpus = prepare(folder, DataConfig(sample_rate=RATE))
    assert (tmp_path / "home" / "samplernn" / "corpora") in corpus.shard_dir.parents


@pytest.mark.parametrize("change", ["add", "touch", "rewrite", "remove"])
def test_a_changed_file_rebuilds_its_shard_only(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    for index in range(6, 40):
        write(folder / f"{index}.wav", noise(200, index))
    monkeypatch.setattr(shards, "SHARD_FILES", 5)
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    before = identities(first.shard_dir)
    decoded = Decoded(monkeypatch)
    if change == "add":
        write(folder / "17a.wav", noise(300, 99))
    elif change == "touch":
        os.utime(folder / "17.wav", ns=(1, 1))
    elif change == "rewrite":
        write(folder / "17.wav", noise(300, 99))
    else:
        (folder / "17.wav").unlink()
    second = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    after = identities(second.shard_dir)
    assert before.items() <= after.items()  # nothing old was touched
    assert len({file.shard for file in first.files}) > 4
    assert len(after) - len(before) == 2  # one .i16, one .json
    neighbours = {Path(f.path).name for f in second.files if f.shard not in before}
    assert set(decoded) == neighbours
    assert len(second.files) == len(list(folder.iterdir()))


def test_an_interrupted_build_resumes_at_the_finished_shards(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_per_shard(monkeypatch)
    original = files.Decoder

    def interrupted(path: Path, sample_rate: int) -> files.Decoder:
        if path.name == "4.wav":
            raise KeyboardInterrupt
        return original(path, sample_rate)

    monkeypatch.setattr(files, "Decoder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    monkeypatch.setattr(files, "Decoder", original)
    leftover = list(cache.rglob("*"))
    assert not [path for path in leftover if path.suffix == ".tmp"]
    finished = len([path for path in leftover if path.suffix == ".i16"])
    assert finished == 3
    decoded = Decoded(monkeypatch)
    assert prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache)).num_samples == 15 * RATE
    assert sorted(decoded) == ["4.wav", "5.wav"]


KILLED = """
import os, signal, sys
from samplernn.audio import corpus, shards

shards.SHARD_FILES = 1
original = shards.decode_into

def decode_into(stream, folder, source, *rest):
    if source.path == "4.wav":
        stream.write(b"half a file")
        stream.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(stream, folder, source, *rest)

shards.decode_into = decode_into
corpus.prepare(sys.argv[1], corpus.DataConfig(sample_rate=16000, cache_dir=sys.argv[2]), workers=0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_build_resumes_at_the_finished_shards(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(next(iter(samplernn.__path__))).parent
    result = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(cache)], cwd=root)
    assert result.returncode == -signal.SIGKILL
    one_per_shard(monkeypatch)
    decoded = Decoded(monkeypatch)
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert sorted(decoded) == ["4.wav", "5.wav"]
    assert np.array_equal(corpus.read(3, 0, 4 * RATE), noise(4 * RATE, 4))


@pytest.mark.parametrize("damage", ["short", "long", "no samples", "no json", "text", "other json"])
def test_a_damaged_shard_is_built_again(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    one_per_shard(monkeypatch)
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    samples = first.shard_dir / first.files[2].shard
    entry = samples.with_suffix(".json")
    if damage in ("short", "long"):
        os.truncate(samples, samples.stat().st_size + (2 if damage == "long" else -2))
    elif damage == "no samples":
        samples.unlink()
    elif damage == "no json":
        entry.unlink()
    else:
        entry.write_text('{"files": [' if damage == "text" else '{"files": [{"path": "x"}], "problems": []}')
    decoded = Decoded(monkeypatch)
    second = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    shards.open_samples.cache_clear()
    assert decoded == ["3.wav"]
    assert second == first
    assert np.array_equal(second.read(2, 0, 3 * RATE), noise(3 * RATE, 3))


def test_builds_of_one_cache_at_the_same_time_do_no_harm(folder: Path, cache: Path) -> None:
    gate = threading.Barrier(4)

    def build() -> Corpus:
        gate.wait()
        return prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), progress=False)

    with ThreadPoolExecutor(4) as pool:
        results = [task.result() for task in [pool.submit(build) for _ in range(4)]]
    assert results == [results[0]] * 4
    assert np.array_equal(results[0].read(0, 0, RATE), noise(RATE, 1))
    assert not list(cache.rglob("*.tmp"))


def test_shards_that_nobody_needs_go_after_a_day(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_per_shard(monkeypatch)
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    old = first.shard_dir / first.files[0].shard
    (first.shard_dir / ".x.i16.123-abc.tmp").touch()
    (folder / "1.wav").unlink()
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert old.exists()  # a run that started before may still read it
    assert np.array_equal(first.read(0, 0, RATE), noise(RATE, 1))
    day_ago = time.time() - shards.STALE_SECONDS - 1
    for path in first.shard_dir.iterdir():
        os.utime(path, (day_ago, day_ago))
    second = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    kept = {path.stem for path in second.shard_dir.iterdir()}
    assert kept == {Path(file.shard).stem for file in second.files}


def test_the_manifest_describes_the_cache(folder: Path, cache: Path) -> None:
    (folder / "bad.wav").touch()
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    manifest = json.loads((corpus.shard_dir.parent / "manifest.json").read_text())
    assert manifest["sample_rate"] == RATE
    assert manifest["gain"] == corpus.gain
    assert manifest["num_samples"] == corpus.num_samples
    assert [problem["path"] for problem in manifest["problems"]] == ["bad.wav"]
    assert {f"{key}.i16" for key in manifest["shards"]} == {
        path.name for path in corpus.shard_dir.glob("*.i16")
    }


@pytest.mark.parametrize("where", ["file", "file/below"])
def test_a_cache_that_cannot_be_written_is_a_clear_error(folder: Path, tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cache cannot be written.*data\.cache_dir"):
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=tmp_path / where))


def test_a_full_disk_is_a_clear_error(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shards.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_cache_deleted_in_use_is_a_clear_error(folder: Path, cache: Path) -> None:
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    shutil.rmtree(cache)
    with pytest.raises(UserError, match="deleted or damaged while in use"):
        corpus.read(0, 0, 10)


def test_a_corpus_can_be_pickled_after_reading(folder: Path, cache: Path) -> None:
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    corpus.read(0, 0, 10)
    copy = pickle.loads(pickle.dumps(corpus))
    assert copy == corpus
    assert np.array_equal(copy.read(4, 7, 99), corpus.read(4, 7, 99))


def test_nothing_is_printed_where_there_is_no_terminal(
    folder: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_progress_bar_while_something_is_decoded(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(corpus_module, "Console", lambda stderr: Console(file=terminal, force_terminal=True))
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert "decoding" in terminal.getvalue()
    terminal.truncate(0)
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert terminal.getvalue() == ""


@pytest.mark.skipif(sys.platform != "linux", reason="any bytes are a name on Linux")
def test_names_that_are_not_unicode_are_read(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "audio" / os.fsdecode(b"caf\xe9 \xff.wav")
    write(tmp_path / "audio" / "x.wav", noise(1000, 0))
    (tmp_path / "audio" / "x.wav").rename(path)
    corpus = prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache))
    assert prepare(tmp_path / "audio", DataConfig(sample_rate=RATE, cache_dir=cache)) == corpus
    assert corpus.files[0].path == path.name


def test_the_embedded_clips_are_a_corpus(cache: Path) -> None:
    corpus = prepare(CLIPS, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert len(corpus.files) == len(list(CLIPS.rglob("*.flac")))
    assert corpus.problems == ()
    assert corpus.duration == pytest.approx(135.5, abs=0.1)
    for file in corpus.files:
        expected, _ = sf.read(CLIPS / file.path, dtype="int16")
        shift = 0 if abs(file.dc) <= 1e-3 else round(expected.mean())
        samples = corpus.read(file, 0, file.num_samples)
        assert np.array_equal(samples, np.clip(expected.astype(int) - shift, -32768, 32767))


def test_the_identity_of_a_corpus_follows_its_audio_not_its_place(clips: Path, tmp_path: Path) -> None:
    for name in ("here", "there"):
        shutil.copytree(clips / "guitar", tmp_path / name)
    here, there = (prepare(tmp_path / name, DataConfig(sample_rate=8000)) for name in ("here", "there"))
    assert here.sha256 == there.sha256
    assert len(here.sha256) == 64
    assert prepare(tmp_path / "here", DataConfig(sample_rate=4000)).sha256 != here.sha256
    next((tmp_path / "there").glob("*.flac")).unlink()
    assert prepare(tmp_path / "there", DataConfig(sample_rate=8000)).sha256 != here.sha256
