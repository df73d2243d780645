"""Files that change, vanish or cannot be read: between runs, during the search, while they are decoded."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

import samplernn
from samplernn.audio import corpus as corpus_module
from samplernn.audio import files, shards
from samplernn.audio.corpus import prepare
from samplernn.audio.io import AudioError, Decoder, load
from samplernn.audio.split import locate, lost, split
from samplernn.config import DataConfig

ROOT = Path(next(iter(samplernn.__path__))).parent
RATE = 16000
linux = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def noise(num_samples: int, seed: int) -> np.ndarray:
    half = np.random.default_rng(seed).integers(-9000, 9001, num_samples // 2)
    return np.stack([half, -half], axis=1).ravel().astype(np.int16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten files of one second, all in one shard."""
    (tmp_path / "audio").mkdir()
    for index in range(10):
        sf.write(tmp_path / "audio" / f"{index}.wav", noise(RATE, index), RATE)
    return tmp_path / "audio"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def while_decoding(monkeypatch: pytest.MonkeyPatch, name: str, action: object) -> None:
    """Lets another hand do something to a file once the decoder has it open and has read its first block."""
    original = files.Decoder

    class Slow(original):  # type: ignore[misc,valid-type]
        def _frames(self, *arguments):  # type: ignore[no-untyped-def]
            for index, block in enumerate(super()._frames(*arguments)):
                if index == 0 and self.path.name == name:
                    action(self.path)  # type: ignore[operator]
                yield block

    monkeypatch.setattr(files, "Decoder", Slow)


def append(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"\1\2" * 5000)


def touch(path: Path) -> None:
    os.utime(path, ns=(10, path.stat().st_mtime_ns + 1))


def rewrite(path: Path) -> None:
    time.sleep(0.02)  # file systems tick
    sf.write(path, noise(RATE, 99), RATE)


def swap(path: Path) -> None:
    """As most programs save: a new file takes the name."""
    sf.write(path.with_name("new.wav"), noise(RATE, 99), RATE)
    path.with_name("new.wav").replace(path)


CHANGES = [append, touch, rewrite, swap, Path.unlink, lambda path: os.truncate(path, 1000)]
NAMES = ["appended", "touched", "rewritten", "swapped", "deleted", "cut"]


@pytest.mark.parametrize("change", CHANGES, ids=NAMES)
def test_a_file_that_changes_while_it_is_decoded_is_left_out_and_not_remembered(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, change: object
) -> None:
    before = (folder / "3.wav").stat()
    content = (folder / "3.wav").read_bytes()
    with monkeypatch.context() as patch:
        while_decoding(patch, "3.wav", change)
        first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    (problem,) = first.problems
    assert problem.path == "3.wav"
    assert "while it was read" in problem.problem
    assert [file.path for file in first.files] == [f"{i}.wav" for i in range(10) if i != 3]
    for file in first.files:  # what the others hold is right, and can be read
        assert np.array_equal(first.read(file, 0, RATE), noise(RATE, int(file.path[0])))
    # The file as it was comes back, so the shard's key is the one under which it was decoded.
    (folder / "3.wav").unlink(missing_ok=True)
    (folder / "3.wav").write_bytes(content)
    os.utime(folder / "3.wav", ns=(before.st_atime_ns, before.st_mtime_ns))
    second = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert second.problems == ()
    assert np.array_equal(second.read(3, 0, RATE), noise(RATE, 3))
    # A process that had begun with the other one goes on with it, also after its mapping was dropped.
    shards.open_samples.cache_clear()
    assert np.array_equal(first.read(3, 0, RATE), noise(RATE, 4))
    # It goes with everything else that nobody needs.
    old = time.time() - shards.STALE_SECONDS - 1
    for path in first.shard_dir.iterdir():
        os.utime(path, (old, old))
    prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert len(list(first.shard_dir.iterdir())) == 2


def test_a_file_that_a_program_is_still_writing_is_used_once_it_is_finished(
    folder: Path, cache: Path
) -> None:
    """A recorder, as a process of its own, in another program's way: no library of ours."""
    recorder = (
        "import pathlib, sys, time, wave\n"
        "with wave.open(sys.argv[1], 'wb') as file:\n"
        "    file.setparams((1, 2, 16000, 0, 'NONE', ''))\n"
        "    while not pathlib.Path(sys.argv[2]).exists():\n"
        "        file.writeframes(bytes([file.tell() % 251, 1] * 20_000)); time.sleep(0.005)\n"
        "        print(file.tell(), flush=True)\n"
    )
    stop = folder.parent / "stop"
    command = [sys.executable, "-c", recorder, str(folder / "take.wav"), str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "20000\n"
        during = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
        stop.touch()
        length = int(process.stdout.read().split()[-1])
    after = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert len(during.files) >= 10
    assert length not in {file.num_samples for file in during.files}
    assert {file.path: file.num_samples for file in after.files}["take.wav"] == length
    assert after.problems == ()


def test_files_that_vanish_between_search_and_decoding_are_named(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = corpus_module._shards

    def build(*arguments: object, **options: object) -> object:
        (folder / "2.wav").unlink()
        return original(*arguments, **options)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "_shards", build)
        first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    (problem,) = first.problems
    assert problem.path == "2.wav"
    assert "No such file" in problem.problem
    assert "check that it is still there" in problem.remedy
    assert prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache)).problems == ()


