"""Decoding in processes: what hangs, crashes or is slow costs one file, and nothing outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from samplernn.audio import corpus as corpus_module
from samplernn.audio import decoding, shards
from samplernn.audio.corpus import inspect, prepare
from samplernn.audio.decoding import Decoded
from samplernn.audio.io import AudioError
from samplernn.config import DataConfig
from tests.decoders import LOOP, code_acting, environment_acting

RATE = 16000
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def noise(length: int, seed: int) -> np.ndarray:
    """Without a mean, which would be removed."""
    half = np.random.default_rng(seed).integers(-20000, 20000, length // 2).astype(np.int16)
    return np.concatenate([half, -half])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six files of a second in a few shards."""
    (tmp_path / "audio").mkdir()
    for index in range(6):
        sf.write(tmp_path / "audio" / f"{index}.wav", noise(RATE, index), RATE)
    return tmp_path / "audio"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def acting(monkeypatch: pytest.MonkeyPatch, name: str, action: str) -> None:
    """In decoding processes from now on, an action takes place before the file of that name is opened."""
    start = decoding.command()
    monkeypatch.setattr(decoding, "command", lambda: [*start[:-1], code_acting(name, action) + start[-1]])


def test_processes_find_what_this_process_finds(folder: Path, cache: Path, tmp_path: Path) -> None:
    (folder / "text.wav").write_text("no audio")
    sf.write(folder / "dc.flac", np.full(RATE, 0.25) + noise(RATE, 9) / 2**17, RATE)
    alone = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=tmp_path / "alone"), workers=0)
    assert len(alone.files) == 7
    measured = inspect(folder, DataConfig(sample_rate=RATE, cache_dir=cache), workers=2)
    assert not cache.exists()
    together = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), workers=2)
    assert measured.files == together.files == alone.files
    assert together.problems == alone.problems
    for index, file in enumerate(alone.files):
        assert np.array_equal(together.read(index, 0, file.num_samples), alone.read(index, 0, RATE))


def test_a_file_on_which_the_decoder_hangs_costs_that_file(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sf.write(folder / "3a.wav", noise(RATE, 7), RATE)
    acting(monkeypatch, "3a.wav", LOOP)
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache, decode_timeout=1.0), workers=2)
    (problem,) = first.problems
    assert problem.path == "3a.wav"
    assert problem.problem == "makes the decoder hang: it has not ended after 1 s"
    assert "data.decode_timeout" in problem.remedy
    assert [file.path for file in first.files] == [f"{index}.wav" for index in range(6)]
    assert np.array_equal(first.read(3, 0, RATE), noise(RATE, 3))
    assert not list(cache.rglob("*.tmp"))

    def started() -> list[str]:
        raise AssertionError("decoded again")

    with monkeypatch.context() as patch:  # it is remembered, so a start does not wait for it again
        patch.setattr(decoding, "command", started)
        assert (
            prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache, decode_timeout=1.0), workers=2)
            == first
        )
    more = prepare(
        folder, DataConfig(sample_rate=RATE, cache_dir=cache, decode_timeout=1.5), workers=2
    )  # unless there is more time for it
    assert more.problems[0].problem == "makes the decoder hang: it has not ended after 2 s"


def test_inspect_names_a_file_that_hangs_and_writes_nothing(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting(monkeypatch, "3.wav", LOOP)
    found = inspect(folder, DataConfig(sample_rate=RATE, cache_dir=cache, decode_timeout=1.0), workers=2)
    assert [problem.path for problem in found.problems] == ["3.wav"]
    assert len(found.files) == 5
    assert not cache.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_decoder_that_crashes_costs_that_file(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting(monkeypatch, "2.wav", "os.kill(os.getpid(), signal.SIGSEGV)")
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), workers=1)
    (problem,) = corpus.problems
    assert (problem.path, problem.problem) == ("2.wav", "makes the decoder crash (SIGSEGV)")
    assert len(corpus.files) == 5
    assert not list(cache.rglob("*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_a_decoder_that_is_killed_from_outside_is_not_the_files_fault(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        acting(patch, "2.wav", "os.kill(os.getpid(), signal.SIGKILL)")
        (problem,) = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), workers=1).problems
    assert problem.problem == "could not be decoded: the decoder was ended (SIGKILL)"
    again = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), workers=1)
    assert again.problems == ()
    assert len(again.files) == 6


def test_a_slow_disk_is_not_remembered(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        acting(patch, "2.wav", "time.sleep(60)")
        (problem,) = prepare(
            folder, DataConfig(sample_rate=RATE, cache_dir=cache, decode_timeout=1.0), workers=1
        ).problems
    assert problem.problem == "cannot be read within 1 s (the disk or network is slow)"
    assert (
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache, decode_timeout=1.0), workers=1).problems
        == ()
    )


@linux
def test_a_file_that_asks_for_too_much_memory_costs_that_file(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acting(monkeypatch, "2.wav", "bytearray(3 * 2**30)")
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), workers=1)
    (problem,) = corpus.problems
    assert (problem.path, problem.problem) == ("2.wav", "takes too much memory to decode")
    assert len(corpus.files) == 5


def test_larger_files_have_more_time() -> None:
    assert decoding.seconds_for(1000, 20.0) == 20.0
    assert decoding.seconds_for(2**32, 20.0) == 20480.0