def test_a_folder_that_changes_all_the_time_never_breaks_a_search(tmp_path: Path, cache: Path) -> None:
    audio = tmp_path / "audio"
    audio.mkdir()
    sf.write(audio / "stays.wav", noise(RATE, 0), RATE)
    content = (audio / "stays.wav").read_bytes()
    done = threading.Event()

    def churn() -> None:
        number = 0
        while not done.is_set():
            number = (number + 1) % 20
            place = audio / f"d{number}"
            place.mkdir(exist_ok=True)
            (place / "x.wav").write_bytes(content[: 44 + 100 * number])
            (place / "x.wav").rename(audio / f"{number}.wav")
            (audio / f"{(number + 10) % 20}.wav").unlink(missing_ok=True)
            place.rmdir()

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(15):
            corpus = prepare(audio, DataConfig(sample_rate=RATE, cache_dir=cache))
            assert "stays.wav" in {file.path for file in corpus.files}
            for file in corpus.files:
                assert file.num_samples in {RATE, *range(0, 1000, 50)}
    finally:
        done.set()
        thread.join()
    for path in [path for path in audio.iterdir() if path.name != "stays.wav"]:
        path.unlink()
    last = prepare(audio, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert last.problems == ()
    assert np.array_equal(last.read(0, 0, RATE), noise(RATE, 0))


def test_a_file_that_changed_between_runs_is_named_and_the_rest_found_by_content(
    folder: Path, cache: Path
) -> None:
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    parts = split(first, 0)
    changed, gone, broken, moved = [span.path for span in parts.train[:4]]
    rewrite(folder / changed)
    (folder / gone).unlink()
    (folder / broken).write_bytes(b"no audio")
    (folder / "sub").mkdir()
    (folder / moved).rename(folder / "sub" / "other name.wav")
    second = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    found = locate(second, parts.train)
    assert len(found) == len(parts.train) - 3
    assert "sub/other name.wav" in {file.path for file, _, _ in found}
    for file, start, stop in found:
        original = next(f for f in first.files if f.sha256 == file.sha256)
        assert np.array_equal(second.read(file, start, stop), noise(RATE, int(original.path[0])))
    words = {problem.path: problem.problem for problem in lost(second, parts.train)}
    assert words.keys() == {changed, gone, broken}
    assert words[changed] == "has changed since the split was made, so it is not used"
    assert words[gone] == "is not there any more"
    assert "not readable as audio" in words[broken]
    assert lost(second, parts.validation) == []


@linux
def test_a_disk_error_is_named_and_not_remembered(folder: Path, cache: Path) -> None:
    """/proc/self/mem is a regular file whose first byte cannot be read: EIO."""
    (folder / "bad.wav").symlink_to("/proc/self/mem")
    first = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    (problem,) = first.problems
    assert problem.path == "bad.wav"
    assert problem.problem == "cannot be opened (Input/output error)"
    assert problem.remedy == "check the disk or network"
    assert first.files[0].shard.count("-") == 1  # a name of its own, not the key
    assert len(list(first.shard_dir.glob("*-*.i16"))) == 1


@linux
def test_a_disk_error_in_the_middle_is_no_truncation(folder: Path) -> None:
    path = folder / "long.wav"
    sf.write(path, noise(10 * RATE, 5), RATE)
    decoder = Decoder(path, RATE)
    blocks = iter(decoder)
    next(blocks)
    mine = [int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.resolve() == path]
    assert len(mine) == 1
    bad = os.open("/proc/self/mem", os.O_RDONLY)
    os.dup2(bad, mine[0])  # reading goes on where nothing can be read
    os.close(bad)
    with pytest.raises(AudioError, match=r"cannot be read after 1\.0 s") as caught:
        list(blocks)
    assert caught.value.transient
    assert decoder.problems == []


@linux
def test_too_many_open_files_are_not_the_files_fault(folder: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(AudioError, match=r"Too many open files.*ulimit -n") as caught:
            load(folder / "1.wav", RATE)
        assert caught.value.transient
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(load(folder / "1.wav", RATE)) == RATE


FEW = """
import os, resource, sys
from samplernn.audio.corpus import prepare
from samplernn.config import UserError, DataConfig
open_now = len(os.listdir("/proc/self/fd")) - 1
resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + int(sys.argv[3]),) * 2)
try:
    corpus = prepare(sys.argv[1], DataConfig(sample_rate=16000, cache_dir=sys.argv[2]), workers=1)
    print(len(corpus.files), [p.problem for p in corpus.problems][:1])
except UserError as error:
    print(error)
"""


@linux
def test_a_starved_process_leaves_nothing_false_behind(folder: Path, cache: Path) -> None:
    said = []
    for spare in range(20):
        command = [sys.executable, "-c", FEW, str(folder), str(cache), str(spare)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("\n") == 1
        said.append(result.stdout)
        if result.stdout.startswith("10 "):
            break
    assert said[-1] == "10 []\n"
    assert any("Too many open files" in line for line in said)
    corpus = prepare(folder, DataConfig(sample_rate=RATE, cache_dir=cache))
    assert len(corpus.files) == 10
    assert corpus.problems == ()