def test_progress_counts_every_byte_once(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    acting(monkeypatch, "4.wav", "os._exit(3)")
    sources, _ = corpus_module.states(folder, corpus_module.scan(folder))
    key = shards.shard_key(sources, RATE)
    cache.mkdir()
    task = decoding.Task(folder, tuple(sources), RATE, cache, key, store=True)
    sizes: list[int] = []
    shard = decoding.make_shards([task], 1, 20.0, sizes.append)[key]
    assert sizes == [source.size for source in sources]
    assert [problem.problem for problem in shard.problems] == ["makes the decoder crash (exit code 3)"]


def test_where_no_process_can_start_this_one_decodes(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoding, "command", lambda: [sys.executable, "-c", "raise SystemExit(1)"])
    assert len(prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache), workers=2).files) == 6
    assert capfd.readouterr().err == "decoding in this process: a decoding process ended by itself\n"


def test_a_full_disk_is_told_as_by_this_process(folder: Path, small_disk: Path) -> None:
    sf.write(folder / "long.wav", noise(20 * RATE, 1), RATE)
    with pytest.raises(ValueError, match=r"the cache cannot be written.*No space left"):
        prepare(folder, DataConfig(sample_rate=RATE, cache_dir=small_disk / "cache"), workers=2)


def test_a_single_file_is_decoded_as_by_its_decoder(folder: Path) -> None:
    decoded = Decoded(folder / "1.wav", RATE)
    assert np.array_equal(np.concatenate(list(decoded)) * 32768, noise(RATE, 1))
    assert decoded.problems == []
    cut = folder / "cut.wav"
    cut.write_bytes((folder / "1.wav").read_bytes()[:-8000])
    decoded = Decoded(cut, RATE)
    assert sum(map(len, decoded)) == RATE - 4000
    assert [problem.problem for problem in decoded.problems] == ["is truncated: it ends after 0.8 of 1.0 s"]
    with pytest.raises(AudioError, match=r"none\.wav: cannot be opened \(No such file"):
        list(Decoded(folder / "none.wav", RATE))
    half = iter(Decoded(folder / "2.wav", 8000))
    next(half)
    half.close()  # type: ignore[attr-defined]
    assert sum(map(len, Decoded(folder / "2.wav", 8000))) == 8000


def test_a_single_file_is_looked_for_where_this_process_is_now(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    first = np.concatenate(list(Decoded("0.wav", RATE)))
    (tmp_path / "elsewhere").mkdir()
    (folder / "0.wav").rename(tmp_path / "elsewhere" / "0.wav")
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(np.concatenate(list(Decoded("0.wav", RATE))), first)
    monkeypatch.chdir(folder)
    with pytest.raises(AudioError, match=r"^0\.wav: "):
        list(Decoded("0.wav", RATE))


def test_a_single_file_that_hangs_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding._spare.cache_clear()  # those that wait would not act
    acting(monkeypatch, "0.wav", LOOP)
    with pytest.raises(AudioError, match=r"0\.wav: makes the decoder hang: it has not ended after 1 s"):
        list(Decoded(folder / "0.wav", RATE, timeout=1.0))
    assert sum(map(len, Decoded(folder / "1.wav", RATE))) == RATE


def test_who_takes_long_over_a_block_is_waited_for(folder: Path) -> None:
    sf.write(folder / "long.wav", noise(6 * RATE, 1), RATE)
    blocks = iter(Decoded(folder / "long.wav", RATE, timeout=0.5))
    first = next(blocks)
    time.sleep(1.0)
    assert len(first) + sum(map(len, blocks)) == 6 * RATE


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(") ")[1][0] != "Z"
    except OSError:
        return False


@linux
@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT", "SIGKILL"])
@pytest.mark.parametrize("verb", ["doctor", "generate"])
def test_signals_end_a_command_and_its_decoders(
    folder: Path, run_copy: Path, cache: Path, tmp_path: Path, number: str, verb: str
) -> None:
    arguments = [verb, str(folder), "--data.cache_dir", str(cache)]
    if verb == "generate":
        arguments = [verb, str(run_copy), "--prompt", str(folder / "0.wav")]
    command = [sys.executable, "-m", "samplernn", *arguments]
    with subprocess.Popen(
        command,
        env=environment_acting(tmp_path / "site", "0.wav", LOOP),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        deadline = time.monotonic() + 60
        decoders: list[int] = []
        while time.monotonic() < deadline:  # until one computes, which is where it loops
            decoders = [pid for pid in _children(process.pid) if _seconds_of(pid) > 0.8]
            if decoders:
                break
            time.sleep(0.05)
        assert decoders
        process.send_signal(getattr(signal, number))
        output, _ = process.communicate(timeout=30)
    assert process.returncode == {"SIGTERM": 143, "SIGINT": 130, "SIGKILL": -9}[number]
    assert b"Traceback" not in output
    deadline = time.monotonic() + 10
    while any(map(is_alive, decoders)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(is_alive, decoders))


def _children(pid: int) -> list[int]:
    """Of all threads of a process that may have ended."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for task in tasks for child in (task / "children").read_text("ascii").split()]
    except OSError:
        return []


def _seconds_of(pid: int) -> float:
    """Processor time of a process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rsplit(") ")[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
